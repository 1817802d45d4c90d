"""Images: orientation, transparency, odd modes, bombs and damage."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.vlm.media.clips import picture
from vlm.errors import ConfigError, MediaError, MediaLimitError
from vlm.media import MediaLimits, load_image


def png(image: Image.Image) -> bytes:
    """Encode losslessly."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_every_kind_of_source(tmp_path: Path) -> None:
    frame = picture(5)
    data = png(Image.fromarray(frame))
    (tmp_path / "a.png").write_bytes(data)
    for src in (tmp_path / "a.png", str(tmp_path / "a.png"), data, io.BytesIO(data), frame, Image.fromarray(frame)):
        np.testing.assert_array_equal(load_image(src), frame)


def test_size_is_height_width_and_an_int_is_a_square() -> None:
    frame = picture(5, 200, 300)
    assert load_image(frame, size=(40, 60)).shape == (40, 60, 3)
    assert load_image(png(Image.fromarray(frame)), size=50).shape == (50, 50, 3)
    best = np.asarray(Image.fromarray(frame).resize((60, 40), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(load_image(frame, size=(40, 60)) - best).mean() < 1.5
    with pytest.raises(ConfigError, match="size"):
        load_image(frame, size=0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(picture(9))
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image = upright if stored is None else upright.transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.asarray(upright))


def test_transparency_is_laid_on_white() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[..., 3] = [[0, 255], [128, 51]]
    wanted = np.array([[[255, 255, 255], [200, 0, 0]], [[227, 127, 127], [244, 204, 204]]])
    for src in (png(Image.fromarray(rgba)), rgba):
        np.testing.assert_allclose(load_image(src), wanted, atol=1)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60] + [0] * 750)
    palette.putdata([0, 1])
    palette.info["transparency"] = 0
    np.testing.assert_array_equal(load_image(png(palette)), [[[255, 255, 255], [40, 50, 60]]])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_all_modes_become_rgb(mode: str) -> None:
    grey = np.tile(np.arange(0, 256, 16, dtype=np.uint8), (4, 1))
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert(mode)
    out = load_image(image)
    assert out.shape == (4, 16, 3) and out.dtype == np.uint8
    if mode != "1":
        np.testing.assert_allclose(out, np.repeat(grey[..., None], 3, axis=2), atol=3)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims a size; its few bytes of data never get read."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [9_000, 13_000, 20_000, 2**31 - 1])
def test_bombs_are_refused_before_decoding(side: int) -> None:
    with pytest.raises(MediaLimitError):
        load_image(bomb(side, side))


def test_the_limits_are_ours() -> None:
    data = png(Image.new("RGB", (100, 80)))
    with pytest.raises(MediaLimitError, match=r"8,000 pixels \(100 × 80\) exceed the limit of 7,999"):
        load_image(data, limits=MediaLimits(max_pixels=7_999))
    with pytest.raises(MediaLimitError, match="max_bytes"):
        load_image(data, limits=MediaLimits(max_bytes=20))
    with pytest.raises(MediaLimitError):
        load_image(np.zeros((100, 80, 3), np.uint8), limits=MediaLimits(max_pixels=10))


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xff\xd8\xff\xe0"]
)
def test_things_that_are_no_images(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"a\.png: "):
        load_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_mutated_images_end_in_an_image_or_a_media_error() -> None:
    rng = np.random.default_rng(1)
    outcomes = {"image": 0, "error": 0}
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        buffer = io.BytesIO()
        Image.fromarray(picture(3)).save(buffer, kind)
        for _ in range(40):
            data = bytearray(buffer.getvalue())
            for place in rng.integers(0, len(data), rng.integers(1, 3)):
                data[place] = rng.integers(256)
            keep = len(data) if rng.random() < 0.7 else int(rng.integers(len(data)))
            try:
                assert load_image(bytes(data[:keep])).shape[-1] == 3
                outcomes["image"] += 1
            except MediaError:
                outcomes["error"] += 1
    assert outcomes["error"] > 20 and outcomes["image"] > 5
