"""Point-Bind: agreement with the published model, strict loading of both layouts, and clouds that are awkward."""

import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from bindlm.encoders import imagebind
from bindlm.encoders.point_bind import (
    I2PMAEConfig,
    PointBertConfig,
    PointBindConfig,
    PointBindEncoder,
    expected_shapes,
    from_official,
    load,
)
from bindlm.errors import CheckpointError, ConfigError

from ..golden import GOLDEN, golden

HERE = GOLDEN / "point_bind"
VARIANTS = {"point_bert": ("weights", "config"), "i2p_mae": ("i2p_mae_weights", "i2p_mae_config")}
SMALL_BERT = PointBindConfig(
    trunk=PointBertConfig(trans_dim=12, depth=1, num_heads=2, group_size=4, num_group=6, encoder_dims=8),
    proj_dim=10,
    out_dim=12,
    num_points=40,
)
SMALL_MAE = PointBindConfig(
    trunk=I2PMAEConfig((6, 12), (1, 1), (0.5, 0.9), (5, 3), (8, 4), num_heads=3),
    proj_dim=10,
    out_dim=12,
    num_points=40,
)
TINY_IMAGEBIND = {
    "out_embed_dim": 12, "vision_embed_dim": 16, "vision_num_blocks": 1, "vision_num_heads": 2,
    "vision_image_size": 28, "vision_kernel_size": [2, 7, 7], "text_embed_dim": 16, "text_num_blocks": 1,
    "text_num_heads": 2, "text_context_length": 8, "text_vocab_size": 50, "audio_embed_dim": 16,
    "audio_num_blocks": 1, "audio_num_heads": 2, "audio_num_mel_bins": 16, "audio_target_len": 24,
    "audio_kernel_size": 8, "audio_stride": 4, "depth_embed_dim": 16, "depth_num_blocks": 1, "depth_num_heads": 2,
    "depth_kernel_size": 8, "depth_image_size": 16, "thermal_embed_dim": 16, "thermal_num_blocks": 1,
    "thermal_num_heads": 2, "thermal_kernel_size": 8, "thermal_image_size": 16, "imu_embed_dim": 16,
    "imu_num_blocks": 1, "imu_num_heads": 2, "imu_length": 24,
}  # fmt: skip


def recorded(file):
    if not (HERE / file).is_file():
        pytest.skip(f"../shared/golden/point_bind/{file} is not beside this checkout")
    return json.loads((HERE / file).read_text())


@pytest.fixture(scope="module", params=VARIANTS)
def published(request):
    weights, config = VARIANTS[request.param]
    return from_official(HERE / f"{weights}.safetensors", recorded(f"{config}.json"))


@pytest.fixture(scope="module", params=[SMALL_BERT, SMALL_MAE], ids=["point_bert", "i2p_mae"])
def small(request):
    torch.manual_seed(0)
    return PointBindEncoder(request.param).eval()


