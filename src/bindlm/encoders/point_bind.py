"""Point-Bind: point clouds in ImageBind's space (arXiv 2309.00615).

Official checkpoints load as they are, in the layout of `imagebind_w3D.pth` and in that of `pointbind_*.pt`; both files
also hold ImageBind itself. Their terms are those of ImageBind, CC BY-NC-SA 4.0, on which they build; the code here is
written from published facts and numbers and is under this project's own licence.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bindlm.checkpoints.mapped import MappedState, open_mapped
from bindlm.checkpoints.state import check_shapes
from bindlm.encoders.base import JointEncoder, check_dtype
from bindlm.encoders.i2p_mae import I2PMAE, I2PMAEConfig
from bindlm.encoders.licences import tell_licence
from bindlm.encoders.point_bert import PointBert, PointBertConfig
from bindlm.encoders.point_bind_config import PointBindConfig
from bindlm.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from bindlm.encoders.imagebind import ImageBindConfig

__all__ = [
    "I2PMAEConfig",
    "PointBertConfig",
    "PointBindConfig",
    "PointBindEncoder",
    "expected_shapes",
    "from_official",
    "load",
]

_TERMS = "weights built on ImageBind's under CC BY-NC-SA 4.0, for research and not for commercial use"

# Published prefix -> ours, which is the layout of imagebind_w3D.pth.
_POINTBIND_PREFIXES = {
    "point_encoder.": "point_trunk.point_encoder.",
    "pc_projection": "point_trunk.pc_projection",
    "bind.modality_head_point.": "modality_heads.point.",
    "bind.modality_postprocessor_point.": "modality_postprocessors.point.",
}
_POINT_PREFIXES = ("point_trunk.", "modality_heads.point.", "modality_postprocessors.point.")
_SCALE = "modality_postprocessors.point.1.log_logit_scale"
_TRAINING_SCALE = "logit_scale"
"""Temperature of Point-Bind's own training, ln(1 / 0.07) at its start; no output depends on it."""

Layout = Literal["imagebind_w3d", "pointbind"]


class _PointTrunk(nn.Module):
    """The encoder of the cloud and the matrix behind it."""

    def __init__(self, config: PointBindConfig) -> None:
        super().__init__()
        self.point_encoder = (
            I2PMAE(config.trunk) if isinstance(config.trunk, I2PMAEConfig) else PointBert(config.trunk)
        )
        width = config.trunk.out_dim
        self.pc_projection = nn.Parameter(torch.empty(width, config.proj_dim))
        nn.init.normal_(self.pc_projection, std=config.proj_dim**-0.5)


class _FixedLogitScale(nn.Module):
    """Length of the official output, kept as its logarithm: 1 in the released weights."""

    log_logit_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("log_logit_scale", torch.tensor(0.0))


