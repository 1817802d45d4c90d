"""Measure video decoding against the rivals and write docs/results/bench-media.json (`make bench-media`).

One run, rivals interleaved: every measurement is a fresh process that decodes the same 10-minute clip and reports the
CPU seconds spent after its imports. Only ratios within a round are reported (median, least and largest over the
rounds), because absolute times on a shared machine mean little. A rival that is not installed gives a row that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT, FPS, GOP = 640, 360, 30, 60
SECONDS = 600
COUNTS = (64, 256)
STREAMED = (64, 1000)
BARS = {  # (measured, rival) -> largest ratio of CPU seconds that holds
    ("exact", "decord"): 0.45,
    ("exact", "torchcodec"): 0.95,
    ("keyframe", "decord"): 0.15,
}
MEMORY_BAR = 1.15  # growth for 1000 streamed frames over growth for 64


def make_clip(path: Path, seconds: int = SECONDS) -> Path:
    """Write the clip unless it is there: moving texture, 640x360, 30 fps, H.264 High, GOP 60, 2 B-frames."""
    import av

    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with av.open(str(partial), "w", format="mp4", options={"movflags": "faststart"}) as container:
        options = {"crf": "19", "preset": "veryfast", "bf": "2", "sc_threshold": "0"}
        stream: Any = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = GOP
        for index, array in enumerate(tqdm(_pictures(seconds * FPS), total=seconds * FPS, desc="encoding the clip")):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    partial.replace(path)
    return path


def _pictures(count: int) -> Iterator[np.ndarray]:
    """A window gliding over a smooth landscape, five textured patches crossing it, and a little grain.

    The contents matter for the keyframe row: here a keyframe is about 11 times as large as the frames between, as in
    filmed material. (Strong grain makes keyframes 40 times as large, a still slide makes them nearly free.)
    """
    rng = np.random.default_rng(0)
    world = _texture(rng, 2 * HEIGHT, 2 * WIDTH, 1.8)
    patches = [_texture(rng, 80 + 10 * k, 80 + 10 * k, 1.2) for k in range(5)]
    grain = rng.integers(-1, 2, (16, HEIGHT, WIDTH, 3), dtype=np.int16)
    for i in range(count):
        y, x = int(180 + 170 * np.sin(i / 97)), int(320 + 310 * np.sin(i / 61))
        picture = world[y : y + HEIGHT, x : x + WIDTH].copy()
        for k, patch in enumerate(patches):
            top, left = int(100 + 99 * np.sin(i / (23 + 3 * k) + k)), int(240 + 239 * np.sin(i / (17 + 5 * k) + 2 * k))
            turned = np.rot90(patch, (i // 20 + k) % 4)
            picture[top : top + len(patch), left : left + len(patch)] = turned
        yield np.clip(picture + grain[i % 16], 0, 255).astype(np.uint8)


def _texture(rng: np.random.Generator, height: int, width: int, power: float) -> np.ndarray:
    """Noise with a 1/f^power amplitude spectrum -> int16 [H, W, 3] in 0..255."""
    frequency = np.maximum(np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]), 1 / width)
    spectra = np.fft.rfft2(rng.standard_normal((3, height, width))) / frequency**power
    picture = np.fft.irfft2(spectra, (height, width)).transpose(1, 2, 0)
    low, high = picture.min(axis=(0, 1)), picture.max(axis=(0, 1))
    return np.asarray((picture - low) / (high - low) * 255, dtype=np.int16)


# ---------------------------------------------------------------------------------------- inside a measuring process


def _ours(path: str, count: int, snap: str) -> int:
    from vlm.media import load_video

    return len(load_video(path, num_frames=count, snap=snap).frames)  # type: ignore[arg-type]


def _decord(path: str, count: int) -> int:
    import decord

    reader = decord.VideoReader(path, num_threads=2)
    step = len(reader) / count
    return len(reader.get_batch([int((i + 0.5) * step) for i in range(count)]).asnumpy())


def _torchcodec(path: str, count: int) -> int:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=2, seek_mode="approximate")
    step = SECONDS / count
    return len(decoder.get_frames_played_at([(i + 0.5) * step for i in range(count)]).data)


def _stream(path: str, count: int) -> int:
    from vlm.media import iter_video

    return sum(len(frames) for frames, _ in iter_video(path, num_frames=count, size=224, batch_frames=32))


READERS: dict[str, Callable[[str, int], int]] = {
    "exact": lambda path, count: _ours(path, count, "exact"),
    "keyframe": lambda path, count: _ours(path, count, "keyframe"),
    "decord": _decord,
    "torchcodec": _torchcodec,
    "stream": _stream,
}
MODULES = {"decord": "decord", "torchcodec": "torchcodec.decoders"}


def measure_here(reader: str, path: str, count: int) -> dict[str, float | str]:
    """Decode once in this process and say what it cost: CPU seconds, wall seconds, growth of resident memory in MB."""
    import importlib

    module = importlib.import_module(MODULES.get(reader, "vlm.media"))
    importlib.import_module("av")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall = time.process_time(), time.perf_counter()
    frames = READERS[reader](path, count)
    return {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "memory": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "frames": frames,
        "version": getattr(module, "__version__", "") or _version(reader),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


# ------------------------------------------------------------------------------------------------- the measuring run


def _measure(reader: str, path: Path, count: int, decord_path: str | None) -> dict[str, Any] | None:
    """Run `measure_here` in a fresh process; None if the reader cannot be imported there."""
    places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    if reader == "decord" and decord_path:
        places.insert(0, decord_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in places if p), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--one", reader, "--clip", str(path), "--count", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=3600)
    if done.returncode != 0:
        if any(name in done.stderr for name in ("ImportError", "ModuleNotFoundError", "Could not load libtorchcodec")):
            return None
        raise RuntimeError(f"{reader} failed on {path}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run(clip: Path, rounds: int, decord_path: str | None) -> list[dict[str, Any]]:
    """All measurements -> rows of the results file."""
    costs: dict[tuple[str, int], list[float]] = {}
    versions: dict[str, str] = {}
    names = ["exact", "decord", "keyframe", "torchcodec"]
    for name in list(names):  # warms the page cache, and finds out who is here
        found = _measure(name, clip, 1, decord_path)
        if found is None:
            names.remove(name)
        else:
            versions[name] = str(found["version"])
    with tqdm(total=rounds * len(COUNTS) * len(names), desc="decoding") as progress:
        for turn in range(rounds):
            for count in COUNTS:
                for name in names if turn % 2 == 0 else names[::-1]:
                    result = _measure(name, clip, count, decord_path)
                    if result is None or result["frames"] != count:
                        raise RuntimeError(f"{name} returned {result} instead of {count} frames")
                    costs.setdefault((name, count), []).append(result["cpu"])
                    progress.update()
    return [*_ratio_rows(costs, versions), _memory_row(clip)]


def _ratio_rows(costs: dict[tuple[str, int], list[float]], versions: dict[str, str]) -> Iterator[dict[str, Any]]:
    for (ours, rival), bar in BARS.items():
        for count in COUNTS:
            name = f"{ours} sampling / {rival}, {count} frames"
            if (rival, count) not in costs:
                yield _row(name, None, "ratio of CPU seconds", bar, "not installed", None)
                continue
            pairs = [a / b for a, b in zip(costs[ours, count], costs[rival, count], strict=True)]
            median = statistics.median(pairs)
            label = "decord2" if rival == "decord" and versions[rival].split(".")[0] != "0" else rival
            setting = (
                f"{label} {versions[rival]}; median of {len(pairs)} interleaved pairs, {min(pairs):.3f} to "
                f"{max(pairs):.3f}; CPU s {statistics.median(costs[ours, count]):.2f} against "
                f"{statistics.median(costs[rival, count]):.2f}"
            )
            yield _row(name, round(median, 4), "ratio of CPU seconds", bar, setting, median <= bar)


def _memory_row(clip: Path) -> dict[str, Any]:
    few, many = (_measure("stream", clip, count, None) for count in STREAMED)
    if few is None or many is None:
        raise RuntimeError("vlm.media cannot be imported")
    ratio = many["memory"] / few["memory"]
    setting = f"iter_video, 224 × 224, batches of 32: {many['memory']:.0f} MB against {few['memory']:.0f} MB"
    name = f"memory growth, {STREAMED[1]} / {STREAMED[0]} streamed frames"
    return _row(name, round(ratio, 3), "ratio", MEMORY_BAR, setting, ratio <= MEMORY_BAR)


def _row(name: str, value: float | None, unit: str, bar: float, setting: str, holds: bool | None) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "target": f"<= {bar}", "setting": setting, "holds": holds}


def main() -> None:
    """Command line."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vlm" / "bench"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, default=cache / f"clip-{SECONDS}s.mp4", help="made if missing")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved repeats")
    parser.add_argument("--decord-path", help="folder with the decord to compare with, if not the installed one")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results", help="folder of the results file")
    parser.add_argument("--one", choices=sorted(READERS), help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=64, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_here(options.one, str(options.clip), options.count)))
        return
    rows = run(make_clip(options.clip), options.rounds, options.decord_path)
    for row in rows:
        print(f"{row['name']:50} {row['value']} {row['target']} holds={row['holds']}  ({row['setting']})")
    sys.path.insert(0, str(ROOT))
    from eval.report import write_results

    setting = _setting(options.clip)
    write_results("bench-media", rows, command="make bench-media", seed=0, setting=setting, out_dir=options.out)


def _setting(clip: Path) -> str:
    size = clip.stat().st_size / 1e6
    return f"{SECONDS} s, {WIDTH} × {HEIGHT}, {FPS} fps, H.264 High, GOP {GOP}, 2 B-frames, {size:.0f} MB"


if __name__ == "__main__":
    main()
