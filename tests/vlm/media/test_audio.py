"""Sound: rate, place in time, channels, damage and bombs."""

from __future__ import annotations

import io
import math
import tracemalloc
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vlm.media.clips import encode, regular, tone
from vlm.errors import ConfigError, MediaError, MediaLimitError, MediaWarning
from vlm.media import MediaLimits, load_audio, load_video


def wav(samples: np.ndarray, rate: int) -> bytes:
    """16-bit PCM of float32 [C, S]."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(samples.shape[0])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples.T * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()


def clicks(rate: int, seconds: float) -> np.ndarray:
    """Short bursts at every full second, float32 [1, S]."""
    t = np.arange(round(rate * seconds)) / rate
    return (np.sin(2 * np.pi * 1000 * t) * ((t % 1.0) < 0.02)).astype(np.float32)[None]


def onsets(samples: np.ndarray, rate: int) -> list[float]:
    """Seconds at which bursts begin."""
    loud = np.flatnonzero(np.abs(samples) > 0.2)
    return [i / rate for i in loud[np.diff(loud, prepend=-rate) > rate / 2]]


def test_wave_files_come_back_sample_by_sample() -> None:
    samples = np.concatenate([tone(16_000, 1.0), -0.3 * tone(16_000, 1.0, 900)])
    audio = load_audio(wav(samples, 16_000), rate=16_000)
    assert audio.samples.shape == (2, 16_000) and audio.samples.dtype == np.float32
    assert audio.rate == 16_000 and audio.start == 0 and audio.duration == 1.0
    np.testing.assert_allclose(audio.samples, samples, atol=2 / 32768)
    np.testing.assert_allclose(audio.mono(), samples.mean(axis=0), atol=2 / 32768)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 48_000])
def test_resampling_keeps_pitch_and_length(rate: int) -> None:
    audio = load_audio(wav(tone(44_100, 2.0), 44_100), rate=rate)
    assert audio.samples.shape[1] == pytest.approx(2 * rate, abs=rate * 0.002)
    spectrum = np.abs(np.fft.rfft(audio.samples[0]))
    assert np.argmax(spectrum) * rate / audio.samples.shape[1] == pytest.approx(440, abs=1)


def test_windows_are_exact_to_the_sample() -> None:
    samples = np.linspace(-0.9, 0.9, 64_000, dtype=np.float32)[None]
    data = wav(samples, 16_000)
    for start, end in [(0.0, 0.5), (1.25, 3.0), (3.5, None), (2.0001, 2.0201)]:
        audio = load_audio(data, rate=16_000, start=start, end=end)
        first = round(start * 16_000)
        last = 64_000 if end is None else round(end * 16_000)
        np.testing.assert_allclose(audio.samples, samples[:, first:last], atol=2 / 32768)
        assert audio.start == pytest.approx(start, abs=1 / 16_000)


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "aac"), ("mkv", "libopus"), ("ogg", "libopus"), ("ts", "aac")])
def test_compressed_sound_stays_in_place(tmp_path: Path, kind: str, codec: str) -> None:
    import av

    path = tmp_path / f"a.{kind}"
    samples = clicks(48_000, 5.0)
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(codec, rate=48_000)
        stream.layout = "mono"
        for place in range(0, samples.shape[1], 960):
            part = np.ascontiguousarray(samples[:, place : place + 960])
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48_000, place
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    whole = load_audio(path, rate=16_000)
    offset = onsets(whole.samples[0], 16_000)[0] + whole.start
    assert offset == pytest.approx(0, abs=0.03)
    late = load_audio(path, rate=16_000, start=2.5, end=4.5)
    assert [t + late.start for t in onsets(late.samples[0], 16_000)] == pytest.approx(
        [3 + offset, 4 + offset], abs=0.004
    )


def test_sound_of_a_video_window_shares_the_clock_of_its_frames(plain: Path) -> None:
    video = load_video(plain, num_frames=2, start=1.0, end=3.0, audio_rate=8_000)
    assert video.audio is not None
    assert video.audio.start == pytest.approx(1.0, abs=1e-3) and video.audio.duration == pytest.approx(2.0, abs=1e-3)
    assert load_video(plain, num_frames=2).audio is None


def test_sound_that_ends_before_the_window_leaves_the_pictures(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", regular(100), sound=(16_000, 1.5))
    with pytest.warns(MediaWarning, match=r"a\.mp4: holds no sound .*; only its pictures are used"):
        video = load_video(path, num_frames=4, start=2, end=4, audio_rate=16_000)
    assert video.audio is None and len(video) == 4
    with pytest.raises(MediaLimitError, match="max_decoded_bytes"):
        load_video(path, num_frames=1, size=8, audio_rate=16_000, limits=MediaLimits(max_decoded_bytes=1000))


@pytest.mark.parametrize("step", [70, 64, 58])
@pytest.mark.parametrize("codec", ["pcm_s16le", "flac"])
def test_stated_times_that_drift_from_the_samples_are_followed(tmp_path: Path, step: int, codec: str) -> None:
    """Packets of 64 ms that are stated to come every `step` ms: each difference is too small to be a hole."""
    import av

    path, rate, count = tmp_path / "a.mkv", 8_000, 512
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(codec, rate=rate)
        stream.layout = "stereo"
        for number in range(400):
            samples = np.zeros((1, 2 * count), np.int16)
            samples[:, : 2 * 80] = 20_000 if number in (100, 200, 300) else 0  # a click at the start of the packet
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = rate, number * step * rate // 1000, Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    audio = load_audio(path, rate=rate)
    assert onsets(audio.samples[0], rate) == pytest.approx([step * n / 1000 for n in (100, 200, 300)], abs=0.06)
    assert audio.duration == pytest.approx(400 * step / 1000, abs=0.07)


def test_files_put_one_after_another_are_heard_to_the_end(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.ts", regular(50), sound=(16_000, 2.0))
    twice = load_audio(path.read_bytes() * 2, rate=16_000)
    assert twice.duration == pytest.approx(2 * load_audio(path, rate=16_000).duration, abs=0.1)


def test_a_video_without_sound(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", regular(5))
    with pytest.raises(ConfigError, match=r"audio_rate must be .*, not -5"):
        load_video(path, audio_rate=-5)
    assert load_video(path, audio_rate=16_000).audio is None
    with pytest.raises(MediaError, match=r"no sound track \(streams: video\)"):
        load_audio(path, rate=16_000)


def test_an_opus_bomb_is_stopped_while_it_streams(tmp_path: Path) -> None:
    import av

    path = tmp_path / "bomb.ogg"
    quiet = np.zeros((1, 48_000), np.float32)
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libopus", rate=48_000, options={"b": "500", "frame_duration": "60"})
        stream.layout = "mono"
        for second in range(900):
            frame = av.AudioFrame.from_ndarray(quiet, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48_000, second * 48_000
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    data = path.read_bytes()
    assert len(data) < 200_000  # 173 MB when decoded
    tracemalloc.start()
    for src in (data, _Endless(data)):
        with pytest.raises(MediaLimitError, match="max_decoded_bytes"):
            load_audio(src, rate=48_000, limits=MediaLimits(max_decoded_bytes=10_000_000))
        with pytest.raises(MediaLimitError, match="max_seconds"):
            load_audio(src, rate=48_000, limits=MediaLimits(max_seconds=60))
    assert tracemalloc.get_traced_memory()[1] < 25_000_000
    tracemalloc.stop()


class _Endless(io.BytesIO):
    """The same bytes as a file object."""


def test_damaged_packets_are_left_out_and_later_sound_stays_in_place(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    import av

    samples = clicks(16_000, 6.0)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as file:
        stream: Any = file.add_stream("aac", rate=16_000)
        stream.layout = "mono"
        for place in range(0, samples.shape[1], 1024):
            part = np.ascontiguousarray(samples[:, place : place + 1024])
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16_000, place
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat")
    middle = begin + (len(data) - begin) * 5 // 12  # about 2.5 s
    data[middle : middle + 600] = b"\xff" * 600
    with pytest.warns(MediaWarning, match="damaged packets of sound"):
        audio = load_audio(bytes(data), rate=16_000)
    found = [t + audio.start for t in onsets(audio.samples[0], 16_000)]
    for second in (1, 4, 5):
        assert min(abs(t - second) for t in found) < 0.03


@pytest.mark.parametrize(
    "request_",
    [
        {"rate": 0},
        {"rate": 2**40},
        {"rate": 8000.5},
        {"rate": 8000, "start": -1},
        {"rate": 8000, "start": 2, "end": 2},
        {"rate": 8000, "start": math.inf},
        {"rate": 8000, "start": math.nan},
        {"rate": 8000, "end": math.nan},
    ],
)
def test_senseless_requests(plain: Path, request_: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        load_audio(plain, **request_)


def test_a_window_behind_the_end(plain: Path) -> None:
    with pytest.raises(MediaError, match="no sound"):
        load_audio(plain, rate=8000, start=50)