class PointBindEncoder(JointEncoder):
    """Point clouds, and with `imagebind` also its seven senses, to one joint space.

    A cloud is `(P, 3)`: x, y, z, centred, of radius 1, as `preprocess` makes it. No convention of axes is published:
    which one points up is that of the training data's objects, and turning a cloud changes its embedding.

    Args:
        config: sizes; None is the released Point-BERT variant.
        imagebind: the encoder of the other senses, whose joint space must have the same width.

    Raises:
        ConfigError: impossible sizes, or an ImageBind of another width.

    Example:
        >>> encoder = from_official("imagebind_w3D.pth", modalities=["point"])
        >>> encoder.encode("point", encoder.preprocess("point", "chair.ply")[None]).shape
        torch.Size([1, 1024])

    Source: Point-Bind & Point-LLM (arXiv 2309.00615), section 3.2; sizes from the released code.
    """

    def __init__(
        self, config: PointBindConfig | Mapping[str, Any] | None = None, imagebind: JointEncoder | None = None
    ) -> None:
        super().__init__()
        self.config = config = PointBindConfig.from_dict(config if config is not None else {})
        self.dim = config.out_dim
        self.modalities = ("point",)
        self.imagebind: JointEncoder | None = None
        if imagebind is not None:
            self._join(imagebind)
        self.point_trunk = _PointTrunk(config)
        head = nn.Sequential(
            nn.LayerNorm(config.proj_dim, eps=config.head_norm_eps),
            nn.Dropout(0.5),
            nn.Linear(config.proj_dim, config.out_dim, bias=False),
        )
        self.modality_heads = nn.ModuleDict({"point": head})
        # Place 0 is the normalisation, which has no weights.
        self.modality_postprocessors = nn.ModuleDict({"point": nn.ModuleDict({"1": _FixedLogitScale()})})

    def _join(self, imagebind: JointEncoder) -> None:
        if imagebind.dim != self.dim:
            raise ConfigError(
                f"PointBindConfig.out_dim must be the width of ImageBind's embeddings, {imagebind.dim}, "
                f"got {self.dim}."
            )
        self.imagebind = imagebind
        self.modalities = (*imagebind.modalities, "point")

    def intermediates(self, points: Tensor, fps_start: int | Tensor | None = None) -> dict[str, Tensor]:
        """All that is computed on the way from clouds to their official output.

        Args:
            points: `(B, P, 3)` floating point, P at least the group size; sampled and grouped in float32.
            fps_start: index of Point-BERT's first centre, one for all or int64 `(B,)`; None is 0, so that an embedding
                can be repeated. The released code draws it at random for each cloud. I2P-MAE always starts at 0.

        Returns:
            What `PointBert.forward` or `I2PMAE.forward` gives, and `trunk_projected (B, proj_dim)`, `head
            (B, D_joint)` before normalisation, `embedding (B, D_joint)`, the official output.

        Raises:
            ConfigError: points of another shape or type, too few of them, or a start that does not exist.
        """
        self._check_points(points)
        encoder = self.point_trunk.point_encoder
        points = points.float()
        if isinstance(encoder, PointBert):
            states = encoder(points, self._check_start(fps_start, points))
        elif fps_start is None:
            states = encoder(points)
        else:
            raise ConfigError("fps_start is Point-BERT's: I2P-MAE starts at the first point, as it was trained.")
        projected = states["trunk"] @ self.point_trunk.pc_projection  # (B, proj_dim)
        head = self.modality_heads["point"](projected)  # (B, D_joint)
        return {**states, "trunk_projected": projected, "head": head, "embedding": self._scaled(head)}

    def embed(self, modality: str, values: Tensor, *, fps_start: int | Tensor | None = None) -> Tensor:
        """Embeddings `(B, D_joint)` before normalisation; of points `(B, P, 3)`, or as ImageBind takes `modality`.

        `fps_start` is explained at `intermediates`.
        """
        if modality != "point":
            return self._other(modality).embed(modality, values)
        return self.intermediates(values, fps_start)["head"]

    def encode(self, modality: str, values: Tensor, *, fps_start: int | Tensor | None = None) -> Tensor:
        """Unit-length joint embeddings `(B, D_joint)`; arguments as for `embed`."""
        if modality != "point":
            return self._other(modality).encode(modality, values)
        return F.normalize(self.embed(modality, values, fps_start=fps_start).float(), dim=-1)

    def official_output(self, modality: str, values: Tensor, *, fps_start: int | Tensor | None = None) -> Tensor:
        """What the published model gives, `(B, D_joint)`; arguments as for `embed`.

        Of points it is the unit vector times `min(exp(log_logit_scale), 100)`, 1 in the released weights.
        """
        if modality != "point":
            other: Any = self._other(modality)
            return other.official_output(modality, values)
        return self.intermediates(values, fps_start)["embedding"]

    def preprocess(self, modality: str, source: Any, *, allow_url: bool = False) -> Tensor:
        """One medium to values without the batch axis; of a point cloud or mesh float32 `(num_points, 3)`.

        Clouds are sampled to `config.num_points`, centred and brought to radius 1: see
        `bindlm.media.points_preprocess.preprocess_points`.
        """
        if modality != "point":
            return self._other(modality).preprocess(modality, source, allow_url=allow_url)
        from bindlm.media.points import load_points
        from bindlm.media.points_preprocess import PointPreprocessConfig, preprocess_points

        config = PointPreprocessConfig(num_points=self.config.num_points)
        return torch.from_numpy(
            preprocess_points(load_points(source, num_points=config.num_points, allow_url=allow_url), config)
        )

    def _other(self, modality: str) -> JointEncoder:
        self.check_modality(modality)
        assert self.imagebind is not None
        return self.imagebind

    def _scaled(self, head: Tensor) -> Tensor:
        scale = self.modality_postprocessors["point"]["1"].log_logit_scale.float().exp()  # type: ignore[index]
        return F.normalize(head, dim=-1) * scale.clamp(max=self.config.max_logit_scale)

    def _check_points(self, points: Tensor) -> None:
        if points.ndim != 3 or points.shape[-1] != 3 or not points.is_floating_point() or not len(points):
            raise ConfigError(
                f"Point clouds are floating-point (B, P, 3), got {points.dtype} {tuple(points.shape)}; make them with "
                "preprocess('point', ...) and stack them."
            )
        fewest = self.config.trunk.min_points
        if points.shape[1] < fewest:
            raise ConfigError(f"A group has {fewest} points, so a cloud needs as many, got {points.shape[1]}.")

    def _check_start(self, fps_start: int | Tensor | None, points: Tensor) -> int | Tensor:
        if fps_start is None:
            return 0
        starts = torch.as_tensor(fps_start)
        if (
            starts.is_floating_point()
            or tuple(starts.shape) not in ((), (1,), (len(points),))
            or int(starts.min()) < 0
            or int(starts.max()) >= points.shape[1]
        ):
            raise ConfigError(
                f"fps_start must be one index, or one for each of the {len(points)} clouds, from 0 to "
                f"{points.shape[1] - 1}, got {fps_start}."
            )
        return starts


