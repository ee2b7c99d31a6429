"""What the mini needs before its stages: a joint space, a visual cache, a bridge that points at names, and pairs."""

from pathlib import Path

import torch
import torch.nn.functional as F

from bindlm.bound_encoder import load_tower
from bindlm.bridges.bind_network import BindNetwork, init_near_zero_residuals
from bindlm.checkpoints import load_language_model, load_state, resolve, save_state_atomic
from bindlm.checkpoints.state import write_text_atomic
from bindlm.configuration import BindLMConfig
from bindlm.embedding import load_embedder
from bindlm.encoders import MiniEncoder
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.processing import BindLMImageProcessor, BindLMProcessor
from bindlm.space.entry_names import NamedEntry
from bindlm.training.mini.draws import EntryDraws, ReadoutBatches
from bindlm.training.mini.features import picture_features
from bindlm.training.mini.pairs import write_pairs
from bindlm.training.mini.readout import Readout, name_targets
from bindlm.training.mini.recipes import DrawConfig, ModelConfig, PairsRecipe, ReadoutRecipe, SpaceRecipe
from bindlm.training.mini.space import build_space
from bindlm.training.mini.vocabulary import load_vocabulary
from bindlm.training.trainer import train

START = "0-readout"
"""Folder of the bound model that stage 1 starts from."""
_DONE = "done.txt"
"""In it: the recipes it was made by."""


class MiniPreparation:
    """A folder in which the mini comes to be.

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
        torch.manual_seed(recipe.seed)
        self.model, self.tokenizer = _unbound(recipe.model)
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
        self.entries: list[NamedEntry] = [*load_vocabulary(), *pictures]
        self.views = F.normalize(encoder.project(features), dim=-1)
        self.class_keys = space.class_keys
        self.model.add_cache(
            torch.cat([space.class_keys, space.picture_keys]).bfloat16().float(),
            top_k=settings.cache_top_k,
            alpha=settings.cache_alpha,
            temperature=settings.cache_temperature,
        )

    def _draws(self, config: DrawConfig) -> EntryDraws:
        return EntryDraws(self.entries, self.class_keys, self.views, config)

    def readout(self, recipe: ReadoutRecipe) -> None:
        """Token pretraining of the bridge; leaves the bound model that stage 1 starts from.

        Nothing is done where that model is there already: made again, with another number of threads, the whitening
        differs in its last digits, and what was drawn in the earlier space would be of another encoder.
        """
        start = self.folder / START
        wanted = repr((self.recipe, recipe))
        if (start / _DONE).is_file() and (start / _DONE).read_text(encoding="utf-8") == wanted:
            return
        result = self.folder / "readout.safetensors"
        bridge = self.model.bridge.requires_grad_(True)
        assert isinstance(bridge, BindNetwork)
        if not result.is_file():
            language_model = self.model.language_model
            readout = Readout(
                bridge,
                self.model.cache,
                language_model.get_decoder().norm.weight.data,
                language_model.get_output_embeddings().weight.data,
                name_targets(self.entries, self.tokenizer, language_model.config.vocab_size, recipe.kind_share),
            )
            train(
                readout,
                ReadoutBatches(
                    self._draws(recipe.draw),
                    num_batches=recipe.num_steps,
                    batch_size=recipe.batch_size,
                    seed=recipe.seed,
                ),
                folder=self.folder / "readout",
                num_steps=recipe.num_steps,
                learning_rate=recipe.learning_rate,
                weight_decay=recipe.weight_decay,
                warmup_steps=recipe.warmup_steps,
                save_every=recipe.save_every,
                seed=recipe.seed,
            )
            save_state_atomic(result, {f"bridge.{name}": value for name, value in bridge.state_dict().items()})
        state = load_state(result)
        bridge.load_state_dict({name.removeprefix("bridge."): value for name, value in state.items()})
        self.model.requires_grad_(False).eval()
        self.model.save_pretrained(start)
        BindLMProcessor(image_processor=BindLMImageProcessor()).save_pretrained(start)
        write_text_atomic(start / _DONE, wanted)

    def pairs(self, recipe: PairsRecipe) -> None:
        """What the two stages train on."""
        embedder = load_embedder(self.folder / START)
        for stage in ("pretrain", "instruct"):
            config = getattr(recipe, stage)
            write_pairs(
                self.folder / "pairs" / stage,
                self._draws(config.draw),
                config,
                fingerprint=embedder.fingerprint,
            )


def _unbound(settings: ModelConfig) -> tuple[BindLMForConditionalGeneration, object]:
    """The parts, with a new bridge, and the tokenizer."""
    language_model, tokenizer = load_language_model(settings.language_model)
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
    model = BindLMForConditionalGeneration(config, language_model)
    model.requires_grad_(False)
    load_tower(model.encoder, "image_tower", resolve(settings.image_tower))
    assert isinstance(model.bridge, BindNetwork)
    init_near_zero_residuals(model.bridge)
    return model, tokenizer
