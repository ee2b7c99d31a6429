"""bindlm cache explain cache --audio rain.wav --image-sheet rain.png"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindlm.cli.loading import load_embedder
from bindlm.cli.media import SENSES, add_sense_options, check_before_loading, given_media, open_standard_input
from bindlm.cli.options import STANDARD_INPUT, add_model_option, add_url_option, positive_int
from bindlm.cli.output import print_json, printable, say
from bindlm.errors import ConfigError

if TYPE_CHECKING:
    from bindlm.space.cache import CacheNeighbour
    from bindlm.space.cache_folder import StoredVisualCache

_SHEET_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def add_arguments(parser: ArgumentParser) -> None:
    """Add what `bindlm cache explain` takes."""
    parser.add_argument("cache", type=Path, metavar="CACHE", help="folder of the cache")
    add_sense_options(parser, list(SENSES), note="; several are mixed, - reads one from standard input")
    parser.add_argument("--top-k", type=positive_int, metavar="K", help="how many neighbours (as the cache is set)")
    parser.add_argument("--image-sheet", type=Path, metavar="OUT", help="draw them: .png, .jpg or .webp")
    parser.add_argument(
        "--media-root", type=Path, metavar="DIR", help="folder that the entries' relative paths start from"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    add_model_option(parser)
    add_url_option(parser, "media")


def run(options: Namespace) -> int:
    """Embed a medium, or a mixture, and print which pictures of a cache it is pulled toward, nearest first."""
    given = given_media(options)
    if not given:
        raise ConfigError("explain what? give a medium, such as --audio rain.wav")
    if options.image_sheet is not None and options.image_sheet.suffix.lower() not in _SHEET_SUFFIXES:
        raise ConfigError(f"--image-sheet {options.image_sheet} has no known suffix; expected .png, .jpg or .webp")
    from bindlm.space.cache_format import read_record

    record = read_record(options.cache)
    media = open_standard_input(given)
    check_before_loading(media, allow_url=options.allow_url, skip_bad=False)
    neighbours, cache = neighbours_of(media, record.encoder, options)
    if options.image_sheet is not None:
        draw(media, neighbours, options)
    if options.json:
        print_json(as_json(given, neighbours, cache, options))
    else:
        print_neighbours(neighbours)
        say_pull(list(given), cache)
    return 0


def neighbours_of(
    media: dict[str, list[Any]], encoder: str, options: Namespace
) -> "tuple[list[CacheNeighbour], StoredVisualCache]":
    """The entries that a mixture of media draws on.

    Raises:
        CheckpointError: the cache is damaged, or another encoder made it.
    """
    from bindlm.cli.search import embed_query
    from bindlm.space.cache_folder import StoredVisualCache

    senses = list(dict.fromkeys([*media, "image"]))  # the picture tower is what the cache belongs to
    embedder = load_embedder(options.model or encoder or None, senses)
    settings = {} if options.top_k is None else {"top_k": options.top_k}
    cache = StoredVisualCache.open(options.cache, fingerprint=embedder.fingerprint_of("image"), **settings)
    query = embed_query(embedder, media, allow_url=options.allow_url)
    return cache.explain(query)[0], cache


def print_neighbours(neighbours: "list[CacheNeighbour]") -> None:
    """Print a line each: similarity, weight, id and caption."""
    width = min(max((len(printable(each.id)) for each in neighbours), default=0), 40)
    print(f"cosine  weight  {'id':<{width}}  caption")
    for each in neighbours:
        caption = " ".join(printable(each.caption or "").split())
        print(f"{each.similarity:6.3f}  {each.weight:6.3f}  {printable(each.id):<{width}}  {caption}".rstrip())
    sys.stdout.flush()


def say_pull(senses: list[str], cache: "StoredVisualCache") -> None:
    """Say so where the cache leaves what is given as it is."""
    pulled = cache.config.modalities
    if pulled is not None and not set(senses) & set(pulled):
        left = " and ".join(SENSES[sense][0] for sense in senses)
        say(f"this cache leaves {left} as they are: it pulls {', '.join(pulled)}")


def draw(media: dict[str, list[Any]], neighbours: "list[CacheNeighbour]", options: Namespace) -> None:
    """Write the contact sheet."""
    from bindlm.evaluation.contact_sheet import SheetQuery, draw_contact_sheet

    queries = [
        SheetQuery(sense, source, caption="standard input" if hasattr(source, "seek") else "")
        for sense, sources in media.items()
        for source in sources
        if source != STANDARD_INPUT
    ]
    for query in queries:
        if hasattr(query.source, "seek"):
            query.source.seek(0)  # it was read to be embedded
    draw_contact_sheet(queries, neighbours, options.image_sheet, root=options.media_root)
    say(f"wrote {options.image_sheet}: {len(neighbours)} neighbours")


def as_json(
    given: dict[str, list[str]],
    neighbours: "list[CacheNeighbour]",
    cache: "StoredVisualCache",
    options: Namespace,
) -> dict[str, Any]:
    """What `--json` prints."""
    from bindlm import __version__

    pulled = cache.config.modalities
    return {
        "cache": str(options.cache),
        "query": given,
        "neighbours": [vars(each) for each in neighbours],
        "is_pulled": pulled is None or bool(set(given) & set(pulled)),
        "alpha": cache.config.alpha,
        "weighting": str(cache.config.weighting),
        "encoder": cache.record.encoder,
        "bindlm": __version__,
    }
