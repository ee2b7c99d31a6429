"""LoRA on a tower that is there already: it starts as that tower, trains little, and saves what PEFT would save."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors import safe_open
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from bindlm.encoders import load_encoder
from bindlm.encoders.bound import load_tower_folder, save_tower
from bindlm.encoders.towers import build_tower
from bindlm.encoders.towers.lora import LoraTower
from bindlm.errors import CheckpointError, ConfigError

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LINEARS = ["q_proj", "k_proj", "v_proj", "out_proj"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**SIZES, "vocab_size": 32, "max_position_embeddings": 8, "bos_token_id": 30,
                         "pad_token_id": 0, "eos_token_id": 31},
            vision_config={**SIZES, "image_size": 32, "patch_size": 16},
            projection_dim=12,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def make(clip: Path, **changed: Any) -> LoraTower:
    settings = {"encoder": str(clip), "modality": "thermal", "r": 2, "lora_alpha": 4, **changed}
    tower = build_tower("lora", **settings)
    assert isinstance(tower, LoraTower)
    return tower.eval()


def shake(tower: LoraTower) -> LoraTower:
    """Away from the start, where LoRA adds nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tower.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return tower


def thermal() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (40, 50)).astype(np.float32)


@torch.no_grad()
def test_it_starts_as_the_picture_tower(clip: Path) -> None:
    tower, encoder = make(clip), load_encoder(clip)
    values = tower.preprocess(thermal())[None]
    grey = np.repeat(np.rint(thermal() * 255).astype(np.uint8)[..., None], 3, axis=-1)
    torch.testing.assert_close(values[0], encoder.preprocess("image", grey))
    torch.testing.assert_close(tower.embed(values), encoder.embed("image", values))
    assert tower.dim == encoder.dim == 12
    assert tower.modality == "thermal"


@pytest.mark.parametrize("trained", [[], ["visual_projection"]])
def test_matrices_and_what_is_named_learn_and_nothing_else(clip: Path, trained: list[str]) -> None:
    tower = shake(make(clip, trained_modules=trained)).train()
    tower.embed(tower.preprocess(thermal())[None]).square().sum().backward()
    learning = {name: parameter for name, parameter in tower.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in learning.values())
    assert len(learning) == 2 * 4 * 2 + len(trained), "two matrices for four linears of two layers"
    frozen = [parameter for parameter in tower.parameters() if not parameter.requires_grad]
    assert frozen
    assert all(parameter.grad is None for parameter in frozen)


@pytest.mark.parametrize("trained", [[], ["visual_projection"]])
@torch.no_grad()
def test_file_holds_what_peft_would_save_and_comes_back(clip: Path, tmp_path: Path, trained: list[str]) -> None:
    tower = shake(make(clip, trained_modules=trained))
    save_tower(tower, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert names == {f"base.{name}" for name in get_peft_model_state_dict(tower.base)}
    assert any(name.endswith("q_proj.lora_A.weight") for name in names)
    loaded = load_tower_folder(tmp_path)
    values = tower.preprocess(thermal())[None]
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in tower.state_dict().items())
    torch.testing.assert_close(loaded.embed(values), tower.embed(values), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(loaded.embed(values), make(clip).embed(values))


def test_folder_with_other_matrices_is_refused(clip: Path, tmp_path: Path) -> None:
    save_tower(make(clip), tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"r": 2', '"r": 3'))
    with pytest.raises(CheckpointError, match="of another shape"):
        load_tower_folder(tmp_path)


def test_missing_matrices_are_missed(clip: Path) -> None:
    tower = make(clip)
    state = tower.state_dict()
    name = next(iter(state))
    with pytest.raises(RuntimeError, match="Missing key"):
        tower.load_state_dict({other: tensor for other, tensor in state.items() if other != name})


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"target_modules": ["no_such_layer"]}, "fit no linear layers of"),
        ({"modality": "audio", "base_modality": "audio"}, "has no 'audio'"),
        ({"r": 0}, "LoraTowerConfig.r must be"),
        ({"target_modules": 3}, "target_modules must be a list of names"),
    ],
)
def test_what_does_not_fit_is_refused(clip: Path, changed: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make(clip, **changed)
