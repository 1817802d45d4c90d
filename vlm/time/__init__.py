"""Time: spans in seconds, codecs between seconds and what a language model says, poolers whose tokens know their span.

The poolers live in `vlm.time.slowfast` and are imported from there, because they need torch and the rest does not.
"""

from __future__ import annotations

from vlm.time.ceiling import quantisation_ceiling
from vlm.time.codec import TimeCodec, make_codec, warn_if_coarse
from vlm.time.parse import ParseResult, parse_lita
from vlm.time.span import Span, frame_edges

__all__ = [
    "ParseResult",
    "Span",
    "TimeCodec",
    "frame_edges",
    "make_codec",
    "parse_lita",
    "quantisation_ceiling",
    "warn_if_coarse",
]
