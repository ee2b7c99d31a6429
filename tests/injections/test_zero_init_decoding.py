"""Zero-init attention word by word or all at once, in a batch or alone: one answer."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bindlm.injections import ZeroInitAttention, ZeroInitAttentionConfig

from ..conditioned import FAMILIES, NUM_HEADS, positions_of, randomize, step_by_step, tiny_decoder
from ..tiny import HIDDEN, NUM_LAYERS, padded_batch, token_batch

# Logits reach 5. A row that takes its neighbour's prompt is off by more than 0.1.
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
LENGTHS = [13, 6, 10]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_decoder(request.param)


@pytest.fixture(params=[1, 4], ids=["value path", "full attention"])
def injection(model: PreTrainedModel, request: pytest.FixtureRequest) -> Any:
    config = ZeroInitAttentionConfig(NUM_HEADS, HIDDEN, NUM_LAYERS - 1, num_tokens=request.param)
    injection = config.build()
    randomize(injection, 1.0)
    injection.attach_to(model)
    yield injection
    injection.detach()


def conditions(injection: ZeroInitAttention, *, has_empty_row: bool = False, rows: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    condition = torch.randn(rows, injection.config.num_tokens, HIDDEN, generator=generator)
    if has_empty_row:
        condition[1] = 0
    return condition


@pytest.mark.parametrize("is_precomputed", [False, True])
@torch.no_grad()
def test_step_by_step_equals_the_full_pass(
    model: PreTrainedModel, injection: ZeroInitAttention, is_precomputed: bool
) -> None:
    """Rows of unlike length, padded on the left, each with a condition of its own, one with none."""
    batch, condition = padded_batch(LENGTHS), conditions(injection, has_empty_row=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    positions = positions_of(mask)
    full = model(input_ids=ids, attention_mask=mask, position_ids=positions, condition=condition).logits
    given = injection.precompute(condition) if is_precomputed else condition
    steps = step_by_step(model, ids, mask, given, (8, 9, 10, 11, 12, 13))  # eight at once, then one by one
    is_token = mask.bool()
    torch.testing.assert_close(steps[is_token], full[is_token], **TOLERANCE)


@torch.no_grad()
def test_padded_batch_equals_each_row_alone(model: PreTrainedModel, injection: ZeroInitAttention) -> None:
    batch, condition = padded_batch(LENGTHS), conditions(injection)
    positions = positions_of(batch["attention_mask"])
    together = model(**batch, position_ids=positions, condition=condition).logits
    for row, length in enumerate(LENGTHS):
        ids = batch["input_ids"][row : row + 1, -length:]
        alone = model(input_ids=ids, condition=condition[row : row + 1]).logits[0]
        torch.testing.assert_close(together[row, -length:], alone, **TOLERANCE)


SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams returned": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "samples returned": {"do_sample": True, "num_return_sequences": 3},
}


@pytest.mark.parametrize("settings", SEARCHES.values(), ids=SEARCHES)
def test_generation_does_not_depend_on_the_cache(
    model: PreTrainedModel, injection: ZeroInitAttention, settings: dict[str, Any]
) -> None:
    condition = conditions(injection, rows=2)
    made = []
    for use_cache, given in ((True, injection.precompute(condition)), (True, condition), (False, condition)):
        torch.manual_seed(3)
        options = {"max_new_tokens": 5, "output_scores": True, "return_dict_in_generate": True, **settings}
        batch = padded_batch([7, 4], seed=1)
        made.append(model.generate(**batch, condition=given, use_cache=use_cache, **options))
    for other in made[1:]:
        assert torch.equal(made[0].sequences, other.sequences)
        for one, two in zip(made[0].scores, other.scores, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=2e-5)  # beam scores are sums over steps


@pytest.mark.parametrize("num_beams", [1, 3])
def test_each_row_and_its_beams_keep_their_own_condition(
    model: PreTrainedModel, injection: ZeroInitAttention, num_beams: int
) -> None:
    """Rows of one prompt and unlike conditions: as a batch, and one by one."""
    ids, condition = token_batch(1, 6, seed=2).expand(3, -1), conditions(injection, seed=4)
    options: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": num_beams}
    together = model.generate(ids, condition=condition, **options)
    for row in range(3):
        alone = model.generate(ids[:1], condition=condition[row : row + 1], **options)
        assert torch.equal(together[row], alone[0])
    assert len({tuple(row) for row in together.tolist()}) > 1, "unlike conditions should lead to unlike texts"


def test_static_cache_gives_the_same_text(model: PreTrainedModel, injection: ZeroInitAttention) -> None:
    batch, condition = padded_batch([7, 4], seed=1), conditions(injection, rows=2)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "disable_compile": True}
    expected = model.generate(**batch, condition=condition, **options)
    made = model.generate(**batch, condition=condition, cache_implementation="static", **options)
    assert torch.equal(made, expected)


def test_zero_gate_generates_what_the_plain_model_does(model: PreTrainedModel, injection: ZeroInitAttention) -> None:
    batch, condition = padded_batch([7, 4]), conditions(injection, rows=2)
    with torch.no_grad():
        injection.gate.zero_()
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "num_beams": 2}
    given = model.generate(**batch, condition=condition, **options)
    injection.detach()
    assert torch.equal(given, model.generate(**batch, **options))
