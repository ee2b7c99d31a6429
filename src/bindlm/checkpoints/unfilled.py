"""Models built to be filled from a file at once: no random numbers are drawn only to be thrown away."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode

__all__ = ["without_random_weights"]

_DRAWING = frozenset(
    {
        "normal_",
        "uniform_",
        "trunc_normal_",
        "kaiming_normal_",
        "kaiming_uniform_",
        "xavier_normal_",
        "xavier_uniform_",
        "orthogonal_",
    }
)
"""Methods of tensors and functions of `torch.nn.init`, by name: transformers puts others of the same name in place."""


_REJECTING = "_no_grad_trunc_normal_"
"""Of `torch.nn.init`: it draws again until all lies within bounds, which what the memory holds may never do."""


class _Undrawn(TorchFunctionMode):
    """Leaves tensors as they were allocated where they were to be drawn."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in _DRAWING and sys._getframe(1).f_code.co_name != _REJECTING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def without_random_weights() -> Iterator[None]:
    """Build modules whose weights are whatever the memory holds; buffers, zeros and ones are as they should be.

    Memory that nothing was written to is not resident: where weights are then assigned from a mapped file, a model is
    never in memory twice. On the meta device the same would lose every buffer that no file holds.
    """
    with _Undrawn():
        yield
