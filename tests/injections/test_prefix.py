"""Soft tokens at the places of placeholders, on every decoder."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from bindlm.errors import ConfigError
from bindlm.injections import AdditiveInjection, PrefixConfig, PrefixInjection, expand_placeholders, stack_media

from ..conditioned import FAMILIES, positions_of, tiny_decoder
from ..tiny import HIDDEN, NUM_LAYERS, token_batch

PLACE = 3
"""An id of the vocabulary that the tests' texts do not use otherwise."""
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
LENGTHS = [13, 6, 10]
COUNTS = [5, 0, 3]
"""Soft tokens of each row."""


def injection_of(**changes: Any) -> PrefixInjection:
    return PrefixConfig(**{"placeholder_id": PLACE, "hidden_dim": HIDDEN, **changes}).build()


def words(rows: int, length: int, seed: int = 0) -> Tensor:
    ids = token_batch(rows, length, seed)
    return ids.masked_fill(ids == PLACE, PLACE + 1)


def soft_tokens(count: int, seed: int = 5) -> Tensor:
    """`(count, D_lm)`."""
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


def media_batch() -> tuple[dict[str, Tensor], Tensor]:
    """Three rows padded on the left: two media of 2 and 3 tokens, none, one of 3."""
    ids = words(3, max(LENGTHS))
    for row, length in enumerate(LENGTHS):
        ids[row, :-length] = 0
    ids[0, 2:4], ids[0, 8:11], ids[2, -7:-4] = PLACE, PLACE, PLACE
    mask = torch.tensor([[0] * (max(LENGTHS) - length) + [1] * length for length in LENGTHS])
    condition = stack_media([[soft_tokens(2, 1), soft_tokens(3, 2)], [], [soft_tokens(3, 3)]])
    return {"input_ids": ids, "attention_mask": mask}, condition


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    model = tiny_decoder(request.param)
    injection_of().attach_to(model)
    return model


def placed(model: PreTrainedModel, ids: Tensor, condition: Tensor) -> Tensor:
    """Embeddings with soft tokens put in one by one."""
    embeds = model.get_input_embeddings()(ids).clone()
    for row in range(len(ids)):
        for number, place in enumerate((ids[row] == PLACE).nonzero().flatten().tolist()):
            embeds[row, place] = condition[row, number]
    return embeds


@torch.no_grad()
def test_soft_tokens_stand_where_placeholders_were(model: PreTrainedModel) -> None:
    batch, condition = media_batch()
    positions = positions_of(batch["attention_mask"])
    given = model(**batch, position_ids=positions, condition=condition).logits
    embeds = placed(model, batch["input_ids"], condition)
    expected = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"], position_ids=positions).logits
    assert torch.equal(given, expected)


@torch.no_grad()
def test_padded_batch_equals_each_row_alone(model: PreTrainedModel) -> None:
    batch, condition = media_batch()
    together = model(**batch, position_ids=positions_of(batch["attention_mask"]), condition=condition).logits
    for row, length in enumerate(LENGTHS):
        ids = batch["input_ids"][row : row + 1, -length:]
        given = {"condition": condition[row : row + 1]} if COUNTS[row] else {}
        torch.testing.assert_close(together[row, -length:], model(ids, **given).logits[0], **TOLERANCE)


@torch.no_grad()
def test_step_by_step_equals_the_full_pass(model: PreTrainedModel) -> None:
    batch, condition = media_batch()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    positions = positions_of(mask)
    full = model(**batch, position_ids=positions, condition=condition).logits
    steps, past, begin = [], DynamicCache(config=model.config), 0
    for end in (11, 12, 13):
        piece = {"input_ids": ids[:, begin:end], "attention_mask": mask[:, :end], "past_key_values": past}
        steps.append(model(**piece, position_ids=positions[:, begin:end], condition=condition).logits)
        begin = end
    is_token = mask.bool()
    torch.testing.assert_close(torch.cat(steps, dim=1)[is_token], full[is_token], **TOLERANCE)


@torch.no_grad()
def test_later_turn_brings_a_medium_of_its_own() -> None:
    """The cache holds the first turn; the condition has the soft tokens of both."""
    model = tiny_decoder()
    injection_of().attach_to(model)
    ids = words(1, 12)
    ids[0, 2:4], ids[0, 8:11] = PLACE, PLACE
    condition = soft_tokens(5)[None]
    full = model(ids, condition=condition).logits
    past = DynamicCache(config=model.config)
    first = model(ids[:, :6], past_key_values=past, condition=condition[:, :2]).logits
    second = model(ids[:, 6:], past_key_values=past, condition=condition).logits
    torch.testing.assert_close(torch.cat([first, second], dim=1), full, **TOLERANCE)


SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams returned": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "samples returned": {"do_sample": True, "num_return_sequences": 3},
}


