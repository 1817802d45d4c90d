"""The three real backbones: they load strictly and do what they are for. Skipped where their packages cannot be had."""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from data_recipes.sources import debian_package
from vlm.checkpoints.backbones import _rename_in_order, backbone
from vlm.checkpoints.ctranslate2 import read_arrays, whisper_state_dict
from vlm.errors import CheckpointError, ConfigError, DataError, MissingDependencyError


def _folder(name: str) -> Path:
    try:
        return backbone(name)
    except (CheckpointError, MissingDependencyError) as error:
        pytest.skip(str(error))


def _debian(name: str) -> Path:
    try:
        return debian_package(name)
    except DataError as error:
        pytest.skip(str(error))


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"smollm2-135m-instruct.*efficientnet-lite0.*whisper-tiny\.en"):
        backbone("gpt-5")


@pytest.mark.timeout(300)
def test_smollm2_answers() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = _folder("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(ids)


def test_efficientnet_names_photographs() -> None:
    import timm
    from PIL import Image
    from safetensors.torch import load_file

    folder = _folder("efficientnet-lite0")
    pictures = _debian("opencv-doc") / "usr/share/doc/opencv-doc/examples/data"
    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(config["name"]).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    mean, std = config["image_mean"][0], config["image_std"][0]
    for name, class_id in {"apple.jpg": 948, "orange.jpg": 950, "baboon.jpg": 372, "butterfly.jpg": 323}.items():
        size = (config["image_size"],) * 2
        pixels = np.asarray(
            Image.open(pictures / name).convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float32
        )
        x = torch.from_numpy((pixels / 255 - mean) / std).permute(2, 0, 1)[None]
        with torch.inference_mode():
            assert int(model(x).argmax()) == class_id, name


@contextmanager
def _own_deprecations_ignored(logger: str) -> Iterator[None]:
    """transformers' Whisper hands its own `generate` arguments that the same library calls deprecated."""
    source = logging.getLogger(logger)
    before = source.level
    source.setLevel(logging.ERROR)
    yield
    source.setLevel(before)


@pytest.mark.timeout(300)
def test_whisper_writes_down_what_is_read() -> None:
    import wave

    from transformers import AutoProcessor, WhisperForConditionalGeneration

    folder = _folder("whisper-tiny.en")
    speech = _debian("pocketsphinx-testdata") / "usr/share/pocketsphinx/test/data/librivox"
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    with wave.open(str(speech / "sense_and_sensibility_01_austen_64kb-0930.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
        rate = file.getframerate()
    inputs = processor(samples, sampling_rate=rate, return_tensors="pt", return_attention_mask=True)
    with _own_deprecations_ignored("transformers.generation.utils"):
        ids = model.generate(**inputs, return_timestamps=True)[0].tolist()
    assert (
        processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        == "He might even have been made amiable himself."
    )
    (piece,) = processor.tokenizer.decode(ids, output_offsets=True)["offsets"]
    assert piece["timestamp"] == pytest.approx((0.0, len(samples) / rate), abs=0.75)


def test_state_dicts_that_differ_are_not_renamed() -> None:
    a, b = torch.zeros(2, 3), torch.zeros(3)
    with pytest.raises(CheckpointError, match="1 tensors in the file, 2 in the model"):
        _rename_in_order({"x.weight": a}, {"y.weight": a, "y.bias": b})
    with pytest.raises(CheckpointError, match=r"x\.bias .* does not fit y\.weight"):
        _rename_in_order({"x.bias": a}, {"y.weight": a})


def _string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def _ctranslate2(name: str, array: np.ndarray, code: int, *, version: int = 6) -> bytes:
    head = struct.pack("<I", version) + _string("WhisperSpec") + struct.pack("<II", 3, 1) + _string(name)
    shape = struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape)
    data = struct.pack("<BI", code, array.nbytes) + array.tobytes()
    return head + shape + data + struct.pack("<I", 1) + _string("alias") + _string(name)


def test_ctranslate2_arrays_and_aliases(tmp_path: Path) -> None:
    array = np.arange(6, dtype="<f2").reshape(2, 3)
    path = tmp_path / "model.bin"
    path.write_bytes(_ctranslate2("a/weight", array, 4))
    kind, arrays = read_arrays(path)
    assert kind == "WhisperSpec"
    np.testing.assert_array_equal(arrays["a/weight"], array)
    np.testing.assert_array_equal(arrays["alias"], array)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_ctranslate2("a", np.zeros(3, "<f4"), 0)[:40], "ends early"),
        (_ctranslate2("a", np.zeros(3, "<f4"), 0, version=7), "version 7"),
        (_ctranslate2("a", np.zeros(3, "<f4"), 9), "data type 9"),
        (_ctranslate2("a", np.zeros(3, "<f4"), 4), "holds 6 numbers"),
    ],
)
def test_damaged_ctranslate2_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_arrays(path)


def test_whisper_projections_are_cut_in_order() -> None:
    stacked = np.arange(12, dtype=np.float16).reshape(6, 2)
    state = whisper_state_dict(
        {
            "encoder/layer_3/self_attention/linear_0/weight": stacked,
            "encoder/layer_3/self_attention/linear_0/bias": stacked[:, 0],
            "decoder/layer_0/attention/linear_1/bias": stacked[:, 1],
        }
    )
    assert set(state) == {
        *(f"model.encoder.layers.3.self_attn.{x}_proj.weight" for x in "qkv"),
        *(f"model.encoder.layers.3.self_attn.{x}_proj.bias" for x in "qv"),
        "model.decoder.layers.0.encoder_attn.v_proj.bias",
    }
    np.testing.assert_array_equal(state["model.encoder.layers.3.self_attn.k_proj.weight"], stacked[2:4])
    np.testing.assert_array_equal(state["model.decoder.layers.0.encoder_attn.v_proj.bias"], stacked[3:, 1])
    with pytest.raises(CheckpointError, match="no place"):
        whisper_state_dict({"encoder/layer_0/strange/weight": stacked})
