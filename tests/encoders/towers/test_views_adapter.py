"""Shapes through the anchor's pictures: drawn, seen, adapted; the anchor stays its owner's."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bindlm.encoders import MiniEncoder
from bindlm.encoders.bound import BoundEncoder, load_tower_folder, save_tower
from bindlm.encoders.mini import MiniEncoderConfig
from bindlm.encoders.towers import build_tower, tower_settings
from bindlm.encoders.towers.views import ViewsAdapter
from bindlm.errors import ConfigError, MediaError

DIM = 16
SETTINGS = {"kind": "views_adapter", "dim": DIM, "hidden_dim": 8, "canvas": 32, "picture_size": 32}


def anchor(**towers: dict[str, object]) -> MiniEncoder:
    torch.manual_seed(0)
    encoder = MiniEncoder(MiniEncoderConfig(dim=DIM, towers=dict(towers)))
    encoder.projection.normal_()
    return encoder.requires_grad_(False).eval()


def tower(**changed: object) -> ViewsAdapter:
    torch.manual_seed(1)
    built = build_tower(**{**SETTINGS, **changed})  # type: ignore[arg-type]
    assert isinstance(built, ViewsAdapter)
    return built.eval()


def cloud(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal((300, 3)) * random.uniform(0.2, 1, 3)


def test_untrained_a_shape_is_what_the_anchor_takes_its_drawings_for() -> None:
    encoder, views = anchor(), tower()
    views.attach(encoder)
    values = torch.stack([views.preprocess(cloud(seed)) for seed in (0, 1)])  # (B, V, 1, S, S)
    seen = encoder.encode("image", values.expand(-1, -1, 3, -1, -1))
    torch.testing.assert_close(F.normalize(views.embed(values), dim=-1), seen)
    assert (seen[0] - seen[1]).abs().max() > 1e-3


def test_clouds_are_seen_from_each_azimuth_and_depth_once() -> None:
    assert tower(azimuths=(0, 90, 180)).preprocess(cloud(0)).shape == (3, 1, 32, 32)
    depth = np.zeros((40, 60), dtype=np.float32)
    depth[5:20, 10:50] = np.linspace(1, 2, 40)
    assert tower(modality="depth").preprocess(depth).shape == (1, 1, 32, 32)
    with pytest.raises(MediaError, match="nothing was measured"):
        tower(modality="depth").prepare(np.zeros((8, 8)))


def test_the_anchor_is_no_part_of_its_weights_copies_or_parameters() -> None:
    encoder, views = anchor(), tower()
    views.attach(encoder)
    assert all(name.startswith("adapter.") for name in views.state_dict())
    assert sum(each.numel() for each in views.parameters()) == 2 * DIM * 8 + 8 + DIM
    holder = anchor(point=SETTINGS)
    own = copy.deepcopy(holder)
    assert own.towers["point"]._anchor[0] is own, "a copied encoder looks through its own pictures"
    values = own.preprocess("point", cloud(0))[None]
    assert torch.equal(own.encode("point", values), holder.encode("point", values))


def test_alone_it_says_what_is_missing() -> None:
    views = tower()
    with pytest.raises(ConfigError, match="sees through the pictures of the encoder"):
        views.embed(views.preprocess(cloud(0))[None])


def test_folder_and_anchor_give_the_same_embedding(tmp_path: Path) -> None:
    encoder, views = anchor(), tower(noise=0.5, dropout=0.5)
    with torch.no_grad():
        views.adapter.out.weight.normal_()
    views.attach(encoder)
    save_tower(views, tmp_path)
    loaded = load_tower_folder(tmp_path)
    assert tower_settings(loaded) == tower_settings(views)
    both = BoundEncoder({"point": loaded}, encoder)
    values = views.preprocess(cloud(0))[None]
    torch.testing.assert_close(both.encode("point", values), F.normalize(views.embed(values), dim=-1))


def test_noise_and_dropout_are_for_training_alone() -> None:
    views = tower(noise=0.5, dropout=0.5)
    with torch.no_grad():
        views.adapter.out.weight.normal_()
    features = F.normalize(torch.randn(4, DIM), dim=-1)
    assert torch.equal(views.adapt(features), views.adapt(features))
    views.train()
    assert not torch.equal(views.adapt(features), views.adapt(features))


def test_an_anchor_of_another_width_or_without_pictures_is_refused() -> None:
    with pytest.raises(ConfigError, match="gives 24 numbers, and its anchor 16"):
        tower(dim=24).attach(anchor())
    deaf = BoundEncoder({"depth": tower(modality="depth")})
    with pytest.raises(ConfigError, match="image"):
        tower().attach(deaf)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"modality": "audio"}, "modality must be one of point, depth"),
        ({"azimuths": ()}, "azimuths must be at least one angle"),
        ({"elevation": 90}, "elevation must be a finite number from -89 to 89"),
        ({"noise": -1}, "noise must be a finite number"),
    ],
)
def test_impossible_settings_are_named(changed: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        tower(**changed)
