"""Files written by hand, for what Pillow cannot or will not write."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

Encode = Callable[..., bytes]


@pytest.fixture(scope="session")
def run_python() -> Callable[..., str]:
    """`run_python(script, *arguments)`: what it prints, in a fresh process that finds what this one finds."""

    def run_python(script: str, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", script, *arguments]
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout

    return run_python


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """80 x 60 pixels of smooth colours with some noise: no two formats store it alike, no part of it is flat."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:60, 0:80]
    channels = np.stack([rows * 4, columns * 3, 255 - rows - columns], axis=-1)
    return Image.fromarray(np.clip(channels + rng.integers(-9, 10, channels.shape), 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def encode() -> Encode:
    """`encode(image, "PNG", **options)`: the bytes of a file."""

    def encode(image: Image.Image, format_name: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, format_name, **options)
        return buffer.getvalue()

    return encode


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.fixture(scope="session")
def write_png() -> Callable[..., bytes]:
    """`write_png(array, bit_depth, colour_type, extra={b"tRNS": ...})`: `array` holds one number a sample."""

    def write_png(
        samples: np.ndarray,
        bit_depth: int,
        colour_type: int,
        before: tuple[tuple[bytes, bytes], ...] = (),
        after: tuple[tuple[bytes, bytes], ...] = (),
        compressed: bytes | None = None,
        size: tuple[int, int] | None = None,
    ) -> bytes:
        height, width = samples.shape[:2]
        rows = samples.reshape(height, -1)
        if bit_depth == 16:
            packed = rows.astype(">u2").view(np.uint8)
        elif bit_depth == 8:
            packed = rows.astype(np.uint8)
        else:
            bits = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., 8 - bit_depth :]
            packed = np.packbits(bits.reshape(height, -1), axis=-1)
        data = b"".join(b"\0" + row.tobytes() for row in packed)
        header = struct.pack(">IIBBBBB", *(size or (width, height)), bit_depth, colour_type, 0, 0, 0)
        chunks = [(b"IHDR", header), *before, (b"IDAT", compressed or zlib.compress(data)), *after, (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(*chunk) for chunk in chunks)

    return write_png


@pytest.fixture(scope="session")
def write_tiff() -> Callable[[dict[int, Any], bytes], bytes]:
    """`write_tiff({tag: number or bytes}, strip)`: little-endian, one directory, one strip unless a tag says else."""

    def write_tiff(tags: dict[int, Any], strip: bytes) -> bytes:
        tags = {258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 279: len(strip), **tags}
        directory = struct.pack("<H", len(tags))
        for tag, value in sorted(tags.items()):
            directory += struct.pack("<HHII", tag, 4, 1, value)
        padded = strip + b"\0" * (len(strip) % 2)
        return b"II*\0" + struct.pack("<I", 8 + len(padded)) + padded + directory + b"\0\0\0\0"

    return write_tiff
