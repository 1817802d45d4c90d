"""Still images: size checked before decoding, EXIF rotation applied, transparency on white."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from vlm.errors import MediaError, MediaLimitError
from vlm.media.convert import Scaler, on_white, resize, resolve_size
from vlm.media.limits import MediaLimits
from vlm.media.source import Source, resolve

if TYPE_CHECKING:
    from PIL.Image import Image

_FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"]


def load_image(
    src: str | Path | bytes | BinaryIO | np.ndarray | Image,
    *,
    size: tuple[int, int] | int | None = None,
    limits: MediaLimits | None = None,
    timeout: float | None = None,
) -> np.ndarray:
    """Load an image upright as RGB.

    Args:
        src: Path, bytes, binary file object, PIL image, or an array uint8 [H, W, 3] or [H, W, 4].
        size: (height, width) of the result, an int for a square, None for the image's own, as in `load_video`.
        limits: `max_bytes` and `max_pixels` are checked before anything is decoded.
        timeout: Decode in a child process that is killed after this many seconds, as in `load_video`.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ConfigError: An impossible size.
        MediaError: Not an image, or damaged.
        MediaLimitError: Larger than the limits.
    """
    if timeout is not None:
        from vlm.media.isolate import run_isolated

        return run_isolated("load_image", src, timeout=timeout, size=size, limits=limits)
    limits = limits or MediaLimits()
    shape = resolve_size(size)
    array = _load(src, limits)
    return array if shape is None else resize(array, Scaler("<image>", shape, limits))


def _load(src: Any, limits: MediaLimits) -> np.ndarray:
    from PIL.Image import Image

    if isinstance(src, np.ndarray):
        return _from_array(src, limits)
    name = "<image>"
    if isinstance(src, Image):
        limits.check_pixels(name, *src.size)
        return _to_rgb(src, name)
    source = resolve(src, limits)
    with open_image(source, limits) as image:
        return _to_rgb(image, source.name)


@contextmanager
def open_image(source: Source, limits: MediaLimits) -> Iterator[Image]:
    """Open (not decode) with Pillow and check the size; closes the file, unless it is the user's own object.

    Raises:
        MediaError: No image format of the allowed list.
        MediaLimitError: Too many pixels.
    """
    file = source.open()
    try:
        image = _identify(file, source.name)
        limits.check_pixels(source.name, *image.size)
        yield image
    finally:
        if source.reopenable:
            file.close()


def _identify(file: BinaryIO, name: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit decides
            return Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise MediaLimitError(name, f"is larger than any image should be: {error}") from error
    except UnidentifiedImageError as error:
        raise MediaError(name, "is not an image in a known format") from error
    except Exception as error:  # damaged headers end in exceptions of any type
        raise MediaError(name, f"is not a readable image ({error})") from error


def _to_rgb(image: Any, name: str) -> np.ndarray:
    from PIL import ImageOps

    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or image.mode in {"I", "F"}:
            return _from_deep(np.asarray(image))
        if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
            return on_white(np.asarray(image.convert("RGBA")))
        return np.array(image.convert("RGB"))
    except Exception as error:  # of any type: Pillow's decoders raise whatever they stumble over
        raise MediaError(name, f"is a damaged image ({error})") from error


def _from_deep(values: np.ndarray) -> np.ndarray:
    """16-bit or float grey [H, W] -> uint8 [H, W, 3] by its high byte (16 bit) or its value."""
    grey = values.astype(np.float64)
    if values.dtype.kind in "iu" and grey.size and grey.max() > 255:
        grey = grey / 257
    return np.repeat(np.clip(grey, 0, 255).round().astype(np.uint8)[..., None], 3, axis=2)


def _from_array(array: np.ndarray, limits: MediaLimits) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] not in (3, 4):
        raise MediaError("<array>", f"is {array.dtype} {list(array.shape)}, expected uint8 [H, W, 3]")
    limits.check_pixels("<array>", array.shape[1], array.shape[0])
    return on_white(array) if array.shape[-1] == 4 else array
