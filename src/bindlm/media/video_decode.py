"""From the bytes of a video file to the few frames that are needed, by FFmpeg (PyAV), within limits.

The film is read twice. The first reading only lists the packets: when each is shown, and which can be decoded without
those before it. From that list the frames are picked. The second reading decodes from the key frame before each picked
frame to the frame itself, skips what lies between, and keeps the picked frames only.

Lists of packets can be wrong (raw streams carry no times, AVI knows no B-frames, some packets give no picture), so
what comes out of the decoder is compared with the list; at the first difference all frames are decoded and counted
instead.
"""

from __future__ import annotations

import io
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from bindlm.errors import MediaError
from bindlm.media.names import Medium
from bindlm.media.video_container import CODECS, check_structure, damaged, formats, no_picture, unknown
from bindlm.media.video_limits import VideoLimits
from bindlm.media.video_sampling import Timeline

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

_MAX_THREADS = 4
_THREADED_PIXELS = 500_000
"""Smaller frames are decoded by one thread: more would cost more than they save."""
_DEFAULT_RATE = Fraction(25)
"""Frames a second of a raw stream that states none, as FFmpeg takes it."""
_BROADCAST = ("mpegts", "mpeg")
"""Formats made for broadcasting, which begin and break anywhere: a mark of damage on a packet is no news there."""

Pick = Callable[[Timeline], np.ndarray]


@dataclass
class _Packets:
    """What the first reading found, in the order of decoding, from the first key frame on."""

    times: list[int | None] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    """Numbers of the packets that decoding can start from, ascending."""
    hidden: set[int] = field(default_factory=set)
    """Numbers of those that are decoded and not shown (what an edit list cuts off)."""
    last_duration: int = 0
    tick_s: Fraction = Fraction(1)
    rate: Fraction = _DEFAULT_RATE


@dataclass
class _Kept:
    """The picked frames, in one array that is reserved when the first of them is known."""

    count: int
    medium: Medium
    limits: VideoLimits
    frames: np.ndarray | None = None
    filled: int = 0

    def add(self, frame: VideoFrame) -> None:
        self.limits.check_size(self.medium, frame.width, frame.height)
        pixels = _upright(frame)
        if self.frames is None:
            self.limits.check_kept(self.medium, self.count, frame.width, frame.height)
            self.frames = np.empty((self.count, *pixels.shape), dtype=np.uint8)
        if self.frames.shape[1:] != pixels.shape:
            raise self.medium.error(
                "the size of its frames changes on the way", "Write it anew in one size, for example with ffmpeg"
            )
        self.frames[self.filled] = pixels
        self.filled += 1


def decode_video(
    data: bytes, medium: Medium, limits: VideoLimits, pick: Pick
) -> tuple[np.ndarray, np.ndarray, Timeline]:
    """Decode the frames that `pick` chooses.

    Returns:
        The distinct picked frames in order, uint8 RGB `(N, H, W, 3)`; what `pick` gave; and the times it was given.

    Raises:
        MediaError: Not a video, damaged, or out of bounds. Never an error of the decoder.
    """
    with decoder_errors(medium):
        check_structure(data, medium)
        packets = _list_packets(data, medium, limits)
        spent = _Spent(medium, limits)
        if (timeline := _planned(packets)) is not None:
            limits.check_seconds(medium, timeline.duration_s)
            index = pick(timeline)
            frames = _decode_planned(data, medium, limits, packets, np.unique(index).tolist(), spent)
            if frames is not None:
                return frames, index, timeline
        timeline = _count_frames(data, medium, limits, packets, spent)
        index = pick(timeline)
        return _decode_counted(data, medium, limits, np.unique(index).tolist(), spent), index, timeline


@contextmanager
def decoder_errors(medium: Medium) -> Iterator[None]:
    """Turn whatever FFmpeg and PyAV raise into a `MediaError` that says the file is damaged."""
    try:
        yield
    except MediaError:
        raise
    except MemoryError:
        raise medium.error("there is not enough memory to decode it", "Shrink the video") from None
    except Exception:  # PyAV: FFmpegError in a dozen classes, ValueError, RuntimeError, UnicodeDecodeError ...
        raise damaged(medium) from None


@dataclass
class _Spent:
    """Pixels decoded so far, in all readings together."""

    medium: Medium
    limits: VideoLimits
    pixels: int = 0

    def add(self, frame: VideoFrame) -> None:
        self.pixels += frame.width * frame.height
        self.limits.check_decoded(self.medium, self.pixels)


