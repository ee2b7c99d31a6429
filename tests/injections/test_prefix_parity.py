"""One soft token in the prompt against the numbers of the released PandaGPT."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from bindlm.injections import PrefixConfig
from bindlm.tuning.lora import inject_lora

from ..conditioned import conditioned
from ..golden import golden
from ..released import TOLERANCE, golden_config, released_linear

PLACE = 0
BOS, PAD = 1, 2
_PEFT = "llama_model.base_model.model."


def pandagpt() -> tuple[Any, nn.Module]:
    """The golden's LLaMA under its LoRA, with the injection, and its linear bridge."""
    settings = golden_config("pandagpt")
    sizes = dict(settings["llama"])
    sizes.pop("key_naming")
    rope = {"rope_type": "default", "rope_theta": sizes.pop("rope_theta")}
    config = LlamaConfig(**sizes, rope_parameters=rope, bos_token_id=BOS, eos_token_id=None, pad_token_id=PAD)
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(golden("pandagpt/llama.safetensors"))
    lora, delta = settings["lora"], golden("pandagpt/delta.safetensors")
    inject_lora(
        model, {"r": lora["r"], "lora_alpha": lora["alpha"], "target_modules": lora["targets"]}, scope="always"
    )
    state = {name.removeprefix(_PEFT): value for name, value in delta.items() if name.startswith(_PEFT)}
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    PrefixConfig(placeholder_id=PLACE, hidden_dim=sizes["hidden_size"]).build().attach_to(model)
    return conditioned(model), released_linear(delta)


def with_prefix(before: Tensor, after: Tensor) -> Tensor:
    """bos, the words before, one placeholder, the words after: `(B, 1 + T1 + 1 + T2)`."""
    rows = len(after)
    return torch.cat([torch.full((rows, 1), BOS), before.expand(rows, -1), torch.full((rows, 1), PLACE), after], dim=1)


@torch.no_grad()
def test_training_sequence() -> None:
    inputs, outputs = golden("pandagpt/inputs.safetensors"), golden("pandagpt/outputs.safetensors")
    model, bridge = pandagpt()
    condition = bridge(inputs["image_features"])
    torch.testing.assert_close(condition, outputs["visual_token"], **TOLERANCE)
    ids = with_prefix(inputs["prompt_start_ids"], inputs["input_ids"])
    length = ids.shape[1] - inputs["attention_mask"].shape[1]
    mask = nn.functional.pad(inputs["attention_mask"], (length, 0), value=1)
    labels = nn.functional.pad(inputs["target_ids"], (length, 0), value=-100)
    assert torch.equal(mask, outputs["full_attention_mask"])
    assert torch.equal(labels, outputs["targets"])
    seen: list[Tensor] = []
    handle = model.model.layers[0].register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    output = model(ids, attention_mask=mask, labels=labels, condition=condition)
    handle.remove()
    torch.testing.assert_close(seen[0], outputs["inputs_embeds"], **TOLERANCE)
    torch.testing.assert_close(output.logits, outputs["logits"], **TOLERANCE)
    torch.testing.assert_close(output.loss[None], outputs["loss"], **TOLERANCE)
    right = (output.logits[:, 1:-1].argmax(-1) == labels[:, 2:])[labels[:, 2:] != -100]
    assert abs(float(right.float().mean()) - golden_config("pandagpt")["token_accuracy"]) < 1e-6


def test_generation_from_two_inputs_in_one_token() -> None:
    """Each input is projected, bias and all, and the projections are summed."""
    inputs, outputs = golden("pandagpt/inputs.safetensors"), golden("pandagpt/outputs.safetensors")
    model, bridge = pandagpt()
    with torch.no_grad():
        condition = bridge.sum_of([inputs["image_features"][:1], inputs["audio_features"]])  # type: ignore[operator]
    torch.testing.assert_close(condition, outputs["summed_visual_token"], **TOLERANCE)
    ids = with_prefix(inputs["prompt_start_ids"], inputs["generation_after_ids"])
    expected = outputs["greedy_ids"].tolist()
    made = model.generate(ids, condition=condition, do_sample=False, max_new_tokens=len(expected), eos_token_id=None)
    assert made[0, ids.shape[1] :].tolist() == expected
