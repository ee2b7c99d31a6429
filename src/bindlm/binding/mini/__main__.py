"""Give the mini its other senses: `python -m bindlm.binding.mini` (about three quarters of an hour on two cores).

It fetches the data, writes tables of pairs, binds each sense as `bindlm bind recipes/mini/bind-SENSE.yaml` would, and
puts the towers into the mini. The language model sees none of it. Interrupt it whenever you like; the same command
goes on where it was.
"""

import argparse
import sys
from pathlib import Path

from bindlm.binding.mini.attach import add_prototypes, attach_towers
from bindlm.binding.mini.tables import FEATURES, SENSES, SOURCES_OF, read_prototypes, write_pairs
from bindlm.binding.recipe import BindRecipe
from bindlm.binding.run import bind
from bindlm.binding.sources import SOURCES
from bindlm.checkpoints import home, load_state
from bindlm.loading import MINI
from bindlm.training.mini.command import Tell, add_threads, run_steps
from bindlm.training.recipe import load_recipe


def main() -> int:
    """Bind the senses and write the model."""
    parser = argparse.ArgumentParser(prog="python -m bindlm.binding.mini", description=__doc__)
    parser.add_argument("senses", nargs="*", choices=[*SENSES, []], help="which; all if left out")
    parser.add_argument("--model", type=Path, default=MINI, help="folder of the mini; the bundled one if left out")
    parser.add_argument("--recipes", type=Path, default=Path("recipes/mini"), help="folder of the recipes")
    parser.add_argument("--run", type=Path, default=Path("runs/mini"), help="folder of the run; resumed if there")
    parser.add_argument("--out", type=Path, default=Path("runs/mini/senses"), help="folder of the finished model")
    add_threads(parser)
    return run_steps(_give_senses, parser.parse_args())


def _give_senses(arguments: argparse.Namespace, tell: Tell) -> None:
    run: Path = arguments.run
    prototypes = read_prototypes(arguments.model)
    senses = arguments.senses or SENSES
    for sense in senses:
        for name in SOURCES_OF[sense]:
            tell(f"data: {name}")
            SOURCES[name].fetch(run / "sources" / name, home() / "debian")
        tell(f"binding {sense}")
        table = write_pairs(sense, prototypes, run / "sources", run / "pairs" / sense)
        recipe = load_recipe(arguments.recipes / f"bind-{sense}.yaml", BindRecipe, _in_run(arguments, sense, table))
        if bind(recipe, say=tell).tower is None:
            raise KeyboardInterrupt
        if sense == "audio":
            add_prototypes(run / f"bind-{sense}" / "tower", load_state(table.parent / FEATURES)["features"])
    attach_towers(arguments.model, {sense: run / f"bind-{sense}" / "tower" for sense in senses}, arguments.out)
    tell(f"the mini with {', '.join(senses)} is in {arguments.out}")


def _in_run(arguments: argparse.Namespace, sense: str, table: Path) -> list[str]:
    """Overrides that move a sense's recipe from `runs/mini` and the bundled mini to another folder and model."""
    return [
        f"output={arguments.run / f'bind-{sense}'}",
        f"data.pairs=[{table}]",
        f"anchor.encoder={'mini' if arguments.model == MINI else arguments.model}",
    ]


if __name__ == "__main__":
    sys.exit(main())