def clouds(batch=3, num_points=40, seed=0):
    return torch.rand(batch, num_points, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def assert_agrees(ours, theirs, name):
    if theirs.dtype == torch.int64:
        assert torch.equal(ours, theirs), name
    else:
        assert (ours - theirs).abs().max() < 1e-5, name  # worst measured: 3.0e-6


@pytest.mark.parametrize("run", ["random_start", "start_zero"])
def test_every_stage_of_point_bert_agrees_with_the_published_model(run):
    encoder = from_official(HERE / "weights.safetensors", recorded("config.json"))
    outputs = golden("point_bind/outputs.safetensors")
    points = golden("point_bind/inputs.safetensors")["points"]
    states = encoder.intermediates(points, outputs[f"{run}.fps_start"])
    names = [name for name in outputs if name.startswith(f"{run}.") and not name.endswith("fps_start")]
    assert len(names) == 10
    for name in names:
        assert_agrees(states[name.removeprefix(f"{run}.")], outputs[name], name)


def test_without_a_start_point_bert_begins_at_the_first_point():
    encoder = from_official(HERE / "weights.safetensors", recorded("config.json"))
    outputs = golden("point_bind/outputs.safetensors")
    points = golden("point_bind/inputs.safetensors")["points"]
    assert_agrees(encoder.official_output("point", points), outputs["start_zero.embedding"], "embedding")
    assert_agrees(encoder.embed("point", points), outputs["start_zero.head"], "head")
    start = outputs["random_start.fps_start"]
    for output in (encoder.encode("point", points, fps_start=start), encoder.encode("point", points)):
        assert torch.allclose(output.norm(dim=-1), torch.ones(2), atol=1e-6)
    assert not torch.allclose(encoder.encode("point", points, fps_start=start), encoder.encode("point", points))


def test_every_stage_of_i2p_mae_agrees_with_the_published_model():
    encoder = from_official(HERE / "i2p_mae_weights.safetensors", recorded("i2p_mae_config.json"))
    outputs = golden("point_bind/i2p_mae_golden.safetensors")
    states = encoder.intermediates(outputs["points"])
    for name in set(outputs) - {"points"}:
        assert_agrees(states[name], outputs[name], name)


@pytest.mark.parametrize(
    ("config", "layout", "manifest"),
    [
        (PointBindConfig.point_bert(), "imagebind_w3d", "point_bind_in_imagebind_w3d"),
        (PointBindConfig.point_bert(), "pointbind", "point_bind_pointbert"),
        (PointBindConfig.i2p_mae(), "pointbind", "point_bind_i2pmae"),
    ],
)
def test_released_sizes_have_the_published_names_and_shapes(config, layout, manifest):
    path = GOLDEN / "manifests" / f"{manifest}.json"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside this checkout")
    published = {name: tuple(shape) for name, shape in json.loads(path.read_text())["keys"].items()}
    assert expected_shapes(config, layout) == published


def test_the_state_dict_has_the_names_of_the_published_extension():
    path = GOLDEN / "imagebind" / "manifest.json"
    if not path.is_file():
        pytest.skip("../shared/golden/imagebind/manifest.json is not beside this checkout")
    published = json.loads(path.read_text())["point_extension_extra_keys"]
    with torch.device("meta"):
        encoder = PointBindEncoder()
    held = {name: list(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert held == {name: entry["shape"] for name, entry in published.items()}
    kinds = {name for name, entry in published.items() if entry["kind"] == "parameter"}
    assert {name for name, _ in encoder.named_parameters()} == kinds


def test_an_embedding_does_not_depend_on_the_batch(small):
    points = clouds(batch=5)
    together = small.intermediates(points)
    for number in range(5):
        alone = small.intermediates(points[number : number + 1])
        for name, values in alone.items():
            if values.dtype == torch.int64:
                assert torch.equal(values[0], together[name][number]), name
        assert torch.allclose(alone["embedding"][0], together["embedding"][number], atol=1e-6)


def test_an_embedding_does_not_depend_on_the_order_of_points_behind_the_start(small):
    points = clouds(batch=1)
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(39)])
    assert torch.allclose(small.encode("point", points), small.encode("point", points[:, order]), atol=1e-5)


def test_double_and_half_precision_clouds_are_grouped_as_single_precision(small):
    points = clouds().half()
    expected = small.encode("point", points.float())
    assert torch.equal(small.encode("point", points), expected)
    assert torch.equal(small.encode("point", points.double()), expected)


def test_bf16_weights_group_the_same_points_and_stay_near(small):
    points = clouds()
    half = PointBindEncoder(small.config).eval()
    half.load_state_dict(small.state_dict())
    half.bfloat16()
    exact, rough = small.intermediates(points), half.intermediates(points)
    for name, values in exact.items():
        if values.dtype == torch.int64:
            assert torch.equal(values, rough[name]), name
    assert F.cosine_similarity(exact["head"], rough["head"].float()).min() > 0.98


def test_the_head_drops_nothing_in_eval_mode_and_something_in_training(small):
    points = clouds()
    assert torch.equal(small.embed("point", points), small.embed("point", points))
    head = small.modality_heads["point"].train()
    features = torch.randn(4, 10)
    assert not torch.equal(head(features), head(features))
    small.eval()


def test_gradients_reach_every_weight(small):
    encoder = PointBindEncoder(small.config).train()
    encoder.embed("point", clouds(batch=4)).square().sum().backward()
    without = [name for name, weight in encoder.named_parameters() if weight.grad is None]
    assert not without


@pytest.mark.parametrize(
    "points",
    [
        torch.zeros(40, 3),
        torch.zeros(2, 3, 40),
        torch.zeros(2, 40, 4),
        torch.zeros(2, 40, 3, dtype=torch.int64),
        torch.zeros(0, 40, 3),
        torch.zeros(2, 3, 3),
    ],
    ids=["no batch", "channels first", "four columns", "integers", "no cloud", "fewer than a group"],
)
def test_points_of_another_shape_are_refused(small, points):
    with pytest.raises(ConfigError):
        small.embed("point", points)


@pytest.mark.parametrize("start", [-1, 40, 1.5, torch.tensor([0, 1]), torch.tensor([0, 1, 40])])
def test_an_impossible_start_is_refused(start):
    with pytest.raises(ConfigError, match="fps_start"):
        PointBindEncoder(SMALL_BERT).embed("point", clouds(), fps_start=start)


def test_i2p_mae_takes_no_start():
    with pytest.raises(ConfigError, match="fps_start"):
        PointBindEncoder(SMALL_MAE).embed("point", clouds(), fps_start=1)


def test_a_cloud_of_one_place_has_an_embedding(small):
    assert small.encode("point", torch.full((1, 40, 3), 0.5)).isfinite().all()


def test_the_official_output_is_as_long_as_its_scale_and_at_most_100(small):
    points = clouds()
    scale = small.modality_postprocessors["point"]["1"].log_logit_scale
    for stored, length in ((0.0, 1.0), (1.0, 2.718282), (9.0, 100.0)):
        scale.fill_(stored)
        assert torch.allclose(small.official_output("point", points).norm(dim=-1), torch.full((3,), length))
    scale.fill_(0.0)


# Loading


def saved(tmp_path, tensors, name="file.safetensors"):
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, tmp_path / name)
    return tmp_path / name


