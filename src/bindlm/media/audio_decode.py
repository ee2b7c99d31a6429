"""From the bytes of a sound file to numbers, in blocks, with the limits asked at each block.

libsndfile reads what it can; FFmpeg, through PyAV, reads the rest. FFmpeg never guesses: it is told the one demuxer
that fits the first bytes, may use no other, may open nothing but the bytes at hand, and may decode sound alone.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from bindlm.errors import MediaError
from bindlm.media.audio_formats import CONVERT, Format, sniff
from bindlm.media.audio_limits import AudioLimits
from bindlm.media.names import Medium

_BLOCK = 262_144
"""Numbers decoded in one step, all channels together: 1 MiB."""
_UNKNOWN_LENGTH = 2**60
"""libsndfile states more frames than this where the header does not tell."""

_CODECS = (
    "aac,aac_latm,ac3,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,alac,amrnb,amrwb,eac3,flac,gsm_ms,libopus,libspeex,mp1,"
    "mp1float,mp2,mp2float,mp3,mp3float,opus,pcm_alaw,pcm_f32be,pcm_f32le,pcm_f64be,pcm_f64le,pcm_mulaw,pcm_s16be,"
    "pcm_s16le,pcm_s24be,pcm_s24le,pcm_s32be,pcm_s32le,pcm_s8,pcm_u8,speex,vorbis,wmapro,wmav1,wmav2"
)
"""Decoders FFmpeg may use: sound only, so that a film's pictures are never decoded while the file is probed."""

_INTEGER_SCALES = {"u8": 2.0**7, "s16": 2.0**15, "s32": 2.0**31}
"""FFmpeg's sample format -> full scale."""


def decode_audio(data: bytes, medium: Medium, limits: AudioLimits) -> tuple[np.ndarray, int]:
    """Decode a whole file.

    A file that is cut short or damaged gives what decodes before the damage, as players do; where nothing decodes it
    is an error.

    Args:
        data: The bytes of the file.
        medium: What to call it in messages.
        limits: Bounds, asked before the first block and at each.

    Returns:
        float32 `(C, S)` with S > 0, full scale 1, and the sample rate in Hz.

    Raises:
        MediaError: No sound format that is read, nothing decodes, or out of bounds.
    """
    found = sniff(data, medium)
    if found.is_for_soundfile:
        decoded = _decode_soundfile(data, medium, limits)
        if decoded is not None:
            return decoded
    if found.demuxer is not None:
        decoded = _decode_ffmpeg(data, found, medium, limits)
        if decoded is not None:
            return decoded
    raise medium.error(f"it starts like {found.name}, but no sound can be decoded from it", f"{CONVERT} anew")


class _Blocks:
    """What has been decoded so far, held to the limits."""

    def __init__(self, medium: Medium, limits: AudioLimits, num_channels: int, rate: int, num_bytes: int) -> None:
        limits.check_form(medium, num_channels, rate)
        self.medium, self.limits = medium, limits
        self.num_channels, self.rate, self.num_bytes = num_channels, rate, num_bytes
        self.num_samples = 0
        self.blocks: list[np.ndarray] = []

    def check(self, num_samples: int) -> None:
        self.limits.check_length(self.medium, self.num_channels, num_samples, self.rate, self.num_bytes)

    def append(self, block: np.ndarray) -> None:
        """Take `(C, S)` of float32."""
        self.num_samples += block.shape[1]
        self.check(self.num_samples)
        self.blocks.append(block)

    def join(self) -> tuple[np.ndarray, int] | None:
        """All of it; None where there is nothing. Blocks go as they are copied: joined at once they would need twice
        the memory."""
        if not self.num_samples:
            return None
        samples = np.empty((self.num_channels, self.num_samples), dtype=np.float32)
        self.blocks.reverse()
        begin = 0
        while self.blocks:
            block = self.blocks.pop()
            samples[:, begin : begin + block.shape[1]] = block
            begin += block.shape[1]
        return samples, self.rate


