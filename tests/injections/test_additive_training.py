"""Gradients through the injection: with and without checkpointing, and that all that should train does."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bindlm.modeling import BindLMForConditionalGeneration

from ..gradients import assert_all_trainable_move, assert_gradients_are_slopes
from ..tiny import DECODERS, padded_batch, tiny_model, token_batch, unit_rows


def training_model(kind: str = "llama", *, is_frozen: bool = True, **changes: Any) -> BindLMForConditionalGeneration:
    """As stage 1 trains it: bridge and gates, the language model frozen or not."""
    model = tiny_model(kind, **changes)
    model.language_model.requires_grad_(not is_frozen)
    return model.train()


def loss_of(model: BindLMForConditionalGeneration, seed: int = 0) -> Tensor:
    """Loss on every token of a padded batch whose last row has no condition."""
    batch = padded_batch([8, 5, 7], seed)
    condition = model.condition_from(unit_rows(3, seed=seed)) * torch.tensor([1.0, 1.0, 0.0])[:, None, None]
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return model(**batch, condition=condition, labels=labels).loss


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("is_frozen", [True, False])
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("kind", DECODERS)
def test_checkpointing_changes_no_gradient(kind: str, use_reentrant: bool, is_frozen: bool) -> None:
    plain, checkpointed = (training_model(kind, is_frozen=is_frozen) for _ in range(2))
    checkpointed.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    assert all(layer.gradient_checkpointing for layer in checkpointed.language_model.get_decoder().layers)
    for model in (plain, checkpointed):
        loss_of(model).backward()
    expected, given = gradients(plain), gradients(checkpointed)
    assert set(given) == set(expected)
    assert {name for name, _ in plain.bridge.named_parameters(prefix="bridge")} | {"injection.gate"} <= set(given)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, f"{name} has no gradient at all"
        torch.testing.assert_close(given[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_holds_when_backward_comes_after_another_forward(use_reentrant: bool) -> None:
    """State of a call that lived in the module would be the second call's by then."""
    plain, checkpointed = training_model(), training_model()
    checkpointed.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    for model in (plain, checkpointed):
        losses = [loss_of(model, seed) for seed in range(2)]
        model(input_ids=token_batch(2, 4))
        sum(losses[1:], losses[0]).backward()
    given = gradients(checkpointed)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(given[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_checkpointed_layers_are_run_again() -> None:
    """Holds the tests above to account: layers really are replayed in backward."""
    calls = []

    def counting(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(*args, **kwargs)

    model = training_model()
    model.activation_checkpointing_enable({"use_reentrant": False})
    attention = model.language_model.model.layers[1].self_attn
    attention.forward = functools.partial(counting, attention.forward)
    loss_of(model).backward()
    assert len(calls) == 2


@pytest.mark.parametrize("use_reentrant", [None, True, False])
def test_two_steps_move_every_trainable_tensor(use_reentrant: bool | None) -> None:
    model = training_model(gate=None)
    if use_reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trainable} == {"bridge", "injection"}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()

    frozen = {name: p.clone() for name, p in model.named_parameters() if name not in trainable}
    assert_all_trainable_move(model, step)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def test_zero_gate_lets_only_the_gate_learn_first() -> None:
    model = training_model(gate=None)
    loss_of(model).backward()
    given = gradients(model)
    assert given["injection.gate"].abs().min() > 0
    assert all(given[name].abs().max() == 0 for name in given if name.startswith("bridge."))


def test_row_without_condition_gives_no_gradient() -> None:
    model = training_model()
    condition = torch.zeros(2, 1, model.bridge.config.output_dim)
    ids = token_batch(2, 6)
    model(input_ids=ids, condition=condition, labels=ids).loss.backward()
    assert model.injection.gate.grad is not None
    assert model.injection.gate.grad.abs().max() == 0


def test_gradient_is_the_slope_of_the_loss() -> None:
    """Central differences at a gate and inside the bridge.

    RMSNorm rounds to fp32 whatever the model is in, so a small step drowns: at 3e-3 both errors are under one in 1000.
    """
    model = training_model().double()
    joint = unit_rows(2).double()

    def loss() -> Tensor:  # a loss of our own: the library's rounds logits to fp32
        logits = model(input_ids=token_batch(2, 6), joint_embedding=joint).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), token_batch(2, 6, seed=9).flatten())

    assert_gradients_are_slopes(
        loss, (model.injection.gate, model.bridge.input.weight, model.bridge.blocks[0].w1.weight)
    )


def test_compiled_decoder_gives_the_same_logits() -> None:
    """Dynamo only: whether hooks and keyword can be traced, not how fast the result is."""
    decoder = tiny_model().language_model.model
    condition = torch.randn(2, 1, decoder.config.hidden_size)
    with torch.no_grad():
        hidden = decoder.embed_tokens(token_batch(2, 6))
        rotary = decoder.rotary_emb(hidden, torch.arange(6)[None])
        compiled = torch.compile(decoder.layers[0], backend="eager")
        given = compiled(hidden, condition=condition, position_embeddings=rotary)
        assert torch.equal(given, decoder.layers[0](hidden, condition=condition, position_embeddings=rotary))
        assert not torch.allclose(given, compiled(hidden, position_embeddings=rotary), atol=0.01)
