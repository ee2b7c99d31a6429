"""PE-AV against transformers' own forward pass, on tiny random weights; a ViT stands in for timm's video tower."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    PeAudioConfig,
    PeAudioModel,
    PeAudioVideoConfig,
    PeAudioVideoModel,
    PreTrainedTokenizerFast,
    ViTConfig,
)

from bindlm.encoders.pe_av import PeAudioVideoEncoder, PeAudioVideoEncoderConfig, build, from_folder
from bindlm.errors import CheckpointError, ConfigError, MediaError

_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "head_dim": 8,
}
_HOP = 8
_DAC = {
    "model_type": "dac",
    "downsampling_ratios": [2, 4],
    "encoder_hidden_size": 4,
    "codebook_dim": 8,
    "hidden_size": 16,
}
_TEXT = {
    "model_type": "modernbert",
    "hidden_size": 12,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
_VIT = ViTConfig(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=32,
    patch_size=16,
    num_labels=10,
)
_IDS = torch.tensor([[1, 5, 6, 7, 2], [1, 5, 2, 0, 0]])


def _audio_video_settings() -> dict[str, Any]:
    return {
        "model_type": "pe_audio_video",
        "text_config": dict(_TEXT),
        "audio_video_config": {
            **_TOWER,
            "audio_config": {**_TOWER, "dac_config": dict(_DAC), "model_type": "pe_audio_encoder"},
            "video_config": {**_TOWER, "vision_config": _VIT.to_dict(), "model_type": "pe_video_encoder"},
        },
    }


def _shaken(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


@pytest.fixture(scope="module")
def joint() -> PeAudioVideoModel:
    torch.manual_seed(0)
    settings = _audio_video_settings()
    settings["audio_video_config"]["video_config"]["vision_config"] = _VIT
    settings.pop("model_type")
    return _shaken(PeAudioVideoModel(PeAudioVideoConfig(**settings)))


@pytest.fixture(scope="module")
def joint_folder(joint: PeAudioVideoModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pe_av")
    joint.save_pretrained(folder)
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    vocabulary = {word: index for index, word in enumerate("<pad> <s> </s> <unk> rain on a roof".split())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def _sounds() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    samples, is_real = torch.randn(2, 1, 80 * _HOP), torch.ones(2, 1, 80 * _HOP)
    samples[1, :, 50 * _HOP :] = 0
    is_real[1, :, 50 * _HOP :] = 0
    return samples, is_real


def test_audio_and_text_alone_load_from_the_joint_folder(joint: PeAudioVideoModel, joint_folder: Path) -> None:
    """The same numbers as the whole model's, without building the video tower."""
    samples, is_real = _sounds()
    with torch.no_grad():
        expected = joint.audio_model(
            input_ids=_IDS,
            input_values=samples,
            attention_mask=(_IDS != 0).long(),
            padding_mask=is_real[:, 0].long(),
        )
    encoder = PeAudioVideoEncoder.from_folder(joint_folder, senses=("audio",))
    assert encoder.modalities == ("audio", "text")
    assert isinstance(encoder.model, PeAudioModel)
    audio = encoder.embed("audio", torch.cat([samples, is_real], dim=1))
    torch.testing.assert_close(audio, expected.audio_embeds)
    torch.testing.assert_close(encoder.embed("text", _IDS), expected.text_audio_embeds)
    assert audio.shape == (2, encoder.dim)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("head", ["audio", "video", "audio_video"])
def test_all_three_senses_equal_the_joint_forward_pass(
    joint: PeAudioVideoModel, joint_folder: Path, head: str
) -> None:
    samples, is_real = _sounds()
    films = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        expected = joint(
            input_ids=_IDS,
            input_values=samples,
            pixel_values_videos=films.transpose(1, 2).contiguous(),
            attention_mask=(_IDS != 0).long(),
            padding_mask=is_real[:, 0].long(),
        )
    encoder = PeAudioVideoEncoder.from_folder(joint_folder, text_head=head)
    assert encoder.modalities == ("audio", "video", "text")
    torch.testing.assert_close(encoder.embed("audio", torch.cat([samples, is_real], 1)), expected.audio_embeds)
    torch.testing.assert_close(encoder.embed("video", films), expected.video_embeds)
    torch.testing.assert_close(encoder.embed("text", _IDS), expected[f"text_{head}_embeds"])


def test_a_sound_does_not_depend_on_what_fills_it_up(joint_folder: Path) -> None:
    encoder = PeAudioVideoEncoder.from_folder(joint_folder, senses=("audio",))
    samples, is_real = _sounds()
    values = torch.cat([samples, is_real], dim=1)[1:]
    short = values[:, :, : 50 * _HOP]
    longer = torch.nn.functional.pad(values, (0, 30 * _HOP))
    torch.testing.assert_close(encoder.encode("audio", values), encoder.encode("audio", longer))
    # The codec's convolutions look a little past the end, and there see zeros either way.
    torch.testing.assert_close(encoder.encode("audio", short), encoder.encode("audio", values), rtol=1e-4, atol=1e-4)


