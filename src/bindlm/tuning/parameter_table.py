"""How many numbers of each part of a model train, as a table."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from bindlm.tuning.bias_norm import find_biases, find_norms

__all__ = ["ParameterRow", "ParameterTable", "parameter_table"]


class _BoundModel(Protocol):
    @property
    def encoder(self) -> nn.Module: ...
    @property
    def cache(self) -> nn.Module | None: ...
    @property
    def bridge(self) -> nn.Module: ...
    @property
    def injection(self) -> nn.Module: ...
    @property
    def language_model(self) -> nn.Module: ...
    def lora_parameters(self) -> list[nn.Parameter]: ...


@dataclass(frozen=True)
class ParameterRow:
    """One part of a model."""

    part: str
    """What users call it."""
    trained: int
    """Numbers that require gradients."""
    frozen: int
    """Numbers that do not."""


@dataclass(frozen=True)
class ParameterTable:
    """All parts; every number of the model is in one row, and a tied matrix counts once. `str()` is the text."""

    rows: list[ParameterRow]
    """In the order of the data's way."""

    @property
    def trained(self) -> int:
        """Numbers that train in all."""
        return sum(row.trained for row in self.rows)

    @property
    def frozen(self) -> int:
        """Numbers that do not."""
        return sum(row.frozen for row in self.rows)

    def __str__(self) -> str:
        rows = [*self.rows, ParameterRow("total", self.trained, self.frozen)]
        cells = [("part", "trained", "frozen"), *((row.part, f"{row.trained:,}", f"{row.frozen:,}") for row in rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(3)]
        lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in cells]
        return "\n".join(lines)


def parameter_table(model: _BoundModel) -> ParameterTable:
    """Count what trains and what does not, by part.

    The cache and what an encoder keeps as buffers are counted with the frozen: they are numbers of the model too.

    Args:
        model: a `BindLMForConditionalGeneration`, before a trainer wraps or shards it.
    """
    language_model = model.language_model
    lora = model.lora_parameters()
    norms = [parameter for norm in find_norms(language_model).values() for parameter in norm.parameters()]
    biases = find_biases(language_model)
    apart = {id(parameter) for parameter in [*lora, *norms, *biases]}
    base = [parameter for parameter in language_model.parameters() if id(parameter) not in apart]
    rows = [
        _row("encoder", model.encoder.state_dict(keep_vars=True).values()),
        _row("visual cache", [] if model.cache is None else model.cache.state_dict(keep_vars=True).values()),
        _row("bridge", model.bridge.parameters()),
        _row("injection gates", model.injection.parameters()),
        _row("language model", base),
        _row("LoRA", lora),
        _row("norms", norms),
        _row("biases", biases),
    ]
    return ParameterTable(rows)


def _row(part: str, tensors: Iterable[Tensor]) -> ParameterRow:
    distinct = {id(tensor): tensor for tensor in tensors}.values()
    trained = sum(tensor.numel() for tensor in distinct if tensor.requires_grad)
    return ParameterRow(part, trained, sum(tensor.numel() for tensor in distinct) - trained)