def in_layout(state, layout):
    if layout == "imagebind_w3d":
        return dict(state)
    renamed = {"logit_scale": torch.tensor(2.6593)}
    for name, tensor in state.items():
        name = name.replace("point_trunk.", "").replace("modality_heads.point", "bind.modality_head_point")
        renamed[name.replace("modality_postprocessors.point", "bind.modality_postprocessor_point")] = tensor
    return renamed


@pytest.mark.parametrize("layout", ["imagebind_w3d", "pointbind"])
def test_both_layouts_give_the_same_encoder(small, tmp_path, layout):
    path = saved(tmp_path, in_layout(small.state_dict(), layout))
    loaded = from_official(path, small.config)
    assert loaded.modalities == ("point",)
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.parameters())
    assert torch.equal(loaded.embed("point", clouds()), small.embed("point", clouds()))


def test_pickled_tensors_load_as_published(small, tmp_path):
    torch.save(in_layout(small.state_dict(), "pointbind"), tmp_path / "pointbind.pt")
    loaded = from_official(tmp_path / "pointbind.pt", small.config)
    assert torch.equal(loaded.embed("point", clouds()), small.embed("point", clouds()))


@pytest.mark.parametrize("layout", ["imagebind_w3d", "pointbind"])
def test_every_key_is_needed(small, tmp_path, layout):
    whole = in_layout(small.state_dict(), layout)
    for number, name in enumerate(whole):
        if name == "logit_scale":  # of training alone
            continue
        path = saved(tmp_path, {key: each for key, each in whole.items() if key != name}, f"{number}.safetensors")
        with pytest.raises(CheckpointError, match=r"1 missing"):
            from_official(path, small.config)


@pytest.mark.parametrize("layout", ["imagebind_w3d", "pointbind"])
@pytest.mark.parametrize("surplus", ["point_trunk.point_encoder.x", "x", "point_encoder.x", "bind.x", "bind.point.x"])
def test_a_surplus_key_is_refused(small, tmp_path, layout, surplus):
    path = saved(tmp_path, in_layout(small.state_dict(), layout) | {surplus: torch.zeros(1)})
    with pytest.raises(CheckpointError, match="not expected"):
        from_official(path, small.config, modalities=["point"])


