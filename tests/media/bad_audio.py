"""Sounds that cannot be used, each a call that must end in a `MediaError`."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from bindlm.media.audio import Audio, load_audio
from bindlm.media.audio_limits import AudioLimits
from bindlm.media.audio_preprocess import preprocess_audio, preprocess_audio_crops

SDP = (
    b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    b"m=audio 34566 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n"
)
PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/secret.wav\n"


def wav(
    body: bytes = b"\0\0" * 800,
    *,
    tag: int = 1,
    num_channels: int = 1,
    rate: int = 16_000,
    bits: int = 16,
    data_size: int | None = None,
) -> bytes:
    """A WAV file by hand, so that its header can say anything."""
    align = num_channels * bits // 8
    form = struct.pack("<HHIIHH", tag, num_channels, rate, rate * align & 0xFFFFFFFF, align & 0xFFFF, bits)
    size = len(body) if data_size is None else data_size
    chunks = b"fmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunks) & 0xFFFFFFFF) + b"WAVE" + chunks


def floats(*values: float) -> bytes:
    """A WAV file of 32-bit floats."""
    return wav(struct.pack(f"<{len(values)}f", *values), tag=3, bits=32)


def encoded(format_name: str, subtype: str | None = None, samples: np.ndarray | None = None) -> bytes:
    """A file as soundfile writes it: noise of 0.1 s at 16 kHz unless other `samples (S, C)` are given."""
    if samples is None:
        samples = np.random.default_rng(0).uniform(-0.5, 0.5, (1_600, 1)).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format=format_name, subtype=subtype)
    return buffer.getvalue()


class _Failing:
    def read(self, _size: int) -> bytes:
        raise OSError("secret text of the disk")


def cases(tmp_path: Path) -> list[tuple[str, Callable[[], object]]]:
    """Name and call, at least forty, each different in kind or place of the damage."""
    flac, ogg, mp3, aiff = encoded("FLAC"), encoded("OGG", "VORBIS"), encoded("MP3"), encoded("AIFF")
    plain = wav()
    (tmp_path / "notes.wav").write_text("This is a text that was given the name of a sound.\n" * 20)
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "folder.wav").mkdir(exist_ok=True)
    pipe = tmp_path / "pipe.wav"
    if not pipe.exists():
        os.mkfifo(pipe)
    tone = np.zeros(1_600, dtype=np.float32)
    header = b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42"
    huge_flac = bytearray(flac)
    huge_flac[21:26] = bytes([huge_flac[21] | 0x0F, 255, 255, 255, 255])  # 2^36 - 1 samples
    broken_ogg = bytearray(ogg)
    broken_ogg[60:200] = b"\xff" * 140
    tight = AudioLimits(max_seconds=0.05)
    files: dict[str, Any] = {
        "no byte": b"",
        "one byte": b"R",
        "only zeros": bytes(4_096),
        "only ones": b"\xff" * 4_096,
        "random bytes": np.random.default_rng(2).bytes(4_096),
        "WAV cut in the RIFF header": plain[:10],
        "WAV cut after WAVE": plain[:12],
        "WAV cut in the fmt chunk": plain[:25],
        "WAV cut before the data chunk": plain[:36],
        "WAV without a sample": wav(b""),
        "WAV of half a sample": wav(b"\0"),
        "WAV of 0 Hz": wav(rate=0),
        "WAV of 1 Hz": wav(rate=1),
        "WAV of 4 GHz": wav(rate=0xFFFF_FFFF),
        "WAV of no channel": wav(num_channels=0),
        "WAV of 65535 channels": wav(num_channels=65_535),
        "WAV of 17 channels": wav(bytes(34 * 100), num_channels=17),
        "WAV of 0 bits": wav(bits=0),
        "WAV of an unknown codec": wav(tag=0x7777),
        "WAV with NaN": floats(0.0, float("nan"), 0.0),
        "WAV with infinity": floats(0.0, float("-inf")),
        "WAV of enormous floats": floats(0.5, 3e38),
        "WAV of doubles beyond float32": wav(struct.pack("<2d", 0.0, 1e300), tag=3, bits=64),
        "WAV that says RIFF only": b"RIFF\xff\xff\xff\xff",
        "wrong magic": b"RIFX" + plain[4:8] + b"WAXE" + plain[12:],
        "FLAC: the mark only": flac[:4],
        "FLAC cut in STREAMINFO": flac[:30],
        "FLAC cut before the first frame": flac[:60],
        "FLAC of 2^36 samples": bytes(huge_flac),
        "FLAC with a broken header": flac[:4] + b"\x7f\xff\xff\xff" + flac[8:],
        "Ogg: the mark only": ogg[:4],
        "Ogg cut in the first page": ogg[:40],
        "Ogg cut in the code books": ogg[: len(ogg) // 3],
        "Ogg with broken code books": bytes(broken_ogg),
        "Ogg that holds text": b"OggS" + b"text " * 300,
        "MP3 of a tag only": b"ID3\4\0\0\0\0\0\x0a" + bytes(10),
        "MP3 whose tag is longer than the file": b"ID3\4\0\0\x7f\x7f\x7f\x7f" + mp3,
        "MP3 cut in its first header": mp3[:3],
        "MP3 with broken frames": mp3[:4] + b"\0" * 2_000,
        "AIFF cut in its header": aiff[:20],
        "AIFF without a chunk": aiff[:12],
        "AU of an unknown encoding": b".snd" + struct.pack(">5I", 24, 16, 999, 16_000, 1) + bytes(16),
        "AU of 0 Hz": b".snd" + struct.pack(">5I", 24, 16, 3, 0, 1) + bytes(16),
        "AU of 2^31 Hz": b".snd" + struct.pack(">5I", 24, 16, 3, 2**31, 1) + bytes(16),
        "CAF without a chunk": b"caff\0\1\0\0",
        "M4A without an index": header + b"\0\0\x10\0mdat" + bytes(4_000),
        "M4A of a box of 2^64 bytes": header + b"\0\0\0\1moov" + b"\xff" * 8 + bytes(100),
        "M4A cut in its first box": header[:14],
        "WebM: the mark only": b"\x1a\x45\xdf\xa3",
        "WebM of an endless header": b"\x1a\x45\xdf\xa3\x01" + b"\xff" * 7 + bytes(500),
        "AAC of one header": b"\xff\xf1\x50\x80\x01\x1f\xfc",
        "AMR of no frame": b"#!AMR\n",
        "session description": SDP,
        "session description with a lie in front": b"#!AMR\n" + SDP,
        "playlist": PLAYLIST,
        "playlist with a byte order mark": b"\xef\xbb\xbf" + PLAYLIST,
        "concatenation script": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "web page": b"<!DOCTYPE html><html><body>404</body></html>",
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "archive": b"PK\x03\x04" + bytes(100),
        "score": b"MThd\0\0\0\6\0\0\0\1\0\x60",
        "text in UTF-16": "A text, not a sound".encode("utf-16"),
        "text file called .wav": tmp_path / "notes.wav",
        "empty file": tmp_path / "empty.wav",
        "folder": tmp_path / "folder.wav",
        "pipe": pipe,
        "no such file": tmp_path / "missing.wav",
        "path with a NUL": "a\0b.wav",
        "address, not allowed": "https://example.org/a.wav",
        "address of another scheme": "rtp://127.0.0.1:34566",
        "demuxer in the name": "concat:a.wav|b.wav",
        "broken data URL": "data:audio/wav;base64,####",
        "file that fails": _Failing(),
        "file opened for text": io.StringIO("sound"),
        "number": 7,
        "nothing": None,
    }
    calls: list[tuple[str, Callable[[], object]]] = [
        (name, lambda source=source: load_audio(source)) for name, source in files.items()
    ]
    arrays: dict[str, tuple[Any, Any]] = {
        "array without a rate": (tone, None),
        "array of 0 Hz": (tone, 0),
        "array of a negative rate": (tone, -16_000),
        "array whose rate is a fraction": (tone, 16_000.5),
        "array whose rate is text": (tone, "16000"),
        "array of no sample": (np.zeros((1, 0), dtype=np.float32), 16_000),
        "array of no channel": (np.zeros((0, 100), dtype=np.float32), 16_000),
        "array of no dimension": (np.zeros((), dtype=np.float32), 16_000),
        "array of three dimensions": (np.zeros((1, 1, 100), dtype=np.float32), 16_000),
        "array with samples first": (np.zeros((1_600, 2), dtype=np.float32), 16_000),
        "array with NaN": (np.where(np.arange(1_600) == 9, np.nan, tone), 16_000),
        "array with infinity": (np.full(1_600, np.inf), 16_000),
        "array of floats on the scale of 16 bits": (tone + 20_000, 16_000),
        "array of complex numbers": (tone.astype(np.complex64), 16_000),
        "array of objects": (np.array([object()] * 10), 16_000),
        "array of text": (np.array(["a", "b"]), 16_000),
        "array with a mask": (np.ma.masked_array(tone, tone == 0), 16_000),
        "file of another rate than said": (plain, 44_100),
    }
    for name, (array, rate) in arrays.items():
        calls.append((name, lambda array=array, rate=rate: load_audio(array, sample_rate_hz=rate)))
    silence = encoded("FLAC", samples=np.zeros((9_000_000, 1), dtype=np.int16))
    calls += [
        ("Audio of integers", lambda: Audio(np.zeros((1, 100), dtype=np.int16), 16_000)),
        ("Audio with NaN", lambda: Audio(np.full((1, 100), np.nan, dtype=np.float32), 16_000)),
        ("Audio of 0 Hz", lambda: Audio(tone[None], 0)),
        ("WAV longer than allowed", lambda: load_audio(plain + bytes(4), limits=AudioLimits(max_seconds=0.01))),
        ("Ogg longer than allowed", lambda: load_audio(ogg, limits=tight)),
        ("MP3 longer than allowed", lambda: load_audio(mp3, limits=tight)),
        ("more samples than allowed", lambda: load_audio(plain, limits=AudioLimits(max_samples=100))),
        ("more bytes than allowed", lambda: load_audio(plain, limits=AudioLimits(max_bytes=100))),
        ("Audio longer than allowed", lambda: load_audio(Audio(tone[None], 16_000), limits=tight)),
        ("bomb", lambda: load_audio(silence, limits=AudioLimits(max_decompression_ratio=100))),
        ("too short for a frame", lambda: preprocess_audio(Audio(tone[None, :399], 16_000))),
        ("too short for a frame of crops", lambda: preprocess_audio_crops(Audio(tone[None, :100], 8_000))),
    ]
    return calls
