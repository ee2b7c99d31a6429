"""The frames that a film is asked for come out, whatever it is packed in."""

from __future__ import annotations

import io
import math
import struct
from fractions import Fraction

import numpy as np
import pytest

from bindlm.errors import ConfigError, MediaError
from bindlm.media import video_decode
from bindlm.media.video import VideoLimits, VideoSampling, load_video
from bindlm.media.video_sampling import Timeline

from .films import film, numbered_frame, shown_number, sound

SHORT_GROUPS = (("g", "12"), ("bf", "2"))
OPEN_GROUPS = (("x264-params", "open-gop=1:keyint=12:bframes=3:b-pyramid=normal"),)
REFRESHED = (("x264-params", "intra-refresh=1:keyint=20"),)
HIDDEN_FRAMES = (("auto-alt-ref", "1"), ("lag-in-frames", "16"), ("g", "20"))
FILMS = [
    ("mp4", "libx264", ()),
    ("mp4", "libx264", SHORT_GROUPS),
    ("mov", "libx264", OPEN_GROUPS),
    ("matroska", "libx264", SHORT_GROUPS),
    ("mpegts", "libx264", SHORT_GROUPS),
    ("mpegts", "libx264", REFRESHED),
    ("flv", "libx264", SHORT_GROUPS),
    ("h264", "libx264", SHORT_GROUPS),
    ("avi", "libx264", SHORT_GROUPS),
    ("avi", "mpeg4", SHORT_GROUPS),
    ("mp4", "mpeg4", SHORT_GROUPS),
    ("m4v", "mpeg4", ()),
    ("asf", "mpeg4", ()),
    ("mpeg", "mpeg2video", SHORT_GROUPS),
    ("mpegts", "mpeg2video", SHORT_GROUPS),
    ("webm", "libvpx-vp9", (("g", "10"),)),
    ("webm", "libvpx", HIDDEN_FRAMES),
    ("ivf", "libvpx-vp9", ()),
    ("avi", "mjpeg", ()),
    ("gif", "gif", ()),
    ("yuv4mpegpipe", "rawvideo", ()),
]
SAMPLINGS = {
    "clips": VideoSampling(),
    "short clips": VideoSampling(clip_seconds=0.2, num_clips=3),
    "whole": VideoSampling(num_frames=8),
}


def make(container, codec, options, **more):
    try:
        return film(container, codec, options=options, **more)
    except ValueError:  # av.codec.UnknownCodecError, of builds of FFmpeg without this encoder
        pytest.skip(f"this FFmpeg does not write {codec}")


def numbers(video) -> list[int]:
    return [shown_number(frame) for frame in video.frames]


@pytest.mark.parametrize(("container", "codec", "options"), FILMS)
def test_every_format_gives_the_frames_that_were_picked(container, codec, options):
    data = make(container, codec, options, num_frames=60)
    for sampling in SAMPLINGS.values():
        video = load_video(data, sampling=sampling)
        assert numbers(video) == video.frame_numbers.tolist()
        assert video.index.shape == sampling.shape
        assert video.duration_s == pytest.approx(2.4)
        assert video.size == (64, 48)
        assert len(set(video.frame_numbers.tolist())) == len(video.frames)
    assert video.frame_numbers[video.index].tolist() == [[0, 8, 16, 25, 33, 42, 50, 59]]


@pytest.mark.parametrize(("container", "codec", "options"), FILMS)
def test_skipping_to_key_frames_changes_no_pixel(container, codec, options, monkeypatch):
    data = make(container, codec, options, num_frames=60)
    sampling = VideoSampling(num_frames=5)
    skipped = load_video(data, sampling=sampling)
    monkeypatch.setattr(video_decode, "_decode_planned", lambda *arguments: None)
    assert np.array_equal(skipped.frames, load_video(data, sampling=sampling).frames)


def test_skipping_to_key_frames_saves_decoding(monkeypatch):
    decoded = []
    add = video_decode._Spent.add
    monkeypatch.setattr(video_decode._Spent, "add", lambda self, frame: (decoded.append(1), add(self, frame)))
    data = film(num_frames=250, options=(("g", "10"),))
    assert numbers(load_video(data, sampling=VideoSampling(num_frames=2))) == [0, 249]
    assert len(decoded) < 30


