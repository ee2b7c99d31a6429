"""What a person sees of a run: the bar, the metrics file and the curve; none of it changes the run."""

import io
import json
import re
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset

from bindlm.checkpoints import state as files
from bindlm.errors import CheckpointError
from bindlm.training.journal import Journal, read_journal
from bindlm.training.meter import TokenMeter, count_batch
from bindlm.training.trainer import fit
from bindlm.training.watch import CurveCallback, MetricsCallback, Pace, ProgressBar, watch_callbacks

from ..tiny import DIM, tiny_model, token_batch, unit_rows

ROWS, LENGTH = 2, 12


class Batches(Dataset):
    """Micro-batches of captions: each row has a picture and six tokens to learn."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        ids = token_batch(ROWS, LENGTH, seed=index)
        labels = ids.clone()
        labels[:, : LENGTH - 6] = -100
        embedding = unit_rows(ROWS, seed=index)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": labels,
            "joint_embedding": embedding,
        }


def run(folder, callbacks, *, num_steps=6, stop_after=None, model=None, **settings):
    """A few steps of the bridge and gates of a tiny model; returns the model and the result."""
    model = model or tiny_model()
    model.requires_grad_(False)
    model.bridge.requires_grad_(True)
    model.injection.requires_grad_(True)
    groups = [
        {"name": "decayed", "params": list(model.bridge.parameters()), "lr": 1e-2, "weight_decay": 0.0},
        {"name": "gates", "params": list(model.injection.parameters()), "lr": 5e-2, "weight_decay": 0.0},
    ]
    settings = {"save_every": 2, "log_every": 1, "accumulation": 2, **settings}
    if stop_after is not None:
        callbacks = [*callbacks, StopAfter(stop_after)]
    result = fit(
        model,
        Batches(),
        output=folder,
        num_steps=num_steps,
        optimizer_groups=groups,
        schedule=lambda step: min(1.0, (step + 1) / 3),
        callbacks=callbacks,
        **settings,
    )
    return model, result


class StopAfter(CurveCallback):
    """Ends training the hard way, as a kill would: no callback hears of the end."""

    def __init__(self, step):
        self.step = step

    def on_train_begin(self, *args, **kwargs):
        pass

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step >= self.step:
            raise KeyboardInterrupt

    on_save = on_train_end = on_train_begin


def state_at(step, max_steps=100, is_first=True):
    return SimpleNamespace(
        global_step=step, max_steps=max_steps, is_world_process_zero=is_first, log_history=[], epoch=0.0
    )


# --- the metrics file ---


def test_metrics_have_a_line_for_each_log_with_all_that_was_measured(tmp_path):
    run(tmp_path, [MetricsCallback(tmp_path)])
    rows = read_journal(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert row["loss"] > 0
        assert row["grad_norm"] > 0
        # of the steps' 4 rows each: 12 tokens and 6 targets a row
        assert row["tokens_per_second"] == pytest.approx(2 * row["target_tokens_per_second"], rel=1e-2)
        assert row["tokens_per_second"] == pytest.approx(12 * row["samples_per_second"], rel=1e-2)
        assert row["learning_rate/gates"] == pytest.approx(5 * row["learning_rate"])
    assert [row["learning_rate"] for row in rows[:3]] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2])
    assert all(before["seconds"] < after["seconds"] for before, after in zip(rows, rows[1:], strict=False))


def test_a_resumed_run_has_each_step_once_and_its_clock_goes_on(tmp_path):
    whole = tmp_path / "whole"
    run(whole, [MetricsCallback(whole)])
    parts = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):  # after step 3, of which the last checkpoint, of step 2, knows nothing
        run(parts, [MetricsCallback(parts)], stop_after=3)
    before = read_journal(parts / "metrics.jsonl")
    assert [row["step"] for row in before] == [1, 2, 3]
    run(parts, [MetricsCallback(parts)])
    rows = read_journal(parts / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in rows] == [row["loss"] for row in read_journal(whole / "metrics.jsonl")]
    assert rows[1] == before[1]
    assert rows[2]["seconds"] > rows[1]["seconds"]


def test_a_line_cut_by_a_kill_is_dropped_and_the_next_starts_afresh(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "lo')
    assert [row["step"] for row in read_journal(path)] == [1]
    journal = Journal(path)
    assert journal.keep_until(2) == [{"step": 1, "loss": 3.0}]
    journal.append({"step": 2, "loss": 2.5})
    assert path.read_text() == '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.5}\n'


def test_a_new_run_drops_what_an_old_one_wrote(tmp_path):
    journal = Journal(tmp_path / "captions.jsonl")
    journal.append({"step": 0, "text": "old"})
    assert journal.keep_until(0) == []
    assert journal.path.read_text() == ""


def test_a_journal_that_needs_no_change_is_not_written(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append({"step": 1, "loss": 3.0})
    monkeypatch.setattr(files, "replacing_file", None)
    assert len(journal.keep_until(1)) == 1


def test_metrics_are_json_even_where_the_loss_is_not_a_number(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append({"step": 1, "loss": float("nan"), "deep": {"norm": float("inf")}})
    row = json.loads(journal.path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row == {"step": 1, "loss": None, "deep": {"norm": None}}


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append({"step": 1, "loss": 3.0})
    before = journal.path.read_bytes()

    class Full(io.FileIO):
        def write(self, data):
            if len(data) < 10:
                raise OSError(28, "No space left on device")
            return super().write(data[:-5])

    monkeypatch.setattr(type(journal.path), "open", lambda path, mode, buffering: Full(path, "ab"))
    with pytest.raises(CheckpointError, match="no space"):
        journal.append({"step": 2, "loss": 2.5})
    monkeypatch.undo()
    assert journal.path.read_bytes() == before


def test_only_the_first_process_writes(tmp_path):
    for callback in (MetricsCallback(tmp_path), ProgressBar(), CurveCallback(tmp_path)):
        state = state_at(3, is_first=False)
        callback.on_train_begin(SimpleNamespace(world_size=2), state, None)
        callback.on_step_end(None, state, None)
        callback.on_log(None, state, None, logs={"loss": 1.0})
        callback.on_train_end(None, state, None)
    assert list(tmp_path.iterdir()) == []


# --- the bar ---


def test_without_a_terminal_there_are_plain_lines(tmp_path):
    stream = io.StringIO()
    run(tmp_path, [ProgressBar(stream=stream, line_seconds=0)])
    lines = stream.getvalue().splitlines()
    assert len(lines) == 6
    pattern = (
        r"bindlm: step 3/6 \(50 %\), loss \d+\.\d{3}, [\d,.]+ tokens/s \([\d,.]+ learned\), .* samples/s, \d+ s left"
    )
    assert re.fullmatch(pattern, lines[2])
    assert stream.getvalue().isprintable() or not set(stream.getvalue()) & set(map(chr, [*range(10), *range(11, 32)]))


def test_plain_lines_are_few(tmp_path):
    stream = io.StringIO()
    run(tmp_path, [ProgressBar(stream=stream, line_seconds=3600)])
    first, last = stream.getvalue().splitlines()
    assert "step 1/6" in first
    assert "step 6/6" in last


def test_on_a_terminal_there_is_a_bar(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    run(tmp_path, [ProgressBar(stream=stream)])
    assert "\r" in stream.getvalue()
    assert re.search(r"training 100%\|.*\| 6/6, loss \d", stream.getvalue())


def test_time_left_counts_the_pace_of_this_process_only(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("bindlm.training.watch.time", SimpleNamespace(perf_counter=lambda: now[0]))
    pace = Pace(500)  # resumed: 500 steps took this process no time
    assert pace.seconds_left(500, 1000) is None
    for step in (501, 502):
        now[0] += 2.0
        pace.step(step)
    assert pace.seconds_left(502, 1000) == pytest.approx(498 * 2.0)


def test_the_shown_loss_is_smoothed_and_survives_a_nan():
    bar = ProgressBar(stream=io.StringIO(), line_seconds=3600)
    bar.on_train_begin(SimpleNamespace(world_size=1), state_at(0), None)
    for loss in (4.0, 2.0, float("nan")):
        bar.on_log(None, state_at(1), None, logs={"loss": loss})
    assert bar._loss == pytest.approx(3.6)


# --- counting ---


def test_a_padded_batch_counts_its_mask():
    ids = token_batch(3, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    assert [int(each) for each in count_batch(ids, mask)] == [10, 3]


def test_a_packed_batch_counts_its_samples_and_not_its_padding():
    ids = torch.tensor([[5, 6, 7, 8, 9, 4, 0, 0], [5, 6, 7, 8, 9, 4, 3, 2]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]])
    assert [int(each) for each in count_batch(ids, None, positions)] == [6 + 8, 3]


def test_a_bare_batch_counts_whole():
    assert [int(each) for each in count_batch(token_batch(3, 5))] == [15, 3]


def test_captions_in_between_are_not_counted():
    model, meter = tiny_model(), TokenMeter(num_devices=2)
    meter.attach(model)
    batch = {"input_ids": token_batch(2, 7), "joint_embedding": unit_rows(2, DIM)}
    with torch.no_grad():
        model.eval()(**batch)
        assert meter.read().tokens == 0
        model.train()(**batch)
        assert (meter.read().tokens, meter.read().samples) == (28, 4)
        meter.detach()
        model(**batch)
    assert meter.read().tokens == 28


# --- all of it ---


def test_watching_changes_no_weight_and_leaves_a_curve(tmp_path, capsys):
    plain, _ = run(tmp_path / "plain", [])
    watched, _ = run(tmp_path / "watched", watch_callbacks(tmp_path / "watched"))
    for (name, a), b in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert (tmp_path / "watched" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not watched._forward_pre_hooks
    assert not watched.get_output_embeddings()._forward_hooks
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "step 6/6" in captured.err


def test_a_curve_that_cannot_be_drawn_is_said_once_and_ends_nothing(tmp_path, capsys):
    curve = CurveCallback(tmp_path, every_seconds=0)
    curve.on_train_begin(None, state_at(0), None)
    curve.on_save(None, state_at(1), None)
    curve.on_train_end(None, state_at(2), None)
    assert capsys.readouterr().err.count("no loss curve") == 1
