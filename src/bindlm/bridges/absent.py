"""No bridge: for models whose prompts are learned and read nothing but text, as LLaMA-Adapter V1."""

from dataclasses import dataclass

from torch import Tensor

from bindlm.bridges.base import Bridge
from bindlm.errors import ConfigError

__all__ = ["AbsentBridge", "AbsentBridgeConfig"]


@dataclass
class AbsentBridgeConfig:
    """Widths of what a bridge would join."""

    input_dim: int = 0
    """Width of a joint embedding; 0 where there is no encoder either."""
    output_dim: int = 0
    """Width of the language model."""

    def build(self) -> "AbsentBridge":
        """The bridge that is not there."""
        return AbsentBridge(self)

    @property
    def num_parameters(self) -> int:
        """None."""
        return 0


class AbsentBridge(Bridge):
    """Stands where a model has no bridge, and says so when it is used."""

    def __init__(self, config: AbsentBridgeConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, features: Tensor) -> Tensor:
        """Never gives anything.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "This model has no bridge: it takes text only, no media and no joint embeddings. Load a model that was "
            "trained with an encoder for those."
        )
