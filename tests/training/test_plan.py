"""Which samples a step learns depends on the seed and the data, never on how the run is cut up."""

import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bindlm.errors import ConfigError
from bindlm.training.plan import BatchPlan, Picks, num_micro_batches, released_order

from ..golden import GOLDEN

LENGTHS = np.random.default_rng(0).integers(5, 200, 103).astype(np.int32)


def seen(plan: BatchPlan, steps: range) -> list[list[int]]:
    """Samples of each step, sorted."""
    return [sorted(np.concatenate([part.samples for part in plan.step(step)]).tolist()) for step in steps]


def visits(plan: BatchPlan, num_steps: int) -> list[tuple[int, int]]:
    parts = [part for step in range(num_steps) for part in plan.step(step)]
    return [pair for part in parts for pair in zip(part.samples.tolist(), part.visits.tolist(), strict=True)]


def same(first: Picks, second: Picks) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 3), st.booleans())
def test_every_step_has_exactly_batch_size_samples_and_every_epoch_each_sample_once(
    batch_size: int, num_micro: int, seed: int, packing: bool
) -> None:
    num_micro = min(num_micro, batch_size)
    plan = BatchPlan(LENGTHS, batch_size=batch_size, num_micro=num_micro, seed=seed, packing=packing)
    num_steps = plan.num_steps(2)
    assert all(len(step) == batch_size for step in seen(plan, range(num_steps)))
    pairs = visits(plan, num_steps)
    assert sorted(pair for pair in pairs if pair[1] < 2) == sorted((n, e) for n in range(103) for e in range(2))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("groups", [None, np.arange(103) % 3 == 0], ids=["one group", "two groups"])
def test_the_number_of_micro_batches_does_not_change_a_step(packing: bool, groups: Any) -> None:
    plans = [
        BatchPlan(LENGTHS, batch_size=24, num_micro=n, seed=3, packing=packing, groups=groups) for n in (1, 2, 3, 24)
    ]
    steps = [seen(plan, range(12)) for plan in plans]
    assert steps[1:] == steps[:-1]


def test_two_devices_take_what_one_device_accumulates() -> None:
    alone = BatchPlan(LENGTHS, batch_size=16, num_micro=2, seed=1)
    for device in range(2):  # each has a plan of its own
        plan = BatchPlan(LENGTHS, batch_size=16, num_micro=2, seed=1)
        assert all(same(plan.micro_batch(2 * s + device), alone.micro_batch(2 * s + device)) for s in range(20))


def test_a_resumed_run_needs_no_replay() -> None:
    run = BatchPlan(LENGTHS, batch_size=10, num_micro=2, seed=7, weights=[1.5])
    expected = [run.micro_batch(number) for number in range(100)]
    fresh = BatchPlan(LENGTHS, batch_size=10, num_micro=2, seed=7, weights=[1.5])
    assert all(same(fresh.micro_batch(number), expected[number]) for number in (99, 40, 0))


def test_seed_and_epoch_change_the_order() -> None:
    def epoch_of(seed: int, epoch: int) -> list[int]:
        (whole,) = BatchPlan(LENGTHS, batch_size=103, seed=seed).step(epoch)
        return whole.samples.tolist()

    orders = [epoch_of(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(103)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_weights_repeat_whole_parts_and_draw_a_new_share_each_epoch() -> None:
    plan = BatchPlan(LENGTHS[:30], batch_size=1, sizes=[10, 20], weights=[2.5, 0.25])
    assert plan.epoch_size == 10 * 2 + 5 + 5
    epochs = []
    for epoch in range(3):
        picks = [plan.micro_batch(number) for number in range(30 * epoch, 30 * epoch + 30)]
        counts = np.bincount([int(p.samples[0]) for p in picks], minlength=30)
        assert set(counts[:10].tolist()) == {2, 3}
        assert counts[:10].sum() == 25
        assert set(counts[10:].tolist()) == {0, 1}
        assert counts[10:].sum() == 5
        epochs.append(counts.tolist())
    assert epochs[0] != epochs[1] != epochs[2]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 12), st.floats(0.1, 3)), min_size=1, max_size=4), st.integers(0, 5))
