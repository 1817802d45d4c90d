"""Processes that share a sequence decode only the frames that they look at, and learn what one process learns."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_recipes.sample import Sample, assistant, user
from tests.tiny import tiny_assistant
from tests.train.harness import history, run, run_world
from tests.train.test_vlm import spec
from tests.vlm.media.clips import count_decoded, encode, regular
from train.data import Encode, MicroBatches, Order
from train.stages import Call, Parallel, Recipe
from vlm.parallel.frames import Dealer

FRAMES = 24


class Files:
    """Conversations about files that exist: the frames of one are as many as asked for."""

    def __init__(self, folder: str) -> None:
        self.paths = [Path(folder) / f"{i}.mp4" for i in range(4)]
        for seed, path in enumerate(self.paths):
            if not path.exists():
                partial = path.with_suffix(f".{os.getpid()}.mp4")
                encode(partial, regular(60 + seed, fps=10), gop=5)
                partial.replace(path)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        question = {"type": "video", "video": str(self.paths[index])}
        return Sample(f"file-{index}", [user(question, "when?"), assistant("from {t:0.5} to {t:1.5}")])


def batches(folder: Path, rank: int, size: int) -> MicroBatches:
    model = tiny_assistant()
    processor: Any = model.processor
    dealer = Dealer(model.model.pooler, model.model.image_pooler, model.model.pooled_grid, size, rank)
    data = Files(str(folder))
    return MicroBatches(
        data, Order(len(data), (0,)), processor.collate, 2, encode=Encode(processor, FRAMES, lazy=size > 1), own=dealer.own_media
    )  # fmt: skip


def test_each_process_decodes_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = count_decoded(monkeypatch)
    whole = batches(tmp_path, 0, 1)[0]
    alone, shares, counts = len(decoded), [], []
    for rank in range(4):
        decoded.clear()
        shares.append(batches(tmp_path, rank, 4)[0])
        counts.append(len(decoded))
    assert max(counts) < 0.45 * alone
    pixels = np.concatenate([share.inputs["pixel_values"].numpy() for share in shares])
    np.testing.assert_array_equal(pixels, whole.inputs["pixel_values"].numpy())
    assert {share.targets for share in shares} == {whole.targets}
    assert all((share.inputs["input_ids"] == whole.inputs["input_ids"]).all() for share in shares)


def files(out: Path, folder: Path, parallel: Parallel, workers: int) -> Recipe:
    made = spec(out)
    made.stages = made.stages[:1]
    stage = made.stages[0]
    stage.data, stage.frames = Call("tests.train.test_own_frames:Files", {"folder": str(folder)}), 6
    stage.trainable, stage.steps, stage.grad_accum, stage.parallel = {"*": 1e-3}, 3, 2, parallel
    made.workers, made.timeout = workers, 60
    return made


@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_are_shared_give_the_losses_of_one_process(tmp_path: Path, workers: int) -> None:
    Files(str(tmp_path))
    assert run(files(tmp_path / "one", tmp_path, Parallel(), workers)) == 0
    shared = files(tmp_path / "two", tmp_path, Parallel(sp_size=2), workers)
    assert run_world(shared, 2, log=str(tmp_path / "log")) == [0, 0], (tmp_path / "log0").read_text()
    one, two = (list(history(tmp_path / name).values()) for name in ("one", "two"))
    assert two == pytest.approx(one, abs=2e-5) and len(one) == 3
    assert json.loads((tmp_path / "two" / "history.jsonl").read_text().splitlines()[0])["tokens"] > 0
