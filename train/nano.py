"""`nano`, from nothing: a 2-million-parameter video-language model for the shapes world, and its eyes alone for pretraining.

python -m train nano_eyes && python -m train nano
python -m train.nano runs/nano/final --folder vlm/presets/nano
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from data_recipes.synth.nano_tokenizer import build_nano_tokenizer
from data_recipes.synth.shapes_eyes import FORMS, EyesDataset
from data_recipes.synth.shapes_render import COLOURS
from vlm.config import AudioConfig, VisionConfig, VLMConfig
from vlm.encoders import build_vision_tower
from vlm.errors import CheckpointError
from vlm.model import VLMForConditionalGeneration
from vlm.processor import VLMProcessor

CONTEXT = 8192  # positions of the language model
ROPE_THETA = 1e6  # most pairs of dimensions turn slowly: what attends by content must do so over hundreds of tokens
_EMBEDDING = 0.08  # standard deviation, about 1 / sqrt(width)
_FORM_WEIGHT = 1.7  # of a form in a visual token at the start, in relation to a colour, which is read more clearly
MOST_THINGS = 4  # in one picture


def vision_config(width: int = 96, layers: int = 3, patch: int = 8, image_size: int = 64) -> VisionConfig:
    """A small XCiT: a vision transformer with a convolutional patch embedding.

    Chosen over a plain ViT of that size after a short trial on form recognition: 62 % against 23 % of the patches right after 120
    steps. The two runs differed in learning rate and in shapes per picture, so this is a hint and not a benchmark.
    """
    tower = {
        "img_size": image_size,
        "embed_dim": width,
        "depth": layers,
        "num_heads": width // 24,
        "cls_attn_layers": 0,
    }
    return VisionConfig(backend="timm", name=f"xcit_nano_12_p{patch}_224", image_size=image_size, tower=tower)


def audio_config() -> AudioConfig:
    """A small Whisper encoder: windows of 10 s, two tokens a second."""
    tower = {
        "num_mel_bins": 16,
        "d_model": 64,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 128,
        "max_source_positions": 500,
    }
    return AudioConfig(mode="features", tower=tower, stride=25, window=10.0)


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
    seed: int = 0, eyes: str | None = None, grid: int = 4, alike: bool = True, pooling: str = "changes"
) -> tuple[VLMForConditionalGeneration, VLMProcessor]:
    """A fresh nano with its processor.

    Args:
        seed: Of the weights.
        eyes: The folder ``final`` of a `nano_eyes` run, to start from its vision tower.
        grid: A frame becomes ``grid * grid`` tokens.
        alike: Start as a look-up (`attend_to_alike`) instead of with ordinary weights.
        pooling: Mode of `vlm.time.slowfast`, ``changes`` or ``frame``.

    Raises:
        CheckpointError: ``eyes`` holds no vision tower of this shape.
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
    if eyes is not None:
        _load_eyes(nano, processor.tokenizer, Path(eyes))
    return nano, processor


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


class Eyes(nn.Module):
    """The vision tower with two linear heads that name form and colour under every patch."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = build_vision_tower(vision_config())
        self.forms = nn.Linear(self.vision_tower.out_dim, len(FORMS))
        self.colours = nn.Linear(self.vision_tower.out_dim, len(COLOURS))

    def forward(
        self,
        *,
        pixel_values: torch.Tensor,
        labels: torch.Tensor,
        colours: torch.Tensor,
        things: torch.Tensor,
        **_: Any,
    ) -> ModelOutput:
        """Cross entropies over the patches of ``pixel_values [B, 3, H, W]`` and over whole things.

        Args:
            pixel_values: Pictures.
            labels: Form of each patch ``[B, P]``.
            colours: Colour of each patch ``[B, P]``, -100 where there is none.
            things: Number of the thing under each patch ``[B, P]``, 0 for none.
        """
        features_BPE = self.vision_tower(pixel_values)
        forms_BPC = self.forms(features_BPE)
        tints = self.colours(features_BPE).flatten(0, 1)
        owned_BPK = nn.functional.one_hot(things, MOST_THINGS + 1)[..., 1:].to(forms_BPC.dtype)
        size_BK = owned_BPK.sum(1)
        there_BK = size_BK > 0
        share_BPK = owned_BPK / size_BK.clamp_min(1)[:, None]
        whole_BKC = torch.einsum("bpk,bpc->bkc", share_BPK, forms_BPC)
        form_BK = torch.einsum("bpk,bp->bk", share_BPK, labels.to(forms_BPC.dtype)).round().long()
        loss = nn.functional.cross_entropy(forms_BPC.flatten(0, 1), labels.flatten())
        loss = loss + nn.functional.cross_entropy(whole_BKC[there_BK], form_BK[there_BK])
        loss = loss + 0.5 * nn.functional.cross_entropy(tints, colours.flatten(), ignore_index=-100)
        return ModelOutput(loss=loss, forms=forms_BPC)


def eyes_model(seed: int = 0) -> Eyes:
    """Fresh eyes, for recipes."""
    torch.manual_seed(seed)
    return Eyes()


def _load_eyes(nano: VLMForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Copy the vision tower of a `nano_eyes` run, and let the connector start from what its heads read out.

    Raises:
        CheckpointError: The folder has no safetensors file with a fitting vision tower.
    """
    from safetensors.torch import load_file

    prefix = "vision_tower."
    tensors = {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}
    tower = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    missing, unexpected = nano.vision_tower.load_state_dict(tower, strict=False)
    if not tower or missing or unexpected or "forms.weight" not in tensors:
        raise CheckpointError(f"{folder}: no eyes that fit nano's; run the recipe nano_eyes (missing {missing[:3]})")
    _read_out(nano, torch.cat([tensors["forms.weight"], tensors["colours.weight"]]), _name_vectors(nano, tokenizer))


