"""Where bytes come from: a path, bytes or a file object; and how libavformat is allowed to open them.

libavformat never sees a URL and never opens a second file: only regular files and Python file objects are given to it,
only the ``file`` protocol is allowed, and only formats that hold their own media are on the list (no playlists such as
hls, dash, concat or sdp, which name other files or hosts).
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vlm.errors import MediaError
from vlm.media.limits import MediaLimits

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer
    from av.stream import Stream

_FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,nut,ivf,obu,h264,hevc,m4v,yuv4mpegpipe,"
    "wav,w64,mp3,aac,flac,aiff,au,caf,ac3,eac3,amr,wv,ape,tta"
)
_CHUNK = 1 << 20  # bytes asked for at once of what can be read only once
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<MPD", b"<?xml", b"v=0", b"[playlist]", b"RTSPtext")
_STILLS = {b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
_ANIMATIONS = {b"GIF8": "GIF", b"\x89PNG\r\n\x1a\n": "PNG"}


@dataclass(frozen=True)
class Source:
    """One opened-able thing: exactly one of `path`, `data` and `handle` is set.

    Attributes:
        name: What error messages call it.
        size: Bytes.
        head: The first bytes, for telling formats apart.
    """

    name: str
    size: int
    head: bytes
    path: Path | None = None
    data: bytes | None = None
    handle: BinaryIO | None = None

    @property
    def reopenable(self) -> bool:
        """True if several readers may have it open at once."""
        return self.handle is None

    def open(self) -> BinaryIO:
        """A binary file at position 0. The caller closes it unless it is the user's own `handle`."""
        if self.path is not None:
            return self.path.open("rb")
        if self.data is not None:
            return io.BytesIO(self.data)
        if self.handle is None:
            raise MediaError(self.name, "nothing to open")
        self.handle.seek(0)
        return self.handle

    def portable(self) -> Source:
        """The same without the user's own `handle`, so that another process can open it."""
        return self if self.handle is None else replace(self, data=self.open().read(), handle=None)

    def for_libav(self) -> str | BinaryIO:
        """What `av.open` gets: a ``file:`` name for real files, a file object otherwise."""
        return f"file:{self.path.absolute()}" if self.path is not None else self.open()

    def animation(self) -> str | None:
        """Name of the format if it is an image format that may hold an animation (read by Pillow)."""
        if self.head[:4] == b"RIFF" and self.head[8:12] == b"WEBP":
            return "WebP"
        return next((name for magic, name in _ANIMATIONS.items() if self.head.startswith(magic)), None)

    def still(self) -> str | None:
        """Name of the format if it is a still image."""
        return next((name for magic, name in _STILLS.items() if self.head.startswith(magic)), None)


def resolve(src: str | Path | bytes | BinaryIO | Any, limits: MediaLimits) -> Source:
    """Turn what the user gave into a `Source`, checking existence and compressed size; a `Source` is returned as it is.

    Raises:
        MediaError: Missing, not a regular file, empty, a URL or a playlist.
        MediaLimitError: More than `limits.max_bytes`.
    """
    if isinstance(src, Source):
        return src
    if isinstance(src, bytes | bytearray | memoryview):
        source = _from_bytes(bytes(src), limits)
    elif isinstance(src, str | os.PathLike):
        source = _from_path(Path(src), str(src), limits)
    elif hasattr(src, "read"):
        source = _from_handle(src, limits)
    else:
        raise MediaError(repr(type(src)), "is neither a path, bytes, nor a binary file object")
    if source.size == 0:
        raise MediaError(source.name, "is empty (0 bytes)")
    if source.head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(_PLAYLISTS):
        raise MediaError(source.name, "is a playlist or description of other media, which is never followed")
    return source


def resolve_files(src: Any, limits: MediaLimits) -> Any:
    """A `Source` for whatever is read as bytes (once: a pipe cannot be read again), a `Path` for a folder; the rest (arrays,
    frames, pictures) as it is.

    Raises:
        MediaError: See `resolve`.
        MediaLimitError: Likewise.
    """
    if isinstance(src, str | os.PathLike) and os.path.isdir(src):
        return Path(src)
    named = isinstance(src, str | os.PathLike | bytes | bytearray | memoryview)
    return resolve(src, limits) if named or hasattr(src, "read") else src


