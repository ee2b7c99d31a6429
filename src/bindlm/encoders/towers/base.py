"""What every small tower offers: one sense into a joint space that is there already."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from bindlm.encoders.frozen import Frozen
from bindlm.errors import ConfigError


class Tower(nn.Module, ABC):
    """Media of one sense to joint embeddings.

    A kind subclasses this and brings a config dataclass; one row in `TOWER_KINDS` makes it known.
    """

    modality: str
    """The sense it takes, such as "audio"."""
    dim: int
    """Width of the joint embedding, D_joint."""
    config: Any
    """Its dataclass: all that is needed to build it again."""
    kind: str
    """Its row in `TOWER_KINDS`; set by `build_tower`."""

    @abstractmethod
    def load(self, source: Any, *, allow_url: bool = False) -> Any:
        """One medium decoded: what augmentation works on.

        Args:
            source: a path, bytes or array, as `bindlm.media` reads the sense; for "text" the text itself.
            allow_url: whether an http(s) address is fetched.

        Returns:
            For "audio" a waveform `(S,)` at the tower's rate, "point" points `(P, 3)`, "depth" metres `(H, W)`,
            "thermal" brightness `(H, W)`, "imu" `(6, S)`, "text" the text.

        Raises:
            MediaError: the medium cannot be used.
        """

    @abstractmethod
    def prepare(self, raw: Any) -> Tensor:
        """What `load` gave to what `embed` takes a batch of, without the batch axis; touches no weights."""

    @abstractmethod
    def embed(self, values: Tensor) -> Tensor:
        """Prepared values, stacked, to embeddings `(B, D_joint)` before normalisation."""

    def preprocess(self, source: Any, *, allow_url: bool = False) -> Tensor:
        """`prepare(load(source))`."""
        return self.prepare(self.load(source, allow_url=allow_url))

    def forward(self, values: Tensor) -> Tensor:
        """`embed`, by the name that wrappers such as DDP and `torch.compile` call."""
        return self.embed(values)

    def frozen_parts(self) -> tuple[Frozen, ...]:
        """What it takes from others by reference; empty for a tower that is all its own."""
        return ()

    def check_values(self, values: Tensor, *shape: int | None) -> None:
        """Refuse values that are not `(B, *shape)`; None stands for any length.

        Raises:
            ConfigError: they are of another shape, or the batch is empty.
        """
        fits = values.ndim == len(shape) + 1 and len(values) > 0
        if not fits or any(want not in (None, held) for want, held in zip(shape, values.shape[1:], strict=True)):
            wanted = ", ".join("?" if side is None else str(side) for side in shape)
            raise ConfigError(
                f"The {self.modality} tower takes values (B, {wanted}), got {tuple(values.shape)}; make them with its "
                "preprocess, and stack them."
            )


class AdapterTower(Tower):
    """A frozen backbone of others and a small trained adapter on what it gives.

    The backbone is not among the module's parameters and keys. It is fetched at first use and follows the adapter's
    device.
    """

    adapter: nn.Module

    @abstractmethod
    def features(self, values: Tensor) -> Tensor:
        """Prepared values to the backbone's features `(B, F)`, fp32, without gradient; they may be kept."""

    def adapt(self, features: Tensor) -> Tensor:
        """Features `(B, F)` to embeddings `(B, D_joint)`, before normalisation."""
        return self.adapter(features.to(next(self.adapter.parameters()).dtype))

    def embed(self, values: Tensor) -> Tensor:
        """`adapt(features(values))`."""
        with torch.no_grad():
            features = self.features(values)
        return self.adapt(features)