def test_a_minute_keeps_only_the_picked_frames():
    data = film("mp4", "mpeg4", num_frames=600, rate=10, options=(("g", "50"),))
    video = load_video(data)
    assert video.duration_s == 60
    assert len(video.frames) == 10
    assert video.frame_numbers[video.index].tolist() == [[0, 19], [145, 164], [290, 309], [435, 454], [580, 599]]
    assert video.frames.nbytes == 10 * 64 * 48 * 3
    assert [shown_number(frame) for frame in video.frames] == [number % 256 for number in video.frame_numbers]


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_changing_rate_is_sampled_in_seconds(container):
    # 20 frames in the first second, then one each second: 29 frames in 10 s.
    times = (*range(0, 1000, 50), *range(1000, 10_000, 1000))
    data = film(container, num_frames=len(times), times=times, rate=20)
    video = load_video(data, sampling=VideoSampling(clip_seconds=2, num_clips=3))
    assert numbers(video) == video.frame_numbers.tolist()
    begin, middle, end = video.frame_numbers[video.index].tolist()
    assert begin == [0, 20]  # 0 to 2 s: 20 frames, and the one at 1 s
    assert [times[number] for number in middle] == [4000, 5000] or [times[number] for number in middle] == [5000, 5000]
    assert end[1] == len(times) - 1


def test_a_clip_without_a_frame_of_its_own_gives_what_is_on_the_screen():
    video = load_video(film("matroska", num_frames=3, times=(0, 5000, 10_000), rate=1),
                       sampling=VideoSampling(clip_seconds=1, num_clips=5, frames_per_clip=1))  # fmt: skip
    assert video.frame_numbers[video.index].ravel().tolist() == [0, 0, 1, 1, 2]


def test_a_single_frame_is_every_frame():
    for container, codec in [("mp4", "libx264"), ("matroska", "libx264"), ("h264", "libx264"), ("gif", "gif")]:
        video = load_video(film(container, codec, num_frames=1))
        assert numbers(video) == [0]
        assert video.index.tolist() == [[0, 0]] * 5
        assert 0 < video.duration_s <= 1


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "avi"])
def test_sound_beside_the_picture_does_no_harm(container):
    video = load_video(film(container, "mpeg4", num_frames=60, with_sound=True))
    assert numbers(video) == video.frame_numbers.tolist()


def test_a_webm_without_index_or_duration_is_read():
    data = film("webm", "libvpx", num_frames=60, container_options=(("live", "1"),))
    video = load_video(data)
    assert numbers(video) == [0, 3, 5, 8, 10, 49, 52, 54, 57, 59]
    assert video.duration_s == pytest.approx(2.4, abs=0.05)


def test_a_fragmented_mp4_is_read():
    data = film(
        "mp4", num_frames=60, container_options=(("movflags", "frag_keyframe+empty_moov"),), options=(("g", "9"),)
    )
    assert numbers(load_video(data)) == [0, 3, 5, 8, 10, 49, 52, 54, 57, 59]


def test_a_stream_that_begins_between_key_frames_begins_at_the_next(monkeypatch):
    data = film("mpegts", "mpeg2video", num_frames=60, options=(("g", "12"), ("bf", "0")))
    cut = data[: 2 * 188] + data[len(data) // 10 // 188 * 188 :]
    video = load_video(cut, sampling=VideoSampling(num_frames=2))
    assert numbers(video) == [12, 59]
    assert video.frame_numbers.tolist() == [0, 47]


def with_matrix(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """The MP4 file with another display matrix in its (one) track header."""
    place = data.index(b"tkhd") + 4 + 40
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return data[:place] + matrix + data[place + 36 :]


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((1, 0, 0, 1), lambda pixels: pixels),
        ((0, 1, -1, 0), lambda pixels: np.rot90(pixels, -1)),  # as phones held upright write it: a quarter clockwise
        ((-1, 0, 0, -1), lambda pixels: np.rot90(pixels, 2)),
        ((0, -1, 1, 0), lambda pixels: np.rot90(pixels, 1)),
        ((-1, 0, 0, 1), lambda pixels: pixels[:, ::-1]),
        ((1, 0, 0, -1), lambda pixels: pixels[::-1]),
        ((0, 1, 1, 0), lambda pixels: pixels.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2)),
    ],
)
def test_rotation_and_mirroring_are_applied(matrix, turn):
    plain = film(num_frames=3)
    upright = load_video(plain).frames[-1]
    assert np.array_equal(load_video(with_matrix(plain, *matrix)).frames[-1], turn(upright))


