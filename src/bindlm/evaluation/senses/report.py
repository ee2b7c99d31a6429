"""A report of one sense as Markdown."""

from typing import Any

from bindlm.evaluation.senses.counting import ANOTHER

_IN_CATEGORIES = (
    "model",
    "model, cache off",
    "model, without the objects' own cache entries",
    "nearest training medium",
    ANOTHER,
)


def as_markdown(report: dict[str, Any], split: str) -> str:
    """Retrieval, answers by group, answers by category, and faults."""
    parts = [
        f"## {report['sense']}, held-out {split} part",
        _retrieval(report["retrieval"]),
        "Right answers, strict / with parents or family accepted:",
        _answers(report["ways"], report["groups"]),
    ]
    if report["categories"]:
        parts.append(_categories(report["ways"], report["categories"]))
    faults = [f"{fault}: {share:.1%} of the model's answers" for fault, share in report["faults"].items()]
    return "\n\n".join([*filter(None, parts), "\n".join(faults)])


def _retrieval(found: dict[str, Any]) -> str:
    if not found:
        return ""
    lines = [
        "| retrieval (chance) | R@1 | R@5 | R@10 | median rank | queries × candidates |",
        "|---|---|---|---|---|---|",
    ]
    for direction, scores in found.items():
        cells = [f"{scores[k]['score']:.3f} ({scores[k]['chance']:.3f})" for k in ("R@1", "R@5", "R@10")]
        rank = scores["median_rank"]
        cells += [f"{rank['score']:g} ({rank['chance']:g})", f"{scores['num_queries']} × {scores['num_candidates']}"]
        lines.append(f"| {direction} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _answers(ways: dict[str, Any], groups: list[str]) -> str:
    head = ways["model"]
    groups = [group for group in groups if head[group]["media"]]
    titles = [f"{group} ({head[group]['media']}, {head[group]['names']} names)" for group in groups]
    lines = [f"| | {' | '.join(titles)} |", "|---|" + "---|" * len(groups)]
    for way, scores in ways.items():
        lines.append(f"| {way} | {' | '.join(_cell(scores[group]) for group in groups)} |")
    return "\n".join(lines)


def _categories(ways: dict[str, Any], categories: list[str]) -> str:
    shown = [way for way in _IN_CATEGORIES if way in ways]
    lines = [f"| | media | {' | '.join(shown)} |", "|---|---|" + "---|" * len(shown)]
    for category in filter(lambda each: ways["model"][each]["media"], categories):
        cells = [_cell(ways[way][category]) for way in shown]
        lines.append(f"| {category} | {ways['model'][category]['media']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(score: dict[str, float]) -> str:
    """ "21 (18 %) / 40 (34 %)" """
    count = max(1, score["media"])
    return " / ".join(f"{score[key]:.4g} ({score[key] / count:.0%})" for key in ("strict", "lenient"))
