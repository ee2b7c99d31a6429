"""Emoji of things, animals, food and places: pictures, and their names in 136 languages and varieties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bindlm.binding.sources.notes import licence_note
from bindlm.binding.sources.picture_files import write_png
from bindlm.binding.sources.source import (
    LICENCE_NOTE,
    PAIRS,
    Package,
    Source,
    Summary,
    is_there,
    write_table,
)
from bindlm.binding.sources.splits import split_of
from bindlm.checkpoints.debian import fetch_debian_package
from bindlm.checkpoints.state import write_text_atomic
from bindlm.errors import CheckpointError
from bindlm.training.mini.pictures import NamedPicture, load_emoji

NAMES = "names.json"
_ANNOTATIONS = "usr/share/unicode/cldr/common/annotations"
_INHERITED = "↑↑↑"
"""What CLDR writes in place of a name that is the parent language's."""
_PRESENTATION = "\ufe0f"


def read_names(folder: Path) -> dict[str, dict[str, str]]:
    """Short names of characters in every language of CLDR's annotations.

    Args:
        folder: with a file for each language, `de.xml`, `zh_Hant.xml`.

    Returns:
        Language -> character (without U+FE0F) -> name. Regional varieties hold only what they say differently.

    Raises:
        CheckpointError: a file is no XML.

    Source:
        Unicode Technical Standard 35, part 7: annotations of type "tts".
    """
    names: dict[str, dict[str, str]] = {}
    for file in sorted(folder.glob("*.xml")):
        try:
            tree = ElementTree.parse(file)  # expat expands no external entity, and bounds internal ones
        except ElementTree.ParseError as error:
            raise CheckpointError(f"{file} is no XML ({error}); get the package unicode-cldr-core again") from error
        found = {
            each.get("cp", "").replace(_PRESENTATION, ""): (each.text or "").strip()
            for each in tree.iterfind(".//annotation[@type='tts']")
        }
        if found := {point: name for point, name in found.items() if point and name and name != _INHERITED}:
            names[file.stem] = found
    return names


def fetch_emoji(folder: Path, root: Path) -> Summary:
    """Write pictures, the table of pairs, names by language and the note of licences into `folder`.

    Args:
        folder: made where absent; files of an earlier run stay.
        root: folder that keeps unpacked packages.

    Raises:
        CheckpointError: a package cannot be had, or the disk is full.
    """
    trees = {each.name: fetch_debian_package(each.name, root, sha256=each.sha256) for each in EMOJI.packages}
    pictures = list(load_emoji(root))
    for each in pictures:
        if not is_there(file := folder / _file_of(each)):
            write_png(file, each.picture)
    write_table(folder / PAIRS, [_row(each) for each in pictures])
    languages = _names_of(pictures, read_names(trees["unicode-cldr-core"] / _ANNOTATIONS))
    write_text_atomic(folder / NAMES, json.dumps(languages, ensure_ascii=False, indent=0) + "\n")
    write_text_atomic(folder / LICENCE_NOTE, _NOTE)
    num_names = sum(len(names) for names in languages.values())
    counts = {"objects": len(pictures), "images": len(pictures), "languages": len(languages), "names": num_names}
    return Summary("emoji", folder, counts, (PAIRS, NAMES))


def _file_of(picture: NamedPicture) -> str:
    return f"images/{picture.id}.png"


def _row(picture: NamedPicture) -> dict[str, Any]:
    return {
        "image": _file_of(picture),
        "text": picture.name,
        "label": picture.name,
        "object": picture.id,
        "split": split_of(picture.name),
    }


def _names_of(pictures: list[NamedPicture], names: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Language -> id of a picture -> name, for those that a language names."""
    point_of = {each.id: chr(int(each.id.removeprefix("emoji-"), 16)) for each in pictures}
    by_id = {
        language: {id: each[point] for id, point in point_of.items() if point in each}
        for language, each in names.items()
    }
    return {language: each for language, each in by_id.items() if each}


_NOTE = licence_note(
    "Emoji",
    "Pictures rendered from Noto Color Emoji at its own size, and short names from Unicode's CLDR.",
    [
        {
            "what": "pictures: Noto Color Emoji, from Debian's package `fonts-noto-color-emoji`",
            "licence": "SIL Open Font License 1.1",
            "url": "https://openfontlicense.org/",
            "creators": ["Google", "Arjen Nienhuis"],
        },
        {
            "what": "names: Unicode's emoji-test.txt and CLDR, from Debian's packages `unicode-data` and "
            "`unicode-cldr-core`",
            "licence": "Unicode licence (Unicode-DFS-2016)",
            "url": "https://www.unicode.org/license.txt",
            "creators": ["Unicode, Inc."],
        },
    ],
)

EMOJI = Source(
    title="763 emoji of things, animals, food and places, named in 136 languages and varieties (Noto, CLDR)",
    packages=(
        Package(
            "apt",
            "fonts-noto-color-emoji",
            {
                "fonts-noto-color-emoji_2.042-0+deb12u1_all.deb": (
                    "a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751"
                )
            },
        ),
        Package(
            "apt",
            "unicode-data",
            {"unicode-data_15.0.0-1_all.deb": "5efef23bbb1c6a133ecbdd63a2cfa07159ccacf5466a49e2426101c5ecd691fc"},
        ),
        Package(
            "apt",
            "unicode-cldr-core",
            {"unicode-cldr-core_41-0.1_all.deb": "35d30d5d3bee4d8244e95236259c4c2a0db06e21bad696515751fcfeee4d0260"},
        ),
    ),
    licence="SIL Open Font License 1.1 (pictures), Unicode-DFS-2016 (names)",
    gives="images/ (PNG with alpha); pairs.jsonl (image, text in English), names.json (language -> object -> name)",
    counts={"objects": 763, "images": 763, "languages": 136, "names": 82744},
    fetch=fetch_emoji,
)
