"""One sound, from anywhere, as float32 samples with their rate."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from bindlm.media.audio_decode import decode_audio
from bindlm.media.audio_limits import AudioLimits
from bindlm.media.image_array import is_tensor
from bindlm.media.limits import UrlLimits
from bindlm.media.names import Medium
from bindlm.media.source import describe, read_bytes

_SCALES = {"i2": 2.0**15, "i4": 2.0**31, "u1": 2.0**7}
"""Integer type of an array -> full scale."""


@dataclass(frozen=True, eq=False)
class Audio:
    """A sound in memory. Made by hand it is checked for its form; `load_audio` asks the limits too."""

    samples: np.ndarray
    """float32 `(C, S)`, finite, at least one of each; full scale is 1, and lossy decoders overshoot it a little."""
    sample_rate_hz: int
    """Samples a second of each channel."""

    def __post_init__(self) -> None:
        medium = _describe(self, None)
        samples = self.samples
        if not isinstance(samples, np.ndarray) or samples.ndim != 2 or samples.dtype != np.float32:
            cure = "Use load_audio(array, sample_rate_hz=...), which converts"
            raise medium.error("its samples are no float32 array of shape (channels, samples)", cure)
        if 0 in samples.shape:
            raise medium.error("it holds no sample", "Give at least one")
        rate = self.sample_rate_hz
        if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or rate < 1:
            raise medium.error("its sample rate is no whole number of at least 1 Hz", "Give the rate in Hz")
        object.__setattr__(self, "sample_rate_hz", int(rate))
        object.__setattr__(self, "samples", np.ascontiguousarray(samples))
        if not np.isfinite(self.peak):
            raise medium.error("it holds NaN or infinity", "Replace them, for example with numpy.nan_to_num")

    @property
    def seconds(self) -> float:
        """Length in time."""
        return self.samples.shape[1] / self.sample_rate_hz

    @property
    def peak(self) -> float:
        """Largest absolute value; NaN if any is (minimum and maximum pass it on, and need no array beside it)."""
        return float(np.maximum(self.samples.max(), -self.samples.min()))


def load_audio(
    source: str | os.PathLike[Any] | bytes | IO[bytes] | Audio | np.ndarray | Any,
    *,
    limits: AudioLimits = AudioLimits(),
    allow_url: bool | UrlLimits = False,
    name: str | None = None,
    sample_rate_hz: int | None = None,
) -> Audio:
    """Read a sound: all channels at their own rate, as float32 of full scale 1.

    The format is told by the content: WAV, FLAC, Ogg (Vorbis, Opus), MP3, AIFF, AU, CAF and Wave64; AAC, AMR, WMA, and
    the first sound track of MP4 (M4A, MOV), WebM (Matroska) and AVI. A file that is cut short or damaged gives what
    decodes before the damage, as players do; where nothing decodes it is an error. Channels are neither mixed nor is
    anything resampled, clipped or made louder.

    Args:
        source: One of

            - a path, as `str` or `os.PathLike`, of a regular file;
            - an `http(s)://` address, if `allow_url`; or a `data:...;base64,` address;
            - the bytes of a file, or a file opened with mode `rb` (read from where it stands, left open);
            - an `Audio`;
            - a numpy array or torch tensor `(C, S)` or `(S,)` of floats from -1 to 1, or of int16, int32 or uint8, of
              which 32768, 2147483648 and 128 (from 128) are full scale; with `sample_rate_hz`.
        limits: Bounds on bytes, seconds, samples, channels and rate, enforced before and while decoding.
        allow_url: Whether addresses of the web are fetched; `UrlLimits` says within which bounds.
        name: What to call the sound in messages, in place of its path or a description.
        sample_rate_hz: Rate of an array, in Hz. With any other source it must agree with the source's own.

    Raises:
        MediaError: Whatever is wrong with the source, with its name, the reason, and what to do.

    Example:
        >>> import numpy as np
        >>> load_audio(np.zeros(8_000, dtype=np.int16), sample_rate_hz=16_000).seconds
        0.5
    """
    medium = _describe(source, name)
    if isinstance(source, Audio):
        samples, rate = source.samples, source.sample_rate_hz
        limits.check_form(medium, samples.shape[0], rate)
        limits.check_length(medium, samples.shape[0], samples.shape[1], rate)
    elif isinstance(source, np.ndarray) or is_tensor(source):
        samples, rate = _from_array(source, medium, limits, sample_rate_hz)
    else:
        data = read_bytes(source, medium, max_bytes=limits.max_bytes, allow_url=allow_url)
        samples, rate = decode_audio(data, medium, limits)
    if sample_rate_hz is not None and sample_rate_hz != rate:
        raise medium.error(f"its sample rate is {rate} Hz, not sample_rate_hz={sample_rate_hz!r}", "Leave it out")
    _check_values(samples, medium, limits)
    return Audio(samples, rate)


def _describe(source: Any, name: str | None) -> Medium:
    if name is None and isinstance(source, Audio):
        return Medium("sound", f"<Audio, shape {getattr(source.samples, 'shape', None)}>")
    if name is None and (isinstance(source, np.ndarray) or is_tensor(source)):
        what = "array" if isinstance(source, np.ndarray) else "tensor"
        return Medium("sound", f"<{what}, shape {tuple(source.shape)}>")
    return describe(source, "sound", name)


def _from_array(source: Any, medium: Medium, limits: AudioLimits, rate: Any) -> tuple[np.ndarray, int]:
    """Float32 `(C, S)` of an array or tensor, and the rate that came with it."""
    if rate is None:
        raise medium.error("an array does not tell its sample rate", "Give sample_rate_hz, in Hz")
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or rate < 1:
        raise medium.error("sample_rate_hz is no whole number of at least 1", "Give the rate in Hz")
    if isinstance(source, np.ma.MaskedArray):
        raise medium.error("it is a masked array", "Fill the masked values: array.filled(0)")
    shape = tuple(source.shape)
    if len(shape) not in (1, 2):
        raise medium.error("(channels, samples) or (samples,) is expected", "Give one sound, channels first")
    if 0 in shape:
        raise medium.error("it holds no sample", "Give at least one")
    num_channels, num_samples = shape if len(shape) == 2 else (1, *shape)
    limits.check_form(medium, num_channels, int(rate))
    limits.check_length(medium, num_channels, num_samples, int(rate))
    array = _tensor_to_array(source, medium) if is_tensor(source) else np.asarray(source)
    kind = array.dtype.str[1:]
    array = array.reshape(num_channels, num_samples)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are refused later, by name
            return array.astype(np.float32), int(rate)
    if kind not in _SCALES:
        raise medium.error(
            f"its numbers are {array.dtype.name}, and floats from -1 to 1, int16, int32 or uint8 are expected",
            "Convert it, for example with array.astype('float32')",
        )
    samples = array.astype(np.float32)
    if kind == "u1":
        samples -= 128.0
    return samples / np.float32(_SCALES[kind]), int(rate)


def _tensor_to_array(tensor: Any, medium: Medium) -> np.ndarray:
    try:
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # numpy knows no bfloat16
    except (RuntimeError, TypeError, NotImplementedError):  # sparse, meta, quantised
        raise medium.error("it is no plain tensor with values", "Give it as a numpy array") from None


def _check_values(samples: np.ndarray, medium: Medium, limits: AudioLimits) -> None:
    peak = float(np.maximum(samples.max(), -samples.min()))
    if not np.isfinite(peak):
        raise medium.error("it holds NaN or infinity", "Replace them, for example with numpy.nan_to_num")
    if peak > limits.max_amplitude:
        raise medium.error(
            f"its values reach {peak:g}, and full scale is 1 (at most {limits.max_amplitude:g} is allowed)",
            "Divide it by its full scale (32768 for 16 bits), or raise AudioLimits(max_amplitude=...)",
        )
