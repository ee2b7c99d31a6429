"""One micro-batch from the tokens and the joint embeddings of its samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bindlm.errors import ConfigError
from bindlm.training.packing import Packable, collate_packed, collate_padded, pack_rows

__all__ = ["NO_MEDIUM", "ZERO_IMAGE", "BatchMaker", "Embeddings", "draw", "store_rows"]

NO_MEDIUM = -1
"""Store row of a sample that has no condition."""
ZERO_IMAGE = -2
"""Store row of a text-only sample that gets the embedding of an all-zero picture."""


class Embeddings(Protocol):
    """What is needed of `bindlm.training.features.store.FeatureStore`."""

    @property
    def num_views(self) -> int: ...

    def rows_of(self, keys: Sequence[str]) -> NDArray[np.int64]: ...

    def get(self, rows: Sequence[int], views: Sequence[int]) -> Tensor: ...


@dataclass(frozen=True)
class BatchMaker:
    """How micro-batches are laid out."""

    pad_token_id: int
    packing: bool = True
    row_tokens: int = 512
    store: Embeddings | None = None
    zero_image: Tensor | None = None
    """`(D_joint,)`, for samples of store row `ZERO_IMAGE`."""

    def make(
        self,
        tokens: Sequence[tuple[NDArray[np.int32], NDArray[np.bool_]]],
        rows: NDArray[np.integer],
        views: NDArray[np.integer],
    ) -> dict[str, Tensor]:
        """A micro-batch of N samples.

        Args:
            tokens: `input_ids` and `is_target`, `(T,)` each, of N samples.
            rows: `(N,)` rows of the store, `NO_MEDIUM` or `ZERO_IMAGE`.
            views: `(N,)` views of them.

        Returns:
            `input_ids`, `position_ids`, `labels` `(R, T)`; padded, also `attention_mask`; where any sample has a
            condition, `joint_embedding` `(M, D_joint)` fp32 and `media_rows` `(R, T)`, numbers from 0 to M - 1 or -1.
        """
        numbers, embedding = self._embeddings(rows, views)
        samples = [Packable(*pair, number) for pair, number in zip(tokens, numbers.tolist(), strict=True)]
        if self.packing:
            lengths = np.array([len(sample.input_ids) for sample in samples])
            batch = collate_packed(samples, pack_rows(lengths, numbers >= 0, self.row_tokens), self.pad_token_id)
        else:
            batch = collate_padded(samples, self.pad_token_id)
        return batch if embedding is None else {**batch, "joint_embedding": embedding}

    def _embeddings(
        self, rows: NDArray[np.integer], views: NDArray[np.integer]
    ) -> tuple[NDArray[np.int64], Tensor | None]:
        """Which of the M embeddings each sample has, and these; all-zero pictures share one."""
        numbers = np.full(len(rows), NO_MEDIUM, np.int64)
        has_medium, is_zero = rows >= 0, rows == ZERO_IMAGE
        numbers[has_medium] = np.arange(has_medium.sum())
        numbers[is_zero] = has_medium.sum()
        parts = []
        if has_medium.any():
            assert self.store is not None
            parts.append(self.store.get(rows[has_medium].tolist(), views[has_medium].tolist()))
        if is_zero.any():
            assert self.zero_image is not None
            parts.append(self.zero_image.float().reshape(1, -1))
        return numbers, torch.cat(parts) if parts else None


def store_rows(name: str, media: Sequence[str | None], store: Embeddings | None, *, zero: bool) -> NDArray[np.int64]:
    """Rows of the store for media of a source, `(N,)`.

    Args:
        name: of the source.
        media: None for a sample without.
        store: None where no sample should have one.
        zero: whether samples without get an all-zero picture.

    Raises:
        ConfigError: some have no embedding.
    """
    from bindlm.training.data.sources import media_key

    rows = np.full(len(media), ZERO_IMAGE if zero else NO_MEDIUM, np.int64)
    places = [place for place, medium in enumerate(media) if medium is not None]
    if not places:
        return rows
    keys = [media_key(name, str(media[place])) for place in places]
    found = store.rows_of(keys) if store is not None else np.full(len(keys), -1)
    missing = np.flatnonzero(found < 0)
    if len(missing):
        shown = ", ".join(keys[at] for at in missing[:3])
        raise ConfigError(
            f"{len(missing)} of the first {len(keys)} media have no embedding, such as {shown}. Make them with "
            "`bindlm features RECIPE`; media that it cannot read must be taken out of the data."
        )
    rows[places] = found
    return rows


def draw(
    seed: int, salt: int, samples: NDArray[np.integer], visits: NDArray[np.integer], counts: NDArray[np.integer] | int
) -> NDArray[np.int64]:
    """A number below `counts` for each visit of each sample, `(N,)`: a function of the arguments alone.

    SplitMix64's mixing step, since a generator of numpy for each sample would take 20 µs.
    """
    with np.errstate(over="ignore"):
        state = np.full(len(samples), (seed * 2 + 1) * 1_000_003 + salt, dtype=np.uint64)
        for values in (samples, visits):
            state = (state ^ values.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state ^= state >> np.uint64(31)
    return (state % np.asarray(counts, dtype=np.uint64)).astype(np.int64)
