"""Gradients through zero-init attention: checkpointed or not, compiled or not, and that all that should train does."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from bindlm.injections import ZeroInitAttentionConfig, find_decoder_layers
from bindlm.tuning.compiling import compile_layers

from ..conditioned import FAMILIES, NUM_HEADS, randomize, tiny_decoder
from ..gradients import assert_gradients_are_slopes
from ..tiny import HIDDEN, NUM_LAYERS, padded_batch, token_batch, unit_rows

FORMS: dict[str, dict[str, Any]] = {
    "value path": {"num_tokens": 1, "num_layers": NUM_LAYERS},
    "visual queries": {"num_tokens": 4, "num_layers": NUM_LAYERS - 1, "has_new_gate": True},
    "text only": {"num_tokens": 4, "num_layers": NUM_LAYERS - 1, "needs_condition": False},
}


class Bound(nn.Module):
    """A decoder, an injection and a bridge of one matrix, as a bound model has them."""

    def __init__(
        self, family: str, form: str, *, is_frozen: bool = True, is_open: bool = True, **changes: Any
    ) -> None:
        super().__init__()
        self.decoder = tiny_decoder(family, **changes)
        self.decoder.requires_grad_(not is_frozen)
        settings = {"num_heads": NUM_HEADS, "hidden_dim": HIDDEN, **FORMS[form]}
        settings["num_layers"] += len(find_decoder_layers(self.decoder)) - NUM_LAYERS
        config = ZeroInitAttentionConfig(**settings)
        self.injection = config.build()
        self.bridge = nn.Linear(16, HIDDEN) if config.needs_condition else None
        randomize(self.injection)
        if self.bridge is not None:
            randomize(self.bridge)
        if not is_open:
            nn.init.zeros_(self.injection.gate)
        self.injection.attach_to(self.decoder)
        self.train()

    def logits(self, seed: int = 0, **batch: Tensor) -> Tensor:
        given = {}
        if self.bridge is not None:
            joint = unit_rows(len(batch["input_ids"]), seed=seed).to(self.bridge.weight)
            given["condition"] = self.bridge(joint).unsqueeze(1)
        logits: Tensor = self.decoder(**batch, **given, use_cache=False).logits
        return logits


def loss_of(model: Bound, seed: int = 0) -> Tensor:
    """Cross entropy on every token of a padded batch."""
    batch = padded_batch([8, 5, 7], seed)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:]
    return nn.functional.cross_entropy(model.logits(seed, **batch)[:, :-1].flatten(0, 1), labels.flatten())


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("is_frozen", [True, False])
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_changes_no_gradient(family: str, form: str, use_reentrant: bool, is_frozen: bool) -> None:
    plain, checkpointed = (Bound(family, form, is_frozen=is_frozen) for _ in range(2))
    checkpointed.decoder.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    for model in (plain, checkpointed):
        loss_of(model).backward()
    expected, given = gradients(plain), gradients(checkpointed)
    assert set(given) == set(expected) >= {"injection.gate", "injection.adapter_prompt"}
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, f"{name} has no gradient at all"
        torch.testing.assert_close(given[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_checkpointing_holds_when_backward_comes_after_another_forward(form: str, use_reentrant: bool) -> None:
    """State of a call that lived in the module would be the second call's by then."""
    plain, checkpointed = Bound("llama", form), Bound("llama", form)
    checkpointed.decoder.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    for model in (plain, checkpointed):
        losses = [loss_of(model, seed) for seed in range(2)]
        model.logits(input_ids=token_batch(2, 4))
        sum(losses[1:], losses[0]).backward()
    given = gradients(checkpointed)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(given[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_layers_are_run_again(use_reentrant: bool) -> None:
    """Holds the tests above to account: layers really are replayed in backward."""
    calls = []

    def counting(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(*args, **kwargs)

    model = Bound("llama", "value path")
    model.decoder.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    attention = model.decoder.model.layers[1].self_attn
    attention.forward = functools.partial(counting, attention.forward)
    loss_of(model).backward()
    assert len(calls) == 2


def test_detach_gives_the_checkpointing_function_back() -> None:
    model = Bound("llama", "value path")
    model.decoder.activation_checkpointing_enable({"use_reentrant": True})
    layers = model.decoder.model.layers
    functions = [layer._gradient_checkpointing_func for layer in layers]
    loss_of(model).backward()
    assert all(layer._gradient_checkpointing_func is not one for layer, one in zip(layers, functions, strict=True))
    model.injection.detach()
    assert all(layer._gradient_checkpointing_func is one for layer, one in zip(layers, functions, strict=True))


@pytest.mark.parametrize("use_reentrant", [None, True, False])
@pytest.mark.parametrize("form", FORMS)
def test_two_steps_move_every_trainable_tensor(form: str, use_reentrant: bool | None) -> None:
    """Two, as a zero gate blocks the gradient behind it during the first."""
    model = Bound("llama", form, is_open=False)
    if use_reentrant is not None:
        model.decoder.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    # a softmax over scores is even at first; every row and key has its own gradient all the same
    assert moved == trainable


@pytest.mark.parametrize("form", FORMS)
def test_zero_gate_lets_only_the_gate_learn_first(form: str) -> None:
    model = Bound("llama", form, is_open=False)
    loss_of(model).backward()
    given = gradients(model)
    assert given.pop("injection.gate").abs().min() > 0
    assert all(gradient.abs().max() == 0 for gradient in given.values())


def test_row_without_condition_gives_no_gradient() -> None:
    model = Bound("llama", "visual queries")
    logits = model.decoder(token_batch(2, 6), condition=torch.zeros(2, 4, HIDDEN)).logits
    logits.sum().backward()
    assert all(gradient.abs().max() == 0 for gradient in gradients(model.injection).values())


def test_gradient_is_the_slope_of_the_loss() -> None:
    """Central differences at a gate, a prompt and the bridge, in double precision."""
    model = Bound("llama", "visual queries").double()

    def loss() -> Tensor:
        logits = model.logits(input_ids=token_batch(2, 6))
        return nn.functional.cross_entropy(logits.flatten(0, 1), token_batch(2, 6, seed=9).flatten())

    assert model.bridge is not None
    assert_gradients_are_slopes(loss, (model.injection.gate, model.injection.adapter_prompt, model.bridge.weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_fp32_weights(dtype: torch.dtype) -> None:
    expected, model = Bound("llama", "visual queries"), Bound("llama", "visual queries")
    loss_of(expected).backward()
    with torch.autocast("cpu", dtype=dtype):
        loss = loss_of(model)
    loss.backward()
    for name, gradient in gradients(model).items():
        assert gradient.dtype == torch.float32
        other = gradients(expected)[name]
        cosine = nn.functional.cosine_similarity(gradient.flatten(), other.flatten(), dim=0)
        assert cosine > 0.95, (name, float(cosine))


@pytest.mark.parametrize("form", FORMS)
def test_compiled_layers_give_the_same_logits_and_gradients(form: str) -> None:
    """Dynamo only: hooks, keywords and the view of the configuration can be traced, and no layer stays out.

    Ten layers, which is more than torch compiles one function for: those with a prompt must share what is compiled.
    """
    torch._dynamo.reset()
    plain, model = (Bound("llama", form, num_hidden_layers=10) for _ in range(2))
    counter = CompileCounter()
    compile_layers(model.decoder, backend=counter, fullgraph=True)
    losses = [loss_of(one) for one in (plain, model)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    for loss in losses:
        loss.backward()
    given = gradients(model)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(given[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    assert counter.frame_count <= 5, counter.frame_count
