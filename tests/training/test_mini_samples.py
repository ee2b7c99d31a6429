"""Embeddings to train on have the profile that the noise settings ask for."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bindlm.space.entry_names import NamedEntry
from bindlm.training.data import media_key, open_source
from bindlm.training.features.store import FeatureStore
from bindlm.training.mini.draws import EntryDraws, ReadoutBatches
from bindlm.training.mini.pairs import write_pairs
from bindlm.training.mini.recipes import DrawConfig, PairsConfig
from bindlm.training.mini.samples import EmbeddingSampler, NoiseConfig
from bindlm.training.stage_recipe import SourceConfig

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


def entries_of() -> list[NamedEntry]:
    names = [NamedEntry(f"class{index}", "thing", "imagenet") for index in range(CLASSES)]
    return [
        *names,
        *(NamedEntry(f"picture{index}", "", ("emoji", "furniture")[index % 2]) for index in range(PICTURES)),
    ]


def draws_of(**config: float) -> EntryDraws:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(CLASSES, DIM, generator=generator)
    views = F.normalize(torch.randn(PICTURES, 3, DIM, generator=generator), dim=-1)
    return EntryDraws(entries_of(), keys, views, DrawConfig(**config))


def test_a_batch_depends_on_seed_and_number_alone() -> None:
    def batches(seed: int) -> ReadoutBatches:
        return ReadoutBatches(draws_of(), num_batches=9, batch_size=4, seed=seed)

    first, again, other = (batches(seed)[8]["joint_embedding"] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_sources_are_drawn_in_their_shares() -> None:
    draws = draws_of(classes=0.6, emoji=0.3)
    numbers, _ = draws.draw(4000, np.random.default_rng(0))
    sources = [draws.entries[number].source for number in numbers]
    shares = {source: sources.count(source) / 4000 for source in ("imagenet", "emoji", "furniture")}
    assert shares == pytest.approx({"imagenet": 0.6, "emoji": 0.3, "furniture": 0.1}, abs=0.03)


def test_pairs_are_data_sets_whose_store_gives_each_its_embedding(tmp_path: Path) -> None:
    config = PairsConfig(num_samples=60, bare_turns=0.5, other_questions=True, seed=3)
    write_pairs(tmp_path / "pairs", draws_of(), config, fingerprint="0123456789abcdef")
    captions = open_source(SourceConfig(format="captions", path=str(tmp_path / "pairs" / "captions.jsonl")))
    dialogues = open_source(SourceConfig(format="llava", path=str(tmp_path / "pairs" / "dialogues.json")))
    assert len(captions) + len(dialogues) == 60
    assert min(len(captions), len(dialogues)) > 15
    store = FeatureStore.open(tmp_path / "pairs" / "features", fingerprint="0123456789abcdef")
    assert len(store) == 60
    drawn = draws_of().draw(60, np.random.default_rng(3))[1]
    for source in (captions, dialogues):
        for sample in source:
            row = store.row_of(media_key(source.name, sample.media or ""))
            torch.testing.assert_close(store.get([row], [0])[0], drawn[int(sample.media or "")], atol=1e-3, rtol=0)


def test_pairs_that_are_there_are_left_alone_and_others_replaced(tmp_path: Path) -> None:
    def write(fingerprint: str) -> int:
        write_pairs(tmp_path / "pairs", draws_of(), PairsConfig(num_samples=8), fingerprint=fingerprint)
        return (tmp_path / "pairs" / "done.json").stat().st_mtime_ns

    first = write("a" * 16)
    assert write("a" * 16) == first
    assert write("b" * 16) != first
    FeatureStore.open(tmp_path / "pairs" / "features", fingerprint="b" * 16)
