"""A tower's folder: alone, beside its anchor, inside the mini; and what is said where they do not fit."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bindlm
from bindlm.bound_encoder import load_bound_encoder
from bindlm.checkpoints import save_state_atomic
from bindlm.embedding import Embedder
from bindlm.encoders import JointEncoder, MiniEncoder, build_encoder, load_encoder
from bindlm.encoders.bound import BoundEncoder, load_tower_folder, read_tower_folder, save_tower
from bindlm.encoders.towers import Tower, build_tower
from bindlm.errors import CheckpointError, ConfigError
from bindlm.modeling import BindLMForConditionalGeneration

from ..tiny import DIM, picture, tiny_model, tiny_processor

IMU = {"kind": "imu", "width": 16, "depth": 1, "num_heads": 2, "num_samples": 16, "stem": [4, 8], "dim": DIM}
TEXT = {"kind": "text_adapter", "backbone": "nowhere/at-all", "hidden_dim": 8, "num_features": 4, "dim": DIM}
MOTION = torch.arange(600.0).reshape(6, 100).numpy()


def lively(settings: dict[str, Any] = IMU, seed: int = 0) -> Tower:
    torch.manual_seed(seed)
    tower = build_tower(**settings)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return tower.eval()


def bound_model(folder: Path, **towers: Any) -> BindLMForConditionalGeneration:
    """A tiny bound model on the disk, with towers or without."""
    model = tiny_model(
        encoder={"family": "mini", "size": "lite0", "dim": DIM, **({"towers": towers} if towers else {})}
    )
    model.processor = tiny_processor()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def anchor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("anchor")
    bound_model(folder)
    return folder


def save_beside(folder: Path, anchor: Path, **changed: Any) -> Tower:
    tower = lively()
    fingerprint = bindlm.load_embedder(anchor).fingerprint
    save_tower(tower, folder, anchor={"reference": str(anchor), "fingerprint": fingerprint, **changed})
    return tower


# -- alone ---------------------------------------------------------------------------------------------------------


def test_folder_of_a_tower_is_an_encoder_and_an_embedder(tmp_path: Path) -> None:
    tower = lively()
    save_tower(tower, tmp_path)
    encoder = load_encoder(tmp_path)
    assert encoder.modalities == ("imu",)
    values = tower.preprocess(MOTION)[None]
    with torch.no_grad():
        assert torch.equal(encoder.embed("imu", values), tower.embed(values))
    embedder = bindlm.load_embedder(tmp_path)
    assert (embedder.modalities, embedder.dim) == (("imu",), DIM)
    torch.testing.assert_close(embedder.embed(imu=MOTION).norm(dim=-1), torch.ones(1))
    with pytest.raises(ConfigError, match="BoundEncoder has no 'image'; it takes imu"):
        embedder.embed(image=picture())


def test_notice_is_told_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("of the run")
    save_tower(lively(), tmp_path, notice="Name the makers of the sounds.")
    with pytest.warns(UserWarning, match="Name the makers"):
        load_tower_folder(tmp_path)
    assert (tmp_path / "log.txt").read_text() == "of the run"
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bindlm_tower"


@pytest.mark.parametrize(
    ("change", "error", "complaint"),
    [
        ({"model_type": "bert"}, CheckpointError, "model of type 'bert', not 'bindlm_tower'"),
        ({"tower": {"width": 3}}, CheckpointError, "says no kind of tower"),
        ({"tower": {**IMU, "kind": "gru"}}, ConfigError, "Unknown kind of tower 'gru'"),
        ({"tower": {**IMU, "wdith": 1}}, ConfigError, "does not take these settings"),
        ({"tower": {**IMU, "width": 32}}, CheckpointError, "of another shape"),
        ({"tower": {**IMU, "depth": 2}}, CheckpointError, "missing"),
        ({"anchor": {"reference": "mini"}}, CheckpointError, '"anchor" must be null or'),
        ({"notice": 3}, CheckpointError, '"notice" must be a text'),
    ],
)
def test_folder_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    save_tower(lively(), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(error, match=complaint):
        load_tower_folder(tmp_path)


def test_damaged_parts_are_named(tmp_path: Path) -> None:
    save_tower(lively(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="damaged"):
        load_tower_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="missing or no JSON"):
        read_tower_folder(tmp_path)


# -- beside its anchor -----------------------------------------------------------------------------------------------


def test_tower_brings_its_anchors_senses(tmp_path: Path, anchor: Path) -> None:
    tower = save_beside(tmp_path, anchor)
    embedder = bindlm.load_embedder(tmp_path)
    assert embedder.modalities == ("image", "imu")
    alone = bindlm.load_embedder(anchor)
    assert torch.equal(embedder.embed(image=picture()), alone.embed(image=picture()))
    with torch.no_grad():
        expected = torch.nn.functional.normalize(tower.embed(tower.preprocess(MOTION)[None]), dim=-1)
    torch.testing.assert_close(embedder.embed(imu=MOTION), expected)


def test_anchor_is_not_opened_where_the_tower_alone_is_asked_for(tmp_path: Path, anchor: Path) -> None:
    save_beside(tmp_path, anchor, reference=str(tmp_path / "gone"))
    assert bindlm.load_embedder(tmp_path, modalities=["imu"]).modalities == ("imu",)
    with pytest.raises(CheckpointError, match="gone does not exist"):
        bindlm.load_embedder(tmp_path, modalities=["image"])


def test_lost_anchor_is_said(tmp_path: Path, anchor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_beside(tmp_path, anchor, reference=str(tmp_path / "gone"))
    assert bindlm.load_embedder(tmp_path).modalities == ("imu",)
    assert "comes without its anchor" in capsys.readouterr().err


def test_other_anchor_is_refused(tmp_path: Path, anchor: Path) -> None:
    save_beside(tmp_path, anchor, fingerprint="0" * 16)
    with pytest.raises(CheckpointError, match="was bound to another .* do not compare"):
        bindlm.load_embedder(tmp_path)
    assert bindlm.load_embedder(tmp_path, modalities=["imu"]).modalities == ("imu",)


def test_anchor_may_lie_inside_the_towers_folder(tmp_path: Path) -> None:
    bound_model(tmp_path / "anchor")
    save_beside(tmp_path, tmp_path / "anchor", reference="anchor")
    assert bindlm.load_embedder(tmp_path).modalities == ("image", "imu")


def test_towers_of_two_widths_are_refused() -> None:
    with pytest.raises(ConfigError, match="need one width"):
        BoundEncoder({"imu": lively(), "text": build_tower(**{**TEXT, "dim": DIM + 1})})


# -- inside the mini -------------------------------------------------------------------------------------------------


def test_mini_with_towers_is_kept_in_one_file_and_fetches_no_backbone(tmp_path: Path) -> None:
    model = bound_model(tmp_path, imu=IMU, text=TEXT)  # a sentence model that is nowhere to be had
    assert model.encoder.modalities == ("image", "imu", "text")
    for loaded in (BindLMForConditionalGeneration.from_pretrained(tmp_path).encoder, load_bound_encoder(tmp_path)):
        assert isinstance(loaded, MiniEncoder)
        ours, theirs = model.encoder.state_dict(), loaded.state_dict()
        assert ours.keys() == theirs.keys()
        assert any(name.startswith("towers.text.adapter.") for name in ours)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
        assert not any(parameter.is_meta for parameter in loaded.parameters())
    embedder = bindlm.load_embedder(tmp_path)
    assert embedder.embed(image=picture()).shape == embedder.embed(imu=MOTION).shape == (1, DIM)
    with pytest.raises(CheckpointError, match="nowhere/at-all"):
        embedder.embed(text="a dog")


def test_backbones_are_fetched_as_the_model_was(tmp_path: Path) -> None:
    bound_model(tmp_path, text=TEXT)
    wanted = {"local_files_only": True, "progress": False}
    model = BindLMForConditionalGeneration.from_pretrained(tmp_path, **wanted)
    for encoder in (model.encoder, load_bound_encoder(tmp_path, **wanted)):
        assert encoder.towers["text"].frozen_parts()[0].fetching == wanted


def test_new_sense_changes_the_fingerprint_and_leaves_the_pictures(tmp_path: Path) -> None:
    plain = small_mini()
    without, mini = Embedder(plain), Embedder(small_mini(imu=IMU))
    assert without.fingerprint == without.fingerprint_of("image") == mini.fingerprint_of("image")
    seen = {without.fingerprint, mini.fingerprint, mini.fingerprint_of("imu")}
    changed = small_mini(imu=IMU)
    with torch.no_grad():
        changed.towers["imu"].trunk.head.weight[0, 0] += 1
    seen |= {Embedder(changed).fingerprint, Embedder(changed).fingerprint_of("imu")}
    assert len(seen) == 5
    assert Embedder(changed).fingerprint_of("image") == without.fingerprint


def test_fingerprint_knows_which_backbone_is_meant() -> None:
    prints = {Embedder(small_mini(text={**TEXT, "backbone": name})).fingerprint for name in ("a/b", "a/c")}
    assert len(prints) == 2


def small_mini(**towers: Any) -> MiniEncoder:
    torch.manual_seed(0)
    built = build_encoder("mini", size="lite0", dim=DIM, towers=towers)
    assert isinstance(built, MiniEncoder)
    return built


def test_anchor_with_a_new_sense_is_still_the_anchor(tmp_path: Path, anchor: Path) -> None:
    """What was bound to the pictures of a mini stays usable when that mini learns to hear."""
    state = bindlm.load_embedder(anchor).encoder.state_dict()
    model = bound_model(tmp_path / "grown", imu=IMU)
    model.encoder.load_state_dict(state, strict=False)
    model.save_pretrained(tmp_path / "grown")
    tower = {"kind": "vit", "width": 16, "depth": 1, "num_heads": 2, "size": 32, "stem": (4, 4, 8), "dim": DIM}
    save_tower(
        lively(tower),
        tmp_path / "tower",
        anchor={
            "reference": str(tmp_path / "grown"),
            "fingerprint": bindlm.load_embedder(anchor).fingerprint,
        },
    )
    assert bindlm.load_embedder(tmp_path / "tower").modalities == ("image", "imu", "depth")


@pytest.mark.parametrize(
    ("towers", "complaint"),
    [
        ({"image": IMU}, "senses other than image"),
        ({"audio": IMU}, "The tower of 'audio' is one of 'imu'"),
        ({"imu": {**IMU, "dim": DIM + 1}}, r"towers\['imu'\].dim must be 16"),
        ({"imu": {"width": 16}}, 'must be {"kind": ...'),
        ({"imu": 3}, "must be settings of a tower"),
    ],
)
def test_impossible_towers_are_refused(towers: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        build_encoder("mini", size="lite0", dim=DIM, towers=towers)


def test_width_need_not_be_repeated() -> None:
    settings = {name: value for name, value in IMU.items() if name != "dim"}
    assert small_mini(imu=settings).towers["imu"].dim == DIM


def test_tower_works_in_its_own_dtype(tmp_path: Path) -> None:
    save_tower(lively(), tmp_path, dtype=torch.bfloat16)
    encoder = load_encoder(tmp_path, dtype=torch.bfloat16)
    values: Tensor = encoder.preprocess("imu", MOTION)[None]
    assert isinstance(encoder, JointEncoder)
    assert encoder.embed("imu", values).dtype == torch.bfloat16
    full = load_encoder(tmp_path, dtype=torch.float32).encode("imu", values)
    assert torch.cosine_similarity(encoder.encode("imu", values).float(), full) > 0.99


def test_saved_file_that_misses_a_tower_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    bound_model(tmp_path, imu=IMU)
    state = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("encoder.towers.imu.stem")}
    save_state_atomic(tmp_path / "model.safetensors", kept)
    with pytest.raises(CheckpointError, match="missing"):
        load_bound_encoder(tmp_path)
    with pytest.raises(CheckpointError, match="missing"), warnings.catch_warnings():
        BindLMForConditionalGeneration.from_pretrained(tmp_path)
