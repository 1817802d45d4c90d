"""Feed thousands of damaged files to the media readers, each in its own child process, and count how they end.

Seven ways of damaging (flipped bits, flipped bits in the index, truncation, zeroed stretches, splices, forged size
fields, deletions) times seven containers. A child may return frames (whole or partial) or a `MediaError`; anything else
(another exception, a signal, more than 10 s of CPU, more memory than allowed) is a failure, and the file is kept for a look.

    python scripts/soak_media.py --count 5000

Zero failures in n trials bound the rate of failure at 3/n (95 % confidence).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

LIMIT_CPU = 10  # s
LIMIT_SECONDS = 120.0  # of wall clock: a sleeping child is a hang as well, a starved one on a busy machine is not
LIMIT_MEMORY = 1 << 30  # of resident memory, per child
LIMIT_ADDRESS = 4 << 30
GOOD = ("frames", "partial", "MediaError", "MediaLimitError")


# ------------------------------------------------------------------------------------------------------------- seeds


def seed_files(folder: Path) -> list[Path]:
    """One small file per container, with moving pictures and, where the container takes it, sound."""
    from PIL import Image

    kinds = [
        ("a.mp4", "libx264", {"bf": "2"}, {"movflags": "faststart"}, True),
        ("b.mp4", "libx264", {"bf": "2"}, {}, True),
        ("c.mkv", "libx264", {"bf": "2"}, {}, True),
        ("d.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, {}, False),
        ("e.avi", "mpeg4", {}, {}, False),
        ("f.ts", "libx264", {"bf": "2"}, {}, True),
    ]
    paths = [_encode(folder / name, codec, options, muxer, sound) for name, codec, options, muxer, sound in kinds]
    images = [Image.fromarray(_picture(i)) for i in range(12)]
    images[0].save(folder / "g.gif", save_all=True, append_images=images[1:], duration=100)
    return [*paths, folder / "g.gif"]


def _picture(number: int) -> np.ndarray:
    y, x = np.mgrid[0:64, 0:96]
    wave = 128 + 100 * np.sin((x + 4 * number) / 9.0) * np.cos((y - 3 * number) / 7.0)
    return np.stack([wave, 255 - wave, np.full_like(wave, 8 * number % 256)], axis=-1).astype(np.uint8)


def _encode(path: Path, codec: str, options: dict[str, str], muxer: dict[str, str], sound: bool) -> Path:
    import av

    with av.open(str(path), "w", options=muxer) as file:
        stream: Any = file.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.codec_context.gop_size = 96, 64, 8
        audio: Any = file.add_stream("aac", rate=16_000) if sound else None
        for number in range(40):
            frame = av.VideoFrame.from_ndarray(_picture(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            file.mux(stream.encode(frame))
            if audio is not None:
                file.mux(audio.encode(_noise(number)))
        file.mux(stream.encode(None))
        if audio is not None:
            file.mux(audio.encode(None))
    return path


def _noise(number: int) -> Any:
    import av

    samples = np.random.default_rng(number).uniform(-0.3, 0.3, (1, 1600)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate, frame.pts = 16_000, number * 1600
    return frame


# ---------------------------------------------------------------------------------------------------------- mutators


def flip_bits(data: bytearray, rng: np.random.Generator) -> bytearray:
    """1 to 64 bits anywhere."""
    for place in rng.integers(0, len(data), rng.integers(1, 65)):
        data[place] ^= 1 << int(rng.integers(8))
    return data


def flip_header(data: bytearray, rng: np.random.Generator) -> bytearray:
    """1 to 16 bits in the first kilobytes or in the index, where structure is densest."""
    begin = max(data.find(b"moov"), 0) if rng.random() < 0.7 else 0
    for place in rng.integers(begin, min(begin + 2500, len(data)), rng.integers(1, 17)):
        data[place] ^= 1 << int(rng.integers(8))
    return data


def truncate(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Keep the first part."""
    return data[: int(rng.integers(len(data)))]


def zero(data: bytearray, rng: np.random.Generator) -> bytearray:
    """A stretch of zeros."""
    begin = int(rng.integers(len(data)))
    length = min(int(rng.integers(1, 3000)), len(data) - begin)
    data[begin : begin + length] = bytes(length)
    return data


