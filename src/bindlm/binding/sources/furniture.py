"""820 pieces of furniture with an icon, a cloud of coloured points, depth pictures and names in 20 languages."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from bindlm.binding.sources.notes import licence_note
from bindlm.binding.sources.picture_files import check_visible, png_of
from bindlm.binding.sources.render import View, render_depth
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
from bindlm.binding.sources.splits import split_of
from bindlm.binding.sources.surface import Surface, read_surface
from bindlm.checkpoints.debian import fetch_debian_package
from bindlm.checkpoints.notice import say
from bindlm.checkpoints.state import write_text_atomic
from bindlm.errors import MediaError
from bindlm.training.mini.catalogue import FURNITURE_FOLDER, RIGHTS, Entry, libraries, read_catalogue

NUM_POINTS = 4096
NUM_VIEWS = 6
DEPTH_PIXELS = 128
DEPTH_PAIRS, OBJECTS = "pairs-depth.jsonl", "objects.jsonl"
_URLS = {
    "CC0 1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC BY 3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC BY 3.0 US": "https://creativecommons.org/licenses/by/3.0/us/",
}


def furniture_folder(root: Path) -> Path:
    """The folder of the libraries, fetched unless it is there.

    Raises:
        CheckpointError: the package is not to be had.
    """
    tree = fetch_debian_package("sweethome3d-furniture", root, sha256=FURNITURE.packages[0].sha256)
    return tree / FURNITURE_FOLDER


def furniture_entries(folder: Path) -> Iterator[tuple[Entry, zipfile.ZipFile]]:
    """Every entry of every library in `folder`, and its open archive."""
    for name, library in libraries(folder):
        for entry in read_catalogue(library, name):
            yield entry, library


def entry_surface(entry: Entry, library: zipfile.ZipFile) -> Surface:
    """The model of one entry: upright with y up, front towards z, in metres, standing on the floor.

    Raises:
        MediaError: it cannot be read.
    """
    folder = PurePosixPath(entry.model).parent

    def read(name: str) -> bytes:
        return library.read(str(folder / name))

    try:
        data = library.read(entry.model)
    except (KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise MediaError(f"Cannot read {entry.id}: its archive holds no whole {entry.model}.") from error
    return read_surface(data, read, name=entry.id).turned(entry.rotation).fitted(entry.size)


def views_of(id: str) -> list[View]:
    """Six views all around, each from somewhat above, drawn by the id alone."""
    random = np.random.default_rng(zlib.crc32(id.encode()))
    azimuths = (
        random.uniform(0, 360) + np.arange(NUM_VIEWS) * 360 / NUM_VIEWS + random.uniform(-15, 15, NUM_VIEWS)
    ) % 360
    elevations = random.uniform(15, 35, NUM_VIEWS)
    return [
        View(round(azimuth, 1), round(elevation, 1), size=DEPTH_PIXELS)
        for azimuth, elevation in zip(azimuths.tolist(), elevations.tolist(), strict=True)
    ]


def fetch_furniture(folder: Path, root: Path) -> Summary:
    """Write icons, clouds, depth pictures, tables and the note of licences into `folder`.

    Args:
        folder: made where absent; files of an earlier run stay.
        root: folder that keeps unpacked packages.

    Raises:
        CheckpointError: the package cannot be had, or the disk is full.
    """
    rows: list[dict[str, Any]] = []
    depth_rows: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    skipped = []
    for number, (entry, library) in enumerate(furniture_entries(furniture_folder(root)), start=1):
        try:
            views = _write_entry(entry, library, folder)
        except MediaError as error:
            skipped.append(Skipped(entry.id, str(error)))
            continue
        shared = {
            "image": f"images/{entry.id}.png",
            "label": entry.name,
            "object": entry.id,
            "split": split_of(entry.name),
        }
        rows.append({"point": f"points/{entry.id}.npy", **shared})
        depth_rows += [
            {"depth": file, **shared, "azimuth": view.azimuth, "elevation": view.elevation} for file, view in views
        ]
        objects.append(_described(entry))
        if number % 100 == 0:
            say(f"{number} pieces of furniture are done")
    write_table(folder / PAIRS, rows)
    write_table(folder / DEPTH_PAIRS, depth_rows)
    write_table(folder / OBJECTS, objects)
    write_text_atomic(folder / LICENCE_NOTE, _note(objects))
    counts = {"objects": len(rows), "images": len(rows), "points": len(rows), "depth": len(depth_rows)}
    return Summary("furniture", folder, counts, (PAIRS, DEPTH_PAIRS, OBJECTS), tuple(skipped))


def _write_entry(entry: Entry, library: zipfile.ZipFile, folder: Path) -> list[tuple[str, View]]:
    """The files of one object, but those that are there; returns its depth pictures and their views."""
    if not entry.name:
        raise MediaError(f"Cannot use {entry.id}: it has no name.")
    icon, cloud = folder / "images" / f"{entry.id}.png", folder / "points" / f"{entry.id}.npy"
    views = [(f"depth/{entry.id}-{number}.png", view) for number, view in enumerate(views_of(entry.id))]
    missing = [(file, view) for file, view in views if not is_there(folder / file)]
    if missing or not is_there(cloud):
        surface = entry_surface(entry, library)
        if not is_there(cloud):
            content = io.BytesIO()
            np.save(content, surface.sample(NUM_POINTS, zlib.crc32(entry.id.encode())).astype(np.float16))
            write_bytes(cloud, content.getvalue())
        for file, view in missing:
            write_bytes(folder / file, depth_png(render_depth(surface, view)))
    if not is_there(icon):
        write_bytes(icon, _icon(entry, library))
    return views


def _icon(entry: Entry, library: zipfile.ZipFile) -> bytes:
    named = f"{entry.id}'s icon {entry.icon!r}"
    try:
        data = library.read(entry.icon)
    except Exception as error:  # a broken archive raises whatever it likes
        raise MediaError(f"Cannot use {named}: it cannot be read.") from error
    check_visible(data, named)
    return data


def depth_png(depth: np.ndarray) -> bytes:
    """A depth picture in metres `(H, W)` as PNG of 16 bits in millimetres, 0 where there is nothing.

    Raises:
        MediaError: it reaches beyond 65.535 m.
    """
    if depth.max() > 65.535:
        raise MediaError(f"Cannot keep depth up to {depth.max():.1f} m in 16 bits of millimetres.")
    return png_of(Image.fromarray((depth * 1000 + 0.5).astype(np.uint16)))


def _described(entry: Entry) -> dict[str, Any]:
    return {
        "object": entry.id,
        "name": entry.name,
        "names": dict(entry.names),
        "category": entry.category,
        "size": list(entry.size),
        "creator": entry.creator,
        "licence": entry.licence,
        "library": entry.library,
    }


def _note(objects: list[dict[str, Any]]) -> str:
    """Each library, its licence and the people who made its models."""
    creators: dict[str, set[str]] = {}
    licences = {}
    for each in objects:
        library = each["library"]
        licences[library] = each["licence"]
        named = [RIGHTS[library]] if library in RIGHTS else re.split(r" & |, ", each["creator"])
        creators.setdefault(library, set()).update(name for name in named if name)
    parts = [
        {"what": library, "licence": licence, "url": _URLS.get(licence, ""), "creators": creators[library]}
        for library, licence in licences.items()
    ]
    return licence_note(
        "Furniture",
        "Models and icons of Sweet Home 3D, from Debian's package `sweethome3d-furniture`. Points were drawn from the "
        "models' surfaces and depth pictures rendered from them: both are adaptations under the same licences.",
        parts,
    )


FURNITURE = Source(
    title="820 pieces of furniture and household: icon, 3-D points, depth, names in 20 languages (Sweet Home 3D)",
    packages=(
        Package(
            "apt",
            "sweethome3d-furniture",
            {
                "sweethome3d-furniture_1.8-1_all.deb": (
                    "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668"
                )
            },
        ),
    ),
    licence="CC0 1.0 (175 objects), CC BY 3.0 (530), CC BY 3.0 US (115): name the creators, listed in LICENCE.md",
    gives="images/, points/ (4096 x 6 float16: metres, y up, colour), depth/ (6 views, 16-bit PNG in millimetres); "
    "pairs.jsonl (point, image), pairs-depth.jsonl (depth, image), objects.jsonl (names, sizes, creators)",
    counts={"objects": 820, "images": 820, "points": 820, "depth": 4920},
    fetch=fetch_furniture,
)
