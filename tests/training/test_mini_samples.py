"""Embeddings to train on have the profile that the noise settings ask for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bindlm.training.mini.data import IGNORED, MiniDataset, MixConfig, collate
from bindlm.training.mini.samples import EmbeddingSampler, NoiseConfig
from bindlm.training.mini.vocabulary import Entry

DIM, CLASSES, PICTURES = 64, 40, 12


@pytest.fixture
def sampler() -> EmbeddingSampler:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(CLASSES, DIM, generator=generator)
    views = F.normalize(torch.randn(PICTURES, 3, DIM, generator=generator), dim=-1)
    return EmbeddingSampler(keys, views, NoiseConfig(cosine_low=0.3, cosine_high=0.6, confusers=0))


def test_embeddings_have_unit_length_and_the_cosine_asked_for(sampler: EmbeddingSampler) -> None:
    entries = list(range(CLASSES)) * 20
    drawn = sampler.draw(entries, np.random.default_rng(0))
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(len(entries)), atol=1e-5, rtol=0)
    cosines = (drawn * sampler.prototypes[entries]).sum(dim=1)
    assert 0.299 <= cosines.min() < 0.32
    assert 0.58 < cosines.max() <= 0.601


def test_confusers_pull_toward_other_classes() -> None:
    keys = torch.eye(CLASSES, DIM)
    views = F.normalize(torch.randn(PICTURES, 3, DIM, generator=torch.Generator().manual_seed(1)), dim=-1)
    noise = {"cosine_low": 0.9, "cosine_high": 0.95, "confuser_share": 0.8, "picture_residual": 0.0}

    def second_best(confusers: int) -> float:
        sampler = EmbeddingSampler(keys, views, NoiseConfig(confusers=confusers, **noise))
        drawn = sampler.draw([3] * 200, np.random.default_rng(2))
        return float((drawn @ keys.T).topk(2, dim=1).values[:, 1].mean())

    assert second_best(4) > second_best(0) + 0.1


def test_pictures_stay_near_their_views(sampler: EmbeddingSampler) -> None:
    entries = [CLASSES + index for index in range(PICTURES)] * 10
    drawn = sampler.draw(entries, np.random.default_rng(0))
    nearest = torch.einsum("bd,pvd->bpv", drawn, sampler.views).amax(dim=2).argmax(dim=1)
    assert (nearest == torch.tensor(entries) - CLASSES).float().mean() > 0.9


def entries_of() -> list[Entry]:
    names = [Entry(f"class{index}", "thing", "imagenet") for index in range(CLASSES)]
    return [*names, *(Entry(f"picture{index}", "", ("emoji", "furniture")[index % 2]) for index in range(PICTURES))]


def test_a_batch_depends_on_seed_and_index_alone(sampler: EmbeddingSampler) -> None:
    def dataset(seed: int) -> MiniDataset:
        return MiniDataset(entries_of(), sampler, None, MixConfig(), num_samples=64, seed=seed)

    first, again, other = (dataset(seed).__getitems__([8, 9, 10, 11]) for seed in (5, 5, 6))
    assert all(torch.equal(a["joint_embedding"], b["joint_embedding"]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0]["joint_embedding"], other[0]["joint_embedding"])


def test_sources_are_drawn_in_their_shares(sampler: EmbeddingSampler) -> None:
    mix = MixConfig(classes=0.6, emoji=0.3)
    dataset = MiniDataset(entries_of(), sampler, None, mix, num_samples=4000, seed=0)
    sources = [dataset.entries[sample["entry"]].source for sample in dataset.__getitems__(list(range(4000)))]
    shares = {source: sources.count(source) / 4000 for source in ("imagenet", "emoji", "furniture")}
    assert shares == pytest.approx({"imagenet": 0.6, "emoji": 0.3, "furniture": 0.1}, abs=0.03)


def test_collate_ends_answers_at_the_right_edge() -> None:
    samples = [
        {"joint_embedding": torch.zeros(4), "prompt_ids": [5, 6, 7], "answer_ids": [8, 9], "entry": 0},
        {"joint_embedding": torch.ones(4), "prompt_ids": [5], "answer_ids": [10, 11, 12], "entry": 1},
    ]
    batch = collate(samples, pad_token_id=2)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [2, 5, 10, 11, 12]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 0, 1, 2, 3]]
    assert batch["labels"].tolist() == [[IGNORED, 8, 9], [10, 11, 12]]
