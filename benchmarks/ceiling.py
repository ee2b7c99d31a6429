"""The machine's own limit: the best rate of plain matrix products, measured beside what is held against it."""

import time
from collections.abc import Callable
from typing import Any

import torch


def best_of(run: Callable[[], Any], repeats: int) -> float:
    """Fewest seconds of several runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def matmul_ceiling(rows: int, width: int, inner: int, dtype: torch.dtype, repeats: int = 5) -> float:
    """Best floating-point operations a second of a large square product and of those of an MLP.

    Args:
        rows: tokens.
        width: of the hidden states.
        inner: of the MLP.
        dtype: of the operands.
        repeats: of each product.
    """
    best = 0.0
    for m, k, n in ((2048, 2048, 2048), (rows, width, inner), (rows, inner, width)):
        left, right = torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype)
        torch.nn.functional.linear(left, right)
        seconds = best_of(lambda left=left, right=right: torch.nn.functional.linear(left, right), repeats)  # type: ignore[misc]
        best = max(best, 2 * m * k * n / seconds)
    return best
