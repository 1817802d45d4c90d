"""Measure the speed of `smol` and write docs/results/bench.json (`make bench`).

1. Prefill and decode tokens per second against transformers' own `generate` on the same language model with the same
   embeddings: interleaved pairs, ratios within a pair, and the same tokens must come out.
2. Time to the first token of a question about a video of 64 frames, split into its parts.
3. A second question about the same video against the first, and the vision forwards that it runs (none).

Only ratios mean something on a shared machine. With one thread (the default) the clock is CPU time, which neighbours
disturb least; with more it is wall time.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers.generation.streamers import BaseStreamer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it works in a clone without an installation

from eval.report import Row, row, write_results  # noqa: E402
from vlm.chat import Assistant, Chat  # noqa: E402
from vlm.decode import decoder_for, obstacle  # noqa: E402
from vlm.generate import DecodeState, stream_ids  # noqa: E402
from vlm.media import load_video, write_video  # noqa: E402
from vlm.model import MEDIA_KEYS  # noqa: E402
from vlm.pieces import embed_pieces  # noqa: E402

CLIP = ROOT / "demo/examples/big_buck_bunny.mp4"
FRAMES = 64
QUESTIONS = ("What is in this video?", "When does the rabbit appear?")
PARTS = ("decode", "prepare", "encode", "prefill")
Clock = Callable[[], float]


def load_smol() -> Assistant:
    """The shipped `smol`, or the same shapes before training. Without ears: pictures are what is timed here."""
    from vlm.presets import load, preset_folder
    from vlm.presets.smol import TRAINED_FILE, base

    if (preset_folder("smol") / TRAINED_FILE).exists():
        assistant: Assistant = load("smol", device="cpu")
        assistant.transcriber = None
    else:
        assistant = Assistant(*base(), None, "smol before training")
    assistant.processor.ears = None
    return assistant


def long_clip(folder: Path, *, repeats: int = 12) -> Path:
    """A minute or so of the example clip, small, every repetition mirrored and dimmed differently."""
    frames = load_video(CLIP, fps=25.0, size=(180, 320)).frames

    def changed() -> Iterator[np.ndarray]:
        for turn in range(repeats):
            mirrored = frames[:, :, ::-1] if turn % 2 else frames
            yield from (mirrored * (1.0 - 0.05 * turn)).astype(np.uint8)

    return write_video(folder / "long.mp4", changed(), fps=25.0)


# -- 1. the language model against transformers ------------------------------------------------------------------------


class _Marks(BaseStreamer):
    """Notes the time of every token that `generate` hands out."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        if value.numel():
            self.times.append(self.clock())

    def end(self) -> None:
        """Nothing is left to say."""


def _generate(rival: Any, embeds: torch.Tensor, count: int, clock: Clock) -> tuple[list[float], list[int]]:
    """transformers' own loop: times (start first) and ids."""
    marks, start = _Marks(clock), clock()
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    out = rival.generate(
        inputs_embeds=embeds, attention_mask=mask, max_new_tokens=count, do_sample=False, streamer=marks
    )
    return [start, *marks.times], out[0].tolist()


def _stream(model: Any, embeds: torch.Tensor, count: int, clock: Clock) -> tuple[list[float], list[int]]:
    """Our loop: times (start first) and ids."""
    times, ids = [clock()], []
    unknown = [0] * embeds.shape[1]  # bookkeeping only; the embeddings are what is read
    for token in stream_ids(model, DecodeState(), embeds, unknown, stop_ids=set(), max_new_tokens=count):
        times.append(clock())
        ids.append(token)
    return times, ids


