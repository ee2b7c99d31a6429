"""bindlm train recipes/imagebind-llm/1-pretrain.yaml data.sources.0.path=captions.tsv --dry-run"""

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
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a YAML file, such as those in recipes/")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings that win over the file: optimizer.num_steps=100 data.sources.0.path=pairs.tsv",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would train and the memory it takes, and stop"
    )
    parser.add_argument("--fresh", action="store_true", help="begin again, where the run's folder holds checkpoints")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="threads of torch (all cores)")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")


def run(options: Namespace) -> int:
    """Run a stage, or go on with it where its folder holds checkpoints."""
    quiet_libraries()
    from bindlm.training.recipe import load_recipe
    from bindlm.training.stage_recipe import StageRecipe

    recipe = load_recipe(options.recipe, StageRecipe, options.overrides)
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    if options.dry_run:
        return _dry_run(recipe, options)
    from bindlm.training.run import train_stage

    with telling_licences():
        result = train_stage(recipe, is_fresh=options.fresh, say=say)
    training = result.training
    if options.json:
        print_json(
            {
                "output": str(result.output),
                "model": str(result.model) if result.model else None,
                "steps": training.num_steps_done,
                "loss": training.losses[-1][1] if training.losses else None,
                "seconds": round(training.seconds, 1),
            }
        )
    if training.is_interrupted:
        say(f"stopped after step {training.num_steps_done}, saved in {training.last_checkpoint}")
        say("the same command goes on from there")
        return EXIT_INTERRUPTED
    say(f"the model is in {result.model}; ask it: bindlm ask QUESTION --image PICTURE --model {result.model}")
    return 0


def _dry_run(recipe: Any, options: Namespace) -> int:
    from bindlm.training.dry_run import plan_stage

    plan = plan_stage(recipe)
    if options.json:
        print_json(plan.as_json())
    else:
        print(plan)
    return 0
