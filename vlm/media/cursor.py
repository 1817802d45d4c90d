"""One open video stream that yields the frames shown at given times, decoding as little as exactness allows.

How: a seek to the keyframe before the target, then packets in decoding order. Because `dts <= pts` for every packet, a
packet's successor on the screen is known once the read-ahead has passed it, so it is known *before* decoding which
packets carry wanted frames. Other frames that no frame refers to (H.264 says so in each packet) are skipped inside the
decoder, and the decoder is drained right after the last wanted packet instead of being fed further.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain, islice
from typing import TYPE_CHECKING

from vlm.media.limits import Deadline, MediaLimits
from vlm.media.probe import timed_by_decoding
from vlm.media.source import Source, open_container, packets_of, read_only

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer

_JUMP_SECONDS = 2.0  # without an index, targets further apart than this are reached by a seek
_UNSEEKABLE = {"h264", "hevc", "m4v", "mpegvideo", "obu", "mpeg"}
_LONG_GOP = 500  # packets held while looking for a later keyframe
_KEY_TRIES = 8  # packets; a keyframe may come as two fields, or be damaged
_LEADING = 16  # frames that may be decoded after a keyframe and shown before it
_HOLD_SECONDS = 0.5  # how long a last frame may stay on screen after a clean end of file


class Cursor:
    """Frames of one video stream by time. Used by one thread at a time.

    Args:
        container: An open container; the cursor closes it.
        stream: Its video stream.
        source: Name for messages.
        limits: Checked for every frame.
        deadline: Checked for every packet.
        threads: Threads of the decoder; one is cheapest in CPU time.

    Attributes:
        damaged: Packets the decoder refused so far.
        missing: Target times (ticks) for which the file holds no frame because it ends early.
        last_end: Ticks at which the last frame read before an early end stops being shown.
        reordered: True if times have to be told from the order of decoding; the first frame must be asked for first.
        cut_off: True once it is certain that the file is shorter than it was when it was written.
    """

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        source: Source,
        limits: MediaLimits,
        deadline: Deadline,
        threads: int = 1,
    ) -> None:
        self.damaged = 0
        self.missing: list[int] = []
        self.last_end: int | None = None
        self.cut_off = False
        self._source = source
        self._limits = limits
        self._deadline = deadline
        self._clock: int | None = None  # pts of the last frame that came out
        self._last_dts: int | None = None  # of the packets read since the last seek
        self._last_read: int | None = None  # largest pts of those packets
        self._cut = False  # the demuxer reported an error, not an end
        self._key: VideoFrame | None = None
        self._lag: int | None = None  # ticks by which the decoder runs ahead of the screen, where that has to be known
        self._threads = threads
        self._attach(container, stream.index)
        # Elementary streams carry no times, so libavformat cannot seek in them; in MPEG program streams it misses.
        self._seekable = container.format.name not in _UNSEEKABLE

    def _attach(self, container: InputContainer, index: int) -> None:
        stream = next(s for s in container.streams.video if s.index == index)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self.container = container
        self.stream = stream
        self.base = stream.time_base or Fraction(1)
        self._tick = max(1, round(1 / (rate * self.base)))  # ticks of one frame, for streams that give no times
        self._decoder = stream.codec_context
        self._decoder.options = {"max_pixels": str(self._limits.max_pixels)}
        self._decoder.thread_type = "AUTO" if self._threads > 1 else "NONE"
        self._decoder.thread_count = self._threads
        self._droppable = self._decoder.name == "h264"
        self._by_decoding = timed_by_decoding(container)
        self.reordered = self._by_decoding and bool(self._decoder.has_b_frames)
        self._lead = _LEADING * self._tick if self.reordered else 0
        self._fresh = True
        read_only(container, index)

    def close(self) -> None:
        """Close the container."""
        self.container.close()

    # ---------------------------------------------------------------- targets -> frames

    def frames_at(self, ticks: Sequence[int]) -> Iterator[VideoFrame]:
        """The frame being shown at each of the ascending `ticks`: the one with the largest pts <= tick.

        A tick before the first frame gives the first frame. Ticks after an early end are added to `missing`; nothing
        is yielded for them.
        """
        for group in self.groups(ticks):
            yield from self._pick(group)

    def _pick(self, ticks: Sequence[int]) -> Iterator[VideoFrame]:
        current: VideoFrame | None = None
        done = 0
        for frame in self._run(ticks):
            while done < len(ticks) and pts_of(frame) > ticks[done]:
                yield current or frame
                done += 1
            if done == len(ticks):
                return
            current = frame
        for tick in ticks[done:]:
            if current is not None and self._covers(current, tick):
                yield current
            else:
                self.missing.append(tick)
                self.cut_off |= self._ended_early()

    def _covers(self, frame: VideoFrame, tick: int) -> bool:
        """Is the last frame that could be decoded the one shown at `tick`, or does the file end before?"""
        if self._last_read is None or tick <= self._last_read:
            return True  # packets up to the target were there; what is missing was damaged, the picture stands still
        return tick <= self._note_end(frame) + self._hold()

    def _hold(self) -> int:
        return 0 if self._ended_early() else round(_HOLD_SECONDS / self.base)

    def _note_end(self, frame: VideoFrame) -> int:
        end = pts_of(frame) + max(frame.duration or 0, self._tick)
        self.last_end = max(end, self.last_end or end)
        return end

    def _ended_early(self) -> bool:
        """True if reading failed, or the container lists frames after the last packet there is."""
        index = self.stream.index_entries
        if self._cut or (self.container.format.name == "avi" and self.stream.frames > len(index)):
            return True
        listed = index[len(index) - 1].timestamp if len(index) else None
        return listed is not None and (self._last_dts is None or listed > self._last_dts)

    @property
    def _indexed(self) -> bool:
        """True if the container lists all frames up front (mp4 and avi do, fragments, cues and streams do not)."""
        return 0 < self.stream.frames < 2 * len(self.stream.index_entries)

    def groups(self, ticks: Sequence[int]) -> list[list[int]]:
        """Cut ascending target times where a seek saves decoding: at another keyframe (or, without index, at a gap)."""
        groups: list[list[int]] = []
        previous: tuple[int, int] | None = None
        jump = round(_JUMP_SECONDS / self.base)
        index = self.stream.index_entries
        listed = len(index) > 0 and (self._indexed or self.container.format.name.startswith("matroska"))
        if not self._seekable:
            return [list(ticks)]
        for tick in ticks:
            key = index.search_timestamp(tick, backward=True) if listed else -1
            same = previous is not None and (key == previous[0] if key >= 0 else tick - previous[1] <= jump)
            if same:
                groups[-1].append(tick)
            else:
                groups.append([tick])
            previous = key, tick
        return groups

    def frames_between(self, first: int, last: int) -> Iterator[VideoFrame]:
        """All frames shown in [first, last) ticks, in order, starting with the one shown at `first`."""
        waiting: VideoFrame | None = None
        end = first
        for frame in self._decode_all(self._seek(first - self._lead)):
            pts = pts_of(frame)
            end = self._note_end(frame)
            if pts >= last:
                break
            if pts <= first:
                waiting = frame
                continue
            if waiting is not None:
                yield waiting
                waiting = None
            yield frame
        if waiting is not None:
            yield waiting
        if end < last and self._ended_early():
            self.missing.append(last)
            self.cut_off = True

    def keyframe_at(self, tick: int) -> VideoFrame | None:
        """The nearest keyframe at or before `tick`, or the first one; None if it cannot be decoded.

        Asking for the same keyframe again returns the same object.
        """
        if self.reordered:  # only the packets after it tell its time
            return next(self._decode_all(self._seek(tick)), None)
        self._decoder.skip_frame = "NONKEY"
        for packet in islice(self._seek(tick), _KEY_TRIES):
            if self._key is not None and self._key.pts == packet.pts and packet.is_keyframe:
                return self._key
            for frame in [*self._decode(packet), *self._decode(None)]:
                self._key = frame
                return frame
            self._decoder.flush_buffers()
        return None

    def times_at(self, ticks: Sequence[int]) -> list[int] | None:
        """Times of the frames that `frames_at` would yield, read off the packets: nothing is decoded.

        None where packets do not tell: they have no times, or the file ends early.
        """
        if self._by_decoding:
            return None
        found: list[int] = []
        for group in self.groups(ticks):
            shown: list[int] = []
            for packet in self._seek(group[0]):
                if packet.pts is None:
                    return None
                if not packet.is_discard and not packet.is_corrupt:
                    insort(shown, packet.pts)
                if len(shown) - bisect_right(shown, group[-1]) > _LEADING:  # no codec reorders more frames
                    break
            else:
                if not shown or group[-1] > shown[-1] + max(self._tick, self._hold()):
                    return None
            found += [shown[max(0, bisect_right(shown, tick) - 1)] for tick in group]
        return found

    # ---------------------------------------------------------------- packets -> frames

    def _run(self, ticks: Sequence[int]) -> Iterator[VideoFrame]:
        """Decode from the keyframe before ``ticks[0]`` until the frames for all `ticks` have come out."""
        for packet, wanted, done in self._plan(self._seek(ticks[0] - self._lead), ticks):
            self._decoder.skip_frame = "DEFAULT" if wanted or not self._droppable else "NONREF"
            yield from self._decode(packet)
            if done:
                break
        yield from self._decode(None)

    def _plan(self, packets: Iterator[Packet], ticks: Sequence[int]) -> Iterator[tuple[Packet, bool, bool]]:
        """Tell for each packet, in decoding order, whether a target needs its frame and whether it is the last such."""
        ahead: deque[Packet] = deque()
        shown: list[int] = []  # pts of all packets read, ascending
        open_targets = len(ticks)

        def judge(packet: Packet) -> tuple[Packet, bool, bool]:
            nonlocal open_targets
            begin = packet.pts or 0
            place = bisect_right(shown, begin)
            low = bisect_left(ticks, begin) if bisect_left(shown, begin) else 0
            high = bisect_left(ticks, shown[place]) if place < len(shown) else len(ticks)
            open_targets -= max(0, high - low)
            return packet, high > low, open_targets <= 0

        for packet in packets:
            if packet.pts is None or packet.dts is None or self.reordered:  # times say little: decode everything
                yield from ((waiting, True, False) for waiting in [*ahead, packet])
                ahead.clear()
                open_targets = 1 << 62
                continue
            ahead.append(packet)
            insort(shown, packet.pts)
            while ahead and self._settled(shown, ahead[0].pts or 0, packet.dts):
                yield judge(ahead.popleft())
        for packet in ahead:
            yield judge(packet)

    @staticmethod
    def _settled(shown: list[int], pts: int, dts: int) -> bool:
        """Is the successor of `pts` on screen known, given that packets still to come have pts >= `dts`?"""
        place = bisect_right(shown, pts)
        return place < len(shown) and shown[place] <= dts

    def _decode_all(self, packets: Iterator[Packet]) -> Iterator[VideoFrame]:
        self._decoder.skip_frame = "DEFAULT"
        for packet in packets:
            yield from self._decode(packet)
        yield from self._decode(None)

    def _decode(self, packet: Packet | None) -> list[VideoFrame]:
        """Frames that come out after feeding one packet (None drains). Damaged packets are counted and left out."""
        import av

        try:
            frames = self._decoder.decode(packet)
        except av.error.EOFError:
            return []
        except (av.FFmpegError, MemoryError):
            self.damaged += 1
            return []
        for frame in frames:
            self._limits.check_pixels(self._source.name, frame.width, frame.height)
            if self.reordered:
                frame.pts = self._time_by_decoding(frame)
            if frame.pts is None:
                frame.pts = 0 if self._clock is None else self._clock + self._tick
            self._clock = frame.pts
        return frames

    def _time_by_decoding(self, frame: VideoFrame) -> int | None:
        """Time of the next frame on screen: that of the packet which made the decoder give it, less the decoder's lag."""
        if frame.dts is None:
            return None
        if self._lag is None:  # the first frame of the file
            self._lag = frame.dts - (self.stream.start_time or 0)
        return frame.dts - self._lag

    # ---------------------------------------------------------------- bytes -> packets

    def _seek(self, tick: int) -> Iterator[Packet]:
        """Packets in decoding order from a keyframe that is shown at or before `tick` (or from the start)."""
        start = self.stream.start_time or 0
        target, step = max(tick, start), round(1 / self.base)
        while self._seekable and target > start:
            packets = self._packets_from(target)
            first = next((p for p in packets if p.is_keyframe), None)
            if first is not None and (first.pts is None or first.pts <= tick):
                return self._from_last_key(first, packets, tick)
            if first is not None and first.dts is not None and first.dts <= target:
                target = first.dts - 1  # containers seek by decoding time, which comes before the time on screen
            else:
                target, step = target - step, step * 2
        packets = self._packets_from(min(start, 0) if self._seekable else None)
        first = next(packets, None)
        return packets if first is None else self._from_last_key(first, packets, tick)

    def _from_last_key(self, first: Packet, packets: Iterator[Packet], tick: int) -> Iterator[Packet]:
        """Drop what lies before the right keyframe, where a seek came out too early for want of a full index."""
        index = self.stream.index_entries
        if self._indexed and first.dts is not None:
            key = index.search_timestamp(tick, backward=True)
            if key >= 0 and index[key].timestamp <= first.dts:
                return chain([first], packets)
        ahead = [first]
        for packet in packets:
            if packet.is_keyframe and packet.pts is not None and packet.pts <= tick:
                ahead.clear()
            ahead.append(packet)
            if packet.dts is None or packet.dts > tick or len(ahead) > _LONG_GOP:
                break
        return chain(ahead, packets)

    def _packets_from(self, target: int | None) -> Iterator[Packet]:
        import av

        self._clock = self._last_dts = self._last_read = None
        self._cut = False
        try:
            if target is not None:
                self.container.seek(target, stream=self.stream, backward=True)
        except (av.FFmpegError, OSError):
            self._seekable = False
        if not self._seekable:
            self._rewind()
        self._fresh = False
        return self._packets()

    def _rewind(self) -> None:
        """Start over in a stream that cannot be sought in, by opening it again."""
        if self._fresh:
            return
        index = self.stream.index
        self.container.close()
        self._attach(open_container(self._source, self._limits), index)

    def _packets(self) -> Iterator[Packet]:
        import av

        try:
            for packet in packets_of(self.container, self.stream):
                self._deadline.check(self._source.name)
                if packet.size == 0 and packet.pts is None:
                    return
                if self._by_decoding:
                    packet.pts = packet.dts
                if packet.dts is not None:
                    self._last_dts = max(packet.dts, self._last_dts or packet.dts)
                if packet.pts is not None:
                    self._last_read = max(packet.pts, self._last_read or packet.pts)
                yield packet
        except av.FFmpegError:
            self._cut = True


def pts_of(frame: VideoFrame) -> int:
    """Presentation time of a frame in ticks; the cursor has filled in missing ones."""
    return frame.pts or 0