def splice(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Copy one stretch over another place."""
    source, target = (int(x) for x in rng.integers(0, len(data), 2))
    length = int(rng.integers(1, 2000))
    data[target : target + length] = data[source : source + length]
    return data


def forge_size(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Overwrite up to three 32-bit fields with sizes and counts that hurt."""
    values = (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0x00FFFFFF, 0x10000000)
    begin = max(data.find(b"moov"), 0) if rng.random() < 0.7 else 0
    for place in rng.integers(begin, min(begin + 2500, len(data)), rng.integers(1, 4)):
        data[place : place + 4] = values[int(rng.integers(len(values)))].to_bytes(4, "big")
    return data


def delete(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Cut a stretch out."""
    begin = int(rng.integers(len(data)))
    del data[begin : begin + int(rng.integers(1, 1500))]
    return data


MUTATORS: tuple[Callable[[bytearray, np.random.Generator], bytearray], ...] = (
    flip_bits,
    flip_header,
    truncate,
    zero,
    splice,
    forge_size,
    delete,
)


def mutant(seeds: list[bytes], index: int, seed: int) -> bytes:
    """Damaged file number `index`, a function of (seed, index)."""
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    kind = index % len(seeds)
    mutate = MUTATORS[(index // len(seeds)) % len(MUTATORS)]
    return bytes(mutate(bytearray(seeds[kind]), rng))


# ---------------------------------------------------------------------------------------------------------- children


@dataclass
class Child:
    """One running decode."""

    index: int
    pid: int
    pipe: int
    began: float


def start(index: int, path: Path) -> Child:
    """Fork a child that decodes `path` and writes its outcome to a pipe."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write_end)
        return Child(index, pid, read_end, time.monotonic())
    try:
        os.close(read_end)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_ADDRESS, LIMIT_ADDRESS))
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_CPU, LIMIT_CPU))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.write(write_end, decode(path).encode()[:4000])
    finally:
        os._exit(0)


def decode(path: Path) -> str:
    """Name of the outcome: one of `GOOD`, or the exception that should not have come."""
    from vlm.errors import MediaError
    from vlm.media import MediaLimits, iter_video, load_audio

    limits = MediaLimits(max_pixels=4_000_000, max_seconds=3600, max_decoded_bytes=1 << 28)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            frames = sum(len(f) for f, _ in iter_video(path, num_frames=8, size=48, limits=limits))
            outcome = "frames" if frames == 8 and not caught else "partial"
        except MediaError as error:
            outcome = type(error).__name__
            if str(path) not in str(error):
                return f"the error does not name the file: {error}"
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        try:
            load_audio(path, rate=16_000, limits=limits)
        except MediaError:
            pass
        except BaseException as error:
            return f"sound: {type(error).__name__}: {error}"
    strange = [w for w in caught if not issubclass(w.category, UserWarning)]
    return f"warning: {strange[0].message}" if strange else outcome


def finish(child: Child) -> tuple[str, float]:
    """Wait for a child -> (outcome, resident megabytes at its peak)."""
    left = child.began + LIMIT_SECONDS - time.monotonic()
    ready, _, _ = select.select([child.pipe], [], [], max(left, 0.0))
    if not ready:
        os.kill(child.pid, signal.SIGKILL)
    text = os.read(child.pipe, 4096).decode() if ready else ""
    os.close(child.pipe)
    _, status, usage = os.wait4(child.pid, 0)
    memory = usage.ru_maxrss / 1024
    if not ready:
        return f"hang: no answer in {LIMIT_SECONDS:g} s", memory
    if os.WIFSIGNALED(status):
        return f"signal {signal.Signals(os.WTERMSIG(status)).name}", memory
    if memory * 2**20 > LIMIT_MEMORY:
        return f"memory: {memory:.0f} MB", memory
    return text or "no answer", memory


def soak(count: int, *, seed: int = 0, workers: int = 2, keep: Path | None = None) -> dict[str, Any]:
    """Run `count` damaged files and count the outcomes.

    Args:
        count: Number of files.
        seed: Of all damage.
        workers: Children at a time.
        keep: Folder where files that failed are kept.

    Returns:
        {"outcomes": {name: count}, "failures": [...], "seconds": s, "peak_mb": m}.
    """
    import vlm.media  # noqa: F401  (imported once here; the children inherit it)

    began = time.monotonic()
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    peak = 0.0
    with tempfile.TemporaryDirectory() as folder, tqdm(total=count, desc="damaged files", disable=None) as progress:
        paths = seed_files(Path(folder))
        seeds = [path.read_bytes() for path in paths]
        running: list[tuple[Child, Path]] = []

        def reap() -> None:
            nonlocal peak
            child, path = running.pop(0)
            outcome, memory = finish(child)
            peak = max(peak, memory)
            outcomes[outcome if outcome in GOOD else "FAILED"] += 1
            if outcome not in GOOD:
                failures.append(f"{path.name}: {outcome}")
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / path.name).write_bytes(path.read_bytes())
            path.unlink()
            progress.update()

        for index in range(count):
            path = Path(folder) / f"mutant{index}{paths[index % len(paths)].suffix}"
            path.write_bytes(mutant(seeds, index, seed))
            if len(running) == workers:
                reap()
            running.append((start(index, path), path))
        while running:
            reap()
    seconds = time.monotonic() - began
    return {"outcomes": dict(outcomes), "failures": failures, "seconds": round(seconds, 1), "peak_mb": round(peak)}


def main() -> int:
    """Command line; exit code 1 if any file failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="damaged files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--keep", type=Path, help="folder for files that failed")
    options = parser.parse_args()
    result = soak(options.count, seed=options.seed, workers=options.workers, keep=options.keep)
    print(json.dumps(result, indent=1))
    if not result["failures"]:
        print(f"no failure in {options.count}: a rate of at most {3 / options.count:.2%} (95 % confidence)")
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
