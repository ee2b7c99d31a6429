"""Two ways to one answer: token by token with a KV cache, or all at once; in a batch or alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bindlm.modeling import BindLMForConditionalGeneration

from ..conditioned import positions_of, step_by_step
from ..tiny import DECODERS, padded_batch, tiny_model, token_batch, unit_rows

# Logits reach 5. The worst seen is 4e-6; a row that takes its neighbour's condition is off by more than 0.1.
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
LENGTHS = [13, 6, 10]


@pytest.fixture(scope="module", params=DECODERS)
def model(request: pytest.FixtureRequest) -> BindLMForConditionalGeneration:
    return tiny_model(request.param, gate=1.0)


def conditions(model: BindLMForConditionalGeneration, *, has_empty_row: bool) -> Tensor:
    """One condition for each of three rows; the middle one may have none."""
    with torch.no_grad():
        condition = model.condition_from(unit_rows(3))
    if has_empty_row:
        condition[1] = 0
    return condition


@pytest.mark.parametrize("has_empty_row", [False, True])
@torch.no_grad()
def test_step_by_step_equals_the_full_pass(model: BindLMForConditionalGeneration, has_empty_row: bool) -> None:
    """Rows of unlike length, padded on the left, each with a condition of its own."""
    batch, condition = padded_batch(LENGTHS), conditions(model, has_empty_row=has_empty_row)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    positions = positions_of(mask)
    full = model(input_ids=ids, attention_mask=mask, position_ids=positions, condition=condition).logits
    steps = step_by_step(model, ids, mask, condition, (8, 9, 10, 11, 12, 13))  # eight at once, then one by one
    is_token = mask.bool()
    torch.testing.assert_close(steps[is_token], full[is_token], **TOLERANCE)


@torch.no_grad()
def test_generated_logits_equal_the_full_pass(model: BindLMForConditionalGeneration) -> None:
    batch, condition = padded_batch(LENGTHS), conditions(model, has_empty_row=True)
    made = model.generate(
        **batch,
        condition=condition,
        do_sample=False,
        max_new_tokens=6,
        min_new_tokens=6,
        output_logits=True,
        return_dict_in_generate=True,
    )
    mask = torch.cat([batch["attention_mask"], torch.ones(3, 6, dtype=torch.long)], dim=1)
    full = model(
        input_ids=made.sequences,
        attention_mask=mask,
        position_ids=positions_of(mask),
        condition=condition,
    ).logits
    torch.testing.assert_close(torch.stack(made.logits, dim=1), full[:, -7:-1], **TOLERANCE)


@torch.no_grad()
def test_padded_batch_equals_each_row_alone(model: BindLMForConditionalGeneration) -> None:
    batch, joint = padded_batch(LENGTHS), unit_rows(3)
    positions = positions_of(batch["attention_mask"])
    together = model(**batch, position_ids=positions, joint_embedding=joint).logits
    for row, length in enumerate(LENGTHS):
        ids = batch["input_ids"][row : row + 1, -length:]
        alone = model(input_ids=ids, joint_embedding=joint[row : row + 1]).logits[0]
        torch.testing.assert_close(together[row, -length:], alone, **TOLERANCE)


SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beam": {"do_sample": False, "num_beams": 3},
    "beams returned": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampled": {"do_sample": True, "temperature": 0.9, "top_p": 0.95},
    "samples returned": {"do_sample": True, "num_return_sequences": 3},
}


@pytest.mark.parametrize("settings", SEARCHES.values(), ids=SEARCHES)
def test_generation_does_not_depend_on_the_cache(
    model: BindLMForConditionalGeneration, settings: dict[str, Any]
) -> None:
    made = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        made.append(
            model.generate(
                **padded_batch([7, 4], seed=1),
                joint_embedding=unit_rows(2, seed=1),
                max_new_tokens=6,
                use_cache=use_cache,
                output_scores=True,
                return_dict_in_generate=True,
                **settings,
            )
        )
    assert torch.equal(made[0].sequences, made[1].sequences)
    assert len(made[0].sequences) == 2 * settings.get("num_return_sequences", 1)
    for cached, full in zip(made[0].scores, made[1].scores, strict=True):
        torch.testing.assert_close(cached, full, rtol=0, atol=2e-5)  # beam scores are sums over steps


@pytest.mark.parametrize("num_beams", [1, 3])
def test_each_row_and_its_beams_keep_their_own_condition(
    model: BindLMForConditionalGeneration, num_beams: int
) -> None:
    """Rows of one prompt and unlike conditions: as a batch, and one by one."""
    ids = token_batch(1, 6, seed=2).expand(3, -1)
    joint = unit_rows(3, seed=4)
    options: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": num_beams}
    together = model.generate(ids, joint_embedding=joint, **options)
    for row in range(3):
        alone = model.generate(ids[:1], joint_embedding=joint[row : row + 1], **options)
        assert torch.equal(together[row], alone[0])
    assert len({tuple(row) for row in together.tolist()}) > 1, "unlike conditions should lead to unlike texts"


def test_one_condition_serves_all_rows_of_a_batch(model: BindLMForConditionalGeneration) -> None:
    batch, joint = padded_batch(LENGTHS), unit_rows(1)
    for num_beams in (1, 2):
        options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "num_beams": num_beams}
        shared = model.generate(**batch, joint_embedding=joint, **options)
        assert torch.equal(shared, model.generate(**batch, joint_embedding=joint.expand(3, -1), **options))
