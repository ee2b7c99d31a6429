"""The mini's stages, each from a recipe: joint space, readout, bind, instruct."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bindlm.bound_encoder import load_tower
from bindlm.bridges.bind_network import init_near_zero_residuals
from bindlm.checkpoints import load_language_model, load_state, resolve, save_state_atomic
from bindlm.configuration import BindLMConfig
from bindlm.encoders import MiniEncoder
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.training.mini.data import MiniDataset, MixConfig, collate
from bindlm.training.mini.features import picture_features
from bindlm.training.mini.readout import Readout, name_targets
from bindlm.training.mini.samples import EmbeddingSampler, NoiseConfig
from bindlm.training.mini.space import build_space
from bindlm.training.mini.vocabulary import Entry, load_vocabulary
from bindlm.training.trainer import train


@dataclass
class ModelConfig:
    """What the mini is made of."""

    language_model: str
    """Reference of the frozen language model."""
    image_tower: str
    """Reference of the frozen image tower."""
    size: str = "lite2"
    """Its size."""
    dim: int = 1024
    """D_joint."""
    hidden_dim: int = 1536
    """C_h of the bind network; the paper's 4 C would not fit 40 MB beside other senses."""
    gate_bound: float | None = 1.0
    """Where gates saturate."""
    cache_alpha: float = 0.7
    """Share of the retrieved prototypes."""
    cache_top_k: int = 10
    """Prototypes that count."""
    cache_temperature: float = 25.0
    """Sharpness; at 25 the cache's weights match the head's own softmax best (KL 0.07 on 211 pictures)."""
    answer_alpha: float = 0.8
    """The cache's share in the finished model: chosen, with the temperature, on validation photographs."""
    answer_temperature: float = 32.0
    """Sharpness in the finished model; in training a softer cache keeps the bridge from seeing one prototype only."""
    lora: dict[str, Any] | None = None
    """Adapters of the instruct stage."""


@dataclass
class SpaceRecipe:
    """Joint space and visual cache."""

    model: ModelConfig
    num_views: int = 4
    """Random views of each picture."""
    shrinkage: float = 0.5
    """Share of a round covariance in the whitening."""
    picture_key_length: float = 0.7
    """Length of a picture's key beside the classes' 1."""
    seed: int = 7
    """Of the views."""


