"""What an answer drew on, at a glance: the query at the left, its neighbours in the visual cache beside it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image, ImageDraw, ImageFont

from bindlm.checkpoints.home import disk_errors
from bindlm.checkpoints.state import replacing_file
from bindlm.errors import ConfigError
from bindlm.evaluation.media_picture import picture_of
from bindlm.media.names import printable

__all__ = ["SheetQuery", "draw_contact_sheet"]

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_MARGIN, _GAP = 16, 12
_TEXT, _SMALL = 14, 12
_LINES = 2
"""Of a caption; the rest is cut off."""
_INK, _GREY, _FAINT, _BAR, _PAPER = "#1a1a1a", "#666666", "#efefef", "#0072b2", "#ffffff"


class Neighbour(Protocol):
    """An entry that was drawn on, as `VisualCache.explain` gives it."""

    @property
    def caption(self) -> str | None: ...
    @property
    def source(self) -> str | None: ...
    @property
    def similarity(self) -> float: ...
    @property
    def weight(self) -> float: ...


@dataclass(frozen=True)
class SheetQuery:
    """What was asked about."""

    sense: str
    """As the encoder calls it: "image", "audio", "point", "depth", "text", ..."""
    source: Any
    """The medium, as its loader takes it; of a text, the text."""
    caption: str = ""
    """Written under it; "" is its file's name."""

    @property
    def words(self) -> str:
        """What stands under its picture."""
        is_path = isinstance(self.source, (str, os.PathLike)) and self.sense != "text"
        return self.caption or (Path(self.source).name if is_path else self.sense)


