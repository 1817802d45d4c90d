"""LITA's claims (2403.19046) on a machine without a GPU: time tokens and SlowFast tokens as the paper defines them, what they cost, and what
each part is worth, trained small on the shapes world. What the paper says is quoted as our specification has it, with its grade.

The trainings take hours on one core; each variant and seed is a run of its own that resumes, so two cores can share them:

    python scripts/lita_variants.py full "slow tokens only"    # trains and scores these, all seeds, and writes no results file
    vlm reproduce lita                                         # trains what is missing, writes docs/results/lita.json
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eval.report import Row, heat_maps
from eval.reproduce import Part, Setting, finding
from vlm.errors import ConfigError, TrainingError
from vlm.files import write_text

SEEDS = 3
VIDEOS = 60
"""Held-out clips to ask about."""
_GOLDEN = ((0, 0), (0.60, 0), (0.61, 1), (1.8, 1), (30, 25), (59.99, 49), (60, 50), (119, 98), (120, 99))
"""Seconds of a clip of 120 s and the index of their token, worked out from the released code's formula [M]."""


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Attributes:
        paper: What the paper has for it on ActivityNet-RTL, mIoU / precision@0.5 in percent.
        changes: Overrides of the recipe `lita_nano`.
        frames: Of a clip.
    """

    paper: str
    changes: tuple[str, ...] = ()
    frames: int = 32


def _layout(pooling: str, time: str) -> tuple[str, str]:
    return f"model.args.pooling={pooling}", f"model.args.time={time}"


_SLOWFAST, _SLOW = "{mode: slowfast, pool_size: 2}", "{mode: slowfast, pool_size: 2, fast: false}"
_TOKENS, _TEXT = "{codec: relative, interleave: false}", "{codec: seconds, interleave: false}"
_CLIPS = ("dense", "localise", "qa", "rtl")
VARIANTS = {
    "full": Variant("28.6 / 25.9 (13B), 24.1 / 21.2 (7B) [P]"),
    "no time tokens": Variant("17.5 / 14.5 [P]", _layout(_SLOWFAST, _TEXT)),
    "slow tokens only, no time tokens": Variant("14.6 / 11.8 [P]", _layout(_SLOW, _TEXT)),
    "slow tokens only": Variant("not said", _layout(_SLOW, _TOKENS)),
    "fast tokens only": Variant("not said", _layout("{mode: mean, over: space}", _TOKENS)),
    "uniform tokens, as many": Variant(
        "not said",
        (
            *_layout("{mode: frame, out_grid: [2, 2]}", _TOKENS),
            *(f"stages.sft.data.args.data.args.parts.{part}.args.num_frames=12" for part in _CLIPS),
        ),
        frames=12,
    ),
    "text timestamps": Variant(
        "not said; the best of the encodings compared by TimeLens [S]",
        _layout("{mode: mean, over: space}", "{codec: seconds, interleave: true}"),
    ),
    "reasoning only": Variant(
        "26.6 / 20.9 [P]", tuple(f"stages.sft.data.args.data.args.parts.{p}.weight=0" for p in ("dense", "localise", "qa", "stills"))
    ),
    "all tasks but pictures": Variant("26.9 / 23.5 [P]", ("stages.sft.data.args.data.args.parts.stills.weight=0",)),
    "soft cross-entropy": Variant("not in LITA; in its port to VILA", ("stages.sft.plugins=[{call: soft_times}]",)),
    "time tokens known before": Variant("not said", ("model.args.times=kept",)),
    "time tokens start as noise": Variant("as the released code", ("model.args.times=noise",)),
}  # fmt: skip


def parts(setting: Setting) -> list[Part]:
    """All claims, the quick ones first."""
    quick = [
        Part("time tokens and SlowFast tokens", exactness),
        Part("time to first token", partial(first_token, setting)),
        Part("frames in memory", streaming),
    ]
    if setting.quick:
        return quick
    trained = [
        Part("what each part is worth", partial(worth, setting)),
        Part("rewarding overlap", partial(rewarded, setting)),
    ]
    return [*quick, *trained]


def exactness() -> list[Row]:
    """Golden values, and counts of tokens."""
    from vlm.time import make_codec
    from vlm.time.codec import RelativeCodec
    from vlm.time.slowfast import make_pooler

    codec = make_codec("relative")
    assert isinstance(codec, RelativeCodec)
    right = sum(codec.index(seconds, 120.0) == index for seconds, index in _GOLDEN)
    pooler = make_pooler("slowfast", pool_size=2)
    return [
        finding("time tokens that equal the golden values", "t = round(tau (T - 1) / L) [P, C]", right, "", len(_GOLDEN), of=len(_GOLDEN)),
        finding(
            "visual tokens of 100 frames of 16 x 16 are 356: difference", "356 of 25,600 [P, C]",
            abs(pooler.count(100, (16, 16)) - 356), "", 0, at_least=False, frames=100, grid="16 x 16", pool_size=2,
        ),
        finding("all tokens / SlowFast tokens", "72 x", 25600 / pooler.count(100, (16, 16)), "x", 71.9),
    ]  # fmt: skip


def first_token(setting: Setting) -> list[Row]:
    """The same random language model reads a video of 100 frames as 356 tokens, and as all 25,600; interleaved, the least of each."""
    import torch

    from eval.text_model import text_model

    text = {
        "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 32768,
    }  # fmt: skip
    model = text_model(text, setting.seed).eval()
    seconds: dict[int, list[float]] = {356: [], 25600: []}
    with torch.no_grad():
        for _ in range(2 if setting.quick else 4):
            for count, found in seconds.items():
                embeds = torch.randn(1, count, text["hidden_size"])
                began = time.process_time()
                model.language_model(inputs_embeds=embeds, logits_to_keep=1)
                found.append(time.process_time() - began)
    ratio = min(seconds[25600]) / min(seconds[356])
    about: dict[str, Any] = {
        "language model": "2 layers of 256",
        "clock": "CPU seconds, least of the repeats",
        "seconds": round(min(seconds[356]), 4),
    }
    return [
        finding(
            "reading all tokens / reading SlowFast tokens, time to first token", "not said", ratio, "x", 20, **about
        )
    ]


def streaming() -> list[Row]:
    """The eyes of nano look at a long video, drawn when it is asked for: how many frames are there at once, and what becomes of them."""
    import torch

    from train.nano import retold
    from vlm.pieces import FRAMES, embed_pieces

    class Drawn:
        """Random frames that exist only when they are asked for."""

        most = 0

        def __len__(self) -> int:
            return 1000

        def __getitem__(self, rows: slice, /) -> torch.Tensor:
            count = len(range(*rows.indices(len(self))))
            self.most = max(self.most, count)
            return torch.randn(count, 3, size, size)

    model, processor = retold(
        pooling={"mode": "slowfast", "pool_size": 2}, time={"codec": "relative", "interleave": False}
    )
    size, frames = int(processor.pixels["image_size"]), Drawn()
    count = model.pooler.count(len(frames), model.pooled_grid)
    ids = torch.full((1, count), int(model.config.video_token_id))
    media: dict[str, Any] = {
        "pixel_values": frames,
        "frames_per_medium": torch.tensor([len(frames)]),
        "is_video": torch.tensor([True]),
    }
    with torch.inference_mode():
        tokens = sum(piece.shape[1] for piece in embed_pieces(model, ids, **media))
    return [
        finding(
            "frames in memory at once while a long video becomes SlowFast tokens", "not said", frames.most, "", FRAMES,
            at_least=False, frames=len(frames), tokens=tokens,
        )
    ]  # fmt: skip


def worth(setting: Setting) -> list[Row]:
    """Every variant, several seeds each, scored on held-out questions that need reasoning by LITA's protocol."""
    every = {name: [scores(name, seed, setting.work / "lita") for seed in range(SEEDS)] for name in VARIANTS}
    rows = []
    for name, found in every.items():
        for what in [
            w for w in found[0] if "for all" not in w or name == "full"
        ]:  # what guessing scores is the same for all
            values = [one[what] for one in found]
            about: dict[str, Any] = {"each": " ".join(f"{v:.1f}" for v in values), "seeds": SEEDS}
            paper = VARIANTS[name].paper if what == "reasoning, mIoU" else ""
            rows.append(finding(f"{name}: {what}", paper, statistics.mean(values), "%", **about))
    best, least = (
        statistics.mean(one["reasoning, mIoU"] for one in every[name])
        for name in ("full", "slow tokens only, no time tokens")
    )
    rows.append(
        finding("full / slow tokens only, no time tokens: mIoU", "1.96 x: 28.6 and 14.6 [P]", best / least, "x", 1.7)
    )
    return rows


