"""The precision that a codec allows, against the table of LITA's 100 tokens that was worked out independently."""

from __future__ import annotations

import pytest

from vlm.errors import ConfigError
from vlm.time import make_codec, quantisation_ceiling

RELATIVE = make_codec("relative")
# IoU of a perfect predictor, T=100 (rows: video, columns: event, all in seconds).
CEILINGS = {
    60.0: {2.0: 0.86, 5.0: 0.94, 10.0: 0.97, 30.0: 0.99},
    120.0: {2.0: 0.73, 5.0: 0.89, 10.0: 0.94, 30.0: 0.98},
    600.0: {2.0: 0.11, 5.0: 0.52, 10.0: 0.73, 30.0: 0.91},
    3600.0: {2.0: 0.003, 5.0: 0.02, 10.0: 0.08, 30.0: 0.52},
}


@pytest.mark.parametrize("duration", sorted(CEILINGS))
def test_quantisation_ceilings_of_100_tokens(duration: float) -> None:
    for length, expected in CEILINGS[duration].items():
        assert quantisation_ceiling(RELATIVE, duration, length)["miou"] == pytest.approx(expected, abs=0.015)


def test_no_event_of_two_seconds_can_be_found_in_ten_minutes_with_100_tokens() -> None:
    assert quantisation_ceiling(RELATIVE, 600.0, 2.0)["R@0.5"] == 0.0
    assert quantisation_ceiling(make_codec("seconds"), 600.0, 2.0)["miou"] > 0.95
    assert quantisation_ceiling(make_codec("digits"), 3600.0, 2.0)["R@0.7"] == 1.0


def test_two_digits_are_as_precise_as_their_hundredths() -> None:
    assert quantisation_ceiling(make_codec("two_digit"), 120.0, 30.0)["miou"] == pytest.approx(0.98, abs=0.01)


def test_an_event_longer_than_the_video_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not fit"):
        quantisation_ceiling(RELATIVE, 10.0, 20.0)
