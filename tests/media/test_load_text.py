"""Text is text, a path is a file of UTF-8, and everything else is one clear error."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from bindlm.errors import MediaError
from bindlm.media import TextLimits, load_text


def test_a_str_stays_as_it_is(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("inside")
    for text in ("a red apple", str(path), "http://host/", " \r\n ", "日本語 🍎"):
        assert load_text(text) == text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Äpfel 🍎".encode(), "Äpfel 🍎"),
        (b"\xef\xbb\xbfmark", "mark"),
        (b"one\r\ntwo\rthree\n", "one\ntwo\nthree\n"),
        (b"\ttab\x0cfeed", "\ttab\x0cfeed"),
    ],
)
def test_files_bytes_and_streams_are_utf8(content, text, tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    assert load_text(path) == load_text(content) == load_text(io.BytesIO(content)) == text
    with path.open(encoding="utf-8-sig") as opened:
        assert load_text(opened) == text


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "it is empty"),
        (b"\xef\xbb\xbf", "it is empty"),
        (b"caf\xe9", r"not UTF-8 \(at byte 3\)"),
        (b"\xed\xa0\x80", "not UTF-8"),
        (b"a\0b", "binary"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary"),
        ("word".encode("utf-16"), "UTF-16"),
        ("word".encode("utf-16-be").join([b"\xfe\xff", b""]), "UTF-16"),
    ],
)
def test_what_is_no_text_is_refused(content, match, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    for source, name in ((path, r"notes\.txt'"), (content, "<bytes")):
        with pytest.raises(MediaError, match=f"{name}.*: .*{match}"):
            load_text(source)


@pytest.mark.parametrize(("text", "match"), [("", "empty"), ("a\0b", "NUL"), ("a\ud800b", r"surrogate.*character 1")])
def test_a_str_that_no_tokenizer_takes_is_refused(text, match):
    with pytest.raises(MediaError, match=match) as caught:
        load_text(text)
    str(caught.value).encode()


def test_limits_are_exact(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("äää", encoding="utf-8")
    assert load_text(path, limits=TextLimits(max_bytes=6, max_characters=3)) == "äää"
    with pytest.raises(MediaError, match="larger than the 5 bytes"):
        load_text(path, limits=TextLimits(max_bytes=5))
    for source in (path, "äää", io.StringIO("äää")):
        with pytest.raises(MediaError, match="2 characters allowed"):
            load_text(source, limits=TextLimits(max_characters=2))


def test_other_failures_of_files(tmp_path):
    for path, match in ((tmp_path, "folder"), (tmp_path / "x", "no such file"), (Path("/dev/zero"), "device")):
        with pytest.raises(MediaError, match=f"Cannot use text .*{match}"):
            load_text(path)
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    with latin.open(encoding="utf-8") as opened, pytest.raises(MediaError, match="reading from it failed"):
        load_text(opened)
    for source in (None, 3, ["a"]):
        with pytest.raises(MediaError, match="is no text"):
            load_text(source)


def test_a_name_of_ones_own():
    with pytest.raises(MediaError, match="Cannot use text 'question': it is empty"):
        load_text("", name="question")
