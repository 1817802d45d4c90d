"""Measure what reading a long prompt needs and write docs/results/bench-long.json (`make bench-long`).

1. 8192 embeddings through six layers of SmolLM2's shape: transformers' one forward pass (`logits_to_keep=1`) against ours, which reads
   512 at a time. Peak memory and CPU time, interleaved pairs, same logits.
2. `nano` with eyes of 224 px, 196 tokens a frame, up to 1400 frames (274 k tokens): frames are drawn, looked at and forgotten while they
   are read. Peak memory against tokens; the slope against what keys and values take.
3. The language model of `smol` over up to 64 k tokens, likewise.
4. `Chat` about 64 frames of a file of an hour against one of a minute, 640 x 360 pixels: peak memory.

Every measurement is a process of its own with one thread; memory is the growth of its peak (VmHWM) from after the model was there. What
has been measured is kept beside the results until all is, so an interrupted run of the same commit goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it works in a clone without an installation

if TYPE_CHECKING:
    from eval.kept import Kept

TOKENS_PER_FRAME = 196


def peak(*, reset: bool = False) -> float:
    """Most MB that this process has held since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


class Measured:
    """Seconds of CPU, and MB by which the peak grew."""

    def __enter__(self) -> Measured:
        self.mb, self.seconds = peak(reset=True), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds, self.mb = time.process_time() - self.seconds, peak() - self.mb


# -- what a child measures -----------------------------------------------------------------------------------------------


def prefill(variant: str, tokens: int) -> dict[str, float]:
    """One prompt of random embeddings through six layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from vlm.decode import decoder_for

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=16384,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(shape).eval()
    embeds = torch.randn(1, tokens, 576) * 0.02
    with torch.inference_mode():
        if variant == "transformers":
            model(inputs_embeds=embeds[:, :64], logits_to_keep=1)
            with Measured() as found:
                logits = model(inputs_embeds=embeds, logits_to_keep=1).logits[0, -1]
        else:
            decoder, cache = decoder_for(model, tokens=64)  # turns the weights
            decoder.read(cache, embeds[:, :64])
            with Measured() as found:
                decoder, cache = decoder_for(model, tokens=tokens)
                logits = decoder.read(cache, embeds)
    return {"mb": found.mb, "seconds": found.seconds, "logit": float(logits.norm())}


class DrawnFrames:
    """Frames of scene after scene, drawn when they are looked at."""

    def __init__(self, count: int, pixels: dict[str, Any]) -> None:
        self.count, self.pixels = count, pixels

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: slice) -> Any:
        """Normalised rows ``[n, 3, S, S]``."""
        from data_recipes.sample import rng_for
        from data_recipes.synth.shapes_world import level, random_scene
        from vlm.prepare import normalise

        size, scene_frames = int(self.pixels["image_size"]), 50
        drawn = []
        for frame in range(self.count)[rows]:
            scene = random_scene(
                rng_for(0, frame // scene_frames), level("clips"), split="heldout", size=size, num_frames=scene_frames
            )
            drawn.append(scene.render((frame % scene_frames + 0.5) / scene_frames * scene.duration, size))
        return normalise(np.stack(drawn), self.pixels)


def nano(_: str, frames: int) -> dict[str, float]:
    """A video through nano's weights behind eyes of 224 px: 14 x 14 tokens a frame."""
    import torch

    from vlm.config import VLMConfig
    from vlm.decode import decoder_for
    from vlm.model import VLMForConditionalGeneration
    from vlm.pieces import embed_pieces
    from vlm.presets import load

    small = load("nano", device="cpu")
    config = VLMConfig.from_dict(small.model.config.to_dict())
    config.vision_config.image_size = config.vision_config.tower["img_size"] = 224
    config.pooling = {"mode": "frame"}
    model = VLMForConditionalGeneration(config).eval()
    model.load_state_dict(small.model.state_dict())
    del small.model
    count = frames * model.pooler.count(1, model.token_grid)
    text = torch.arange(8)
    ids = torch.cat([text, torch.full((count,), int(config.video_token_id)), text])[None]
    pixels = {**small.processor.pixels, "image_size": 224}
    with torch.inference_mode(), Measured() as found:
        decoder, cache = decoder_for(model.language_model, tokens=ids.shape[1])
        pieces = embed_pieces(
            model,
            ids,
            pixel_values=DrawnFrames(frames, pixels),
            frames_per_medium=torch.tensor([frames]),
            is_video=torch.tensor([True]),
        )
        logits = decoder.read(cache, pieces)
    assert bool(torch.isfinite(logits).all())
    return {
        "mb": found.mb,
        "seconds": found.seconds,
        "tokens": ids.shape[1],
        "formula": _kv_bytes(model.language_model),
    }


