"""Two things in one answer: over how wide a band of weights are both named?

ImageBind-LLM (arXiv 2309.03905), Fig. 13, mixes a picture and a sound by weight and calls the outcome fragile. Here
two inputs that a model names rightly alone are mixed with weights 1 - w and w; the width of the band is the share of w
in [0, 1] at which the answer names both.
"""

import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bindlm.asking import enhanced_alone, senses_told, told_in_turn
from bindlm.errors import ConfigError
from bindlm.evaluation.scoring import names_any
from bindlm.space import VisualCacheBase
from bindlm.space.figures import new_figure, save_figure
from bindlm.space.mix import TURNS, MixForm, mix_embeddings, take_turns

QUESTION = "What is this?"
WEIGHTS = tuple(number / 20 for number in range(21))
"""Of the second input, 0 to 1."""
ROWS_AT_ONCE = 64
MAX_NEW_TOKENS = 24
LABELS = {"released": "one mixture (released)", "apart": "cache for each input, then one mixture", "turns": "in turn"}
_COLOURS = {"released": "#d55e00", "apart": "#e69f00", "turns": "#0072b2"}


@dataclass(frozen=True, eq=False)  # tensors have no one truth value to compare by
class Concept:
    """One input, as the joint space has it, and what it may be called."""

    id: str
    embedding: Tensor
    """`(D_joint,)`"""
    names: tuple[str, ...]
    """Names that are right (strict)."""
    parents: tuple[str, ...] = ()
    """More general ones (lenient)."""
    sense: str = "image"
    """What it came through, which decides how the visual cache meets it."""

    def is_named(self, answer: str, *, lenient: bool = False) -> bool:
        return names_any(answer, (*self.names, *self.parents) if lenient else self.names)

    def shares_a_name(self, other: "Concept") -> bool:
        """Whether one word could stand for both: an answer would then name two things with one."""
        return bool({*self.names, *self.parents} & {*other.names, *other.parents})


Pair = tuple[Concept, Concept]
_Turn = tuple[Tensor, frozenset[str] | None]
"""A joint embedding `(1, D_joint)` that is asked about, and the senses it meets the cache as; None for no cache."""


