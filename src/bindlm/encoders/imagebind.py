"""ImageBind: pictures, video, text, sound, depth, heat and motion in one space (arXiv 2305.05665).

Official checkpoints load as they are. Their licence is CC BY-NC-SA 4.0: research only, not for commercial use; the
code here is written from published facts and numbers and is under this project's own licence.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bindlm.checkpoints.mapped import MappedState, open_mapped
from bindlm.checkpoints.state import check_shapes
from bindlm.encoders.base import JointEncoder, check_dtype
from bindlm.encoders.imagebind_config import MODALITIES, TOWER_OF, TOWERS, ImageBindConfig, imagebind_huge
from bindlm.encoders.imagebind_towers import Trunk, build_head, build_stem
from bindlm.encoders.licences import tell_licence
from bindlm.errors import ConfigError

__all__ = [
    "ImageBindConfig",
    "ImageBindEncoder",
    "expected_shapes",
    "from_mapped",
    "from_official",
    "imagebind_huge",
]

_INITIAL_SCALES = {"text": 1 / 0.07, "audio": 20.0, "depth": 5.0, "thermal": 10.0, "imu": 5.0}
_TERMS = "weights under CC BY-NC-SA 4.0, for research and not for commercial use"


class LogitScale(nn.Module):
    """The factor `min(exp(log_logit_scale), maximum)` on a unit vector; learned for text, fixed for the rest."""

    def __init__(self, initial: float, maximum: float, *, is_learned: bool) -> None:
        super().__init__()
        self.maximum = maximum
        log_scale = torch.tensor(math.log(initial))
        if is_learned:
            self.log_logit_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_logit_scale", log_scale)

    def forward(self, embedding: Tensor) -> Tensor:
        return embedding * self.log_logit_scale.float().exp().clamp(max=self.maximum)


class ImageBindEncoder(JointEncoder):
    """Up to six towers into one joint space.

    Args:
        config: sizes; None is `imagebind_huge`.
        modalities: senses to build; None builds all. "image" and "video" share the vision tower.

    Example:
        >>> encoder = from_official("imagebind_huge.pth", modalities=["audio", "text"])
        >>> encoder.encode("audio", encoder.preprocess("audio", "rain.wav")[None]).shape
        torch.Size([1, 1024])
    """

    def __init__(
        self, config: ImageBindConfig | Mapping[str, Any] | None = None, modalities: Iterable[str] | None = None
    ) -> None:
        super().__init__()
        self.config = ImageBindConfig.from_dict(config)
        towers = towers_of(modalities)
        self.modalities = tuple(modality for modality in MODALITIES if TOWER_OF[modality] in towers)
        self.dim = self.config.out_embed_dim
        self.modality_preprocessors = nn.ModuleDict({tower: build_stem(tower, self.config) for tower in towers})
        self.modality_trunks = nn.ModuleDict({tower: Trunk(tower, self.config) for tower in towers})
        self.modality_heads = nn.ModuleDict({tower: build_head(tower, self.config) for tower in towers})
        # Place 0 is the normalisation, which has no weights; vision has nothing else.
        self.modality_postprocessors = nn.ModuleDict(
            {
                tower: nn.ModuleDict(
                    {"1": LogitScale(_INITIAL_SCALES[tower], self.config.max_logit_scale, is_learned=tower == "text")}
                )
                for tower in towers
                if tower != "vision"
            }
        )

    def head_output(self, modality: str, values: Tensor) -> Tensor:
        """Head outputs before normalisation, one a clip.

        Args:
            modality: one of `modalities`, or "vision".
            values: one clip each; shapes as for `official_output` without its clip axis.

        Returns:
            `(B, D_joint)`.
        """
        tower = self._tower(modality)
        tokens = self.modality_preprocessors[tower](values)
        hidden = self.modality_trunks[tower](tokens)
        head = self.modality_heads[tower]
        return head(hidden, values) if tower == "text" else head(hidden)

    def embed(self, modality: str, values: Tensor) -> Tensor:
        """Before normalisation and scale, averaged over clips `(B, D_joint)`: `prenorm` of ImageBind-LLM's copy."""
        values, num_clips = self._fold_clips(self._tower(modality), values)
        return self.head_output(modality, values).unflatten(0, (-1, num_clips)).mean(dim=1)

    def official_output(self, modality: str, values: Tensor) -> Tensor:
        """What the published model gives: each clip normalised and scaled, then the mean over clips.

        The mean is not normalised again, so a video's output is shorter than 1; all towers but vision carry their
        logit scale (20 for sound).

        Args:
            modality: one of `modalities`, or "vision".
            values: image `(B, 3, S, S)`, or `(B, C, 3, S, S)` to average C pictures; video `(B, 3, 2, S, S)` or with
                clips `(B, C, 3, 2, S, S)`; text ids `(B, 77)`; audio `(B, 1, 128, 204)` or `(B, C, 1, 128, 204)`;
                depth and thermal `(B, 1, 224, 224)` or with C; imu `(B, 6, 2000)`.

        Returns:
            `(B, D_joint)`.

        Raises:
            ConfigError: values of another shape, or a sense that was not loaded.
        """
        tower = self._tower(modality)
        values, num_clips = self._fold_clips(tower, values)
        output = F.normalize(self.head_output(modality, values), dim=-1)
        if tower != "vision":
            output = self.modality_postprocessors[tower]["1"](output)  # type: ignore[index]
        return output.unflatten(0, (-1, num_clips)).mean(dim=1)

    def encode(self, modality: str, values: Tensor) -> Tensor:
        """The published output at unit length `(B, D_joint)`: as ImageBind-LLM uses it. Shapes: `official_output`."""
        return F.normalize(self.official_output(modality, values).float(), dim=-1)

    def preprocess(self, modality: str, source: Any, *, allow_url: bool = False) -> Tensor:
        """One medium as the published model was fed; see `bindlm.media` for what each sense may be given as.

        Returns:
            image `(3, 224, 224)`; video `(15, 3, 2, 224, 224)`; text `(77,)` ids; audio `(3, 1, 128, 204)`; depth and
            thermal `(1, 224, 224)`; imu `(6, 2000)`.
        """
        from bindlm.encoders.imagebind_media import preprocess

        self._tower(modality)
        return preprocess(modality, source, self.config, allow_url=allow_url)

    def _tower(self, modality: str) -> str:
        tower = TOWER_OF.get(modality)
        if tower is None or tower not in self.modality_trunks:
            self.check_modality(modality)
        assert tower is not None
        return tower

    def _fold_clips(self, tower: str, values: Tensor) -> tuple[Tensor, int]:
        """`(B, C, ...)` to `(B * C, ...)` and C."""
        is_clip = tower == "vision" and values.ndim == 5 and values.shape[1] == 3 and values.shape[2] != 3
        if values.ndim < 5 or is_clip:  # the released model takes the three colours of a lone clip for three clips
            return values, 1
        if not values.shape[1]:
            raise ConfigError(f"There must be at least one clip, got {tuple(values.shape)}.")
        return values.flatten(0, 1), values.shape[1]