def smol(_: str, tokens: int) -> dict[str, float]:
    """Random words through smol's language model."""
    import torch
    from transformers import AutoModelForCausalLM

    from vlm.checkpoints.backbones import backbone
    from vlm.decode import decoder_for

    model: Any = AutoModelForCausalLM.from_pretrained(backbone("smollm2-135m-instruct"), dtype=torch.float32).eval()
    ids = torch.randint(0, 40_000, (1, tokens), generator=torch.Generator().manual_seed(0))
    table = model.get_input_embeddings()

    def pieces() -> Iterator[torch.Tensor]:
        for some in ids.split(512, dim=1):
            yield table(some)

    with torch.inference_mode():
        decoder_for(model, tokens=1)  # turns the weights
        with Measured() as found:
            decoder, cache = decoder_for(model, tokens=tokens)
            decoder.read(cache, pieces())
    return {"mb": found.mb, "seconds": found.seconds, "tokens": tokens, "formula": _kv_bytes(model)}


def _kv_bytes(model: Any) -> float:
    """Keys and values of one token, all layers, float32."""
    c = model.config
    width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    return float(2 * c.num_key_value_heads * width * 4 * c.num_hidden_layers)


def chat(_: str, seconds: int) -> dict[str, float]:
    """A question about 64 frames of a file of so many seconds."""
    from scripts.bench import load_smol
    from vlm.media import write_video

    rng = np.random.default_rng(0)
    block = rng.integers(0, 256, (8, 45, 80, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)

    def frames() -> Iterator[np.ndarray]:
        for i in range(2 * seconds):
            yield np.roll(block[i // 20 % 8], 4 * i, axis=1)

    with tempfile.TemporaryDirectory() as folder:
        clip = write_video(Path(folder) / "clip.mp4", frames(), fps=2.0)
        assistant = load_smol()
        assistant.chat("What is this?", video=block[:2], num_frames=2, max_new_tokens=2)
        before = peak(reset=True)
        assistant.chat("What is in this video?", video=clip, num_frames=64, max_new_tokens=8)
        return {"mb": peak() - before, "whole": peak(), "seconds": float(seconds)}


# -- the parent ----------------------------------------------------------------------------------------------------------


def measured(kept: Kept, what: str, variant: str, size: int, repeat: int = 0) -> dict[str, float]:
    """One measurement in a process of its own, made once."""
    found: dict[str, float] = kept(f"{what} {variant} {size} {repeat}", lambda: child(what, variant, size))
    return found


def child(what: str, variant: str, size: int) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--child", what, variant, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{what} {variant} {size} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def prefill_rows(kept: Kept, pairs: int) -> list[Any]:
    """Part 1."""
    from tqdm import tqdm

    from eval.report import row

    runs = [
        {v: measured(kept, "prefill", v, 8192, i) for v in ("transformers", "ours")}
        for i in tqdm(range(pairs), desc="prefill of 8192")
    ]
    setting = {"tokens": 8192, "layers": 6, "piece": 512, "pairs": pairs}
    middle = {
        key: [statistics.median(r[v][key] for r in runs) for v in ("ours", "transformers")] for key in ("mb", "seconds")
    }
    apart = max(abs(r["ours"]["logit"] / r["transformers"]["logit"] - 1) for r in runs)
    return [
        row("prefill in pieces / in one pass, peak memory", _median(runs, "mb"), "×", 0.45, at_least=False,
            ours_mb=round(middle["mb"][0], 1), theirs_mb=round(middle["mb"][1], 1), **setting),
        row("prefill in pieces / in one pass, CPU time", _median(runs, "seconds"), "×", 1.05, at_least=False,
            ours_s=round(middle["seconds"][0], 2), theirs_s=round(middle["seconds"][1], 2), **setting),
        row("prefill in pieces, relative difference of the logits' norm", apart, "", 1e-5, at_least=False, **setting),
    ]  # fmt: skip


def _median(runs: list[dict[str, dict[str, float]]], key: str) -> float:
    return statistics.median(r["ours"][key] / r["transformers"][key] for r in runs)


def slope_rows(kept: Kept, what: str, name: str, sizes: list[int]) -> list[Any]:
    """Parts 2 and 3."""
    from tqdm import tqdm

    from eval.report import row

    runs = [measured(kept, what, "ours", size) for size in tqdm(sizes, desc=name)]
    rows = [
        row(f"{name}: {int(r['tokens']):,} tokens, peak memory", r["mb"], "MB", cpu_seconds=round(r["seconds"], 1))
        for r in runs
    ]
    first, last = runs[0], runs[-1]
    slope = (last["mb"] - first["mb"]) * 2**20 / (last["tokens"] - first["tokens"])
    ratio = slope / last["formula"]
    facts = {"bytes_per_token": round(slope), "keys_and_values": int(last["formula"])}
    return [*rows, row(f"{name}: slope / keys and values", ratio, "×", 1.15, at_least=False, **facts)]


def chat_rows(kept: Kept, hour: int) -> list[Any]:
    """Part 4."""
    from eval.report import row

    short, long = measured(kept, "chat", "ours", 60), measured(kept, "chat", "ours", hour)
    facts = {"minute_mb": round(short["whole"]), "hour_mb": round(long["whole"]), "frames": 64, "seconds": hour}
    return [
        row("chat about an hour / a minute, peak memory of the process", long["whole"] / short["whole"], "×", 1.3, at_least=False, **facts),
        row("chat about an hour / a minute, growth for the question", long["mb"] / short["mb"], "×", 1.3, at_least=False, **facts),
    ]  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--frames", default="175,350,700,1400", help="of part 2")
    parser.add_argument("--tokens", default="8192,16384,32768,65536", help="of part 3")
    parser.add_argument("--hour", type=int, default=3600, help="seconds of the long file of part 4")
    parser.add_argument("--out", default=str(ROOT / "docs/results"), help="folder of the results")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        import torch

        torch.set_num_threads(1)
        what, variant, size = args.child
        measure = {"prefill": prefill, "nano": nano, "smol": smol, "chat": chat}[what]
        print(json.dumps(measure(variant, int(size))))
        return
    from eval.kept import Kept
    from eval.report import commit, write_results

    kept = Kept(Path(args.out) / ".bench-long-parts.json", commit())
    rows = prefill_rows(kept, args.pairs)
    rows += chat_rows(kept, args.hour)
    rows += slope_rows(
        kept, "nano", f"nano, {TOKENS_PER_FRAME} tokens a frame", [int(n) for n in args.frames.split(",")]
    )
    rows += slope_rows(kept, "smol", "smol's language model", [int(n) for n in args.tokens.split(",")])
    setting = {"threads": 1, "load": os.getloadavg()[0]}
    path = write_results("bench-long", rows, command="make bench-long", seed=0, setting=setting, out_dir=args.out)
    kept.drop()
    for r in rows:
        holds = {True: "holds", False: "MISSED", None: ""}[r["holds"]]
        print(f"{r['name']:68} {r['value']:10.4g} {r['unit']:4} {r['target'] or '':8} {holds}")
    print(path)


if __name__ == "__main__":
    main()
