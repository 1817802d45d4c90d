"""Data order: a pure function of seed and position, the same for any number of processes and workers."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from data_recipes.sample import Sample
from train.data import Batch, MicroBatches, Order, Prefetcher, pad_and_stack
from train.stages import parse_recipe
from train.tiny import Backwards, backwards
from vlm.errors import ConfigError, DataError, MediaError


def ids(order: Order, start: int, stop: int) -> list[int]:
    return [order.index(p) for p in range(start, stop)]


def test_every_epoch_holds_every_sample_once_and_epochs_differ() -> None:
    order = Order(103, (3, 0))
    epochs = [ids(order, 103 * e, 103 * (e + 1)) for e in range(3)]
    assert all(sorted(epoch) == list(range(103)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_order_depends_on_seed_and_stage_and_nothing_else() -> None:
    first = ids(Order(50, (1, 0)), 0, 120)
    assert ids(Order(50, (1, 0)), 0, 120) == first
    assert ids(Order(50, (2, 0)), 0, 120) != first
    assert ids(Order(50, (1, 1)), 0, 120) != first
    jumping = Order(50, (1, 0))
    assert [jumping.index(p) for p in (119, 0, 60)] == [first[119], first[0], first[60]]


def test_grouping_by_length_keeps_every_sample_and_narrows_batches() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 1007)
    grouped, plain = Order(1007, (0,), 8, lengths), Order(1007, (0,), 8)
    assert len(set(ids(grouped, 0, 1000))) == 1000
    assert sorted(grouped.epoch(0)) == list(range(1007))
    assert ids(grouped, 0, 1007) == ids(Order(1007, (0,), 8, lengths), 0, 1007)

    def spread(order: Order) -> float:
        return float(np.mean([np.ptp(lengths[ids(order, i, i + 8)]) for i in range(0, 1000, 8)]))

    assert spread(grouped) < 0.1 * spread(plain)
    starts = [1000 + i for i in range(0, 4000, 8)]  # later epochs begin with a batch, too
    assert np.mean([np.ptp(lengths[ids(grouped, i, i + 8)]) for i in starts]) < 0.1 * spread(plain)
    assert len(set(ids(grouped, 0, 3000))) > 1000  # and leave out other samples
    firsts = [lengths[grouped.index(i)] for i in range(0, 400, 8)]
    assert sorted(firsts) != firsts and sorted(firsts, reverse=True) != firsts  # batches are not in order of length


def test_grouping_needs_lengths() -> None:
    stage = {"name": "a", "trainable": {"*": 1.0}, "data": "x:y", "steps": 1, "group_by_length": True}
    recipe = parse_recipe({"model": "m", "out": "o", "stages": [stage]})
    with pytest.raises(ConfigError, match=r"stages.a.group_by_length"):
        Order.of([1, 2, 3], (0,), recipe.stages[0])
    assert Order.of(Backwards(7), (0,), recipe.stages[0]).lengths is not None


def micro(world: int = 1, rank: int = 0, accum: int = 1, dataset: Any = None, **options: Any) -> MicroBatches:
    dataset = backwards(37) if dataset is None else dataset
    return MicroBatches(dataset, Order(len(dataset), (5, 0)), pad_and_stack, 16, accum, rank, world, **options)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("accum", [1, 2])
def test_a_step_has_the_same_samples_for_any_world(world: int, accum: int) -> None:
    whole = micro()
    for step in range(5):
        parts = [micro(world, rank, accum)[step * accum + k] for k in range(accum) for rank in range(world)]
        assert [i for part in parts for i in part.ids] == whole[step].ids
        assert sum(part.targets for part in parts) == whole[step].targets
        assert sum(part.tokens for part in parts) == whole[step].tokens


def test_a_batch_size_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_size=16.*grad_accum=3.*2 processes"):
        micro(world=2, accum=3)


def test_targets_and_tokens_are_counted() -> None:
    batch = micro()[0]
    assert batch.targets == int((batch.inputs["labels"][:, 1:] != -100).sum()) > 0
    assert batch.tokens == int(batch.inputs["attention_mask"].sum()) > batch.targets
    assert batch.inputs["input_ids"].shape == batch.inputs["labels"].shape


@pytest.mark.parametrize("workers", [0, 2])
def test_prefetching_changes_nothing(workers: int) -> None:
    source = micro(accum=2)
    fetched = Prefetcher(source, 3, 9, workers=workers)
    for item, batch in zip(range(3, 9), fetched, strict=True):
        assert batch.ids == source[item].ids
        assert torch.equal(batch.inputs["input_ids"], source[item].inputs["input_ids"])
    fetched.close()


class Slow(Backwards):
    """Takes 20 ms per sample."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        time.sleep(0.02)
        return super().__getitem__(index)