@contextmanager
def _opened(data: bytes, medium: Medium, limits: VideoLimits) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its first track of moving pictures."""
    import av
    from av.stream import Disposition

    options = {
        "format_whitelist": formats(data),
        "protocol_whitelist": "pipe",
        # Opening alone would decode the first frames, of any codec and size, before either can be asked for. With no
        # decoder allowed, the headers and parsers tell enough; our own decoder is made below, within limits.
        "codec_whitelist": "none",
        "max_streams": "100",
    }
    try:
        container = av.open(io.BytesIO(data), "r", options=options, metadata_errors="ignore")
    except MemoryError:
        raise
    except Exception:
        raise unknown(data, medium) from None
    with container:
        tracks = [track for track in container.streams.video if not track.disposition & Disposition.attached_pic]
        if not tracks:
            raise no_picture(medium)
        track = tracks[0]
        context = track.codec_context
        if context is None or context.codec.name not in CODECS:
            raise medium.error("the way its picture is compressed is not read", "Convert it to MP4 (H.264)")
        if context.width or context.height:  # some formats tell only as they are decoded
            limits.check_size(medium, context.width, context.height)
        context.options = {"max_pixels": str(limits.max_pixels + 64 * (2 * limits.max_side + 64))}  # sides are padded
        is_large = context.width * context.height >= _THREADED_PIXELS
        context.thread_count = min(_MAX_THREADS, os.cpu_count() or 1) if is_large else 1
        context.thread_type = "AUTO"
        yield container, track


def _packets_of(container: InputContainer, track: VideoStream) -> Iterator[Any]:
    """The packets that hold something, from the first key frame on; all, where none is marked as one."""
    has_key = False
    before: list[Any] = []
    for packet in container.demux(track):
        if not packet.size:  # the end; or "as before" in AVI, and sent on, it would be taken for the end
            continue
        if not has_key:
            if packet.is_keyframe:
                has_key, before = True, []
            elif len(before) < 1000:
                before.append(packet)
                continue
            else:
                has_key = True
                yield from before
        yield packet
    if not has_key:
        yield from before


def _list_packets(data: bytes, medium: Medium, limits: VideoLimits) -> _Packets:
    packets = _Packets()
    with _opened(data, medium, limits) as (container, track):
        is_strict = container.format.name not in _BROADCAST
        packets.tick_s = Fraction(track.time_base or 1)
        packets.rate = Fraction(track.average_rate or track.guessed_rate or _DEFAULT_RATE)
        least = most = None
        for number, packet in enumerate(_packets_of(container, track)):
            if packet.is_corrupt and is_strict:
                raise damaged(medium)
            limits.check_num_frames(medium, number + 1)
            packets.times.append(packet.pts)
            if packet.is_keyframe or not number:
                packets.keys.append(number)
            if packet.is_discard:
                packets.hidden.add(number)
            elif packet.pts is not None:
                least = packet.pts if least is None else min(least, packet.pts)
                if most is None or packet.pts >= most:
                    most, packets.last_duration = packet.pts, packet.duration or 0
                limits.check_seconds(medium, float((most - least) * packets.tick_s))
    if not packets.times:
        raise medium.error("it holds no frame", "Copy or download it again")
    return packets


def _shown(packets: _Packets) -> list[int] | None:
    """Presentation times in ascending order; None unless all are known and differ."""
    shown = []
    for number, time in enumerate(packets.times):
        if number in packets.hidden:
            continue
        if time is None:
            return None
        shown.append(time)
    shown.sort()
    is_ascending = all(a < b for a, b in zip(shown, shown[1:], strict=False))
    return shown if shown and is_ascending else None


def _planned(packets: _Packets) -> Timeline | None:
    shown = _shown(packets)
    return None if shown is None else _timeline(shown, packets.last_duration, packets.tick_s, packets.rate)


def _timeline(shown: list[int], last_duration: int, tick_s: Fraction, rate: Fraction) -> Timeline:
    if last_duration <= 0:  # not stated: as long as the one before, else as the rate says
        last_duration = shown[-1] - shown[-2] if len(shown) > 1 else max(round(1 / rate / tick_s), 1)
    ticks = [time - shown[0] for time in shown]
    return Timeline(ticks, tick_s, ticks[-1] + last_duration)


def _starts(packets: _Packets, wanted: list[int]) -> list[int] | None:
    """The packet to decode from for each wanted time: the last key frame that is not shown after it."""
    numbers = {time: number for number, time in enumerate(packets.times) if number not in packets.hidden}
    starts: list[int] = []
    for time in wanted:
        place = bisect_left(packets.keys, numbers[time] + 1) - 1
        while place >= 0:
            key_time = packets.times[packets.keys[place]]
            if key_time is not None and key_time <= time:
                break
            place -= 1  # it is decoded after the key frame and shown before it: it may need what came earlier
        if place < 0:
            return None
        starts.append(packets.keys[place])
    return starts


def _decode_planned(
    data: bytes, medium: Medium, limits: VideoLimits, packets: _Packets, numbers: list[int], spent: _Spent
) -> np.ndarray | None:
    """The frames of these numbers; None if the decoder's frames are not those that the list of packets promised."""
    import av

    shown = _shown(packets)
    assert shown is not None
    wanted = [shown[number] for number in numbers]
    starts = _starts(packets, wanted)
    if starts is None:
        return None
    kept = _Kept(len(wanted), medium, limits)
    is_decoding, place, first_time = False, 0, shown[0]
    try:
        with _opened(data, medium, limits) as (container, track):
            for number, packet in enumerate(_and_end(_packets_of(container, track))):
                if packet is not None and (starts[kept.filled] > number or number >= len(packets.times)):
                    is_decoding = False
                    continue
                if not is_decoding:
                    if packet is None:
                        return None
                    if number:
                        track.codec_context.flush_buffers()
                    first_time = packets.times[number] or 0
                    is_decoding, place = True, bisect_left(shown, first_time)
                for frame in track.decode(packet):
                    spent.add(frame)
                    if frame.pts is None:
                        return None
                    if frame.pts < first_time:
                        continue  # needs what was skipped; it is shown before what is wanted
                    if place >= len(shown) or frame.pts != shown[place] or frame.is_corrupt:
                        return None
                    place += 1
                    if frame.pts == wanted[kept.filled]:
                        kept.add(frame)
                        if kept.filled == len(wanted):
                            return kept.frames
    except av.FFmpegError:
        return None  # perhaps by starting in the middle; if not, decoding all of it will say so
    return None


