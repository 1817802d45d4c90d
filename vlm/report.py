"""What people see: a reply on the terminal, the strip of sampled frames as a picture, facts about a model and the machine."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm import __version__
from vlm.errors import ConfigError
from vlm.time import quantisation_ceiling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlm.chat import Assistant, Reply
    from vlm.parallel.cost import Estimate
    from vlm.parallel.memory import Job
    from vlm.prepare import Medium
    from vlm.time.span import Span

_PACKAGES = (
    "torch",
    "torchvision",
    "torchaudio",
    "transformers",
    "accelerate",
    "peft",
    "timm",
    "open_clip_torch",
    "av",
    "torchcodec",
    "decord",
    "decord2",
    "diffusers",
    "deepspeed",
    "flash-attn",
    "gradio",
    "safetensors",
    "numpy",
)


def clock(seconds: float) -> str:
    """``75.25`` -> ``1:15.2``; below a minute ``15.2 s``."""
    seconds = round(seconds, 1)
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}:{rest:04.1f}"


def print_reply(question: str, reply: Reply, *, with_text: bool = True) -> None:
    """Question, answer, spans, token counts and timings."""
    usage = reply.usage
    if with_text:
        print(f"question {question}\nanswer   {reply.text}")
    if reply.spans:
        print("spans    " + ", ".join(f"{clock(s.start)} to {clock(s.end)}" for s in reply.spans))
    print(
        f"tokens   {usage.prompt_tokens} read ({usage.media_tokens} visual from {usage.frames} frames), "
        f"{usage.reused_tokens} reused, {usage.completion_tokens} written"
    )
    order = ("decode", "encode", "prefill", "generate", "first_token")
    print("seconds  " + ", ".join(f"{k.replace('_', ' ')} {usage.seconds[k]:.2f}" for k in order if k in usage.seconds))


def print_json(question: str, reply: Reply) -> None:
    """The whole reply as one JSON object."""
    print(json.dumps({"question": question, **asdict(reply)}, ensure_ascii=False))


def save_strip(video: Medium, reply: Reply, path: Path, *, question: str = "", columns: int = 8, rows: int = 2) -> Path:
    """Picture of up to ``columns * rows`` sampled frames with their times; frames inside an answer's span are framed, and a bar shows it.

    Args:
        video: What the model saw (`Chat.video`).
        reply: Whose spans are marked.
        path: PNG to write (another format if the suffix says so).

    Raises:
        ConfigError: ``path`` cannot be written.
    """
    from PIL import Image

    strip = draw_strip(video, reply.spans, columns=columns, rows=rows, title=f"{question}  {reply.text}".strip())
    kind = None if path.suffix.lower() in Image.registered_extensions() else "PNG"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(strip).save(path, format=kind)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the picture {str(path)!r} cannot be written: {error}; name another file") from error
    return path


def draw_strip(video: Medium, spans: list[Span], *, columns: int = 8, rows: int = 2, title: str = "") -> np.ndarray:
    """The strip as an array ``uint8 [H, W, 3]``."""
    from PIL import Image, ImageDraw, ImageFont

    if video.frames is None or video.timestamps is None:
        raise ConfigError("a strip needs frames; this video was given as features")
    picks = np.unique(np.linspace(0, len(video.frames) - 1, min(columns * rows, len(video.frames))).round().astype(int))
    side, gap, head, foot = 160, 8, 30, 46
    high = round(side / min(max(video.shape, 0.5), 3.0))
    lines = -(-len(picks) // columns)
    width = columns * (side + gap) + gap
    canvas = Image.new("RGB", (width, head + lines * (high + 24) + foot), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    draw.text((gap, 7), title[: width // 7], fill="black", font=font)
    for place, frame in enumerate(picks):
        x, y = gap + (place % columns) * (side + gap), head + (place // columns) * (high + 24)
        canvas.paste(Image.fromarray(video.frames[frame]).resize((side, high)), (x, y))
        when = float(video.timestamps[frame])
        if any(s.start <= when <= s.end for s in spans):
            draw.rectangle((x - 3, y - 3, x + side + 2, y + high + 2), outline="#d62728", width=4)
        draw.text((x + 2, y + high + 3), clock(when), fill="black", font=font)
    _draw_bar(draw, font, video, spans, width=width, top=head + lines * (high + 24) + 6)
    return np.asarray(canvas)


def _draw_bar(draw: Any, font: Any, video: Medium, spans: list[Span], *, width: int, top: int) -> None:
    left, right = 8, width - 8
    scale = (right - left) / max(video.duration, 1e-6)
    draw.rectangle((left, top, right, top + 12), fill="#dddddd")
    for span in spans:
        a, b = (left + (t - video.start) * scale for t in (span.start, span.end))
        draw.rectangle((a, top, max(b, a + 2), top + 12), fill="#d62728")
    draw.text((left, top + 16), clock(video.start), fill="black", font=font)
    last = clock(video.start + video.duration)
    draw.text((right - draw.textlength(last, font=font), top + 16), last, fill="black", font=font)


def model_facts(
    assistant: Assistant, *, frames: int = 64, seconds: float = 120.0, event: float = 5.0
) -> dict[str, Any]:
    """Parameters per part, tokens per frame, bytes of weights and cache for ``frames`` frames, and the precision of times.

    Args:
        assistant: The model.
        frames: Of a video.
        seconds: Its length.
        event: Length of the shortest event that should be found, seconds.

    Raises:
        ConfigError: ``frames`` is less than 1, or ``event`` does not fit into ``seconds``.
    """
    if frames < 1:
        raise ConfigError(f"frames={frames} must be at least 1")
    model, processor = assistant.model, assistant.processor
    parts = {n: sum(p.numel() for p in m.parameters()) for n, m in model.named_children()}
    grid = tuple(processor.layout["token_grid"])
    mode = processor.layout["pooling"]["mode"]
    pooler = processor.pooler
    shots = [frames * (i + 1) // 8 - frames * i // 8 for i in range(8)] if frames >= 8 else [frames]
    groups = pooler.groups(frames, grid, shots if mode == "segments" else None)
    times = len(groups) + (not pooler.closing) if processor.layout["time"].get("interleave") else 0
    tokens = sum(groups) + times
    text = model.config.text_config
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    size = next(model.parameters()).element_size()
    cache = 2 * text.num_hidden_layers * heads * head_dim * size * tokens
    codec = processor.codec
    best = quantisation_ceiling(codec, seconds, event)["miou"]
    return {
        "model": assistant.name,
        "parameters": sum(parts.values()),
        **{f"parameters of {n}": c for n, c in parts.items() if c},
        "language model": f"{text.model_type}, {text.num_hidden_layers} layers, width {text.hidden_size}",
        "vision tower": f"{model.config.vision_config.name}, grid {model.vision_tower.grid}, width {model.vision_tower.out_dim}",
        "tokens per frame before pooling": grid[0] * grid[1],
        "pooling": mode + (" (counted for 8 shots)" if mode == "segments" else ""),
        f"tokens for {frames} frames": tokens,
        "bytes of weights": sum(parts.values()) * size,
        f"bytes of cache for {frames} frames": cache,
        "time codec": codec.name,
        f"seconds between two times in {seconds:g} s": round(codec.step(seconds), 3),
        f"best IoU for an event of {event:g} s": round(best, 3),
    }


def environment() -> dict[str, Any]:
    """Versions of the packages that matter, video back ends that work, devices."""
    import torch

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    from vlm.media.backends import usable_backends

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "vlm": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": torch.get_num_threads(),
        **versions,
        "video back ends": ", ".join(usable_backends()),
        "devices": ", ".join(devices) or "cpu",
    }


def print_facts(facts: dict[str, Any], *, as_json: bool = False) -> None:
    """Two columns, or JSON."""
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    width = max(len(k) for k in facts)
    for key, value in facts.items():
        print(f"{key:{width}}  {value:,}" if isinstance(value, int) else f"{key:{width}}  {value}")


def print_plan(job: Job, found: Sequence[Estimate], longest: Job | None, *, as_json: bool = False) -> None:
    """The best way to run a job with its memory, bytes and seconds, the longest sequence that fits, and the other ways.

    Args:
        job: What is run.
        found: From `vlm.parallel.cost.estimates`, the best first.
        longest: From `vlm.parallel.cost.largest`.
        as_json: Print one JSON object.
    """
    if as_json:
        ways = [
            {**asdict(e), "total_memory": e.total_memory, "total_seconds": e.total_seconds, "decode": e.decode}
            for e in found
        ]
        size = None if longest is None else {"tokens": longest.length, "frames": longest.frames}
        print(json.dumps({"job": asdict(job), "best": ways[0], "others": ways[1:], "longest": size}))
        return
    print("\n".join([*_job_lines(job), *_estimate_lines(job, found[0]), *_way_lines(job, found, longest)]))


def _job_lines(job: Job) -> list[str]:
    text, eyes = job.shapes.text, job.shapes.eyes
    seeing = f", eyes {eyes.parameters / 1e9:.2f} B at {eyes.image_size} px" if job.frames is not None else ""
    what = f"{job.length:,} tokens" + (f" ({job.frames:,} frames)" if job.frames is not None else "")
    held = "recomputed" if job.checkpointing else "kept"
    work = f"train, ZeRO {job.zero}, activations {held}" if job.trains else f"infer, ZeRO {job.zero}"
    return [
        f"model    {job.shapes.name}: language model {text.parameters / 1e9:.2f} B{seeing}",
        f"cluster  {job.gpus} x {job.gpu.name}, {min(job.node, job.gpus)} a node",
        f"run      {work}",
        f"         {what}; {job.sp_size} processes share {_counted(job.batch, 'sequence')}, {_counted(job.gpus // job.sp_size, 'group')}",
    ]


def _counted(number: int, name: str) -> str:
    return f"{number} {name}" + ("" if number == 1 else "s")


def _estimate_lines(job: Job, best: Estimate) -> list[str]:
    from vlm.parallel.cost import hiding_length
    from vlm.parallel.hardware import GiB

    choice, usable = best.choice, job.usable / GiB
    lines = ["", f"{'best' if best.fits else 'least'}     {_way(best)}" + ("" if best.fits else "  DOES NOT FIT"), ""]
    lines += ["memory of the fullest process, GiB"]
    lines += [f"  {name:<22}{size / GiB:>10.2f}" for name, size in best.memory.items() if size]
    lines += [f"  {'total':<22}{best.total_memory / GiB:>10.2f}   of {usable:.1f} that can be used", ""]
    lines += [f"{'sent by the busiest process in a step, GiB':<44}  in its node   to others"] if job.gpus > 1 else []
    lines += [
        f"  {name:<42}{best.near[name] / GiB:>13.3f}{best.far[name] / GiB:>12.3f}"
        for name in best.near
        if best.near[name] or best.far[name]
    ]
    lines += ["", "seconds of a step" if job.trains else "seconds to read the prompt"]
    lines += [f"  {name:<22}{seconds:>10.3f}" for name, seconds in best.seconds.items() if seconds]
    rate = job.length * job.batch / job.sp_size / best.total_seconds
    lines += [f"  {'total':<22}{best.total_seconds:>10.3f}   {rate:,.0f} tokens/s per GPU"]
    if not job.trains:
        lines += [f"  {'a written token':<22}{best.decode:>10.4f}"]
    if choice.ring > 1 and job.sp_size > job.node:
        here = job.length * job.batch / choice.ring
        lines += [
            f"  a hop between nodes hides behind attention from {hiding_length(job, choice.ulysses):,.0f} tokens on; here {here:,.0f}"
        ]
    return lines


def _way_lines(job: Job, found: Sequence[Estimate], longest: Job | None) -> list[str]:
    from vlm.parallel.hardware import GiB

    if longest is None:
        lines = ["", "longest  nothing fits: use more GPUs, --zero 3 or --checkpointing"]
    else:
        frames = "" if longest.frames is None else f" ({longest.frames:,} frames)"
        lines = ["", f"longest  {longest.length:,} tokens{frames} fit"]
    lines += ["", f"{'ways':<34}{'seconds':>10}{'GiB':>9}{'balance':>9}"]
    for e in found[:8]:
        lines += [
            f"  {_way(e):<32}{e.total_seconds:>10.2f}{e.total_memory / GiB:>9.1f}{e.choice.balance:>9.2f}"
            + ("" if e.fits else "  does not fit")
        ]
    lines += [f"  and {len(found) - 8} more"] if len(found) > 8 else []
    return [
        *lines,
        "",
        "An estimate from data sheets and few constants; `vlm eval plan` compares it with published timings.",
    ]


def _way(e: Estimate) -> str:
    choice = e.choice
    if choice.ulysses * choice.ring == 1:
        return "one process"
    return f"{choice.ulysses} inside x {choice.ring} around" + (f", {choice.inner}" if choice.ring > 1 else "")
