"""CLIP and its kin as joint encoders of pictures and texts: CLIP, MetaCLIP 2, SigLIP, SigLIP 2, ALIGN.

The graphs, picture processors and tokenizers are those of transformers; torchvision is not needed. Weights are under
licences of their own: OpenAI's CLIP under MIT, SigLIP and SigLIP 2 under Apache-2.0; read the card of any other
(MetaCLIP 2 is released for non-commercial use). This package brings none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bindlm.checkpoints.quiet import quiet_transformers
from bindlm.encoders.base import JointEncoder
from bindlm.encoders.chosen import choose_modalities
from bindlm.encoders.hosted import one_line, token_ids
from bindlm.errors import CheckpointError, ConfigError

CLIP_FAMILIES = ("clip", "metaclip_2", "siglip", "siglip2", "align")
"""Values of `model_type` in config.json. The published SigLIP 2 of a fixed size say "siglip"; "siglip2" is NaFlex,
which keeps the shape of a picture."""

_NUM_ALIGN_TOKENS = 64
"""ALIGN was trained with this many, though its positions would reach further."""
_NUM_SHAPE_COLUMNS = 2
"""Columns behind the pixels of a NaFlex patch: rows and columns of the picture's grid of patches."""


@dataclass(frozen=True)
class ClipEncoderConfig:
    """A model of the CLIP family."""

    model: Mapping[str, Any]
    """Its configuration as transformers writes it to config.json, `model_type` included."""
    folder: str | None = None
    """Where the picture processor and the tokenizer are; None where the encoder is only given tensors."""

    def __post_init__(self) -> None:
        kind = self.model.get("model_type") if isinstance(self.model, Mapping) else None
        if kind not in CLIP_FAMILIES:
            raise ConfigError(
                f"ClipEncoderConfig.model must have a model_type among {', '.join(CLIP_FAMILIES)}, got {kind!r}."
            )
        if self.folder is not None and not isinstance(self.folder, str):
            raise ConfigError(f"ClipEncoderConfig.folder must be a path as text, or None, got {self.folder!r}.")


