"""The visual cache's effect as Markdown and as a plot."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from bindlm.evaluation.cache_effect import Setting, right_answers
from bindlm.evaluation.cache_effect_choice import choose_on_halves
from bindlm.evaluation.cache_effect_media import Panel
from bindlm.space import CacheWeighting
from bindlm.space.figures import new_figure, save_figure

SHIPPED, OFF = "model, as shipped", "model, cache off"


def report_panel(
    panel: Panel, said: Mapping[Setting, Sequence[str]], ways: Mapping[str, Sequence[str]], *, repeats: int = 50
) -> dict[str, Any]:
    """Right answers by setting and way, and what choosing on a half is worth; nothing in it but numbers and text."""
    right = {setting: right_answers(panel.items, texts) for setting, texts in said.items()}
    tables = {way: right_answers(panel.items, texts) for way, texts in ways.items()}
    fixed = {way: tables[way] for way in (SHIPPED, OFF) if way in tables}
    return {
        "title": panel.title,
        "sense": panel.sense,
        "media": len(panel.items),
        "settings": [_row(setting, table) for setting, table in right.items()],
        "ways": {way: _counts(table) for way, table in tables.items()},
        "halves": choose_on_halves(right, [item.key for item in panel.items], fixed, repeats=repeats),
        "answers": [
            {"id": item.id, "label": item.label, **{way: texts[number] for way, texts in ways.items()}}
            for number, item in enumerate(panel.items)
        ],
    }


def _row(setting: Setting, table: Tensor) -> dict[str, Any]:
    return {
        "alpha": setting.alpha,
        "top_k": setting.top_k,
        "temperature": setting.temperature,
        "weighting": str(setting.weighting),
        "name": str(setting),
        **_counts(table),
    }


def _counts(table: Tensor) -> dict[str, int]:
    strict, lenient = table.sum(dim=0).tolist()
    return {"strict": strict, "lenient": lenient}


def as_markdown(panels: Sequence[Mapping[str, Any]]) -> str:
    """Two tables: ways of answering, and the setting chosen on a half beside fixed ones, with its gain."""
    ways = list(dict.fromkeys(way for panel in panels for way in panel["ways"]))
    lines = [
        f"| right, strict / lenient | {' | '.join(_title(panel) for panel in panels)} |",
        "|---|" + "---|" * len(panels),
    ]
    for way in ways:
        lines.append(f"| {way} | {' | '.join(_cell(panel['ways'].get(way)) for panel in panels)} |")
    best = [max(panel["settings"], key=lambda row: row["strict"] + row["lenient"]) for panel in panels]
    cells = [f"{_cell(row)} ({row['name']})" for row in best]
    lines += [
        f"| best of the table, seen | {' | '.join(cells)} |",
        "",
        "| the half that did not choose, % | chosen | as shipped | off | gain over as shipped | chosen most |",
        "|---|---|---|---|---|---|",
    ]
    for panel in panels:
        halves = panel["halves"]
        cells = [_shares(halves["ways"].get(way)) for way in ("chosen", SHIPPED, OFF)]
        cells.append(_shares(halves["gain"].get(SHIPPED), signed=True))
        most, times = next(iter(halves["chosen"].items()))
        share = times / sum(halves["chosen"].values())
        lines.append(f"| {_title(panel)} | {' | '.join(cells)} | {most} ({share:.0%}) |")
    return "\n".join(lines)


def _title(panel: Mapping[str, Any]) -> str:
    return f"{panel['title']} ({panel['media']})"


def _cell(counts: Mapping[str, Any] | None) -> str:
    return f"{counts['strict']} / {counts['lenient']}" if counts else ""


def _shares(way: Mapping[str, Mapping[str, float]] | None, *, signed: bool = False) -> str:
    """ "31 ± 4 / 40 ± 5" """
    if way is None:
        return ""
    sign = "+" if signed else ""
    return " / ".join(f"{100 * each['mean']:{sign}.0f} ± {100 * each['spread']:.0f}" for each in way.values())


def draw_effect(panels: Sequence[Mapping[str, Any]], out: str | os.PathLike[str]) -> None:
    """Heat maps, one for each panel: neighbours by share, right answers strict / lenient in each field.

    Args:
        panels: what `report_panel` gave.
        out: picture to write; it appears whole or not at all.

    Raises:
        ConfigError: matplotlib is missing.
        CheckpointError: the disk is full or not writable.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(5.6 * columns, 0.3 + 2.5 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, panel in zip(grid, panels, strict=False):
        _heat_map(axes, panel)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.supxlabel("alpha, share of what the cache gives (0: off); strict / with parents or family", fontsize=9)
    save_figure(figure, out, dpi=110)


def _heat_map(axes: Any, panel: Mapping[str, Any]) -> None:
    off = next((row for row in panel["settings"] if row["alpha"] == 0), None)
    fields = [row for row in panel["settings"] if row["alpha"]]
    alphas = sorted({row["alpha"] for row in fields})
    kinds = sorted({(row["weighting"] == CacheWeighting.COSINE, row["top_k"]) for row in fields})
    found = {(row["weighting"] == CacheWeighting.COSINE, row["top_k"], row["alpha"]): row for row in fields}
    across = [0.0, *alphas] if off else alphas
    table = [[off if alpha == 0 else found.get((*kind, alpha)) for alpha in across] for kind in kinds]
    shares = [[row["lenient"] / panel["media"] if row else float("nan") for row in line] for line in table]
    axes.imshow(shares, cmap="viridis", aspect="auto")
    known = [share for line in shares for share in line if share == share]
    middle = (min(known) + max(known)) / 2
    for y, line in enumerate(table):
        for x, row in enumerate(line):
            if row:
                colour = "black" if shares[y][x] > middle else "white"
                axes.text(x, y, _cell(row).replace(" ", ""), ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(across)), [f"{alpha:g}" for alpha in across], fontsize=8)
    axes.set_yticks(range(len(kinds)), [f"paper, k {k}" if paper else f"k {k}" for paper, k in kinds], fontsize=8)
    shipped = panel["ways"].get(SHIPPED)
    beside = f", as shipped {_cell(shipped)}" if shipped else ""
    axes.set_title(f"{_title(panel)}{beside}", parse_math=False, fontsize=9)
