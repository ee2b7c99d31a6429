"""Small films whose frames show their own number, so that a test can read which one it got."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from functools import cache

import av
import numpy as np

SIZE = (64, 48)
_BITS = 8
_PIXEL_FORMATS = {"gif": "rgb8", "mjpeg": "yuvj420p", "ffv1": "yuv444p"}


def numbered_frame(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """RGB `(H, W, 3)`: the upper half is 8 fields, black or white, the bits of the number; below, noise and colour."""
    width, height = size
    frame = np.random.default_rng(number).integers(60, 90, (height, width, 3)).astype(np.uint8)
    frame[height // 2 :, : width // 3] = (200, 40, 40)
    bits = np.array([number >> bit & 1 for bit in range(_BITS)], dtype=np.uint8) * 255
    frame[: height // 2] = np.repeat(bits, -(-width // _BITS))[:width][None, :, None]
    return frame


def shown_number(frame: np.ndarray) -> int:
    """The number that a frame shows."""
    height, width = frame.shape[:2]
    step = -(-width // _BITS)
    row = frame[2 : height // 2 - 2, :, 1].mean(axis=0)
    return sum(int(row[bit * step + step // 2] > 128) << bit for bit in range(_BITS))


@cache
def film(
    container: str = "mp4",
    codec: str = "libx264",
    num_frames: int = 50,
    rate: Fraction | int = 25,
    size: tuple[int, int] = SIZE,
    options: tuple[tuple[str, str], ...] = (),
    times: Sequence[int] | None = None,
    with_sound: bool = False,
    container_options: tuple[tuple[str, str], ...] = (),
) -> bytes:
    """The bytes of a film; `times` are those of the frames in units of 1 / 1000 s, else they come at `rate`."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=dict(container_options)) as output:
        stream = output.add_stream(codec, rate=rate, options=dict(options))
        stream.width, stream.height = size
        stream.pix_fmt = _PIXEL_FORMATS.get(codec, "yuv420p")
        stream.codec_context.thread_count = 1
        sound = (
            output.add_stream("mp2" if container in ("mpegts", "avi") else "aac", rate=16_000) if with_sound else None
        )
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if sound is not None:
            for start in range(0, int(num_frames * 16_000 / rate), 1152):
                samples = np.zeros((1, 1152), dtype=np.int16)
                block = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
                block.sample_rate, block.pts = 16_000, start
                output.mux(sound.encode(block))
            output.mux(sound.encode())
    return buffer.getvalue()


@cache
def sound(container: str, codec: str) -> bytes:
    """A file of sound alone."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=16_000 if codec != "libopus" else 48_000)
        for start in range(0, 8_064, 1_152):
            layout = stream.codec_context.layout.name
            samples = np.zeros((1, 1152 * len(stream.codec_context.layout.channels)), dtype=np.int16)
            block = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
            block.sample_rate, block.pts = stream.codec_context.sample_rate, start
            output.mux(stream.encode(block))
        output.mux(stream.encode())
    return buffer.getvalue()
