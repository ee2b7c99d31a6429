"""A dry sound as a microphone in some room would hear it: made up, cheap, and different at every call."""

from __future__ import annotations

from functools import cache

import numpy as np


def in_a_room(dry: np.ndarray, rate_hz: int, random: np.random.Generator) -> np.ndarray:
    """Echo, tone colour, background noise and level of a recording that nobody made.

    The room is noise that dies away (Schroeder's and Moorer's model of late reverberation), the tone colour a smooth
    curve of at most 8 dB, the noise 25 to 65 dB below the sound. A quarter of the sounds stays dry.

    Args:
        dry: `(S,)` samples.
        rate_hz: samples a second.
        random: decides everything.

    Returns:
        float32 `(S,)`, its peak between 0.1 and 0.95.

    Source:
        J. A. Moorer, "About This Reverberation Business", Computer Music Journal 3(2), 1979.
    """
    length = len(dry)
    # A multiple of 32768 has small factors only, so that its transform is quick; a second is room for the echo.
    size = -(-(length + rate_hz) // 32768) * 32768
    spectrum = np.fft.rfft(dry.astype(np.float32, copy=False), size) * _tone(size, rate_hz, random)
    if random.random() < 0.75:
        spectrum *= np.fft.rfft(_room(rate_hz, random), size)
    wet = np.fft.irfft(spectrum, size)[:length]
    wet += _noise(size, random)[:length] * (wet.std() * 10 ** (-random.uniform(25, 65) / 20))
    level = random.uniform(0.1, 0.95) / max(float(np.abs(wet).max()), 1e-9)
    return (wet * np.float32(level)).astype(np.float32, copy=False)


def _room(rate_hz: int, random: np.random.Generator) -> np.ndarray:
    """Float32 `(R,)` answer of a room to a clap, at most one second: the clap itself, and what comes back."""
    seconds = float(np.exp(random.uniform(np.log(0.1), np.log(1.5))))
    answer = random.standard_normal(min(rate_hz, round(seconds * rate_hz)), dtype=np.float32)
    answer *= np.exp(np.linspace(0, -3 * np.log(10) * len(answer) / rate_hz / seconds, len(answer), dtype=np.float32))
    answer[: int(random.uniform(0.002, 0.03) * rate_hz)] = 0
    answer *= np.float32(random.uniform(0.05, 0.6)) / np.linalg.norm(answer)
    answer[0] = 1
    return answer


def _tone(size: int, rate_hz: int, random: np.random.Generator) -> np.ndarray:
    """Float32 `(size // 2 + 1,)` gains: a smooth curve over log frequency; one microphone in five is dull as well."""
    gains = np.interp(_octaves(size, rate_hz), np.linspace(0, 10, 6), random.uniform(-8, 8, 6))
    if random.random() < 0.2:
        gains = gains - 24 * np.maximum(_octaves(size, rate_hz) - np.log2(random.uniform(3000, 9000) / 20), 0)
    return np.exp(gains.astype(np.float32) * np.float32(np.log(10) / 20))


@cache
def _octaves(size: int, rate_hz: int) -> np.ndarray:
    """`(size // 2 + 1,)`: each frequency's distance from 20 Hz, in octaves."""
    return np.log2(np.maximum(np.fft.rfftfreq(size, 1 / rate_hz), 20) / 20)


def _noise(size: int, random: np.random.Generator) -> np.ndarray:
    """Float32 `(size,)` noise of unit deviation, between white and brown."""
    white = random.standard_normal(size, dtype=np.float32)
    if random.random() < 0.5:
        return white
    bend = np.float32(-random.uniform(0.3, 1.0))
    noise = np.fft.irfft(np.fft.rfft(white) * np.maximum(np.arange(size // 2 + 1, dtype=np.float32), 20) ** bend, size)
    return noise / noise.std()
