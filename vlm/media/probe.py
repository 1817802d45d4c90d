"""Facts about a file from its container: stream choice, clock, duration."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from vlm.errors import MediaError
from vlm.media.limits import Deadline, MediaLimits
from vlm.media.source import Source, open_container, packets_of

if TYPE_CHECKING:
    from av import AudioStream, VideoStream
    from av.container import InputContainer


def video_stream(container: InputContainer, source: Source) -> VideoStream:
    """The main video stream.

    Raises:
        MediaError: There is none, or no decoder for it.
    """
    from av.stream import Disposition

    cover = Disposition.attached_pic  # the cover art of a song
    streams = [s for s in container.streams.video if not s.disposition & cover]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
        raise MediaError(source.name, f"has no video stream (streams: {kinds})")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    check_decoder(stream, source)
    return stream


def audio_stream(container: InputContainer) -> AudioStream | None:
    """The main sound track, None if there is none."""
    return container.streams.audio[0] if container.streams.audio else None


def check_decoder(stream: VideoStream | AudioStream, source: Source) -> None:
    """Raise `MediaError` if nothing decodes the stream or its clock is unusable."""
    if stream.codec_context is None:
        raise MediaError(source.name, f"has a {stream.type} stream in a format that no decoder is known for")
    if not stream.time_base:
        raise MediaError(source.name, f"has a {stream.type} stream without a time base")


def presentation_zero(container: InputContainer, video: VideoStream | None, begin: int | None) -> Fraction:
    """Container time in seconds at which a player's clock shows 0.

    That is the earlier of the first video frame and the first audible sound. Sound before 0 is the encoder's priming,
    which is not presented, and therefore does not count.

    Args:
        container: The file.
        video: Its video stream if it has one,
        begin: and the time of that stream's first frame in ticks.
    """
    starts = []
    if video is not None and begin is not None and video.time_base:
        starts.append(begin * video.time_base)
    audio = audio_stream(container)
    if audio is not None and audio.start_time is not None and audio.time_base:
        starts.append(max(audio.start_time * audio.time_base, Fraction(0)))
    return min(starts, default=Fraction(0))


def timed_by_decoding(container: InputContainer) -> bool:
    """True where the only true times are those of decoding: AVI says nothing of when a frame is shown, and libavformat's guess is
    often wrong. In the order of the screen, the n-th frame has the time of the n-th packet."""
    return container.format.name == "avi"


def stated_end(
    container: InputContainer, stream: VideoStream | AudioStream, first: int | None = None
) -> Fraction | None:
    """Container time in seconds at which the container says the stream, which begins at `first` ticks, ends.

    None if it does not say: MPEG program streams give an estimate only, and where Matroska states one length for several
    streams together, this one may be shorter.
    """
    if container.format.name == "mpeg":
        return None
    base = stream.time_base or Fraction(0)
    begin = ((first if stream.start_time is None else stream.start_time) or 0) * base
    if stream.duration is not None and stream.duration > 0:
        return begin + stream.duration * base
    tag = _parse_clock(stream.metadata.get("DURATION", ""))  # Matroska's per-stream duration
    if tag:
        return max(tag, begin)
    together = container.format.name.startswith("matroska") and len(container.streams) > 1
    if container.duration is not None and container.duration > 0 and not together:
        return Fraction((container.start_time or 0) + container.duration, 1_000_000)
    return None


def scanned_end(container: InputContainer, stream: VideoStream | AudioStream, deadline: Deadline) -> Fraction | None:
    """Container time in seconds at which the stream ends, by reading (not decoding) all of its packets."""
    import av

    end, name = None, container.name
    rate = getattr(stream, "average_rate", None)
    usual = (
        round(1 / (rate * stream.time_base)) if rate and stream.time_base else 0
    )  # ticks of a frame that states no duration
    try:
        for packet in packets_of(container, stream):
            deadline.check(name)
            if packet.pts is not None and packet.time_base:
                last = (packet.pts + (packet.duration or usual)) * packet.time_base
                end = last if end is None else max(end, last)
    except av.FFmpegError:
        pass  # a cut file: what was read up to here is its length
    return end


def presentation_times(source: Source, limits: MediaLimits) -> np.ndarray:
    """Container times in seconds of all frames that are presented, ascending, by reading (not decoding) the packets.

    Returns:
        float64 [T].
    """
    import av

    deadline = Deadline(limits.max_wall_seconds)
    times: list[float] = []
    with open_container(source, limits) as container:
        stream = video_stream(container, source)
        by_decoding = timed_by_decoding(container)
        try:
            for packet in packets_of(container, stream):
                deadline.check(source.name)
                shown = packet.dts if by_decoding else packet.pts
                if shown is not None and packet.time_base and not packet.is_discard:
                    times.append(float(shown * packet.time_base))
        except av.FFmpegError:
            pass  # a cut file: the times up to here
    return np.sort(np.asarray(times, dtype=np.float64))


def find_duration(
    container: InputContainer,
    stream: VideoStream | AudioStream,
    first: int | None,
    zero: Fraction,
    source: Source,
    limits: MediaLimits,
    deadline: Deadline,
) -> float | None:
    """Seconds from `zero` to the end of the stream, which begins at `first` ticks; None if nothing tells.

    Checked against the limits. Reads through the file if its header does not state a duration (for instance recordings
    made by a browser); the caller has to seek before it reads on.
    """
    end = stated_end(container, stream, first)
    if end is None:
        end = scanned_end(container, stream, deadline)
    if end is None:
        return None
    seconds = float(end - zero)
    limits.check_seconds(source.name, seconds)
    return max(seconds, 0.0)


def _parse_clock(text: str) -> Fraction | None:
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)\0*", text.strip())
    if match is None:
        return None
    return int(match[1]) * 3600 + int(match[2]) * 60 + Fraction(match[3])
