"""The eyes and ears of `nano`, pretrained alone: a tower with heads that name what lies under every patch, or in every tenth of a second.

python -m train nano_eyes && python -m train nano_ears
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from data_recipes.synth.shapes_ears import SLICE, EarsDataset
from data_recipes.synth.shapes_eyes import FORMS, EyesDataset
from data_recipes.synth.shapes_render import COLOURS
from vlm.config import AudioConfig, VisionConfig
from vlm.encoders import AudioTower, build_vision_tower
from vlm.errors import CheckpointError
from vlm.model import VLMForConditionalGeneration
from vlm.prepare import STATES_PER_SECOND

STRIDE = 25  # states of 20 ms in an audio token
SLICES = round(STRIDE / STATES_PER_SECOND / SLICE)  # labels for an audio token
MOST_THINGS = 4  # in one picture
_FORM_WEIGHT = 1.7  # of a form in a visual token at the start, in relation to a colour, which is read more clearly


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
    """A small Whisper encoder: windows of 10 s, two tokens a second.

    Its weights start at about 1 / sqrt(inputs). At Whisper's own 0.02, made for twenty times the width, a beep is lost beside the
    position codes: ears so begun never heard one.
    """
    tower = {
        "num_mel_bins": 16,
        "d_model": 64,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 128,
        "max_source_positions": 500,
        "init_std": 0.12,
    }
    return AudioConfig(mode="features", tower=tower, stride=STRIDE, window=10.0)


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


class Ears(nn.Module):
    """The audio tower with a linear head: does it beep, in every `SLICE` of the time that a token stands for?"""

    def __init__(self) -> None:
        super().__init__()
        self.audio_tower = AudioTower(audio_config())
        _tell_slices_apart(self.audio_tower)
        self.beeps = nn.Linear(self.audio_tower.out_dim, SLICES)

    def forward(self, *, mel: torch.Tensor, labels: torch.Tensor, **_: Any) -> ModelOutput:
        """Binary cross entropy.

        Args:
            mel: Log-mel windows ``[B, mel, T]``.
            labels: 1 or 0 for every slice ``[B, S * SLICES]``.
        """
        beeps_BS = self.beeps(self.audio_tower(mel)).flatten(1)
        return ModelOutput(
            loss=nn.functional.binary_cross_entropy_with_logits(beeps_BS, labels.to(beeps_BS.dtype)), beeps=beeps_BS
        )


def ears_model(seed: int = 0) -> Ears:
    """Fresh ears, for recipes."""
    torch.manual_seed(seed)
    return Ears()


@torch.no_grad()
def _tell_slices_apart(tower: AudioTower) -> None:
    """Let half of the position codes repeat with every token, so that states can know their place in it before they are averaged."""
    codes_SD = tower.encoder.embed_positions.weight
    turns = 2 * torch.pi * torch.arange(len(codes_SD)) / tower.stride
    waves = [wave(k * turns) for k in range(1, codes_SD.shape[1] // 4 + 1) for wave in (torch.sin, torch.cos)]
    codes_SD[:, ::2] = torch.stack(waves, 1)


def load_eyes(nano: VLMForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Copy the vision tower of a `nano_eyes` run, and let the connector start from what its heads read out.

    Raises:
        CheckpointError: The folder has no safetensors file with a fitting vision tower.
    """
    heads = _load_tower(nano.vision_tower, folder, "vision_tower", ("forms.weight", "colours.weight"), "nano_eyes")
    _read_eyes(nano, torch.cat(heads), _name_vectors(nano, tokenizer))


def load_ears(nano: VLMForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Copy the audio tower of a `nano_ears` run, and let the audio connector start from what its head reads out.

    Raises:
        CheckpointError: The folder has no safetensors file with a fitting audio tower.
    """
    (head_SE,) = _load_tower(nano.audio_tower, folder, "audio_tower", ("beeps.weight",), "nano_ears")
    _read_ears(nano, head_SE, nano.get_input_embeddings().weight[_last_token(tokenizer, " beep")])


def _load_tower(tower: nn.Module, folder: Path, name: str, heads: tuple[str, ...], recipe: str) -> list[torch.Tensor]:
    """Load ``tower`` from the safetensors files of ``folder``, where it is called ``name``; returns the weights of its heads."""
    from safetensors.torch import load_file

    tensors = {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}
    state = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
    own = tower.state_dict()
    wrong = [k for k in own if k not in state or state[k].shape != own[k].shape]
    wrong += [k for k in (*state, *heads) if k not in own and k not in tensors]
    if wrong:
        raise CheckpointError(f"{folder}: no {name} that fits nano's ({wrong[0]!r}); run the recipe {recipe}")
    tower.load_state_dict(state)
    return [tensors[head] for head in heads]


@torch.no_grad()
def _read_eyes(nano: VLMForConditionalGeneration, heads_CE: torch.Tensor, names_CD: torch.Tensor) -> None:
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
    _start_as_words(first, second, rows, values, names_CD.repeat(4, 1).T, offset=0.5)


@torch.no_grad()
def _name_vectors(nano: VLMForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Embeddings ``[C, D]`` of the names of all forms and colours, with and without a space before them; zero for "nothing"."""
    table = nano.get_input_embeddings().weight
    vectors = torch.zeros(len(FORMS) + len(COLOURS), table.shape[1])
    for row, name in enumerate([*FORMS, *COLOURS]):
        for spelling in (name, f" {name}") if name != "nothing" else ():
            vectors[row] += table[_last_token(tokenizer, spelling)]
    vectors[: len(FORMS)] *= _FORM_WEIGHT
    return vectors


@torch.no_grad()
def _read_ears(nano: VLMForConditionalGeneration, head_SE: torch.Tensor, beep_D: torch.Tensor) -> None:
    """Let the audio connector start from words (ours): a beep becomes the word, with another shade for each slice of a token."""
    sounds = EarsDataset(64, seed=0)
    nano.audio_tower.eval()
    first, _, second = nano.audio_projector.layers
    values = nano.audio_tower(torch.stack([sounds[i]["mel"] for i in range(64)])).flatten(0, 1) @ head_SE.T
    shades_DS = beep_D[:, None] + 0.5 * beep_D.std() * torch.randn(len(beep_D), SLICES)
    _start_as_words(first, second, head_SE, values, shades_DS)


@torch.no_grad()
def _start_as_words(
    first: nn.Linear,
    second: nn.Linear,
    rows_CE: torch.Tensor,
    values_NC: torch.Tensor,
    words_DC: torch.Tensor,
    offset: float = 0.0,
) -> None:
    """Let the first hidden units of a two-layer connector be ``rows_CE`` at unit variance, each of which adds its word to the token.

    Args:
        first: To the hidden units.
        second: From them.
        rows_CE: What is read out.
        values_NC: What comes out for some tokens.
        words_DC: What is added for each.
        offset: Standard deviations above the mean from which on a unit counts.
    """
    count, spread = len(rows_CE), values_NC.std(0)
    first.weight[:count] = rows_CE / spread[:, None]
    first.bias[:count] = -values_NC.mean(0) / spread - offset
    second.weight[:, :count] = words_DC
    second.weight[:, count:] *= 0.1
    second.bias.zero_()


def _last_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return int(tokenizer(text, add_special_tokens=False)["input_ids"][-1])
