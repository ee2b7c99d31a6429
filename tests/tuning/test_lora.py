"""LoRA that is on only where there is a condition: a turn or a row without one runs the untouched language model."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from bindlm.errors import ConfigError
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.tuning.lora import inject_lora

from ..tiny import (
    DECODERS,
    padded_batch,
    randomize_lora,
    tiny_language_model,
    tiny_model,
    token_batch,
    unit_rows,
)

LORA: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"]}
ATTENTION_ONLY = {**LORA, "target_modules": ["q_proj", "v_proj", "o_proj"]}  # Mixtral's experts are no linear layers


def lora_model(kind: str = "llama", **changes: Any) -> BindLMForConditionalGeneration:
    """A bound model whose adapters are random, so that it matters whether they are on."""
    return tiny_model(kind, lora=ATTENTION_ONLY if kind == "mixtral" else LORA, **changes)


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_turn_without_condition_runs_the_untouched_model(kind: str) -> None:
    model, plain = lora_model(kind), tiny_language_model(kind)
    batch = padded_batch([4, 9])
    expected = plain(**batch).logits
    assert torch.equal(model(**batch).logits, expected)
    conditioned = model(**batch, joint_embedding=unit_rows(2)).logits
    assert (conditioned - tiny_model(kind)(**batch, joint_embedding=unit_rows(2)).logits).abs().max() > 0.1
    assert torch.equal(model(**batch).logits, expected), "also after a turn with one"
    assert torch.equal(model(**batch, condition=torch.zeros(2, 1, 32)).logits, expected)


def test_the_language_model_itself_is_untouched_between_turns() -> None:
    model, plain = lora_model(), tiny_language_model()
    options: dict[str, Any] = {**padded_batch([4, 9]), "max_new_tokens": 6, "do_sample": False}
    expected = plain.generate(**options)
    assert torch.equal(model.language_model.generate(**options), expected)
    assert not torch.equal(model.generate(**options, joint_embedding=unit_rows(2)), expected)
    assert torch.equal(model.generate(**options), expected)
    assert torch.equal(model.language_model.generate(**options), expected)


def test_adapters_are_off_again_after_an_error() -> None:
    model, plain = lora_model(), tiny_language_model()
    with pytest.raises(IndexError):
        model(input_ids=torch.full((2, 3), 10_000), condition=torch.randn(2, 1, 32))
    with torch.no_grad():
        assert torch.equal(model.language_model(token_batch(2, 5)).logits, plain(token_batch(2, 5)).logits)
    assert not any(layer._forward_pre_hooks for layer in model._lora._layers)


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_mixed_batch_gives_each_row_its_own(kind: str) -> None:
    model, plain = lora_model(kind), tiny_language_model(kind)
    batch, condition = padded_batch([9, 5, 9, 7]), torch.randn(4, 1, 32)
    condition[[0, 3]] = 0
    mixed = model(**batch, condition=condition).logits
    only = {name: values[[1, 2]] for name, values in batch.items()}
    # fp32 on logits up to 5; a row with the wrong adapters is off by more than 0.1
    torch.testing.assert_close(mixed[[1, 2]], model(**only, condition=condition[[1, 2]]).logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[[0, 3]], plain(**batch).logits[[0, 3]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_mixed_batch_generates_what_each_row_would(num_beams: int) -> None:
    model, plain = lora_model(), tiny_language_model()
    ids = token_batch(3, 6)
    options: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": num_beams}
    condition = model.condition_from(unit_rows(3)).detach()
    condition[1] = 0
    mixed = model.generate(ids, condition=condition, **options)
    assert torch.equal(mixed[1:2], plain.generate(ids[1:2], **options))
    for row in (0, 2):
        alone = model.generate(ids[row : row + 1], condition=condition[row : row + 1], **options)
        assert torch.equal(mixed[row : row + 1], alone)


@torch.no_grad()
def test_conditioned_rows_are_the_merged_model() -> None:
    """Against W + (alpha / r) B A, multiplied out by hand."""
    model, merged = lora_model(), tiny_model()
    state = model.language_model.state_dict()
    for name, module in merged.language_model.named_modules():
        if name.rpartition(".")[2] in LORA["target_modules"]:
            a, b = (state[f"{name}.lora_{side}.default.weight"] for side in "AB")
            module.weight += LORA["lora_alpha"] / LORA["r"] * b @ a
    ids, joint = token_batch(2, 8), unit_rows(2)
    expected = merged(input_ids=ids, joint_embedding=joint).logits
    torch.testing.assert_close(model(input_ids=ids, joint_embedding=joint).logits, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("trains", [True, False])
def test_requires_grad_survives_switching(trains: bool) -> None:
    model = lora_model()
    for index, parameter in enumerate(model._lora.parameters()):
        parameter.requires_grad_(trains or index % 3 == 0)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    ids = token_batch(2, 4)
    half = torch.randn(2, 1, 32) * torch.tensor([1.0, 0.0])[:, None, None]
    for media in ({}, {"joint_embedding": unit_rows(2)}, {}, {"condition": half}, {}):
        model(input_ids=ids, **media)
        assert [parameter.requires_grad for parameter in model.parameters()] == flags


def loss_of(model: BindLMForConditionalGeneration, rows: tuple[float, ...], seed: int = 0) -> Tensor:
    ids = token_batch(len(rows), 7, seed)
    condition = model.condition_from(unit_rows(len(rows), seed=seed)) * torch.tensor(rows)[:, None, None]
    return model(input_ids=ids, condition=condition, labels=ids).loss


@pytest.mark.parametrize("rows", [(1.0, 1.0), (1.0, 0.0), (0.0, 0.0)], ids=["all", "some", "none"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_replays_the_rows_of_its_own_forward(use_reentrant: bool, rows: tuple[float, ...]) -> None:
    """Backward comes when another call has come and gone, and with it that call's rows."""
    gradients = []
    for is_checkpointed in (False, True):
        model = lora_model().train()
        model.language_model.requires_grad_(False)
        for parameter in model._lora.parameters():
            parameter.requires_grad_(True)
        if is_checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        losses = [loss_of(model, rows), loss_of(model, (0.0, 1.0), seed=1)]
        model(input_ids=token_batch(1, 3))
        sum(losses[1:], losses[0]).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert set(gradients[0]) == set(gradients[1])
    assert sum(".lora_" in name for name in gradients[0]) == 2 * 4 * 3  # A and B, four linears, three layers
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)
        assert gradient.abs().max() > 0, name


