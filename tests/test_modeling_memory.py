"""A model is filled from its file: nothing is drawn at random first, and ties, buffers and types come out right."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from bindlm.checkpoints.unfilled import without_random_weights
from bindlm.modeling import BindLMForConditionalGeneration

from .tiny import DIM, tiny_language_model, tiny_model, token_batch, unit_rows

LORA: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "v_proj"]}


class Drawn(TorchFunctionMode):
    """Counts the random numbers that are written into tensors."""

    count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_", "trunc_normal_"):
            self.count += (args[0] if args else kwargs["tensor"]).numel()
        return func(*args, **(kwargs or {}))


def test_building_draws_and_filling_does_not(tmp_path: Path) -> None:
    with Drawn() as drawn:
        model = tiny_model(lora=LORA, cache={"num_entries": 20, "dim": DIM, "top_k": 4})
    assert drawn.count > sum(parameter.numel() for parameter in model.language_model.parameters()) // 2
    model.save_pretrained(tmp_path)
    with Drawn() as drawn:
        loaded = BindLMForConditionalGeneration.from_pretrained(tmp_path)
    assert drawn.count == 0
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "mixtral"])
@torch.no_grad()
def test_filled_model_is_the_saved_one(kind: str, is_tied: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    """Buffers that no file holds (rotary frequencies, Gemma's scale of words) included."""
    model = tiny_model(kind, language_model=tiny_language_model(kind, tie_word_embeddings=is_tied))
    model.save_pretrained(tmp_path)
    loaded = BindLMForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    head, words = loaded.get_output_embeddings(), loaded.get_input_embeddings()
    assert head is not None
    assert (head.weight is words.weight) == is_tied
    assert {each.dtype for each in [*loaded.language_model.parameters(), *loaded.bridge.parameters()]} == {dtype}
    buffers = dict(model.named_buffers())
    for name, buffer in loaded.named_buffers():
        assert buffer.device.type == "cpu"
        if buffer.dtype == buffers[name].dtype:
            assert torch.equal(buffer, buffers[name]), name
    given: dict[str, Any] = {"input_ids": token_batch(2, 6), "joint_embedding": unit_rows(2)}
    if dtype == torch.float32:
        # not to the bit: tensors of a mapped file lie at odd addresses, by which Mixtral's experts round otherwise
        torch.testing.assert_close(loaded(**given).logits, model(**given).logits, rtol=0, atol=1e-5)
    loaded.save_pretrained(tmp_path)  # over the very file its weights are mapped from
    again = BindLMForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    assert torch.equal(loaded(**given).logits, again(**given).logits)


def test_what_was_filled_trains(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = BindLMForConditionalGeneration.from_pretrained(tmp_path).train()
    optimizer = torch.optim.SGD(model.bridge.parameters(), lr=0.1)
    ids = token_batch(2, 6)
    model(input_ids=ids, joint_embedding=unit_rows(2), labels=ids).loss.backward()
    optimizer.step()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    saved = BindLMForConditionalGeneration.from_pretrained(tmp_path).bridge.state_dict()
    assert any(not torch.equal(tensor, saved[name]) for name, tensor in model.bridge.state_dict().items())


def test_zeros_ones_and_buffers_are_as_they_should_be() -> None:
    with without_random_weights():
        norm, batch_norm = torch.nn.LayerNorm(3), torch.nn.BatchNorm1d(3)
    assert torch.equal(norm.weight, torch.ones(3))
    assert torch.equal(batch_norm.running_var, torch.ones(3))
    assert torch.nn.Linear(50, 50).weight.abs().max() > 0, "and outside, weights are drawn again"


@pytest.mark.timeout(20)
def test_weights_drawn_within_bounds_end_whatever_the_memory_holds() -> None:
    """A tower's first weights are drawn again until all are within bounds: of memory left as it is, for ever."""
    weight = torch.full((64, 64), 1e9)
    with without_random_weights():
        torch.nn.init.trunc_normal_(weight, std=0.02)
    assert weight.abs().max() <= 2
