"""bindlm train recipes/imagebind-llm/1-pretrain.yaml data.sources.0.path=captions.tsv --dry-run"""

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
    from bindlm.training.run import StageResult


def add_arguments(parser: ArgumentParser) -> None:
    add_recipe(parser, folder="recipes/", example="optimizer.num_steps=100 data.sources.0.path=pairs.tsv")
    add_run(parser, dry_run="what would train and the memory it takes")
    add_threads_and_json(parser)


def run(options: Namespace) -> int:
    """Run a stage, or go on with it where its folder holds checkpoints."""
    quiet_libraries()
    from bindlm.training.stage_recipe import StageRecipe

    recipe = read_recipe(StageRecipe, options)
    set_threads(options)
    if options.dry_run:
        from bindlm.training.dry_run import plan_stage

        return print_plan(plan_stage(recipe), options)
    from bindlm.training.run import train_stage

    with telling_licences():
        result = train_stage(recipe, is_fresh=options.fresh, say=say)
    if options.json:
        print_json(_as_json(result))
    if result.training.is_interrupted:
        return say_interrupted(result.training)
    say(f"the model is in {result.model}; ask it: bindlm ask QUESTION --image PICTURE --model {result.model}")
    return 0


def _as_json(result: "StageResult") -> dict[str, Any]:
    return {
        "output": str(result.output),
        "model": str(result.model) if result.model else None,
        **training_as_json(result.training),
    }