def test_a_wrong_shape_a_cut_file_and_a_missing_file_are_refused(small, tmp_path):
    state = small.state_dict()
    path = saved(tmp_path, state | {"point_trunk.pc_projection": torch.zeros(3, 3)})
    with pytest.raises(CheckpointError, match="of another shape"):
        from_official(path, small.config)
    whole = saved(tmp_path, state).read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            from_official(path, small.config)
    with pytest.raises(CheckpointError, match="missing"):
        from_official(tmp_path / "nowhere.pt", small.config)


@pytest.mark.parametrize("config", [PointBindConfig.point_bert(), PointBindConfig.i2p_mae()], ids=["bert", "mae"])
def test_without_a_config_the_released_size_is_told_by_the_keys(config, tmp_path):
    shapes = expected_shapes(config, "pointbind")
    path = saved(tmp_path, {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()})
    with warnings.catch_warnings(action="ignore"):  # the licence is told once a process
        loaded = from_official(path)
    assert loaded.config == config


def test_a_converted_encoder_keeps_its_scale_exact(small, tmp_path):
    state = small.state_dict() | {"modality_postprocessors.point.1.log_logit_scale": torch.tensor(1.2345)}
    loaded = from_official(saved(tmp_path, state), small.config, dtype=torch.bfloat16)
    assert loaded.modality_postprocessors["point"]["1"].log_logit_scale == torch.tensor(1.2345)
    assert loaded.point_trunk.pc_projection.dtype == torch.bfloat16


# ImageBind in the same file


@pytest.fixture(scope="module")
def partner():
    torch.manual_seed(1)
    return imagebind.ImageBindEncoder(TINY_IMAGEBIND).eval()


def whole_file(tmp_path, small, partner, layout):
    prefix = "bind." if layout == "pointbind" else ""
    others = {prefix + name: tensor for name, tensor in partner.state_dict().items()}
    return saved(tmp_path, in_layout(small.state_dict(), layout) | others)


@pytest.mark.parametrize("layout", ["imagebind_w3d", "pointbind"])
def test_all_eight_senses_load_from_one_file(small, partner, tmp_path, layout):
    path = whole_file(tmp_path, small, partner, layout)
    loaded = from_official(path, small.config, imagebind_config=TINY_IMAGEBIND)
    assert loaded.modalities == ("image", "video", "text", "audio", "depth", "thermal", "imu", "point")
    sounds = torch.randn(2, 3, 1, 16, 24)
    for call in ("embed", "encode", "official_output"):
        assert torch.equal(getattr(loaded, call)("audio", sounds), getattr(partner, call)("audio", sounds))
        assert torch.equal(getattr(loaded, call)("point", clouds()), getattr(small, call)("point", clouds()))
    assert not any(weight.requires_grad for weight in loaded.parameters())


@pytest.mark.parametrize("layout", ["imagebind_w3d", "pointbind"])
def test_only_the_senses_asked_for_are_loaded(small, partner, tmp_path, layout):
    path = whole_file(tmp_path, small, partner, layout)
    settings = {"imagebind_config": TINY_IMAGEBIND}
    alone = from_official(path, small.config, modalities=["point"], **settings)
    assert alone.modalities == ("point",)
    assert alone.imagebind is None
    some = from_official(path, small.config, modalities=["audio", "point"], **settings)
    assert some.modalities == ("audio", "point")
    with pytest.raises(ConfigError, match="'image'"):
        some.embed("image", torch.zeros(1, 3, 28, 28))


def test_a_damaged_imagebind_is_refused_even_where_nobody_asks_for_it(small, partner, tmp_path):
    state = (
        small.state_dict() | partner.state_dict() | {"modality_trunks.audio.pre_transformer_layer.9": torch.ones(1)}
    )
    for modalities in (None, ["point"], ["point", "text"]):
        with pytest.raises(CheckpointError, match="not expected"):
            from_official(saved(tmp_path, state), small.config, modalities=modalities, imagebind_config=TINY_IMAGEBIND)


