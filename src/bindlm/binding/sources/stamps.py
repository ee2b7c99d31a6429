"""Tux Paint's stamps: pictures, captions in 78 languages and sounds, under the GPL: for tests and your own models."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bindlm.binding.sources.notes import licence_note
from bindlm.binding.sources.picture_files import check_visible
from bindlm.binding.sources.source import (
    LICENCE_NOTE,
    PAIRS,
    Package,
    Skipped,
    Source,
    Summary,
    is_there,
    write_bytes,
    write_table,
)
from bindlm.checkpoints.debian import fetch_debian_package
from bindlm.checkpoints.state import write_text_atomic
from bindlm.errors import MediaError

AUDIO_PAIRS, NAMES = "pairs-audio.jsonl", "names.json"
_FOLDER = "usr/share/tuxpaint/stamps"
_SVG_PIXELS = 300
_SVG_SECONDS = 60
_SYMBOLS = "symbols"
"""Letters, digits, coins: no things, and most of their sounds are spoken."""
_ARTICLE = re.compile(r"(an?|the|some)\s+(?=\S)", re.IGNORECASE)


@dataclass(frozen=True)
class Stamp:
    """One stamp: files of one name and different suffixes."""

    id: str
    """Path in the package without suffix, `/` made `-`: "animals-mammals-bovines-sheep"."""
    group: str
    """First folder: animals, food, town ..."""
    caption: str
    """In English: "A sheep."."""
    captions: dict[str, str]
    """By language code, `pt_BR`, `ca@valencia`; English left out, and what only repeats it."""
    options: dict[str, str]
    """Of Tux Paint: noflip, nomirror, colorable, tintable, and `tinter`, `scale` with a value."""
    picture: Path
    """PNG, or SVG where there is no PNG."""
    sound: Path | None
    """An effect for the thing, seldom a joke; never the spoken caption."""

    @property
    def name(self) -> str:
        """ "A sheep." -> "sheep"."""
        text = re.sub(r"\s*\(.*?\)", "", self.caption).strip().rstrip(".!? ")
        text = _ARTICLE.sub("", text, count=1) if _ARTICLE.match(text) else text
        second_is_lower = text[1:2].islower() or len(text) == 1
        return text[:1].lower() + text[1:] if second_is_lower else text


def read_captions(data: bytes) -> tuple[str, dict[str, str]]:
    """The English caption and those of other languages: first line English, then lines `language.utf8=caption`."""
    lines = [line.strip() for line in data.decode("utf-8-sig", errors="replace").splitlines()]
    english = lines[0] if lines else ""
    matches = (re.fullmatch(r"([\w@]+)\.utf8=\s*(.+)", line) for line in lines[1:])
    return english, {match[1]: match[2] for match in matches if match and match[2] != english}


def read_options(data: bytes) -> dict[str, str]:
    """`noflip`, `scale 50%`, `tinter=vector`: a word and its value, "" where there is none."""
    lines = [line.strip() for line in data.decode("utf-8", errors="replace").splitlines()]
    pairs = [re.split(r"\s*[=\s]\s*", line, maxsplit=1) for line in lines if line and not line.startswith("#")]
    return {pair[0].lower(): pair[1] if len(pair) > 1 else "" for pair in pairs}


def read_stamps(folder: Path) -> Iterator[Stamp]:
    """Every stamp with an English caption outside `symbols`, in the order of their paths."""
    for text in sorted(folder.rglob("*.txt")):
        place = text.relative_to(folder).with_suffix("")
        picture = next((each for suffix in (".png", ".svg") if (each := text.with_suffix(suffix)).is_file()), None)
        caption, captions = read_captions(text.read_bytes())
        if place.parts[0] == _SYMBOLS or picture is None or not caption:
            continue
        options, sound = text.with_suffix(".dat"), text.with_suffix(".ogg")
        yield Stamp(
            id="-".join(place.parts),
            group=place.parts[0],
            caption=caption,
            captions=captions,
            options=read_options(options.read_bytes()) if options.is_file() else {},
            picture=picture,
            sound=sound if sound.is_file() else None,
        )


def fetch_stamps(folder: Path, root: Path) -> Summary:
    """Write pictures, sounds, tables (all rows `test`), captions and the note of the licence into `folder`.

    Args:
        folder: made where absent; files of an earlier run stay.
        root: folder that keeps unpacked packages.

    Raises:
        CheckpointError: the package cannot be had, or the disk is full.
    """
    package = STAMPS.packages[0]
    stamps, skipped = [], []
    for stamp in read_stamps(fetch_debian_package(package.name, root, sha256=package.sha256) / _FOLDER):
        try:
            if not is_there(file := folder / _image_of(stamp)):
                write_bytes(file, picture_png(stamp.picture))
            if stamp.sound is not None and not is_there(file := folder / _sound_of(stamp)):
                write_bytes(file, stamp.sound.read_bytes())
            stamps.append(stamp)
        except MediaError as error:
            skipped.append(Skipped(stamp.id, str(error)))
    with_sound = [stamp for stamp in stamps if stamp.sound is not None]
    write_table(
        folder / PAIRS, [{"image": _image_of(stamp), "text": stamp.caption, **_row(stamp)} for stamp in stamps]
    )
    # Without the caption as `text`: the picture is then the only column to bind to.
    audio_rows = [{"audio": _sound_of(stamp), "image": _image_of(stamp), **_row(stamp)} for stamp in with_sound]
    write_table(folder / AUDIO_PAIRS, audio_rows)
    languages: dict[str, dict[str, str]] = {}
    for stamp in stamps:
        for code, caption in stamp.captions.items():
            languages.setdefault(code, {})[stamp.id] = caption
    write_text_atomic(folder / NAMES, json.dumps(dict(sorted(languages.items())), ensure_ascii=False, indent=0) + "\n")
    write_text_atomic(folder / LICENCE_NOTE, _NOTE)
    counts = {"objects": len(stamps), "images": len(stamps), "sounds": len(with_sound), "languages": len(languages)}
    return Summary("stamps", folder, counts, (PAIRS, AUDIO_PAIRS, NAMES), tuple(skipped))


def _image_of(stamp: Stamp) -> str:
    return f"images/{stamp.id}.png"


def _sound_of(stamp: Stamp) -> str:
    return f"sounds/{stamp.id}.ogg"


def _row(stamp: Stamp) -> dict[str, Any]:
    return {
        "label": stamp.name,
        "object": stamp.id,
        "split": "test",
        "group": stamp.group,
        "options": stamp.options,
        "licence": "GPL-2",
    }


def picture_png(file: Path) -> bytes:
    """The picture of a stamp as PNG with alpha; SVG is drawn with `resvg` or `rsvg-convert`.

    Raises:
        MediaError: it is broken, empty, or SVG and neither program is there.
    """
    data = _drawn(file) if file.suffix == ".svg" else file.read_bytes()
    check_visible(data, file.name)
    return data


def _drawn(file: Path) -> bytes:
    if program := shutil.which("resvg"):
        command = [program, "--width", str(_SVG_PIXELS), str(file), "-c"]
    elif program := shutil.which("rsvg-convert"):
        command = [program, "--width", str(_SVG_PIXELS), "--keep-aspect-ratio", str(file)]
    else:
        raise MediaError(
            f"Cannot draw {file.name}: SVG needs the program `resvg` (pip install resvg-cli) or `rsvg-convert` "
            "(Debian's librsvg2-bin); install one and fetch again."
        )
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SVG_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MediaError(f"Cannot draw {file.name}: {program} did not come to an end.") from error
    if done.returncode != 0 or not done.stdout:
        raise MediaError(f"Cannot draw {file.name}: {program} does not read it.")
    return done.stdout


_NOTE = licence_note(
    "Tux Paint's stamps",
    "Pictures, captions and sounds of Tux Paint, from Debian's package `tuxpaint-stamps-default`. They are free to "
    "use for tests and for models that you train yourself; weights that bindlm ships never learn from them, and what "
    "you give away of them, or made from them, is under the GPL.",
    [
        {
            "what": "all files",
            "licence": "GPL-2",
            "url": "https://www.gnu.org/licenses/old-licenses/gpl-2.0.html",
            "creators": ["Bill Kendrick and the contributors of Tux Paint"],
        }
    ],
)

STAMPS = Source(
    title="701 pictures of animals, food and things, captions in 78 languages, 106 sounds (Tux Paint; for tests)",
    packages=(
        Package(
            "apt",
            "tuxpaint-stamps-default",
            {
                "tuxpaint-stamps-default_2022.06.04-1_all.deb": (
                    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"
                )
            },
        ),
    ),
    licence="GPL-2: for tests and your own models; weights that learned from it may not ship under Apache-2.0",
    gives="images/ (PNG with alpha), sounds/ (ogg); pairs.jsonl (image, text), pairs-audio.jsonl (audio, image), all "
    "rows `test`; names.json (language -> object -> caption)",
    counts={"objects": 701, "images": 701, "sounds": 106, "languages": 77},
    fetch=fetch_stamps,
    may_ship=False,
)
