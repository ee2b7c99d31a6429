"""What is kept of media: decoded once, features made once, and the same values as without."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bindlm.binding.array_store import ArrayStore
from bindlm.binding.augment_settings import AugmentRecipe
from bindlm.binding.values import BackboneFeatures, DecodedMedia
from bindlm.encoders.towers import AdapterTower
from bindlm.errors import ConfigError, MediaError


@dataclass
class FakeConfig:
    dim: int = 4
    backbone: str = "fake"
    num_samples: int = 10


class FakeAdapter(AdapterTower):
    """Motion records, of which the backbone tells the mean of each channel."""

    modality = "imu"
    kind = "fake"

    def __init__(self, config: FakeConfig) -> None:
        super().__init__()
        self.config, self.dim, self.adapter = config, config.dim, nn.Linear(6, config.dim)
        self.loads = self.passes = 0

    def load(self, source: Any, *, allow_url: bool = False) -> np.ndarray:
        self.loads += 1
        try:
            return np.load(source, allow_pickle=False)
        except ValueError:
            raise MediaError(f"{source} is torn.") from None

    def prepare(self, raw: np.ndarray) -> torch.Tensor:
        return torch.tensor(raw)

    def features(self, values: torch.Tensor) -> torch.Tensor:
        self.passes += len(values)
        return values.mean(dim=2)


def media(folder: Path) -> list[str]:
    random = np.random.default_rng(0)
    for number in range(3):
        np.save(folder / f"{number}.npy", random.standard_normal((6, 10)).astype(np.float32))
    (folder / "torn.npy").write_bytes(b"torn")
    return [str(folder / name) for name in ("0.npy", "torn.npy", "1.npy", "2.npy")]


def noisy(views: int = 2) -> AugmentRecipe:
    from bindlm.binding.augment_settings import ImuAugment

    return AugmentRecipe(views=views, imu=ImuAugment(noise=0.5))


def decoded(tower: FakeAdapter, names: list[str], folder: Path, **options: Any) -> DecodedMedia:
    return DecodedMedia(tower, names, folder / "cache", options.pop("gb", 1.0), options.pop("recipe", noisy()))


@pytest.mark.parametrize("gb", [0.0, 1.0])
def test_media_are_the_same_kept_or_decoded_anew_and_torn_ones_are_known(tmp_path, gb):
    tower, names = FakeAdapter(FakeConfig()), media(tmp_path)
    kept = decoded(tower, names, tmp_path, gb=gb)
    unusable = kept.decode(lambda n: None)
    assert list(unusable) == [1]
    assert "torn" in unusable[1]
    assert tower.loads == 4
    torch.testing.assert_close(kept.plain([3, 0]), torch.stack([torch.tensor(np.load(names[n])) for n in (3, 0)]))
    assert tower.loads == (4 if gb else 6)


def test_what_was_decoded_by_an_earlier_run_is_not_decoded_again(tmp_path):
    names = media(tmp_path)
    first = decoded(FakeAdapter(FakeConfig()), names, tmp_path)
    first.decode(lambda n: None)
    tower = FakeAdapter(FakeConfig(dim=9))  # another width of the net decodes the same
    again = decoded(tower, names, tmp_path)
    assert again.decode(lambda n: None) == first.decode(lambda n: None)
    assert tower.loads == 0
    decoded(FakeAdapter(FakeConfig(num_samples=11)), names, tmp_path).decode(lambda n: None)


def test_a_change_depends_on_the_generator_alone(tmp_path):
    names = media(tmp_path)
    kept = decoded(FakeAdapter(FakeConfig()), names, tmp_path)
    kept.decode(lambda n: None)
    one, same, other = (kept.changed([0], [np.random.default_rng(seed)]) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, kept.plain([0]))


def test_features_are_made_once_for_the_plain_medium_and_each_copy(tmp_path):
    tower, names = FakeAdapter(FakeConfig()), media(tmp_path)
    kept = decoded(tower, names, tmp_path)
    kept.decode(lambda n: None)
    features = BackboneFeatures(tower, kept, tmp_path / "cache", seed=0)
    features.make([0, 2, 3], lambda n: None)
    assert tower.passes == 3 * 3
    torch.testing.assert_close(features.plain([2, 0]), kept.plain([2, 0]).mean(dim=2))
    seen = {tuple(features.changed([2], [np.random.default_rng(seed)])[0].tolist()) for seed in range(20)}
    assert len(seen) == 2
    assert tuple(features.plain([2])[0].tolist()) not in seen
    again = BackboneFeatures(tower, kept, tmp_path / "cache", seed=0)
    again.make([0, 2, 3], lambda n: None)
    assert tower.passes == 3 * 3


@pytest.mark.parametrize("recipe", [AugmentRecipe(is_on=False), noisy(views=0)])
def test_without_copies_the_plain_features_are_all_there_is(tmp_path, recipe):
    tower, names = FakeAdapter(FakeConfig()), media(tmp_path)
    kept = decoded(tower, names, tmp_path, recipe=recipe)
    kept.decode(lambda n: None)
    features = BackboneFeatures(tower, kept, tmp_path / "cache", seed=0)
    features.make([0], lambda n: None)
    assert tower.passes == 1
    assert torch.equal(features.changed([0], [np.random.default_rng(1)]), features.plain([0]))


def test_values_of_different_shapes_make_no_batch(tmp_path):
    names = media(tmp_path)
    np.save(tmp_path / "0.npy", np.zeros((6, 12), np.float32))
    kept = decoded(FakeAdapter(FakeConfig()), names, tmp_path)
    with pytest.raises(ConfigError, match=r"one shape, got \(6, 12\), \(6, 10\)"):
        kept.plain([0, 2])


# -- the store --------------------------------------------------------------------------------------------------------


def test_a_store_gives_back_what_it_was_given_after_a_restart_too(tmp_path):
    arrays = {"a": np.arange(5, dtype=np.int16), "b": np.zeros((0, 3)), "c": np.random.rand(2, 3, 4)}
    store = ArrayStore(tmp_path)
    for name, array in arrays.items():
        store.put(name, array)
    store.put_error("d", "torn")
    for each in (store, ArrayStore(tmp_path)):
        for name, array in arrays.items():
            np.testing.assert_array_equal(each.get(name), array)
            assert each.get(name).dtype == array.dtype
        assert each.error("d") == "torn"
        assert "e" not in each


def test_a_store_forgets_what_a_kill_left_half_written(tmp_path):
    store = ArrayStore(tmp_path)
    store.put("a", np.arange(100))
    store.put("b", np.arange(100))
    data = tmp_path / "arrays.bin"
    data.write_bytes(data.read_bytes()[:-8])  # the index was on the disk before the data
    with (tmp_path / "arrays.jsonl").open("a") as stream:
        stream.write('{"name": "c", "off')
    again = ArrayStore(tmp_path)
    assert "a" in again
    assert "b" not in again
    assert "c" not in again
    again.put("b", np.arange(7))
    np.testing.assert_array_equal(ArrayStore(tmp_path).get("b"), np.arange(7))
    np.testing.assert_array_equal(ArrayStore(tmp_path).get("a"), np.arange(100))