def test_preparation_overlaps_with_training() -> None:
    fetched = Prefetcher(micro(dataset=Slow(37)), 0, 4)
    stream = iter(fetched)
    next(stream)
    time.sleep(1.2)  # the training step; two batches of 16 x 20 ms are prepared meanwhile
    began = time.perf_counter()
    next(stream)
    next(stream)
    assert time.perf_counter() - began < 0.16
    fetched.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_closing_early_leaves_nothing_behind(workers: int) -> None:
    import multiprocessing
    import threading

    before = {*threading.enumerate(), *multiprocessing.active_children()}
    fetched = Prefetcher(micro(), 0, 1000, workers=workers)
    next(iter(fetched))
    fetched.close()
    deadline = time.monotonic() + 10
    while ({*threading.enumerate(), *multiprocessing.active_children()} - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not {*threading.enumerate(), *multiprocessing.active_children()} - before


class Faulty(Backwards):
    """Sample 4 is unreadable, 5 has no target, 6 is too long."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 4:
            raise MediaError("clip4.mp4", "no video stream")
        example = super().__getitem__(index)
        if index == 5:
            example["labels"] = torch.full_like(example["labels"], -100)
        if index == 6:
            example = {k: v.repeat(50) if isinstance(v, torch.Tensor) else v for k, v in example.items()}
        return example


@pytest.mark.parametrize("workers", [0, 1])
def test_unusable_samples_are_replaced_by_their_neighbour_and_named(workers: int) -> None:
    seen: list[str] = []
    bad: list[str] = []
    fetched = Prefetcher(micro(dataset=Faulty(16), max_length=64), 0, 1, workers=workers)
    for batch in fetched:
        seen += batch.ids
        bad += batch.bad
    fetched.close()
    others = [i for i in range(16) if i not in (4, 5, 6)]
    assert sorted(seen) == sorted([*(f"backwards-{i}" for i in others), *["backwards-7"] * 3])
    text = "\n".join(bad)
    assert "clip4.mp4: no video stream" in text and "no target" in text and "more than seq_len=64" in text


class Broken(Backwards):
    """Nothing can be read; or something else goes wrong."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.longest == 8:
            raise DataError(f"record {index}: broken")
        raise ZeroDivisionError("a fault in the dataset's own code")


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_the_dataset_arrive_with_their_type(workers: int) -> None:
    fetched = Prefetcher(micro(dataset=Broken(37)), 0, 2, workers=workers)
    with pytest.raises(DataError, match=r"16 samples in a row are unusable; the first: sample .*broken"):
        next(iter(fetched))
    fetched.close()
    fetched = Prefetcher(micro(dataset=Broken(37, longest=3)), 0, 2, workers=workers)
    with pytest.raises(ZeroDivisionError, match="own code"):
        next(iter(fetched))
    fetched.close()


def test_conversations_need_a_processor() -> None:
    conversations = [Sample(f"s{i}", []) for i in range(37)]
    with pytest.raises(ConfigError, match="processor"):
        micro(dataset=conversations)[0]


def test_conversations_are_encoded() -> None:
    conversations = [Sample(f"s{i}", [{"role": "user", "content": "x" * i}]) for i in range(37)]

    def encode(sample: Sample) -> dict[str, Any]:
        length = 2 + len(sample.messages[0]["content"])
        return {"input_ids": torch.ones(length, dtype=torch.long), "labels": torch.ones(length, dtype=torch.long)}

    batch: Batch = micro(dataset=conversations, encode=encode)[0]
    longest = max(int(i.removeprefix("s")) for i in batch.ids)
    assert batch.inputs["input_ids"].shape == (16, 2 + longest)
