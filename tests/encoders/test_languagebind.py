"""LanguageBind against transformers' CLIP and PEFT, and its published folders read strictly."""

import json
from pathlib import Path

import pytest
import torch
from tests.encoders.tiny_languagebind import DIM, LAYERS, PATCH, WIDTH, clip_model, official_config, write_folder
from torch import Tensor

from bindlm.encoders.languagebind import LanguageBindEncoder, build, from_official
from bindlm.encoders.languagebind_config import (
    LanguageBindConfig,
    LanguageBindTextConfig,
    LanguageBindTowerConfig,
)
from bindlm.errors import CheckpointError, ConfigError

_IDS = torch.tensor([[60, 3, 9, 63, 0, 0], [60, 5, 63, 0, 0, 0]])


def _image_folder(folder: Path, sense: str = "image", **kwargs: object) -> Path:
    config = official_config(sense)
    return write_folder(folder, config, clip_model(config).state_dict(), **kwargs)


@pytest.mark.parametrize("is_pickled", [False, True])
def test_image_and_text_towers_equal_transformers_clip(tmp_path: Path, is_pickled: bool) -> None:
    config = official_config("image")
    clip = clip_model(config)
    encoder = LanguageBindEncoder.from_official(
        write_folder(tmp_path / "image", config, clip.state_dict(), pickled=is_pickled)
    )
    pixels = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(encoder.embed("image", pixels), clip.get_image_features(pixels).pooler_output)
        torch.testing.assert_close(encoder.embed("text", _IDS), clip.get_text_features(_IDS).pooler_output)
        temperature = clip.logit_scale.exp()
    unit = encoder.encode("image", pixels)
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(encoder.official_output("image", pixels), unit * temperature)
    assert torch.equal(encoder.official_output("image", pixels, use_temp=False), unit)
    assert torch.equal(encoder.official_output("text", _IDS), encoder.encode("text", _IDS))


def test_audio_has_a_position_table_of_its_own_shape(tmp_path: Path) -> None:
    """Against CLIP with a square picture of as many patches: the same table, laid out 2 x 8 in place of 4 x 4."""
    config = official_config("audio", image_size=56)
    clip = clip_model(config)
    config["vision_config"] |= {"image_size": 224, "num_mel_bins": 2 * PATCH + 3, "target_length": 8 * PATCH + 5}
    encoder = LanguageBindEncoder.from_official(write_folder(tmp_path / "audio", config, clip.state_dict()))
    mel = torch.randn(2, 3, 2 * PATCH + 3, 8 * PATCH + 5)
    # The same patches in the same order, in a square.
    patches = mel[..., : 2 * PATCH, : 8 * PATCH].unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # (B, 3, 2, 8, P, P)
    square = patches.flatten(2, 3).unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).reshape(2, 3, 56, 56)
    with torch.no_grad():
        expected = clip.get_image_features(square).pooler_output
    torch.testing.assert_close(encoder.embed("audio", mel), expected)


