"""`fit`: a step's loss is one mean, data are read once and in order, and settings get through."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from bindlm.errors import ConfigError
from bindlm.training.trainer import train

from ..tiny import token_batch, unit_rows
from .training_case import (
    At,
    MicroBatches,
    Stop,
    assert_same_weights,
    decay,
    groups,
    micro_batch,
    run,
    stop,
    trained_model,
    weights,
)

pytestmark = pytest.mark.usefixtures("tiny_runs")


# -- loss -----------------------------------------------------------------------------------------------------------


def weights_of(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def written_out(num_steps: int, accumulation: int) -> tuple[Any, list[float]]:
    """Training as one would write it down: full logits, one mean over all target tokens of a step."""
    model = trained_model("pretrain", lora=None).train()  # dropout would draw otherwise
    optimizer = torch.optim.AdamW(groups(model), betas=(0.9, 0.95))
    rates = [group["lr"] for group in optimizer.param_groups]
    losses = []
    for step in range(num_steps):
        total, count = torch.zeros(()), 0
        for index in range(step * accumulation, (step + 1) * accumulation):
            batch = micro_batch(index)
            labels = batch.pop("labels")[:, 1:]
            logits = model(**batch, use_cache=False).logits[:, :-1]
            total = total + F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
            count += int((labels != -100).sum())
        # a step of text only is a step of zeros, not of none: AdamW's averages fade
        (total / count + 0 * sum(parameter.sum() for parameter in weights_of(model))).backward()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * decay(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((total / count).item())
    return model, losses


@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_steps_are_those_of_a_loop_written_out(tmp_path, accumulation):
    expected, losses = written_out(4, accumulation)
    model = trained_model("pretrain", lora=None)
    result = run(model, tmp_path, num_steps=4, accumulation=accumulation)
    assert [step for step, _ in result.losses] == [1, 2, 3, 4]
    assert [loss for _, loss in result.losses] == pytest.approx(losses, abs=1e-5)
    for name, value in weights(expected).items():
        assert torch.allclose(weights(model)[name], value, atol=1e-5), name


def test_a_log_line_is_the_mean_of_its_steps_and_the_last_step_has_one(tmp_path, uninterrupted):
    each = dict(uninterrupted[1])
    result = run(trained_model(), tmp_path, log_every=4)
    assert [step for step, _ in result.losses] == [4, 6]
    assert result.losses[0][1] == pytest.approx(sum(each[step] for step in (1, 2, 3, 4)) / 4, abs=1e-5)
    assert result.losses[1][1] == pytest.approx((each[5] + each[6]) / 2, abs=1e-5)


def test_micro_batches_without_a_target_do_no_harm(tmp_path):
    class Some(MicroBatches):
        def __getitem__(self, index):
            batch = super().__getitem__(index)
            if index in (0, 1, 4):  # the first step has no target at all
                batch["labels"].fill_(-100)
            return batch

    model = trained_model("pretrain")
    result = run(model, tmp_path, num_steps=3, data=Some(6))
    assert result.losses[0][1] == 0.0
    assert all(math.isfinite(loss) and loss > 1 for _, loss in result.losses[1:])
    assert all(value.isfinite().all() for value in weights(model).values())


def test_a_packed_row_is_worth_its_samples_apart(tmp_path):
    """Labels on every token: the first of a sample must count for neither, wherever it stands."""
    ids = token_batch(2, 8)

    class Apart(MicroBatches):
        def __getitem__(self, index):
            return {"input_ids": ids, "labels": ids, "joint_embedding": unit_rows(2)}

    class Packed(MicroBatches):
        def __getitem__(self, index):
            return {
                "input_ids": ids.reshape(1, 16),
                "labels": ids.reshape(1, 16),
                "position_ids": torch.arange(8).repeat(2)[None],
                "joint_embedding": unit_rows(2),
                "media_rows": torch.arange(2).repeat_interleave(8)[None],
            }

    apart, packed = trained_model("pretrain", lora=None), trained_model("pretrain", lora=None)
    losses = [
        run(model, tmp_path / type(data).__name__, num_steps=3, accumulation=1, data=data).losses
        for model, data in ((apart, Apart(3)), (packed, Packed(3)))
    ]
    assert [loss for _, loss in losses[1]] == pytest.approx([loss for _, loss in losses[0]], abs=1e-5)


def test_all_that_trains_moves_and_nothing_else(tmp_path):
    model = trained_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    run(model, tmp_path)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(weights(model))


def test_a_model_with_a_loss_of_its_own_is_trained_as_well(tmp_path):
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.bias = nn.Parameter(torch.ones(2, 2))

        def forward(self, values):
            return {"loss": ((values * self.weight) @ self.bias).square().mean()}

    class Values(MicroBatches):
        def __getitem__(self, index):
            return {"values": torch.randn(4, 2, generator=torch.Generator().manual_seed(index))}

    result = train(Square(), Values(30), folder=tmp_path, num_steps=30, learning_rate=0.1, warmup_steps=2)
    assert result.is_finished
    assert result.losses[-1][1] < result.losses[0][1] / 2


def test_the_model_comes_back_as_it_went(tmp_path):
    model = trained_model()
    model.config.use_cache = True
    run(model, tmp_path, num_steps=1, gradient_checkpointing=True)
    assert not model.training
    assert model.config.use_cache is True
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_gradient_checkpointing_changes_nothing(tmp_path, uninterrupted):
    model = trained_model()
    result = run(model, tmp_path, gradient_checkpointing=True)
    assert [loss for _, loss in result.losses] == pytest.approx([loss for _, loss in uninterrupted[1]], abs=1e-5)


def test_bf16_comes_close(tmp_path, uninterrupted):
    result = run(trained_model(), tmp_path, bf16=True)
    assert [loss for _, loss in result.losses] == pytest.approx([loss for _, loss in uninterrupted[1]], abs=0.1)
    assert result.losses != uninterrupted[1]


def test_gradients_are_clipped_only_if_asked(tmp_path):
    norms = {}

    class Norms(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "grad_norm" in logs:
                norms.setdefault(args.output_dir, []).append(logs["grad_norm"])

    free, clipped = trained_model(), trained_model()
    run(free, tmp_path / "free", num_steps=1, callbacks=[Norms()])
    run(clipped, tmp_path / "clipped", num_steps=1, max_grad_norm=1e-12, callbacks=[Norms()])
    assert norms[str(tmp_path / "free")] == norms[str(tmp_path / "clipped")]  # the norm before clipping
    start = weights(trained_model())
    # AdamW divides by the gradient's size, except where that is nothing beside its epsilon
    assert max((weights(clipped)[name] - start[name]).abs().max() for name in start if "gate" in name) < 1e-4
    assert max((weights(free)[name] - start[name]).abs().max() for name in start if "gate" in name) > 1e-3


# -- data -----------------------------------------------------------------------------------------------------------


def test_data_are_read_once_in_order(tmp_path):
    data = MicroBatches(12)
    run(trained_model(), tmp_path, data=data)
    assert data.asked == list(range(12))


def test_more_data_than_needed_make_no_difference(tmp_path, uninterrupted):
    model = trained_model()
    run(model, tmp_path, data=MicroBatches(15))
    assert_same_weights(weights(model), uninterrupted[0])


def test_a_resumed_run_reads_only_what_is_left(tmp_path):
    with pytest.raises(Stop):
        run(trained_model(), tmp_path, callbacks=[At(5, stop)])
    data = MicroBatches(12)
    run(trained_model(), tmp_path, data=data)
    assert data.asked == [8, 9, 10, 11]


def test_too_few_data_are_refused_before_anything_happens(tmp_path):
    with pytest.raises(ConfigError, match="hold 11 micro-batches, and the run takes 12"):
        run(trained_model(), tmp_path, data=MicroBatches(11))


class Stream(IterableDataset):
    def __init__(self, length):
        self.length = length

    def __iter__(self):
        return (micro_batch(index) for index in range(self.length))


def test_a_stream_trains_the_same_and_goes_on_the_same(tmp_path, uninterrupted):
    whole, parts = trained_model(), trained_model()
    run(whole, tmp_path / "whole", data=Stream(12))
    assert_same_weights(weights(whole), uninterrupted[0])
    with pytest.raises(Stop):
        run(trained_model(), tmp_path / "parts", data=Stream(12), callbacks=[At(3, stop)])
    run(parts, tmp_path / "parts", data=Stream(100))
    assert_same_weights(weights(parts), uninterrupted[0])


def test_a_stream_that_ends_early_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="ended after 7 micro-batches, and the run takes 12"):
        run(trained_model(), tmp_path, data=Stream(7))


def test_tokens_are_counted(tmp_path):
    counts = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            counts.append(state.num_input_tokens_seen)

    run(trained_model(), tmp_path, num_steps=2, callbacks=[Count()])
    assert counts == [2 * 2 * 12, 2 * 2 * 2 * 12]


# -- settings -------------------------------------------------------------------------------------------------------


def test_tensorboard_writes_into_the_folder_of_the_run(tmp_path):
    run(trained_model(), tmp_path, num_steps=1, report_to=("tensorboard",))
    assert list(tmp_path.glob("runs/*/events.out.tfevents.*"))


def test_nothing_is_reported_or_printed_by_default(tmp_path, capsys):
    run(trained_model(), tmp_path, num_steps=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".training.lock", "checkpoint-1"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_steps": 3}, "must not set max_steps: it follows from num_steps"),
        ({"learning_rate": 1.0}, "must not set learning_rate: it follows from optimizer_groups"),
        ({"no_such_thing": 3}, "TrainingArguments has no 'no_such_thing'"),
        ({"fp16": True}, "use bf16"),
        ({"fsdp": True}, "start with torchrun"),
        ({"fsdp": True, "fsdp_config": {"auto_wrap_policy": "SIZE"}}, "fsdp_config takes"),
    ],
)
def test_impossible_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        run(trained_model(), tmp_path, trainer_arguments=arguments)


def test_trainers_own_arguments_get_through(tmp_path, uninterrupted):
    seen = []

    class See(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            seen.append((args.dataloader_num_workers, args.logging_first_step))

    model = trained_model()
    run(
        model, tmp_path, callbacks=[See()], trainer_arguments={"dataloader_num_workers": 1, "logging_first_step": True}
    )
    assert seen == [(1, True)]
    assert_same_weights(weights(model), uninterrupted[0])


def test_groups_must_hold_what_trains(tmp_path):
    model = trained_model()
    for wrong in (groups(model)[:1], groups(trained_model()), [*groups(model), groups(model)[0]]):
        with pytest.raises(ConfigError, match="must hold every parameter that requires a gradient once"):
            run(model, tmp_path, optimizer_groups=wrong)


@pytest.mark.slow
def test_compiled_layers_train_the_same(tmp_path, monkeypatch):
    compiled = []

    def compile_quickly(layer):  # the graph as Dynamo captures it, without minutes of a C++ compiler
        compiled.append(layer)
        layer._compiled_call_impl = torch.compile(layer._call_impl, backend="eager")

    expected = run(trained_model("pretrain", lora=None), tmp_path / "plain", num_steps=2)
    monkeypatch.setattr(nn.Module, "compile", compile_quickly)
    model = trained_model("pretrain", lora=None)
    result = run(model, tmp_path / "compiled", num_steps=2, compile_layers=True)
    assert compiled == list(model.get_decoder().layers)
    assert [loss for _, loss in result.losses] == pytest.approx([loss for _, loss in expected.losses], abs=1e-5)
    assert all(layer._compiled_call_impl is None for layer in model.get_decoder().layers)
