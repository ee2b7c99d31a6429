"""Make the mini from nothing: `python -m bindlm.training.mini` (about an hour and a half on two cores).

Interrupt it whenever you like; the same command goes on where it was.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import torch

from bindlm.checkpoints import home
from bindlm.errors import BindLMError
from bindlm.training.mini.stages import MiniRun, SpaceRecipe, StageRecipe
from bindlm.training.recipe import load_recipe

STAGES = ("readout", "bind", "instruct")


def main() -> int:
    """Run the stages and export the model."""
    parser = argparse.ArgumentParser(prog="python -m bindlm.training.mini", description=__doc__)
    parser.add_argument("--recipes", type=Path, default=Path("recipes/mini"), help="folder of the recipes")
    parser.add_argument("--run", type=Path, default=Path("runs/mini"), help="folder of checkpoints; resumed if there")
    parser.add_argument("--out", type=Path, default=Path("runs/mini/export"), help="folder of the finished model")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of torch")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="last stage to run")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    try:
        space = load_recipe(arguments.recipes / "0-space.yaml", SpaceRecipe)
        run = MiniRun(arguments.run, home() / "debian", space)
        for number, stage in enumerate(STAGES, start=1):
            print(f"[{time.perf_counter() - start:.0f} s] stage {stage}", file=sys.stderr)
            recipe = load_recipe(arguments.recipes / f"{number}-{stage}.yaml", StageRecipe)
            getattr(run, stage)(recipe)
            if stage == arguments.until:
                break
        run.export(arguments.out)
    except BindLMError as error:
        print(f"bindlm: error: {error}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    print(f"[{time.perf_counter() - start:.0f} s] the mini is in {arguments.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
