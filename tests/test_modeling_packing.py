"""Rows of several samples: each token gets its own sample's condition, as if the sample stood alone."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bindlm.errors import ConfigError
from bindlm.modeling import BindLMForConditionalGeneration

from .tiny import DECODERS, DIM, HIDDEN, SIDE, tiny_language_model, tiny_model, token_batch, unit_rows

PLAN: list[list[tuple[int, int]]] = [[(5, 0), (3, 2), (4, 0)], [(7, 1), (5, 3)]]
"""By row: length of each sample and its medium, or -1."""
MIXED: list[list[tuple[int, int]]] = [[(5, 0), (3, -1), (4, 1)], [(7, -1), (5, 2)]]
TEXT: list[list[tuple[int, int]]] = [[(5, -1), (7, -1)], [(4, -1), (8, -1)]]


def packed(plan: list[list[tuple[int, int]]]) -> dict[str, Tensor]:
    """`input_ids`, `position_ids` and `media_rows` of packed rows."""
    rows = len(plan)
    return {
        "input_ids": token_batch(rows, sum(length for length, _ in plan[0])),
        "position_ids": torch.stack([torch.cat([torch.arange(length) for length, _ in row]) for row in plan]),
        "media_rows": torch.stack([torch.cat([torch.full((n,), medium) for n, medium in row]) for row in plan]),
    }


def samples(plan: list[list[tuple[int, int]]]) -> list[tuple[slice, slice, int]]:
    """Row, columns and medium of each sample."""
    found = []
    for index, row in enumerate(plan):
        start = 0
        for length, medium in row:
            found.append((slice(index, index + 1), slice(start, start + length), medium))
            start += length
    return found


def training_model(kind: str = "llama", **changes: Any) -> BindLMForConditionalGeneration:
    model = tiny_model(kind, **changes).train()
    model.language_model.requires_grad_(False)
    return model


def score(logits: Tensor, ids: Tensor) -> Tensor:
    """Summed loss of next tokens within one sample."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")


def gradients(model: BindLMForConditionalGeneration) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("plan", [PLAN, MIXED], ids=["all", "mixed"])
@pytest.mark.parametrize("kind", DECODERS)
def test_packed_samples_are_what_they_are_alone(kind: str, plan: list[list[tuple[int, int]]]) -> None:
    """Logits, and the gradients of bridge and gates. In training mode, where transformers would make a cache, and with
    a cache no block mask: samples that see each other are off by more than 0.1."""
    batch, joint = packed(plan), unit_rows(4)
    model, alone = training_model(kind), training_model(kind)
    logits = model(**batch, joint_embedding=joint).logits
    loss = torch.zeros(())
    for row, columns, medium in samples(plan):
        ids = batch["input_ids"][row, columns]
        media = {"joint_embedding": joint[medium : medium + 1]} if medium >= 0 else {}
        expected = alone(input_ids=ids, **media).logits
        torch.testing.assert_close(logits[row, columns], expected, rtol=0, atol=1e-5)
        loss = loss + score(logits[row, columns], ids)
        if medium >= 0:
            score(expected, ids).backward()
    loss.backward()
    given, expected_gradients = gradients(model), gradients(alone)
    assert set(given) == set(expected_gradients)
    assert {name.split(".")[0] for name in given} == {"bridge", "injection"}
    for name, gradient in expected_gradients.items():
        assert gradient.abs().max() > 0, name
        assert (given[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


# not Mixtral: an expert multiplies the tokens that chose it together, so other tokens change the last bits
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
@torch.no_grad()
def test_tokens_without_a_medium_are_bit_identical_to_the_plain_model(kind: str) -> None:
    model, plain, batch = tiny_model(kind), tiny_language_model(kind), packed(MIXED)
    expected = plain(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    logits = model(**batch, joint_embedding=unit_rows(3)).logits
    is_text = batch["media_rows"] < 0
    assert torch.equal(logits[is_text], expected[is_text])
    assert (logits[~is_text] - expected[~is_text]).abs().amax(dim=1).min() > 0.01
    without = packed(TEXT)
    expected = plain(without["input_ids"], position_ids=without["position_ids"], use_cache=False).logits
    assert torch.equal(model(**without).logits, expected)
    assert torch.equal(model(**without, joint_embedding=unit_rows(1)).logits, expected)


@torch.no_grad()
def test_pictures_embeddings_conditions_and_mixtures_are_one_way() -> None:
    model, batch = tiny_model(gate=1.0), packed(MIXED)
    pictures = torch.randn(3, 2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    joint = model.encode_media(image=pictures)["image"]
    expected = model(**batch, pixel_values=pictures).logits
    assert torch.equal(model(**batch, joint_embedding=joint).logits, expected)
    assert torch.equal(model(**batch, condition=model.condition_from(joint)).logits, expected)
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    assert torch.equal(model(inputs_embeds=embeds, **batch, joint_embedding=joint).logits, expected)
    mixed = [(joint, 1.0), (unit_rows(3), 1.0)]
    assert not torch.allclose(model(inputs_embeds=embeds, **batch, joint_embedding=mixed).logits, expected)


def test_the_bridge_runs_on_the_media_not_on_the_tokens() -> None:
    model, seen = tiny_model(), []
    model.bridge.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape)))
    model(**packed(PLAN), joint_embedding=unit_rows(4))
    assert seen == [(4, DIM)]


LORA: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}


