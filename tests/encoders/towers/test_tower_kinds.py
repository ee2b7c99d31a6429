"""Every kind of tower: builds, embeds, is repeatable, learns, is kept on the disk, and refuses what it cannot use."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bindlm.encoders.bound import load_tower_folder, save_tower
from bindlm.encoders.towers import TOWER_KINDS, AdapterTower, Tower, build_tower, tower_settings
from bindlm.errors import CheckpointError, ConfigError, MediaError

from .tiny_backbones import NUM_FEATURES

DIM = 12
SMALL = {"width": 16, "depth": 2, "num_heads": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "mel_transformer": {**SMALL, "num_mel_bins": 32, "num_frames": 64, "num_clips": 2},
    "mel_cnn": {"channels": (4, 8), "num_mel_bins": 32, "num_frames": 64, "num_clips": 2},
    "point_transformer": {**SMALL, "num_points": 64, "num_groups": 8, "group_size": 8, "point_width": 8},
    "vit": {**SMALL, "size": 32, "stem": (4, 4, 8)},
    "imu": {**SMALL, "num_samples": 64, "stem": (4, 8)},
    "text_adapter": {"hidden_dim": 24, "num_features": NUM_FEATURES, "max_tokens": 8},
    "aisfx_adapter": {"hidden_dim": 24, "num_blocks": 2},
}
"""By kind; LoRA and drawn views, which need an encoder, have tests of their own."""
KINDS = list(SETTINGS)


def media_of(kind: str) -> list[Any]:
    """Three different media, as arrays."""
    random = np.random.default_rng(0)
    if kind == "text_adapter":
        return ["a cat", "The red dog barks", "dog dog dog dog dog dog dog dog dog dog"]
    makers: dict[str, Any] = {
        "mel_transformer": lambda: 0.1 * random.standard_normal(20_000).astype(np.float32),
        "mel_cnn": lambda: 0.1 * random.standard_normal(20_000).astype(np.float32),
        "aisfx_adapter": lambda: 0.1 * random.standard_normal(60_000).astype(np.float32),
        "point_transformer": lambda: random.standard_normal((200, 3)) * random.uniform(0.2, 1, 3),
        "vit": lambda: random.uniform(0.5, 5, (40, 60)).astype(np.float32),
        "imu": lambda: random.standard_normal((6, 100)),
    }
    return [makers[kind]() for _ in range(3)]


def make(kind: str, backbones: dict[str, str], **changed: Any) -> Tower:
    torch.manual_seed(0)
    settings = {**SETTINGS[kind], "dim": DIM, **changed}
    if kind in backbones:
        settings.setdefault("backbone", backbones[kind])
    tower = build_tower(kind, **settings)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return tower.eval()


def batch_of(tower: Tower) -> Tensor:
    return torch.stack([tower.preprocess(medium) for medium in media_of(tower.kind)])


def test_table_tests_every_kind() -> None:
    assert set(KINDS) | {"lora", "views_adapter"} == set(TOWER_KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_media_become_different_finite_embeddings_of_the_width_asked_for(kind: str, backbones: dict[str, str]) -> None:
    tower = make(kind, backbones)
    with torch.no_grad():
        embeddings = tower.embed(batch_of(tower))
    assert embeddings.shape == (3, DIM) == (3, tower.dim)
    assert torch.isfinite(embeddings).all()
    assert torch.cdist(embeddings, embeddings)[0, 1] > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_same_medium_gives_the_same_embedding_alone_and_among_others(kind: str, backbones: dict[str, str]) -> None:
    tower = make(kind, backbones)
    values = batch_of(tower)
    torch.testing.assert_close(values, batch_of(tower), rtol=0, atol=0)
    with torch.no_grad():
        together = tower.embed(values)
        assert torch.equal(together, tower.embed(values))
        for row in range(3):
            torch.testing.assert_close(tower.embed(values[row : row + 1])[0], together[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_and_no_other(kind: str, backbones: dict[str, str]) -> None:
    tower = make(kind, backbones).train()
    values = batch_of(tower)
    tower.embed(values).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in tower.named_parameters()}
    assert gradients
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert torch.isfinite(gradient).all(), name
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())
    for part in tower.frozen_parts():
        assert not any(parameter.requires_grad for parameter in part.module(torch.zeros(1)).parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_folder_gives_back_the_tower_bit_for_bit(kind: str, backbones: dict[str, str], tmp_path: Path) -> None:
    tower = make(kind, backbones)
    save_tower(tower, tmp_path)
    loaded = load_tower_folder(tmp_path)
    assert tower_settings(loaded) == tower_settings(tower)
    assert loaded.state_dict().keys() == tower.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in tower.state_dict().items())
    values = batch_of(tower)
    with torch.no_grad():
        assert torch.equal(tower.embed(values), loaded.embed(values))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_half_sized_file_is_near(kind: str, backbones: dict[str, str], tmp_path: Path) -> None:
    tower = make(kind, backbones)
    save_tower(tower, tmp_path, dtype=torch.bfloat16)
    loaded = load_tower_folder(tmp_path)
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float32}
    values = batch_of(tower)
    with torch.no_grad():
        cosines = torch.cosine_similarity(tower.embed(values), loaded.embed(values))
    assert (cosines > 0.995).all()


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_another_shape_are_refused(kind: str, backbones: dict[str, str]) -> None:
    tower = make(kind, backbones)
    values = batch_of(tower)
    for wrong in (values[0], values[:0], values[..., None]):
        with pytest.raises(ConfigError, match=f"The {tower.modality} tower takes values"):
            tower.embed(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_file_that_is_no_medium_is_refused(kind: str, backbones: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "zeros.bin").write_bytes(bytes(100))
    with pytest.raises(MediaError, match=r"zeros\.bin"):
        make(kind, backbones).load(tmp_path / "zeros.bin")


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles_work_as_of_any_module(kind: str, backbones: dict[str, str]) -> None:
    tower = make(kind, backbones)
    values = batch_of(tower)
    with torch.no_grad():
        expected = tower.embed(values)
        assert torch.equal(copy.deepcopy(tower).embed(values), expected)
        assert torch.equal(pickle.loads(pickle.dumps(tower)).embed(values), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_stated_settings_survive_json(kind: str, backbones: dict[str, str]) -> None:
    settings = json.loads(json.dumps(tower_settings(make(kind, backbones))))
    assert tower_settings(build_tower(**settings)) == tower_settings(make(kind, backbones))


@pytest.mark.parametrize("kind", ["text_adapter", "aisfx_adapter"])
def test_backbone_is_no_part_of_the_weights_and_waits_for_its_first_use(kind: str, tmp_path: Path) -> None:
    tower = make(kind, {}, backbone=str(tmp_path / "nowhere"))  # not there, and not missed
    assert isinstance(tower, AdapterTower)
    assert all(name.startswith("adapter.") for name in tower.state_dict())
    assert not tower.frozen_parts()[0].is_loaded
    width = tower.adapter[2].normalized_shape[0]
    assert tower.adapt(torch.zeros(2, width)).shape == (2, DIM)
    with pytest.raises(CheckpointError, match="does not exist"):
        tower.features(torch.ones(1, 2, 100, 96) if kind == "aisfx_adapter" else torch.ones(1, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("kind", "settings", "complaint"),
    [
        ("mel_gru", {}, "Unknown kind of tower 'mel_gru'; known: aisfx_adapter"),
        ("vit", {"wdith": 3}, "'vit' does not take these settings"),
        ("vit", {"modality": "text"}, "VitConfig.modality must be one of depth, thermal, got 'text'"),
        ("vit", {"size": 100}, "VitConfig.size must be a multiple of 16, got 100"),
        ("vit", {"width": 100, "num_heads": 3}, "VitConfig.num_heads must be a divisor of width, 100"),
        ("vit", {"stem": [1, 2]}, "VitConfig.stem must be three whole numbers"),
        ("imu", {"num_samples": 9}, "ImuConfig.num_samples must be a multiple of 8"),
        ("imu", {"clip_seconds": 0}, "ImuConfig.clip_seconds must be a finite number from"),
        ("point_transformer", {"group_size": 2000}, "group_size must be at most num_points, 1024"),
        ("point_transformer", {"sampling": "first"}, "sampling must be one of random, farthest"),
        ("point_transformer", {"depth": True}, "depth must be a whole number of at least 1, got True"),
        ("mel_cnn", {"num_mel_bins": 40}, "MelCnnConfig.num_mel_bins must be a multiple of 16"),
        ("mel_cnn", {"channels": []}, "MelCnnConfig.channels must be 1 to 5 whole numbers"),
        ("mel_transformer", {"patch": 7}, "MelTransformerConfig.patch must be 8 or 16"),
        ("mel_transformer", {"drop_path": 1.0}, "drop_path must be a finite number from 0 to 0.9"),
        ("text_adapter", {"max_tokens": 2}, "TextAdapterConfig.max_tokens must be a whole number of at least 3"),
        ("aisfx_adapter", {"dropout": float("nan")}, "AisfxAdapterConfig.dropout must be a finite number"),
        ("lora", {"encoder": "x", "modality": "audio"}, "base_modality must be 'audio', or 'image' for depth"),
        ("lora", {}, "LoraTowerConfig.encoder names no encoder"),
    ],
)
def test_impossible_settings_are_refused(kind: str, settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        build_tower(kind, **settings)


def test_defaults_are_small_and_published_sizes_are_there() -> None:
    sizes = {kind: sum(p.numel() for p in build_tower(kind).parameters()) for kind in KINDS}
    assert max(sizes.values()) < 2.2e6, sizes
    for kind, name in (
        ("mel_transformer", "base"), ("mel_cnn", "cnn10"), ("point_transformer", "point_bert"), ("vit", "small"),
        ("imu", "imagebind"),
    ):  # fmt: skip
        with torch.device("meta"):
            large = TOWER_KINDS[kind].build(getattr(TOWER_KINDS[kind].config, name)())
        assert sum(p.numel() for p in large.parameters()) > 2 * sizes[kind]
