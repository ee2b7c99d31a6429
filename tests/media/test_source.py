"""Reading bytes: from files of all kinds, streams and data URLs, within the limit and without hanging."""

from __future__ import annotations

import base64
import io
import os
import socket
import tempfile
import threading
from pathlib import Path

import pytest

from bindlm.errors import MediaError
from bindlm.media.names import Medium, printable, url_label
from bindlm.media.source import describe, read_bytes

MEDIUM = Medium("picture", "'x'")


def read(source: object, max_bytes: int = 100) -> bytes:
    return read_bytes(source, describe(source, "picture"), max_bytes=max_bytes)


def refused(source: object, match: str, max_bytes: int = 100) -> None:
    with pytest.raises(MediaError, match=match):
        read(source, max_bytes)


def test_the_limit_is_exact_for_every_source(tmp_path):
    path = tmp_path / "file"
    content = bytes(range(100))
    path.write_bytes(content)
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    for source in (path, str(path), content, bytearray(content), memoryview(content), url):
        assert read(source, 100) == content
        refused(source, "larger than the 99 bytes allowed", 99)
    assert read(io.BytesIO(content), 100) == content
    refused(io.BytesIO(content), "larger than the 99 bytes", 99)


def test_empty_sources(tmp_path):
    (tmp_path / "empty").touch()
    for source in (tmp_path / "empty", b"", io.BytesIO(), "data:;base64,"):
        refused(source, "it is empty")


def test_paths_that_lead_nowhere(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    for path in ("missing", "dangling", "file/below"):
        refused(tmp_path / path, "no such file")
    refused("", "no such file")
    refused(tmp_path, "it is a folder")
    for path in (tmp_path / "circle", "a\0b", "x" * 5000):
        refused(path, "cannot be read")


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read(tmp_path / "link") == b"content"


def test_a_file_without_permission(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(b"x")
    path.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:  # root may read all; user 65534 may not
        os.seteuid(65_534)
    try:
        refused(path, "not permitted")
    finally:
        if is_root:
            os.seteuid(0)


def test_pipes_sockets_and_devices_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server, tempfile.TemporaryDirectory() as short:  # a long path fits no socket
        server.bind(f"{short}/socket")
        for path in (tmp_path / "pipe", Path(short) / "socket", "/dev/zero", "/dev/null"):
            thread = threading.Thread(target=refused, args=(path, "a pipe, a socket or a device"), daemon=True)
            thread.start()
            thread.join(5)
            assert not thread.is_alive(), f"{path} is still being read"
            refused(path, "a pipe, a socket or a device")


def test_a_file_swapped_for_a_pipe_after_the_first_look_does_not_hang(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"x")
    ordinary = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda path: ordinary)
    refused(tmp_path / "pipe", "a pipe, a socket or a device")


def test_a_file_that_is_longer_than_it_says_is_cut(tmp_path):
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc here")
    assert status.stat().st_size == 0
    refused(status, "larger than the 50 bytes", 50)


def test_a_file_too_large_is_refused_by_its_size_before_it_is_read(tmp_path):
    with (tmp_path / "terabyte").open("wb") as sparse:
        sparse.truncate(2**40)
    refused(tmp_path / "terabyte", "larger than", 2**39)  # more than there is memory for


def test_streams_are_read_from_where_they_stand():
    stream = io.BytesIO(b"0123456789")
    stream.seek(4)
    assert read(stream) == b"456789"
    refused(stream, r"seek\(0\)")


class Dripping:
    """Gives one byte a call, and forever."""

    reads = 0

    def read(self, size: int) -> bytes:
        self.reads += 1
        return b"x"


def test_a_stream_without_end_is_left():
    stream = Dripping()
    refused(stream, "larger than the 100 bytes")
    assert stream.reads == 101


def test_streams_that_give_no_bytes(tmp_path):
    class Broken:
        def read(self, size: int) -> bytes:
            raise RuntimeError("secret detail")

    class Silent:
        def read(self, size: int) -> None:
            return None

    with pytest.raises(MediaError) as caught:
        read(Broken())
    assert "secret" not in str(caught.value)
    closed = io.BytesIO(b"x")
    closed.close()
    refused(closed, "reading from it failed")
    with (tmp_path / "out").open("wb") as for_writing:
        refused(for_writing, "reading from it failed")
    for source in (Silent(), io.StringIO("text")):
        refused(source, "gives no bytes")


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("data:image/png;base64,@@@@", "base64 text is damaged"),
        ("data:image/png;base64,QQ", "base64 text is damaged"),
        ("data:image/png;base64,QUJ D", "base64 text is damaged"),
        ("data:image/png;base64,QÄ==", "base64 text is damaged"),
        ("data:text/plain,hello", "not in base64"),
    ],
)
def test_data_urls_that_are_refused(url, match):
    refused(url, match)


def test_data_urls_that_are_read():
    for url in ("data:image/png;base64,QUJD", "DATA:;BASE64,QUJD", "data:image/png;name=a;base64,QUI%2BQw=="):
        assert read(url) in (b"ABC", b"AB>C")
    refused(f"data:;base64,{'A' * 401}", "larger than the 100 bytes")


def test_other_schemes_and_the_switched_off_web():
    for url in ("file:///etc/passwd", "ftp://host/a.png", "s3://bucket/key", "gopher://x"):
        refused(url, "are not read")
    for url in ("http://host/a.png", "HTTPS://host/a.png"):
        refused(url, "allow_url=True")


def test_labels(tmp_path):
    assert describe("cat.jpg", "picture").label == describe(Path("cat.jpg"), "picture").label == "'cat.jpg'"
    assert describe(b"1234", "picture").label == "<bytes, 4 bytes>"
    assert describe("data:;base64,QUJD", "picture").label == "<data URL, 17 characters>"
    assert describe("https://me:secret@host/a.png?token=secret#x", "picture").label == "'https://host/a.png'"
    with (tmp_path / "cat.jpg").open("wb") as opened:
        assert describe(opened, "picture").label.endswith("cat.jpg'")
    assert describe(io.BytesIO(b"x"), "picture").label == "<BytesIO>"
    assert describe(b"x", "picture", name="a\nb").label == r"'a\nb'"
    assert url_label("http://[::1") == "<URL>"


def test_long_names_keep_both_ends():
    short = printable("/begin" + "x" * 5000 + "end.png")
    assert len(short) == 203
    assert short.startswith("/begin")
    assert short.endswith("end.png")
