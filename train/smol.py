"""`smol` for training: backbones plus a connector with rows for what ImageNet lacks; and the export of what was trained.

python -m train smol                              # hours on two cores; resumable
python -m train.smol runs/smol/final              # writes the trained parts into the preset
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from train.stages import load_recipe
from vlm.checkpoints.fetch import sha256_of
from vlm.errors import CheckpointError
from vlm.model import VLMForConditionalGeneration
from vlm.presets import preset_folder
from vlm.presets.smol import TRAINED_FILE, base, name_embeddings, time_token_ids
from vlm.processor import VLMProcessor

_ON_CLASS = 14.0  # what the logit of a stamp gains on its own picture
_BIAS = 1.0  # what it is on the mean of all pictures


def model(
    *, seed: int = 0, connector: dict[str, Any] | None = None, rows: bool = True
) -> tuple[VLMForConditionalGeneration, VLMProcessor]:
    """Untrained `smol` with one extra prototype for every noun of the training pictures.

    Args:
        connector: Another connector to compare with, e.g. ``{"type": "mlp2x_gelu"}`` (then there are no prototypes).
        rows: Add the extra prototypes.
    """
    torch.manual_seed(seed)
    if connector is not None or not rows:
        return base(connector=connector)
    nouns, keys, bias = stamp_prototypes()
    built, processor = base(extra_prototypes=len(nouns))
    first = built.mm_projector.keys.out_features - len(nouns)
    with torch.no_grad():
        built.mm_projector.keys.weight[first:] = torch.from_numpy(keys)
        built.mm_projector.keys.bias[first:] = torch.from_numpy(bias)
        for row, noun in enumerate(nouns, start=first):
            count = built.mm_projector.tokens_per_region
            built.mm_projector.values[row] = name_embeddings(built, processor, noun, count)
    return built, processor


def stamp_prototypes(shrink: float = 3.0) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Nouns, keys ``[N, 1280]`` and biases ``[N]`` from a shrunk linear discriminant over the training renderings (ours).

    With S the covariance within the renderings of one picture, plus a tenth of that of all pictures, plus ``shrink`` times the latter's
    mean variance on the diagonal, the key of a noun with mean m is proportional to ``inv(S) (m - mu)``, scaled so that m itself scores
    ``_ON_CLASS`` above mu. Another picture of the noun scores about a third of that (leaving one picture out, for nouns that have
    several): `_BIAS` lets that hold against the ImageNet classes it resembles, and those against it on photographs.
    """
    from data_recipes.synth.features import feature_bank

    bank = feature_bank("train")
    middle = bank.where("middle")
    pooled = bank.pooled[middle]
    items = [bank.rows[int(i)].items[0] for i in middle]
    mu = pooled.mean(0)
    pictures = _means(pooled, [str(i.picture) for i in items])
    within = pooled - np.stack([pictures[str(i.picture)] for i in items])
    total = np.cov(pooled, rowvar=False)
    covariance = within.T @ within / len(within) + 0.1 * total
    covariance += shrink * np.trace(total) / len(total) * np.eye(len(total))
    by_noun = _means(pooled, [i.name.noun for i in items])
    means = np.stack(list(by_noun.values())) - mu
    keys = np.linalg.solve(covariance, means.T).T
    keys *= _ON_CLASS / np.einsum("nd,nd->n", keys, means)[:, None]
    return list(by_noun), keys.astype(np.float32), (_BIAS - keys @ mu).astype(np.float32)


def _means(x_ND: np.ndarray, labels: list[str]) -> dict[str, np.ndarray]:
    """Mean row of every label, in alphabetical order."""
    own = np.array(labels)
    return {label: x_ND[own == label].mean(0) for label in sorted(set(labels))}


def export(final: Path, folder: Path | None = None) -> Path:
    """Write ``trained.safetensors`` (float16) and ``trained.json`` of the preset.

    Args:
        final: The ``final`` folder of a run, or one of its checkpoints (then the shipped recipe says how LoRA was set up).
        folder: Where to write; default: the preset of this installation.

    Raises:
        CheckpointError: The run did not train a connector, adapters and time tokens.
    """
    folder = folder or preset_folder("smol")
    done = (final / "recipe.json").exists()
    source = final / ("trainable.safetensors" if done else "weights.safetensors")
    tensors = load_file(source)
    recipe = json.loads((final / "recipe.json").read_text()) if done else load_recipe("smol").as_dict()
    _, processor = base()
    ids = time_token_ids(processor)
    out: dict[str, torch.Tensor] = {}
    for name, value in sorted(tensors.items(), key=lambda item: not item[0].endswith(".token_rows")):  # newest first
        if name.startswith("mm_projector."):
            out[name] = value
        elif name.endswith(".token_rows"):
            out["time_rows"] = value
        elif name.endswith(".embed_tokens.weight"):  # rows of a stage that has ended are back in their table
            out.setdefault("time_rows", value[ids])
        elif ".lora_" in name:
            module, side = name.removeprefix("language_model.").split(".lora_")
            out[f"lora.{module}.{side[0]}"] = value
    if "time_rows" not in out or not any(k.startswith("mm_projector.") for k in out):
        raise CheckpointError(f"{final}: lacks trained time tokens or a trained connector; found {sorted(tensors)[:4]}")
    lora = _lora_options(recipe)
    keys = out.get("mm_projector.keys.weight")
    meta = {
        "lora_scale": lora.get("alpha", 16.0) / lora.get("r", 8),
        "time_token_ids": ids,
        "extra_prototypes": 0 if keys is None else keys.shape[0] - 1000,
        "connector": (_recipe(recipe)["model"].get("args") or {}).get("connector"),
        "run": sha256_of(source)[:16],
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.to(torch.float16).contiguous() for k, v in out.items()}, folder / TRAINED_FILE)
    (folder / "trained.json").write_text(json.dumps(meta, indent=1) + "\n")
    return folder


def _recipe(content: dict[str, Any]) -> dict[str, Any]:
    return content.get("recipe", content)


def _lora_options(content: dict[str, Any]) -> dict[str, Any]:
    for stage in _recipe(content)["stages"]:
        for plugin in stage["plugins"]:
            if plugin["call"] == "lora":
                return plugin["args"]
    return {}


if __name__ == "__main__":
    sys.stdout.write(f"wrote {export(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)}\n")
