"""Films become the numbers that the encoders were trained on."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from bindlm.errors import ConfigError, MediaError
from bindlm.media import video_preprocess as module
from bindlm.media.video import Video, VideoSampling, load_video
from bindlm.media.video_preprocess import VideoPreprocessConfig, preprocess_video

from ..golden import GOLDEN, golden

FOLDER = "imagebind/preprocess"
FILES = ["clip_160x120_25fps_5s.mp4", "clip_258x346_12fps_1.25s.mp4"]


def reference(name: str) -> dict:
    golden(f"{FOLDER}/video_strided7.safetensors")  # skips the test where there is none
    return json.loads((GOLDEN / FOLDER / "preprocess.json").read_text())["video"][name]["pyav"]


@pytest.mark.parametrize("name", FILES)
def test_the_picked_frames_are_the_released_ones(name):
    expected = reference(name)
    video = load_video(GOLDEN / FOLDER / "media" / name)
    assert video.duration_s == expected["duration"]
    assert video.frame_numbers[video.index].tolist() == [clip["picked_frames"] for clip in expected["clips"]]
    pixels = golden(f"{FOLDER}/video_picked_frames_uint8.safetensors")
    for number, frame in zip(video.frame_numbers, video.frames, strict=True):
        # Bit-equal with the FFmpeg that made them; another version may round colours otherwise by a level.
        assert np.abs(frame.astype(int) - pixels[f"{name}.pyav.frame{number}"].numpy()).max() <= 1


@pytest.mark.parametrize("name", FILES)
def test_imagebinds_tensor_is_the_released_one(name):
    expected = reference(name)
    values = preprocess_video(load_video(GOLDEN / FOLDER / "media" / name), VideoPreprocessConfig.imagebind())
    assert list(values.shape) == expected["shape"]
    assert values.dtype == torch.float32
    strided = golden(f"{FOLDER}/video_strided7.safetensors")[f"{name}.pyav"]
    # Worst measured 6.7e-6; antialiasing, or other edges, are off by 0.1 and more.
    assert (values[..., ::7, ::7] - strided).abs().max() <= 1e-5
    assert values.double().abs().sum().item() == pytest.approx(expected["sum_abs"], rel=1e-8)


def video_of(frames: np.ndarray, sampling: VideoSampling = VideoSampling()) -> Video:
    return load_video(frames, sampling=sampling, frames_per_second=1)


def ramp(height: int, width: int, num_frames: int = 3) -> np.ndarray:
    """Frames whose red counts rows, whose green counts columns, and whose blue is the frame's number."""
    frames = np.zeros((num_frames, height, width, 3), dtype=np.uint8)
    frames[..., 0] = np.arange(height)[:, None]
    frames[..., 1] = np.arange(width)
    frames[..., 2] = np.arange(num_frames)[:, None, None]
    return frames


PLAIN = {"size": 8, "mean": (0, 0, 0), "std": (1, 1, 1)}


@pytest.mark.parametrize("is_wide", [True, False])
def test_three_crops_are_begin_centre_and_end_of_the_longer_side(is_wide):
    frames = ramp(8, 13) if is_wide else ramp(13, 8)  # as high or wide as the crops: nothing is resized
    values = preprocess_video(video_of(frames), VideoPreprocessConfig(**PLAIN))
    assert values.shape == (15, 3, 2, 8, 8)
    along, across = (1, 0) if is_wide else (0, 1)
    levels = (values * 255).round().int()
    for view in range(15):
        begin = (0, 3, 5)[view % 3]  # the centre is ceil(5 / 2)
        run = levels[view, along, 0, 0] if is_wide else levels[view, along, 0, :, 0]
        assert run.tolist() == list(range(begin, begin + 8))
        assert levels[view, across, 0].unique().tolist() == list(range(8))


