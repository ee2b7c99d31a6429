"""Sweet Home 3D libraries of furniture (`.sh3f`): a zip with a catalogue, icons and models."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

FURNITURE_FOLDER = "usr/share/sweethome3d/furniture"
"""Of the libraries in Debian's package."""
_CATALOGUE = "PluginFurnitureCatalog"
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|(.))", re.DOTALL)
_KEY = re.compile(r"((?:\\.|[^\\=:\s])*)\s*[=:]?\s*(.*)", re.DOTALL)
LICENCES = {
    "BlendSwap-CC-0": "CC0 1.0",
    "BlendSwap-CC-BY": "CC BY 3.0",
    "KatorLegaz": "CC BY 3.0 US",
    "Reallusion": "CC BY 3.0 US",
    "Scopia": "CC BY 3.0",
}
"""Of each library of Debian's `sweethome3d-furniture`, as its catalogue and its LICENSE.TXT say."""

RIGHTS = {
    "KatorLegaz": "Andrew Kator & Jennifer Legaz",
    "Reallusion": "Reallusion",
    "Scopia": "Emmanuel Puybaret / eTeks and Scopia Visual Interfaces Systems, s.l.",
}
"""Whom a library's LICENSE.TXT asks to name, where that is the same for all of its models."""


def read_properties(data: bytes) -> dict[str, str]:
    r"""A Java properties file: latin-1, `\uXXXX` for the rest, `\` at the end of a line that goes on in the next.

    Later lines win over earlier ones with the same key.
    """
    entries: dict[str, str] = {}
    lines = iter(re.split(r"\r\n|\r|\n", data.decode("latin-1")))
    for line in lines:
        line = line.lstrip(" \t\f")
        if not line or line[0] in "#!":
            continue
        while _goes_on(line):
            line = line[:-1] + next(lines, "").lstrip(" \t\f")
        match = _KEY.fullmatch(line)
        assert match is not None  # the pattern takes any text
        entries[_unescaped(match[1])] = _unescaped(match[2])
    return entries


def _goes_on(line: str) -> bool:
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _unescaped(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        return chr(int(match[1], 16)) if match[1] else _ESCAPES.get(match[2], match[2])

    plain = _ESCAPE.sub(replace, text)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # two escapes may make one character


def clean_name(raw: str) -> str:
    """ "Small office chair 2" -> "small office chair"; all-capital brand words are left alone."""
    name = re.sub(r"\s*\(.*?\)|\s+\d+$", "", raw).strip()
    return name[:1].lower() + name[1:]


@dataclass(frozen=True)
class Entry:
    """One piece of furniture of one library."""

    id: str
    """Library and number, "Scopia-12"."""
    library: str
    name: str
    """In English, cleaned."""
    names: Mapping[str, str]
    """By language code (`fr`, `zh_CN`), as written there; only where it differs from the English one."""
    category: str
    creator: str
    licence: str
    icon: str
    """Path in the archive."""
    model: str
    """Path in the archive."""
    rotation: np.ndarray
    """`(3, 3)`, turns the model upright: its y axis then points up, and its front looks along z."""
    size: tuple[float, float, float]
    """Width (x), height (y) and depth (z) in metres."""


def read_catalogue(library: zipfile.ZipFile, name: str) -> Iterator[Entry]:
    """Entries of one library in the order of its catalogue.

    Args:
        library: the open archive.
        name: the library's, its file name without suffix.

    Raises:
        KeyError: the archive has no catalogue.
    """
    english = read_properties(library.read(f"{_CATALOGUE}.properties"))
    translations = {
        PurePosixPath(file).stem.removeprefix(f"{_CATALOGUE}_"): read_properties(library.read(file))
        for file in sorted(library.namelist())
        if re.fullmatch(rf"{_CATALOGUE}_\w+\.properties", file)
    }
    for key in english:
        if key.startswith("icon#"):
            yield _entry(english, translations, key.removeprefix("icon#"), name)


def _entry(
    english: Mapping[str, str], translations: Mapping[str, Mapping[str, str]], number: str, library: str
) -> Entry:
    def value(key: str, default: str = "") -> str:
        return english.get(f"{key}#{number}", default).strip()

    raw = value("name")
    names = {code: table.get(f"name#{number}", "").strip() for code, table in translations.items()}
    centimetres = [float(value(side, "100")) for side in ("width", "height", "depth")]
    rotation = [float(number) for number in value("modelRotation", "1 0 0 0 1 0 0 0 1").split()]
    return Entry(
        id=f"{library}-{number}",
        library=library,
        name=clean_name(raw),
        names={code: name for code, name in names.items() if name and name != raw},
        category=value("category"),
        creator=value("creator"),
        licence=LICENCES.get(library, "as stated in its library"),
        icon=value("icon").lstrip("/"),
        model=value("model").lstrip("/"),
        rotation=np.array(rotation).reshape(3, 3),
        size=(centimetres[0] / 100, centimetres[1] / 100, centimetres[2] / 100),
    )


def libraries(folder: Path) -> Iterator[tuple[str, zipfile.ZipFile]]:
    """The libraries in a folder, by name, each open while it is looked at."""
    for file in sorted(folder.glob("*.sh3f")):
        with zipfile.ZipFile(file) as library:
            yield file.stem, library