@cache
def _shapes(config: PointBindConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = PointBindEncoder(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def expected_shapes(config: PointBindConfig, layout: Layout = "imagebind_w3d") -> dict[str, tuple[int, ...]]:
    """Official names and shapes of the 3-D part; nothing is allocated.

    Args:
        config: sizes.
        layout: of `imagebind_w3D.pth`, which is that of the module's state dict, or of `pointbind_*.pt`.
    """
    if layout == "imagebind_w3d":
        return dict(_shapes(config))
    return {_TRAINING_SCALE: ()} | {_published(name): shape for name, shape in _shapes(config).items()}


def _published(name: str) -> str:
    """A name of ours in the layout of `pointbind_*.pt`."""
    for published, ours in _POINTBIND_PREFIXES.items():
        if name.startswith(ours):
            return published + name.removeprefix(ours)
    raise AssertionError(name)


def from_official(
    path: str | os.PathLike[str],
    config: PointBindConfig | Mapping[str, Any] | None = None,
    *,
    modalities: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    imagebind_config: "ImageBindConfig | Mapping[str, Any] | None" = None,
) -> PointBindEncoder:
    """Open a published checkpoint: `imagebind_w3D.pth`, `pointbind_pointbert.pt`, `pointbind_i2pmae.pt`, or a part.

    Only what is asked for is read. Whatever else the file holds must still be Point-Bind's or ImageBind's.

    Args:
        path: `.pth` or `.pt` (only tensors are let through), or `.safetensors`.
        config: sizes, or a dictionary of them; None is the released Point-BERT or I2P-MAE, whichever the keys are of.
        modalities: senses to load, "point" among them; None loads all that the file holds.
        dtype: fp32, bf16 or fp16; None keeps the file's. Sampling and grouping stay in fp32.
        imagebind_config: sizes of ImageBind in the same file; None is the published one.

    Returns:
        The encoder, frozen and in eval mode.

    Raises:
        CheckpointError: the file is missing, truncated or damaged, or a key is missing, surplus, or of another shape;
            or it holds no ImageBind and one of its senses is asked for.
        ConfigError: impossible sizes, senses or dtype.
    """
    check_dtype(dtype)
    others = _other_senses(modalities)
    state = open_mapped(path)
    sizes = PointBindConfig.from_dict(config) if config is not None else _recognised(state)
    layout: Layout = "imagebind_w3d" if any(name.startswith("point_trunk.") for name in state.shapes) else "pointbind"
    names = [name for name in state.shapes if _is_point(name, layout)]
    expected = expected_shapes(sizes, layout)
    if layout == "pointbind":
        expected = _without_optional(expected, names)
    check_shapes(state.path, {name: state.shapes[name] for name in names}, expected)
    imagebind = _load_imagebind(state, set(names), layout, imagebind_config, others, dtype)
    if sizes in (PointBindConfig.point_bert(), PointBindConfig.i2p_mae()):
        tell_licence("Point-Bind", _TERMS)
    with torch.device("meta"):
        encoder = PointBindEncoder(sizes)
    encoder.load_state_dict(_take(state, names, dtype), assign=True)
    if imagebind is not None:
        encoder._join(imagebind)
    return encoder.requires_grad_(False).eval()


def load(
    path: str | os.PathLike[str], *, modalities: Sequence[str] | None = None, dtype: torch.dtype | None = None
) -> JointEncoder:
    """As `from_official`, but where "point" is not asked for, the file's ImageBind alone."""
    asked = (modalities,) if isinstance(modalities, str) else modalities
    if asked is None or "point" in asked:
        return from_official(path, modalities=asked, dtype=dtype)
    joined = from_official(path, modalities=("point", *asked), dtype=dtype)
    if joined.imagebind is None:
        raise ConfigError("modalities must name at least one sense, got none.")
    return joined.imagebind


def _other_senses(modalities: Sequence[str] | None) -> tuple[str, ...] | None:
    """The senses of ImageBind among those asked for; None where nothing was said.

    Raises:
        ConfigError: "point" is not asked for, or a sense that nobody has.
    """
    if modalities is None:
        return None
    from bindlm.encoders.imagebind import towers_of

    asked = (modalities,) if isinstance(modalities, str) else tuple(modalities)
    if "point" not in asked:
        raise ConfigError(f'Point-Bind is loaded for "point", which modalities must hold, got {modalities!r}.')
    others = tuple(modality for modality in asked if modality != "point")
    if others:
        towers_of(others)
    return others


def _recognised(state: MappedState) -> PointBindConfig:
    is_i2p_mae = any(name.startswith("point_encoder.h_encoder.") or ".h_encoder." in name for name in state.shapes)
    return PointBindConfig.i2p_mae() if is_i2p_mae else PointBindConfig.point_bert()


def _is_point(name: str, layout: Layout) -> bool:
    if layout == "imagebind_w3d":
        return name.startswith(_POINT_PREFIXES)
    return name == _TRAINING_SCALE or not name.startswith("bind.") or name.startswith(tuple(_POINTBIND_PREFIXES))


def _without_optional(expected: dict[str, tuple[int, ...]], held: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """What a file of the `pointbind_*.pt` kind must hold: without the temperature of training, which no output needs,
    it may be a part saved for use, and that may leave out the fixed length of 1 too."""
    held = set(held)
    if _TRAINING_SCALE in held:
        return expected
    optional = {_TRAINING_SCALE, _published(_SCALE)} - held
    return {name: shape for name, shape in expected.items() if name not in optional}


def _ours(name: str) -> str:
    for published, ours in _POINTBIND_PREFIXES.items():
        if name.startswith(published):
            return ours + name.removeprefix(published)
    return name


def _take(state: MappedState, names: Iterable[str], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors of the 3-D part under our names."""
    names = [name for name in names if name != _TRAINING_SCALE]
    exact = [name for name in names if _ours(name) == _SCALE]  # a scale in bf16 is off by 0.4 %
    tensors = state.take([name for name in names if name not in exact], dtype) | state.take(exact)
    return {_SCALE: torch.tensor(0.0)} | {_ours(name): tensor for name, tensor in tensors.items()}


def _load_imagebind(
    state: MappedState,
    points: set[str],
    layout: Layout,
    config: "ImageBindConfig | Mapping[str, Any] | None",
    modalities: tuple[str, ...] | None,
    dtype: torch.dtype | None,
) -> JointEncoder | None:
    """ImageBind from the rest of the file, checked even where nobody asks for it.

    Raises:
        CheckpointError: the rest is not ImageBind's, or is absent although a sense of it is asked for.
    """
    rest = [name for name in state.shapes if name not in points]
    if not rest:
        if modalities:
            raise CheckpointError(
                f"{state.path} holds the 3-D encoder alone, not ImageBind's {', '.join(modalities)}; load these from "
                "imagebind_huge.pth, or the published file with all senses."
            )
        return None
    from bindlm.encoders import imagebind

    prefix = "bind." if layout == "pointbind" else ""
    if modalities == ():
        known = imagebind.expected_shapes(imagebind.ImageBindConfig.from_dict(config))
        held = {name.removeprefix(prefix): state.shapes[name] for name in rest}
        check_shapes(state.path, held, {name: shape for name, shape in known.items() if name in held})
        return None
    other = MappedState(state.path, state.take(rest))
    return imagebind.from_mapped(other, prefix=prefix, config=config, modalities=modalities, dtype=dtype)