class ClipEncoder(JointEncoder):
    """A picture tower and a text tower in one joint space.

    Args:
        config: the model's own configuration, and where its processors are.

    Example:
        >>> encoder = ClipEncoder.from_folder("clip-vit-base-patch32")
        >>> picture, text = encoder.preprocess("image", "cat.jpg"), encoder.preprocess("text", "a photo of a cat")
        >>> encoder.encode("image", picture[None]) @ encoder.encode("text", text[None]).T
        tensor([[0.3012]])
    """

    modalities: tuple[str, ...] = ("image", "text")

    def __init__(self, config: ClipEncoderConfig) -> None:
        from transformers import AutoConfig, AutoModel

        super().__init__()
        settings = dict(config.model)
        try:
            model_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        except Exception as error:  # whatever the strict configs of transformers raise
            raise ConfigError(f"ClipEncoderConfig.model makes no model of transformers: {one_line(error)}.") from None
        self._set_up(config, AutoModel.from_config(model_config))

    def _set_up(self, config: ClipEncoderConfig, model: Any) -> None:
        self.config = config
        self.model = model
        model_config = model.config
        self.family: str = model_config.model_type
        is_siglip = self.family in ("siglip", "siglip2")
        self.dim = model_config.vision_config.hidden_size if is_siglip else model_config.projection_dim
        longest = model_config.text_config.max_position_embeddings
        self.max_tokens: int = min(longest, _NUM_ALIGN_TOKENS) if self.family == "align" else longest

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> ClipEncoder:
        """Load a folder as transformers saves it: config.json, weights, preprocessor_config.json, tokenizer.

        Args:
            path: the folder.
            dtype: of the weights; None is the file's own.

        Raises:
            CheckpointError: the folder, its config or its weights are missing, damaged, or not of this family.
        """
        from transformers import AutoConfig, AutoModel

        folder = Path(path)
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} holds no config.json; give a folder saved by transformers")
        try:
            with quiet_transformers():
                model_config = AutoConfig.from_pretrained(folder, local_files_only=True)
                config = ClipEncoderConfig(model=model_config.to_dict(), folder=str(folder))
                model, found = AutoModel.from_pretrained(
                    folder, local_files_only=True, dtype=dtype or "auto", output_loading_info=True
                )
        except ConfigError as error:
            raise CheckpointError(f"{folder} is not of the CLIP family: {error}") from None
        except Exception as error:  # the readers of config, safetensors and pickle raise whatever they like
            raise CheckpointError(f"{folder} cannot be loaded; get its config.json and weights again") from error
        faults = [
            *(f"{name} is missing" for name in sorted(found["missing_keys"])),
            *(f"{key[0] if isinstance(key, tuple) else key} has another shape" for key in found["mismatched_keys"]),
        ]
        if faults:
            raise CheckpointError(f"{folder} does not fit its config.json ({faults[0]}, {len(faults)} in all)")
        encoder = cls.__new__(cls)
        super(ClipEncoder, encoder).__init__()
        encoder._set_up(config, model)
        return encoder.eval().requires_grad_(False)

    def embed(self, modality: str, values: Tensor) -> Tensor:
        """Embeddings `(B, D_joint)` before normalisation.

        Args:
            modality: "image" or "text".
            values: pictures `(B, 3, H, W)`, or `(B, N, patch * patch * 3 + 2)` for NaFlex; texts int64 `(B, T)`.

        Raises:
            ConfigError: the encoder has no such modality, or the values have another shape.
        """
        self.check_modality(modality)
        return self._embed_text(values) if modality == "text" else self._embed_image(values)

    def _embed_text(self, input_ids: Tensor) -> Tensor:
        if input_ids.ndim != 2 or not 1 <= input_ids.shape[1] <= self.max_tokens or input_ids.is_floating_point():
            raise ConfigError(
                f"{self.family} takes token ids (B, T) with T up to {self.max_tokens}, got {tuple(input_ids.shape)} "
                f"of {input_ids.dtype}; make them with the encoder's preprocess."
            )
        # CLIP looks back only and reads at the end token, SigLIP was trained to look at its padding; ALIGN is neither.
        mask = (input_ids != self.model.config.text_config.pad_token_id).long() if self.family == "align" else None
        return self.model.get_text_features(input_ids=input_ids, attention_mask=mask).pooler_output

    def _embed_image(self, values: Tensor) -> Tensor:
        vision = self.model.config.vision_config
        values = values.to(self.model.dtype) if self.family != "siglip2" else values
        if self.family == "siglip2":
            columns = vision.num_channels * vision.patch_size**2 + _NUM_SHAPE_COLUMNS
            if values.ndim != 3 or values.shape[2] != columns:
                raise self._image_error(f"(B, N, {columns})", values)
            return self._embed_patches(values)
        side = None if self.family == "align" else vision.image_size  # ALIGN is convolutional
        if values.ndim != 4 or values.shape[1] != 3 or (side and values.shape[2:] != (side, side)):
            raise self._image_error(f"(B, 3, {side or 'H'}, {side or 'W'})", values)
        return self.model.get_image_features(pixel_values=values).pooler_output

    def _embed_patches(self, values: Tensor) -> Tensor:
        """NaFlex patches `(B, N, pixels + 2)`: the last two columns say how many rows and columns are real."""
        shapes = values[:, 0, -_NUM_SHAPE_COLUMNS:].long()  # (B, 2)
        counts = shapes.prod(dim=1, keepdim=True)  # (B, 1)
        if shapes.min() < 1 or counts.max() > values.shape[1]:
            raise ConfigError("NaFlex patches whose last two columns state no grid; make them with preprocess.")
        mask = torch.arange(values.shape[1], device=values.device) < counts  # (B, N), True: a real patch
        features = self.model.get_image_features(
            pixel_values=values[..., :-_NUM_SHAPE_COLUMNS].to(self.model.dtype),
            pixel_attention_mask=mask.long(),
            spatial_shapes=shapes,
        )
        return features.pooler_output

    def _image_error(self, expected: str, values: Tensor) -> ConfigError:
        return ConfigError(
            f"{self.family} takes pictures {expected}, got {tuple(values.shape)}; make them with the encoder's "
            "preprocess."
        )

    def preprocess(self, modality: str, source: Any, *, allow_url: bool = False) -> Tensor:
        """One picture or text to what `encode` takes a batch of, by the processor and tokenizer of the folder.

        Args:
            modality: "image" or "text".
            source: a picture as `bindlm.media.load_image` takes it; for text the text itself.
            allow_url: whether an http(s) address is fetched.

        Returns:
            image: float32 `(3, S, S)`, or for NaFlex `(N, patch * patch * 3 + 2)`, whose last two columns hold the
            rows and columns of the picture's grid of patches; text: int64 `(T,)`, padded to the full length, as SigLIP
            needs it: it looks at its padding.

        Raises:
            MediaError: the medium cannot be used.
            ConfigError: no such modality, or no processor for it in the folder.
        """
        self.check_modality(modality)
        if modality == "text":
            from bindlm.media.text import load_text

            return token_ids(self._folder(), "" if source == "" else load_text(source), self.max_tokens)
        from bindlm.media.image import load_image

        image = load_image(source, allow_url=allow_url)
        given = _image_processor(self._folder())(images=image, return_tensors="pt")
        pixels = given["pixel_values"][0].float()
        if self.family != "siglip2":
            return pixels
        grid = given["spatial_shapes"][0].float().expand(pixels.shape[0], _NUM_SHAPE_COLUMNS)
        return torch.cat([pixels, grid], dim=1)  # (N, patch * patch * 3 + 2)

    def _folder(self) -> str:
        if self.config.folder is None:
            raise ConfigError(
                "ClipEncoderConfig.folder is None, so there is no picture processor or tokenizer; load the encoder "
                "with ClipEncoder.from_folder, or give encode tensors."
            )
        return self.config.folder


def build(**settings: Any) -> ClipEncoder:
    """Fresh weights by the settings of `ClipEncoderConfig`."""
    return ClipEncoder(ClipEncoderConfig(**settings))


def from_folder(
    path: str | os.PathLike[str], *, modalities: Iterable[str] | None = None, dtype: torch.dtype | None = None
) -> ClipEncoder:
    """`ClipEncoder.from_folder`, offering only some of the modalities.

    Raises:
        CheckpointError: as there.
        ConfigError: there is no such modality.
    """
    encoder = ClipEncoder.from_folder(path, dtype)
    encoder.modalities = choose_modalities(encoder, modalities)
    return encoder


@lru_cache(maxsize=8)
def _image_processor(folder: str) -> Any:
    """The folder's picture processor, on Pillow: the other backend needs torchvision."""
    from transformers import AutoImageProcessor

    try:
        with quiet_transformers():
            return AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    except Exception:  # no file, or one that names a class without a Pillow backend
        raise ConfigError(
            f"{folder} holds no picture processor that works without torchvision; get its preprocessor_config.json."
        ) from None
