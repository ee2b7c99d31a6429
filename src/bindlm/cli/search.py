"""bindlm search "a dog barking" photos --model imagebind_huge.pth"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindlm.cli.embed import report_update
from bindlm.cli.loading import load_embedder
from bindlm.cli.media import SENSES, add_sense_options, check_before_loading, given_media, open_standard_input
from bindlm.cli.options import add_model_option, add_url_option, positive_int
from bindlm.cli.output import print_json, printable, say
from bindlm.cli.parser import Parser
from bindlm.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from bindlm.folder import FolderUpdate
    from bindlm.space.index import Hit

FOUND = ("image", "audio", "video", "point")
"""Senses that a folder is searched for: those whose files are told by their names."""


def add_arguments(parser: ArgumentParser) -> None:
    if isinstance(parser, Parser):
        parser.takes_options_between = True
    parser.add_argument("text", nargs="?", metavar="WORDS", help="what to look for, in quotes")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to look, below it too")
    add_sense_options(
        parser,
        [sense for sense in SENSES if sense != "text"],
        note=" to look for in place of words, or mixed with them",
        takes_many=False,
    )
    parser.add_argument("--top-k", type=positive_int, default=10, metavar="K", help="how many to print (10)")
    parser.add_argument("--only", choices=FOUND, help="look only among media of this sense")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument(
        "--no-update", action="store_true", help="search the index as it is, without looking at the folder"
    )
    parser.add_argument(
        "--index",
        type=Path,
        metavar="DIR",
        help="where the index lies (default: .bindlm-index in the folder, or under BINDLM_HOME if it is read-only)",
    )
    parser.add_argument("--follow-links", action="store_true", help="look into folders that are links, too")
    add_model_option(parser)
    add_url_option(parser, "media")


def run(options: Namespace) -> int:
    """Bring the index of the folder up to date, and print what is nearest to the query, nearest first."""
    if options.text is not None:
        if not options.text.strip():
            raise ConfigError("the words to look for are empty; give some, such as 'a dog barking'")
        options.text = [options.text]
    given = given_media(options)
    if not given:
        raise ConfigError(
            f"what to look for in {options.folder}? give words in front of the folder, or a medium such as "
            "--image cat.jpg"
        )
    media = open_standard_input(given)
    check_before_loading(media, allow_url=options.allow_url, skip_bad=False)
    # All towers, needed or not: they are what the index's fingerprint is of.
    try:
        embedder = load_embedder(options.model, list(given), all_towers=True)
    except ConfigError as error:
        hint = "; or look for what is like a picture: --image FILE in place of words" if "text" in given else ""
        raise ConfigError(f"{error}{hint}") from error
    # Before the folder, which can take hours: a query that cannot be used is said at once.
    query = embed_query(embedder, media, allow_url=options.allow_url)
    update = updated_index(embedder, options)
    hits = update.index.search(query, options.top_k, modality=options.only)[0]
    if options.json:
        print_json(report(given, hits, update, options, embedder))
    else:
        for hit in hits:
            print(f"{hit.score:6.3f}  {hit.modality:<5}  {printable(str(options.folder / hit.key))}")
        sys.stdout.flush()
    return 0


def embed_query(embedder: Any, media: dict[str, list[Any]], *, allow_url: bool) -> "Tensor":
    """One direction to look in, `(1, D_joint)`: of several media their mixture, each sense with an equal share."""
    from bindlm.space.mix import mix_embeddings, share_weights

    weights = share_weights({sense: len(sources) for sense, sources in media.items()})
    pairs: list[tuple[Tensor, float]] = []
    for sense, sources in media.items():
        rows = embedder.embed(**{sense: sources}, allow_url=allow_url).split(1)
        pairs += zip(rows, weights[sense], strict=True)
    return mix_embeddings(pairs, normalize=True)


def updated_index(embedder: Any, options: Namespace) -> "FolderUpdate":
    """The index as it is, or brought up to date."""
    from bindlm.folder import load_index, update_index

    if options.no_update:
        return load_index(options.folder, embedder, options.index)
    update = update_index(options.folder, embedder, options.index, follow_links=options.follow_links)
    if update.embedded or update.dropped or update.unlisted:
        report_update(options.folder, update)
    elif update.unreadable:  # said before, at length
        say(f"files left out: {len(update.unreadable)}; bindlm embed --folder {options.folder} says why")
    return update


def report(
    given: dict[str, list[str]], hits: "list[Hit]", update: "FolderUpdate", options: Namespace, embedder: Any
) -> dict[str, Any]:
    """What `--json` prints."""
    from bindlm import __version__

    return {
        "query": given,
        "folder": str(options.folder),
        "results": [
            {"path": str(options.folder / hit.key), "modality": hit.modality, "score": round(hit.score, 4)}
            for hit in hits
        ],
        "indexed": len(update.index),
        "unreadable": [{"path": str(options.folder / each.key), "reason": each.reason} for each in update.unreadable],
        "model": options.model or embedder.name,
        "bindlm": __version__,
    }
