"""The mini's own pictures: emoji and furniture icons, with their names, pasted on random backgrounds.

All of it is permissively licensed (Noto Color Emoji: OFL-1.1; names: Unicode licence; Sweet Home 3D furniture: CC0
and CC-BY, creators named in THIRD_PARTY.md), so weights trained on it may ship. None of it is a photograph:
photographs are kept for testing.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from bindlm.checkpoints.debian import fetch_debian_package
from bindlm.training.mini.catalogue import FURNITURE_FOLDER, libraries, read_catalogue

_EMOJI_PIXELS = 109
"""The only size at which Noto Color Emoji holds its bitmaps."""
_EMOJI_GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
_EMOJI_DULL_WORDS = re.compile(
    r"\b(face|o’clock|thirty|button|symbol|arrow|sign|zodiac|medal|card|cyclone|star|night|moon face|sun with|skin|"
    r"person|wheel|dizzy|sparkle|chart|clipboard|pushpin|paperclip|folder|bookmark|mark|notes?|mobile|tray|envelope)\b"
)


@dataclass(frozen=True)
class NamedPicture:
    """A picture with alpha and the plain name of what it shows."""

    id: str
    name: str
    source: str
    """"emoji" or "furniture"."""
    picture: Image.Image


def load_emoji(root: Path) -> Iterator[NamedPicture]:
    """Emoji of things, animals, food and places: about 700 single code points."""
    font_file = (
        fetch_debian_package("fonts-noto-color-emoji", root) / "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    )
    table = fetch_debian_package("unicode-data", root) / "usr/share/unicode/emoji/emoji-test.txt"
    font = ImageFont.truetype(str(font_file), _EMOJI_PIXELS)
    group = ""
    for line in table.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group:"):
            group = line.removeprefix("# group:").strip()
        match = re.match(r"([0-9A-F ]+?)\s*; fully-qualified\s*# (\S+) E[\d.]+ (.+)", line)
        if match is None or group not in _EMOJI_GROUPS:
            continue
        points = [int(point, 16) for point in match[1].split() if point != "FE0F"]
        name = match[3].strip()
        if len(points) != 1 or _EMOJI_DULL_WORDS.search(name):
            continue
        canvas = Image.new("RGBA", (136, 128), (0, 0, 0, 0))
        ImageDraw.Draw(canvas).text((0, 0), chr(points[0]), font=font, embedded_color=True)
        box = canvas.getbbox()
        if box is not None:
            yield NamedPicture(f"emoji-{points[0]:x}", name, "emoji", canvas.crop(box))


def load_furniture(root: Path) -> Iterator[NamedPicture]:
    """Icons of the 820 Sweet Home 3D models, each with its English name."""
    for name, library in libraries(fetch_debian_package("sweethome3d-furniture", root) / FURNITURE_FOLDER):
        for entry in read_catalogue(library, name):
            picture = Image.open(io.BytesIO(library.read(entry.icon))).convert("RGBA")
            box = picture.getbbox()
            if entry.name and box is not None:
                yield NamedPicture(entry.id, entry.name, "furniture", picture.crop(box))


def random_background(random: np.random.Generator, side: int) -> Image.Image:
    """Blurred noise, a gradient or a flat colour: none says anything about the object."""
    kind = random.integers(4)
    if kind == 0:
        return Image.new("RGB", (side, side), (255, 255, 255))
    if kind == 1:
        return Image.new("RGB", (side, side), tuple(random.integers(0, 256, 3).tolist()))
    cells = int(random.integers(2, 5 if kind == 2 else 24))
    grid = random.integers(0, 256, (cells, cells, 3)).astype(np.uint8)
    noise = Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC)
    return noise.filter(ImageFilter.GaussianBlur(float(random.uniform(0, 4))))


def paste_on_background(item: NamedPicture, random: np.random.Generator, side: int) -> Image.Image:
    """One training view: random size, place, mirror and background.

    Returns:
        RGB picture of `side` by `side` pixels.
    """
    picture = item.picture
    scale = random.uniform(0.55, 0.98) * side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    if random.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    background = random_background(random, side)
    left = int(random.integers(0, side - size[0] + 1))
    top = int(random.integers(0, side - size[1] + 1))
    background.paste(picture, (left, top), picture)
    return background
