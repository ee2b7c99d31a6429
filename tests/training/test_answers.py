"""Loss on answers: the numbers of the full matrix of logits, without the matrix."""

from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig

from bindlm.errors import ConfigError
from bindlm.training.answers import count_targets, find_targets, head_only_at, summed_loss, touch
from bindlm.training.sharding import trained_in

from ..tiny import VOCAB_SIZE, tiny_language_model, tiny_model, token_batch, unit_rows

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def decoder(kind: str) -> Any:
    """Language models that do something with their logits, beside one that does nothing."""
    if kind == "llama":
        return tiny_language_model("llama")
    if kind == "gemma3":
        return tiny_language_model("gemma3", final_logit_softcapping=3.0)
    torch.manual_seed(0)
    scaled = (
        CohereConfig(logit_scale=0.25, **SIZES) if kind == "cohere" else GraniteConfig(logits_scaling=4.0, **SIZES)
    )
    return AutoModelForCausalLM.from_config(scaled).eval()


def labelled(rows: int = 3, length: int = 10) -> tuple[Tensor, Tensor]:
    """Tokens and labels: answers of different lengths, in the middle and at the end."""
    ids = token_batch(rows, length)
    labels = torch.full_like(ids, -100)
    for row, (start, stop) in enumerate([(4, 10), (2, 3), (5, 8)][:rows]):
        labels[row, start:stop] = ids[row, start:stop]
    return ids, labels


def plain_loss(model: nn.Module, ids: Tensor, labels: Tensor, **inputs: Any) -> Tensor:
    logits = model(input_ids=ids, use_cache=False, **inputs).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)


def answers_loss(model: nn.Module, ids: Tensor, labels: Tensor, **inputs: Any) -> Tensor:
    places, targets = find_targets(labels)
    with head_only_at(model, places, trained_in(model)):
        logits = model(input_ids=ids, use_cache=False, **inputs).logits
    return summed_loss(logits, targets) / len(targets)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["llama", "gemma3", "cohere", "granite"])
def test_loss_and_gradients_are_those_of_the_full_matrix(kind):
    model = decoder(kind)
    ids, labels = labelled()
    expected = plain_loss(model, ids, labels)
    wanted = gradients(model, expected)
    found = answers_loss(model, ids, labels)
    assert torch.allclose(found, expected, atol=1e-6, rtol=0)
    have = gradients(model, found)
    assert have.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(have[name], gradient, atol=1e-6, rtol=1e-5), name


@pytest.mark.parametrize("kind", ["gemma3", "cohere", "granite"])
def test_what_these_models_do_with_logits_matters(kind):
    """Else the test above would pass with the cap or the scale left out."""
    model = decoder(kind)
    ids, labels = labelled()
    hidden = model.get_decoder()(input_ids=ids).last_hidden_state
    raw = model.get_output_embeddings()(hidden)[:, :-1]
    loss = F.cross_entropy(raw.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    assert abs(loss - answers_loss(model, ids, labels)) > 0.01


def test_a_bound_model_learns_the_same():
    model = tiny_model()
    ids, labels = labelled()
    joint_embedding = unit_rows(3)
    wanted = gradients(model, plain_loss(model, ids, labels, joint_embedding=joint_embedding))
    have = gradients(model, answers_loss(model, ids, labels, joint_embedding=joint_embedding))
    for name in ("injection.gate", "bridge.input.weight"):
        assert wanted[name].abs().max() > 0
        assert torch.allclose(have[name], wanted[name], atol=1e-6, rtol=1e-5)


@contextmanager
def largest_output(module: nn.Module):
    sizes: list[tuple[int, ...]] = []
    handle = module.register_forward_hook(lambda _module, _args, output: sizes.append(tuple(output.shape)))
    try:
        yield sizes
    finally:
        handle.remove()


def test_no_logits_are_made_beside_those_of_answers():
    model = tiny_model()
    ids, labels = labelled()
    with largest_output(model.get_output_embeddings()) as sizes:
        answers_loss(model, ids, labels)
    assert sizes == [(1, 6 + 1 + 3, VOCAB_SIZE)]


def test_the_head_is_as_it_was_afterwards():
    model = tiny_model()
    ids, labels = labelled()
    before = model(input_ids=ids).logits
    answers_loss(model, ids, labels)
    assert not model.get_output_embeddings()._forward_pre_hooks
    assert torch.equal(model(input_ids=ids).logits, before)
    with pytest.raises(ValueError, match="input_ids"), head_only_at(model, torch.tensor([0])):
        model()
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_without_a_target_loss_is_zero_and_every_gradient_defined():
    model = tiny_model()
    model.requires_grad_(False)
    model.bridge.requires_grad_(True)
    ids, labels = labelled()
    places, targets = find_targets(torch.full_like(labels, -100))
    with head_only_at(model, places, trained_in(model)):
        loss = summed_loss(model(input_ids=ids, use_cache=False).logits, targets)
    assert loss.item() == 0.0
    loss.backward()
    for name, parameter in model.bridge.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_what_a_text_only_batch_never_calls_gets_zeros():
    model = tiny_model()
    model.requires_grad_(False)
    model.bridge.requires_grad_(True)
    model.get_decoder().norm.requires_grad_(True)
    ids, labels = labelled()
    answers_loss(model, ids, labels).backward()
    assert not model.bridge.input.weight.grad.any()
    assert model.get_decoder().norm.weight.grad.any()


def test_touching_changes_neither_values_nor_gradients():
    layer = nn.Linear(3, 3)
    values = torch.randn(2, 3)
    expected = gradients(layer, layer(values).square().sum())
    output = touch(layer(values), trained_in(layer))
    assert torch.equal(output, layer(values))
    have = gradients(layer, output.square().sum())
    assert all(torch.equal(have[name], expected[name]) for name in expected)


def test_positions_are_one_before_their_targets():
    labels = torch.tensor([[-100, 7, 8, -100], [-100, -100, -100, 9]])
    places, targets = find_targets(labels)
    assert places.tolist() == [0, 1, 6]
    assert targets.tolist() == [7, 8, 9]
    assert count_targets(labels) == 3


def test_the_first_token_of_a_row_or_a_packed_sample_is_no_target():
    labels = torch.tensor([[5, 6, 7, 8]])
    assert find_targets(labels)[1].tolist() == [6, 7, 8]
    position_ids = torch.tensor([[0, 1, 0, 1]])
    places, targets = find_targets(labels, position_ids)
    assert places.tolist() == [0, 2]
    assert targets.tolist() == [6, 8]


def test_a_model_whose_head_is_not_called_is_refused():
    model = tiny_model()
    with pytest.raises(ConfigError, match="called its output embeddings 0 times"):
        with head_only_at(model, torch.tensor([0])):
            model.get_decoder()(input_ids=token_batch(1, 4))
    with pytest.raises(ConfigError, match="no output embeddings"), head_only_at(nn.Linear(2, 2), torch.tensor([0])):
        pass