def _and_end(packets: Iterator[Any]) -> Iterator[Any]:
    """The packets, and None, which has a decoder give what it still holds."""
    yield from packets
    yield None


def _all_frames(data: bytes, medium: Medium, limits: VideoLimits, spent: _Spent) -> Iterator[VideoFrame]:
    with _opened(data, medium, limits) as (container, track):
        for packet in _and_end(_packets_of(container, track)):
            for frame in track.decode(packet):
                spent.add(frame)
                if frame.is_corrupt:
                    raise damaged(medium)
                yield frame


def _count_frames(data: bytes, medium: Medium, limits: VideoLimits, packets: _Packets, spent: _Spent) -> Timeline:
    """The times of the frames by decoding them all; where they carry none that ascend, by their rate."""
    times: list[int | None] = []
    last_duration = 0
    for frame in _all_frames(data, medium, limits, spent):
        times.append(frame.pts)
        last_duration = getattr(frame, "duration", 0) or 0
        limits.check_num_frames(medium, len(times))
    if not times:
        raise damaged(medium)
    known = [time for time in times if time is not None]
    if len(known) == len(times) and all(a < b for a, b in zip(known, known[1:], strict=False)):
        timeline = _timeline(known, last_duration, packets.tick_s, packets.rate)
    else:
        timeline = Timeline(range(len(times)), 1 / packets.rate, len(times))
    limits.check_seconds(medium, timeline.duration_s)
    return timeline


def _decode_counted(data: bytes, medium: Medium, limits: VideoLimits, numbers: list[int], spent: _Spent) -> np.ndarray:
    kept = _Kept(len(numbers), medium, limits)
    for number, frame in enumerate(_all_frames(data, medium, limits, spent)):
        if number == numbers[kept.filled]:
            kept.add(frame)
            if kept.filled == len(numbers):
                break
    if kept.frames is None or kept.filled != len(numbers):
        raise damaged(medium)
    return kept.frames


def _upright(frame: VideoFrame) -> np.ndarray:
    """RGB pixels `(H, W, 3)`, turned and mirrored as the file says; other turns than quarters are left out."""
    pixels = frame.to_ndarray(format="rgb24")
    side_data: Any = frame.side_data
    try:
        matrix = np.frombuffer(bytes(side_data["DISPLAYMATRIX"]), dtype=np.int32)
    except KeyError:
        return pixels
    except ValueError:  # PyAV 18 knows not all kinds of side data; at one that it does not, none can be asked for
        return np.rot90(pixels, round(frame.rotation / 90))
    # A point (x, y) is shown at (a x + c y, b x + d y), up to a shift, with y downwards.
    a, b, c, d = (int(value) for value in (matrix[0], matrix[1], matrix[3], matrix[4]))
    if min(abs(a), abs(d)) > 1000 * max(abs(b), abs(c)):
        return pixels[:: 1 if d > 0 else -1, :: 1 if a > 0 else -1]
    if min(abs(b), abs(c)) > 1000 * max(abs(a), abs(d)):
        return pixels.transpose(1, 0, 2)[:: 1 if b > 0 else -1, :: 1 if c > 0 else -1]
    return pixels
