"""Every case of the goldens through the public face: converted, loaded, given ready embeddings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bindlm.checkpoints.adapter_layout import bind_network_state, visual_query_state, zero_init_state
from bindlm.checkpoints.llama_layout import convert_llama_tensors
from bindlm.injections.prefix import IGNORED_LABEL
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.space.mix import mix_embeddings
from bindlm.training.stage_recipe import TuningConfig
from bindlm.tuning.groups import optimizer_groups
from bindlm.tuning.stages import prepare_stage

from .converted import loaded
from .golden import golden
from .released import NUM_HEADS, TOLERANCE, assert_same_gradients, expected_greedy, golden_config

IMAGEBIND, V1, V2, PANDAGPT = "imagebind_llm", "llama_adapter_v1", "llama_adapter_v2", "pandagpt"
ADAPTER_OF = {"pretrain_image_only": "adapter_pretrain", "legacy_bridge_image_only": "adapter_legacy_bridge"}
IMAGEBIND_CASES = [
    "image_only",
    "mix_image_audio",
    "mix_audio_text_point",
    "pretrain_image_only",
    "legacy_bridge_image_only",
    *(f"knn{number}" for number in range(6)),
]
V2_CASES = ["bias", "lora_bias", "pretrain"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this module's checkpoints are converted to."""
    return tmp_path_factory.mktemp("converted")


def tensors(release: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What went into the released code, and what came out."""
    return golden(f"{release}/inputs.safetensors"), golden(f"{release}/outputs.safetensors")


def labels_of(inputs: dict[str, Tensor]) -> Tensor:
    """The release leaves out label 0, transformers -100."""
    return inputs["labels"].masked_fill(inputs["labels"] == 0, IGNORED_LABEL)


def prompts(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Prompts of unlike lengths as one batch padded on the left."""
    rows = [row[row >= 0] for row in inputs["prompts"]]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1, padding_side="left")
    return {"input_ids": ids.clamp(min=0), "attention_mask": (ids >= 0).long()}


def greedy(model: BindLMForConditionalGeneration, texts: dict[str, Tensor], **settings: Any) -> list[list[int]]:
    """Twelve of the likeliest tokens for each prompt, cut before the end token."""
    made = model.generate(**texts, max_new_tokens=12, do_sample=False, **settings)
    rows = made[:, texts["input_ids"].shape[1] :].tolist()
    return [row[: row.index(2)] if 2 in row else row for row in rows]


def imagebind_case(case: str, root: Path) -> tuple[BindLMForConditionalGeneration, list[tuple[Tensor, float]]]:
    """The model of a case, with its cache, and the embeddings and weights it is given."""
    model = loaded(IMAGEBIND, ADAPTER_OF.get(case, "adapter"), root)
    settings, inputs = golden_config(IMAGEBIND)["cases"][case], golden("imagebind_llm/inputs.safetensors")
    if "cache_size" in settings:
        form = {"top_k": settings["cache_size"], "temperature": settings["cache_t"], "alpha": settings["cache_weight"]}
        model.add_cache(inputs["cache"], **form)
    return model, [(inputs[f"embeds.{name.lower()}"], weight) for name, weight in settings["inputs"]]


