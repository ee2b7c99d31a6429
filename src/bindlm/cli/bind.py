"""bindlm bind recipes/bind/mini-points.yaml data.pairs=[pairs.csv] --dry-run"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from bindlm.cli.loading import quiet_libraries, telling_licences
from bindlm.cli.options import positive_int
from bindlm.cli.output import print_json, say
from bindlm.cli.parser import Parser

EXIT_INTERRUPTED = 130


def add_arguments(parser: ArgumentParser) -> None:
    if isinstance(parser, Parser):
        parser.takes_options_between = True
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a YAML file, such as those in recipes/bind/")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings that win over the file: optimizer.num_steps=100 tower.settings.width=128",
    )
    parser.add_argument("--dry-run", action="store_true", help="print pairs, parameters, steps and memory, and stop")
    parser.add_argument("--fresh", action="store_true", help="begin again, where the run's folder holds checkpoints")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="threads of torch (all cores)")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")


def run(options: Namespace) -> int:
    """Bind a sense, or go on with it where the recipe's folder holds checkpoints."""
    quiet_libraries()
    from bindlm.binding.recipe import BindRecipe
    from bindlm.training.recipe import load_recipe

    recipe = load_recipe(options.recipe, BindRecipe, options.overrides)
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    if options.dry_run:
        return _dry_run(recipe, options)
    from bindlm.binding.run import bind

    with telling_licences():
        result = bind(recipe, is_fresh=options.fresh, say=say)
    if options.json:
        print_json(_as_json(result))
    if result.training.is_interrupted:
        say(f"stopped after step {result.training.num_steps_done}, saved in {result.training.last_checkpoint}")
        say("the same command goes on from there")
        return EXIT_INTERRUPTED
    say(f"the tower is in {result.tower}, what it can do in {result.output / 'report.json'}")
    return 0


def _as_json(result: Any) -> dict[str, Any]:
    training = result.training
    return {
        "output": str(result.output),
        "tower": str(result.tower) if result.tower else None,
        "steps": training.num_steps_done,
        "loss": training.losses[-1][1] if training.losses else None,
        "seconds": round(training.seconds, 1),
        "splits": result.report["splits"] if result.report else None,
    }


def _dry_run(recipe: Any, options: Namespace) -> int:
    from bindlm.binding.plan import plan_binding

    plan = plan_binding(recipe)
    if options.json:
        print_json(plan.as_json())
    else:
        print(plan)
    return 0