def scores(name: str, seed: int, work: Path) -> dict[str, float]:
    """Train a variant with one seed, or go on with it, and score it; what has been scored is read from the disk.

    Args:
        name: One of `VARIANTS`.
        seed: Of the order of the data, and of new time tokens.
        work: Folder of the runs.

    Raises:
        ConfigError: There is no such variant.
        TrainingError: The training was stopped.
    """
    from train.run import run
    from train.stages import load_recipe

    if name not in VARIANTS:
        raise ConfigError(f"variant {name!r} is not one of {', '.join(VARIANTS)}")
    variant = VARIANTS[name]
    out = work / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    if not (out / "scores.json").exists():
        settings = [
            f"out={out}",
            f"seed={seed}",
            f"stages.sft.data.args.folder={work / 'features'}",
            "report_to=[]",
            *variant.changes,
        ]
        if status := run(load_recipe("lita_nano", settings)):
            raise TrainingError(f"the training was stopped (exit code {status}); the same command goes on from there")
    return _kept(out, variant.frames)


def rewarded(setting: Setting) -> list[Row]:
    """What reinforcement learning adds to the full variant, seed by seed (`train/recipes/grpo_nano.yaml`)."""
    from train.grpo import load_grpo, train

    work, rows = setting.work / "lita", []
    before, after = [scores("full", seed, work) for seed in range(SEEDS)], []
    for seed in range(SEEDS):
        out = work / f"grpo-{seed}"
        if not (out / "scores.json").exists():
            train(load_grpo("grpo_nano", [f"model={work / f'full-{seed}' / 'final'}", f"out={out}", f"seed={seed}"]))
        after.append(_kept(out, VARIANTS["full"].frames))
    for what in [w for w in before[0] if "for all" not in w]:
        gains = [b[what] - a[what] for a, b in zip(before, after, strict=True)]
        about: dict[str, Any] = {
            "before": " ".join(f"{one[what]:.1f}" for one in before),
            "after": " ".join(f"{one[what]:.1f}" for one in after),
            "seeds": SEEDS,
        }
        rows.append(
            finding(
                f"gained by GRPO: {what}",
                "not in LITA; as Time-R1 and TimeLens do",
                statistics.mean(gains),
                "points",
                **about,
            )
        )
    return rows


