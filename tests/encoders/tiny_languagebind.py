"""Tiny published folders of LanguageBind, written as transformers 4.30 and PEFT of 2023 would name things."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

WIDTH, LAYERS, HEADS, PATCH, DIM = 16, 2, 2, 14, 12
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 9,
    "hidden_act": "gelu",
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": 28,
    "patch_size": PATCH,
    "hidden_act": "gelu",
    "projection_dim": 512,
    "lora_r": 0,
}


def official_config(sense: str, **vision: Any) -> dict[str, Any]:
    """A published config.json."""
    return {
        "model_type": f"LanguageBind{sense.title()}",
        "projection_dim": DIM,
        "text_config": dict(TEXT),
        "text_config_dict": None,
        "vision_config": {**VISION, **vision},
    }


def clip_model(config: dict[str, Any]) -> CLIPModel:
    """transformers' own CLIP of the sizes of a published config, seeded and with every weight away from its start."""
    torch.manual_seed(0)
    eos = {"bos_token_id": 0, "pad_token_id": 1}
    model = CLIPModel(
        CLIPConfig(
            text_config={**config["text_config"], **eos},
            vision_config=config["vision_config"],
            projection_dim=config["projection_dim"],
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def add_time(state: dict[str, Tensor], num_frames: int) -> None:
    """Random temporal blocks for every layer."""
    torch.manual_seed(1)
    for layer in range(LAYERS):
        prefix = f"vision_model.encoder.layers.{layer}."
        state[prefix + "temporal_embedding"] = torch.randn(1, num_frames, WIDTH)
        for norm in ("weight", "bias"):
            state[f"{prefix}temporal_layer_norm1.{norm}"] = torch.randn(WIDTH)
        for matrix in "qkv", "out":
            for part in matrix if matrix == "qkv" else [matrix]:
                state[f"{prefix}temporal_attn.{part}_proj.weight"] = torch.randn(WIDTH, WIDTH) * 0.3
                state[f"{prefix}temporal_attn.{part}_proj.bias"] = torch.randn(WIDTH)


def write_folder(folder: Path, config: dict[str, Any], state: dict[str, Tensor], *, pickled: bool = False) -> Path:
    """config.json and weights, with the buffers that old files store."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    state["text_model.embeddings.position_ids"] = torch.arange(9)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    (folder / "config.json").write_text(json.dumps(config))
    if pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors")
    return folder