def towers_of(modalities: Iterable[str] | None) -> tuple[str, ...]:
    """The towers that some senses need, in published order; None is all.

    Raises:
        ConfigError: a sense that ImageBind does not have, or none.
    """
    if modalities is None:
        return TOWERS
    asked = [modalities] if isinstance(modalities, str) else list(modalities)
    unknown = [modality for modality in asked if modality not in TOWER_OF]
    if unknown or not asked:
        raise ConfigError(
            f"ImageBind takes {', '.join(MODALITIES)}; asked for {', '.join(map(str, unknown)) or 'none'}."
        )
    return tuple(tower for tower in TOWERS if tower in {TOWER_OF[modality] for modality in asked})


@cache
def _shapes(config: ImageBindConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = ImageBindEncoder(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def expected_shapes(config: ImageBindConfig, modalities: Iterable[str] | None = None) -> dict[str, tuple[int, ...]]:
    """Official names and shapes of the tensors that some senses need; nothing is allocated."""
    towers = towers_of(modalities)
    return {name: shape for name, shape in _shapes(config).items() if name.split(".")[1] in towers}


def from_official(
    path: str | os.PathLike[str],
    config: ImageBindConfig | Mapping[str, Any] | None = None,
    *,
    modalities: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
) -> ImageBindEncoder:
    """Open a checkpoint with official keys.

    Only the towers asked for are read. In the file's own dtype (fp32) they stay mapped and take no memory of their
    own; in another dtype the peak is the size of the result.

    Args:
        path: `.pth` (only tensors are let through) or `.safetensors`.
        config: sizes, or a dictionary of them; None is `imagebind_huge`.
        modalities: senses to load; None loads all.
        dtype: fp32, bf16 or fp16; None keeps the file's.

    Raises:
        CheckpointError: the file is missing, truncated or damaged, or a key is missing, surplus, or of another shape.
        ConfigError: impossible sizes or senses.
    """
    return from_mapped(open_mapped(path), config=config, modalities=modalities, dtype=dtype)


def from_mapped(
    state: MappedState,
    prefix: str = "",
    *,
    config: ImageBindConfig | Mapping[str, Any] | None = None,
    modalities: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
) -> ImageBindEncoder:
    """As `from_official`, from a file that is open already, whose ImageBind part stands under `prefix`.

    Every name under `prefix` must be ImageBind's; with an empty prefix, every name of the file.
    """
    sizes = ImageBindConfig.from_dict(config)
    check_dtype(dtype)
    wanted = expected_shapes(sizes, modalities)
    held = {name.removeprefix(prefix): shape for name, shape in state.shapes.items() if name.startswith(prefix)}
    # A tower that nobody asked for may be absent; what is there of it must still be ImageBind's.
    others = {name: shape for name, shape in _shapes(sizes).items() if name in held}
    check_shapes(state.path, held, others | wanted)
    if sizes == imagebind_huge():
        tell_licence("ImageBind", _TERMS)
    with torch.device("meta"):
        encoder = ImageBindEncoder(sizes, modalities)
    exact = [name for name in wanted if name.endswith("log_logit_scale")]  # a scale in bf16 is off by 0.4 %
    tensors = state.take([prefix + name for name in wanted if name not in exact], dtype)
    tensors |= state.take([prefix + name for name in exact])
    encoder.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, assign=True)
    return encoder.requires_grad_(False).eval()