@torch.no_grad()
def test_row_with_one_medium_or_more_runs_with_adapters() -> None:
    """Rows are whole to the adapters, so packing keeps samples with and without media apart; this is what if not."""
    model, plain = tiny_model(lora=LORA), tiny_language_model()
    batch = packed([MIXED[0], TEXT[0]])
    logits = model(**batch, joint_embedding=unit_rows(2)).logits
    expected = plain(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    torch.testing.assert_close(logits[1], expected[1], rtol=0, atol=1e-5)
    assert (logits[0] - expected[0]).abs().amax(dim=1).min() > 0.01, "text of a row with media too"
    alone = model(
        batch["input_ids"][:1],
        position_ids=batch["position_ids"][:1],
        media_rows=batch["media_rows"][:1],
        joint_embedding=unit_rows(2),
    )
    torch.testing.assert_close(logits[:1], alone.logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("has_lora", [True, False])
def test_checkpointing_changes_no_gradient_of_packed_rows(use_reentrant: bool, has_lora: bool) -> None:
    found = []
    for is_checkpointed in (False, True):
        model = training_model(lora=LORA if has_lora else None)
        for parameter in model._lora.parameters() if model._lora is not None else []:
            parameter.requires_grad_(True)
        if is_checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        losses = []
        for plan in (PLAN, [MIXED[0], TEXT[0]]):  # backward comes when another call has come and gone
            batch = packed(plan)
            losses.append(model(**batch, joint_embedding=unit_rows(4), labels=batch["input_ids"]).loss)
        model(input_ids=token_batch(1, 3))
        sum(losses[1:], losses[0]).backward()
        found.append(gradients(model))
    assert set(found[0]) == set(found[1])
    assert any(".lora_" in name for name in found[0]) == has_lora
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_bfloat16_gradients_of_many_tokens_do_not_stand_still() -> None:
    """Summed one by one in bfloat16, 2000 equal terms end at 256 of them."""
    from bindlm.injections.placing import spread_over_tokens

    condition = torch.ones(1, 1, 4, dtype=torch.bfloat16, requires_grad=True)
    spread_over_tokens(condition, torch.zeros(2, 1000, dtype=torch.long)).sum().backward()
    assert condition.grad is not None
    assert condition.grad.tolist() == [[[2000.0] * 4]]


ROWS = torch.tensor([[0, 0], [-1, 1]])


@pytest.mark.parametrize(
    ("media", "complaint"),
    [
        ({"media_rows": ROWS, "has_media": torch.tensor([True, True]), "joint_embedding": unit_rows(2)}, "not both"),
        ({"media_rows": ROWS}, "media_rows names media, but there are no"),
        ({"media_rows": ROWS, "joint_embedding": unit_rows(1)}, "from -1 to 1, but there are 1 media"),
        ({"media_rows": ROWS - 1, "joint_embedding": unit_rows(2)}, "from -2 to 0, but there are 2 media"),
        ({"media_rows": ROWS[:1], "joint_embedding": unit_rows(2)}, r"each token, \(2, 2\), got \(1, 2\)"),
        ({"media_rows": ROWS[0], "joint_embedding": unit_rows(2)}, r"each token, \(2, 2\), got \(2,\)"),
        ({"media_rows": ROWS.float(), "joint_embedding": unit_rows(2)}, "whole numbers, got torch.float32"),
        ({"media_rows": ROWS >= 0, "joint_embedding": unit_rows(2)}, "whole numbers, got torch.bool"),
        ({"media_rows": ROWS, "condition": torch.zeros(2, HIDDEN)}, r"must be \(M, 1, 32\), got \(2, 32\)"),
        ({"media_rows": ROWS, "condition": torch.zeros(2, 2, HIDDEN)}, r"got \(2, 2, 32\)"),
        ({"media_rows": ROWS, "joint_embedding": unit_rows(2), "use_cache": True}, "packed samples see each other"),
    ],
)
def test_media_rows_that_do_not_fit_are_refused(media: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        tiny_model()(input_ids=token_batch(2, 2), **media)


def test_generate_has_no_packed_rows() -> None:
    with pytest.raises(ConfigError, match="media_rows are for training"):
        tiny_model().generate(token_batch(2, 2), media_rows=ROWS, joint_embedding=unit_rows(2), max_new_tokens=2)


def test_media_rows_need_text() -> None:
    with pytest.raises(ConfigError, match="give input_ids"):
        tiny_model()(media_rows=ROWS, joint_embedding=unit_rows(2))
