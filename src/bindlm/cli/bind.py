"""bindlm bind recipes/bind/mini-points.yaml data.pairs=[pairs.csv] --dry-run"""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from bindlm.cli.loading import quiet_libraries, telling_licences
from bindlm.cli.output import print_json, say
from bindlm.cli.recipes import (
    add_recipe,
    add_run,
    add_threads_and_json,
    print_plan,
    read_recipe,
    say_interrupted,
    set_threads,
    training_as_json,
)

if TYPE_CHECKING:
    from bindlm.binding.run import BindResult


def add_arguments(parser: ArgumentParser) -> None:
    add_recipe(parser, folder="recipes/bind/", example="optimizer.num_steps=100 tower.settings.width=128")
    add_run(parser, dry_run="pairs, parameters, steps and memory")
    add_threads_and_json(parser)


def run(options: Namespace) -> int:
    """Bind a sense, or go on with it where the recipe's folder holds checkpoints."""
    quiet_libraries()
    from bindlm.binding.recipe import BindRecipe

    recipe = read_recipe(BindRecipe, options)
    set_threads(options)
    if options.dry_run:
        from bindlm.binding.plan import plan_binding

        return print_plan(plan_binding(recipe), options)
    from bindlm.binding.run import bind

    with telling_licences():
        result = bind(recipe, is_fresh=options.fresh, say=say)
    if options.json:
        print_json(_as_json(result))
    if result.training.is_interrupted:
        return say_interrupted(result.training)
    say(f"the tower is in {result.tower}, what it can do in {result.output / 'report.json'}")
    return 0


def _as_json(result: "BindResult") -> dict[str, Any]:
    return {
        "output": str(result.output),
        "tower": str(result.tower) if result.tower else None,
        **training_as_json(result.training),
        "splits": result.report["splits"] if result.report else None,
    }
