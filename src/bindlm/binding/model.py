"""A tower and the loss that it learns by, as a trainer wants them: batch in, loss out."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bindlm.binding.gradient_cache import embed_in_chunks
from bindlm.binding.objective import LogitScale, contrastive_loss
from bindlm.binding.recipe import ObjectiveRecipe
from bindlm.encoders.towers import AdapterTower, Tower

__all__ = ["BindingModel"]


class BindingModel(nn.Module):
    """A tower under a contrastive loss.

    Args:
        tower: what trains.
        objective: the loss.
        weights: of each anchor column's term.
        chunk: rows whose activations are in memory at once.
        takes_features: whether batches hold the features of an `AdapterTower`'s backbone in place of media.
        distractors: `(M, D_joint)`, unit length, see `contrastive_loss`.
    """

    distractors: Tensor | None

    def __init__(
        self,
        tower: Tower,
        objective: ObjectiveRecipe,
        weights: Sequence[float],
        *,
        chunk: int,
        takes_features: bool,
        distractors: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.logit_scale = LogitScale(
            objective.temperature, is_learnable=objective.is_learnable, max_scale=objective.max_scale
        )
        self.weights, self.chunk, self.takes_features = tuple(weights), chunk, takes_features
        self.is_symmetric, self.alike = objective.is_symmetric, objective.alike
        self.register_buffer("distractors", distractors, persistent=False)

    def forward(
        self,
        values: Tensor,
        anchors: Tensor,
        is_present: Tensor,
        keys: Tensor,
        negatives: Tensor | None = None,
        negative_keys: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch: the weighted sum over the anchor columns (Point-Bind, Eq. (1)).

        Args:
            values: `(B, ...)`, as the tower's `prepare` or `features` gives them.
            anchors: `(B, T, D_joint)`, unit length, of T anchor columns.
            is_present: `(B, T)`, where a row has that anchor.
            keys: `(B, T, K)`, see `contrastive_loss`.
            negatives: `(N, T, D_joint)`, further anchors; zeros where a row has none.
            negative_keys: `(N, T, K)`.
        """
        embeddings = F.normalize(embed_in_chunks(self.embed, values, self.chunk, module=self.tower).float(), dim=-1)
        scale, loss = self.logit_scale(), embeddings.new_zeros(())
        for column, weight in enumerate(self.weights):
            further: dict[str, Any] = {}
            if negatives is not None and negative_keys is not None:
                is_there = negatives[:, column].any(dim=-1)
                further["negatives"] = negatives[is_there, column]
                further["negative_keys"] = negative_keys[is_there, column]
            loss = loss + weight * contrastive_loss(
                embeddings,
                anchors[:, column],
                scale,
                keys=keys[:, column],
                is_present=is_present[:, column],
                distractors=self.distractors,
                alike=self.alike,
                is_symmetric=self.is_symmetric,
                **further,
            )
        return {"loss": loss}

    def embed(self, values: Tensor) -> Tensor:
        """`(B, ...)` -> `(B, D_joint)`, before normalisation."""
        if self.takes_features:
            assert isinstance(self.tower, AdapterTower)
            return self.tower.adapt(values)
        return self.tower.embed(values)

    @torch.inference_mode()
    def encode(self, values: Tensor) -> Tensor:
        """`(B, ...)` -> `(B, D_joint)`, unit length, fp32, on the CPU; in the mode that the model is in."""
        device = self.logit_scale.log_scale.device
        return F.normalize(self.embed(values.to(device)).float(), dim=-1).cpu()
