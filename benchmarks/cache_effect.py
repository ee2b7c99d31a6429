"""Does the visual cache help? Right answers about held-out media over alpha and k, sense by sense.

    .venv/bin/python benchmarks/cache_effect.py --limit 8                       # a trial
    .venv/bin/python benchmarks/cache_effect.py --plot effect.png --json effect.json --embeddings held.safetensors

Media are embedded once (`--embeddings` keeps them); then each setting is a pass of cache, bridge and language model.
`--keys` measures instead what keys of other lengths, and other temperatures, do: chosen on the validation part,
reported on the test part.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import bindlm
from bindlm.evaluation.answer_book import AnswerBook, stamp_of
from bindlm.evaluation.cache_effect import ALPHAS, TOP_KS, measure_panel, settings_grid, shipped_setting
from bindlm.evaluation.cache_effect_keys import KEYS, choose_keys, keys_table
from bindlm.evaluation.cache_effect_media import Panel, embed_once, load_panels
from bindlm.evaluation.cache_effect_report import as_markdown, draw_effect, report_panel
from bindlm.evaluation.entries import cache_entries


def held_out(model: Any, split: str, options: argparse.Namespace) -> list[tuple[Panel, torch.Tensor]]:
    """Panels of one split that were asked for, with their embeddings."""
    panels = load_panels(
        split,
        data=options.data,
        photographs=options.photographs,
        recordings=options.recordings,
        without=options.without,
    )
    file = options.embeddings
    if file is not None:
        file = file.with_name(f"{file.stem}-{split}{file.suffix}")
    else:
        panels = [some_of(panel, options.limit)[0] for panel in panels]
    joint = embed_once(model, panels, file)
    held = []
    for panel in panels:
        if options.senses and panel.sense not in options.senses:
            continue
        fewer, rows = some_of(panel, options.limit)
        held.append((fewer, joint[panel.title][rows]))
    return held


def some_of(panel: Panel, limits: Sequence[str]) -> tuple[Panel, list[int]]:
    """At most as many media as the last limit that fits its sense ("60", "text=60"), evenly spaced; and which."""
    count = len(panel.items)
    for limit in limits:
        sense, _, number = limit.rpartition("=")
        if sense in ("", panel.sense):
            count = min(len(panel.items), int(number))
    rows = [number * len(panel.items) // count for number in range(count)]
    return replace(panel, items=tuple(panel.items[row] for row in rows)), rows


def measure_grid(book: AnswerBook, options: argparse.Namespace) -> dict[str, Any]:
    """The whole table of alpha by k on one split."""
    entries, panels = cache_entries(book.bound), []
    for panel, joint in held_out(book.bound, options.split, options):
        start = time.perf_counter()
        settings = settings_grid(
            shipped_setting(book.bound.cache, panel.sense),
            options.alphas,
            options.top_ks,
            paper_k=options.paper_k or None,
        )
        panels.append(report_panel(panel, *measure_panel(book, panel, joint, settings, entries)))
        print(f"{panel.title}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    print(as_markdown(panels), flush=True)
    if options.plot is not None:
        draw_effect(panels, options.plot)
    return {"split": options.split, "panels": panels}


def measure_keys(book: AnswerBook, options: argparse.Namespace) -> dict[str, Any]:
    """Other lengths of keys and temperatures, chosen on the validation part."""
    validation = {panel.title: (panel, joint) for panel, joint in held_out(book.bound, "validation", options)}
    rows = []
    for panel, joint in held_out(book.bound, "test", options):
        if panel.title in validation:
            rows.append(choose_keys(book, validation[panel.title], (panel, joint), cache_entries(book.bound)))
            print(keys_table(rows[-1:]), flush=True)
    return {"keys": list(KEYS), "panels": rows}


def main() -> None:
    """Measure, print tables, keep what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="folder or hub id; the bundled mini if left out")
    parser.add_argument("--split", choices=["validation", "test"], default="test", help="which part")
    parser.add_argument("--senses", nargs="+", default=None, help="only these senses")
    parser.add_argument("--alphas", nargs="+", type=float, default=list(ALPHAS), help="shares")
    parser.add_argument("--top-ks", nargs="+", type=int, default=list(TOP_KS), help="numbers of neighbours")
    parser.add_argument("--paper-k", type=int, default=10, help="neighbours of the paper's weighting; 0 leaves it out")
    parser.add_argument("--keys", action="store_true", help="measure keys of other lengths instead")
    parser.add_argument("--limit", nargs="*", default=[], metavar="[SENSE=]N", help="at most N media of a panel")
    parser.add_argument("--answers", type=Path, default=None, help="JSON file to keep answers in; a rerun goes on")
    parser.add_argument("--data", type=Path, default=None, help="folder of furniture and emoji")
    parser.add_argument("--photographs", type=Path, default=None, help="folder of the photographs")
    parser.add_argument("--recordings", type=Path, default=None, help="folder of the recordings")
    parser.add_argument("--without", nargs="*", default=["npm:tonejs"], help="recordings the sound tower trained on")
    parser.add_argument("--embeddings", type=Path, default=None, help=".safetensors to keep embeddings in")
    parser.add_argument("--plot", type=Path, default=None, help="picture to draw")
    parser.add_argument("--json", type=Path, default=None, help="file for all figures and answers")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model: Any = bindlm.load(options.model)
    book = AnswerBook(model, options.answers, stamp=stamp_of(model))
    report = measure_keys(book, options) if options.keys else measure_grid(book, options)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