def test_views_are_clip_major_and_frames_keep_their_order():
    frames = ramp(8, 8, num_frames=10)
    video = video_of(frames, VideoSampling(clip_seconds=4, num_clips=3, frames_per_clip=2))
    assert video.frame_numbers[video.index].tolist() == [[0, 3], [3, 6], [6, 9]]
    levels = (preprocess_video(video, VideoPreprocessConfig(**PLAIN))[:, 2, :, 0, 0] * 255).round().int()
    assert levels.tolist() == [[0, 3]] * 3 + [[3, 6]] * 3 + [[6, 9]] * 3


def test_every_distinct_frame_is_resized_once(monkeypatch):
    calls = []
    interpolate = module.F.interpolate
    monkeypatch.setattr(module.F, "interpolate", lambda *args, **kw: (calls.append(1), interpolate(*args, **kw))[1])
    video = video_of(ramp(20, 30))  # 3 s, so 2-s clips share frames
    preprocess_video(video, VideoPreprocessConfig(**PLAIN))
    assert len(calls) == len(video.frames) < video.index.size * 3


def test_languagebind_has_eight_frames_of_the_whole_film_and_no_chance():
    config = VideoPreprocessConfig.languagebind()
    video = video_of(ramp(30, 41, num_frames=50), config.sampling)
    values = preprocess_video(video, config)
    assert values.shape == (3, 8, 224, 224)
    blue = values[2, :, 100, 100] * config.std[2] + config.mean[2]
    assert (blue * 255).round().int().tolist() == [0, 7, 14, 21, 28, 35, 42, 49]
    for _ in range(8):  # the released transform mirrors every other time
        assert torch.equal(preprocess_video(video, config), values)
    assert values[1, 0, 100, 0] < values[1, 0, 100, 223]  # columns grow to the right


def test_languagebinds_centre_rounds_halves_to_even():
    for spare, begin in [(1, 0), (3, 2), (5, 2), (4, 2)]:
        config = VideoPreprocessConfig(**PLAIN, num_crops=1, stack_views=False, sampling=VideoSampling(num_frames=1))
        values = preprocess_video(video_of(ramp(8, 8 + spare), config.sampling), config)
        assert round(values[1, 0, 0, 0].item() * 255) == begin


def test_resizing_neither_antialiases_nor_aligns_corners():
    frames = np.zeros((1, 2, 4, 3), dtype=np.uint8)
    frames[0, :, 1::2] = 200
    config = VideoPreprocessConfig(
        size=1, mean=(0, 0, 0), std=(1, 1, 1), num_crops=1, stack_views=False, sampling=VideoSampling(num_frames=1)
    )
    assert preprocess_video(video_of(frames, config.sampling), config)[0, 0, 0, 0] == pytest.approx(100 / 255)
    wide = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    wide[0, 0] = 255  # a row that only an antialiased result would see
    assert preprocess_video(video_of(wide, config.sampling), config).abs().max() == 0


def test_a_config_survives_json():
    for config in (VideoPreprocessConfig.imagebind(), VideoPreprocessConfig.languagebind()):
        assert VideoPreprocessConfig(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", 0), ("size", 1.5), ("mean", (0, 0)), ("std", (1, 1, 0)), ("std", (1, 1, math.nan)), ("num_crops", 2),
     ("num_crops", True), ("stack_views", 1), ("stack_views", False), ("sampling", 8)],
)  # fmt: skip
def test_an_impossible_config_is_refused_at_birth(field, value):
    with pytest.raises(ConfigError, match=rf"VideoPreprocessConfig\.{field} must be"):
        VideoPreprocessConfig(**{field: value})


def test_what_load_video_did_not_make_is_refused():
    video = video_of(ramp(8, 8))
    bad = Video(video.frames.astype(np.float32), video.index, video.frame_numbers, 3.0)
    with pytest.raises(MediaError, match="uint8"):
        preprocess_video(bad, VideoPreprocessConfig())
    with pytest.raises(MediaError, match="5 clips: one is expected"):
        preprocess_video(video, VideoPreprocessConfig.languagebind())
