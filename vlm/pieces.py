"""A prompt's embeddings some at a time, so that reading a long video needs little more room than the cache it becomes (ours).

    frames ─ some at a time ─► eyes ─ connector ─ pooler ─┐ tokens, when they are due
    ids ─ some at a time ─► embed ────────────────────────┴─► [1, n, D], piece after piece ─► `vlm.decode`

The pieces laid end to end are what `VLMForConditionalGeneration.fuse` gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from vlm.connectors.fuse import locate, scatter, tag
from vlm.decode import PIECE
from vlm.errors import AlignmentError
from vlm.time.slowfast import Grid, Pooler

FRAMES = 32  # that go through the eyes at a time
_WINDOWS = 8  # of sound

Segments = Sequence[list[int] | None]


class Frames(Protocol):
    """A tensor ``[F, ...]``, or anything that makes one of some of its rows when asked (`vlm.prepare.Pixels`)."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> torch.Tensor: ...


class Run(NamedTuple):
    """Neighbouring frames ``start`` to ``stop``, and which of the medium's tokens they make."""

    start: int
    stop: int
    tokens: list[int]


def embed_pieces(
    model: Any,
    input_ids_1L: torch.Tensor,
    *,
    size: int = PIECE,
    pixel_values: Frames | None = None,
    vision_features: Frames | None = None,
    frames_per_medium: torch.Tensor | None = None,
    is_video: torch.Tensor | None = None,
    segments: Segments | None = None,
    mel: torch.Tensor | None = None,
    audio_lengths: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """Input embeddings ``[1, n, D]`` of ``size`` tokens each (the last fewer) of one prompt.

    Args:
        model: A `VLMForConditionalGeneration`.
        input_ids_1L: Token ids with media placeholders in place.
        size: Tokens of a piece.
        pixel_values: Normalised frames ``[F, 3, H, W]`` of all media in order, or
        vision_features: what the eyes made of them ``[F, P, E]``; either may be made when it is asked for.
        frames_per_medium: ``[M]``; likewise ``is_video``, ``segments``, ``mel`` and ``audio_lengths`` as in `forward`.

    Raises:
        AlignmentError: Placeholders and features disagree in number.
    """
    config, table = model.config, model.get_input_embeddings()
    seen = _Supply((), "visual")
    if frames_per_medium is not None and is_video is not None:
        counts, videos = frames_per_medium.tolist(), [bool(v) for v in is_video.tolist()]
        shots = segments if segments is not None else [None] * len(counts)
        seen = _Supply(_visual(model, pixel_values, vision_features, counts, videos, shots), "visual")
    heard = _Supply((), "audio")
    if mel is not None and audio_lengths is not None:
        heard = _Supply(_sound(model, mel, audio_lengths), "audio")
    weight, last_other = float(config.time.get("tag") or 0.0), None
    for ids_1N in input_ids_1L.split(size, dim=1):
        embeds_1ND = table(ids_1N)
        for supply, kinds in (
            (seen, (config.image_token_id, config.video_token_id)),
            (heard, (config.audio_token_id,)),
        ):
            places_1N = locate(ids_1N, kinds)
            if places_1N.any():
                embeds_1ND = scatter(embeds_1ND, places_1N, supply.take(int(places_1N.sum())), what=supply.what)
        if weight:
            timed_1N = locate(ids_1N, (config.video_token_id, config.audio_token_id))
            embeds_1ND, last_other = _tagged(embeds_1ND, timed_1N, weight, last_other)
        yield embeds_1ND
    seen.finish()
    heard.finish()


def _tagged(
    embeds_1ND: torch.Tensor, timed_1N: torch.Tensor, weight: float, before: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`tag` for a piece; ``before`` is the last embedding ``[1, 1, D]`` that is no timed one of the pieces before, then of this one."""
    others = (~timed_1N[0]).nonzero()
    last = embeds_1ND[:, others[-1]] if len(others) else before
    if before is not None:
        joined, mask = torch.cat([before, embeds_1ND], 1), torch.nn.functional.pad(timed_1N, (1, 0), value=False)
        return tag(joined, mask, weight)[:, 1:], last
    return tag(embeds_1ND, timed_1N, weight), last


class _Supply:
    """Media tokens that are made when they are taken."""

    def __init__(self, made: Iterable[torch.Tensor], what: str) -> None:
        self.made, self.what, self.taken = iter(made), what, 0
        self.ready: torch.Tensor | None = None

    def take(self, count: int) -> torch.Tensor:
        """The next ``count`` tokens ``[count, D]``."""
        parts = [] if self.ready is None else [self.ready]
        while sum(len(p) for p in parts) < count:
            more = next(self.made, None)
            if more is None:
                found = self.taken + sum(len(p) for p in parts)
                raise AlignmentError(
                    f"the text has more {self.what} placeholder tokens than the {found} features of its {self.what} "
                    "input; build both with the same VLMProcessor"
                )
            parts.append(more)
        tokens = torch.cat(parts) if len(parts) > 1 else parts[0]
        self.ready, self.taken = tokens[count:], self.taken + count
        return tokens[:count]

    def finish(self) -> None:
        """Refuse tokens that nobody took."""
        left = 0 if self.ready is None else len(self.ready)
        left += sum(len(more) for more in self.made)
        if left:
            raise AlignmentError(
                f"the text has {self.taken} {self.what} placeholder tokens but the {self.what} input gives "
                f"{self.taken + left} features; build both with the same VLMProcessor"
            )


def _visual(
    model: Any,
    pixels: Frames | None,
    features: Frames | None,
    counts: list[int],
    videos: list[bool],
    shots: Segments,
) -> Iterator[torch.Tensor]:
    """Tokens ``[n, D]`` of some frames after the other."""
    given = features if features is not None else pixels
    if given is None or len(given) != sum(counts):
        found = 0 if given is None else len(given)
        raise AlignmentError(f"frames_per_medium sums to {sum(counts)} but {found} frames were given")
    before = 0
    for count, video, segments in zip(counts, videos, shots, strict=True):
        pooler = model.pooler if video else model.image_pooler
        steps = runs(pooler, count, model.pooled_grid, segments if video else None)
        places = [token for step in steps for token in step.tokens]
        in_order, kept = places == list(range(len(places))), []
        for start, stop, _ in steps:
            rows = given[before + max(0, start - pooler.looks_back) : before + stop].to(model.device, model.dtype)
            looked = rows if features is not None else model.encode_frames(rows)
            tokens_ND = model.part_tokens(looked, start, count, is_video=video, segments=segments)
            if in_order:
                yield tokens_ND
            else:
                kept.append(tokens_ND)
        if kept:  # of a pooler whose tokens do not follow its frames all tokens are kept, but never all frames
            made_ND = torch.cat(kept)
            yield torch.empty_like(made_ND).index_copy_(0, torch.tensor(places, device=made_ND.device), made_ND)
        before += count


def runs(pooler: Pooler, count: int, grid: Grid, segments: list[int] | None) -> list[Run]:
    """Runs of about `FRAMES` of ``count`` frames, each of which can be pooled for itself."""
    found, start = [], 0
    for cut in pooler.cuts(count, grid, segments):
        if cut - start >= FRAMES or (cut == count and cut > start):
            found.append(Run(start, cut, pooler.tokens_of(start, cut, count, grid, segments)))
            start = cut
    return found


def _sound(model: Any, mel: torch.Tensor, lengths: torch.Tensor) -> Iterator[torch.Tensor]:
    for some, kept in zip(mel.split(_WINDOWS), lengths.split(_WINDOWS), strict=True):
        yield model.audio_tokens(some.to(model.device, model.dtype), kept)
