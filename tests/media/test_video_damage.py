"""Whatever the bytes are, the answer is a video or a `MediaError`, soon, in little memory, and nothing is fetched."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bindlm.errors import MediaError
from bindlm.media import video_decode
from bindlm.media.video import VideoLimits, VideoSampling, load_video
from bindlm.media.video_container import check_structure, formats

from .bad_video import _SDP, cases, run_bomb, table_bomb, with_index_in_front
from .films import film, shown_number

SMALL = {
    "mp4": ("mp4", "libx264"),
    "mp4 in fragments": ("mp4", "libx264"),
    "matroska": ("matroska", "mpeg4"),
    "webm": ("webm", "libvpx"),
    "transport stream": ("mpegts", "mpeg2video"),
    "avi": ("avi", "mjpeg"),
    "gif": ("gif", "gif"),
    "raw": ("h264", "libx264"),
}


def small(name: str) -> bytes:
    options = (("movflags", "frag_keyframe+empty_moov"),) if "fragments" in name else ()
    return film(*SMALL[name], num_frames=6, container_options=options)


def load_or_refuse(data: bytes) -> None:
    start, refusal = time.process_time(), None
    try:
        video = load_video(data)
    except MediaError as error:
        refusal = error
    if refusal is None:
        assert video.frames.dtype == np.uint8
        assert video.index.shape == (5, 2)
        assert video.index.max() < len(video.frames) <= 10
    else:
        assert str(refusal).startswith("Cannot use video <bytes")
        assert refusal.__suppress_context__ or refusal.__context__ is None  # no decoder's traceback beside it
    assert time.process_time() - start < 5  # of all threads; a wait is seen by the limit of every test


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_cut_off_bytes_give_a_video_or_a_media_error(name, data):
    whole = small(name)
    load_or_refuse(whole[: data.draw(st.integers(1, len(whole)))])


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_altered_bytes_give_a_video_or_a_media_error(name, data):
    altered = bytearray(small(name))
    # Headers are short beside pictures, so half of the changes aim at the first and last kilobyte.
    places = st.integers(0, len(altered) - 1) | st.integers(0, 1000) | st.integers(max(len(altered) - 1000, 0), 10**9)
    for _ in range(data.draw(st.integers(1, 6))):
        place = min(data.draw(places), len(altered) - 1)
        change = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([bytes(4), b"\xff" * 4, b"\x7f\xff"]))
        altered[place : place + len(change)] = change
    load_or_refuse(bytes(altered))


@settings(max_examples=100, deadline=None)
@given(
    st.binary(min_size=1, max_size=300), st.sampled_from([b"", b"\0\0\0\x18ftypisom", b"\x1a\x45\xdf\xa3", b"GIF89a"])
)
def test_any_bytes_give_a_video_or_a_media_error(tail, head):
    load_or_refuse(head + tail)


def test_every_bad_case_is_refused_and_no_name_comes_twice(tmp_path):
    found = cases(tmp_path)
    assert len({name for name, _ in found}) == len(found) >= 100
    for name, call in found:
        start, accepted = time.process_time(), True
        try:
            call()
        except MediaError:
            accepted = False
        assert not accepted, name
        assert time.process_time() - start < 2, name


@pytest.mark.parametrize("part", [0.3, 0.5, 0.9, 0.999])
def test_an_mp4_that_lacks_pictures_of_its_index_is_refused(part):
    data = with_index_in_front(film(num_frames=60))
    assert load_video(data).frame_numbers[-1] == 59
    with pytest.raises(MediaError, match="damaged or cut off"):
        load_video(data[: int(len(data) * part)])


def test_a_stream_that_breaks_off_gives_the_frames_that_are_there():
    data = film("mpegts", "mpeg2video", num_frames=60, options=(("g", "12"), ("bf", "0")))
    video = load_video(data[: len(data) // 2 // 188 * 188], sampling=VideoSampling(num_frames=2))
    assert shown_number(video.frames[0]) == 0
    assert 20 < video.frame_numbers[-1] < 40


def sockets() -> set[str]:
    found = set()
    for table in ("udp", "udp6", "tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            found.add(f"{table} {line.split()[1]}")
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net")
def test_an_sdp_body_binds_no_port(monkeypatch):
    import av

    seen: list[str] = []
    open_ = av.open

    def spy(*arguments, **settings):
        try:
            return open_(*arguments, **settings)
        finally:
            seen.extend(entry for entry in sockets() if entry.endswith(f":{45454:04X}"))

    monkeypatch.setattr(av, "open", spy)
    for body in (_SDP, _SDP.replace(b"\r\n", b"\n"), b"\n" + _SDP):
        with pytest.raises(MediaError):
            load_video(body)
    assert not seen


def test_no_demuxer_that_follows_addresses_may_open_anything():
    for data in (film(), film("matroska"), _SDP):
        allowed = set(formats(data).split(","))
        assert not allowed & {
            "hls",
            "dash",
            "concat",
            "sdp",
            "rtp",
            "rtsp",
            "lavfi",
            "image2",
            "sap",
            "imf",
            "applehttp",
        }


def test_opening_decodes_nothing(monkeypatch):
    """FFmpeg would try the first frames of any codec to learn their size; a giant one is refused before that."""
    import av

    opened = []
    open_ = av.open
    monkeypatch.setattr(av, "open", lambda *args, **kw: (opened.append(kw["options"]), open_(*args, **kw))[1])
    load_video(film())
    assert opened
    assert all(options["codec_whitelist"] == "none" for options in opened)
    assert all(options["protocol_whitelist"] == "pipe" for options in opened)


def test_tables_that_lie_are_refused_before_ffmpeg_believes_them(monkeypatch):
    monkeypatch.setattr(video_decode, "_list_packets", lambda *arguments: pytest.fail("FFmpeg saw it"))
    for data in (table_bomb(), run_bomb(), table_bomb().replace(b"vide", b"soun"), b"\0\0\0\x08free" + table_bomb()):
        with pytest.raises(MediaError, match="damaged"):
            load_video(data)


def test_an_mp4_behind_a_strange_box_is_no_mp4():
    assert "mp4" in formats(film())
    assert "mp4" not in formats(b"\0\0\0\x0cabcdefgh" + film())


def test_tables_of_good_files_are_left_alone():
    from bindlm.media.names import Medium

    for container, options in [("mp4", ()), ("mov", ()), ("mp4", (("movflags", "frag_keyframe+empty_moov"),))]:
        data = film(container, num_frames=60, with_sound=True, container_options=options)
        check_structure(data, Medium("video", "<test>"))


def test_a_size_that_changes_on_the_way_is_refused():
    joined = film("h264", num_frames=20) + film("h264", num_frames=20, size=(96, 80))
    with pytest.raises(MediaError, match="size of its frames changes"):
        load_video(joined)


@pytest.mark.parametrize("container", ["mp4", "h264"])
def test_each_limit_lets_through_what_just_fits(container):
    data = film(container)
    # Without times, all 50 frames are decoded twice over: once to count them.
    decoded = 64 * 48 * 100
    limits = VideoLimits(max_bytes=len(data), max_pixels=64 * 48, max_side=64, max_ratio=64 / 48, max_seconds=2.0,
                         max_frames=50, max_kept_bytes=2 * 64 * 48 * 3, max_decoded_pixels=decoded)  # fmt: skip
    assert load_video(data, limits=limits).frame_numbers.tolist() == [0, 49]


def test_decoding_stops_at_the_limit_and_not_after(monkeypatch):
    decoded = []
    add = video_decode._Spent.add
    monkeypatch.setattr(video_decode._Spent, "add", lambda self, frame: (decoded.append(1), add(self, frame)))
    with pytest.raises(MediaError, match="max_decoded_pixels"):
        load_video(film("h264", num_frames=200), limits=VideoLimits(max_decoded_pixels=64 * 48 * 10))
    assert len(decoded) == 11
    with pytest.raises(MediaError, match="max_frames"):
        load_video(film("h264", num_frames=200), limits=VideoLimits(max_frames=10))
    assert len(decoded) == 11  # the list of packets was enough
