"""Pictures, packages and label tables made here, for tests of what comes out of packages."""

import hashlib
import io
import shutil
import struct
import subprocess
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from bindlm.evaluation.photographs import COLUMNS

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb builds the package of this test")


def png(color: str, alpha: int = 255) -> bytes:
    picture = Image.new("RGBA", (8, 6), color)
    picture.putalpha(alpha)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def qt_resource(files: dict[str, bytes], packed: frozenset[str] = frozenset()) -> bytes:
    """What Qt's `rcc` writes (version 3), for files in one folder ``pictures``."""
    names, blobs = b"", b""

    def name(text: str) -> int:
        nonlocal names
        at = len(names)
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return at

    tree = struct.pack(">IHIIQ", 0, 2, 1, 1, 0) + struct.pack(">IHIIQ", name("pictures"), 2, len(files), 2, 0)
    for file, data in files.items():
        blob = struct.pack(">I", len(data)) + zlib.compress(data) if file in packed else data
        tree += struct.pack(">IHHHIQ", name(file), file in packed, 0, 0, len(blobs), 0)
        blobs += struct.pack(">I", len(blob)) + blob
    at = 24
    header = struct.pack(">4s5I", b"qres", 3, at, at + len(tree), at + len(tree) + len(blobs), 0)
    return header + tree + blobs + names


def row(id: str, source: str, path: str, data: bytes, **changed: str) -> dict[str, str]:
    values = {
        "id": id,
        "source": source,
        "path": path,
        "split": "test",
        "object": "cat",
        "acceptable": "cat|kitten",
        "parents": "animal|mammal",
        "imagenet": "1",
        "kind": "animal",
        "photo": "1",
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    return values | changed


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    lines = ["\t".join(COLUMNS), *("\t".join(each[column] for column in COLUMNS) for each in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_wheel(folder: Path, files: dict[str, bytes], name: str = "cats-1.0-py3-none-any.whl") -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as wheel:
        for inner, data in files.items():
            wheel.writestr(inner, data)
    return folder


def make_deb(folder: Path, files: dict[str, bytes], name: str = "felines") -> Path:
    tree = folder / "tree"
    for inner, data in files.items():
        (tree / inner).parent.mkdir(parents=True, exist_ok=True)
        (tree / inner).write_bytes(data)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: pictures\n"
    )
    command = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(folder / f"{name}_1.0_all.deb")]
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(tree)
    return folder
