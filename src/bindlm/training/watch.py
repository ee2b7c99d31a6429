"""What a person sees of a run: a progress bar, `metrics.jsonl`, loss curves, and captions of a few pictures.

All of it is callbacks of transformers' Trainer, which act in the first process only and change nothing in training:
a run ends with the same weights with them or without.
"""

import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from transformers import TrainerCallback

from bindlm.errors import BindLMError
from bindlm.training.captions_callback import CaptionCallback, CaptionPicture
from bindlm.training.curve import METRICS_FILE, plot_curves
from bindlm.training.journal import Journal
from bindlm.training.meter import Counts, Rate, TokenMeter

__all__ = [
    "CaptionCallback",
    "CaptionPicture",
    "CurveCallback",
    "MetricsCallback",
    "ProgressBar",
    "TokenMeter",
    "watch_callbacks",
]

CURVE_FILE = "loss.png"


def watch_callbacks(
    folder: Path, *, captions: TrainerCallback | None = None, title: str = ""
) -> list[TrainerCallback]:
    """All that watches a run, in the order in which a Trainer has to call it.

    Args:
        folder: of the run; `metrics.jsonl` and `loss.png` go here.
        captions: a `CaptionCallback`, where pictures are described now and then.
        title: above the loss curve; None for the folder's name.
    """
    meter = TokenMeter()
    callbacks = [MetricsCallback(folder, meter), ProgressBar(meter), CurveCallback(folder, title or folder.name)]
    return [*callbacks, *([captions] if captions is not None else [])]


class ProgressBar(TrainerCallback):
    """Step, smoothed loss, tokens and samples a second, and time left; on stderr.

    On a terminal it is a bar. Elsewhere, as in a log file, it is a plain line now and then, without control
    characters.

    Args:
        meter: counts tokens; None for one of its own.
        stream: where to write; None for stderr.
        line_seconds: least time between two plain lines; the first log and the last step always get one.
    """

    def __init__(
        self, meter: TokenMeter | None = None, *, stream: TextIO | None = None, line_seconds: float = 10.0
    ) -> None:
        self.meter = meter or TokenMeter()
        self.line_seconds = line_seconds
        self._stream = stream
        self._bar: Any = None
        self._loss: float | None = None
        self._next_line = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Start the bar at the step that is resumed from."""
        if not state.is_world_process_zero:
            return
        _start_meter(self.meter, args, model)
        self._rate, self._rates = Rate(self.meter), Counts()
        self._pace = Pace(state.global_step)
        self._loss, self._next_line = _last_smooth_loss(state.log_history), 0.0
        stream = self._stream or sys.stderr
        if stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc="training",
                unit="step",
                file=stream,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if not state.is_world_process_zero:
            return
        self._pace.step(state.global_step)
        if self._bar is not None:
            self._bar.set_postfix_str(self._status(state), refresh=False)
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Take a new loss; without a terminal, print a line if one is due."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        self._loss = _smoother(self._loss, logs["loss"])
        self._rates = self._rate.look()
        if self._bar is not None:
            self._bar.set_postfix_str(self._status(state))
        elif time.perf_counter() >= self._next_line or state.global_step >= state.max_steps:
            self._next_line = time.perf_counter() + self.line_seconds
            share = f"{100 * state.global_step / max(state.max_steps, 1):.0f} %"
            line = f"bindlm: step {state.global_step}/{state.max_steps} ({share}), {self._status(state)}"
            print(line, file=self._stream or sys.stderr, flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the bar as it stands."""
        self.meter.detach()
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _status(self, state: Any) -> str:
        left = self._pace.seconds_left(state.global_step, state.max_steps)
        rates = self._rates
        parts = [
            f"loss {self._loss:.3f}" if self._loss is not None else "",
            f"{_short(rates.tokens)} tokens/s ({_short(rates.target_tokens)} learned)" if rates.tokens else "",
            f"{_short(rates.samples)} samples/s" if rates.samples else "",
            f"{_clock(left)} left" if left is not None else "",
        ]
        return ", ".join(part for part in parts if part)


