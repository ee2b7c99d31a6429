"""A split's scores: its media through the tower, held against their anchors and their labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bindlm.binding.anchor import AnchorBank
from bindlm.binding.evaluate import ClassificationScores, RetrievalScores, classification, retrieval
from bindlm.binding.pairs import ABSENT, PairTable
from bindlm.binding.values import MediaValues

__all__ = ["SideScores", "SplitScores", "Trial"]


@dataclass(frozen=True)
class SideScores:
    """Against one anchor column."""

    to_anchor: RetrievalScores
    """Media look for their anchors."""
    from_anchor: RetrievalScores
    """Anchors look for their media."""
    labels: ClassificationScores | None
    """Media look for their labels; None where there are fewer than two."""

    def as_json(self) -> dict[str, Any]:
        """In plain numbers."""
        return {
            "to_anchor": self.to_anchor.as_json(),
            "from_anchor": self.from_anchor.as_json(),
            "labels": self.labels.as_json() if self.labels else None,
        }


@dataclass(frozen=True)
class SplitScores:
    """Of one split, by anchor column."""

    sides: dict[str, SideScores]

    def as_json(self) -> dict[str, Any]:
        """In plain numbers."""
        return {column: side.as_json() for column, side in self.sides.items()}

    @property
    def score(self) -> float:
        """R@1 both ways, averaged over the columns."""
        both = [side.to_anchor.recall[1] + side.from_anchor.recall[1] for side in self.sides.values()]
        return sum(both) / (2 * len(both))

    def describe(self) -> str:
        """A line for people."""
        return "; ".join(f"{column}: {_line(side)}" for column, side in self.sides.items())


class Trial:
    """One split, ready to be asked again and again.

    Args:
        pairs: all of them.
        rows: `(N,)` of the split.
        banks: embeddings of each anchor column.
        values: the media.
        prototypes: `(C, D)`, unit length, of every label of the table; None for the mean anchor of a label's rows.
        max_media: only the first so many; None for all.
        batch_size: media at once.
    """

    def __init__(
        self,
        pairs: PairTable,
        rows: NDArray[np.int64],
        banks: Sequence[AnchorBank],
        values: MediaValues,
        *,
        prototypes: Tensor | None = None,
        max_media: int | None = None,
        batch_size: int = 64,
    ) -> None:
        self.media = np.unique(pairs.medium[rows])[:max_media]
        rows = rows[np.isin(pairs.medium[rows], self.media)]
        self._values, self._batch_size = values, batch_size
        self._medium = np.searchsorted(self.media, pairs.medium[rows])  # (N,)
        self._label = pairs.label[rows]
        self._sides = [(side, side.rows[rows], bank) for side, bank in zip(pairs.sides, banks, strict=True)]
        self._prototypes = prototypes

    def __len__(self) -> int:
        return len(self.media)

    def run(self, encode: Callable[[Tensor], Tensor]) -> SplitScores:
        """Scores of a tower.

        Args:
            encode: values `(B, ...)` to embeddings `(B, D_joint)`, unit length.
        """
        numbers = self.media.tolist()
        starts = range(0, len(numbers), self._batch_size)
        media = torch.cat([encode(self._values.plain(numbers[at : at + self._batch_size])) for at in starts])
        scores = {}
        for side, anchors, bank in self._sides:
            if (anchors != ABSENT).any():
                scores[side.column.column] = self._against(media, anchors, bank)
        return SplitScores(scores)

    def _against(self, media: Tensor, anchors: NDArray[np.int64], bank: AnchorBank) -> SideScores:
        has = anchors != ABSENT
        medium, label = self._medium[has], self._label[has]
        gallery, anchor = np.unique(anchors[has], return_inverse=True)
        centres = bank.centres(gallery)  # (G, D)
        asked, query = np.unique(medium, return_inverse=True)  # media that have an anchor in this column
        fits = torch.zeros(len(asked), len(gallery), dtype=torch.bool)
        fits[torch.from_numpy(query), torch.from_numpy(anchor)] = True
        embeddings = media[torch.from_numpy(asked)]
        return SideScores(
            retrieval(embeddings, centres, fits),
            retrieval(centres, embeddings, fits.T),
            self._labels(embeddings, query, label, centres[torch.from_numpy(anchor)]),
        )

    def _labels(
        self, embeddings: Tensor, query: NDArray[np.int64], label: NDArray[np.int64], anchors: Tensor
    ) -> ClassificationScores | None:
        """Each medium's label among those of the split."""
        has = label != ABSENT
        known, target = np.unique(label[has], return_inverse=True)
        if len(known) < 2:
            return None
        if self._prototypes is not None:
            prototypes = self._prototypes[torch.from_numpy(known)]
        else:
            sums = torch.zeros(len(known), embeddings.shape[1])
            sums.index_add_(0, torch.from_numpy(target), anchors[torch.from_numpy(has)])
            prototypes = F.normalize(sums, dim=-1)
        media, first = np.unique(query[has], return_index=True)
        return classification(embeddings[torch.from_numpy(media)], prototypes, torch.from_numpy(target[first]))


def _line(side: SideScores) -> str:
    to, back = side.to_anchor, side.from_anchor
    parts = [
        f"R@1 {to.recall[1]:.3f} and back {back.recall[1]:.3f} (chance {to.chance[1]:.3f})",
        f"R@5 {to.recall[5]:.3f} and back {back.recall[5]:.3f}",
        f"median rank {to.median_rank:g} of {to.num_candidates}",
    ]
    if side.labels is not None:
        parts.append(f"label top-1 {side.labels.top[1]:.3f} of {side.labels.num_classes}")
    return ", ".join(parts)
