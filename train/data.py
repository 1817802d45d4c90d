"""Which samples make up which batch, and their preparation ahead of time.

The order is a pure function of (seed, stage, epoch, position): it depends neither on the number of processes nor on
workers, and its whole state is one number, the optimizer step. Sample ``p`` of a run is item ``p % size`` of epoch ``p
// size``'s permutation; step ``s`` takes samples ``s * batch_size`` up to ``(s + 1) * batch_size``, and each process
takes its share of every micro-batch.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from data_recipes.sample import Sample
from train.stages import Stage
from vlm.errors import ConfigError, DataError, MediaError, VLMError

GROUP_BATCHES = 50
NEIGHBOURS = 16


@dataclass
class Order:
    """An endless, reproducible order of a finite dataset.

    Attributes:
        size: Number of samples.
        seed: Seed and whatever else tells this order from others (the stage's number).
        batch_size: Samples per optimizer step; only matters with ``lengths``.
        lengths: Length of each sample. Given, samples of similar length share a batch: each run of 50 batches is sorted
            by length, cut into batches, and the batches are shuffled; an epoch leaves out what does not fill a batch, other
            samples each time.
    """

    size: int
    seed: tuple[int, ...]
    batch_size: int = 1
    lengths: np.ndarray | None = None
    _cache: tuple[int, np.ndarray] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, dataset: Any, seed: tuple[int, ...], stage: Stage) -> Order:
        """The order of a stage.

        Raises:
            ConfigError: ``group_by_length`` is set and the dataset does not know its lengths.
        """
        lengths = None
        if stage.group_by_length:
            if not hasattr(dataset, "lengths"):
                raise ConfigError(f"stages.{stage.name}.group_by_length: {stage.data.call} gives no `lengths`")
            lengths = np.asarray(dataset.lengths)
        return cls(len(dataset), seed, stage.batch_size, lengths)

    def index(self, position: int) -> int:
        """Dataset index of the sample at ``position`` (0 for the first one of the run)."""
        length = self.size
        if self.lengths is not None and self.size >= self.batch_size:
            length -= self.size % self.batch_size
        return int(self.epoch(position // length)[position % length])

    def epoch(self, number: int) -> np.ndarray:
        """The permutation ``[size]`` of one epoch; with ``lengths``, what does not fill a batch comes last."""
        if self._cache is None or self._cache[0] != number:
            self._cache = (number, self._permutation(number))
        return self._cache[1]

    def _permutation(self, number: int) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([*self.seed, number])))
        order = rng.permutation(self.size)
        if self.lengths is None:
            return order
        chunk = self.batch_size * GROUP_BATCHES
        chunks = [order[i : i + chunk] for i in range(0, self.size, chunk)]
        return np.concatenate([self._grouped(c, self.lengths[c], rng) for c in chunks])

    def _grouped(self, chunk: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        by_length = chunk[np.argsort(-lengths, kind="stable")]
        batches = [by_length[i : i + self.batch_size] for i in range(0, len(chunk), self.batch_size)]
        whole = [batches[i] for i in rng.permutation(len(chunk) // self.batch_size)]
        return np.concatenate([*whole, *batches[len(whole) :]])


@dataclass
class Batch:
    """One micro-batch of one process.

    Attributes:
        ids: Sample ids, for error messages.
        inputs: Keyword arguments of the model.
        targets: Number of target tokens (labels that are not -100 after the shift).
        tokens: Number of tokens that are not padding.
        bad: What was wrong with samples that had to be replaced.
    """

    ids: list[str]
    inputs: dict[str, Any]
    targets: int
    tokens: int
    bad: list[str]


@dataclass(frozen=True)
class Encode:
    """`Sample` -> example, by the processor.

    Attributes:
        processor: Has ``training_example(messages)``.
        frames: Frames per video; None leaves it to the processor.
        lazy: Frames are decoded when the batch is complete and it is known which of them this process looks at.
    """

    processor: Any
    frames: int | None = None
    lazy: bool = False

    def __call__(self, sample: Sample) -> dict[str, Any]:
        options: dict[str, Any] = {} if self.frames is None else {"num_frames": self.frames}
        options |= {"lazy": True} if self.lazy else {}
        return self.processor.training_example(sample.messages, **options)


@dataclass
class MicroBatches(torch.utils.data.Dataset):
    """All micro-batches of one process: item ``step * grad_accum + k`` is the k-th of that step.

    Attributes:
        dataset: Items are `Sample`s or ready example dictionaries.
        order: The order of the whole run.
        collate: Makes a batch of examples.
        batch_size: Samples per optimizer step over all processes.
        grad_accum: Micro-batches per step and process.
        rank, world: This process and their number.
        encode: Turns a `Sample` into an example.
        max_length: Longest ``input_ids`` allowed, tokens.
        own: What of a batch this process needs, where several share one (`vlm.parallel.frames.Dealer.own_media`).
    """

    dataset: Any
    order: Order
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]
    batch_size: int
    grad_accum: int = 1
    rank: int = 0
    world: int = 1
    encode: Callable[[Sample], dict[str, Any]] | None = None
    max_length: int | None = None
    own: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        if self.batch_size % (self.grad_accum * self.world):
            raise ConfigError(
                f"batch_size={self.batch_size} must be a multiple of grad_accum={self.grad_accum} times "
                f"{self.world} processes"
            )

    def positions(self, item: int) -> range:
        """Positions in the run's order of the samples of micro-batch ``item``."""
        step, k = divmod(item, self.grad_accum)
        share = self.batch_size // (self.grad_accum * self.world)
        first = step * self.batch_size + (k * self.world + self.rank) * share
        return range(first, first + share)

    def __getitem__(self, item: int) -> Batch:
        bad: list[str] = []
        examples = [self._usable(self.order.index(p), bad) for p in self.positions(item)]
        ids = [example.pop("id") for example in examples]
        inputs = self.collate(examples)
        targets = int((inputs["labels"][:, 1:] != -100).sum())
        mask = inputs.get("attention_mask")
        tokens = int(mask.sum()) if mask is not None else inputs["labels"].numel()
        return Batch(ids, inputs if self.own is None else self.own(inputs), targets, tokens, bad)

    def _usable(self, index: int, bad: list[str]) -> dict[str, Any]:
        """The example at ``index``, or the nearest usable one after it."""
        for k in range(NEIGHBOURS):
            try:
                return self.example((index + k) % self.order.size)
            except (DataError, MediaError) as error:
                bad.append(f"sample {(index + k) % self.order.size}: {error}")
        raise DataError(f"{NEIGHBOURS} samples in a row are unusable; the first: {bad[-NEIGHBOURS]}")

    def example(self, index: int) -> dict[str, Any]:
        """The checked example at ``index`` of the dataset: ``id``, ``input_ids [L]``, ``labels [L]`` and media.

        Raises:
            DataError: It is too long or has no target.
        """
        item = self.dataset[index]
        if isinstance(item, Sample):
            if self.encode is None:
                raise ConfigError(
                    "the dataset gives conversations, but the model came without a processor to encode them"
                )
            example = {**self.encode(item), "id": item.id}
        else:
            example = {"id": str(index), **item}
        length = len(example.get("input_ids", example["labels"]))
        if self.max_length is not None and length > self.max_length:
            raise DataError(f"{example['id']}: {length} tokens, more than seq_len={self.max_length}")
        if not bool((example["labels"][1:] != -100).any()):
            raise DataError(f"{example['id']}: no target tokens, nothing to learn from")
        return example


def pad_and_stack(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Default batch: one-dimensional tensors are padded on the right (labels with -100, the rest with 0), others
    stacked.
    """
    examples = [{"attention_mask": torch.ones_like(e["input_ids"]), **e} for e in examples]
    batch = {}
    for key, first in examples[0].items():
        values = [torch.as_tensor(e[key]) for e in examples]
        if first.ndim == 1:
            fill = -100 if key == "labels" else 0
            batch[key] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=fill)
        else:
            batch[key] = torch.stack(values)
    return batch


class Prefetcher:
    """Iterates over ``source[start:stop]`` while the next items are prepared in the background.

    Args:
        source: Where the micro-batches come from.
        start, stop: Range of items.
        workers: Processes that prepare items; 0 uses a thread, which is enough when decoding releases the interpreter
            lock.
        ahead: Items prepared ahead (per worker).
    """

    def __init__(self, source: MicroBatches, start: int, stop: int, *, workers: int = 0, ahead: int = 2) -> None:
        self._closed = threading.Event()
        self._loader: Any = None
        items = range(start, stop)
        self._items = (
            self._from_workers(source, items, workers, ahead) if workers else self._from_thread(source, items, ahead)
        )

    def __iter__(self) -> Iterator[Batch]:
        for item in self._items:
            if isinstance(item, Exception):
                raise item
            yield item

    def close(self) -> None:
        """Stop the background work; items not yet taken are dropped."""
        self._closed.set()
        self._items.close()
        if self._loader is not None:
            workers = self._loader._workers
            self._loader._shutdown_workers()  # now, not when the last reference to the iterator goes
            for worker in workers:
                if worker.is_alive():  # busy with a sample and deaf to SIGTERM, see `_leave_signals_to_parent`
                    worker.kill()

    def _from_thread(self, source: MicroBatches, items: range, ahead: int) -> Any:
        ready: queue.Queue[Any] = queue.Queue(maxsize=ahead)

        def work() -> None:
            for i in items:
                item = _attempt(source, i)
                while not self._closed.is_set():
                    try:
                        ready.put(item, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if self._closed.is_set() or isinstance(item, Exception):
                    return

        threading.Thread(target=work, name="train-data", daemon=True).start()
        for _ in items:
            yield ready.get()

    def _from_workers(self, source: MicroBatches, items: range, workers: int, ahead: int) -> Any:
        loader = torch.utils.data.DataLoader(
            _Guarded(source),
            batch_size=None,
            sampler=items,
            num_workers=workers,
            prefetch_factor=ahead,
            collate_fn=_unchanged,
            worker_init_fn=_leave_signals_to_parent,
            generator=torch.Generator().manual_seed(0),
        )
        self._loader = iter(loader)
        yield from self._loader


@dataclass
class _Guarded(torch.utils.data.Dataset):
    """Hands our own errors over as values, so that they arrive with their type."""

    source: MicroBatches

    def __getitem__(self, item: int) -> Any:
        return _attempt(self.source, item, only=VLMError)


def _attempt(source: MicroBatches, item: int, only: type[Exception] = Exception) -> Any:
    try:
        return source[item]
    except only as error:
        return error


def _unchanged(item: Any) -> Any:
    return item


def _leave_signals_to_parent(_: int) -> None:
    """Ctrl-C and SIGTERM reach the whole process group; only the trainer reacts to them, and it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