class MetricsCallback(TrainerCallback):
    """One line of `metrics.jsonl` for each log: step, loss, learning rates, gradient norm, speed, seconds.

    A run that resumes drops the lines of steps that it will do again. `seconds` goes on where the run before stopped.

    Args:
        folder: of the run.
        meter: counts tokens; None for one of its own.
    """

    def __init__(self, folder: Path, meter: TokenMeter | None = None) -> None:
        self.journal = Journal(Path(folder) / METRICS_FILE)
        self.meter = meter or TokenMeter()
        self._learning_rates: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Open the file at the step that is resumed from."""
        if not state.is_world_process_zero:
            return
        _start_meter(self.meter, args, model)
        kept = self.journal.keep_until(state.global_step)
        self._began = time.perf_counter() - (kept[-1].get("seconds") or 0.0 if kept else 0.0)
        self._rate = Rate(self.meter)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Note the learning rates of this step; at the time of the log they are the next one's."""
        if state.is_world_process_zero and optimizer is not None:
            self._learning_rates = _learning_rates(optimizer.param_groups)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write a line."""
        if not state.is_world_process_zero or not logs or not {"loss", "eval_loss"} & set(logs):
            return
        row = {"step": state.global_step, **{name: logs[name] for name in logs if name != "step"}}
        if "loss" in logs:
            rates = self._rate.look()
            row |= self._learning_rates
            row |= {"tokens_per_second": round(rates.tokens, 1), "samples_per_second": round(rates.samples, 2)}
            row["target_tokens_per_second"] = round(rates.target_tokens, 1)
        self.journal.append({**row, "seconds": round(time.perf_counter() - self._began, 3)})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop counting."""
        self.meter.detach()


class CurveCallback(TrainerCallback):
    """Draws `loss.png` from `metrics.jsonl` at the end, after an interruption, and at checkpoints once in a while.

    A curve that cannot be drawn is said once and ends nothing.

    Args:
        folder: of the run.
        title: above the curve.
        every_seconds: least time between two drawings at checkpoints, so that a killed run has one too.
    """

    def __init__(self, folder: Path, title: str = "", *, every_seconds: float = 120.0) -> None:
        self.folder = Path(folder)
        self.title = title
        self.every_seconds = every_seconds
        self._next = 0.0
        self._has_complained = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for a while before the first drawing."""
        self._next = time.perf_counter() + self.every_seconds

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw, if it is some time ago that this was done."""
        if state.is_world_process_zero and time.perf_counter() >= self._next:
            self._next = time.perf_counter() + self.every_seconds
            self._draw()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw."""
        if state.is_world_process_zero:
            self._draw()

    def _draw(self) -> None:
        try:
            plot_curves([self.folder / METRICS_FILE], self.folder / CURVE_FILE, title=self.title or self.folder.name)
        except BindLMError as error:
            if not self._has_complained:
                print(f"bindlm: no loss curve: {error}", file=sys.stderr, flush=True)
            self._has_complained = True


class Pace:
    """Seconds a step, over the last hundred steps of this process: what came before a resume took no time here."""

    def __init__(self, step: int) -> None:
        self._marks: deque[tuple[int, float]] = deque([(step, time.perf_counter())], maxlen=101)

    def step(self, step: int) -> None:
        """Note that a step is done."""
        self._marks.append((step, time.perf_counter()))

    def seconds_left(self, step: int, max_steps: int) -> float | None:
        """Time for the steps to come; None before the first is done."""
        (first, began), (last, ended) = self._marks[0], self._marks[-1]
        if last <= first:
            return None
        return (ended - began) / (last - first) * max(max_steps - step, 0)


def _start_meter(meter: TokenMeter, args: Any, model: Any) -> None:
    meter.num_devices = getattr(args, "world_size", 1)
    if model is not None:
        meter.attach(model)


def _learning_rates(groups: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The first group's as `learning_rate`; another's under its own name where it differs."""
    first = groups[0]["lr"]
    others = {
        f"learning_rate/{group.get('name', number)}": group["lr"]
        for number, group in enumerate(groups)
        if group["lr"] != first
    }
    return {"learning_rate": first, **others}


def _smoother(before: float | None, loss: float) -> float | None:
    if loss != loss:  # NaN: the average would never recover
        return before
    return loss if before is None else 0.8 * before + 0.2 * loss


def _last_smooth_loss(history: Sequence[dict[str, Any]] | None) -> float | None:
    """What a run that resumes shows until its first loss."""
    loss = None
    for logged in (history or [])[-20:]:
        if "loss" in logged:
            loss = _smoother(loss, logged["loss"])
    return loss


def _short(number: float) -> str:
    """``12345.6`` -> ``"12,346"``; small ones keep two digits."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute:02d} min" if hours else f"{minute} min {second:02d} s" if minute else f"{second} s"
