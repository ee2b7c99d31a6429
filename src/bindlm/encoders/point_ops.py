"""Neighbourhoods in point clouds: who is near whom, and picking them out."""

import torch
from torch import Tensor

_CHUNK_VALUES = 1 << 22
"""Distances held at once: 16 MiB of float32, whatever the batch (64 x 512 x 8192 of them would be 1 GiB)."""


@torch.no_grad()
def nearest_indices(centers: Tensor, points: Tensor, num_neighbors: int, *, is_expanded: bool) -> Tensor:
    """Indices of the points nearest to each centre, nearest first.

    Clouds are taken one after the other and centres in chunks that depend on P alone, so memory is bounded and a cloud
    has the same neighbours in a batch of any size.

    Args:
        centers: `(B, G, 3)`.
        points: `(B, P, 3)` float32, with P at least `num_neighbors`.
        num_neighbors: How many, K.
        is_expanded: Whether the squared distance is written out as -2ab + aa + bb, as Point-BERT does, with float32
            errors of 1e-7 times the squared distance from the origin; else differences are taken.

    Returns:
        int64 `(B, G, K)`.
    """
    batch, num_centers = centers.shape[:2]
    found = torch.empty(batch, num_centers, num_neighbors, dtype=torch.int64, device=points.device)
    rows = max(1, _CHUNK_VALUES // points.shape[1])
    for cloud in range(batch):
        others = points[cloud]  # (P, 3)
        squares = (others * others).sum(dim=-1) if is_expanded else None  # (P,)
        for begin in range(0, num_centers, rows):
            some = centers[cloud, begin : begin + rows]  # (g, 3)
            if squares is None:
                distances = torch.cdist(some, others, compute_mode="donot_use_mm_for_euclid_dist")  # (g, P)
            else:
                distances = (some @ others.T).mul_(-2)
                distances += (some * some).sum(dim=-1, keepdim=True)
                distances += squares
            found[cloud, begin : begin + rows] = distances.topk(num_neighbors, dim=-1, largest=False).indices
    return found


def gather_rows(values: Tensor, indices: Tensor) -> Tensor:
    """Rows of `values (B, P, C)` by `indices (B, ...)`: `(B, ..., C)`."""
    flat = indices.reshape(len(indices), -1, 1)  # (B, N, 1)
    rows = values.gather(1, flat.expand(-1, -1, values.shape[-1]))
    return rows.reshape(*indices.shape, values.shape[-1])