def against_transformers(assistant: Assistant, args: argparse.Namespace, clock: Clock) -> list[Row]:
    """Ratios of tokens per second, ours over `generate`'s."""
    model = assistant.model
    reason = obstacle(model.language_model)
    if reason:
        raise SystemExit(f"the lean decoder does not take this model: {reason}")
    rival = copy.deepcopy(model.language_model)  # before our decoder turns any weight, which would speed it up too
    rival.generation_config.eos_token_id = None
    generator = torch.Generator().manual_seed(args.seed)
    ids = torch.randint(0, 40_000, (1, args.prompt), generator=generator)
    embeds = model.get_input_embeddings()(ids).detach()
    speeds: dict[str, list[float]] = {
        f"{what} {who}": [] for what in ("prefill", "decode") for who in ("theirs", "ours")
    }
    same = True
    for turn in tqdm(range(args.rounds + 1), desc="against generate()"):
        theirs, their_ids = _generate(rival, embeds, args.tokens, clock)
        ours, our_ids = _stream(model, embeds, args.tokens, clock)
        same &= their_ids == our_ids
        for who, times in (("theirs", theirs), ("ours", ours)) if turn else ():  # the first pair warms up
            speeds[f"prefill {who}"].append(args.prompt / (times[1] - times[0]))
            speeds[f"decode {who}"].append((args.tokens - 1) / (times[-1] - times[1]))
    setting = {"prompt": args.prompt, "new_tokens": args.tokens, "pairs": args.rounds}
    rows = [
        _ratio_row(
            "prefill, ours / transformers generate", speeds["prefill ours"], speeds["prefill theirs"], 1.0, setting
        ),
        _ratio_row(
            "decode, ours / transformers generate", speeds["decode ours"], speeds["decode theirs"], 1.2, setting
        ),
        row("same tokens as transformers generate", float(same), "", 1.0, **setting),
    ]
    rows += [row(name, statistics.median(values), "tokens/s", **setting) for name, values in speeds.items()]
    return [*rows, _bandwidth_row(model.language_model, statistics.median(speeds["decode ours"]), clock)]


def _ratio_row(
    name: str,
    ours: list[float],
    theirs: list[float],
    target: float,
    setting: dict[str, Any],
    *,
    at_least: bool = True,
) -> Row:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    spread = {"least": round(min(ratios), 4), "largest": round(max(ratios), 4)}
    return row(name, statistics.median(ratios), "×", target, at_least=at_least, **spread, **setting)


def _bandwidth_row(language_model: Any, speed: float, clock: Clock) -> Row:
    """Bytes of weights read per second while writing, as a share of what a plain sum over 1 GiB reads."""
    gigabytes = sum(p.nbytes for p in language_model.parameters()) / 1e9
    if not language_model.config.tie_word_embeddings:
        gigabytes -= language_model.get_input_embeddings().weight.nbytes / 1e9
    block = torch.ones(1 << 28)
    limits = []
    for _ in range(3):
        start = clock()
        block.sum()
        limits.append(block.nbytes / 1e9 / (clock() - start))
    return row(
        "decode, share of the memory bandwidth", speed * gigabytes / max(limits), "", limit=round(max(limits), 2)
    )


# -- 2. the first token of a video question ----------------------------------------------------------------------------


@torch.inference_mode()
def first_token_parts(assistant: Assistant, clip: Path, clock: Clock) -> dict[str, float]:
    """Seconds of every part of the way from a file to the first token; the same calls as `Chat` makes."""
    model, processor = assistant.model, assistant.processor
    marks = [clock()]
    video = load_video(clip, num_frames=FRAMES, size=int(processor.pixels["image_size"]))
    marks.append(clock())
    content = [{"type": "video", "video": video}, {"type": "text", "text": QUESTIONS[0]}]
    tensors = processor.tensors(processor.prompt([{"role": "user", "content": content}]), lazy=True)
    marks.append(clock())
    ids, media = tensors["input_ids"][None], {k: tensors[k] for k in MEDIA_KEYS if k in tensors}
    pieces = list(embed_pieces(model, ids, **media))
    marks.append(clock())
    decoder, cache = decoder_for(model.language_model, tokens=ids.shape[1])
    decoder.read(cache, pieces)
    marks.append(clock())
    seconds = {part: b - a for part, a, b in zip(PARTS, marks, marks[1:], strict=False)}
    return {**seconds, "prompt_tokens": float(ids.shape[1])}


