"""How often the answer names what a photograph shows, beside simpler ways to find out.

Beside the model stand: the plain language model without the picture, the image tower's own 1000-class head (first and
first five guesses), and the name of the visual cache's nearest entry.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from bindlm.evaluation.entries import cache_entries
from bindlm.evaluation.photographs import Photograph
from bindlm.evaluation.scoring import find_faults, names_any, words_of

QUESTION = "What is this?"


def measure(
    photographs: Sequence[Photograph], *, model: str | None = None, question: str = QUESTION, show: bool = False
) -> dict[str, Any]:
    """Ask about every photograph and score each way of answering.

    Returns:
        `ways`: by way and group, right answers (strict, lenient) and pictures; `faults`: shares of the model's answers
        that stutter, hold a made-up word or are no whole sentence; `answers`: each answer.
    """
    from tqdm import tqdm

    import bindlm
    from bindlm.training.mini.vocabulary import load_vocabulary

    bound: Any = bindlm.load(model)
    plain = bound.ask(question, max_new_tokens=40)
    lemmas, table = _class_lemmas(), cache_entries(bound)
    lexicon = _lexicon(photographs, [word for entry in table for word in (entry.name, entry.kind)], load_vocabulary())
    answers = []
    for photograph in tqdm(photographs, desc="asking", file=sys.stderr):
        picture = photograph.open()
        answer = bound.answer(question, picture, max_new_tokens=40)
        pixel_values = bound.processor.image_processor([picture])["pixel_values"]
        guesses = bound.encoder.class_logits(pixel_values)[0].topk(5).indices.tolist()
        nearest = answer.joint_neighbours[0]["entry"] if answer.joint_neighbours else None
        answers.append(
            {
                "id": photograph.id,
                "object": photograph.object,
                "model": answer.text,
                "plain language model": plain,
                "head, first guess": lemmas[guesses[0]],
                "head, first five": ", ".join(lemmas[guess] for guess in guesses),
                "nearest cache entry": table[nearest].name if nearest is not None else "",
            }
        )
        if show:
            tqdm.write(f"{photograph.object:>20}  {answer.text}", file=sys.stderr)
    return _score(photographs, answers, lexicon)


GROUPS: dict[str, Callable[[Photograph], bool]] = {
    "all": lambda photograph: True,
    "photographs": lambda photograph: photograph.photo,
    "photographs, ImageNet classes": lambda photograph: photograph.photo and photograph.imagenet,
    "cut-outs": lambda photograph: not photograph.photo,
}
WAYS = ("model", "plain language model", "nearest cache entry", "head, first guess", "head, first five")


def _score(
    photographs: Sequence[Photograph], answers: list[dict[str, str]], lexicon: frozenset[str]
) -> dict[str, Any]:
    ways: dict[str, Any] = {}
    for way in WAYS:
        ways[way] = {}
        for group, belongs in GROUPS.items():
            rows = [(p, a[way]) for p, a in zip(photographs, answers, strict=True) if belongs(p)]
            ways[way][group] = {
                "strict": sum(names_any(text, p.acceptable) for p, text in rows),
                "lenient": sum(names_any(text, (*p.acceptable, *p.parents)) for p, text in rows),
                "pictures": len(rows),
            }
    faults = find_faults([answer["model"] for answer in answers], lexicon)
    return {"ways": ways, "faults": faults, "answers": answers}


def as_table(report: dict[str, Any], split: str) -> str:
    """The report as a Markdown table: strict / lenient."""
    head = report["ways"]["model"]
    lines = [
        f"Right answers on the {split} part, strict / with parents accepted",
        "",
        "| | " + " | ".join(f"{group} ({head[group]['pictures']})" for group in GROUPS) + " |",
        "|---|" + "---|" * len(GROUPS),
    ]
    for way, groups in report["ways"].items():
        cells = [f"{groups[group]['strict']} / {groups[group]['lenient']}" for group in GROUPS]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    lines += ["", *(f"{fault}: {share:.1%} of the model's answers" for fault, share in report["faults"].items())]
    return "\n".join(lines)


def _class_lemmas() -> list[str]:
    """All WordNet lemmas of each of the 1000 classes: the head is given every synonym."""
    import csv

    from bindlm.training.mini import vocabulary

    with vocabulary.TABLE.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [f"{row['name']}, {row['lemmas'].replace('|', ', ')}" for row in rows]


def _lexicon(photographs: Sequence[Photograph], names: Sequence[str], classes: Sequence[Any]) -> frozenset[str]:
    """Every word that an honest answer could hold: names, kinds, labels, and the words around them."""
    words = [*names, *_class_lemmas(), *(entry.kind for entry in classes)]
    words += [word for photograph in photographs for word in (*photograph.acceptable, *photograph.parents)]
    return words_of(words)
