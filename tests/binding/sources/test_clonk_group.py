"""OpenClonk's groups."""

import gzip
import struct

import pytest

from bindlm.binding.sources.clonk_group import read_group
from bindlm.errors import MediaError


def hidden(header):
    """Xor and swap: done twice it is undone, in this order when hiding."""
    header = bytearray(byte ^ 237 for byte in header)
    for place in range(0, len(header) - 2, 3):
        header[place], header[place + 2] = header[place + 2], header[place]
    return bytes(header)


def raw_group(files):
    """Files by name; a dict is a folder."""
    entries, contents = b"", b""
    for name, content in files.items():
        data = raw_group(content) if isinstance(content, dict) else content
        numbers = struct.pack("<5i", 0, isinstance(content, dict), len(data), 0, len(contents))
        entries += (name.encode().ljust(260, b"\0") + numbers).ljust(316, b"\0")
        contents += data
    header = b"RedWolf Design GrpFolder".ljust(36, b"\0") + struct.pack("<i", len(files))
    return hidden(header.ljust(204, b"\0")) + entries + contents


def packed(files):
    return b"\x1e\x8c" + gzip.compress(raw_group(files))[2:]


def test_files_are_found_in_folders_too():
    data = packed({"Version.txt": b"1", "Animals.ocg": {"Bat.ocg": {"Chirp.wav": b"RIFF"}, "Buzz.ogg": b"OggS"}})
    assert read_group(data) == {
        "Version.txt": b"1",
        "Animals.ocg/Bat.ocg/Chirp.wav": b"RIFF",
        "Animals.ocg/Buzz.ogg": b"OggS",
    }


@pytest.mark.parametrize(
    "data",
    [b"", b"\x1e\x8cno", gzip.compress(b"short"), gzip.compress(bytes(400)), packed({"a": b"12"})[:60]],
    ids=["empty", "no gzip", "no header", "another magic", "cut"],
)
def test_anything_else_is_told(data):
    with pytest.raises(MediaError, match="get its package again"):
        read_group(data)


def test_an_entry_that_points_outside_is_told():
    group = bytearray(raw_group({"a": b"12"}))
    struct.pack_into("<i", group, 204 + 268, 5000)
    with pytest.raises(MediaError, match="damaged"):
        read_group(b"\x1e\x8c" + gzip.compress(bytes(group))[2:])