def first_token_rows(assistant: Assistant, clip: Path, args: argparse.Namespace, clock: Clock) -> list[Row]:
    """Median seconds of each part."""
    runs = [
        first_token_parts(assistant, clip, clock) for _ in tqdm(range(args.rounds), desc=f"first token, {clip.name}")
    ]
    setting = {"clip": clip.name, "frames": FRAMES, "prompt_tokens": int(runs[0]["prompt_tokens"]), "runs": args.rounds}
    total = statistics.median(sum(run[part] for part in PARTS) for run in runs)
    rows = [row(f"first token, {clip.stem}: {part}", statistics.median(r[part] for r in runs), "s") for part in PARTS]
    return [row(f"first token, {clip.stem}: all", total, "s", **setting), *rows]


# -- 3. a second question ----------------------------------------------------------------------------------------------


def _first_token(chat: Chat, text: str, clock: Clock, **options: Any) -> float:
    """Seconds from the question to the first piece of the answer."""
    start = clock()
    answer = chat.stream(text, max_new_tokens=8, **options)
    next(answer, None)
    elapsed = clock() - start
    for _ in answer:
        pass
    return elapsed


def second_question_rows(assistant: Assistant, clip: Path, args: argparse.Namespace, clock: Clock) -> list[Row]:
    """Time to first token of the second question over that of the first, and the vision forwards it ran."""
    forwards: list[int] = []
    handle = assistant.model.vision_tower.register_forward_hook(lambda *_: forwards.append(1))
    first, second, seen = [], [], 0
    try:
        for _ in tqdm(range(args.rounds), desc=f"second question, {clip.name}"):
            chat = assistant.conversation()
            first.append(_first_token(chat, QUESTIONS[0], clock, video=clip, num_frames=FRAMES))
            before = len(forwards)
            second.append(_first_token(chat, QUESTIONS[1], clock))
            seen = max(seen, len(forwards) - before)
    finally:
        handle.remove()
    if not forwards:
        raise SystemExit("the first question ran no vision forward; the count below would mean nothing")
    usage = chat.reply.usage if chat.reply else None
    setting = {"clip": clip.name, "frames": FRAMES, "pairs": args.rounds}
    counts = {} if usage is None else {"new_tokens": usage.prompt_tokens, "reused_tokens": usage.reused_tokens}
    name = f"second question / first, time to first token, {clip.stem}"
    return [
        _ratio_row(name, second, first, 0.05, {**setting, **counts}, at_least=False),
        row(f"second question, seconds to first token, {clip.stem}", statistics.median(second), "s", **setting),
        row(f"vision forwards for a second question, {clip.stem}", seen, "", 0, at_least=False, **setting),
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of each measurement")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt in part 1")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to write in part 1")
    parser.add_argument("--threads", type=int, default=1, help="1: CPU time; more: wall time")
    parser.add_argument("--seed", type=int, default=0, help="of the prompt in part 1")
    parser.add_argument("--out", default=str(ROOT / "docs/results"), help="folder of the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock: Clock = time.process_time if args.threads == 1 else time.perf_counter
    load = [os.getloadavg()[0]]
    assistant = load_smol()
    rows = against_transformers(assistant, args, clock)
    with tempfile.TemporaryDirectory() as folder:
        for clip in (CLIP, long_clip(Path(folder))):
            rows += first_token_rows(assistant, clip, args, clock)
            rows += second_question_rows(assistant, clip, args, clock)
    load.append(os.getloadavg()[0])
    clock_name = "CPU seconds" if args.threads == 1 else "wall seconds"
    setting = {"model": assistant.name, "threads": args.threads, "clock": clock_name, "load": load}
    path = write_results("bench", rows, command="make bench", seed=args.seed, setting=setting, out_dir=args.out)
    for r in rows:
        holds = {True: "holds", False: "MISSED", None: ""}[r["holds"]]
        print(f"{r['name']:68} {r['value']:10.4g} {r['unit']:9} {r['target'] or '':8} {holds}")
    print(path)


if __name__ == "__main__":
    main()
