"""Make the mini from nothing: `python -m bindlm.training.mini` (about an hour on two cores).

It prepares the joint space, the bridge's readout and the pairs, then runs the two stages as `bindlm train` would:

    bindlm train recipes/mini/1-pretrain.yaml
    bindlm train recipes/mini/2-instruct.yaml

Interrupt it whenever you like; the same command goes on where it was.
"""

import argparse
import sys
from pathlib import Path

from bindlm.checkpoints import home
from bindlm.training.mini.command import Tell, add_threads, run_steps
from bindlm.training.mini.export import export
from bindlm.training.mini.preparation import MiniPreparation
from bindlm.training.mini.recipes import PairsRecipe, ReadoutRecipe, SpaceRecipe
from bindlm.training.recipe import load_recipe
from bindlm.training.run import train_stage
from bindlm.training.stage_recipe import StageRecipe

STAGES = ("1-pretrain", "2-instruct")
STEPS = ("pairs", *STAGES)


def main() -> int:
    """Run the steps and export the model."""
    parser = argparse.ArgumentParser(prog="python -m bindlm.training.mini", description=__doc__)
    parser.add_argument("--recipes", type=Path, default=Path("recipes/mini"), help="folder of the recipes")
    parser.add_argument("--run", type=Path, default=Path("runs/mini"), help="folder of the run; resumed if there")
    parser.add_argument("--out", type=Path, default=Path("runs/mini/export"), help="folder of the finished model")
    add_threads(parser)
    parser.add_argument("--until", choices=STEPS, default=STEPS[-1], help="last step to run")
    return run_steps(_make, parser.parse_args())


def _make(arguments: argparse.Namespace, tell: Tell) -> None:
    recipes, run = arguments.recipes, arguments.run
    tell("joint space and readout")
    space = load_recipe(recipes / "0-space.yaml", SpaceRecipe)
    preparation = MiniPreparation(run, home() / "debian", space)
    preparation.readout(load_recipe(recipes / "0-readout.yaml", ReadoutRecipe))
    tell("pairs")
    preparation.pairs(load_recipe(recipes / "0-pairs.yaml", PairsRecipe))
    entries = preparation.entries
    del preparation  # a language model that the stages load again
    model = None
    for stage in STAGES[: STEPS.index(arguments.until)]:
        tell(f"stage {stage}")
        result = train_stage(load_recipe(recipes / f"{stage}.yaml", StageRecipe, _in_run(run, stage)), say=tell)
        if result.training.is_interrupted:
            raise KeyboardInterrupt
        model = result.model
    if model is not None:
        export(model, arguments.out, space.model, entries)
        tell(f"the mini is in {arguments.out}")


def _in_run(run: Path, stage: str) -> list[str]:
    """Overrides that move a stage's recipe from `runs/mini` to another folder."""
    pairs = run / "pairs" / stage.partition("-")[2]
    start = run / ("0-readout" if stage == STAGES[0] else f"{STAGES[0]}/model")
    return [
        f"output={run / stage}",
        f"model.start_from={start}",
        f"data.sources.0.path={pairs / 'captions.jsonl'}",
        f"data.sources.1.path={pairs / 'dialogues.json'}",
        f"features.path={pairs / 'features'}",
    ]


if __name__ == "__main__":
    sys.exit(main())
