"""InfoNCE between a new sense and its frozen anchors.

Sources: ImageBind (arXiv 2305.05665), Eq. (1), which adds both directions where CLIP (arXiv 2103.00020), LanguageBind
(arXiv 2310.01852), Eq. (3)-(4), and OpenCLIP take their mean. The mean is taken here; the factor of 2 is the learning
rate's. Gathering over devices follows OpenCLIP's `local_loss` with `gather_with_grad`: a device holds its own rows
against all, and the average of the devices' gradients is that of the whole batch.
"""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from bindlm.errors import ConfigError

__all__ = ["LogitScale", "contrastive_loss"]


class LogitScale(nn.Module):
    """1 / temperature, learnt as its logarithm and held in [1, max_scale], or fixed.

    Args:
        temperature: where it starts.
        is_learnable: whether it trains.
        max_scale: ceiling (CLIP: 100, against instability).
    """

    log_scale: Tensor

    def __init__(self, temperature: float = 0.07, *, is_learnable: bool = True, max_scale: float = 100.0) -> None:
        super().__init__()
        self.log_max = math.log(max_scale)
        start = torch.tensor(math.log(1 / temperature))
        if is_learnable:
            self.log_scale = nn.Parameter(start)
        else:
            self.register_buffer("log_scale", start)

    def forward(self) -> Tensor:
        """The factor on cosines; a scalar."""
        with torch.no_grad():
            # The number itself, as in OpenCLIP: a clamp in the graph would leave no gradient to come down by.
            self.log_scale.clamp_(0.0, self.log_max)
        return self.log_scale.exp()


def contrastive_loss(
    embeddings: Tensor,
    anchors: Tensor,
    scale: Tensor | float,
    *,
    keys: Tensor | None = None,
    is_present: Tensor | None = None,
    negatives: Tensor | None = None,
    negative_keys: Tensor | None = None,
    distractors: Tensor | None = None,
    alike: float = 0.5,
    is_symmetric: bool = True,
) -> Tensor:
    """How badly media and anchors find each other in a batch: mean cross entropy, in nats.

    Over several processes, each gives as many rows, and gets its share of the loss: the mean of the shares is the
    loss of all rows, and the mean of their gradients its gradient.

    Args:
        embeddings: `(B, D_joint)`, unit length, of the new sense.
        anchors: `(B, D_joint)`, unit length, row by row what the media belong to.
        scale: factor on cosines.
        keys: `(B, K)`, whole numbers: two rows with the same number, 0 or more, in a column are no negatives of each
            other. None: all rows are.
        is_present: `(B,)`, True where the row has an anchor; others take no part. None: all have.
        negatives: `(N, D_joint)`, further anchors that no medium of the batch belongs to.
        negative_keys: `(N, K)`, theirs; a medium with the same number leaves them out.
        distractors: `(M, D_joint)`, unit length: what no medium is, though the joint space knows it.
        alike: cosine between a row's anchor and a distractor from which the latter is no negative of the row.
        is_symmetric: whether anchors look for media too.

    Returns:
        A scalar; 0 where no row has an anchor.

    Raises:
        ConfigError: shapes do not fit.
    """
    if embeddings.shape != anchors.shape or embeddings.ndim != 2:
        raise ConfigError(
            f"embeddings and anchors must both be (B, D_joint), got {tuple(embeddings.shape)} and "
            f"{tuple(anchors.shape)}."
        )
    rows = len(embeddings)
    if is_present is None:
        is_present = torch.ones(rows, dtype=torch.bool, device=embeddings.device)
    all_present, all_anchors = _gathered(is_present), _gathered(anchors)  # (G,), (G, D_joint)
    own = _rank() * rows + torch.arange(rows, device=embeddings.device)  # (B,) in 0..G-1
    is_out = ~all_present.expand(rows, -1)  # (B, G)
    if keys is not None:
        is_out = is_out | _share_a_key(keys, _gathered(keys))
    is_out = is_out.scatter(1, own[:, None], False)
    further = [] if negatives is None else [_further(embeddings, scale, negatives, keys, negative_keys)]
    if distractors is not None:
        further.append((scale * (embeddings @ distractors.T), anchors @ distractors.T > alike))
    losses = _cross_entropy(scale * (embeddings @ all_anchors.T), is_out, own, is_present, further)
    if is_symmetric:
        all_embeddings = _gathered(embeddings)  # (G, D_joint)
        back = _cross_entropy(scale * (anchors @ all_embeddings.T), is_out, own, is_present, [])
        losses = (losses + back) / 2
    return losses.sum() * (_num_processes() / all_present.sum().clamp(min=1))


def _further(
    embeddings: Tensor, scale: Tensor | float, negatives: Tensor, keys: Tensor | None, negative_keys: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits `(B, N)` of further anchors, and which of them do not count."""
    logits = scale * (embeddings @ negatives.T)  # (B, N)
    if keys is None or negative_keys is None:
        return logits, torch.zeros_like(logits, dtype=torch.bool)
    return logits, _share_a_key(keys, negative_keys)


def _cross_entropy(
    logits: Tensor, is_out: Tensor, target: Tensor, is_present: Tensor, further: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """Losses `(B', )` of the rows that are present, over logits `(B, G)` and further ones `(B, N)` that may count."""
    logits = logits.float().masked_fill(is_out, -math.inf)
    more = [each.float().masked_fill(out, -math.inf) for each, out in further]
    logits = torch.cat([logits, *more], dim=1)  # (B, G + N)
    return F.cross_entropy(logits[is_present], target[is_present], reduction="none")


def _share_a_key(keys: Tensor, others: Tensor) -> Tensor:
    """`(B, K)` and `(G, K)` -> `(B, G)`, True where a key of 0 or more is the same."""
    is_same = torch.zeros(len(keys), len(others), dtype=torch.bool, device=keys.device)
    for mine, theirs in zip(keys.T, others.T, strict=True):
        is_same |= (mine[:, None] == theirs[None]) & (mine[:, None] >= 0)
    return is_same


def _gathered(values: Tensor) -> Tensor:
    """Rows of all processes in order `(W * B, ...)`; gradients flow back to whom they belong."""
    if _num_processes() == 1:
        return values
    if values.requires_grad:
        return _Gather.apply(values)
    parts = [torch.empty_like(values) for _ in range(_num_processes())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """torch's own `torch.distributed.nn.functional.all_gather` does the same and is deprecated since 2.13."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