def test_the_turn_agrees_with_ffmpegs_own_reading_of_the_matrix():
    import av

    with av.open(io.BytesIO(with_matrix(film(num_frames=1), 0, 1, -1, 0))) as container:
        frame = next(container.decode(video=0))
    assert frame.rotation == -90  # counterclockwise, so clockwise by 90
    assert np.array_equal(video_decode._upright(frame), np.rot90(frame.to_ndarray(format="rgb24"), -1))


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("matroska", "aac"), ("wav", "pcm_s16le"),
                                                  ("flac", "flac"), ("ogg", "flac"), ("adts", "aac")])  # fmt: skip
def test_sound_alone_is_refused_by_name(container, codec):
    with pytest.raises(MediaError, match="no picture"):
        load_video(sound(container, codec))


def test_a_file_a_path_and_an_open_file_are_one(tmp_path):
    data = film()
    path = tmp_path / "film.of.any.name"
    path.write_bytes(data)
    expected = load_video(data)
    with path.open("rb") as file:
        sources = [str(path), path, bytearray(data), io.BytesIO(data), file]
        for source in sources:
            assert np.array_equal(load_video(source).frames, expected.frames)
    with pytest.raises(MediaError, match=r"Cannot use video 'holiday': .*allow_url"):
        load_video("https://example.com/film.mp4", name="holiday")


def test_an_array_gives_the_same_frames_as_a_file_of_its_rate():
    array = np.stack([numbered_frame(number) for number in range(60)])
    for sampling in SAMPLINGS.values():
        video = load_video(array, sampling=sampling, frames_per_second=25)
        assert numbers(video) == load_video(film(num_frames=60), sampling=sampling).frame_numbers.tolist()
        assert video.duration_s == 2.4
    assert not np.shares_memory(video.frames, array)
    unknown = load_video(array, sampling=VideoSampling(num_frames=8))
    assert unknown.duration_s is None
    assert np.array_equal(unknown.frames, video.frames)


def test_the_rate_of_an_array_is_asked_for_where_seconds_count():
    array = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(MediaError, match="Give frames_per_second"):
        load_video(array)
    for rate in (0, -1, math.nan, math.inf, True, "25"):
        with pytest.raises(ConfigError, match="frames_per_second"):
            load_video(array, frames_per_second=rate)
    with pytest.raises(ConfigError, match="arrays only"):
        load_video(film(), frames_per_second=25)


@pytest.mark.parametrize("rate", [Fraction(30_000, 1001), Fraction(24_000, 1001), 30, 12])
@pytest.mark.parametrize("num_frames", [1, 2, 59, 60, 61, 299, 300])
def test_picks_are_the_first_and_last_frame_of_the_times_of_a_clip(rate, num_frames):
    """Against the rule written out with numbers of frames: from ceil(rate start) to before ceil(rate end)."""
    timeline = Timeline(range(num_frames), 1 / Fraction(rate), num_frames)
    picked = VideoSampling().pick(timeline)
    for clip, (first, last) in enumerate(picked.tolist()):
        start = max(num_frames / Fraction(rate) - 2, Fraction(0)) * clip / 4
        assert first == min(math.ceil(start * rate), num_frames - 1)
        assert last == min(math.ceil((start + 2) * rate), num_frames) - 1


def test_frames_of_the_whole_film_are_linspace_cut_to_whole_numbers():
    for num_frames in range(1, 400):
        picked = VideoSampling(num_frames=8).pick(Timeline(range(num_frames), Fraction(1), num_frames))
        assert picked.tolist() == [np.linspace(0, num_frames - 1, 8).astype(int).tolist()]


@pytest.mark.parametrize(
    ("field", "value"),
    [("clip_seconds", 0), ("clip_seconds", math.nan), ("clip_seconds", "2"), ("num_clips", 0), ("num_clips", 2.0),
     ("frames_per_clip", -1), ("frames_per_clip", True), ("num_frames", 0), ("num_frames", 10**9)],
)  # fmt: skip
def test_an_impossible_sampling_is_refused_at_birth(field, value):
    with pytest.raises(ConfigError, match=rf"VideoSampling\.{field} must be .*got {value!r}"):
        VideoSampling(**{field: value})


@pytest.mark.parametrize("field", list(VideoLimits.__dataclass_fields__))
def test_an_impossible_limit_is_refused_at_birth(field):
    for value in (0, -1, "1", True, math.nan):
        with pytest.raises(ConfigError, match=rf"VideoLimits\.{field} must be"):
            VideoLimits(**{field: value})