def draw_contact_sheet(
    query: SheetQuery | Sequence[SheetQuery],
    neighbours: Sequence[Neighbour],
    path: str | os.PathLike[str],
    *,
    columns: int = 5,
    tile: int = 144,
    title: str = "",
    root: str | os.PathLike[str] | None = None,
) -> None:
    """Draw the query, or the media mixed in it, and each neighbour with its similarity, weight and caption.

    A neighbour whose source is a readable picture file is shown as that; of any other, the caption stands in its tile.
    Nothing is fetched: a source that is an address of the web is not looked up.

    Args:
        query: what was asked about.
        neighbours: nearest first.
        path: file to write (PNG, JPEG or WebP by its suffix); it appears whole or not at all.
        columns: neighbours in a row.
        tile: pixels of a tile's side, 48 to 1024.
        title: a line above it all, such as the answer.
        root: the folder that sources which are relative paths start from; None is the working folder.

    Raises:
        ConfigError: no query or no neighbour, an unknown suffix, or an impossible size.
        CheckpointError: the file cannot be written.
    """
    queries = [query] if isinstance(query, SheetQuery) else list(query)
    path = Path(path)
    _check(queries, neighbours, path, columns, tile)
    columns = min(columns, len(neighbours))
    left = [_query_tile(each, tile + tile // 2) for each in queries]
    grid = _grid([_neighbour_tile(each, tile, root) for each in neighbours], columns)
    head = _TEXT + 2 * _GAP if title else 0
    side = _grid(left, 1)
    width = 2 * _MARGIN + side.width + 2 * _GAP + grid.width
    sheet = Image.new("RGB", (width, 2 * _MARGIN + head + max(side.height, grid.height)), _PAPER)
    if title:
        text = _shortened(printable(title), _font(_TEXT + 2), width - 2 * _MARGIN)
        ImageDraw.Draw(sheet).text((_MARGIN, _MARGIN), text, _INK, _font(_TEXT + 2))
    sheet.paste(side, (_MARGIN, _MARGIN + head))
    sheet.paste(grid, (_MARGIN + side.width + 2 * _GAP, _MARGIN + head))
    with disk_errors(path.parent), replacing_file(path) as scratch:
        sheet.save(scratch, format=FORMATS[path.suffix.lower()])


def _check(
    queries: Sequence[SheetQuery], neighbours: Sequence[Neighbour], path: Path, columns: int, tile: int
) -> None:
    if not queries or not neighbours:
        raise ConfigError(
            f"A contact sheet needs a query and a neighbour, got {len(queries)} and {len(neighbours)}; "
            "give a model with a visual cache something to look up."
        )
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path} has no known suffix; expected one of {', '.join(FORMATS)}.")
    if columns < 1 or not 48 <= tile <= 1024:
        raise ConfigError(f"columns must be at least 1 and tile 48 to 1024, got {columns} and {tile}.")


def _query_tile(query: SheetQuery, side: int) -> Image.Image:
    inside = str(query.source) if query.sense == "text" else query.words
    tile = _tile(picture_of(query.sense, query.source, size=side), inside, side, 2 * (_TEXT + 4))
    draw = ImageDraw.Draw(tile)
    draw.text((0, side + 4), _shortened(printable(query.words), _font(_TEXT), side), _INK, _font(_TEXT))
    draw.text((0, side + _TEXT + 8), f"asked about ({query.sense})", _GREY, _font(_SMALL))
    return tile


def _neighbour_tile(neighbour: Neighbour, side: int, root: str | os.PathLike[str] | None) -> Image.Image:
    caption = printable(neighbour.caption or Path(neighbour.source or "").stem or "no caption")
    below = 8 + _SMALL + 6 + _LINES * (_TEXT + 2)
    tile = _tile(_stored_picture(neighbour.source, side, root), caption, side, below)
    draw = ImageDraw.Draw(tile)
    share = min(1.0, max(0.0, neighbour.weight))
    draw.rectangle((0, side + 2, side - 1, side + 5), fill=_FAINT)
    draw.rectangle((0, side + 2, round(share * (side - 1)), side + 5), fill=_BAR)
    figures = f"sim {neighbour.similarity:.3f}   weight {neighbour.weight:.2f}"
    draw.text((0, side + 8), figures, _GREY, _font(_SMALL))
    _write_lines(draw, _wrapped(caption, _font(_TEXT), side, _LINES), 0, side + 8 + _SMALL + 4)
    return tile


def _stored_picture(source: str | None, side: int, root: str | os.PathLike[str] | None) -> Image.Image | None:
    if not source:
        return None
    file = Path(root or ".") / source  # an absolute source stays itself
    try:
        return picture_of("image", file, size=side) if file.is_file() else None
    except (OSError, ValueError):  # no path at all: too long, or with a zero byte
        return None


def _tile(picture: Image.Image | None, words: str, side: int, below: int) -> Image.Image:
    """A square with a picture in its middle, or words, and room for text below it."""
    tile = Image.new("RGB", (side, side + below), _PAPER)
    draw = ImageDraw.Draw(tile)
    if picture is None:
        draw.rectangle((0, 0, side - 1, side - 1), fill=_FAINT)
        lines = _wrapped(printable(words), _font(_TEXT), side - 2 * _GAP, max(1, (side - 2 * _GAP) // (_TEXT + 2)))
        _write_lines(draw, lines, _GAP, (side - len(lines) * (_TEXT + 2)) // 2)
    else:
        tile.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        draw.rectangle((0, 0, side - 1, side - 1), outline=_FAINT)
    return tile


def _grid(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    width, height = max(tile.width for tile in tiles) + _GAP, max(tile.height for tile in tiles) + _GAP
    rows = -(-len(tiles) // columns)
    grid = Image.new("RGB", (columns * width - _GAP, rows * height - _GAP), _PAPER)
    for number, tile in enumerate(tiles):
        grid.paste(tile, (number % columns * width, number // columns * height))
    return grid


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _write_lines(draw: ImageDraw.ImageDraw, lines: Sequence[str], x: int, y: int) -> None:
    for number, line in enumerate(lines):
        draw.text((x, y + number * (_TEXT + 2)), line, _INK, _font(_TEXT))


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, most: int) -> list[str]:
    """Lines no wider than that; what does not fit in the last one is cut off."""
    lines: list[str] = []
    words = text[:1000].split()  # drawing is measured word by word: a book need not be
    while words:
        count = 1
        while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        if len(lines) == most - 1:
            count = len(words)
        lines.append(_shortened(" ".join(words[:count]), font, width))
        words = words[count:]
    return lines


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """The text, or as much of its beginning as fits, and three dots."""
    text = text[:1000]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