def test_two_steps_move_every_adapter_and_nothing_else() -> None:
    model = tiny_model()
    model.requires_grad_(False)
    adapters = model.add_lora(LORA)
    assert len(adapters) == 24
    model.requires_grad_(False)
    for parameter in adapters:
        parameter.requires_grad_(True)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(adapters, lr=0.5)
    for _ in range(2):  # B starts at zero and blocks the gradient of A during the first
        optimizer.zero_grad()
        loss_of(model.train(), (1.0, 0.0)).backward()
        optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if ".lora_" in name}


@torch.no_grad()
def test_fresh_adapters_change_nothing() -> None:
    model, ids = tiny_model(), token_batch(2, 5)
    expected = model(input_ids=ids, joint_embedding=unit_rows(2)).logits
    model.add_lora(LORA)
    assert model.config.lora == LORA
    torch.testing.assert_close(model(input_ids=ids, joint_embedding=unit_rows(2)).logits, expected, rtol=0, atol=0)
    randomize_lora(model, 3)
    assert (model(input_ids=ids, joint_embedding=unit_rows(2)).logits - expected).abs().max() > 0.1


def test_second_set_of_adapters_is_refused() -> None:
    with pytest.raises(ConfigError, match="has LoRA adapters already"):
        lora_model().add_lora(LORA)


@pytest.mark.parametrize(
    "settings",
    [{"r": 2, "target_modules": ["no_such_proj"]}, {"rank": 2}, {"r": 0, "target_modules": ["q_proj"]}],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any]) -> None:
    model = tiny_model()
    keys = list(model.state_dict())
    with pytest.raises(ConfigError, match="LoRA settings .* do not fit LlamaForCausalLM"):
        model.add_lora(settings)
    assert list(model.state_dict()) == keys
    assert model.config.lora is None
    model.add_lora(LORA)


@torch.no_grad()
def test_copy_of_a_model_switches_its_own_adapters() -> None:
    model = lora_model()
    twin = copy.deepcopy(model)
    ids, joint = token_batch(2, 5), unit_rows(2)
    expected = model(input_ids=ids, joint_embedding=joint).logits
    for parameter in model._lora.parameters():
        parameter.zero_()
    assert torch.equal(twin(input_ids=ids, joint_embedding=joint).logits, expected)
    assert torch.equal(twin(input_ids=ids).logits, tiny_language_model()(ids).logits)
    assert not torch.equal(model(input_ids=ids, joint_embedding=joint).logits, expected)


def test_switch_lists_the_adapters_weights_only() -> None:
    language_model = tiny_language_model()
    count = sum(parameter.numel() for parameter in language_model.parameters())
    switch = inject_lora(language_model, {"r": 3, "target_modules": ["q_proj"]})
    added = sum(parameter.numel() for parameter in switch.parameters())
    assert added == 3 * 3 * (32 + 32)
    assert sum(parameter.numel() for parameter in language_model.parameters()) == count + added