def answers(
    model: Any, embeddings: Tensor, question: str = QUESTION, *, use_cache_entries: bool | VisualCacheBase = True
) -> list[str]:
    """The likeliest answer for each of `(B, D_joint)`; equal rows are asked once.

    Args:
        use_cache_entries: see `condition_from`.
    """
    rows, which = torch.unique(embeddings, dim=0, return_inverse=True)
    prompt = model.processor.tokenize_chat([{"role": "user", "content": question}], is_conditioned=True)
    tokenizer = model.processor.tokenizer
    texts: list[str] = []
    for part in rows.split(ROWS_AT_ONCE):
        tokens = {name: values.expand(len(part), -1).to(model.device) for name, values in prompt.items()}
        with torch.inference_mode():
            output = model.generate(
                **tokens,
                condition=model.condition_from(part, use_cache_entries=use_cache_entries),
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        made = output[:, tokens["input_ids"].shape[1] :]
        texts += [text.strip() for text in tokenizer.batch_decode(made, skip_special_tokens=True)]
    return [texts[row] for row in which.tolist()]


def named_alone(model: Any, concepts: Sequence[Concept], question: str = QUESTION) -> list[Concept]:
    """Those that the model names rightly (strict) with nothing beside them."""
    if not concepts:
        return []
    turns: list[_Turn] = [(concept.embedding[None], frozenset([concept.sense])) for concept in concepts]
    texts = _told(model, turns, question)
    return [concept for concept, text in zip(concepts, texts, strict=True) if concept.is_named(text)]


def choose_pairs(
    first: Sequence[Concept], second: Sequence[Concept], count: int, *, uses: int = 3, seed: int = 0
) -> list[Pair]:
    """At most `count` pairs with no name in common, drawn by chance; an input is in at most `uses` of them."""
    pairs = [(one, other) for one in first for other in second if one.id != other.id and not one.shares_a_name(other)]
    random.Random(seed).shuffle(pairs)
    chosen: list[Pair] = []
    used: Counter[str] = Counter()
    seen: set[frozenset[str]] = set()
    for one, other in pairs:
        both = frozenset((one.id, other.id))
        if len(chosen) < count and used[one.id] < uses and used[other.id] < uses and both not in seen:
            chosen.append((one, other))
            used.update(both)
            seen.add(both)
    return chosen


def mixed_answers(
    model: Any, pairs: Sequence[Pair], way: str, *, weights: Sequence[float] = WEIGHTS, question: str = QUESTION
) -> list[list[str]]:
    """What the model says of each pair at each weight of the second input.

    Args:
        way: "released" (or "paper"), "turns", or "apart": each input enhanced by the cache alone, then one mixture.

    Raises:
        ConfigError: another way.
    """
    if way not in (TURNS, "apart", *MixForm):
        raise ConfigError(f"way must be one of {', '.join((TURNS, 'apart', *MixForm))}, got {way!r}.")
    plans = [_plan(model, pair, weight, way) for pair in pairs for weight in weights]
    told = iter(_told(model, [turn for plan in plans for turn in plan], question))
    texts = [told_in_turn([next(told) for _ in plan]) for plan in plans]
    return [texts[start : start + len(weights)] for start in range(0, len(texts), len(weights))]


def _plan(model: Any, pair: Pair, weight: float, way: str) -> list[_Turn]:
    """What is asked about, as `ask` would plan it."""
    shares, senses = (1 - weight, weight), [concept.sense for concept in pair]
    weighted = [(concept.embedding[None], share) for concept, share in zip(pair, shares, strict=True)]
    alone = enhanced_alone(model.cache, weighted, senses)
    if way == "apart":
        return [(mix_embeddings(list(zip(alone, shares, strict=True))), None)]
    turns = take_turns(weighted, compared=alone) if way == TURNS else [weighted]
    mixed = [mix_embeddings(turn, form=MixForm.RELEASED if way == TURNS else way) for turn in turns]
    return list(zip(mixed, senses_told(weighted, senses, turns), strict=True))


def _told(model: Any, turns: Sequence[_Turn], question: str) -> list[str]:
    """The answers to turns, each pulled as the model would pull it."""
    texts = [""] * len(turns)
    for senses in dict.fromkeys(senses for _, senses in turns):
        places = [place for place, turn in enumerate(turns) if turn[1] == senses]
        cache = None if senses is None or model.cache is None else model.cache.for_senses(senses)
        rows = torch.cat([turns[place][0] for place in places])
        for place, text in zip(places, answers(model, rows, question, use_cache_entries=cache or False), strict=True):
            texts[place] = text
    return texts


def score(pairs: Sequence[Pair], said: Sequence[Sequence[str]], weights: Sequence[float] = WEIGHTS) -> dict[str, Any]:
    """Bands of both counts.

    Returns:
        For "strict" and "lenient": `width`, mean over pairs of the share of [0, 1] where both are named; `any`, share
        of pairs that have a band at all; `both`, `first`, `second`, share of pairs by weight.
    """
    report: dict[str, Any] = {"weights": list(weights), "pairs": len(pairs)}
    for count in ("strict", "lenient"):
        named = torch.tensor(
            [
                [[each.is_named(text, lenient=count == "lenient") for each in pair] for text in texts]
                for pair, texts in zip(pairs, said, strict=True)
            ]
        )  # (pairs, weights, 2)
        both = named.all(dim=-1)
        widths = [band_width(row, weights) for row in both.tolist()]
        report[count] = {
            "width": sum(widths) / len(widths),
            "any": both.any(dim=1).float().mean().item(),
            "both": both.float().mean(dim=0).tolist(),
            "first": named[..., 0].float().mean(dim=0).tolist(),
            "second": named[..., 1].float().mean(dim=0).tolist(),
        }
    return report


def band_width(present: Sequence[bool], weights: Sequence[float] = WEIGHTS) -> float:
    """Share of the weights' range where both are present: each weight stands for what is nearest to it."""
    edges = [weights[0], *((low + high) / 2 for low, high in zip(weights, weights[1:], strict=False)), weights[-1]]
    spans = [high - low for low, high in zip(edges, edges[1:], strict=False)]
    return sum(span for span, is_present in zip(spans, present, strict=True) if is_present) / (edges[-1] - edges[0])


def as_table(reports: dict[str, dict[str, Any]], *, middle: tuple[float, float] = (0.2, 0.8)) -> str:
    """Markdown, one row a way of mixing, each strict / lenient."""
    lines = [
        f"| | width of the band | pairs with a band | both named at w = {middle[0]} … {middle[1]} |",
        "|---|---|---|---|",
    ]
    for way, report in reports.items():
        inside = [middle[0] <= weight <= middle[1] for weight in report["weights"]]
        cells = []
        for number in ("width", "any", "both"):
            values = [report[count][number] for count in ("strict", "lenient")]
            if number == "both":
                values = [sum(x for x, i in zip(v, inside, strict=True) if i) / sum(inside) for v in values]
            cells.append(" / ".join(f"{value:.2f}" if number == "width" else f"{value:.0%}" for value in values))
        lines.append(f"| {LABELS.get(way, way)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(panels: dict[str, dict[str, dict[str, Any]]], out: str | os.PathLike[str]) -> None:
    """Share of pairs of which both are named, by weight; one panel for each set of pairs, one line for each way.

    Args:
        panels: title -> way -> what `score` gave.
        out: picture to write; it appears whole or not at all.

    Raises:
        ConfigError: matplotlib is missing.
        CheckpointError: the disk is full or not writable.
    """
    figure = new_figure(0.6 + 4.4 * len(panels), 3.8)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, ways) in zip(grid, panels.items(), strict=True):
        for way, report in ways.items():
            strict, colour = report["strict"], _COLOURS.get(way, "0.4")
            label = f"{LABELS.get(way, way)}: band {strict['width']:.2f}"
            axes.plot(report["weights"], strict["both"], color=colour, linewidth=2.2, label=label)
            axes.plot(report["weights"], report["lenient"]["both"], color=colour, linewidth=1, linestyle=":")
        plain = ways.get("released")
        if plain is not None:
            for which, style in (("first", "--"), ("second", "-.")):
                axes.plot(plain["weights"], plain["strict"][which], color="0.65", linewidth=1, linestyle=style)
        axes.set_title(title, parse_math=False, fontsize=10)
        axes.set(xlabel="weight of the second input", xlim=(0, 1), ylim=(-0.03, 1.03))
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8, loc="center")
    grid[0].set_ylabel(
        "share of pairs (bold: both named; dotted: or a parent;\ngrey: one of them, in one mixture)", fontsize=8
    )
    save_figure(figure, out)
