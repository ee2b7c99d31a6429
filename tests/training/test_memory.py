"""What a stage takes, said before it starts, is what it takes."""

import json

import pytest
import torch

from bindlm.errors import ConfigError
from bindlm.training import memory_table as tables
from bindlm.training import rehearsal
from bindlm.training.bind_trainer import BindTrainer
from bindlm.training.memory import StepShape, estimate_memory, meta_model, num_bytes
from bindlm.training.memory_table import PRECISIONS, SIZES, as_markdown, memory_table, sized_config
from bindlm.training.rehearsal import LiveBytes, rehearse_step
from bindlm.training.stage_recipe import TuningConfig
from bindlm.training.trainer import fit
from bindlm.tuning.groups import optimizer_groups
from bindlm.tuning.parameter_table import parameter_table
from bindlm.tuning.stages import prepare_stage

from ..tiny import tiny_config, tiny_model, tiny_text_config, token_batch, unit_rows

ROWS, LENGTH = 4, 32
TUNING = TuningConfig()


def packed_batch():
    """Rows of two samples each, each with a medium and a quarter of it learned."""
    ids = token_batch(ROWS, LENGTH)
    positions = (torch.arange(LENGTH) % (LENGTH // 2)).expand(ROWS, -1).contiguous()
    media_rows = 2 * torch.arange(ROWS)[:, None] + torch.arange(LENGTH) // (LENGTH // 2)
    return {
        "input_ids": ids,
        "position_ids": positions,
        "labels": torch.where(positions >= LENGTH // 2 - 4, ids, -100),
        "joint_embedding": unit_rows(2 * ROWS),
        "media_rows": media_rows,
    }


def bytes_of_real_step(model, folder, monkeypatch, **settings):
    """The most that lived at once in a step of the trainer."""
    seen = {}
    step = BindTrainer.training_step

    def watched(self, *args, **kwargs):
        live = LiveBytes()
        with live:
            loss = step(self, *args, **kwargs)
        seen["peak"] = live.peak
        return loss

    monkeypatch.setattr(BindTrainer, "training_step", watched)
    groups = optimizer_groups(model, learning_rate=1e-3, weight_decay=0.0)
    fit(
        model,
        [packed_batch()],
        output=folder,
        num_steps=1,
        optimizer_groups=groups,
        schedule=lambda step: 1.0,
        **settings,
    )
    monkeypatch.undo()
    return seen["peak"]


@pytest.mark.parametrize(
    ("kind", "stage", "is_checkpointed"),
    [
        ("llama", "pretrain", False),
        ("llama", "pretrain", True),
        ("llama", "instruct", False),
        ("llama", "instruct", True),
        ("qwen3", "instruct", False),
        ("gemma3", "instruct", True),
    ],
)
def test_a_rehearsed_step_takes_what_a_real_one_takes(kind, stage, is_checkpointed, tmp_path, monkeypatch):
    model = tiny_model(kind)
    prepare_stage(model, stage, TUNING)
    real = bytes_of_real_step(model, tmp_path, monkeypatch, gradient_checkpointing=is_checkpointed)
    rehearsed = rehearse_step(
        meta_model(tiny_config(tiny_text_config(kind)), stage, TUNING),
        StepShape.of(packed_batch()),
        gradient_checkpointing=is_checkpointed,
    )
    assert rehearsed == pytest.approx(real, rel=0.005)  # worst: 0.4 %, the batch itself


def test_a_rehearsed_step_in_bfloat16_takes_what_a_real_one_takes(tmp_path, monkeypatch):
    tuning = TuningConfig(frozen_dtype="bfloat16")
    model = tiny_model()
    prepare_stage(model, "instruct", tuning)
    real = bytes_of_real_step(model, tmp_path, monkeypatch, bf16=True)
    rehearsed = rehearse_step(meta_model(tiny_config(), "instruct", tuning), StepShape.of(packed_batch()), bf16=True)
    assert rehearsed == pytest.approx(real, rel=0.005)


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_a_deep_decoder_need_not_be_run_whole(is_checkpointed, monkeypatch):
    config = tiny_config(tiny_text_config(num_hidden_layers=6))
    shape = StepShape.of(packed_batch())
    short = rehearse_step(meta_model(config, "instruct", TUNING), shape, gradient_checkpointing=is_checkpointed)
    monkeypatch.setattr(rehearsal, "_REHEARSED", (6, 7))
    whole = rehearse_step(meta_model(config, "instruct", TUNING), shape, gradient_checkpointing=is_checkpointed)
    assert short == pytest.approx(whole, rel=1e-3)


def test_live_bytes_count_what_autograd_keeps_and_forget_what_is_gone():
    weight = torch.ones(1000, 10, requires_grad=True)
    with LiveBytes() as live:
        assert weight.t().shape == (10, 1000)  # a view of what was there is nothing new
        assert live.now == 0
        loss = (weight * 2).exp().sum()
        assert live.now == 40_000 + 4  # exp keeps its result
        assert live.peak >= 80_000
        loss.backward()
        del loss
        assert live.now == 40_000  # the gradient


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_counts_are_those_of_the_real_model(stage):
    model = tiny_model()
    prepare_stage(model, stage, TUNING)
    table = parameter_table(model)
    estimate = estimate_memory(tiny_config(), stage, TUNING, StepShape(1, 8, 4), holds_encoder=True)
    assert estimate.num_trained == table.trained
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert estimate.num_trained + estimate.num_frozen == parameters
    assert estimate.frozen + estimate.trained == num_bytes(model.parameters())
    without = estimate_memory(tiny_config(), stage, TUNING, StepShape(1, 8, 4))
    encoder = sum(parameter.numel() for parameter in model.encoder.parameters())
    assert estimate.num_frozen - without.num_frozen == encoder


def test_precision_counts_where_it_is_set():
    fp32, bf16 = (
        estimate_memory(tiny_config(), "instruct", TuningConfig(frozen_dtype=dtype), StepShape(1, 8, 4))
        for dtype in ("float32", "bfloat16")
    )
    assert bf16.trained == fp32.trained
    assert bf16.optimizer == fp32.optimizer == 2 * fp32.trained
    bridge = num_bytes(tiny_model().bridge.parameters()) + num_bytes(tiny_model().injection.parameters())
    assert bf16.frozen - bridge == (fp32.frozen - bridge) // 2  # earlier training is never rounded


def test_more_of_a_batch_takes_more_and_checkpointing_takes_less():
    def step(shape, **settings):
        return rehearse_step(meta_model(tiny_config(), "pretrain", TUNING), shape, **settings)

    small = step(StepShape(4, 64, 16, 2))
    assert step(StepShape(8, 64, 16, 2)) > 1.8 * small
    assert step(StepShape(4, 64, 200, 2)) > small
    assert step(StepShape(4, 64, 16, 2), gradient_checkpointing=True) < 0.7 * small
    assert step(StepShape(4, 64, 16, 0)) < 0.3 * small  # nothing trains on text alone, so nothing is kept
    gradients = num_bytes(each for each in meta_model(tiny_config(), "pretrain", TUNING).bridge.parameters())
    assert small < step(StepShape(4, 64, 16, 2), is_accumulating=True) <= small + 2.2 * gradients


def test_sharding_splits_what_stands_and_gathers_what_runs():
    shape = StepShape(2, 16, 8)
    one = estimate_memory(tiny_config(), "instruct", TUNING, shape)
    ddp = estimate_memory(tiny_config(), "instruct", TUNING, shape, num_processes=4)
    fsdp = estimate_memory(tiny_config(), "instruct", TUNING, shape, num_processes=4, is_sharded=True)
    assert one.gathered == 0
    assert (ddp.frozen, ddp.optimizer, ddp.gathered) == (one.frozen, one.optimizer, one.trained)
    assert fsdp.frozen == one.frozen // 4
    assert fsdp.optimizer == one.optimizer // 4
    assert 0 < fsdp.gathered < one.frozen + 2 * one.trained
    assert fsdp.activations == one.activations
    assert "FSDP" in str(fsdp)
    assert "FSDP" not in str(one)


def test_the_estimate_reads_as_text_and_as_json():
    estimate = estimate_memory(tiny_config(), "pretrain", TUNING, StepShape(2, 16, 8))
    shown = json.loads(json.dumps(estimate.as_json()))
    parts = ("frozen", "trained", "gradients", "optimizer", "gathered", "activations", "runtime")
    assert shown["total"] == sum(shown[name] for name in parts) == estimate.total
    assert f"{estimate.num_trained:,}" in str(estimate)


def test_the_model_that_is_asked_about_stays_as_it_was():
    config = tiny_config()
    before = config.to_dict()
    estimate_memory(config, "instruct", TUNING, StepShape(1, 8, 4))
    assert config.to_dict() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "tpu"}, "device"),
        ({"accumulation": 0}, "accumulation"),
        ({"num_processes": 0}, "num_processes"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        estimate_memory(tiny_config(), "pretrain", TUNING, StepShape(1, 8, 4), **settings)


@pytest.mark.parametrize("shape", [(0, 8, 1, 1), (1, 0, 0, 1), (1, 8, 9, 1), (1, 8, -1, 1), (1, 8, 1, -1)])
def test_impossible_shapes_are_refused(shape):
    with pytest.raises(ConfigError, match="StepShape"):
        StepShape(*shape)


def test_the_shape_of_a_batch():
    batch = packed_batch()
    assert StepShape.of(batch) == StepShape(ROWS, LENGTH, 8 * ROWS, 2 * ROWS)
    del batch["joint_embedding"], batch["media_rows"]
    assert StepShape.of(batch).media == 0


@pytest.mark.parametrize(
    ("name", "language_model", "bridge"),
    [
        ("SmolLM2-135M", 134_515_008, 12_535_488),
        ("Qwen3-0.6B", 596_049_920, 38_800_384),
        ("LLaMA-7B", 6_738_415_616, 608_186_368),
    ],
)
def test_known_sizes_have_their_published_numbers_of_parameters(name, language_model, bridge):
    model = meta_model(sized_config(name), "pretrain", TUNING)
    assert sum(parameter.numel() for parameter in model.language_model.parameters()) == language_model
    assert model.bridge.config.num_parameters == bridge
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_the_table_has_a_row_for_each_combination(monkeypatch):
    tiny = {**tiny_text_config().to_dict(), "model_type": "llama"}
    monkeypatch.setattr(tables, "SIZES", {**SIZES, "tiny": tiny})
    rows = memory_table(["tiny"], ["pretrain"], shape=StepShape(2, 16, 8))
    assert [(row.stage, row.precision) for row in rows] == [("pretrain", precision) for precision in PRECISIONS]
    lines = as_markdown(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1
    assert json.loads(json.dumps(rows[0].as_json()))["whole"]["total"] == rows[0].whole.total
    with pytest.raises(ConfigError, match="no size"):
        memory_table(["GPT-5"])
