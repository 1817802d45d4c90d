"""Decode in a child process with limits on time and memory, for files that nobody vouches for.

The child is a fresh interpreter (``python -P -m vlm.media.isolate``; it imports nothing from the working directory)
that gets the request on stdin and answers with a JSON header and raw arrays on stdout. The parent never unpickles anything that comes back.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import warnings
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np

from vlm import errors
from vlm.errors import ConfigError, MediaError, MediaLimitError
from vlm.media.limits import MediaLimits
from vlm.media.types import Audio, Video, VideoInfo

_OVERHEAD = 4 << 30  # address space of the interpreter and the libraries, beyond the decoded frames


def load_video_isolated(src: Any, *, timeout: float, **request: Any) -> Video:
    """`load_video` in a child process that is killed after `timeout` seconds.

    Args:
        src: As in `load_video`; file objects are read into memory first.
        timeout: Seconds of wall-clock time, start of the child included (about a second).
        request: The other arguments of `load_video`.

    Raises:
        MediaError: Also if the child hangs, crashes or runs out of memory.
    """
    if not (math.isfinite(timeout) and timeout > 0):
        raise ConfigError(f"timeout must be a positive number of seconds, not {timeout}")
    limits = request.get("limits") or MediaLimits()
    if hasattr(src, "read"):
        src = src.read(limits.max_bytes + 1)
        limits.check_bytes("<file object>", len(src))
    name = str(src) if isinstance(src, str | os.PathLike) else f"<{len(src)} bytes>"
    payload = pickle.dumps({"src": src, "timeout": timeout, "limits": limits, "request": request})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "vlm.media.isolate"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    try:
        answer, _ = child.communicate(payload, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        child.kill()
        child.communicate()
        raise MediaLimitError(name, f"was not decoded within {timeout:g} s; the decoder was stopped") from error
    return _read_answer(name, answer, child.returncode)


def _read_answer(name: str, answer: bytes, code: int) -> Video:
    if code != 0 or len(answer) < 8:
        what = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise MediaError(name, f"the decoder process {what}")
    size = int.from_bytes(answer[:8], "big")
    header = json.loads(answer[8 : 8 + size])
    for kind, text in header["warnings"]:
        warnings.warn(getattr(errors, kind)(text), stacklevel=4)
    if "error" in header:
        kind, arguments = header["error"]
        raise getattr(errors, kind)(*arguments)
    body = memoryview(answer)[8 + size :]
    frames, body = _take(body, header["frames"], "uint8")
    timestamps, body = _take(body, header["timestamps"], "float64")
    audio = None
    if header["audio"] is not None:
        samples, body = _take(body, header["audio"].pop("shape"), "float32")
        audio = Audio(samples=samples, **header["audio"])
    return Video(frames=frames, timestamps=timestamps, audio=audio, info=VideoInfo(**header["info"]), **header["rest"])


def _take(body: memoryview, shape: list[int], dtype: str) -> tuple[np.ndarray, memoryview]:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(body[:size], dtype=dtype).reshape(shape).copy(), body[size:]


# ------------------------------------------------------------------------------------------------- inside the child


def _main() -> None:
    job = pickle.load(sys.stdin.buffer)  # from our own parent
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not end up in the answer
    _limit_process(job["timeout"], job["limits"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", errors.MediaWarning)
        header, arrays = _attempt(job)
    header["warnings"] = [
        (type(w.message).__name__, str(w.message)) for w in caught if isinstance(w.message, errors.MediaWarning)
    ]
    _write(out, header, arrays)


def _attempt(job: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
    from vlm.media.load import load_video

    try:
        video = load_video(job["src"], **job["request"])
    except MediaError as error:
        return {"error": [type(error).__name__, [error.source, error.cause]]}, []
    except errors.MissingDependencyError as error:
        return {"error": ["MissingDependencyError", [error.package, error.extra, error.purpose]]}, []
    except ConfigError as error:
        return {"error": ["ConfigError", [str(error)]]}, []
    except MemoryError:
        return {"error": ["MediaLimitError", [str(job["src"])[:200], "needs more memory than the limits allow"]]}, []
    audio = video.audio
    header: dict[str, Any] = {
        "frames": video.frames.shape,
        "timestamps": video.timestamps.shape,
        "audio": None if audio is None else {"shape": audio.samples.shape, "rate": audio.rate, "start": audio.start},
        "info": asdict(video.info),
        "rest": {key: getattr(video, key) for key in ("duration", "source", "snap", "start", "end")},
    }
    return header, [video.frames, video.timestamps, *([] if audio is None else [audio.samples])]


def _limit_process(timeout: float, limits: MediaLimits) -> None:
    try:
        import resource
    except ImportError:  # not on Windows: the parent's timeout still holds
        return
    seconds = math.ceil(timeout * (os.cpu_count() or 1)) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    memory = _OVERHEAD + 2 * limits.max_decoded_bytes
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _write(out: BinaryIO, header: dict[str, Any], arrays: list[np.ndarray]) -> None:
    text = json.dumps(header).encode()
    out.write(len(text).to_bytes(8, "big") + text)
    for array in arrays:
        out.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    out.flush()


if __name__ == "__main__":
    _main()
