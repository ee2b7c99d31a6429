"""What the verbs that run a recipe share: its file and overrides, threads, a dry run, and a stop by Ctrl-C."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bindlm.cli import EXIT_INTERRUPTED
from bindlm.cli.options import positive_int
from bindlm.cli.output import print_json, say
from bindlm.cli.parser import Parser

if TYPE_CHECKING:
    from bindlm.training.trainer import TrainResult

RecipeT = TypeVar("RecipeT")


def add_recipe(parser: ArgumentParser, *, folder: str, example: str) -> None:
    """The recipe and what wins over it.

    Args:
        parser: That of the verb; its options may stand between the settings.
        folder: Where recipes of the verb lie.
        example: Settings that this verb takes.
    """
    if isinstance(parser, Parser):
        parser.takes_options_between = True
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help=f"a YAML file, such as those in {folder}")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help=f"settings that win over the file: {example}"
    )


def add_run(parser: ArgumentParser, *, dry_run: str) -> None:
    """How the run begins: ``dry_run`` says what is printed instead of running."""
    parser.add_argument("--dry-run", action="store_true", help=f"print {dry_run}, and stop")
    parser.add_argument("--fresh", action="store_true", help="begin again, where the run's folder holds checkpoints")


def add_threads_and_json(parser: ArgumentParser, *, threads: str = "all cores") -> None:
    """Options that stand last in each of these verbs; ``threads`` is the default in words."""
    parser.add_argument("--threads", type=positive_int, metavar="N", help=f"threads of torch ({threads})")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")


def read_recipe(kind: type[RecipeT], options: Namespace) -> RecipeT:
    """The recipe that the command line names, as its settings change it.

    Raises:
        ConfigError: The file or a setting does not fit.
    """
    from bindlm.training.recipe import load_recipe

    return load_recipe(options.recipe, kind, options.overrides)


def set_threads(options: Namespace) -> None:
    """Give torch the threads of ``--threads``, where it was given."""
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)


def print_plan(plan: Any, options: Namespace) -> int:
    """Print what a dry run has found, and return the exit code."""
    if options.json:
        print_json(plan.as_json())
    else:
        print(plan)
    return 0


def training_as_json(training: "TrainResult") -> dict[str, Any]:
    """The part of ``--json`` that every training has."""
    return {
        "steps": training.num_steps_done,
        "loss": training.losses[-1][1] if training.losses else None,
        "seconds": round(training.seconds, 1),
    }


def say_interrupted(training: "TrainResult") -> int:
    """Say where a stopped run is saved and how it goes on, and return the exit code."""
    say(f"stopped after step {training.num_steps_done}, saved in {training.last_checkpoint}")
    say("the same command goes on from there")
    return EXIT_INTERRUPTED
