"""How precise an answer can be at all, once its times have gone through a codec."""

from __future__ import annotations

import numpy as np

from vlm.errors import ConfigError
from vlm.time.codec import TimeCodec
from vlm.time.span import Span


def read_back(codec: TimeCodec, span: Span, duration: float) -> Span:
    """What is left of a span once it has been said and read, in a video of ``duration`` seconds."""
    return codec.parse(codec.encode_span(span, duration), duration).spans[0]


def quantisation_ceiling(codec: TimeCodec, duration: float, length: float, *, samples: int = 500) -> dict[str, float]:
    """What a perfect predictor reaches once its times went through the codec: one event length, starts spread evenly.

    Args:
        codec: The codec.
        duration: Length of the video, seconds.
        length: Length of the event, seconds, at most ``duration``.
        samples: Number of starts.

    Returns:
        ``miou`` and ``R@0.3``, ``R@0.5``, ``R@0.7`` in 0..1.
    """
    if not 0 < length <= duration:
        raise ConfigError(f"an event of {length} s does not fit a video of {duration} s")
    starts = (np.arange(samples) + 0.5) / samples * (duration - length)
    truth = [Span(s, s + length) for s in starts.tolist()]
    ious = np.array([span.iou(read_back(codec, span, duration)) for span in truth])
    return {"miou": float(ious.mean()), **{f"R@{t}": float((ious >= t).mean()) for t in (0.3, 0.5, 0.7)}}
