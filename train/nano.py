"""`nano`, from nothing: a 2-million-parameter video-language model for the shapes world.

python -m train nano_eyes && python -m train nano_ears
python -m train nano && python -m train.nano runs/nano/final --folder runs/nano/model
python -m train nano_hear && python -m train.nano runs/nano_hear/final --folder vlm/presets/nano
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data_recipes.synth.nano_tokenizer import build_nano_tokenizer
from train.nano_senses import audio_config, load_ears, load_eyes, vision_config
from train.stages import parse_recipe
from vlm.compose import start_times
from vlm.config import VLMConfig
from vlm.errors import CheckpointError, ConfigError
from vlm.model import VLMForConditionalGeneration
from vlm.plugins.parts import PARTS_JSON
from vlm.plugins.rotary import RotaryBase
from vlm.presets import preset_folder
from vlm.processor import VLMProcessor

CONTEXT = 8192  # positions of the language model
ROPE_THETA = 1e6  # most pairs of dimensions turn slowly: what attends by content must do so over hundreds of tokens
_EMBEDDING = 0.08  # standard deviation, about 1 / sqrt(width)


def config(vocabulary: int, width: int = 160, layers: int = 5, grid: int = 4, pooling: str = "changes") -> VLMConfig:
    """Everything about nano; `vocabulary` counts the tokenizer's entries, a frame becomes ``grid * grid`` tokens (4 is no pooling)."""
    return VLMConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": 8 * width // 3 // 32 * 32,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "num_key_value_heads": width // 32,
            "max_position_embeddings": CONTEXT,
            "rope_theta": ROPE_THETA,
            "tie_word_embeddings": True,
        },
        vision_config=vision_config().to_dict(),
        audio_config=audio_config().to_dict(),
        connector={"type": "mlp_downsample"},
        pooling={"mode": pooling, "out_grid": [grid, grid]},
        time={"codec": "relative", "interleave": True, "tag": 1.0},
    )


def model(
    seed: int = 0,
    eyes: str | None = None,
    ears: str | None = None,
    grid: int = 4,
    alike: bool = True,
    pooling: str = "changes",
    run: str | None = None,
) -> tuple[VLMForConditionalGeneration, VLMProcessor]:
    """A fresh nano with its processor, or one that a run has trained.

    Args:
        seed: Of the weights.
        eyes: The folder ``final`` of a `nano_eyes` run, to start from its vision tower.
        ears: The folder ``final`` of a `nano_ears` run, to start from its audio tower.
        grid: A frame becomes ``grid * grid`` tokens.
        alike: Start as a look-up (`attend_to_alike`) instead of with ordinary weights.
        pooling: Mode of `vlm.time.slowfast`, ``changes`` or ``frame``.
        run: The folder ``final`` of a nano's run, or one of its checkpoints, to start from its weights.

    Raises:
        CheckpointError: ``run`` holds other weights than nano's; ``eyes`` or ``ears`` holds no tower of this shape.
    """
    torch.manual_seed(seed)
    tokenizer = build_nano_tokenizer()
    probe = VLMProcessor.for_config(config(2048), tokenizer, (4, 4))
    nano_config = config(len(probe.tokenizer), grid=grid, pooling=pooling)
    nano_config.text_config.pad_token_id = tokenizer.pad_token_id
    nano_config.text_config.eos_token_id = tokenizer.eos_token_id
    nano_config.text_config.bos_token_id = None
    processor = VLMProcessor.for_config(nano_config, tokenizer, (4, 4))
    nano = VLMForConditionalGeneration(nano_config)
    if alike:
        attend_to_alike(nano.language_model)
    if run is not None:
        _load(nano, Path(run))
    if eyes is not None:
        load_eyes(nano, processor.tokenizer, Path(eyes))
    if ears is not None:
        load_ears(nano, processor.tokenizer, Path(ears))
    return nano, processor


def restart(
    preset: str = "nano-short", seed: int = 0, kept: float = 0.0
) -> tuple[VLMForConditionalGeneration, VLMProcessor]:
    """A shipped nano with fresh connectors: its language model, eyes and ears know nothing of each other. For LongVILA's five stages.

    Args:
        preset: Which.
        seed: Of the connectors.
        kept: Share of the shipped connectors in the new ones: (1 - kept) x fresh + kept x shipped. At a half, digits can be read
            still; from nothing, nano learns that late.
    """
    torch.manual_seed(seed)
    made = VLMForConditionalGeneration.from_pretrained(preset_folder(preset), dtype=torch.float32)
    fresh = VLMForConditionalGeneration(made.config)
    with torch.no_grad():
        for name in ("mm_projector", "audio_projector"):
            for old, new in zip(getattr(made, name).parameters(), getattr(fresh, name).parameters(), strict=True):
                old.mul_(kept).add_(new, alpha=1 - kept)
    return made.train(), VLMProcessor.from_pretrained(preset_folder(preset))


