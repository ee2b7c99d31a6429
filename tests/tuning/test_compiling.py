"""Compiled decoder layers give what plain ones give, and one compilation serves all layers."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.tuning.compiling import compile_layers

from ..tiny import tiny_language_model, tiny_model, token_batch, unit_rows

ROOT = Path(__file__).resolve().parents[2]
LORA: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def training_model(num_layers: int, **changes: Any) -> BindLMForConditionalGeneration:
    model = tiny_model(language_model=tiny_language_model(num_hidden_layers=num_layers), **changes).train()
    model.language_model.requires_grad_(False)
    for parameter in model.lora_parameters():
        parameter.requires_grad_(True)
    return model


def run(model: BindLMForConditionalGeneration, length: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients of packed rows."""
    model.zero_grad()
    half = length // 2
    positions = torch.cat([torch.arange(half), torch.arange(length - half)]).expand(2, -1)
    rows = torch.tensor([[0] * half + [1] * (length - half), [2] * length])
    ids = token_batch(2, length)
    output = model(input_ids=ids, position_ids=positions, media_rows=rows, joint_embedding=unit_rows(3), labels=ids)
    output.loss.backward()
    return output.logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(compiled: BindLMForConditionalGeneration, plain: BindLMForConditionalGeneration, length: int) -> None:
    (logits, given), (expected_logits, expected) = run(compiled, length), run(plain, length)
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-4)  # measured: 7e-6
    assert set(given) == set(expected)
    assert "injection.gate" in given
    for name, gradient in expected.items():
        assert (given[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_traced_layers_train_as_plain_ones() -> None:
    """The tracing alone, which is where hooks could go wrong."""
    torch._dynamo.reset()
    traced, plain = (training_model(2) for _ in range(2))
    assert compile_layers(traced.language_model, backend="eager") == 2
    assert_same(traced, plain, length=8)


EXHAUSTIVE = pytest.mark.exhaustive


@pytest.mark.slow
@pytest.mark.parametrize(
    ("has_lora", "use_reentrant"),
    [
        (False, None),
        (True, False),
        pytest.param(False, False, marks=EXHAUSTIVE),
        pytest.param(False, True, marks=EXHAUSTIVE),
        pytest.param(True, None, marks=EXHAUSTIVE),
        pytest.param(True, True, marks=EXHAUSTIVE),
    ],
)
def test_compiled_layers_train_as_plain_ones(has_lora: bool, use_reentrant: bool | None) -> None:
    """All but the writing of machine code, which needs gcc."""
    torch._dynamo.reset()
    models = [training_model(2, lora=LORA if has_lora else None) for _ in range(2)]
    keys = list(models[0].state_dict())
    assert compile_layers(models[0].language_model, backend="aot_eager") == 2
    assert list(models[0].state_dict()) == keys
    if use_reentrant is not None:
        for model in models:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_same(*models, length=8)


@pytest.mark.slow
def test_one_compilation_serves_every_layer() -> None:
    """Else the limit of 8 is met, and the layers after it run as plain Python with no more than a warning."""
    graphs = []
    for num_layers in (3, 11):
        torch._dynamo.reset()
        counters.clear()
        model = training_model(num_layers)
        compile_layers(model.language_model, backend="aot_eager")
        run(model, 8)
        graphs.append(counters["stats"]["unique_graphs"])
        assert not counters["graph_break"]
    assert graphs[0] == graphs[1] > 0


@pytest.mark.exhaustive
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_to_machine_code_they_agree_too() -> None:
    """In a process of its own: the compiler's build tools refuse one that has imported the old distutils."""
    code = "from tests.tuning.test_compiling import check_machine_code; check_machine_code()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


def check_machine_code() -> None:
    compiled, plain = (training_model(2) for _ in range(2))
    compile_layers(compiled.language_model)
    assert_same(compiled, plain, length=8)