def _from_bytes(data: bytes, limits: MediaLimits, name: str | None = None) -> Source:
    name = name or f"<{len(data)} bytes>"
    limits.check_bytes(name, len(data))
    return Source(name, len(data), data[:64], data=data)


def _from_path(path: Path, name: str, limits: MediaLimits) -> Source:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise MediaError(name, "is not a regular file")
        limits.check_bytes(name, status.st_size)
        with path.open("rb") as file:
            return Source(name, status.st_size, file.read(64), path=path)
    except (OSError, ValueError) as error:
        hint = "; URLs are not opened here, download the file first" if "://" in name else ""
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise MediaError(name, f"cannot be read: {cause}{hint}") from error


def _from_handle(handle: Any, limits: MediaLimits) -> Source:
    label = getattr(handle, "name", None)
    name = label if isinstance(label, str) else f"<{type(handle).__name__}>"
    try:
        if not (hasattr(handle, "seekable") and handle.seekable()):
            return _from_bytes(_read_once(handle, name, limits.max_bytes), limits, name)
        size = handle.seek(0, io.SEEK_END)
        limits.check_bytes(name, size)
        handle.seek(0)
        head = handle.read(64)
    except (OSError, ValueError, TypeError) as error:
        raise MediaError(name, f"cannot be read: {error}") from error
    _check_binary(head, name)
    return Source(name, size, head, handle=handle)


def _read_once(handle: Any, name: str, most: int) -> bytes:
    """All bytes of a handle that cannot seek, but no more than one above `most`. One read of a pipe gives only a part."""
    parts: list[bytes] = []
    size = 0
    while size <= most and (part := handle.read(min(_CHUNK, most + 1 - size))):
        _check_binary(part, name)
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _check_binary(part: Any, name: str) -> None:
    if not isinstance(part, bytes):
        raise MediaError(name, "is a text file object; open it in binary mode")


def open_container(source: Source, limits: MediaLimits) -> InputContainer:
    """Open a source with libavformat under the rules of this module.

    Raises:
        MediaError: The bytes are no medium that can be read; names the likely cause.
    """
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS, "max_pixels": str(limits.max_pixels)}
    try:
        return av.open(source.for_libav(), mode="r", options=options, metadata_errors="replace", buffer_size=1 << 16)
    except (av.FFmpegError, MemoryError, UnicodeError, ValueError) as error:
        raise MediaError(source.name, _explain(source, error)) from error


def packets_of(container: InputContainer, stream: Stream) -> Iterator[Packet]:
    """Packets of one stream in file order, the empty packet that ends it included.

    Where a (damaged) file announces further streams midway, PyAV ends with an IndexError: that is the end of it then.
    """
    try:
        yield from container.demux(stream)
    except IndexError:
        return


def _explain(source: Source, error: BaseException) -> str:
    if still := source.still():
        return f"is a still image ({still}), not a video; use load_image"
    if source.head[4:8] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"} and not _has_moov(source):
        return "is cut off before its index (moov), which this file keeps at the end; nothing can be decoded"
    return f"is not a readable video or sound file ({getattr(error, 'strerror', None) or error})"


def _has_moov(source: Source) -> bool:
    """Walk the top-level boxes of an ISO base media file (at most 1000 of them)."""
    file = source.open()
    try:
        position = 0
        for _ in range(1000):
            file.seek(position)
            header = file.read(16)
            if len(header) < 8:
                return False
            if header[4:8] == b"moov":
                return True
            size = int.from_bytes(header[:4], "big")
            size = int.from_bytes(header[8:16], "big") if size == 1 else size
            position += size
            if size < 8 or position > source.size:
                return False
        return False
    finally:
        if source.reopenable:
            file.close()


def read_only(container: InputContainer, index: int) -> None:
    """Tell the demuxer not to read the other streams (PyAV can since 17.1; before, their packets are thrown away)."""
    import av.stream

    discard = getattr(av.stream, "Discard", None)
    for other in container.streams:
        if discard is not None and other.index != index:
            other.discard = discard.all