@torch.no_grad()
def _read_out(nano: VLMForConditionalGeneration, heads_CE: torch.Tensor, names_CD: torch.Tensor) -> None:
    """Let the connector start from words (ours): what the heads see in each merged patch becomes the embedding of its name.

    The first hidden units are form and colour of the four merged patches at unit variance; each adds its name's embedding to the
    visual token. So a patch of a red circle starts out as the words "red" and "circle", and finding it is finding a word.
    """
    pictures = EyesDataset(64, seed=0, recoloured=0.0)
    pixels, things = (torch.stack([pictures[i][key] for i in range(64)]) for key in ("pixel_values", "things"))
    merge, norm, first, _, second = nano.mm_projector.layers
    nano.vision_tower.eval()
    tokens = norm(merge(nano.vision_tower(pixels))).flatten(0, 1)
    tokens = tokens[merge(things[..., None].float()).amax(-1).flatten() > 0]
    rows = torch.block_diag(*[heads_CE] * 4)
    values = tokens @ rows.T
    first.weight[: len(rows)] = rows / values.std(0)[:, None]
    first.bias[: len(rows)] = -values.mean(0) / values.std(0) - 0.5
    second.weight[:, : len(rows)] = names_CD.repeat(4, 1).T
    second.weight[:, len(rows) :] *= 0.1
    second.bias.zero_()


@torch.no_grad()
def _name_vectors(nano: VLMForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Embeddings ``[C, D]`` of the names of all forms and colours, with and without a space before them; zero for "nothing"."""
    table = nano.get_input_embeddings().weight
    vectors = torch.zeros(len(FORMS) + len(COLOURS), table.shape[1])
    for row, name in enumerate([*FORMS, *COLOURS]):
        for spelling in (name, f" {name}") if name != "nothing" else ():
            vectors[row] += table[tokenizer(spelling, add_special_tokens=False)["input_ids"][-1]]
    vectors[: len(FORMS)] *= _FORM_WEIGHT
    return vectors


def export(run: str | Path, folder: str | Path = "vlm/presets/nano") -> Path:
    """Write a trained nano as an ordinary ``save_pretrained`` folder, in half precision.

    Args:
        run: The folder ``final`` of a run, or one of its checkpoints.
        folder: Where the model and its processor go.

    Raises:
        CheckpointError: The folder has no weights, lacks one, or one has another shape.
    """
    from safetensors.torch import load_file

    weights = next(
        (f for f in (Path(run) / "model.safetensors", Path(run) / "weights.safetensors") if f.is_file()), None
    )
    if weights is None:
        raise CheckpointError(
            f"{run} holds no model.safetensors (of a finished run) or weights.safetensors (of a checkpoint)"
        )
    nano, processor = model()
    own, found = nano.state_dict(), load_file(weights)
    tied = {"language_model.lm_head.weight"}
    wrong = [k for k in own if k not in found and k not in tied] + [k for k in found if k not in own]
    if wrong:
        raise CheckpointError(
            f"{weights} does not fit nano: {len(wrong)} weights missing or unknown, first {wrong[0]!r}"
        )
    nano.load_state_dict(found, strict=False)
    nano.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


if __name__ == "__main__":
    import jsonargparse

    jsonargparse.auto_cli(export)