def test_no_visit_of_a_sample_is_numbered_like_another(sources: list[tuple[int, float]], seed: int) -> None:
    sizes, weights = zip(*sources, strict=True)
    try:
        plan = BatchPlan(LENGTHS[: sum(sizes)], batch_size=4, seed=seed, sizes=sizes, weights=weights)
    except ConfigError:  # the shares of tiny sources round to nothing
        assert sum(round(size * weight) for size, weight in sources) <= len(sources)
        return
    pairs = visits(plan, plan.num_steps(3))
    assert len(set(pairs)) == len(pairs)
    assert {sample for sample, _ in pairs} <= set(range(sum(sizes)))


def test_micro_batches_are_level() -> None:
    lengths = np.clip(np.random.default_rng(1).lognormal(3.6, 0.6, 4096), 8, 512).astype(np.int32)
    packed = BatchPlan(lengths, batch_size=256, num_micro=8)
    sums = [[lengths[part.samples].sum() for part in packed.step(step)] for step in range(16)]
    assert all(max(each) - min(each) < 0.02 * np.mean(each) for each in sums)
    padded = BatchPlan(lengths, batch_size=256, num_micro=8, packing=False)
    assert all([len(part.samples) for part in padded.step(step)] == [32] * 8 for step in range(16))
    grouped = sum(int(lengths[part.samples].max()) * 32 for part in padded.step(0))
    whole = np.concatenate([part.samples for part in padded.step(0)])
    random = np.random.default_rng(0).permutation(whole).reshape(8, 32)
    assert grouped < 0.6 * sum(int(lengths[part].max()) * 32 for part in random)


def test_packing_keeps_groups_together() -> None:
    groups = np.arange(103) % 4 == 0
    plan = BatchPlan(LENGTHS, batch_size=64, num_micro=8, groups=groups)
    for step in range(8):
        mixed = [part for part in plan.step(step) if len(set(groups[part.samples].tolist())) > 1]
        assert len(mixed) <= 1


def test_released_order_is_the_releases() -> None:
    path = GOLDEN / "imagebind_llm" / "training_rules.json"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside this checkout")
    rules = json.loads(path.read_text(encoding="utf-8"))["sub_epoch_sampler"]
    settings = {name: rules[name] for name in ("num_replicas", "split_epoch", "seed")}
    for name, indices in rules["indices"].items():
        epoch, rank = (int(part.lstrip("epochrank")) for part in name.split("_"))
        assert released_order(rules["dataset_size"], epoch, rank=rank, **settings).tolist() == indices


def test_released_order_has_each_micro_batch_in_the_place_of_a_device() -> None:
    plan = BatchPlan(LENGTHS, batch_size=10, num_micro=2, seed=0, order="released", split_epoch=5)
    for rank in range(2):
        given = np.concatenate([plan.step(step)[rank].samples for step in range(12)])
        lanes = [released_order(103, e, rank=rank, num_replicas=2, split_epoch=5, seed=0) for e in range(6)]
        assert given.tolist() == np.concatenate(lanes).tolist()
    assert plan.epoch_size == 100


def test_impossible_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be split into 4"):
        BatchPlan(LENGTHS, batch_size=3, num_micro=4)
    with pytest.raises(ConfigError, match="knows no weights"):
        BatchPlan(LENGTHS, batch_size=4, weights=[2], order="released")
    with pytest.raises(ConfigError, match="leave none"):
        BatchPlan(LENGTHS[:1], batch_size=1, weights=[0.2])
    with pytest.raises(ConfigError, match="too small for 4 devices"):
        num_micro_batches(2, 8, num_devices=4)


@pytest.mark.parametrize(("batch", "micro", "devices", "expected"), [(32, 32, 1, 1), (32, 8, 2, 4), (33, 8, 2, 6)])
def test_micro_batches_are_no_more_than_needed(batch: int, micro: int, devices: int, expected: int) -> None:
    assert num_micro_batches(batch, micro, devices) == expected


def test_a_worker_can_be_sent_a_plan() -> None:
    plan = BatchPlan(LENGTHS, batch_size=8)
    before = plan.micro_batch(3)
    assert same(pickle.loads(pickle.dumps(plan)).micro_batch(3), before)
