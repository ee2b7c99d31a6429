"""The time block against explicit loops over frames, tokens, heads and positions, for both releases."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.encoders.tiny_languagebind import (
    DIM,
    HEADS,
    LAYERS,
    PATCH,
    WIDTH,
    add_time,
    clip_model,
    official_config,
    write_folder,
)
from torch import Tensor

from bindlm.encoders.languagebind import LanguageBindEncoder
from bindlm.encoders.languagebind_config import LanguageBindTowerConfig
from bindlm.encoders.languagebind_tower import LanguageBindTower
from bindlm.errors import CheckpointError, ConfigError

_FRAMES = 3


def _linear(state: dict[str, Tensor], name: str, vector: Tensor) -> Tensor:
    return state[f"{name}.weight"] @ vector + state[f"{name}.bias"]


def _norm(state: dict[str, Tensor], name: str, vector: Tensor) -> Tensor:
    centred = vector - vector.mean()
    scaled = centred / torch.sqrt((centred**2).mean() + 1e-5)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def _attention(state: dict[str, Tensor], name: str, vectors: list[Tensor]) -> list[Tensor]:
    """Multi-head attention among a list of vectors, one query at a time."""
    size = WIDTH // HEADS
    queries, keys, values = ([_linear(state, f"{name}.{part}_proj", vector) for vector in vectors] for part in "qkv")
    results = []
    for query in queries:
        heads = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            scores = torch.stack([query[part] @ key[part] / math.sqrt(size) for key in keys])
            shares = scores.exp() / scores.exp().sum()
            heads.append(sum(share * value[part] for share, value in zip(shares, values, strict=True)))
        results.append(_linear(state, f"{name}.out_proj", torch.cat(heads)))
    return results


def _layer(state: dict[str, Tensor], name: str, frames: list[list[Tensor]]) -> list[list[Tensor]]:
    """Section 3 of the recipe: time embedding, time attention, spatial attention, MLP; `frames[t][n]` is a token."""
    num_frames, num_tokens = len(frames), len(frames[0])
    if num_frames != 1:
        embedding = state[f"{name}.temporal_embedding"]
        frames = [[token + embedding[0, t] for token in frames[t]] for t in range(num_frames)]
    after_time = [list(frame) for frame in frames]
    for n in range(num_tokens):
        column = [_norm(state, f"{name}.temporal_layer_norm1", frames[t][n]) for t in range(num_frames)]
        for t, change in enumerate(_attention(state, f"{name}.temporal_attn", column)):
            after_time[t][n] = frames[t][n] + change
    result = []
    for frame in after_time:
        normed = [_norm(state, f"{name}.layer_norm1", token) for token in frame]
        attended = _attention(state, f"{name}.self_attn", normed)
        frame = [token + change for token, change in zip(frame, attended, strict=True)]
        tokens = []
        for token in frame:
            hidden = F.gelu(_linear(state, f"{name}.mlp.fc1", _norm(state, f"{name}.layer_norm2", token)))
            tokens.append(token + _linear(state, f"{name}.mlp.fc2", hidden))
        result.append(tokens)
    return result


def _patches(state: dict[str, Tensor], clip: Tensor, tube: int) -> list[list[Tensor]]:
    """Tokens of each frame slot: class, then patches row by row, positions added."""
    embeddings = "vision_model.embeddings."
    weight, positions = (state[f"{embeddings}{name}.weight"] for name in ("patch_embedding", "position_embedding"))
    classes = state[f"{embeddings}class_embedding"]
    step = tube or 1
    slots = []
    for slot in range(clip.shape[1] // step):
        tokens = [(classes[slot] if tube else classes) + positions[0]]
        for row in range(2):
            for column in range(2):
                patch = clip[:, slot * step : (slot + 1) * step, row * PATCH :, column * PATCH :][..., :PATCH, :PATCH]
                patch = patch if tube else patch[:, 0]
                tokens.append((weight * patch).flatten(1).sum(1) + positions[1 + 2 * row + column])
        slots.append(tokens)
    return slots


def _reference(state: dict[str, Tensor], clip: Tensor, tube: int) -> Tensor:
    """Projection of one clip `(3, T, H, W)`, in double precision."""
    state = {name: tensor.double() for name, tensor in state.items()}
    frames = [
        [_norm(state, "vision_model.pre_layrnorm", token) for token in frame]
        for frame in _patches(state, clip.double(), tube)
    ]
    for layer in range(LAYERS):
        frames = _layer(state, f"vision_model.encoder.layers.{layer}", frames)
    pooled = [_norm(state, "vision_model.post_layernorm", frame[0]) for frame in frames]
    return state["visual_projection.weight"] @ (sum(pooled) / len(pooled))


def _video(folder: Path, tube: int, num_frames: int = _FRAMES, **more: Any) -> tuple[Path, dict[str, Tensor]]:
    vision = {"add_time_attn": True, "num_frames": num_frames, **more}
    if tube:
        vision |= {"clip_type": "vl_new", "tube_size": tube}
    config = official_config("video", **vision)
    state = dict(clip_model(config).state_dict())
    slots = num_frames // (tube or 1)
    add_time(state, slots)
    if tube:
        torch.manual_seed(3)
        state["vision_model.embeddings.patch_embedding.weight"] = torch.randn(WIDTH, 3, tube, PATCH, PATCH) * 0.05
        state["vision_model.embeddings.class_embedding"] = torch.randn(slots, WIDTH)
    return write_folder(folder, config, state), state


@pytest.mark.parametrize(("tube", "num_frames"), [(0, 3), (0, 1), (1, 3), (2, 4)])
def test_video_tower_equals_explicit_loops(tmp_path: Path, tube: int, num_frames: int) -> None:
    folder, state = _video(tmp_path / "video", tube, num_frames)
    encoder = LanguageBindEncoder.from_official(folder)
    clips = torch.randn(2, 3, num_frames, 28, 28)
    expected = torch.stack([_reference(state, clip, tube) for clip in clips])
    # Worst seen: 7e-7 on values up to 4, from float32. A time embedding left out shows below, a hundred times larger.
    torch.testing.assert_close(encoder.embed("video", clips).double(), expected, rtol=1e-5, atol=2e-5)
    if num_frames != 1:
        for name in state:
            if "temporal_embedding" in name:
                state[name] = torch.zeros_like(state[name])
        without = torch.stack([_reference(state, clip, tube) for clip in clips])
        assert (without - expected).abs().max() > 2e-3


def test_frames_matter_by_their_order(tmp_path: Path) -> None:
    encoder = LanguageBindEncoder.from_official(_video(tmp_path / "video", 0)[0])
    clips = torch.randn(1, 3, _FRAMES, 28, 28)
    difference = encoder.embed("video", clips) - encoder.embed("video", clips.flip(2))
    assert difference.abs().max() > 0.1


def test_each_clip_of_a_batch_stands_alone(tmp_path: Path) -> None:
    encoder = LanguageBindEncoder.from_official(_video(tmp_path / "video", 0)[0])
    clips = torch.randn(3, 3, _FRAMES, 28, 28)
    alone = torch.cat([encoder.embed("video", clip[None]) for clip in clips])
    torch.testing.assert_close(encoder.embed("video", clips), alone, rtol=1e-5, atol=1e-5)


def test_without_time_attention_a_clip_is_the_mean_of_its_frames(tmp_path: Path) -> None:
    config = official_config("video", num_frames=_FRAMES)
    clip = clip_model(config)
    encoder = LanguageBindEncoder.from_official(write_folder(tmp_path / "video", config, clip.state_dict()))
    clips = torch.randn(2, 3, _FRAMES, 28, 28)
    with torch.no_grad():
        single = [clip.get_image_features(clips[:, :, t]).pooler_output for t in range(_FRAMES)]
    torch.testing.assert_close(encoder.embed("video", clips), torch.stack(single).mean(0), rtol=1e-5, atol=1e-5)


def test_adapters_of_the_time_attention_are_merged(tmp_path: Path) -> None:
    folder, state = _video(tmp_path / "plain", 0)
    config = official_config("video", add_time_attn=True, num_frames=_FRAMES, lora_r=4, lora_alpha=16)
    published, merged = {}, dict(state)
    torch.manual_seed(4)
    for name, tensor in state.items():
        new = name.replace("encoder.layers", "encoder.base_model.model.layers")
        published[new] = tensor
        if "temporal_attn" in name and name.endswith(".weight"):
            down, up = torch.randn(4, WIDTH) * 0.2, torch.randn(WIDTH, 4) * 0.2
            module = new.removesuffix(".weight")
            published |= {f"{module}.lora_A.default.weight": down, f"{module}.lora_B.default.weight": up}
            merged[name] = tensor + 16 / 4 * up @ down
    encoder = LanguageBindEncoder.from_official(write_folder(tmp_path / "lora", config, published))
    clip = torch.randn(3, _FRAMES, 28, 28)
    expected = _reference(merged, clip, 0)
    torch.testing.assert_close(encoder.embed("video", clip[None])[0].double(), expected, rtol=1e-4, atol=1e-4)


def test_another_number_of_frames_is_refused(tmp_path: Path) -> None:
    encoder = LanguageBindEncoder.from_official(_video(tmp_path / "video", 0)[0])
    with pytest.raises(ConfigError, match=r"takes values \(B, 3, 3, 28, 28\)"):
        encoder.encode("video", torch.zeros(1, 3, _FRAMES + 1, 28, 28))


def test_weights_of_the_other_release_are_refused(tmp_path: Path) -> None:
    folder, _ = _video(tmp_path / "video", 1)
    (folder / "config.json").write_text((_video(tmp_path / "old", 0)[0] / "config.json").read_text())
    with pytest.raises(CheckpointError, match="2 of another shape: .*class_embedding"):
        LanguageBindEncoder.from_official(folder)


def test_fresh_time_blocks_start_as_the_published_code_starts_them() -> None:
    config = LanguageBindTowerConfig(
        hidden_size=64, num_layers=1, num_heads=2, mlp_size=32, num_frames=8, has_time_attention=True
    )
    layer = LanguageBindTower(config, DIM).vision_model.encoder.layers[0]
    for ours, theirs in ((layer.temporal_attn, layer.self_attn), (layer.temporal_layer_norm1, layer.layer_norm1)):
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name])
    assert layer.temporal_embedding.std().item() == pytest.approx(64**-0.5, rel=0.2)