class _Bytes(io.BytesIO):
    """Bytes in which a seek to nowhere, as damaged headers ask for, leaves the place as it is, like C's.

    An exception in a callback of libsndfile would not reach us; its traceback would go to stderr.
    """

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def _decode_soundfile(data: bytes, medium: Medium, limits: AudioLimits) -> tuple[np.ndarray, int] | None:
    """What libsndfile makes of it; None where it makes nothing."""
    import soundfile

    try:
        file = soundfile.SoundFile(_Bytes(data))
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError):
        return None
    with file:
        blocks = _Blocks(medium, limits, file.channels, file.samplerate, len(data))
        if 0 <= file.frames < _UNKNOWN_LENGTH:
            blocks.check(file.frames)  # a header may lie, but one that admits too much needs no decoding
        step = max(1, _BLOCK // file.channels)
        while True:
            try:
                block = file.read(step, dtype="float32", always_2d=True)
            except (soundfile.SoundFileError, RuntimeError, ValueError, OverflowError):
                break  # damage; what came before stays
            if not len(block):
                break
            blocks.append(block.T)
    return blocks.join()


def _decode_ffmpeg(data: bytes, found: Format, medium: Medium, limits: AudioLimits) -> tuple[np.ndarray, int] | None:
    """What FFmpeg makes of the first sound track; None where it makes nothing."""
    import av

    assert found.demuxer is not None
    # The names of the demuxer as FFmpeg registers it; a whitelist is compared with them.
    names = av.ContainerFormat(found.demuxer, "r").name
    options = {"format_whitelist": names, "protocol_whitelist": "pipe", "codec_whitelist": _CODECS}
    blocks: _Blocks | None = None
    has_track = True
    try:
        with av.open(
            io.BytesIO(data), "r", format=found.demuxer, options=options, metadata_errors="ignore"
        ) as container:
            has_track = bool(container.streams.audio)
            for frame in _frames(container) if has_track else ():
                numbers = _numbers(frame)
                if numbers is None:
                    break
                if blocks is None:
                    blocks = _Blocks(medium, limits, numbers.shape[0], frame.sample_rate, len(data))
                if numbers.shape[0] != blocks.num_channels or frame.sample_rate != blocks.rate:
                    raise medium.error("its sample rate or channels change midway", f"{CONVERT} of one rate")
                blocks.append(numbers)
    except MediaError:  # also a ValueError
        raise
    except (av.FFmpegError, OSError, ValueError, RuntimeError, LookupError, TypeError, ArithmeticError, MemoryError):
        pass  # damage; what came before stays
    if not has_track:
        raise medium.error("it is a film or container without a sound track", "Give a file that holds sound")
    return blocks.join() if blocks is not None else None


def _frames(container: Any) -> Iterator[Any]:
    stream = container.streams.audio[0]
    if stream.codec_context is None or stream.codec_context.name not in _CODECS.split(","):
        return  # None: FFmpeg has no decoder for it
    stream.thread_type = "NONE"  # sound decodes fast; threads would only hold more of it in memory
    yield from container.decode(stream)


def _numbers(frame: Any) -> np.ndarray | None:
    """A decoded frame as float32 `(C, S)`, full scale 1; None for a sample format of another kind."""
    num_channels = frame.layout.nb_channels
    packed = frame.format.packed.name
    array = frame.to_ndarray()  # planar (C, S), packed (1, S C)
    if not frame.format.is_planar:
        array = array.reshape(-1, num_channels).T
    if packed in ("flt", "dbl"):
        with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are refused later, by name
            return np.array(array, dtype=np.float32)
    scale = _INTEGER_SCALES.get(packed)
    if scale is None:
        return None
    numbers = array.astype(np.float32)
    if packed == "u8":
        numbers -= 128.0
    return numbers / np.float32(scale)