def retold(
    preset: str = "nano-short",
    pooling: dict[str, Any] | None = None,
    time: dict[str, Any] | None = None,
    times: str = "kept",
    seed: int = 0,
) -> tuple[VLMForConditionalGeneration, VLMProcessor]:
    """A shipped nano that is to read frames and to say times another way: the same weights, another layout. For LITA's ablations.

    Args:
        preset: Which.
        pooling: See `VLMConfig`; default: as it is.
        time: Likewise.
        times: ``kept``, or how its time tokens start anew: on a ``smooth`` curve (`vlm.time.rows`), or as independent ``noise``.
        seed: Of that.

    Raises:
        ConfigError: ``times`` is something else, or the layout makes no sense.
    """
    if times not in ("kept", "smooth", "noise"):
        raise ConfigError(f"times={times!r} is not one of kept, smooth, noise")
    folder = preset_folder(preset)
    before = VLMConfig.from_pretrained(folder).to_dict()
    changed = VLMConfig(**{**before, **({"pooling": pooling} if pooling else {}), **({"time": time} if time else {})})
    nano = VLMForConditionalGeneration.from_pretrained(folder, config=changed, dtype=torch.float32)
    processor = VLMProcessor.for_config(changed, VLMProcessor.from_pretrained(folder).tokenizer, nano.token_grid)
    ids = changed.time_token_ids or []
    nano.config.time_token_ids = ids or None
    torch.manual_seed(seed)
    if times == "smooth":
        start_times(nano, ids)
    elif times == "noise" and ids:
        table = nano.get_input_embeddings().weight
        with torch.no_grad():
            table[ids] = table[: min(ids)].std() * torch.randn(len(ids), table.shape[1])
    return nano.train(), processor


@torch.no_grad()
def attend_to_alike(llm: Any) -> None:
    """Start every layer of a Llama as a look-up of what is alike (after mimetic initialisation, Trockman and Kolter 2023; sizes ours).

    Queries equal keys, so a token attends to those that share its content; output times value is the identity, so it takes over what
    they contain. Without this, nano long names colours that are in the picture without finding whose they are; `scripts/ablations.py
    starts` measures what it is worth.
    """
    for layer in llm.model.layers:
        attention = layer.self_attn
        width = attention.q_proj.in_features
        alike, copied = (torch.linalg.qr(torch.randn(width, width))[0] for _ in range(2))
        for weight in (attention.q_proj.weight, attention.k_proj.weight):
            weight.copy_(alike + 0.02 * torch.randn(width, width))
        attention.v_proj.weight.copy_(copied)
        attention.o_proj.weight.copy_(copied.T)
    llm.get_input_embeddings().weight.normal_(0.0, _EMBEDDING)


def export(run: str | Path, folder: str | Path = "vlm/presets/nano") -> Path:
    """Write a trained nano as an ordinary ``save_pretrained`` folder, in half precision.

    Args:
        run: The folder ``final`` of a run, or one of its checkpoints.
        folder: Where the model and its processor go.

    Raises:
        CheckpointError: The folder has no weights, lacks one, or one has another shape.
    """
    nano, processor = model(run=str(run))
    nano.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def _load(nano: VLMForConditionalGeneration, run: Path) -> None:
    """The weights of a finished run or a checkpoint, and the rotary base that goes with them."""
    from safetensors.torch import load_file

    weights = next((f for f in (run / "model.safetensors", run / "weights.safetensors") if f.is_file()), None)
    if weights is None:
        raise CheckpointError(
            f"{run} holds no model.safetensors (of a finished run) or weights.safetensors (of a checkpoint)"
        )
    _extend(nano, run)
    own, found = nano.state_dict(), load_file(weights)
    tied = {"language_model.lm_head.weight"}
    wrong = [k for k in own if k not in found and k not in tied] + [k for k in found if k not in own]
    if wrong:
        raise CheckpointError(
            f"{weights} does not fit nano: {len(wrong)} weights missing or unknown, first {wrong[0]!r}"
        )
    nano.load_state_dict(found, strict=False)


def _extend(nano: VLMForConditionalGeneration, run: Path) -> None:
    """Give ``nano`` the rotary base that the stages of ``run`` have set so far, and room for their lengths."""
    parts, state = run / PARTS_JSON, run / "state.json"
    stages: list[list[dict[str, Any]]] = []  # plugins of each stage that is done
    if parts.is_file():
        stages = json.loads(parts.read_text())["plugins"]
    elif state.is_file():
        about = json.loads(state.read_text())
        recipe = parse_recipe(about["recipe"])
        stages = [[asdict(p) for p in stage.all_plugins] for stage in recipe.stages[: about["progress"]["stage"] + 1]]
    for plugin in (p for stage in stages for p in stage if p["call"] == "rotary_base"):
        RotaryBase(**plugin["args"]).prepare(nano)


if __name__ == "__main__":
    import jsonargparse

    jsonargparse.auto_cli(export)
