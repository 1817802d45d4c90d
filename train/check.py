"""Look at training data before training: what the model reads, which words the loss is on, which times they say (``vlm data check``)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.mixtures.temporal import temporal
from data_recipes.sample import Sample
from train.build import build_dataset, build_model
from train.stages import load_recipe
from vlm.errors import ConfigError
from vlm.processor import MEDIA_TOKENS, VLMProcessor

_LONGEST = 1500  # characters of a prompt that are shown


def check(
    source: str | Path,
    *,
    format: str | None = None,
    task: str | None = None,
    media: str | Path | None = None,
    stage: str | None = None,
    count: int = 3,
    model: str | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """Lines about some conversations of a recipe, or of a file of annotations.

    Args:
        source: A recipe (file or name), or with ``format`` a file of annotations.
        format: See `data_recipes.mixtures.temporal`.
        task: Likewise; default: the first that the file has something for.
        media: Folder of the videos of a file; default: the file's own.
        stage: Of the recipe; default: every stage.
        count: Conversations, spread over the whole.
        model: Whose processor reads them; default: the recipe's own, and ``nano`` for a file.
        seed: Of a file's wordings.

    Raises:
        ConfigError: A name or a number makes no sense.
        DataError: The data are damaged.
    """
    if count < 1:
        raise ConfigError(f"count={count} must be at least 1")
    if format is not None:
        folder = Path(source).parent if media is None else media
        dataset = temporal(task=task, format=format, path=source, media=folder, seed=seed)
        yield from _lines(Path(source).name, dataset, _processor(model or "nano"), count)
        return
    recipe = load_recipe(source)
    if stage is not None and stage not in [s.name for s in recipe.stages]:
        raise ConfigError(f"stage={stage!r} is not one of {', '.join(s.name for s in recipe.stages)}")
    processor = build_model(recipe)[1] if model is None else _processor(model)
    for one in recipe.stages:
        if stage in (None, one.name):
            dataset = build_dataset(one, seed=recipe.seed, processor=processor)
            yield from _lines(f"stage {one.name}", dataset, processor, count)


def _processor(model: str) -> VLMProcessor:
    import vlm

    return vlm.load(model).processor


def _lines(title: str, dataset: Any, processor: Any, count: int) -> Iterator[str]:
    yield f"{title}: {len(dataset):,} conversations"
    source = getattr(dataset, "source", None)
    if source is not None:
        gone = f"; missing: {', '.join(source.missing[:5])}" if source.missing else ""
        yield f"videos {len(source):,}, missing {len(source.missing):,}{gone}"
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)).tolist():
        sample = dataset[index]
        if not (isinstance(sample, Sample) and isinstance(processor, VLMProcessor)):
            yield f"\n{index}: tensors {', '.join(sample)}" if isinstance(sample, dict) else f"\n{index}: {sample!r}"
            continue
        yield from _about(sample, processor)


def _about(sample: Sample, processor: VLMProcessor) -> Iterator[str]:
    prompt = processor.prompt(sample.messages, add_generation_prompt=False)
    yield f"\n{sample.id}: {len(prompt.ids):,} tokens, the loss is on {sum(i != -100 for i in prompt.labels):,}"
    parts = [p for m in sample.messages for p in m["content"] if p["type"] != "text"]
    for part, medium in zip(parts, prompt.media, strict=True):
        given = part.get(part["type"])
        name = f", {given}" if isinstance(given, str) else ""
        size = f"{medium.num_frames:,} frames or states, {len(medium.ids):,} tokens, {medium.duration:.2f} s"
        yield f"  {medium.kind:<8}{size}{name}"
    duration = max((m.duration for m in prompt.media), default=0.0)
    for trained, ids in _runs(prompt.ids, prompt.labels):
        words = _words(ids, processor)
        yield f"  {'target' if trained else 'read':<8}{words}"
        if trained and duration and (spans := processor.codec.parse(words, duration).spans):
            yield f"  {'times':<8}" + ", ".join(f"{s.start:.2f} to {s.end:.2f} s" for s in spans)
    if true := sample.meta.get("spans"):
        yield f"  {'true':<8}" + ", ".join(f"{s.start:.2f} to {s.end:.2f} s" for s in true)


def _runs(ids: list[int], labels: list[int]) -> Iterator[tuple[bool, list[int]]]:
    """Stretches that the loss is on, and stretches that it is not on."""
    for trained, group in groupby(zip(ids, labels, strict=True), lambda pair: pair[1] != -100):
        yield trained, [i for i, _ in group]


def _words(ids: list[int], processor: VLMProcessor) -> str:
    """Text, each run of media tokens as ``[video x 16]``."""
    media = {processor.token_id(token): token.strip("<>") for token in MEDIA_TOKENS}
    pieces = []
    for kind, group in groupby(ids, media.get):
        run = list(group)
        pieces.append(processor.tokenizer.decode(run) if kind is None else f"[{kind} x {len(run)}]")
    text = "".join(pieces).replace("\n", "\\n")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
