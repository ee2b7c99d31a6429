"""Data of a stage: whole micro-batches, drawn anew each epoch, the same on any number of devices."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from bindlm.errors import ConfigError
from bindlm.training.batches import draw
from bindlm.training.data.sample import Sample, Turn
from bindlm.training.data.sources import open_source
from bindlm.training.data.table import sample_features
from bindlm.training.render import IGNORED, render
from bindlm.training.samples import TrainingData
from bindlm.training.stage_recipe import PromptConfig, SourceConfig
from bindlm.training.streamed import StreamedData

from ..tiny import DIM, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
CAPTIONS = [
    Sample(f"c{n}", captions=(f"first of {n} " + "x" * (n % 7), f"other of {n}"), media=f"{n}.jpg") for n in range(20)
]
TALKS = [Sample(f"t{n}", (Turn("user", f"Number {n}?"), Turn("assistant", "y" * (n + 1)))) for n in range(9)]


class FakeStore:
    """Embeddings that tell their row and view."""

    num_views = 3

    def rows_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        numbers = [key.removeprefix("pictures/").removesuffix(".jpg") for key in keys]
        return np.array([int(number) if int(number) < 20 else -1 for number in numbers])

    def get(self, rows: Sequence[int], views: Sequence[int]) -> Tensor:
        return torch.tensor([[row, view] + [0] * (DIM - 2) for row, view in zip(rows, views, strict=True)]).float()


class FakeSource:
    """An opened source of given samples."""

    def __init__(self, name: str, samples: Sequence[Sample], weight: float = 1.0) -> None:
        from datasets import Dataset

        self.name, self.config = name, SourceConfig("captions", "x", name=name, weight=weight)
        self.fingerprint = str(hash(tuple(samples)))
        rows = [
            {
                "id": sample.id,
                "turns": [vars(turn) for turn in sample.turns],
                "captions": list(sample.captions),
                "media": sample.media,
                "modality": sample.modality,
            }
            for sample in samples
        ]
        self.rows: Any = Dataset.from_list(rows, features=sample_features())

    def sample(self, row: Mapping[str, Any]) -> Sample:
        turns = tuple(Turn(**turn) for turn in row["turns"])
        return Sample(row["id"], turns, tuple(row["captions"]), row["media"], row["modality"])


def data_of(*sources: FakeSource, prompt: PromptConfig | None = None, **changes: Any) -> TrainingData:
    settings: dict[str, Any] = {"batch_size": 8, "num_epochs": 2, "store": FakeStore(), **changes}
    given = sources or (FakeSource("pictures", CAPTIONS), FakeSource("talks", TALKS))
    return TrainingData(given, TOKENIZER, prompt or PromptConfig(), **settings)


def streamed(*sources: FakeSource, **changes: Any) -> StreamedData:
    settings: dict[str, Any] = {"batch_size": 4, "num_micro": 2, "num_steps": 12, "store": FakeStore(), **changes}
    given = sources or (FakeSource("pictures", CAPTIONS), FakeSource("talks", TALKS))
    return StreamedData(given, TOKENIZER, PromptConfig(), **settings)


def texts(batch: Mapping[str, Tensor]) -> list[tuple[str, str, int]]:
    """What each sample of a packed micro-batch reads and learns, and the store row of its medium."""
    found = []
    for row in range(len(batch["input_ids"])):
        starts = (batch["position_ids"][row] == 0).nonzero().flatten().tolist()
        for start, end in zip(starts, [*starts[1:], None], strict=True):
            ids, labels = batch["input_ids"][row, start:end], batch["labels"][row, start:end]
            if (labels == IGNORED).all():  # padding
                continue
            media = batch["media_rows"][row, start:end].unique().tolist() if "media_rows" in batch else [-1]
            assert len(media) == 1
            medium = int(batch["joint_embedding"][media[0], 0]) if media[0] >= 0 else -1
            found.append((TOKENIZER.decode(ids), TOKENIZER.decode(labels[labels != IGNORED]), medium))
    return found


def flat(data: Any) -> list[list[tuple[str, str, int]]]:
    return [texts(data[number]) for number in range(len(data))]


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_micro_batches_hold_what_render_makes_with_its_own_medium() -> None:
    data = data_of(num_micro=2)
    by_text = {}
    for sample in (*CAPTIONS, *TALKS):
        for caption in range(max(1, len(sample.captions))):
            conditioned = sample.media is not None
            one = render(sample, TOKENIZER, PromptConfig(), is_conditioned=conditioned, caption=caption)
            medium = int(sample.id[1:]) if conditioned else -1
            by_text[TOKENIZER.decode(one.input_ids)] = (
                TOKENIZER.decode([label for label in one.labels if label != IGNORED]),
                medium,
            )
    seen = [each for batch in flat(data) for each in batch]
    assert len(seen) == data.num_steps * 8
    assert all(by_text[text] == (target, medium) for text, target, medium in seen)


def test_an_epoch_sees_each_sample_once_and_draws_captions_and_views_anew() -> None:
    data = data_of(FakeSource("pictures", CAPTIONS), batch_size=20, num_epochs=6)
    epochs = [dict((medium, target) for _, target, medium in texts(data[epoch])) for epoch in range(6)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    for medium in range(20):
        assert {epoch[medium].split()[0] for epoch in epochs} <= {"first", "other"}
    assert len({tuple(sorted(epoch.items())) for epoch in epochs}) == 6
    views = [dict(data[epoch]["joint_embedding"][:, :2].tolist()) for epoch in range(6)]
    assert all(len({epoch[medium] for epoch in views}) > 1 for medium in range(20))
    assert same(data[3], data_of(FakeSource("pictures", CAPTIONS), batch_size=20, num_epochs=6)[3])


def test_draws_are_even_and_depend_on_everything_given() -> None:
    samples, visits = np.divmod(np.arange(30_000), 10)
    drawn = draw(0, 1, samples, visits, 3)
    assert np.bincount(drawn).min() > 9_500
    for other in (draw(1, 1, samples, visits, 3), draw(0, 2, samples, visits, 3), draw(0, 1, visits, samples, 3)):
        assert 0.3 < (drawn == other).mean() < 0.37
    assert np.array_equal(drawn[5:9], draw(0, 1, samples[5:9], visits[5:9], 3))


def test_cutting_a_step_otherwise_leaves_its_samples() -> None:
    alone, cut = data_of(num_micro=1), data_of(num_micro=4)
    for step in range(5):
        parts = [each for number in range(4) for each in texts(cut[4 * step + number])]
        assert sorted(parts) == sorted(texts(alone[step]))


def test_rows_are_wholly_conditioned_or_not_at_all() -> None:
    data = data_of(row_tokens=300)
    mixed = 0
    for number in range(len(data)):
        batch = data[number]
        real = batch["labels"] != IGNORED
        for row in range(len(real)):
            kinds = (batch["media_rows"][row][real[row]] >= 0).unique()
            assert len(kinds) == 1
        mixed += len((batch["media_rows"][real] >= 0).unique()) == 2
    assert mixed


def test_padded_micro_batches_hold_the_same_samples() -> None:
    packed, padded = data_of(), data_of(packing=False)
    for number in range(len(packed)):
        batch = padded[number]
        assert batch["attention_mask"].shape == batch["input_ids"].shape == batch["media_rows"].shape
        rows = [
            TOKENIZER.decode(ids[mask.bool()])
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        assert sorted(rows) == sorted(text for text, _, _ in texts(packed[number]))


def test_text_alone_has_no_condition_unless_a_zero_picture_is_asked_for() -> None:
    talks = FakeSource("talks", TALKS)
    assert not {"joint_embedding", "media_rows"} & set(data_of(talks, store=None)[0])
    zero = torch.full((DIM,), 7.0)
    prompt = PromptConfig(zero_image_for_text=True)
    batch = data_of(talks, FakeSource("pictures", CAPTIONS), prompt=prompt, zero_image=zero)[0]
    media = [medium for _, _, medium in texts(batch)]
    assert 7 in media
    assert len(batch["joint_embedding"]) == len(set(batch["media_rows"].flatten().tolist()) - {-1})
    with pytest.raises(ConfigError, match="zero_image_for_text"):
        data_of(talks, prompt=prompt)


def test_media_without_embedding_are_named_with_the_cure() -> None:
    lost = [Sample(f"c{n}", captions=("a",), media=f"{n}.jpg") for n in range(18, 23)]
    with pytest.raises(ConfigError, match=r"3 .* pictures/20\.jpg, pictures/21\.jpg.*`bindlm features RECIPE`"):
        data_of(FakeSource("pictures", lost))
    with pytest.raises(ConfigError, match="bindlm features"):
        data_of(FakeSource("pictures", lost), store=None)


def test_samples_cut_before_the_answer_are_dropped_and_counted() -> None:
    long = Sample("long", (Turn("user", "q" * 500), Turn("assistant", "a")))
    data = data_of(FakeSource("talks", [*TALKS, long, *TALKS]), store=None)
    summary = data.summary()
    assert (summary.num_samples, summary.num_dropped, summary.num_conditioned) == (18, 1, 0)
    assert "1 without anything to learn left out" in data.describe()
    assert 0 < summary.target_share < summary.fill_ratio <= 1
    with pytest.raises(ConfigError, match="None of the 1 samples"):
        data_of(FakeSource("talks", [long]), store=None)


def test_conversations_that_the_template_refuses_cost_no_others() -> None:
    words = tiny_tokenizer()
    words.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    refused = [Sample(f"s{n}", (Turn("system", "S"), *talk.turns)) for n, talk in enumerate(TALKS)]
    data = TrainingData(
        [FakeSource("talks", [*TALKS, *refused[:4]])], words, PromptConfig(), batch_size=4, num_steps=1
    )
    assert (len(data.plan.lengths), data.summary().num_dropped) == (9, 4)
    with pytest.raises(ConfigError, match=r"9 of 10 samples of talks: The chat template takes no .* no system"):
        TrainingData([FakeSource("talks", [*TALKS[:1], *refused])], words, PromptConfig(), batch_size=1, num_steps=1)


def test_the_right_alternative_is_used_where_one_caption_was_cut_away() -> None:
    prompt = PromptConfig(max_tokens=70, caption_instruction="q" * 20)
    data = data_of(FakeSource("pictures", CAPTIONS), prompt=prompt)
    assert {medium for _, _, medium in (each for batch in flat(data) for each in batch)} == set(range(20))


def test_weights_repeat_a_source() -> None:
    data = data_of(FakeSource("pictures", CAPTIONS), FakeSource("talks", TALKS, weight=3), batch_size=47, num_epochs=1)
    found = texts(data[0])
    assert sum(medium >= 0 for _, _, medium in found) == 20
    assert sum(medium < 0 for _, _, medium in found) == 27


def test_tokens_are_made_once_for_each_state_of_settings(tmp_path: Path) -> None:
    first = data_of(cache=tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("tokens-*.arrow")}
    assert len(files) == 2
    again = data_of(cache=tmp_path, seed=0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("tokens-*.arrow")} == files
    assert all(same(first[number], again[number]) for number in range(len(first)))
    data_of(cache=tmp_path, prompt=PromptConfig(template="alpaca"))
    assert len(list(tmp_path.glob("tokens-*.arrow"))) == 4


def test_kept_tokens_are_mapped_not_held(tmp_path: Path) -> None:
    data = data_of(cache=tmp_path)
    assert all(table.dataset.cache_files for table in data.tables)
    assert len(pickle.dumps(data)) < 100_000
    again = pickle.loads(pickle.dumps(data))
    assert same(again[3], data[3])


def test_workers_give_the_same_micro_batches() -> None:
    data = data_of()
    loaded = list(DataLoader(data, batch_size=1, num_workers=2, collate_fn=lambda items: items[0]))
    assert all(same(data[number], batch) for number, batch in enumerate(loaded))


def test_a_real_source_and_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINDLM_HOME", str(tmp_path / "home"))
    file = tmp_path / "pairs.tsv"
    lines = [f"pictures/{n}.jpg\tA caption of {n}." for n in range(12)]
    file.write_text("\n".join(["url\tcaption", *lines]), encoding="utf-8")
    source = open_source(SourceConfig("captions", str(file), name="pictures"))

    class Store(FakeStore):
        def rows_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
            return super().rows_of([key.replace("pictures/pictures/", "pictures/") for key in keys])

    data = TrainingData(
        [source], TOKENIZER, PromptConfig(), batch_size=12, num_epochs=1, store=Store(), cache=tmp_path / "tokens"
    )
    assert sorted((medium, target) for _, target, medium in texts(data[0])) == [
        (n, f"A caption of {n}.<|im_end|>") for n in range(12)
    ]


def test_a_stream_is_the_same_each_time_and_skipping_gives_the_rest() -> None:
    first, second = list(streamed()), list(streamed())
    assert len(first) == 24
    assert all(map(same, first, second))
    assert all(same(a, b) for a, b in zip(first[7:], list(streamed())[7:], strict=True))
    assert not all(map(same, first, streamed(seed=1)))


def test_streamed_steps_have_batch_size_samples_however_they_are_cut() -> None:
    halves, wholes = list(streamed()), list(streamed(num_micro=1))
    for step, whole in enumerate(wholes):
        parts = [*texts(halves[2 * step]), *texts(halves[2 * step + 1])]
        assert len(parts) == 4
        assert sorted(parts) == sorted(texts(whole))


def test_a_stream_shows_all_rows_and_begins_again() -> None:
    stream = streamed(FakeSource("pictures", CAPTIONS), num_steps=40, num_micro=1)
    media = [medium for batch in stream for _, _, medium in texts(batch)]
    assert len(media) == 160
    assert np.bincount(media, minlength=20).tolist() == [8] * 20
    captions = {target.split()[0] for batch in stream for _, target, medium in texts(batch) if medium == 3}
    assert captions == {"first", "other"}


def test_a_stream_without_anything_to_learn_ends_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bindlm.training.streamed._MOST_DROPPED", 100)
    long = FakeSource("talks", [Sample("long", (Turn("user", "q" * 600), Turn("assistant", "a")))])
    with pytest.raises(ConfigError, match="nothing to learn"):
        next(iter(streamed(long)))


def test_a_stream_leaves_out_what_cannot_be_learned() -> None:
    long = Sample("long", (Turn("user", "q" * 600), Turn("assistant", "a")))
    found = [each for batch in streamed(FakeSource("talks", [*TALKS, long])) for each in texts(batch)]
    assert len(found) == 48
    assert all(target.startswith("y") for _, target, _ in found)
