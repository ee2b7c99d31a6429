"""bindlm cache build PHOTOS -o cache; bindlm cache explain cache --audio rain.wav --image-sheet rain.png"""

import re
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindlm.cli import EXIT_INTERRUPTED, EXIT_WEIGHTS, cache_explain, cache_sources
from bindlm.cli.options import non_negative_float, positive_int
from bindlm.cli.output import print_json, printable, say
from bindlm.errors import ConfigError

if TYPE_CHECKING:
    from bindlm.caching import Budget
    from bindlm.space.cache_format import CacheRecord, CacheSettings

    Written = tuple[CacheRecord, Sequence[str]]
    """What a cache is now, and what is to be said of its source."""

BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
         "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def add_arguments(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    for name, (summary, add, _) in ACTIONS.items():
        add(actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."))


def run(options: Namespace) -> int:
    """Build, change, check or ask a cache."""
    code: int = ACTIONS[options.action][2](options)
    return code


# --- build ---


def add_build(parser: ArgumentParser) -> None:
    cache_sources.add_source(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="CACHE", help="folder of the cache")
    cache_sources.add_encoder(parser)
    add_budget(parser)
    add_settings(parser)
    parser.add_argument("--notice", metavar="WORDS", help="what users must be told, such as a licence of the pictures")
    parser.add_argument(
        "--replace", action="store_true", help="let a cache that is there make way, once the new one is whole"
    )
    add_run(parser)


def run_build(options: Namespace) -> int:
    """Make a cache, or go on with one that was stopped."""
    from bindlm.caching import build_cache, check_out

    settings, budget = settings_of(options), budget_of(options)
    check_out(options.output, options.replace)

    def write() -> "Written":
        opened = cache_sources.open_given(options, options.output)
        record = build_cache(
            opened.source,
            options.output,
            fingerprint=opened.fingerprint,
            encoder=options.encoder or opened.encoder,
            budget=budget,
            settings=settings,
            notice=options.notice,
            is_fresh=options.fresh,
            replaces=options.replace,
        )
        return record, opened.source.notes

    return run_writing(write, options.output, options)


# --- add, remove, merge ---


def add_add(parser: ArgumentParser) -> None:
    parser.add_argument("cache", type=Path, metavar="CACHE", help="folder of the cache")
    cache_sources.add_source(parser)
    cache_sources.add_encoder(parser, has_name=False)
    add_budget(parser)
    parser.add_argument(
        "--reindex", action="store_true", help="choose and train the index anew: for caches that grew much"
    )
    add_run(parser)


def run_add(options: Namespace) -> int:
    """Put more pictures into a cache."""
    from bindlm.caching import add_to_cache
    from bindlm.space.cache_format import read_record

    budget = budget_of(options)
    base = read_record(options.cache)

    def write() -> "Written":
        opened = cache_sources.open_given(options, options.cache, base)
        record = add_to_cache(
            opened.source,
            options.cache,
            fingerprint=opened.fingerprint,
            budget=budget,
            reindexes=options.reindex,
            is_fresh=options.fresh,
        )
        return record, opened.source.notes

    return run_writing(write, options.cache, options)


def add_remove(parser: ArgumentParser) -> None:
    parser.add_argument("cache", type=Path, metavar="CACHE", help="folder of the cache")
    parser.add_argument("ids", nargs="*", metavar="ID", help="entries that are to go")
    parser.add_argument(
        "--ids-from", type=Path, metavar="FILE", help="a file with an id a line, or - for standard input"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")


def run_remove(options: Namespace) -> int:
    """Take entries out of a cache."""
    from bindlm.caching import remove_from_cache

    ids = [*options.ids, *(ids_in(options.ids_from) if options.ids_from is not None else ())]
    if not ids:
        raise ConfigError("which entries are to go? name their ids, or a file of them with --ids-from")
    return report(options.cache, remove_from_cache(ids, options.cache), options)


def ids_in(path: Path) -> list[str]:
    """The lines of a file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"--ids-from {path} cannot be read; expected a text file with an id a line") from None
    return [line for line in text.splitlines() if line]


def add_merge(parser: ArgumentParser) -> None:
    parser.add_argument("caches", nargs="+", type=Path, metavar="CACHE", help="caches of one encoder")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="CACHE", help="folder of the new one")
    add_budget(parser)
    add_run(parser)


def run_merge(options: Namespace) -> int:
    """Make one cache of several."""
    from bindlm.caching import merge_caches

    def write() -> "Written":
        return merge_caches(options.caches, options.output, budget=budget_of(options), is_fresh=options.fresh), ()

    return run_writing(write, options.output, options)


# --- verify, inspect ---


def add_verify(parser: ArgumentParser) -> None:
    parser.add_argument("cache", type=Path, metavar="CACHE", help="folder of the cache")
    parser.add_argument(
        "--sample", type=positive_int, default=256, metavar="N", help="entries that are looked up by themselves (256)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run_verify(options: Namespace) -> int:
    """Read all of a cache, and say whether it is what was written."""
    from bindlm.caching import verify_cache

    found = verify_cache(options.cache, sample=options.sample)
    if options.json:
        print_json({"path": str(options.cache), "is_sound": found.is_sound, **vars(found)})
    elif found.is_sound:
        print(f"{printable(str(options.cache))} is sound: {found.files} files, {size(found.bytes)} as written")
        looked_up = f"{found.found} of {found.sampled} sampled find themselves"
        print(f"{found.entries:,} entries, each once in the index; {looked_up}")
    else:
        for problem in found.problems:
            print(f"{printable(str(options.cache))}: {printable(problem)}")
    sys.stdout.flush()
    return 0 if found.is_sound else EXIT_WEIGHTS


def add_inspect(parser: ArgumentParser) -> None:
    parser.add_argument("cache", type=Path, metavar="CACHE", help="folder of the cache")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run_inspect(options: Namespace) -> int:
    """Say what a cache is."""
    from bindlm.caching import describe_cache

    found = describe_cache(options.cache)
    if options.json:
        print_json(found)
    else:
        print_description(found)
    return 0


def print_description(found: dict[str, Any]) -> None:
    """Print what `describe_cache` gives."""
    path = printable(found["path"])
    if "num_entries" in found:
        gone = f" ({found['removed']:,} removed)" if found["removed"] else ""
        print(f"{path}: {found['num_entries']:,} entries{gone} of {found['dim']} numbers")
        print(f"  encoder   {printable(found['encoder'] or 'unnamed')} ({printable(found['fingerprint'])})")
        index, held = found["index"], found["bytes"]
        search = ", ".join(f"{name} {value}" for name, value in index["search"].items())
        print(f"  index     {index['key']}{f', {search}' if search else ''}, {size(held['index'])}")
        print(f"  on disk   values {size(held['values'])}, names {size(held['entries'])}, {found['files']} files")
        settings = found["settings"]
        senses = ", ".join(settings["modalities"]) if settings["modalities"] is not None else "all senses"
        print(f"  draws on  the {settings['top_k']} nearest, alpha {settings['alpha']:g}, {settings['weighting']}")
        print(f"  pulls     {senses}")
        if found["notice"]:
            print(f"  notice    {printable(found['notice'])}")
    if (left := found["unfinished"]) is not None:
        done = f"{left['rows_written']:,} of {left['rows']:,} rows are written"
        print(f"{path}: unfinished {left['action']} of {printable(left['source'])}, {done}; the same command goes on")
    sys.stdout.flush()


# --- what they share ---


def add_budget(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--max-memory", type=num_bytes, metavar="SIZE", help="what the index may take when it is served (3.5GB)"
    )
    parser.add_argument(
        "--max-latency", type=milliseconds, metavar="TIME", help="what one query may take on one thread (3ms)"
    )


def budget_of(options: Namespace) -> "Budget":
    """What the options allow an index."""
    from bindlm.caching import Budget

    given = {"max_memory_bytes": options.max_memory, "max_latency_ms": options.max_latency}
    return Budget(**{name: value for name, value in given.items() if value is not None})


def add_settings(parser: ArgumentParser) -> None:
    parser.add_argument("--top-k", type=positive_int, metavar="K", help="neighbours that count (10)")
    parser.add_argument(
        "--alpha", type=non_negative_float, metavar="A", help="share of what is retrieved, 0 to 1 (0.5)"
    )
    parser.add_argument("--temperature", type=non_negative_float, metavar="T", help="sharpness of the weights (20)")
    parser.add_argument("--weighting", choices=("softmax", "cosine"), help="released form or the paper's (softmax)")
    parser.add_argument(
        "--pulls", nargs="+", metavar="SENSE", help="senses that are pulled, or `all` (every one but image)"
    )


def settings_of(options: Namespace) -> "CacheSettings":
    """How the cache is to be consulted."""
    from bindlm.space.cache import CacheWeighting
    from bindlm.space.cache_format import CacheSettings

    given = {name: getattr(options, name) for name in ("top_k", "alpha", "temperature")}
    if options.weighting is not None:
        given["weighting"] = CacheWeighting(options.weighting)
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if options.pulls is not None:
        chosen["modalities"] = None if options.pulls == ["all"] else tuple(options.pulls)
    return CacheSettings(**chosen)


def add_run(parser: ArgumentParser) -> None:
    parser.add_argument("--fresh", action="store_true", help="begin again, where an unfinished one is there")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")


def run_writing(write: Callable[[], "Written"], folder: Path, options: Namespace) -> int:
    """Write a cache and say what it is now, or how a stopped run goes on; return the exit code."""
    started = time.monotonic()
    try:
        record, notes = write()
    except KeyboardInterrupt:
        say("stopped; the same command goes on from there")
        return EXIT_INTERRUPTED
    for note in notes:
        say(note)
    return report(folder, record, options, time.monotonic() - started)


def report(folder: Path, record: "CacheRecord", options: Namespace, seconds: float | None = None) -> int:
    """Say what the cache is now."""
    from bindlm.caching import describe_cache

    if options.json:
        print_json({**describe_cache(folder), "seconds": None if seconds is None else round(seconds, 1)})
        return 0
    took = "" if seconds is None else f" in {seconds:,.0f} s"
    size_on_disk = size(sum(file.bytes for file in record.files()))
    say(f"{folder}: {record.num_entries:,} entries, index {record.index.key}, {size_on_disk}{took}")
    return 0


def size(num: int) -> str:
    """``92871040`` -> ``"93 MB"``."""
    from bindlm.checkpoints.notice import human_size

    return human_size(num)


def num_bytes(text: str) -> int:
    """``"3.5GB"`` -> ``3500000000``; a number alone counts bytes."""
    number = _with_unit(text, BYTES, "b", "a size such as 3.5GB or 512MiB")
    if number < 1:
        raise ArgumentTypeError(f"expected a size of at least 1 byte, got {text!r}")
    return int(number)


def milliseconds(text: str) -> float:
    """``"3ms"`` -> ``3.0``; a number alone counts milliseconds."""
    number = _with_unit(text, MILLISECONDS, "ms", "a time such as 3ms")
    if not number > 0:
        raise ArgumentTypeError(f"expected a time above 0, got {text!r}")
    return number


def _with_unit(text: str, units: dict[str, Any], default: str, expected: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*", text)
    if match is None or (match[2] or default).lower() not in units:
        raise ArgumentTypeError(f"expected {expected}, got {text!r}")
    return float(match[1]) * units[(match[2] or default).lower()]


ACTIONS = {
    "build": ("make a cache of pictures, or of embeddings that are there", add_build, run_build),
    "add": ("put more pictures into a cache", add_add, run_add),
    "remove": ("take entries out of a cache", add_remove, run_remove),
    "merge": ("make one cache of several", add_merge, run_merge),
    "verify": ("read all of a cache, and say whether it is what was written", add_verify, run_verify),
    "inspect": ("say what a cache is", add_inspect, run_inspect),
    "explain": ("show which pictures a medium would draw on", cache_explain.add_arguments, cache_explain.run),
}
"""Action -> what the help says of it, its arguments, and what it does."""
