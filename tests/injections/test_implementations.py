"""Every way in under flex attention, with padded rows and a key-value cache, and the prefix under torch.compile.

Both are traced and run as plain Python here, which is where hooks, keywords and masks go wrong; that what a compiler
makes of the trace computes the same is held by slower tests (`test_zero_init_attention.py`, `test_compiling.py`).
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.tuning.compiling import compile_layers

from ..tiny import HIDDEN, VOCAB_SIZE, padded_batch, randomize_, tiny_language_model, tiny_model

PLACE = VOCAB_SIZE - 1
KINDS: dict[str, dict[str, Any]] = {
    "additive": {"injection": {}},
    "value path": {"injection": {"kind": "zero_init_attention"}},
    "prompts": {"injection": {"kind": "zero_init_attention", "num_layers": 2, "num_tokens": 3}},
    "prefix": {"injection": {"kind": "prefix", "placeholder_id": PLACE}, "bridge": {"kind": "linear"}},
}
STEPS = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


def model_of(kind: str, family: str = "llama", implementation: str = "sdpa") -> BindLMForConditionalGeneration:
    language_model = tiny_language_model(family, attn_implementation=implementation)
    model = tiny_model(gate=None, language_model=language_model, **KINDS[kind])
    generator = torch.Generator().manual_seed(9)
    for parameter in model.injection.parameters():
        randomize_(parameter, 0.7, generator)
    return model


def batch_for(kind: str) -> dict[str, Tensor]:
    """Rows of unlike length, padded on the left, a condition each, and a place for it where there is one."""
    batch = padded_batch([5, 9])
    batch["input_ids"] = batch["input_ids"].clamp(max=PLACE - 1)
    if kind == "prefix":
        batch["input_ids"][:, -3] = PLACE
    generator = torch.Generator().manual_seed(5)
    return {**batch, "condition": torch.randn(2, 1, HIDDEN, generator=generator)}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # as is meant here
@pytest.mark.parametrize("family", ["llama", "gemma3"])  # gemma3 has sliding windows, whose mask flex makes itself
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_flex_attention_gives_the_same_logits_and_texts(kind: str, family: str) -> None:
    expected, model = model_of(kind, family), model_of(kind, family, "flex_attention")
    assert model.language_model.config._attn_implementation == "flex_attention"
    batch = batch_for(kind)
    is_token = batch["attention_mask"].bool()
    with torch.compiler.set_stance("force_eager"):
        given = model(**batch).logits[is_token]
        made = model.generate(**batch, **STEPS)
    torch.testing.assert_close(given, expected(**batch).logits[is_token], rtol=0, atol=1e-5)
    assert torch.equal(made, expected.generate(**batch, **STEPS))
    other = expected(**{**batch, "condition": -batch["condition"]}).logits[is_token]
    assert (given - other).abs().max() > 0.3, "the condition must do something for this to say anything"


@torch.no_grad()
def test_traced_layers_give_the_same_logits_behind_a_prefix() -> None:
    """The other ways in are traced in `test_additive_training.py` and `test_zero_init_training.py`."""
    torch._dynamo.reset()
    expected, model = model_of("prefix"), model_of("prefix")
    counter = CompileCounter()
    compile_layers(model.language_model, backend=counter, fullgraph=True)
    batch = batch_for("prefix")
    is_token = batch["attention_mask"].bool()
    given = model(**batch, use_cache=False).logits[is_token]
    torch.testing.assert_close(given, expected(**batch, use_cache=False).logits[is_token], rtol=0, atol=1e-5)
    assert 0 < counter.frame_count <= 2, "one compilation serves all layers"
