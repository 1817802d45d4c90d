"""LITA's claims: what is exact holds, every variant is a recipe that can be built and read, scores are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("timm")

from eval.lita import VARIANTS, draw, exactness, parts, rewarded, scores, streaming
from eval.reproduce import Setting, finding
from train.build import build_dataset, build_model
from train.stages import load_recipe
from vlm.errors import ConfigError


def test_what_is_exact_holds() -> None:
    assert all(r["holds"] for r in exactness())
    (row,) = streaming()
    assert row["holds"] and row["ours"] == 32


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_reads_its_clips(name: str) -> None:
    variant = VARIANTS[name]
    recipe = load_recipe("lita_nano", list(variant.changes))
    model, processor = build_model(recipe)
    data = build_dataset(recipe.stages[0], seed=0, processor=processor).data
    clips = [s for s in (data[i] for i in range(40)) if s.messages[0]["content"][0]["type"] == "video"]
    prompt = processor.prompt(clips[0].messages, add_generation_prompt=False)
    visual = sum(i == processor.token_id("<video>") for i in prompt.ids)
    wanted = {
        "slow tokens only": 16,
        "slow tokens only, no time tokens": 16,
        "fast tokens only": 32,
        "text timestamps": 32,
    }
    assert visual == wanted.get(name, 48) and prompt.media[0].num_frames == variant.frames
    timed = [s for s in clips if any(turn.spans for turn in s.meta["turns"])]
    ids = processor.prompt(timed[0].messages, add_generation_prompt=False).ids
    tokens: Any = model.config
    assert any(i in (tokens.time_token_ids or []) for i in ids) == (processor.codec.name == "relative")


def test_tasks_can_be_left_out() -> None:
    recipe = load_recipe("lita_nano", list(VARIANTS["reasoning only"].changes))
    data = build_dataset(recipe.stages[0], seed=0, processor=None).data
    assert {t.kind.split("_")[0] for i in range(20) for t in data[i].meta["turns"]} <= {"reason", "when"}


def test_scores_are_kept(tmp_path: Path) -> None:
    kept = tmp_path / "slow-tokens-only-no-time-tokens-1" / "scores.json"
    kept.parent.mkdir()
    kept.write_text(json.dumps({"reasoning, mIoU": 3.5}))
    assert scores("slow tokens only, no time tokens", 1, tmp_path) == {"reasoning, mIoU": 3.5}
    with pytest.raises(ConfigError, match="'everything' is not one of full"):
        scores("everything", 0, tmp_path)


def test_a_quick_run_trains_nothing_and_a_picture_needs_trainings(tmp_path: Path) -> None:
    names = [[p.name for p in parts(Setting(quick=quick))] for quick in (True, False)]
    assert set(names[1]) - set(names[0]) == {"what each part is worth", "rewarding overlap"}
    draw(tmp_path / "none.png", exactness())
    assert not (tmp_path / "none.png").exists()
    best = finding("full: reasoning, mIoU of the best span for all", "", 10.0, "%")
    draw(tmp_path / "some.png", [best, *(finding(f"{n}: reasoning, mIoU", "", 20.0, "%") for n in VARIANTS)])
    assert (tmp_path / "some.png").stat().st_size > 1000


def test_gains_are_means_over_seeds(tmp_path: Path) -> None:
    work = tmp_path / "lita"
    for seed in range(3):
        for name, value in ((f"full-{seed}", 30.0), (f"grpo-{seed}", 31.0 + seed)):
            (work / name).mkdir(parents=True)
            (work / name / "scores.json").write_text(json.dumps({"reasoning, mIoU": value, "best span for all": 9.0}))
    (row,) = rewarded(Setting(work=tmp_path))
    assert row["ours"] == 2.0 and row["setting"]["after"] == "31.0 32.0 33.0"