@dataclass
class StageRecipe:
    """One stage of training."""

    num_steps: int
    batch_size: int
    learning_rate: float
    gate_learning_rate: float | None = None
    """Peak for the gates; None for the same."""
    weight_decay: float = 0.01
    warmup_steps: int = 20
    save_every: int = 100
    kind_share: float = 0.25
    """Readout only: how much the kind's tokens count beside the name's."""
    train_bridge: bool = False
    """Instruct only: whether bridge and gates go on learning beside LoRA. The paper freezes them after stage 1; the
    mini's stage 1 is short, and its names are still being learned."""
    mix: MixConfig = field(default_factory=MixConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    seed: int = 0


class MiniRun:
    """A folder in which the mini comes to be, stage by stage; each stage finds what the one before left.

    Args:
        folder: of the run.
        packages: folder that keeps unpacked Debian packages.
        recipe: joint space and model.
    """

    def __init__(self, folder: Path, packages: Path, recipe: SpaceRecipe) -> None:
        self.folder = folder
        self.packages = packages
        self.recipe = recipe
        folder.mkdir(parents=True, exist_ok=True)
        settings = recipe.model
        language_model, self.tokenizer = load_language_model(settings.language_model)
        config = BindLMConfig(
            text_config=language_model.config,
            language_model=settings.language_model,
            encoder={"family": "mini", "size": settings.size, "dim": settings.dim},
            encoder_weights={"image_tower": settings.image_tower},
            bridge={
                "input_dim": settings.dim,
                "output_dim": language_model.config.hidden_size,
                "hidden_dim": settings.hidden_dim,
                "is_output_normalized": True,
            },
            injection={"gate_bound": settings.gate_bound},
        )
        torch.manual_seed(recipe.seed)
        self.model = BindLMForConditionalGeneration(config, language_model)
        self.model.requires_grad_(False)
        load_tower(self.model.encoder, "image_tower", resolve(settings.image_tower))
        init_near_zero_residuals(self.model.bridge)
        self._build_space()

    def _build_space(self) -> None:
        """Whitening, prototypes and cache, from the tower and the pictures."""
        recipe, settings = self.recipe, self.recipe.model
        encoder = self.model.encoder
        assert isinstance(encoder, MiniEncoder)
        tower = encoder.image_tower.eval()
        pictures, features = picture_features(
            tower, self.packages, self.folder / "features.safetensors", num_views=recipe.num_views, seed=recipe.seed
        )
        space = build_space(
            tower,
            features,
            dim=settings.dim,
            shrinkage=recipe.shrinkage,
            picture_key_length=recipe.picture_key_length,
        )
        encoder.mean.copy_(space.mean)
        encoder.projection.copy_(space.projection.bfloat16().float())  # as it will be stored
        views = F.normalize(encoder.project(features), dim=-1)
        self.entries: list[Entry] = [*load_vocabulary(), *pictures]
        self.views = views
        self.class_keys = space.class_keys
        keys = torch.cat([space.class_keys, space.picture_keys]).bfloat16().float()
        self.model.add_cache(
            keys,
            top_k=settings.cache_top_k,
            alpha=settings.cache_alpha,
            temperature=settings.cache_temperature,
        )

    def _dataset(self, recipe: StageRecipe, has_text: bool) -> MiniDataset:
        return MiniDataset(
            self.entries,
            EmbeddingSampler(self.class_keys, self.views, recipe.noise),
            self.tokenizer if has_text else None,
            recipe.mix,
            num_samples=recipe.num_steps * recipe.batch_size,
            seed=recipe.seed,
        )

    def _train(self, name: str, model: torch.nn.Module, collator: Any, recipe: StageRecipe) -> None:
        """Run a stage unless its result is there."""
        result = self.folder / f"{name}.safetensors"
        trainable = {key: value for key, value in self.model.named_parameters() if value.requires_grad}
        if not result.is_file():
            train(
                model,
                self._dataset(recipe, has_text=model is self.model),
                collator,
                folder=self.folder / name,
                num_steps=recipe.num_steps,
                batch_size=recipe.batch_size,
                learning_rate=recipe.learning_rate,
                gate_learning_rate=recipe.gate_learning_rate,
                weight_decay=recipe.weight_decay,
                warmup_steps=recipe.warmup_steps,
                save_every=recipe.save_every,
                seed=recipe.seed,
            )
            save_state_atomic(result, {key: value.detach() for key, value in trainable.items()})
        state = load_state(result, expected={key: tuple(value.shape) for key, value in trainable.items()})
        self.model.load_state_dict(state, strict=False)
        self.model.requires_grad_(False).eval()

    def readout(self, recipe: StageRecipe) -> None:
        """Token pretraining of the bridge."""
        language_model = self.model.language_model
        readout = Readout(
            self.model.bridge,
            self.model.cache,
            language_model.get_decoder().norm.weight.data,
            language_model.get_output_embeddings().weight.data,
            name_targets(self.entries, self.tokenizer, language_model.config.vocab_size, recipe.kind_share),
        )
        self.model.bridge.requires_grad_(True)
        self._train("readout", readout, _collate_entries, recipe)

    def bind(self, recipe: StageRecipe) -> None:
        """Stage 1 of the paper: bind network and gates, language model frozen."""
        self.model.bridge.requires_grad_(True)
        self.model.injection.requires_grad_(True)
        self._train("bind", self.model, partial(collate, pad_token_id=self.tokenizer.pad_token_id), recipe)

    def instruct(self, recipe: StageRecipe) -> None:
        """Stage 2 of the paper: LoRA in the language model; bridge and gates frozen, or not (`train_bridge`)."""
        assert self.recipe.model.lora is not None
        torch.manual_seed(recipe.seed)
        adapters = self.model.add_lora(self.recipe.model.lora)
        for parameter in adapters:
            parameter.requires_grad_(True)
        self.model.bridge.requires_grad_(recipe.train_bridge)
        self.model.injection.requires_grad_(recipe.train_bridge)
        self._train("instruct", self.model, partial(collate, pad_token_id=self.tokenizer.pad_token_id), recipe)

    def export(self, folder: Path) -> None:
        """Write the mini as it ships: bf16 weights, names of the cache's entries, and the processor's settings."""
        import json

        from bindlm.processing import BindLMImageProcessor, BindLMProcessor

        settings = self.recipe.model
        assert self.model.config.cache is not None
        self.model.config.cache |= {"alpha": settings.answer_alpha, "temperature": settings.answer_temperature}
        state = {name: tensor.detach() for name, tensor in self.model.state_dict().items()}
        stored: dict[str, Tensor] = {name: _as_shipped(name, state[name]) for name in self.model.saved_names()}
        self.model.save_pretrained(folder, state_dict=stored)
        BindLMProcessor(image_processor=BindLMImageProcessor()).save_pretrained(folder)
        table = [[entry.name, entry.kind, entry.source] for entry in self.entries]
        (folder / "cache_entries.json").write_text(json.dumps(table, ensure_ascii=False, indent=0) + "\n", "utf-8")


def _as_shipped(name: str, tensor: Tensor) -> Tensor:
    return tensor if tensor.numel() < 10_000 else tensor.bfloat16()


def _collate_entries(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {
        "joint_embedding": torch.stack([sample["joint_embedding"] for sample in samples]),
        "entry": torch.tensor([sample["entry"] for sample in samples]),
    }