def test_media_become_values_that_encode(joint_folder: Path, tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    encoder = PeAudioVideoEncoder(
        PeAudioVideoEncoderConfig(
            model=_audio_video_settings(),
            folder=str(joint_folder),
            sample_rate_hz=8000,
            clip_seconds=0.5,
            num_frames=4,
            image_size=32,
            max_tokens=6,
        )
    ).eval()
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).normal(0, 0.1, (3003, 2)), 16_000)
    sound = encoder.preprocess("audio", tmp_path / "noise.wav")
    assert sound.shape == (2, 4000)
    assert int(sound[1].sum()) == 1504  # 1502 samples at 8 kHz, to the next whole step of 8
    assert sound[0, 1504:].abs().max() == 0
    assert torch.equal(sound[0, 1502:1504], sound[0, [1500, 1499]])  # reflected
    film = encoder.preprocess("video", np.full((9, 20, 40, 3), 255, dtype=np.uint8))
    torch.testing.assert_close(film, torch.ones(3, 4, 32, 32))
    text = encoder.preprocess("text", "rain on a roof")
    assert text.tolist() == [1, 4, 5, 6, 7, 2]
    for modality, values in (("audio", sound), ("video", film), ("text", text)):
        torch.testing.assert_close(encoder.encode(modality, values[None]).norm(), torch.tensor(1.0))
    with pytest.raises(MediaError):
        encoder.preprocess("audio", b"no sound")


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is here, so nothing is missing")
@pytest.mark.parametrize("tower", [{}, {"vision_config": {"model_type": "timm_wrapper"}}])
def test_a_video_tower_of_timm_without_timm_says_what_to_do(tower: dict[str, Any]) -> None:
    settings = _audio_video_settings()
    settings["audio_video_config"]["video_config"] = {**_TOWER, **tower}
    with pytest.raises(ConfigError, match=r"pip install timm, or take the sound alone"):
        build(model=settings)
    alone = build(model=settings, senses=("audio",))
    assert alone.modalities == ("audio", "text")


def test_some_modalities_on_request(joint_folder: Path) -> None:
    assert from_folder(joint_folder).modalities == ("audio", "video", "text")
    video = from_folder(joint_folder, modalities=["video"])
    assert video.modalities == ("video",)
    assert video.model.config.model_type == "pe_video"
    assert from_folder(joint_folder, modalities=["text"]).modalities == ("text",)
    assert from_folder(joint_folder, modalities=["text", "audio"]).modalities == ("audio", "text")


def test_a_folder_of_sound_alone_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = PeAudioConfig(text_config=_TEXT, audio_config={**_TOWER, "dac_config": _DAC})
    model = _shaken(PeAudioModel(config))
    model.save_pretrained(tmp_path)
    encoder = PeAudioVideoEncoder.from_folder(tmp_path)
    samples, is_real = _sounds()
    with torch.no_grad():
        expected = model.get_audio_embeds(samples, is_real[:, 0].long())
    torch.testing.assert_close(encoder.embed("audio", torch.cat([samples, is_real], dim=1)), expected)


def test_folders_and_settings_that_make_no_encoder_are_refused(joint_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing or no JSON"):
        PeAudioVideoEncoder.from_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(CheckpointError, match="expected one of pe_audio_video"):
        PeAudioVideoEncoder.from_folder(tmp_path)
    (tmp_path / "config.json").write_text((joint_folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        PeAudioVideoEncoder.from_folder(tmp_path, senses=("audio",))
    settings = _audio_video_settings()
    for more, message in (
        ({"senses": ("smell",)}, "senses must be one or more of"),
        ({"senses": ("audio",), "text_head": "video"}, "text_head must be one of"),
        ({"clip_seconds": 0}, "clip_seconds must be"),
        ({"image_std": (1, 0, 1)}, "three numbers above 0"),
        ({"num_frames": 0}, "num_frames must be"),
    ):
        with pytest.raises(ConfigError, match=message):
            PeAudioVideoEncoderConfig(model=settings, **more)


def test_values_of_another_shape_are_refused(joint_folder: Path) -> None:
    encoder = PeAudioVideoEncoder.from_folder(joint_folder, senses=("audio",))
    with pytest.raises(ConfigError, match=r"takes sounds \(B, 2, S\)"):
        encoder.encode("audio", torch.zeros(1, 1, 80))
    with pytest.raises(ConfigError, match="token ids"):
        encoder.encode("text", torch.zeros(1, 4))
    with pytest.raises(ConfigError, match="has no 'video'"):
        encoder.encode("video", torch.zeros(1, 3, 4, 32, 32))