def test_senses_that_the_file_lacks_are_refused(small, tmp_path):
    path = saved(tmp_path, small.state_dict())
    with pytest.raises(CheckpointError, match="3-D encoder alone"):
        from_official(path, small.config, modalities=["point", "image"])


@pytest.mark.parametrize("modalities", [["image"], [], ["point", "smell"]])
def test_impossible_senses_are_refused(small, tmp_path, modalities):
    with pytest.raises(ConfigError):
        from_official(saved(tmp_path, small.state_dict()), small.config, modalities=modalities)


def test_a_partner_of_another_width_is_refused(partner):
    with pytest.raises(ConfigError, match="out_dim"):
        PointBindEncoder(PointBindConfig(trunk=SMALL_BERT.trunk, out_dim=13), partner)


def test_load_gives_the_other_senses_alone_where_points_are_not_asked_for(monkeypatch, small, partner, tmp_path):
    joined = PointBindEncoder(small.config, partner)
    monkeypatch.setattr("bindlm.encoders.point_bind.from_official", lambda *args, **settings: joined)
    assert load("file", modalities=["image"]) is partner
    assert load("file", modalities=["image", "point"]) is joined
    assert load("file") is joined


# Configs


def test_configs_of_published_and_recorded_dictionaries_are_read():
    released = {"trans_dim": 384, "drop_path_rate": 0.1, "cls_dim": 40, "first_conv": [3, 128, 256]}
    assert PointBindConfig.from_dict({"encoder": released, "about": "words"}) == PointBindConfig.point_bert()
    assert PointBindConfig.from_dict({"trunk": SMALL_MAE.trunk}).trunk == SMALL_MAE.trunk
    read = PointBindConfig.from_dict({"num_groups": [8, 4], "group_sizes": [5, 3], "encoder_dims": [6, 12],
                                      "encoder_depths": [1, 1], "local_radius": [0.5, 0.9], "num_heads": 3,
                                      "proj_dim": 10, "out_dim": 12, "n_points": 40})  # fmt: skip
    assert read == SMALL_MAE


@pytest.mark.parametrize(
    "settings",
    [
        {"trans_dim": 384, "num_head": 6},
        {"trans_dim": 10},
        {"depth": 0},
        {"group_size": True},
        {"proj_dim": -1},
        {"encoder": 3},
        {"encoder": {"first_conv": [3, 64, 256]}},
        {"encoder": {"qkv_bias": True}},
        {"num_groups": [512, 256], "encoder_depths": [5, 5, 5]},
        {"num_groups": [512, 16, 64]},
        {"num_groups": "many"},
        {"num_points": 31},
        {"head_norm_eps": float("nan")},
        {"max_logit_scale": 0},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        PointBindConfig.from_dict(settings)


# Media


def test_preprocessed_points_are_what_the_encoder_takes(small):
    values = small.preprocess("point", clouds(1, 100)[0].numpy())
    assert values.shape == (40, 3)
    assert values.dtype == torch.float32
    assert small.encode("point", values[None]).shape == (1, 12)


def test_preprocessing_of_another_sense_goes_to_imagebind(small, partner, monkeypatch):
    asked = []
    monkeypatch.setattr(
        type(partner), "preprocess", lambda self, *args, **settings: asked.append((args, settings)) or torch.zeros(1)
    )
    PointBindEncoder(small.config, partner).preprocess("audio", "a.wav", allow_url=True)
    assert asked == [(("audio", "a.wav"), {"allow_url": True})]
    with pytest.raises(ConfigError):
        small.preprocess("audio", "a.wav")


def test_the_recorded_cloud_is_prepared_as_recorded():
    from bindlm.media.points_sampling import farthest_point_indices

    outputs = golden("point_bind/outputs.safetensors")
    cloud = golden("point_bind/inputs.safetensors")["raw_cloud"][None, :, :3]
    indices = farthest_point_indices(cloud, 128, int(outputs["preprocess.fps_start"]))
    assert torch.equal(indices[0], outputs["preprocess.fps_indices"])
