"""Samples that share a row are what they are alone, and rows hold little padding."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedModel

from bindlm.training.packing import Packable, collate_packed, collate_padded, pack_rows, spread
from bindlm.training.render import IGNORED

from ..tiny import VOCAB_SIZE, tiny_language_model, tiny_model, unit_rows

KINDS = ("llama", "qwen3", "gemma3", "mixtral", "mistral")
PAD = 0


def samples_of(lengths: Sequence[int], seed: int = 0, media: Sequence[int] | None = None) -> list[Packable]:
    random = np.random.default_rng(seed)
    made = []
    for number, length in enumerate(lengths):
        ids = random.integers(3, VOCAB_SIZE, length).astype(np.int32)
        made.append(Packable(ids, np.arange(length) > length // 3, -1 if media is None else media[number]))
    return made


def language_model(kind: str, attention: str) -> PreTrainedModel:
    if kind != "mistral":
        return tiny_language_model(kind, attn_implementation=attention)
    config = MistralConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def places(rows: Sequence[Sequence[int]], samples: Sequence[Packable]) -> dict[int, tuple[int, slice]]:
    """Where each sample lies."""
    found = {}
    for number, row in enumerate(rows):
        start = 0
        for index in row:
            found[index] = (number, slice(start, start + len(samples[index].input_ids)))
            start = found[index][1].stop
    return found


lengths_and_groups = st.lists(st.tuples(st.integers(1, 700), st.integers(0, 2)), min_size=1, max_size=60)


@given(lengths_and_groups, st.integers(8, 600))
def test_rows_hold_every_sample_once_within_the_limit_and_never_mix_groups(
    drawn: list[tuple[int, int]], row_tokens: int
) -> None:
    lengths, groups = (np.array(column) for column in zip(*drawn, strict=True))
    rows = pack_rows(lengths, groups, row_tokens)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert max(lengths[row].sum() for row in rows) <= max(row_tokens, lengths.max())
    assert all(row and len(set(groups[row].tolist())) == 1 for row in rows)
    assert rows == pack_rows(lengths, groups, row_tokens)


@pytest.mark.parametrize(("count", "share", "least"), [(32, 0.0, 0.98), (256, 0.0, 0.98), (128, 0.3, 0.96)])
def test_captions_fill_rows_almost_wholly(count: int, share: float, least: float) -> None:
    """Lengths as captions have them; measured 0.987 to 0.994, and 0.977 with two groups."""
    random = np.random.default_rng(0)
    used = area = 0
    for _ in range(40):
        lengths = np.clip(random.lognormal(3.6, 0.5, count), 8, 512).astype(int)
        rows = pack_rows(lengths, random.random(count) < share, 512)
        used += lengths.sum()
        area += len(rows) * max(lengths[row].sum() for row in rows)
    assert used / area > least


@given(st.lists(st.integers(1, 500), min_size=1, max_size=50), st.integers(1, 9))
def test_spread_is_within_a_third_of_the_best(drawn: list[int], num_bins: int) -> None:
    lengths = np.array(drawn)
    bins = spread(lengths, num_bins)
    assert sorted(index for each in bins for index in each) == list(range(len(lengths)))
    bound = max(lengths.sum() / num_bins, lengths.max())
    if len(lengths) > num_bins:  # two of the longest num_bins + 1 share a bin, whatever one does
        bound = max(bound, 2 * np.sort(lengths)[::-1][num_bins])
    assert max(lengths[each].sum() for each in bins) <= 4 / 3 * bound + 1e-9


def test_positions_and_labels_begin_anew_with_each_sample_and_with_the_padding() -> None:
    samples = samples_of([3, 2, 3], media=[0, 1, -1])
    batch = collate_packed(samples, [[0, 1], [2]], PAD)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 0, 1]]
    assert batch["media_rows"].tolist() == [[0, 0, 0, 1, 1], [-1, -1, -1, -1, -1]]
    assert batch["input_ids"][1, 3:].tolist() == [PAD, PAD]
    is_target = batch["labels"] != IGNORED
    assert is_target.tolist() == [[False, False, True, False, True], [False, False, True, False, False]]
    assert torch.equal(batch["labels"][is_target], batch["input_ids"][is_target])
    assert "attention_mask" not in batch


def test_no_condition_leaves_no_media_rows() -> None:
    assert "media_rows" not in collate_packed(samples_of([3, 2]), [[0, 1]], PAD)


def test_a_first_token_cannot_be_a_target() -> None:
    bad = Packable(np.array([5, 6], np.int32), np.array([True, True]))
    with pytest.raises(AssertionError, match="first token"):
        collate_packed([bad], [[0]], PAD)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_logits_are_those_of_each_sample_alone(kind: str, attention: str) -> None:
    """Within 1e-5 of logits of a few units; measured 4e-6. Windows of gemma3 and mistral are shorter than samples."""
    model = language_model(kind, attention)
    samples = samples_of([9, 1, 12, 5, 7, 2])
    rows = [[0, 1, 3], [2, 5], [4]]
    batch = collate_packed(samples, rows, PAD)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        for index, (row, columns) in places(rows, samples).items():
            alone = model(input_ids=torch.from_numpy(samples[index].input_ids[None].astype(np.int64))).logits[0]
            torch.testing.assert_close(logits[row, columns], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padded_logits_are_those_of_each_sample_alone(kind: str) -> None:
    model = language_model(kind, "sdpa")
    samples = samples_of([9, 4, 12])
    batch = collate_padded(samples, PAD)
    batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
        for row, sample in enumerate(samples):
            alone = model(input_ids=torch.from_numpy(sample.input_ids[None].astype(np.int64))).logits[0]
            torch.testing.assert_close(logits[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_another_samples_tokens_change_neither_logits_nor_gradient(kind: str) -> None:
    """The gradient of one sample's loss with respect to the embeddings of all tokens of its row."""
    model = language_model(kind, "sdpa")
    samples = samples_of([6, 8, 5])
    changed = [samples[0], samples_of([8], seed=9)[0], samples[2]]
    results = []
    for each in (samples, changed):
        batch = collate_packed(each, [[0, 1, 2]], PAD)
        embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
        logits = model(inputs_embeds=embedded, position_ids=batch["position_ids"], use_cache=False).logits
        labels = batch["labels"].clone()
        labels[:, 6:14] = IGNORED  # the losses of the first and last sample
        loss_of(logits, labels).backward()
        assert embedded.grad is not None
        assert not embedded.grad[:, 6:14].any()
        results.append((logits[:, :6], logits[:, 14:], embedded.grad[:, :6], embedded.grad[:, 14:]))
    for before, after in zip(*results, strict=True):
        torch.testing.assert_close(before, after, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_packed_samples_have_their_own_condition(kind: str) -> None:
    model = tiny_model(kind)
    media = [0, 2, 1, -1]
    samples = samples_of([9, 6, 4, 7], media=media)
    rows = [[0, 1], [2], [3]]
    batch = collate_packed(samples, rows, PAD)
    embedding = unit_rows(3)
    with torch.no_grad():
        logits = model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            joint_embedding=embedding,
            media_rows=batch["media_rows"],
            use_cache=False,
        ).logits
        for index, (row, columns) in places(rows, samples).items():
            ids = torch.from_numpy(samples[index].input_ids[None].astype(np.int64))
            medium = media[index]
            alone = model(ids, joint_embedding=embedding[medium : medium + 1]) if medium >= 0 else model(ids)
            torch.testing.assert_close(logits[row, columns], alone.logits[0], atol=1e-5, rtol=1e-5)