def _kept(out: Path, frames: int) -> dict[str, float]:
    """Scores of the model in ``OUT/final``, kept in ``OUT/scores.json``."""
    done = out / "scores.json"
    if not done.exists():
        write_text(done, json.dumps(_scored(out / "final", frames)))
    known: dict[str, float] = json.loads(done.read_text(encoding="utf-8"))
    return known


def _scored(folder: Path, frames: int) -> dict[str, float]:
    import vlm
    from eval.grounding import answer, rows_of
    from eval.grounding_sets import world

    assistant, found = vlm.load(str(folder)), dict[str, float]()
    for data, label in (("reasoning", "reasoning"), ("shapes", "when something shows")):
        with tempfile.TemporaryDirectory(prefix="lita-") as clips:
            asked = world(data, Path(clips), videos=VIDEOS, seed=0, seconds=20.0, frames=frames, level="brief")
            rows = {
                r["name"]: r["value"]
                for r in rows_of(list(answer(assistant, asked, frames)), assistant.processor.codec)
            }
        found[f"{label}, mIoU"] = 100 * rows["LITA's protocol, mIoU"]
        found[f"{label}, precision@0.5"] = 100 * rows["LITA's protocol, precision@0.5"]
        found[f"{label}, mIoU of the best span for all"] = 100 * rows["chance: the best span for all, mIoU"]
    return found


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Percent by variant and measure, the mean over seeds."""
    shown = [r for r in rows if r.get("unit") == "%" and "for all" not in r["claim"]]
    found = {tuple(r["claim"].split(": ", 1)): r["ours"] for r in shown}
    names, measures = list(dict.fromkeys(n for n, _ in found)), list(dict.fromkeys(m for _, m in found))
    if names:
        grid = [[found[n, m] for m in measures] for n in names]
        short = [m.replace("precision", "P").replace("when something shows", "when") for m in measures]
        heat_maps(
            path, {"mean over seeds, %": grid}, rows=names, columns=short, labels=("variant", "held-out questions")
        )
