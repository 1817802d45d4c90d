"""Load in a child process with limits on time and memory, for files that nobody vouches for.

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
from dataclasses import fields
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from vlm import errors
from vlm.errors import ConfigError, MediaError, MediaLimitError
from vlm.media.limits import MediaLimits
from vlm.media.source import Source, resolve_files
from vlm.media.types import Audio, Video, VideoInfo

Loader = Literal["load_video", "load_audio", "load_image"]

_TYPES: dict[str, Any] = {"Video": Video, "VideoInfo": VideoInfo, "Audio": Audio}  # what an answer may be made of
_OVERHEAD = 4 << 30  # address space of the interpreter and the libraries, beyond the decoded frames


def run_isolated(loader: Loader, src: Any, *, timeout: float, **request: Any) -> Any:
    """`load_video`, `load_audio` or `load_image` in a child process that is killed after `timeout` seconds.

    Args:
        loader: Name of the function.
        src: Its source; file objects are read into memory first.
        timeout: Seconds of wall-clock time, start of the child included (about a second).
        request: Its other arguments.

    Returns:
        What the function returns.

    Raises:
        MediaError: Also if the child hangs, crashes or runs out of memory.
    """
    if not (isinstance(timeout, Real) and math.isfinite(timeout) and timeout > 0):
        raise ConfigError(f"timeout must be a positive number of seconds, not {timeout!r}")
    limits = request.get("limits") or MediaLimits()
    src = resolve_files(src, limits)
    src = src.portable() if isinstance(src, Source) else src
    name = src.name if isinstance(src, Source) else str(src) if isinstance(src, Path) else f"<{type(src).__name__}>"
    job = {"loader": loader, "src": src, "name": name, "timeout": timeout, "limits": limits, "request": request}
    try:
        payload = pickle.dumps(job)
    except Exception as error:  # the documentation of pickle names no exception types
        raise MediaError(name, f"cannot be handed to another process ({error}); leave timeout out") from error
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


def _read_answer(name: str, answer: bytes, code: int) -> Any:
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
    return _build(header["result"], memoryview(answer)[8 + size :])


def _build(form: list[Any], body: memoryview) -> Any:
    """What `_describe` described, with the contents of its arrays from `body`."""
    kind, content = form
    if kind == "value":
        return content
    if kind == "array":
        dtype, shape, place = content
        return np.frombuffer(body, dtype, math.prod(shape), place).reshape(shape).copy()
    return _TYPES[kind](**{name: _build(part, body) for name, part in content.items()})


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
    from vlm import media

    arrays: list[np.ndarray] = []
    try:
        value = getattr(media, job["loader"])(job["src"], **job["request"])
        return {"result": _describe(value, arrays)}, arrays
    except MediaError as error:
        return {"error": [type(error).__name__, [error.source, error.cause]]}, []
    except errors.MissingDependencyError as error:
        return {"error": ["MissingDependencyError", [error.package, error.extra, error.purpose]]}, []
    except ConfigError as error:
        return {"error": ["ConfigError", [str(error)]]}, []
    except MemoryError:
        return {"error": ["MediaLimitError", [job["name"], "needs more memory than the limits allow"]]}, []


def _describe(value: Any, arrays: list[np.ndarray]) -> list[Any]:
    """`value` as JSON; each array in it becomes its type, shape and place, and is appended to `arrays`."""
    kind = type(value).__name__
    if kind in _TYPES:
        return [kind, {field.name: _describe(getattr(value, field.name), arrays) for field in fields(value)}]
    if not isinstance(value, np.ndarray):
        return ["value", value]
    place = sum(array.nbytes for array in arrays)
    arrays.append(value)
    return ["array", [str(value.dtype), value.shape, place]]


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