@pytest.mark.parametrize("settings", SEARCHES.values(), ids=SEARCHES)
def test_generation_does_not_depend_on_the_cache(model: PreTrainedModel, settings: dict[str, Any]) -> None:
    batch, condition = media_batch()
    options = {"max_new_tokens": 5, "output_scores": True, "return_dict_in_generate": True, **settings}
    made = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        made.append(
            model.generate(**batch, condition=condition, use_cache=use_cache, suppress_tokens=[PLACE], **options)
        )
    assert torch.equal(made[0].sequences, made[1].sequences)
    assert torch.equal(made[0].sequences[:: len(made[0].sequences) // 3, : max(LENGTHS)], batch["input_ids"])


@pytest.mark.parametrize("num_beams", [1, 3])
def test_each_row_and_its_beams_keep_their_own_soft_tokens(model: PreTrainedModel, num_beams: int) -> None:
    ids = words(1, 8, seed=2).expand(3, -1).clone()
    ids[:, 2:6] = PLACE
    condition = soft_tokens(12).unflatten(0, (3, 4))
    options: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": num_beams}
    together = model.generate(ids, condition=condition, **options)
    for row in range(3):
        assert torch.equal(together[row], model.generate(ids[:1], condition=condition[row : row + 1], **options)[0])
    assert len({tuple(row) for row in together.tolist()}) > 1, "unlike conditions should lead to unlike texts"


@torch.no_grad()
def test_no_condition_leaves_logits_bit_identical_and_detach_restores() -> None:
    plain, model, injection = tiny_decoder(), tiny_decoder(), injection_of()
    batch, condition = media_batch()
    injection.attach_to(model)
    assert injection.is_attached
    assert torch.equal(model(**batch).logits, plain(**batch).logits)
    assert not torch.equal(model(**batch, condition=condition).logits, plain(**batch).logits)
    injection.detach()
    assert not injection.is_attached
    assert not model.model._forward_pre_hooks
    assert list(model.state_dict()) == list(plain.state_dict())


@torch.no_grad()
def test_one_condition_serves_all_rows() -> None:
    model = tiny_decoder()
    injection_of().attach_to(model)
    ids, condition = words(3, 8), soft_tokens(2)[None]
    ids[:, 3:5] = PLACE
    expected = model(ids, condition=condition.expand(3, -1, -1)).logits
    assert torch.equal(model(ids, condition=condition).logits, expected)


@torch.no_grad()
def test_placeholder_may_be_the_padding_or_no_word_at_all() -> None:
    batch, condition = media_batch()
    logits = []
    for place in (PLACE, 0, 99_999, -200):
        model = tiny_decoder()
        injection_of(placeholder_id=place).attach_to(model)
        ids = batch["input_ids"].masked_fill(batch["input_ids"] == PLACE, place)
        logits.append(model(ids, attention_mask=batch["attention_mask"], condition=condition).logits)
    is_token = batch["attention_mask"].bool()
    assert all(torch.equal(other[is_token], logits[0][is_token]) for other in logits[1:])


@pytest.mark.parametrize("use_reentrant", [None, True, False])
def test_gradients_reach_soft_tokens(use_reentrant: bool | None) -> None:
    """Only those that stand for something; the words' embeddings are frozen."""
    model = tiny_decoder().requires_grad_(False).train()
    injection_of().attach_to(model)
    batch, condition = media_batch()
    if use_reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    condition.requires_grad_(True)
    labels = batch["input_ids"].masked_fill((batch["attention_mask"] == 0) | (batch["input_ids"] == PLACE), -100)
    model(**batch, condition=condition, labels=labels, use_cache=False).loss.backward()
    assert condition.grad is not None
    assert (condition.grad.abs().amax(dim=-1) > 0).sum(dim=1).tolist() == COUNTS
    reference = condition.detach().clone().requires_grad_(True)
    plain = tiny_decoder().requires_grad_(False).train()
    embeds = placed(plain, batch["input_ids"], reference)
    plain(inputs_embeds=embeds, attention_mask=batch["attention_mask"], labels=labels, use_cache=False).loss.backward()
    torch.testing.assert_close(condition.grad, reference.grad, rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_placeholders_and_soft_tokens_must_be_as_many() -> None:
    model = tiny_decoder()
    injection_of().attach_to(model)
    ids = words(2, 8)
    ids[0, 2:4] = PLACE
    for condition, message in (
        (stack_media([[soft_tokens(3)], []]), r"\[2, 0\] placeholders \(id 3\) and soft tokens for \[3, 0\]"),
        (stack_media([[soft_tokens(1)], []]), r"\[2, 0\] placeholders \(id 3\) and soft tokens for \[1, 0\]"),
        (stack_media([[soft_tokens(2)], [soft_tokens(1)]]), r"and soft tokens for \[2, 1\]"),
        (soft_tokens(2), r"must be \(2, S, 32\), or \(1, S, 32\) for all of them, got \(2, 32\)"),
        (soft_tokens(6).unflatten(0, (3, 2)), r"got \(3, 2, 32\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            model(ids, condition=condition)
    with pytest.raises(ConfigError, match="give those, not embeddings"):
        model(inputs_embeds=torch.zeros(2, 8, HIDDEN), condition=soft_tokens(2)[None])


@torch.no_grad()
def test_piece_after_an_unknown_one_is_refused() -> None:
    model = tiny_decoder()
    injection_of().attach_to(model)
    past = model(words(1, 4), use_cache=True).past_key_values
    ids = words(1, 4)
    ids[0, 1] = PLACE
    with pytest.raises(ConfigError, match="nothing says how many came before"):
        model(ids, past_key_values=past, condition=soft_tokens(1)[None])


def test_one_injection_at_a_time() -> None:
    model, injection = tiny_decoder(), injection_of()
    injection.attach_to(model)
    with pytest.raises(ConfigError, match="attached already"):
        injection.attach_to(model)
    with pytest.raises(ConfigError, match="has an injection already"):
        injection_of().attach_to(model)
    with pytest.raises(ConfigError, match="width 16 do not fit a model of width 32"):
        injection_of(hidden_dim=16).attach_to(tiny_decoder())
    other = tiny_decoder()
    AdditiveInjection(NUM_LAYERS).attach_to(other)
    with pytest.raises(ConfigError, match="has an injection already"):
        injection_of().attach_to(other)


def test_each_placeholder_becomes_as_many_as_its_medium_has() -> None:
    ids = torch.tensor([[0, 7, PLACE, 8, PLACE], [0, 0, 0, 9, 10], [0, 0, 7, PLACE, 9]])
    mask = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 1, 1, 1]])
    made = expand_placeholders(
        ids, attention_mask=mask, labels=ids * 10, placeholder_id=PLACE, counts=[[2, 3], [], [1]]
    )
    assert made["input_ids"].tolist() == [[7, 3, 3, 8, 3, 3, 3], [0, 0, 0, 0, 0, 9, 10], [0, 0, 0, 0, 7, 3, 9]]
    assert made["attention_mask"].tolist() == [[1] * 7, [0] * 5 + [1] * 2, [0] * 4 + [1] * 3]
    i = -100
    assert made["labels"].tolist() == [[i, i, i, 80, i, i, i], [i] * 6 + [100], [i] * 6 + [90]]
    right = expand_placeholders(
        ids, attention_mask=mask, placeholder_id=PLACE, counts=2, pad_id=2, padding_side="right"
    )
    assert right["input_ids"].tolist() == [[7, 3, 3, 8, 3, 3], [9, 10, 2, 2, 2, 2], [7, 3, 3, 9, 2, 2]]
    assert set(right) == {"input_ids", "attention_mask"}


def test_placeholders_and_media_must_be_as_many() -> None:
    with pytest.raises(ConfigError, match="Row 1 has 1 placeholders, but 2 media"):
        expand_placeholders(torch.tensor([[7, 8], [7, PLACE]]), placeholder_id=PLACE, counts=[[], [1, 1]])
    with pytest.raises(ConfigError, match="padding_side"):
        expand_placeholders(torch.tensor([[7]]), placeholder_id=PLACE, counts=1, padding_side="both")
    with pytest.raises(ConfigError, match="leave the condition out"):
        stack_media([[], []])


def test_expanded_batch_trains_as_its_rows_do() -> None:
    """Labels, mask and positions after the expansion: the loss is that of each row alone, by its targets."""
    model = tiny_decoder()
    injection_of().attach_to(model)
    texts = [words(1, 9, seed=1)[0], words(1, 5, seed=2)[0]]
    texts[0][2], texts[1][1] = PLACE, PLACE
    ids = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_side="left")
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True, padding_side="left")
    batch = expand_placeholders(ids, placeholder_id=PLACE, counts=4, attention_mask=mask, labels=ids)
    condition = soft_tokens(8).unflatten(0, (2, 4))
    together = model(**batch, position_ids=positions_of(batch["attention_mask"]), condition=condition).loss
    losses, targets = [], []
    for row, text in enumerate(texts):
        alone = expand_placeholders(text[None], placeholder_id=PLACE, counts=4, labels=text[None])
        losses.append(model(**alone, condition=condition[row : row + 1]).loss)
        targets.append(int((alone["labels"][:, 1:] != -100).sum()))
    expected = sum(loss * count for loss, count in zip(losses, targets, strict=True)) / sum(targets)
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("field", "value"), [("hidden_dim", 0), ("num_tokens", 0.5)])
def test_impossible_sizes_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"PrefixConfig.{field} must be a number from 1 up"):
        PrefixConfig(**{"placeholder_id": 1, "hidden_dim": 8, field: value})
