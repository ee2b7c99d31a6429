"""Two things in one answer: the band of weights where both are named, in one mixture (before) and in turn (after).

    .venv/bin/python benchmarks/mixing.py                                # photographs, both halves, 30 pairs each
    .venv/bin/python benchmarks/mixing.py --pairs sounds --split test --plot mixing.png

Pairs are photograph and photograph, or photograph and sound, each named rightly alone unless `--any`. The validation
half is where the way of mixing was chosen, the test half is what is reported.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

import bindlm
from bindlm.errors import MediaError
from bindlm.evaluation.labelled import SPLITS
from bindlm.evaluation.mixing import Concept, as_table, choose_pairs, draw, mixed_answers, named_alone, score
from bindlm.evaluation.photographs import load_photographs
from bindlm.evaluation.recordings import load_recordings

WAYS = ("released", "apart", "turns")


def photographs(model: Any, split: str, root: Path | None, limit: int | None) -> list[Concept]:
    """Photographs of things that the mini's 1000 classes name."""
    rows = load_photographs(split, root=root, allow_missing=True)
    rows = [row for row in rows if row.photo and row.imagenet][:limit]
    embeddings = model.embed(image=[row.open() for row in rows])
    return [Concept(row.id, one, row.acceptable, row.parents) for row, one in zip(rows, embeddings, strict=True)]


def recordings(model: Any, split: str, root: Path | None, limit: int | None) -> list[Concept]:
    """Recordings whose name the mini knows."""
    concepts = []
    for row in [row for row in load_recordings(split, root=root, allow_missing=True) if row.named][:limit]:
        try:
            embedding = model.embed(audio=str(row.path))[0]
        except MediaError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        concepts.append(Concept(row.id, embedding, row.acceptable, row.parents, "audio"))
    return concepts


def main() -> None:
    """Measure each set and half, print the tables, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="folder or hub id; the bundled mini if left out")
    parser.add_argument("--pairs", choices=["pictures", "sounds", "both"], default="pictures", help="which sets")
    parser.add_argument("--split", choices=[*SPLITS, "both"], default="both", help="which halves")
    parser.add_argument("--limit", type=int, default=None, help="only the first N inputs of each kind")
    parser.add_argument("--count", type=int, default=30, help="pairs in a set and half")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["released", "turns"], help="ways of mixing")
    parser.add_argument("--any", action="store_true", help="also inputs that are not named rightly alone")
    parser.add_argument("--photographs", type=Path, default=None, help="folder of the photographs")
    parser.add_argument("--sounds", type=Path, default=None, help="folder of the recordings")
    parser.add_argument("--plot", type=Path, default=None, help="picture to draw")
    parser.add_argument("--json", type=Path, default=None, help="file for all answers and scores")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model: Any = bindlm.load(options.model)
    sets = ["pictures", "sounds"] if options.pairs == "both" else [options.pairs]
    panels: dict[str, dict[str, dict[str, Any]]] = {}
    answers: dict[str, Any] = {}
    for split in SPLITS if options.split == "both" else [options.split]:
        keep = (lambda concepts: concepts) if options.any else (lambda concepts: named_alone(model, concepts))
        shown = photographs(model, split, options.photographs, options.limit)
        pictures = keep(shown)
        for name in sets:
            heard = shown if name == "pictures" else recordings(model, split, options.sounds, options.limit)
            second = pictures if name == "pictures" else keep(heard)
            pairs = choose_pairs(pictures, second, options.count)
            title = f"photograph + {'photograph' if name == 'pictures' else 'sound'}, {split}, {len(pairs)} pairs"
            print(f"{title}: named alone {len(pictures)} of {len(shown)}, {len(second)} of {len(heard)}", flush=True)
            if not pairs:
                continue
            said = {way: mixed_answers(model, pairs, way) for way in options.ways}
            panels[title] = {way: score(pairs, texts) for way, texts in said.items()}
            answers[title] = {"pairs": [[one.id, other.id] for one, other in pairs], "answers": said}
            print(as_table(panels[title]), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"scores": panels, "answers": answers}, indent=1), encoding="utf-8")
    if options.plot is not None and panels:
        draw(panels, options.plot)


if __name__ == "__main__":
    main()