@pytest.mark.parametrize("case", IMAGEBIND_CASES)
def test_imagebind_llm(case: str, root: Path) -> None:
    inputs, outputs = tensors(IMAGEBIND)
    model, weighted = imagebind_case(case, root)
    with torch.no_grad():
        enhanced = mix_embeddings(weighted)
        if model.cache is not None:
            enhanced = model.cache.enhance(enhanced)
        torch.testing.assert_close(enhanced, outputs[f"{case}.visual_feats"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(model.condition_from(weighted), outputs[f"{case}.bind_out"], **TOLERANCE)
        output = model(input_ids=inputs["tokens"], joint_embedding=weighted, labels=labels_of(inputs))
    torch.testing.assert_close(output.logits, outputs[f"{case}.logits"], **TOLERANCE)
    torch.testing.assert_close(output.loss[None], outputs[f"{case}.loss"], **TOLERANCE)
    expected = expected_greedy(outputs[f"{case}.greedy_ids"])
    assert greedy(model, prompts(inputs), joint_embedding=weighted) == expected


def test_imagebind_llm_of_one_embedding_without_weights(root: Path) -> None:
    inputs, outputs = tensors(IMAGEBIND)
    model, weighted = imagebind_case("image_only", root)
    with torch.no_grad():
        logits = model(input_ids=inputs["tokens"], joint_embedding=weighted[0][0]).logits
    torch.testing.assert_close(logits, outputs["image_only.logits"], **TOLERANCE)


def test_imagebind_llm_hidden_states(root: Path) -> None:
    inputs, outputs = tensors(IMAGEBIND)
    model, weighted = imagebind_case("image_only", root)
    model.get_decoder().norm = nn.Identity()  # transformers puts the last norm into the last hidden state
    with torch.no_grad():
        output = model(input_ids=inputs["tokens"], joint_embedding=weighted, output_hidden_states=True)
    torch.testing.assert_close(torch.stack(output.hidden_states[1:]), outputs["image_only.hidden"], **TOLERANCE)


@torch.no_grad()
def test_imagebind_llm_at_gate_zero_is_blind(root: Path) -> None:
    inputs, outputs = tensors(IMAGEBIND)
    model, weighted = imagebind_case("image_only", root)
    model.injection.gate.zero_()
    output = model(input_ids=inputs["tokens"], joint_embedding=weighted, labels=labels_of(inputs))
    torch.testing.assert_close(output.logits, outputs["gate_zero.logits"], **TOLERANCE)
    torch.testing.assert_close(output.loss[None], outputs["gate_zero.loss"], **TOLERANCE)
    assert torch.equal(output.logits, model(input_ids=inputs["tokens"]).logits)


def test_pretrained_imagebind_llm_without_media_is_plain_llama(root: Path) -> None:
    inputs, outputs = tensors(IMAGEBIND)
    model = loaded(IMAGEBIND, "adapter_pretrain", root)
    with torch.no_grad():
        output = model(input_ids=inputs["tokens"], labels=labels_of(inputs))
    torch.testing.assert_close(output.logits, outputs["plain_llama.logits"], **TOLERANCE)
    torch.testing.assert_close(output.loss[None], outputs["plain_llama.loss"], **TOLERANCE)
    assert greedy(model, prompts(inputs)) == expected_greedy(outputs["plain_llama.greedy_ids"])


def test_batch_without_any_target_has_no_loss(root: Path) -> None:
    inputs, outputs = tensors(IMAGEBIND)
    model, weighted = imagebind_case("image_only", root)
    labels = torch.full_like(inputs["tokens"], IGNORED_LABEL)
    output = model(input_ids=inputs["tokens"], joint_embedding=weighted, labels=labels)
    assert torch.equal(output.loss.detach()[None].abs(), outputs["image_only.loss_no_targets"].abs())
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("number", range(3))
def test_nucleus_is_the_released_one(number: int) -> None:
    """transformers keeps the word that crosses the threshold, as the release does."""
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    temperature, top_p = [(0.1, 0.75), (1.0, 0.75), (0.8, 0.95)][number]
    _, outputs = tensors(IMAGEBIND)
    ids, scores = torch.zeros(1, 1, dtype=torch.long), outputs["nucleus.logits"][None]
    for warp in (TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)):
        scores = warp(ids, scores)
    torch.testing.assert_close(scores.softmax(-1)[0], outputs[f"nucleus{number}.filtered"], rtol=1e-4, atol=1e-6)


# -- LLaMA-Adapter ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "form"), [("train_form", "tanh"), ("infer_form_raw_gate", "none")])
@torch.no_grad()
def test_llama_adapter_v1(case: str, form: str, root: Path) -> None:
    inputs, outputs = tensors(V1)
    model = loaded(V1, "adapter", root, gate_activation=form)
    output = model(input_ids=inputs["tokens"], labels=labels_of(inputs))
    torch.testing.assert_close(output.logits, outputs[f"{case}.logits"], **TOLERANCE)
    if f"{case}.loss" in outputs:
        torch.testing.assert_close(output.loss[None], outputs[f"{case}.loss"], **TOLERANCE)


@pytest.mark.parametrize("case", ["infer_form_raw_gate", "infer_form_tanh_gate", "gate_zero"])
def test_llama_adapter_v1_greedy_tokens(case: str, root: Path) -> None:
    inputs, outputs = tensors(V1)
    model = loaded(V1, "adapter", root, gate_activation="none" if case == "infer_form_raw_gate" else "tanh")
    if case == "gate_zero":
        with torch.no_grad():
            model.injection.gate.zero_()
    assert greedy(model, prompts(inputs)) == expected_greedy(outputs[f"{case}.greedy_ids"])


@torch.no_grad()
def test_llama_adapter_v1_rounded_to_half(root: Path) -> None:
    inputs, outputs = tensors(V1)
    model = loaded(V1, "adapter", root, gate_activation="none")
    model.injection.gate.copy_(model.injection.gate.tanh().half())
    model.injection.adapter_prompt.copy_(model.injection.adapter_prompt.half())
    logits = model(input_ids=inputs["tokens"]).logits
    torch.testing.assert_close(logits, outputs["train_form_half_rounded.logits"], **TOLERANCE)


@torch.no_grad()
def test_llama_adapter_chat(root: Path) -> None:
    inputs, outputs = tensors(V1)
    model = loaded(V1, "adapter_chat_scale_bias_norm", root)
    output = model(input_ids=inputs["tokens"], labels=labels_of(inputs))
    torch.testing.assert_close(output.logits, outputs["chat_scale_bias_norm.logits"], **TOLERANCE)
    torch.testing.assert_close(output.loss[None], outputs["chat_scale_bias_norm.loss"], **TOLERANCE)


@pytest.mark.parametrize("case", V2_CASES)
def test_llama_adapter_v2(case: str, root: Path) -> None:
    inputs, outputs = tensors(V2)
    model, patches = loaded(V2, f"adapter_{case}", root), inputs["clip_feats"]
    with torch.no_grad():
        torch.testing.assert_close(model.condition_from(patches), outputs[f"{case}.visual_query"], **TOLERANCE)
        output = model(input_ids=inputs["tokens"], joint_embedding=patches, labels=labels_of(inputs))
    torch.testing.assert_close(output.logits, outputs[f"{case}.logits"], **TOLERANCE)
    torch.testing.assert_close(output.loss[None], outputs[f"{case}.loss"], **TOLERANCE)
    expected = expected_greedy(outputs[f"{case}.greedy_ids"])
    assert greedy(model, prompts(inputs), joint_embedding=patches) == expected


# -- PandaGPT --------------------------------------------------------------------------------------------------------


def with_placeholder(model: BindLMForConditionalGeneration, before: Tensor, after: Tensor) -> Tensor:
    """bos, the words before, one placeholder, the words after: `(B, 1 + T1 + 1 + T2)`."""
    rows, place = len(after), model.injection.placeholder_id
    assert place is not None
    first = torch.full((rows, 1), 1)
    return torch.cat([first, before.expand(rows, -1), torch.full((rows, 1), place), after], dim=1)


@torch.no_grad()
def test_pandagpt_training_sequence(root: Path) -> None:
    inputs, outputs = tensors(PANDAGPT)
    model = loaded(PANDAGPT, "delta", root)
    torch.testing.assert_close(model.condition_from(inputs["image_features"]), outputs["visual_token"], **TOLERANCE)
    output = model(
        input_ids=with_placeholder(model, inputs["prompt_start_ids"], inputs["input_ids"]),
        attention_mask=outputs["full_attention_mask"],
        labels=outputs["targets"],
        joint_embedding=inputs["image_features"],
    )
    torch.testing.assert_close(output.logits, outputs["logits"], **TOLERANCE)
    torch.testing.assert_close(output.loss[None], outputs["loss"], **TOLERANCE)


def test_pandagpt_generation_from_two_inputs(root: Path) -> None:
    inputs, outputs = tensors(PANDAGPT)
    model = loaded(PANDAGPT, "delta", root)
    weighted = [(inputs["image_features"][:1], 1.0), (inputs["audio_features"], 1.0)]
    with torch.no_grad():
        torch.testing.assert_close(model.condition_from(weighted), outputs["summed_visual_token"], **TOLERANCE)
    ids = with_placeholder(model, inputs["prompt_start_ids"], inputs["generation_after_ids"])
    expected = outputs["greedy_ids"].tolist()
    made = model.generate(ids, joint_embedding=weighted, do_sample=False, max_new_tokens=len(expected))
    assert made[0, ids.shape[1] :].tolist() == expected


# -- which phase trains what -----------------------------------------------------------------------------------------


def trained_gradients(model: BindLMForConditionalGeneration) -> dict[str, Tensor]:
    """Gradients of all that requires any, by the names of a bound model without LoRA's wrappers."""
    return {
        name.replace(".base_layer", ""): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is not None
    }


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def of_language_model(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    return under("language_model", dict(convert_llama_tensors(stored, num_heads=NUM_HEADS)))


def backward(model: BindLMForConditionalGeneration, inputs: dict[str, Tensor], **media: Any) -> None:
    model(input_ids=inputs["tokens"], labels=labels_of(inputs), **media).loss.backward()


def test_pretrain_phase_of_imagebind_llm(root: Path) -> None:
    model, weighted = imagebind_case("pretrain_image_only", root)
    prepare_stage(model, "pretrain", TuningConfig())
    backward(model, golden("imagebind_llm/inputs.safetensors"), joint_embedding=weighted)
    stored = golden("imagebind_llm/grads_pretrain.safetensors")
    expected = under("bridge", bind_network_state(stored)) | under("injection", zero_init_state(stored, 4, 4))
    assert_same_gradients(trained_gradients(model), expected)


def test_finetune_phase_of_imagebind_llm(root: Path) -> None:
    model, weighted = imagebind_case("image_only", root)
    prepare_stage(model, "instruct", TuningConfig(lora_scope="always"))
    backward(model, golden("imagebind_llm/inputs.safetensors"), joint_embedding=weighted)
    stored = golden("imagebind_llm/grads_finetune.safetensors")
    assert_same_gradients(trained_gradients(model), of_language_model(stored))


def test_llama_adapter_v1_trains_prompts_and_gates(root: Path) -> None:
    model = loaded(V1, "adapter", root)
    prepare_stage(model, "pretrain", TuningConfig())
    backward(model, golden("llama_adapter_v1/inputs.safetensors"))
    stored = golden("llama_adapter_v1/grads.safetensors")
    assert_same_gradients(trained_gradients(model), under("injection", zero_init_state(stored, 4, 3)))


def test_pretrain_phase_of_llama_adapter_v2(root: Path) -> None:
    model, inputs = loaded(V2, "adapter_pretrain", root), golden("llama_adapter_v2/inputs.safetensors")
    prepare_stage(model, "pretrain", TuningConfig())
    backward(model, inputs, joint_embedding=inputs["clip_feats"])
    stored = golden("llama_adapter_v2/grads_pretrain.safetensors")
    expected = under("bridge", visual_query_state(stored, 2)) | under("injection", zero_init_state(stored, 4, 3))
    assert_same_gradients(trained_gradients(model), expected)


@pytest.mark.parametrize("case", ["bias", "lora_bias"])
def test_finetune_phase_of_llama_adapter_v2(case: str, root: Path) -> None:
    """It leaves LoRA as it is, where there is one."""
    model, inputs = loaded(V2, f"adapter_{case}", root), golden("llama_adapter_v2/inputs.safetensors")
    prepare_stage(model, "instruct", TuningConfig(train_lora=False))
    backward(model, inputs, joint_embedding=inputs["clip_feats"])
    stored = golden(f"llama_adapter_v2/grads_{case}.safetensors")
    assert_same_gradients(trained_gradients(model), of_language_model(stored))


@pytest.mark.parametrize(("phase", "adapter"), [("pretrain", "adapter_pretrain"), ("instruct", "adapter")])
def test_weight_decay_groups_are_the_released_ones(phase: str, adapter: str, root: Path) -> None:
    """Gates and prompts are decayed, what has one axis is not."""
    model = loaded(IMAGEBIND, adapter, root)
    prepare_stage(model, phase, TuningConfig(lora_scope="always"))
    groups = optimizer_groups(model, learning_rate=1.0, weight_decay=0.05, gate_weight_decay=True)
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    given = {name: decays[id(p)] for name, p in model.named_parameters() if id(p) in decays}
    assert given
    for name, decay in given.items():
        is_small = name.endswith((".bias", "norm.weight"))
        assert decay == (0.0 if is_small else 0.05), name
