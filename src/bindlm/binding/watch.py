"""What a person sees of a binding run: scores on the validation split now and then, and `curves.png`."""

import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from bindlm.binding.companion import Companion
from bindlm.binding.model import BindingModel
from bindlm.binding.scoring import SplitScores, Trial
from bindlm.errors import BindLMError, ConfigError
from bindlm.space.figures import new_figure, save_figure
from bindlm.training.captions_callback import undisturbed
from bindlm.training.curve import METRICS_FILE, smooth
from bindlm.training.journal import Journal, read_journal

__all__ = ["CurvesCallback", "EvaluationCallback", "plot_binding"]

EVALUATION_FILE = "evaluation.jsonl"
CURVES_FILE = "curves.png"


class EvaluationCallback(TrainerCallback):
    """Scores on a split, every so many steps, in `evaluation.jsonl` and on stderr.

    Args:
        trial: the split.
        companion: knows the averaged weights, which are looked at, and keeps the best.
        folder: of the run.
        every: optimizer steps between looks; 0 for none.
    """

    def __init__(self, trial: Trial, companion: Companion, folder: Path, every: int, *, keeps_best: bool) -> None:
        self.trial, self.companion, self.every, self.keeps_best = trial, companion, every, keeps_best
        self.journal = Journal(folder / EVALUATION_FILE)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop lines of steps that will be done again."""
        if state.is_world_process_zero:
            self.journal.keep_until(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look, where it is time to."""
        is_time = self.every and (state.global_step % self.every == 0 or state.global_step >= state.max_steps)
        if not is_time or not state.is_world_process_zero:
            return
        model = self.companion.model
        scores = evaluated(model, self.trial, self.companion)
        if self.keeps_best:
            self.companion.offer(scores.score, state.global_step)
        scale = model.logit_scale().item()
        self.journal.append({"step": state.global_step, "logit_scale": scale, "scores": scores.as_json()})
        _say(f"bindlm: step {state.global_step}, validation: {scores.describe()}")


def evaluated(model: BindingModel, trial: Trial, companion: Companion) -> SplitScores:
    """A split's scores, under the averaged weights if there are any; the model and the random state stay untouched."""
    with undisturbed(model), companion.averaged():
        return trial.run(model.encode)


class CurvesCallback(TrainerCallback):
    """Draws `curves.png` when training ends or is interrupted.

    Args:
        folder: of the run.
        title: above the curves.
    """

    def __init__(self, folder: Path, title: str) -> None:
        self.folder, self.title = folder, title

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw."""
        if state.is_world_process_zero:
            try:
                plot_binding(self.folder, self.folder / CURVES_FILE, title=self.title)
            except BindLMError as error:  # a picture is not worth a run
                _say(f"bindlm: no curves: {error}")


def plot_binding(folder: Path, out: Path, *, title: str) -> None:
    """Draw the loss of a run and, below it, its recall on the validation split.

    Args:
        folder: with `metrics.jsonl` and, maybe, `evaluation.jsonl`.
        out: picture to write, `.png`, `.svg` or `.pdf`; it appears whole or not at all.
        title: above it.

    Raises:
        ConfigError: there is no loss yet, or matplotlib is missing.
        CheckpointError: the disk is full or not writable.
    """
    losses = [row for row in read_journal(folder / METRICS_FILE) if isinstance(row.get("loss"), float | int)]
    if not losses:
        raise ConfigError(f"{folder / METRICS_FILE} holds no step with a finite loss; train for a few steps first.")
    figure = _figure(losses, read_journal(folder / EVALUATION_FILE), title)
    save_figure(figure, out)


def _figure(losses: list[dict[str, Any]], looks: list[dict[str, Any]], title: str) -> Any:
    figure = new_figure(8, 6)
    above, below = figure.subplots(2, 1, sharex=True)
    steps, values = [row["step"] for row in losses], [row["loss"] for row in losses]
    above.plot(steps, values, color="#0072b2", alpha=0.3, linewidth=1, marker="." if len(steps) < 3 else None)
    above.plot(steps, smooth(values), color="#0072b2", linewidth=1.8)
    above.set(ylabel="loss (nats): raw pale, smoothed bold")
    above.set_title(title, parse_math=False)
    _draw_recall(below, looks)
    below.set(xlabel="optimizer step", ylabel="recall on validation", ylim=(0, 1))
    for axes in (above, below):
        axes.grid(alpha=0.25)
    return figure


def _draw_recall(axes: Any, looks: list[dict[str, Any]]) -> None:
    columns = looks[-1]["scores"] if looks else {}
    styles = {
        ("R@1", "to_anchor"): "-",
        ("R@1", "from_anchor"): "--",
        ("R@5", "to_anchor"): "-.",
        ("R@5", "from_anchor"): ":",
    }
    for number, column in enumerate(columns):
        for (measure, way), style in styles.items():
            colour = ("#009e73", "#d55e00", "#cc79a7", "#e69f00")[number % 4]
            name = column if way == "to_anchor" else f"from {column}"
            label = f"{measure} {name if way != 'to_anchor' else f'to {column}'}".replace("$", r"\$")
            scores = [look["scores"][column][way][measure] for look in looks]
            axes.plot([look["step"] for look in looks], [s["score"] for s in scores], style, color=colour, label=label)
            if way == "to_anchor":
                axes.axhline(scores[-1]["chance"], color="0.6", linewidth=0.8)
    if columns:
        axes.legend(frameon=False, fontsize="small", title="grey: chance")


def _say(text: str) -> None:
    """A line on stderr, above the progress bar where there is one."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()
