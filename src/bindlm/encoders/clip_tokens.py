"""All tokens of CLIP's picture tower, class and patches, each in CLIP's own space: how LLaMA-Adapter V2 sees.

LLaMA-Adapter V2 (arXiv 2304.15010), as released: CLIP ViT-L/14 at 224 pixels; the last norm and the projection, which
CLIP itself applies to the class token alone, are applied to each of the 257.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bindlm.checkpoints.quiet import quiet_transformers
from bindlm.encoders.base import JointEncoder, check_dtype
from bindlm.encoders.chosen import choose_modalities
from bindlm.encoders.hosted import one_line
from bindlm.errors import CheckpointError, ConfigError

__all__ = ["CLIP_TOKENS", "CLIP_TOKENS_BGR", "ClipTokensConfig", "ClipTokensEncoder"]

CLIP_TOKENS = "clip_tokens"
"""Family name: red first, as CLIP was trained."""
CLIP_TOKENS_BGR = "clip_tokens_bgr"
"""Family name: blue first, as the published LLaMA-Adapter V2 was trained: its pictures were never brought to red
first, and CLIP's mean and deviation of red were applied to blue."""


@dataclass(frozen=True)
class ClipTokensConfig:
    """A picture tower of CLIP."""

    model: Mapping[str, Any]
    """Its `CLIPVisionConfig` as a dictionary; `projection_dim` is the width of a token."""
    is_blue_first: bool = False
    """Whether red and blue of a picture are swapped before anything else."""


class ClipTokensEncoder(JointEncoder):
    """Pictures to `(B, P, D)`, class token first, and no joint embedding: these are no directions of unit length.

    Args:
        config: the tower's own configuration, and the order of colours.

    Example:
        >>> encoder = ClipTokensEncoder.from_folder("clip-vit-large-patch14", is_blue_first=True)
        >>> encoder.encode("image", encoder.preprocess("image", "cat.jpg")[None]).shape
        torch.Size([1, 257, 768])
    """

    modalities: tuple[str, ...] = ("image",)

    def __init__(self, config: ClipTokensConfig) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        super().__init__()
        settings = {name: value for name, value in config.model.items() if name != "model_type"}
        try:
            model = CLIPVisionModelWithProjection(CLIPVisionConfig(**settings))
        except Exception as error:  # whatever the strict configs of transformers raise
            raise ConfigError(f"ClipTokensConfig.model makes no tower of transformers: {one_line(error)}.") from None
        self._set_up(config, model)

    def _set_up(self, config: ClipTokensConfig, model: Any) -> None:
        self.config = config
        self.model = model
        self.dim: int = model.config.projection_dim

    @classmethod
    def from_folder(
        cls, path: str | os.PathLike[str], dtype: torch.dtype | None = None, *, is_blue_first: bool = False
    ) -> ClipTokensEncoder:
        """Load the tower from a folder of CLIP as transformers saves it; the text tower is not read.

        Args:
            path: the folder, of a whole CLIP or of its picture tower with projection.
            dtype: of the weights; None is the file's own.
            is_blue_first: as `ClipTokensConfig.is_blue_first`.

        Raises:
            CheckpointError: the folder, its config or its weights are missing, damaged, or not CLIP's.
        """
        from transformers import CLIPVisionModelWithProjection

        check_dtype(dtype)
        folder = Path(path)
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{folder} holds no config.json; give a folder of CLIP ViT-L/14 saved by transformers, such as that "
                "of openai/clip-vit-large-patch14"
            )
        try:
            with quiet_transformers():
                model, found = CLIPVisionModelWithProjection.from_pretrained(
                    folder,
                    local_files_only=True,
                    use_safetensors=True,
                    dtype=dtype or "auto",
                    output_loading_info=True,
                )
        except Exception as error:  # the readers of config and safetensors raise whatever they like
            raise CheckpointError(
                f"{folder} cannot be loaded as CLIP's picture tower: it needs config.json and *.safetensors of CLIP"
            ) from error
        faults = [*sorted(found["missing_keys"]), *(str(key) for key in found["mismatched_keys"])]
        if faults:
            raise CheckpointError(
                f"{folder} is no CLIP picture tower with projection: {faults[0]} is missing or of another shape "
                f"({len(faults)} in all)"
            )
        encoder = cls.__new__(cls)
        super(ClipTokensEncoder, encoder).__init__()
        encoder._set_up(ClipTokensConfig(model.config.to_dict(), is_blue_first), model)
        return encoder.eval().requires_grad_(False)

    def embed(self, modality: str, values: Tensor) -> Tensor:
        """Tokens `(B, P, D)` of pictures `(B, 3, S, S)`.

        Raises:
            ConfigError: another sense, or pictures of another shape.
        """
        self.check_modality(modality)
        side = self.model.config.image_size
        if values.ndim != 4 or values.shape[1:] != (3, side, side):
            raise ConfigError(
                f"This CLIP tower takes pictures (B, 3, {side}, {side}), got {tuple(values.shape)}; make them with "
                "the encoder's preprocess."
            )
        tower = self.model.vision_model
        tokens = tower(pixel_values=values.to(self.model.dtype)).last_hidden_state  # (B, P, D_clip)
        return self.model.visual_projection(tower.post_layernorm(tokens))  # (B, P, D)

    def encode(self, modality: str, values: Tensor) -> Tensor:
        """The same as `embed`: tokens keep their lengths, which the bridge was trained on."""
        return self.embed(modality, values)

    def official_output(self, modality: str, values: Tensor) -> Tensor:
        """The same as `embed`; the name under which families keep what their publisher's models give."""
        return self.embed(modality, values)

    def preprocess(self, modality: str, source: Any, *, allow_url: bool = False) -> Tensor:
        """One picture to float32 `(3, S, S)`: CLIP's bicubic resize, centre crop and normalisation.

        Raises:
            MediaError: the picture cannot be used.
            ConfigError: another sense.
        """
        from PIL import Image

        from bindlm.media.clip_image import clip_image_config
        from bindlm.media.image import load_image
        from bindlm.media.preprocess import preprocess_image

        self.check_modality(modality)
        image = load_image(source, allow_url=allow_url)
        if self.config.is_blue_first:
            image = Image.merge("RGB", image.split()[::-1])
        config = clip_image_config(self.model.config.image_size)
        return torch.from_numpy(preprocess_image(image, config)[0])


def build(*, is_blue_first: bool = False, **settings: Any) -> ClipTokensEncoder:
    """Fresh weights by the fields of `CLIPVisionConfig`."""
    return ClipTokensEncoder(ClipTokensConfig(settings, is_blue_first))


def load(
    path: str | os.PathLike[str],
    *,
    modalities: Iterable[str] | None = None,
    dtype: torch.dtype | None = None,
    is_blue_first: bool = False,
) -> ClipTokensEncoder:
    """`ClipTokensEncoder.from_folder` with the arguments of a row of the table of families.

    Raises:
        CheckpointError: as there.
        ConfigError: there is no such modality.
    """
    encoder = ClipTokensEncoder.from_folder(path, dtype, is_blue_first=is_blue_first)
    encoder.modalities = choose_modalities(encoder, modalities)
    return encoder


build_bgr, load_bgr = partial(build, is_blue_first=True), partial(load, is_blue_first=True)
