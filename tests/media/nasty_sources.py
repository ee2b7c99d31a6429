"""Sources that no loader can use, whatever it loads: what a stranger may hand over in place of a file."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Case = tuple[str, Callable[[], object]]


class Endless:
    """A stream that never ends."""

    def read(self, size: int = -1) -> bytes:
        return b"\x89PNG" * (size // 4 + 1)


class Broken:
    """A stream that fails."""

    def read(self, size: int = -1) -> bytes:
        raise RuntimeError("secret text of a stranger")


def nasty_sources(tmp_path: Path) -> Iterator[tuple[str, Any]]:
    """Names and sources that are not there, not files, or nothing that any sense takes."""
    folder = tmp_path / "folder.png"
    folder.mkdir(exist_ok=True)
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    pipe = tmp_path / "pipe.png"
    if not pipe.exists():
        os.mkfifo(pipe)
    closed = io.BytesIO(b"1,2,3,4,5,6")
    closed.close()
    yield from {
        "missing": tmp_path / "missing.png",
        "folder": folder,
        "empty file": empty,
        "pipe": pipe,
        "device": "/dev/zero",
        "NUL in path": "a\0b",
        "long path": "a" * 10_000,
        "no bytes": b"",
        "None": None,
        "number": 7,
        "dict": {},
        "stream of text": io.StringIO("1,2,3"),
        "closed stream": closed,
        "endless stream": Endless(),
        "broken stream": Broken(),
        "address, fetching off": "https://example.org/a.png",
        "ftp": "ftp://example.org/a.png",
        "file address": "file:///etc/passwd",
        "data URL, not base64": "data:image/png,abc",
        "data URL, damaged": "data:image/png;base64,@@@",
        "playlist": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/a.ts\n",
        "session description": b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n",
        "HTML": b"<!doctype html><html><body>404</body></html>",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "JSON": b'{"depth": [1, 2, 3]}',
        "WAV": b"RIFF\x24\0\0\0WAVEfmt " + bytes(24),
        "ZIP": b"PK\x03\x04" + bytes(100),
        "pickle": b"\x80\x04\x95\x0a\0\0\0\0\0\0\0\x8c\x02os\x94.",
        "zeros": bytes(1000),
        "random": np.random.default_rng(0).bytes(1000),
        "UTF-16": "1,2,3,4,5,6\n".encode("utf-16"),
    }.items()


def nasty_npy(good: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """`.npy` files that claim what they do not hold."""
    whole = npy(good)
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"
    for length in (1, 6, 8, 9, 10, 20, 64, 127, 128, len(whole) - 1):
        yield f"npy cut at {length}", whole[:length]
    yield "npy too long", whole + b"\0"
    yield "npy of a giant", npy_of(header % b"1000000000, 1000000000")
    yield "npy of a negative side", npy_of(header % b"-1, 6")
    yield "npy of no side", npy_of(header % b"")
    yield "npy of many sides", npy_of(header % (b"1, " * 60))
    yield "npy of objects", npy_of(b"{'descr': '|O', 'fortran_order': False, 'shape': (6, 6), }", bytes(288))
    yield "npy of text", npy_of(b"{'descr': '<U4', 'fortran_order': False, 'shape': (6, 6), }", bytes(576))
    yield "npy of complex", npy(good.astype(np.complex64))
    yield "npy of records", npy(np.zeros(6, dtype=[("a", "f4"), ("b", "f4")]))
    yield "npy of booleans", npy(good > 0)
    yield "npy whose header is code", npy_of(b"__import__('os').system('true')")
    yield "npy whose header is deep", npy_of(b"[" * 900)
    yield "npy with a long header", b"\x93NUMPY\2\0" + (2**31).to_bytes(4, "little") + bytes(100)
    yield "npy of another version", whole[:6] + b"\x09" + whole[7:]
    yield "npy of NaN", npy(np.full_like(good, np.nan, dtype=np.float32))
    yield "npy of infinity", npy(np.full_like(good, np.inf, dtype=np.float32))
    yield "npy without values", npy(good[:0])
    yield "npy of four axes", npy(good[None, None])
    yield "npy of one axis", npy(good.ravel())


def npy(array: np.ndarray) -> bytes:
    """The bytes that `numpy.save` writes."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def npy_of(header: bytes, body: bytes = b"") -> bytes:
    """An `.npy` file with any header."""
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + body


def picture_bytes(array: np.ndarray | Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture file."""
    file = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(file, format_name, **options)
    return file.getvalue()


def nasty_pictures(good: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Files and pictures that are damaged, or larger than they should be."""
    png, tiff = picture_bytes(good), picture_bytes(good, "TIFF")
    for length in (1, 8, 20, 33, len(png) // 2, len(png) - 13, len(png) - 1):
        yield f"PNG cut at {length}", png[:length]
    for length in (4, 8, 16, len(tiff) // 2):
        yield f"TIFF cut at {length}", tiff[:length]
    middle = png.index(b"IDAT") + 20
    yield "PNG with a wrong byte", png[:middle] + bytes([png[middle] ^ 0xFF]) + png[middle + 1 :]
    yield "PNG with a giant header", png[:16] + b"\x7f\xff\xff\xff\x7f\xff\xff\xff" + png[24:]
    yield "PNG without width", png[:16] + bytes(4) + png[20:]
    yield "PNG of 5000 x 5000", png[:16] + (5000).to_bytes(4, "big") * 2 + png[24:]
    yield "TIFF inverted", picture_bytes(good, "TIFF", tiffinfo={262: 0})
    yield "PNG renamed to no PNG", b"X" + png[1:]
    yield "picture too long", np.ones((1, 300), dtype=good.dtype)
    yield "array of objects", np.full((4, 4), None)
    yield "array of text", np.full((4, 4), "a")
    yield "array of complex", np.ones((4, 4), dtype=np.complex128)
    yield "array without pixels", np.ones((0, 4), dtype=good.dtype)
    yield "array of one axis", np.ones(4, dtype=good.dtype)
    yield "array of five channels", np.ones((4, 4, 5), dtype=good.dtype)
    yield "array, masked", np.ma.masked_array(np.ones((4, 4), dtype=good.dtype), mask=True)
    yield "array of NaN", np.full((4, 4), np.nan, dtype=np.float32)
    yield "array of infinity", np.full((4, 4), -np.inf, dtype=np.float32)
    yield "array over the limit", np.broadcast_to(np.ones((1, 1), dtype=good.dtype), (5000, 5000))
    yield "picture without pixels", Image.new("L", (0, 4))
    shut = Image.open(io.BytesIO(png))
    shut.close()
    yield "picture that is closed", shut
