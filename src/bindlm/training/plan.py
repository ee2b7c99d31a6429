"""Which samples each optimizer step learns: a pure function of the seed and the data, never of how it is run.

Epochs follow one another without a gap, so that every step has exactly `batch_size` samples; any step can be had
without those before it, so that a resumed run replays nothing.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from bindlm.errors import ConfigError
from bindlm.training.packing import spread

__all__ = ["BatchPlan", "Picks", "num_micro_batches", "released_order", "split_step"]

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class Picks(NamedTuple):
    """Samples of a step or a micro-batch."""

    samples: NDArray[np.int64]
    """`(N,)` numbers."""
    visits: NDArray[np.int64]
    """`(N,)`: a number that differs each time a sample is seen: the epoch, where weights are 1. What is drawn anew
    each time (a caption, a view) is drawn from it."""

    def at(self, indices: Sequence[int] | NDArray[np.integer]) -> "Picks":
        """Some of them."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Picks(self.samples[chosen], self.visits[chosen])


class BatchPlan:
    """Optimizer steps and their micro-batches.

    Args:
        lengths: `(N,)` tokens of each sample.
        batch_size: samples an optimizer step.
        num_micro: micro-batches an optimizer step: accumulation times devices. Device d of D takes numbers d, d + D, …
            of a step, so one device that accumulates twice and two that do not take the same step.
        seed: of the order.
        packing: True deals a step's samples into micro-batches of near-equal tokens, and keeps groups together as far
            as that goes; False into such of equal counts and similar lengths.
        groups: `(N,)`: samples of different groups never share a row; None for one group.
        sizes: how many samples each source has, in order; None for one source.
        weights: how often an epoch sees a sample of each source: the whole part always, the rest as a random share
            that changes every epoch.
        order: "shuffled", or "released" for the release's sub-epoch sampler, in which each micro-batch of a step takes
            the place of one of the release's devices.
        split_epoch: sub-epochs a pass of the released order.

    Raises:
        ConfigError: a step has fewer samples than micro-batches, or the data are too few.

    Source:
        Released order: `main_pretrain` of ImageBind-LLM's release (facts: permutation of seed + epoch // split).
    """

    def __init__(
        self,
        lengths: NDArray[np.integer],
        *,
        batch_size: int,
        num_micro: int = 1,
        seed: int = 0,
        packing: bool = True,
        groups: NDArray[np.integer] | NDArray[np.bool_] | None = None,
        sizes: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
        order: str = "shuffled",
        split_epoch: int = 1,
    ) -> None:
        self.lengths, self.groups = lengths, groups
        self.batch_size, self.num_micro, self.seed, self.packing = batch_size, num_micro, seed, packing
        self.sizes = tuple(sizes) if sizes is not None else (len(lengths),)
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(self.sizes)
        self.is_released, self.split_epoch = order == "released", split_epoch
        self._check(order)
        self.epoch_size = self._count()
        """Samples an epoch."""
        if self.epoch_size < 1:
            raise ConfigError(f"{len(lengths)} samples with weights {list(self.weights)} leave none for an epoch.")
        self._orders: dict[int, NDArray[np.integer]] = {}
        self._lanes: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._steps: dict[int, list[Picks]] = {}

    def _check(self, order: str) -> None:
        if not 1 <= self.num_micro <= self.batch_size:
            raise ConfigError(
                f"An optimizer step of batch_size {self.batch_size} cannot be split into {self.num_micro} "
                "micro-batches: use fewer devices, a larger batch_size or a larger micro_batch_size."
            )
        assert sum(self.sizes) == len(self.lengths)
        assert len(self.weights) == len(self.sizes)
        assert order in ("shuffled", "released")
        if self.is_released and set(self.weights) != {1.0}:
            raise ConfigError('order "released" knows no weights; set every SourceConfig.weight to 1.')
        if self.is_released and self.batch_size % self.num_micro:
            raise ConfigError(
                f'order "released" needs a batch_size that {self.num_micro} micro-batches share evenly, got '
                f"{self.batch_size}."
            )

    def _count(self) -> int:
        if self.is_released:
            lane = len(self.lengths) // (self.num_micro * self.split_epoch)
            return lane * self.num_micro * self.split_epoch
        return sum(size * whole + part for size, whole, part in self._shares())

    def _shares(self) -> list[tuple[int, int, int]]:
        """Of each source: its size, how often an epoch sees it whole, and how many of it once more."""
        pairs = zip(self.sizes, self.weights, strict=True)
        return [(size, int(weight), round(size * (weight - int(weight)))) for size, weight in pairs]

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps an epoch."""
        return self.epoch_size / self.batch_size

    def num_steps(self, num_epochs: float) -> int:
        """Optimizer steps that see so many epochs, rounded up."""
        return max(1, int(np.ceil(num_epochs * self.steps_per_epoch - 1e-9)))

    def step(self, number: int) -> list[Picks]:
        """All micro-batches of an optimizer step."""
        return _kept(self._steps, number, 2, self._deal)

    def micro_batch(self, number: int) -> Picks:
        """Micro-batch by its number in the whole run: number % num_micro of step number // num_micro."""
        return self.step(number // self.num_micro)[number % self.num_micro]

    def _deal(self, number: int) -> list[Picks]:
        if self.is_released:
            return [self._of_lane(lane, number) for lane in range(self.num_micro)]
        start = number * self.batch_size
        end = start + self.batch_size
        parts: list[Picks] = []
        while start < end:
            epoch, offset = divmod(start, self.epoch_size)
            # Two are kept, as a step may reach over a border; one of 100 million samples is 400 MB.
            order = _kept(self._orders, epoch, 2, self._shuffled)
            parts.append(self._decode(order[offset : offset + end - start], epoch))
            start += len(parts[-1].samples)
        whole = Picks(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
        groups = self.groups[whole.samples] if self.groups is not None else None
        parts_of_step = split_step(self.lengths[whole.samples], groups, self.num_micro, packing=self.packing)
        return [whole.at(indices) for indices in parts_of_step]

    def _shuffled(self, epoch: int) -> NDArray[np.integer]:
        """The entries of an epoch: copies of a source's samples stand one after another before the shuffle."""
        random = np.random.default_rng([self.seed, epoch])
        kind = np.int32 if self._num_entries() < 2**31 else np.int64
        parts, start = [], 0
        for size, whole, part in self._shares():
            parts.append(np.arange(start, start + size * whole, dtype=kind))
            extra = random.choice(size, part, replace=False) if part else np.empty(0, kind)
            parts.append((start + size * whole + extra).astype(kind))
            start += size * (whole + 1)
        entries: NDArray[np.integer] = np.concatenate(parts)
        random.shuffle(entries)
        return entries

    def _num_entries(self) -> int:
        return sum(size * (whole + 1) for size, whole, _ in self._shares())

    def _decode(self, entries: NDArray[np.integer], epoch: int) -> Picks:
        """Entries to samples, and which of an epoch's copies they are."""
        shares = np.array(self._shares(), dtype=np.int64)  # (S, 3)
        ends = np.cumsum(shares[:, 0] * (shares[:, 1] + 1))
        source = np.searchsorted(ends, entries, side="right")
        size = shares[source, 0]
        inner = entries - (ends[source] - size * (shares[source, 1] + 1))
        first = np.cumsum(shares[:, 0])[source] - size
        copies = int((shares[:, 1] + (shares[:, 2] > 0)).max())
        return Picks(first + inner % size, epoch * copies + inner // size)

    def _of_lane(self, lane: int, number: int) -> Picks:
        """What one of the release's devices takes at a step."""
        count, size = self.batch_size // self.num_micro, self.epoch_size // (self.num_micro * self.split_epoch)
        samples, passes = [], []
        position = number * count
        while (missing := (number + 1) * count - position) > 0:
            epoch, offset = divmod(position, size)
            order = _kept(self._lanes, (epoch, lane), 2 * self.num_micro, self._released)
            taken = order[offset : offset + missing]
            samples.append(taken)
            passes.append(np.full(len(taken), epoch // self.split_epoch, dtype=np.int64))
            position += len(taken)
        return Picks(np.concatenate(samples), np.concatenate(passes))

    def _released(self, place: tuple[int, int]) -> NDArray[np.int64]:
        epoch, lane = place
        return released_order(
            len(self.lengths),
            epoch,
            rank=lane,
            num_replicas=self.num_micro,
            split_epoch=self.split_epoch,
            seed=self.seed,
        )


def split_step(
    lengths: NDArray[np.integer],
    groups: NDArray[np.integer] | NDArray[np.bool_] | None,
    num_micro: int,
    *,
    packing: bool,
) -> list[NDArray[np.int64]]:
    """Deal the samples of an optimizer step into micro-batches; see `BatchPlan`.

    Returns:
        Indices into `lengths` for each micro-batch, none of them empty.
    """
    if not packing:
        return np.array_split(np.argsort(lengths, kind="stable"), num_micro)
    if num_micro > 1 and groups is not None and len(np.unique(groups)) > 1:
        # Cut at equal tokens with groups in order: at most one micro-batch at each border then has rows of both.
        order = np.argsort(groups, kind="stable")
        ends = np.cumsum(lengths[order], dtype=np.float64)
        middles = ends - lengths[order] / 2
        bins = (middles * num_micro / ends[-1]).astype(np.int64)
        cut = [np.sort(order[bins == number]) for number in range(num_micro)]
        if all(len(each) for each in cut):
            return cut
    return [np.sort(np.asarray(each, dtype=np.int64)) for each in spread(lengths, num_micro)]


def num_micro_batches(batch_size: int, micro_batch_size: int, num_devices: int = 1) -> int:
    """Micro-batches of an optimizer step: as few as hold it, and as many on every device.

    Raises:
        ConfigError: there are more devices than samples in a step.
    """
    if num_devices > batch_size:
        raise ConfigError(f"OptimizerConfig.batch_size {batch_size} is too small for {num_devices} devices.")
    return num_devices * -(-batch_size // (micro_batch_size * num_devices))


def released_order(
    dataset_size: int, epoch: int, *, rank: int, num_replicas: int, split_epoch: int, seed: int
) -> NDArray[np.int64]:
    """What one device sees in one sub-epoch of the release's sampler.

    Args:
        dataset_size: N.
        epoch: sub-epoch, counted from 0; `split_epoch` of them are a pass over the data.
        rank: which device.
        num_replicas: devices.
        split_epoch: sub-epochs a pass.
        seed: of the permutation, which changes with every pass.

    Returns:
        `(N // (num_replicas * split_epoch),)` numbers of samples.

    Source:
        Release of ImageBind-LLM: a strided slice of torch's permutation of seed + epoch // split_epoch.
    """
    import torch

    generator = torch.Generator().manual_seed(seed + epoch // split_epoch)
    permutation = torch.randperm(dataset_size, generator=generator).numpy()
    stride = num_replicas * split_epoch
    return permutation[rank * split_epoch + epoch % split_epoch :: stride][: dataset_size // stride].copy()


def _kept(cache: dict[_Key, _Value], key: _Key, size: int, make: Callable[[_Key], _Value]) -> _Value:
    """A value that was made before, while it is one of the last few; unlike `lru_cache`, a worker can be sent it."""
    if key not in cache:
        while len(cache) >= size:
            del cache[next(iter(cache))]
        cache[key] = make(key)
    return cache[key]
