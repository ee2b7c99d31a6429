"""From media to LanguageBind's values, against plain computations of the published numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bindlm.encoders.languagebind import LanguageBindEncoder
from bindlm.encoders.languagebind_config import LanguageBindConfig, LanguageBindTowerConfig
from bindlm.errors import ConfigError, MediaError

_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
_SMALL = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 16}


def _encoder(antialias: bool = True) -> LanguageBindEncoder:
    towers = {
        "image": LanguageBindTowerConfig(**_SMALL),
        "video": LanguageBindTowerConfig(**_SMALL, num_frames=8),
        "audio": LanguageBindTowerConfig(**_SMALL, height=112, width=1036),
        "depth": LanguageBindTowerConfig(**_SMALL),
        "thermal": LanguageBindTowerConfig(**_SMALL),
    }
    return LanguageBindEncoder(
        LanguageBindConfig(dim=8, towers=towers, text={**_SMALL, "hidden_act": "gelu"}, antialias=antialias)
    )


@pytest.fixture(scope="module")
def encoder() -> LanguageBindEncoder:
    return _encoder()


def _noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("modality", ["image", "thermal"])
@pytest.mark.parametrize("antialias", [True, False])
def test_pictures_are_resized_as_floats_and_cut_in_the_middle(modality: str, antialias: bool) -> None:
    pixels = _noise(300, 451)
    whole = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    resized = torch.nn.functional.interpolate(whole, (224, 336), mode="bicubic", antialias=antialias)[0]
    expected = (resized[:, :, 56:280] - _MEAN[:, None, None]) / _STD[:, None, None]
    values = _encoder(antialias).preprocess(modality, Image.fromarray(pixels))
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)


def test_a_picture_of_the_right_size_is_only_normalised(encoder: LanguageBindEncoder) -> None:
    pixels = _noise(224, 224)
    values = encoder.preprocess("image", Image.fromarray(pixels))
    back = values * _STD[:, None, None] + _MEAN[:, None, None]
    torch.testing.assert_close(back, torch.from_numpy(pixels).permute(2, 0, 1) / 255, rtol=0, atol=1e-5)


def test_grey_heat_becomes_three_equal_channels(encoder: LanguageBindEncoder, tmp_path: Path) -> None:
    Image.fromarray(_noise(240, 230)[..., 0]).save(tmp_path / "heat.png")
    values = encoder.preprocess("thermal", tmp_path / "heat.png")
    grey = values * _STD[:, None, None] + _MEAN[:, None, None]
    assert torch.allclose(grey[0], grey[1], atol=1e-5)
    assert torch.allclose(grey[0], grey[2], atol=1e-5)


def test_depth_is_metres_over_ten(encoder: LanguageBindEncoder, tmp_path: Path) -> None:
    Image.fromarray(np.full((224, 224), 2500, dtype=np.uint16)).save(tmp_path / "depth.png")
    values = encoder.preprocess("depth", tmp_path / "depth.png")
    expected = ((0.25 - _MEAN) / _STD)[:, None, None].expand(3, 224, 224)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)


def test_a_film_gives_eight_frames_of_all_of_it(encoder: LanguageBindEncoder) -> None:
    """Frame t of 30 is grey 8 t; linspace(0, 29, 8) cut to whole numbers picks 0, 4, 8, 12, 16, 20, 24, 29."""
    film = np.stack([np.full((32, 40, 3), 8 * t, dtype=np.uint8) for t in range(30)])
    values = encoder.preprocess("video", film)
    assert values.shape == (3, 8, 224, 224)
    red = (values[0, :, 100, 100] * _STD[0] + _MEAN[0]) * 255
    torch.testing.assert_close(red, torch.tensor([0, 4, 8, 12, 16, 20, 24, 29]) * 8.0, rtol=1e-4, atol=1e-2)


def test_sound_becomes_a_picture_of_three_channels(encoder: LanguageBindEncoder, tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).normal(0, 0.1, 16_000 * 2), 16_000)
    values = encoder.preprocess("audio", tmp_path / "noise.wav")
    assert values.shape == (3, 112, 1036)
    assert encoder.encode("audio", values[None]).shape == (1, 8)


def test_a_text_becomes_clip_tokens_and_what_follows_the_end_does_not_matter(encoder: LanguageBindEncoder) -> None:
    ids = encoder.preprocess("text", "A dog.")
    assert ids.shape == (77,)
    assert ids[:5].tolist() == [49406, 320, 1929, 269, 49407]
    other = ids.clone()
    other[5:] = 49407
    both = encoder.embed("text", torch.stack([ids, other]))
    torch.testing.assert_close(both[0], both[1])


def test_every_sense_that_is_preprocessed_can_be_encoded(encoder: LanguageBindEncoder) -> None:
    media = {
        "image": Image.fromarray(_noise(50, 60)),
        "video": np.zeros((4, 30, 40, 3), dtype=np.uint8),
        "depth": np.ones((40, 50), dtype=np.float32),
        "thermal": Image.fromarray(_noise(50, 60)),
        "text": "heat",
    }
    for modality, medium in media.items():
        unit = encoder.encode(modality, encoder.preprocess(modality, medium)[None])
        torch.testing.assert_close(unit.norm(), torch.tensor(1.0))


@pytest.mark.parametrize("modality", ["image", "video", "audio", "depth", "thermal"])
def test_a_text_file_is_refused_by_every_sense(encoder: LanguageBindEncoder, tmp_path: Path, modality: str) -> None:
    (tmp_path / "note.bin").write_text("no medium at all " * 20)
    with pytest.raises(MediaError):
        encoder.preprocess(modality, tmp_path / "note.bin")


def test_a_text_without_clips_vocabulary_is_a_config_error() -> None:
    small = LanguageBindEncoder(
        LanguageBindConfig(
            dim=8, towers={"image": LanguageBindTowerConfig(**_SMALL)}, text={**_SMALL, "vocab_size": 64}
        )
    )
    with pytest.raises(ConfigError, match="vocab_size is 64"):
        small.preprocess("text", "a dog")
