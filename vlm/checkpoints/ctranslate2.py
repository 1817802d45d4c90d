"""Read CTranslate2's ``model.bin`` and turn a Whisper model in that format into transformers' parameter names.

The format is a flat list of named arrays. All integers are little-endian; a string is a u16 length and that many bytes,
the last one zero::

    u32 version, str spec name, u32 revision, u32 number of arrays
    per array: str name, u8 rank, u32 each dimension, u8 dtype, u32 number of bytes, data
    u32 number of aliases, per alias: str alias, str name

Only plain numbers are read; nothing in the file is executed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlm.errors import CheckpointError

_VERSION = 6
_DTYPES: dict[int, Any] = {
    0: np.dtype("<f4"),
    1: np.dtype("i1"),
    2: np.dtype("<i2"),
    3: np.dtype("<i4"),
    4: np.dtype("<f2"),
}


@dataclass
class _Cursor:
    data: memoryview
    at: int = 0

    def take(self, count: int) -> memoryview:
        if self.at + count > len(self.data):
            raise CheckpointError(
                f"CTranslate2 file ends early: {count} bytes wanted at offset {self.at} of {len(self.data)}"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> int:
        return int(struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0])

    def string(self) -> str:
        return bytes(self.take(self.number("H"))).rstrip(b"\0").decode()


def read_arrays(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Model kind (for example ``WhisperSpec``) and every array by name, aliases resolved.

    Raises:
        CheckpointError: The file is not of format version 6, is cut short, or has an unknown data type.
    """
    cursor = _Cursor(memoryview(path.read_bytes()))
    version = cursor.number("I")
    if version != _VERSION:
        raise CheckpointError(f"{path}: CTranslate2 format version {version} is not supported, only {_VERSION}")
    kind, _revision = cursor.string(), cursor.number("I")
    arrays = dict(_read_array(cursor) for _ in range(cursor.number("I")))
    for _ in range(cursor.number("I")):
        alias, name = cursor.string(), cursor.string()
        arrays[alias] = arrays[name]
    return kind, arrays


def _read_array(cursor: _Cursor) -> tuple[str, np.ndarray]:
    name = cursor.string()
    shape = [cursor.number("I") for _ in range(cursor.number("B"))]
    code = cursor.number("B")
    if code not in _DTYPES:
        raise CheckpointError(f"CTranslate2 array {name!r} has unknown data type {code}")
    data = np.frombuffer(cursor.take(cursor.number("I")), _DTYPES[code])
    if data.size != int(np.prod(shape)):
        raise CheckpointError(
            f"CTranslate2 array {name!r} holds {data.size} numbers, its shape {shape} wants {int(np.prod(shape))}"
        )
    return name, data.reshape(shape)


# CTranslate2 name after "encoder/" or "decoder/" -> transformers name after "model.encoder." or "model.decoder.".
_NORMS = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
}
_LINEARS = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
_OTHERS = {"position_encodings/encodings": "embed_positions.weight", "embeddings/weight": "embed_tokens.weight"}
_LEAVES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
_LAYER = re.compile(r"layer_(\d+)/(.+)/(\w+)$")


def whisper_state_dict(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters of `transformers.WhisperForConditionalGeneration`, float32, from the arrays of a ``WhisperSpec``.

    Raises:
        CheckpointError: An array has no known place.
    """
    state: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.dtype.kind != "f" or name.startswith("decoder/projection"):
            continue  # scalars that describe the network, and the output matrix, which is the token embedding
        half, _, rest = name.partition("/")
        for key, value in _place(rest, array).items():
            state[f"model.{half}.{key}"] = np.ascontiguousarray(value, dtype=np.float32)
    return state


def _place(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """The one to three parameters that ``array`` becomes; stacked projections are cut along their rows."""
    if name in _OTHERS:
        return {_OTHERS[name]: array}
    if match := _LAYER.match(name):
        index, block, leaf = match.groups()
        if block in _NORMS:
            return {f"layers.{index}.{_NORMS[block]}.{_LEAVES[leaf]}": array}
        if block in _LINEARS:
            targets = _LINEARS[block]
            parts = zip(targets, np.split(array, len(targets)), strict=True)
            # transformers' key projection has no bias: in attention it would only shift all scores alike.
            return {f"layers.{index}.{t}.{leaf}": p for t, p in parts if not (leaf == "bias" and t.endswith("k_proj"))}
    elif match := re.match(r"(conv[12]|layer_norm)/(\w+)$", name):
        return {f"{match[1]}.{_LEAVES[match[2]]}": array}
    elif array.ndim == 0:
        return {}
    raise CheckpointError(
        f"CTranslate2 array {name!r} of shape {array.shape} has no place in a transformers Whisper model"
    )
