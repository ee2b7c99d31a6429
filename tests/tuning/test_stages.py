"""What each stage trains, in which precision, and that it does."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bindlm.errors import ConfigError
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.training.stage_recipe import Stage, TuningConfig
from bindlm.tuning.groups import optimizer_groups
from bindlm.tuning.stages import lora_settings, prepare_stage

from ..gradients import assert_all_trainable_move
from ..tiny import DIM, NUM_LAYERS, randomize_lora, tiny_language_model, tiny_model, token_batch, unit_rows

LINEARS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
RELEASED = {"q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
STAGES = list(Stage)
LATER = [Stage.INSTRUCT, Stage.QUALITY]
CACHE: dict[str, Any] = {"num_entries": 20, "dim": DIM, "top_k": 4}
ROWS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [2, 2, 2, 2, 2, -1, -1, -1]])


def prepared(
    stage: str, kind: str = "llama", *, gate: float | None = 0.3, **tuning: Any
) -> BindLMForConditionalGeneration:
    torch.manual_seed(0)
    model = tiny_model(kind, gate=gate, cache=CACHE)
    prepare_stage(model, stage, TuningConfig(**tuning))
    return model.train()


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def loss_of(model: BindLMForConditionalGeneration) -> Tensor:
    ids = token_batch(2, 8)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3, 4, 0, 1, 2]])
    return model(input_ids=ids, position_ids=positions, media_rows=ROWS, joint_embedding=unit_rows(3), labels=ids).loss


# -- what trains -----------------------------------------------------------------------------------------------------


def test_pretraining_trains_bridge_and_gates() -> None:
    model = prepared("pretrain")
    assert {name.split(".")[0] for name in trained_names(model)} == {"bridge", "injection"}
    assert all(p.requires_grad for part in (model.bridge, model.injection) for p in part.parameters())
    assert model.config.lora is None
    assert model.config.tuned is None


@pytest.mark.parametrize("stage", LATER)
def test_later_stages_train_lora_norms_and_the_releases_biases(stage: Stage) -> None:
    model = prepared(stage)
    names = trained_names(model)
    assert all(name.startswith("language_model.model.") for name in names), "no head, no embeddings, no bridge"
    lora = {name for name in names if ".lora_" in name}
    norms = {name for name in names if name.endswith("norm.weight")}
    biases = {name for name in names if name.endswith(".bias")}
    assert names == lora | norms | biases
    assert len(lora) == 2 * NUM_LAYERS * len(LINEARS)
    assert len(norms) == 2 * NUM_LAYERS + 1
    assert {name.split(".")[-3] for name in biases} == RELEASED
    assert len(biases) == NUM_LAYERS * len(RELEASED)
    assert model.config.lora == {"r": 16, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": LINEARS}
    assert model.config.tuned == {"norms": True, "biases": list(TuningConfig().biases)}
    assert model.config.lora_scope == "always"


def test_lora_starts_as_the_release_starts_it() -> None:
    """Scale 1; the second matrix zero, the first as torch starts a linear layer: uniform within 1 / sqrt(inputs)."""
    model = prepared("instruct")
    for layer in model._lora._layers:
        first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert layer.scaling["default"] == 1.0
        assert isinstance(layer.lora_dropout["default"], nn.Identity)
        assert second.abs().max() == 0
        bound = layer.in_features**-0.5
        assert 0.9 * bound < first.abs().max() <= bound
        assert first.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


@torch.no_grad()
@pytest.mark.parametrize("stage", STAGES)
def test_preparing_changes_no_logit(stage: Stage) -> None:
    model, ids = tiny_model(), token_batch(2, 6)
    expected = [model(input_ids=ids, joint_embedding=unit_rows(2)).logits, model(input_ids=ids).logits]
    prepare_stage(model, stage, TuningConfig())
    given = [model(input_ids=ids, joint_embedding=unit_rows(2)).logits, model(input_ids=ids).logits]
    assert torch.equal(given[0], expected[0])
    assert torch.equal(given[1], expected[1])


def test_switches_leave_out_what_they_name() -> None:
    names = trained_names(prepared("instruct", norms=False, biases=()))
    assert len(names) == 2 * NUM_LAYERS * len(LINEARS)
    assert all(".lora_" in name for name in names)
    names = trained_names(prepared("instruct", norms=False, biases=("v_proj",)))
    assert sum(name.endswith(".bias") for name in names) == NUM_LAYERS
    parts = {name.split(".")[0] for name in trained_names(prepared("instruct", train_bridge=True))}
    assert parts == {"language_model", "bridge", "injection"}


def test_settings_of_lora_replace_the_stages() -> None:
    model = prepared("instruct", lora={"r": 4, "target_modules": ["q_proj"]})
    assert model.config.lora == {"r": 4, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": ["q_proj"]}
    assert {layer.scaling["default"] for layer in model._lora._layers} == {1.0}
    model = prepared("instruct", lora={"r": 4, "lora_alpha": 8})
    assert {layer.scaling["default"] for layer in model._lora._layers} == {2.0}
    assert len(model._lora._layers) == NUM_LAYERS * len(LINEARS)


def test_linears_outside_the_decoder_layers_are_left_alone() -> None:
    language_model = tiny_language_model()
    assert lora_settings(language_model)["target_modules"] == LINEARS
    language_model.tower = nn.ModuleDict({"q_proj": nn.Linear(4, 4)})
    modules = lora_settings(language_model)["target_modules"]
    assert len(modules) == NUM_LAYERS * len(LINEARS)
    assert "model.layers.0.self_attn.q_proj" in modules


@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "mixtral"])
def test_other_decoders_can_be_tuned(kind: str) -> None:
    biases = ("q_proj", "o_proj") if kind == "mixtral" else tuple(RELEASED)
    names = trained_names(prepared("instruct", kind, biases=biases))
    norms = {"qwen3": 4 * NUM_LAYERS + 1, "gemma3": 6 * NUM_LAYERS + 1, "mixtral": 2 * NUM_LAYERS + 1}[kind]
    assert sum(name.endswith("norm.weight") for name in names) == norms
    assert sum(name.endswith(".bias") for name in names) == NUM_LAYERS * len(biases)
    assert sum(".lora_" in name for name in names) == 2 * NUM_LAYERS * (4 if kind == "mixtral" else 7)


@pytest.mark.parametrize("use_reentrant", [None, True, False])
@pytest.mark.parametrize("stage", STAGES)
def test_two_steps_move_every_trainable_tensor_and_nothing_else(stage: Stage, use_reentrant: bool | None) -> None:
    model = prepared(stage, gate=None if stage == Stage.PRETRAIN else 0.3)
    if use_reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    # Plain descent: AdamW would move what has no gradient too, by its decay.
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()

    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert_all_trainable_move(model, step)
    moved = {name for name, p in model.named_parameters() if name in frozen and not torch.equal(p, frozen[name])}
    assert not moved


@pytest.mark.parametrize("stage", STAGES)
def test_a_few_steps_of_adamw_lower_the_loss(stage: Stage) -> None:
    model = prepared(stage)
    optimizer = torch.optim.AdamW(optimizer_groups(model, learning_rate=3e-3, weight_decay=0.05), betas=(0.9, 0.95))
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1, losses


# -- one stage after another -----------------------------------------------------------------------------------------


def test_a_later_stage_goes_on_with_the_same_adapters() -> None:
    model = prepared("instruct")
    randomize_lora(model, 7)
    before = {name: (id(p), p.clone()) for name, p in model.named_parameters()}
    prepare_stage(model, "quality", TuningConfig())
    after = dict(model.named_parameters())
    assert set(after) == set(before)
    assert all(id(after[name]) == which and torch.equal(after[name], value) for name, (which, value) in before.items())
    prepare_stage(model, "quality", TuningConfig(lora={"r": 16}, norms=False, biases=("k_proj",)))
    names = trained_names(model)
    assert not any(name.endswith("norm.weight") for name in names)
    assert {name.split(".")[-3] for name in names if name.endswith(".bias")} == {"k_proj"}
    assert model.config.tuned == {"norms": True, "biases": [*TuningConfig().biases, "k_proj"]}, "kept, and saved"
    prepare_stage(model, "pretrain", TuningConfig())
    assert {name.split(".")[0] for name in trained_names(model)} == {"bridge", "injection"}


def test_other_adapters_than_those_present_are_refused() -> None:
    model = prepared("instruct", lora={"r": 4})
    with pytest.raises(ConfigError, match=r"adapters with .*'r': 4.* asks for {'r': 8}"):
        prepare_stage(model, "quality", TuningConfig(lora={"r": 8}))
    prepare_stage(model, "quality", TuningConfig(lora={"r": 4, "target_modules": LINEARS[::-1]}))


@torch.no_grad()
def test_scope_says_whether_text_alone_runs_with_adapters() -> None:
    plain, ids = tiny_language_model()(token_batch(2, 6)).logits, token_batch(2, 6)
    model = prepared("instruct", lora_scope="conditioned", norms=False, biases=())
    randomize_lora(model, 7)
    assert torch.equal(model(input_ids=ids).logits, plain)
    with_media = model(input_ids=ids, joint_embedding=unit_rows(2)).logits
    prepare_stage(model, "quality", TuningConfig(lora_scope="always", norms=False, biases=()))
    assert model.config.lora_scope == "always"
    assert (model(input_ids=ids).logits - plain).abs().max() > 0.1
    assert (model.language_model(ids).logits - plain).abs().max() > 0.1
    assert torch.equal(model(input_ids=ids, joint_embedding=unit_rows(2)).logits, with_media)
    half = model.condition_from(unit_rows(2)) * torch.tensor([1.0, 0.0])[:, None, None]
    mixed = model(input_ids=ids, condition=half).logits
    torch.testing.assert_close(mixed[1], model(input_ids=ids).logits[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[0], with_media[0], rtol=0, atol=1e-5)
    model.set_lora_scope("conditioned")
    assert torch.equal(model(input_ids=ids).logits, plain)
    with pytest.raises(ConfigError, match="scope of LoRA must be"):
        model.set_lora_scope("sometimes")


# -- what does not fit -----------------------------------------------------------------------------------------------


@dataclass
class Unchecked:
    """Settings that no recipe would let through."""

    lora: dict[str, Any] | None = None
    train_lora: bool = True
    lora_scope: str = "always"
    norms: bool = True
    biases: tuple[str, ...] = ()
    train_bridge: bool = False
    frozen_dtype: str = "float32"
    trained_dtype: str = "float32"


@pytest.mark.parametrize(
    ("stage", "tuning", "complaint"),
    [
        ("warmup", Unchecked(), "no stage 'warmup'; expected one of pretrain, instruct, quality"),
        ("instruct", Unchecked(biases=("q_proj", "nose")), "no linear layers nose to put a bias on"),
        ("instruct", Unchecked(lora={"rank": 3}), "LoRA settings"),
        ("instruct", Unchecked(lora={"r": 2, "target_modules": ["nose"]}), "LoRA settings"),
        ("pretrain", Unchecked(frozen_dtype="int8"), "tuning.frozen_dtype must be float32 or bfloat16, got 'int8'"),
        ("quality", Unchecked(trained_dtype="half"), "tuning.trained_dtype"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_the_model_as_it_was(
    stage: str, tuning: Unchecked, complaint: str
) -> None:
    model = tiny_model()
    before = {name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    with pytest.raises(ConfigError, match=complaint):
        prepare_stage(model, stage, tuning)
    assert {name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()} == before
    assert model.config.lora is None
    assert model.config.tuned is None


# -- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_frozen_weights_are_rounded_and_what_is_trained_is_not(kind: str, stage: Stage) -> None:
    model = prepared(stage, kind, frozen_dtype="bfloat16")
    own = {id(p) for p in [*model.bridge.parameters(), *model.injection.parameters()]}
    for name, parameter in model.named_parameters():
        is_own = parameter.requires_grad or id(parameter) in own or name.startswith("encoder.")
        assert parameter.dtype == (torch.float32 if is_own else torch.bfloat16), name
    for name, buffer in model.named_buffers():
        assert buffer.dtype != torch.bfloat16, name
    rotary = model.language_model.model.rotary_emb
    assert any("inv_freq" in name for name, _ in rotary.named_buffers())
    expected = dict(tiny_language_model(kind).model.rotary_emb.named_buffers())
    assert all(torch.equal(buffer, expected[name]) for name, buffer in rotary.named_buffers())


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("stage", [Stage.PRETRAIN, Stage.INSTRUCT])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_mixed_precision_trains_close_to_full_precision(kind: str, stage: Stage, is_checkpointed: bool) -> None:
    """bfloat16 keeps 8 bits. Measured on these models: gradients within 3.6 % of one another, losses within 0.05 %."""
    full, mixed = prepared(stage, kind), prepared(stage, kind, frozen_dtype="bfloat16")
    if is_checkpointed:
        mixed.activation_checkpointing_enable({"use_reentrant": False})
    expected = loss_of(full)
    expected.backward()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(mixed)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=0.005)
    names = trained_names(mixed)
    gradients = {name: p.grad for name, p in mixed.named_parameters() if p.grad is not None}
    assert set(gradients) == names
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    reference = {name: p.grad for name, p in full.named_parameters() if p.grad is not None}
    flat, flat_reference = (
        torch.cat([found[name].flatten() for name in sorted(names)]) for found in (gradients, reference)
    )
    assert (flat - flat_reference).norm() < 0.1 * flat_reference.norm()
    optimizer = torch.optim.AdamW(optimizer_groups(mixed, learning_rate=1e-3, weight_decay=0.0))
    optimizer.step()
    with torch.autocast("cpu", torch.bfloat16):
        assert loss_of(mixed).isfinite()


def test_all_in_bfloat16_needs_no_autocast() -> None:
    model = prepared("instruct", frozen_dtype="bfloat16", trained_dtype="bfloat16")
    loss_of(model).backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.bfloat16}
    assert next(model.encoder.parameters()).dtype == torch.float32


def test_tied_head_stays_tied_when_rounded() -> None:
    model = tiny_model(language_model=tiny_language_model(tie_word_embeddings=True))
    prepare_stage(model, "pretrain", TuningConfig(frozen_dtype="bfloat16"))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16


def test_a_copy_can_be_prepared_on_its_own() -> None:
    model = tiny_model()
    twin = copy.deepcopy(model)
    prepare_stage(twin, "instruct", TuningConfig())
    assert model.config.lora is None
    assert not any(".lora_" in name for name in model.state_dict())