def _lora_state(state: dict[str, Tensor], rank: int, base: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Adapters in the published spelling, and the same by module for PEFT."""
    torch.manual_seed(2)
    published, adapters = {}, {}
    for name, tensor in state.items():
        new = name.replace("vision_model.encoder.layers", "vision_model.encoder.base_model.model.layers")
        is_adapted = "vision_model" in name and "self_attn" in name
        if is_adapted and base:
            module, _, kind = new.rpartition(".")
            new = f"{module}.{base}.{kind}"
        published[new] = tensor
        if is_adapted and name.endswith(".weight"):
            module = name.removeprefix("vision_model.encoder.").removesuffix(".weight")
            for side, shape in (("A", (rank, WIDTH)), ("B", (WIDTH, rank))):
                adapters[f"{module}.lora_{side}"] = torch.randn(shape)
    for name, tensor in adapters.items():
        module, side = name.rsplit(".", 1)
        published[f"vision_model.encoder.base_model.model.{module}.{side}.default.weight"] = tensor
    return published, adapters


@pytest.mark.parametrize("base", ["", "base_layer"])
@pytest.mark.parametrize("sense", ["thermal", "depth"])
def test_merged_adapters_equal_peft(tmp_path: Path, base: str, sense: str) -> None:
    peft = pytest.importorskip("peft")
    config = official_config(sense, lora_r=2, lora_alpha=16)
    clip = clip_model(config)
    published, adapters = _lora_state(clip.state_dict(), 2, base)
    encoder = LanguageBindEncoder.from_official(write_folder(tmp_path / sense, config, published))
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        plain = clip.get_image_features(pixels).pooler_output
        lora = peft.LoraConfig(r=2, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"])
        wrapped = peft.LoraModel(clip.vision_model.encoder, lora, "default")
        parameters = dict(wrapped.named_parameters())
        for name, tensor in adapters.items():
            parameters[f"model.{name}.default.weight"].copy_(tensor)
        expected = clip.get_image_features(pixels).pooler_output
        assert (expected - plain).abs().max() > 0.1, "adapters that change nothing prove nothing"
        torch.testing.assert_close(encoder.embed(sense, pixels), expected, rtol=1e-4, atol=1e-4)


def test_parameter_counts_are_those_published() -> None:
    with torch.device("meta"):
        large = LanguageBindEncoder(LanguageBindConfig.large(("image",)))
        video = LanguageBindEncoder(LanguageBindConfig.large(("video",)))
        audio = LanguageBindEncoder(LanguageBindConfig.large(("audio",)))
        huge = LanguageBindEncoder(LanguageBindConfig.huge_video())

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(large) == 427_616_513
    assert count(large.text_model) == 123_060_480
    assert count(large.towers["image"].vision_model) == 303_179_776
    assert count(video) - count(large) == 101_007_360
    assert audio.towers["audio"].vision_model.embeddings.position_embedding.weight.shape == (593, 1024)
    assert huge.dim == 1024
    assert len(huge.towers["video"].vision_model.encoder.layers) == 32


def test_parameter_names_are_the_published_ones_behind_the_tower(tmp_path: Path) -> None:
    config = official_config("image")
    clip = clip_model(config)
    encoder = LanguageBindEncoder.from_official(write_folder(tmp_path / "image", config, clip.state_dict()))
    expected = {
        name if name.startswith(("text_model.", "text_projection.")) else f"towers.image.{name}"
        for name in clip.state_dict()
    }
    assert set(encoder.state_dict()) == expected


def test_several_folders_share_one_text_tower(tmp_path: Path) -> None:
    _image_folder(tmp_path / "image")
    _image_folder(tmp_path / "thermal", "thermal")
    encoder = LanguageBindEncoder.from_official({"thermal": tmp_path / "thermal", "image": tmp_path / "image"})
    assert encoder.modalities == ("image", "thermal", "text")
    pixels = torch.randn(2, 3, 28, 28)
    assert torch.equal(encoder.encode("image", pixels), encoder.encode("thermal", pixels))
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.training


def test_folders_of_two_spaces_are_refused(tmp_path: Path) -> None:
    _image_folder(tmp_path / "image")
    config = official_config("thermal")
    state = clip_model(config).state_dict()
    state["text_projection.weight"] = state["text_projection.weight"] + 0.05
    write_folder(tmp_path / "thermal", config, state)
    with pytest.raises(CheckpointError, match="do not share one text tower"):
        LanguageBindEncoder.from_official({"image": tmp_path / "image", "thermal": tmp_path / "thermal"})


def test_bf16_on_request_and_otherwise_as_stored(tmp_path: Path) -> None:
    folder = _image_folder(tmp_path / "image")
    stored = LanguageBindEncoder.from_official(folder)
    halved = LanguageBindEncoder.from_official(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in stored.parameters()} == {torch.float32}
    exact = {name for name, parameter in halved.named_parameters() if parameter.dtype != torch.bfloat16}
    assert exact == {"towers.image.logit_scale"}
    pixels = torch.randn(2, 3, 28, 28)
    cosine = torch.cosine_similarity(stored.embed("image", pixels), halved.embed("image", pixels).float())
    assert cosine.min() > 0.99


def _rename(state: dict[str, Tensor], old: str, new: str | None) -> None:
    tensor = state.pop(old)
    if new is not None:
        state[new] = tensor


_LAYER = "vision_model.encoder.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: _rename(state, "visual_projection.weight", None), "1 missing: towers.image.visual_projection"),
        (lambda state: _rename(state, "logit_scale", "temperature"), "1 not expected: towers.image.temperature"),
        (lambda state: state.update(logit_scale=torch.zeros(2)), "1 of another shape"),
        (lambda state: state.update({f"{_LAYER}.lora_A.default.weight": torch.zeros(2, WIDTH)}), "other half"),
        (lambda state: state.update({f"{_LAYER}.base_layer.weight": torch.zeros(WIDTH, WIDTH)}), "the same weight"),
        (
            lambda state: state.update(
                {
                    f"{_LAYER}.lora_A.default.weight": torch.zeros(2, WIDTH),
                    f"{_LAYER}.lora_B.default.weight": torch.zeros(WIDTH, 3),
                }
            ),
            "do not fit a weight",
        ),
        (
            lambda state: state.update(
                {
                    f"{_LAYER}.lora_A.default.weight": torch.zeros(2, WIDTH),
                    f"{_LAYER}.lora_B.default.weight": torch.zeros(WIDTH, 2),
                }
            ),
            "states lora_r 0",
        ),
    ],
)
def test_weights_that_do_not_fit_are_one_error(tmp_path: Path, change: object, message: str) -> None:
    config = official_config("image")
    state = dict(clip_model(config).state_dict())
    change(state)
    with pytest.raises(CheckpointError, match=message):
        LanguageBindEncoder.from_official(write_folder(tmp_path / "image", config, state))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[]", "holds no settings"),
        ('{"model_type": "clip"}', "names model_type 'clip'"),
        ('{"model_type": "LanguageBindSmell"}', "expected one of"),
        ('{"model_type": "LanguageBindImage"}', "holds no vision_config"),
        (json.dumps(official_config("image", patch_size=0)), "impossible model"),
        (json.dumps(official_config("image", num_attention_heads=3)), "multiple of num_heads"),
        (json.dumps(official_config("image", hidden_act="tanh")), "hidden_act"),
        (json.dumps(official_config("audio")), "num_mel_bins"),
        (json.dumps(official_config("video", clip_type="vl_new", num_frames=3, tube_size=2)), "tube_size"),
    ],
)
def test_config_files_that_make_no_model_are_one_error(tmp_path: Path, text: str, message: str) -> None:
    folder = _image_folder(tmp_path / "image")
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        LanguageBindEncoder.from_official(folder)


def test_a_missing_folder_a_wrong_sense_and_no_folder_are_refused(tmp_path: Path) -> None:
    folder = _image_folder(tmp_path / "image")
    with pytest.raises(CheckpointError, match="config.json is missing"):
        LanguageBindEncoder.from_official(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is for image, but was given for 'audio'"):
        LanguageBindEncoder.from_official({"audio": folder})
    with pytest.raises(ConfigError, match="at least one folder"):
        LanguageBindEncoder.from_official({})
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model.safetensors or pytorch_model.bin"):
        LanguageBindEncoder.from_official(folder)


def test_values_of_another_shape_are_refused(tmp_path: Path) -> None:
    encoder = LanguageBindEncoder.from_official(_image_folder(tmp_path / "image"))
    with pytest.raises(ConfigError, match=r"takes values \(B, 3, 28, 28\), got \(2, 3, 28, 27\)"):
        encoder.encode("image", torch.zeros(2, 3, 28, 27))
    with pytest.raises(ConfigError, match="token ids"):
        encoder.encode("text", torch.zeros(2, 10, dtype=torch.int64))
    with pytest.raises(ConfigError, match="has no 'audio'; it takes image, text"):
        encoder.encode("audio", torch.zeros(2, 3, 28, 28))


def test_configs_refuse_impossible_sizes_and_take_settings_by_name() -> None:
    by_name = LanguageBindConfig(towers={"image": {"hidden_size": 32}}, text={"num_layers": 1})
    assert by_name.towers["image"] == LanguageBindTowerConfig(hidden_size=32)
    assert by_name.text == LanguageBindTextConfig(num_layers=1)
    for settings, message in (
        ({"dim": 0}, "dim must be a whole number"),
        ({"towers": {}}, "must name one or more of"),
        ({"towers": {"smell": {}}}, "must name one or more of"),
        ({"towers": {"image": {"colour": 1}}}, "takes hidden_size"),
        ({"towers": {"image": 3}}, "must hold a LanguageBindTowerConfig"),
        ({"towers": {"audio": {"mel_std": 0}}}, "mel_std must be a finite number above 0"),
        ({"antialias": 1}, "antialias must be true or false"),
    ):
        with pytest.raises(ConfigError, match=message):
            LanguageBindConfig(**settings)


def test_the_registry_functions_build_by_settings_and_load_some_senses(tmp_path: Path) -> None:
    folder = _image_folder(tmp_path / "image")
    assert from_official(folder).modalities == ("image", "text")
    only = from_official(folder, modalities=["text"], dtype=torch.bfloat16)
    assert only.modalities == ("text",)
    with pytest.raises(ConfigError, match="has no 'image'; it takes text"):
        only.encode("image", torch.zeros(1, 3, 28, 28))
    with pytest.raises(ConfigError, match="has no 'video'"):
        from_official(folder, modalities=["video"])
    with pytest.raises(ConfigError, match="at least one"):
        from_official(folder, modalities=[])
    small = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 32}
    settings = json.loads(json.dumps({"dim": 8, "towers": {"depth": small}, "text": {**small, "vocab_size": 64}}))
    assert build(**settings).modalities == ("depth", "text")


def test_fresh_weights_encode() -> None:
    config = LanguageBindConfig(
        dim=DIM,
        towers={"video": {"hidden_size": 16, "num_layers": LAYERS, "num_heads": 2, "mlp_size": 32, "num_frames": 2}},
        text={"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 32, "vocab_size": 64},
    )
    encoder = LanguageBindEncoder(config)
    assert encoder.encode("video", torch.randn(1, 3, 2, 224, 224)).isfinite().all()
    assert encoder.encode("text", _IDS).isfinite().all()
