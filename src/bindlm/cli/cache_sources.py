"""What `bindlm cache build` and `add` take: pictures, a feature store, or embeddings, and the encoder of these."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindlm.cli.loading import load_embedder
from bindlm.cli.options import positive_int
from bindlm.cli.output import say
from bindlm.errors import ConfigError

if TYPE_CHECKING:
    from bindlm.caching import CacheSource
    from bindlm.space.cache_format import CacheRecord


@dataclass
class Opened:
    """A source and the encoder that made it."""

    source: "CacheSource"
    fingerprint: str
    encoder: str


def add_source(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="?",
        type=Path,
        metavar="SOURCE",
        help="a folder of pictures, clip-retrieval's output, a feature store, or .npy or .parquet of embeddings: told "
        "by what is in it",
    )
    parser.add_argument("--features", type=Path, metavar="DIR", help="a feature store, as bindlm features makes it")
    parser.add_argument(
        "--embeddings", type=Path, metavar="PATH", help=".npy or .parquet of embeddings, a file or a folder of them"
    )
    parser.add_argument(
        "--metadata", type=Path, metavar="PATH", help="Parquet with the names of .npy rows: a file, or one for each"
    )
    for name, meaning in (("id", "ids"), ("caption", "captions"), ("source", "paths or addresses")):
        parser.add_argument(f"--{name}-column", metavar="NAME", help=f"column of {meaning} (a usual one)")
    parser.add_argument("--embedding-column", metavar="NAME", help="column of embeddings in .parquet (a usual one)")
    parser.add_argument("--batch-size", type=positive_int, default=8, metavar="N", help="pictures encoded at once (8)")
    parser.add_argument("--follow-links", action="store_true", help="look for pictures in folders that are links, too")


def add_encoder(parser: ArgumentParser, *, has_name: bool = True) -> None:
    parser.add_argument(
        "--model", metavar="PATH_OR_ID", help="the encoder of the pictures or embeddings (of pictures: the mini)"
    )
    parser.add_argument(
        "--fingerprint", metavar="HEX", help="of the encoder, where its weights are not at hand; bindlm cache inspect"
    )
    if has_name:
        parser.add_argument("--encoder", metavar="NAME", help="what the cache calls the encoder (as --model)")


def open_given(options: Namespace, cache: Path, base: "CacheRecord | None" = None) -> Opened:
    """The source that a command line names. Pictures are embedded first, into the cache's work folder.

    Args:
        cache: the folder that is written.
        base: its record, where it is there.

    Raises:
        ConfigError: no source or several, one without rows, or embeddings of nobody knows which encoder.
        CheckpointError: weights are not to be had, or do not fit a feature store.
    """
    from bindlm.caching import StoreSource, open_embeddings
    from bindlm.caching.sources import source_kind

    given = [path for path in (options.source, options.features, options.embeddings) if path is not None]
    if len(given) != 1:
        raise ConfigError(
            "of what? give a folder of pictures, --features DIR, or --embeddings PATH"
            if not given
            else "give one source: a folder, --features, or --embeddings"
        )
    path = given[0]
    kind = "features" if options.features is not None else source_kind(path)
    if kind == "features":
        return _of_store(StoreSource(path), options)
    if kind == "pictures" and options.embeddings is None:
        if options.metadata is not None:
            raise ConfigError(f"{path} is a folder of pictures; --metadata goes with .npy embeddings")
        return _of_pictures(path, options, cache, base)
    columns = (options.id_column, options.caption_column, options.source_column)
    source = open_embeddings(path, options.metadata, embedding_column=options.embedding_column, columns=columns)
    say(f"{path}: {source.num_rows:,} embeddings of {source.dim} numbers")
    if options.fingerprint is not None:
        return Opened(source, options.fingerprint, options.model or "")
    if options.model is None:
        hint = f" (the cache has {base.fingerprint} of {base.encoder or 'an unnamed encoder'})" if base else ""
        raise ConfigError(
            f"which encoder made {path}? name it with --model PATH_OR_ID; where its weights are not at hand, give "
            f"--fingerprint{hint}"
        )
    embedder = load_embedder(options.model, ["image"])
    _check_width(embedder, source)
    return Opened(source, embedder.fingerprint_of("image"), options.model)


def _of_pictures(path: Path, options: Namespace, cache: Path, base: "CacheRecord | None") -> Opened:
    from bindlm.caching import embed_pictures, work_folder

    if options.fingerprint is not None:
        raise ConfigError("--fingerprint goes with embeddings that are there; pictures are embedded by --model")
    embedder = load_embedder(options.model or (base.encoder if base and base.encoder else None), ["image"])
    if base is not None:
        from bindlm.caching.build import check_fits  # before hours of embedding

        check_fits(base, embedder.name, embedder.dim, embedder.fingerprint_of("image"), str(cache))
    source = embed_pictures(
        path, work_folder(cache), embedder, batch_size=options.batch_size, follow_links=options.follow_links
    )
    return Opened(source, embedder.fingerprint_of("image"), options.model or embedder.name)


def _of_store(source: Any, options: Namespace) -> Opened:
    from bindlm.caching import picture_fingerprint

    if options.fingerprint is not None:
        return Opened(source, options.fingerprint, options.model or source.encoder)
    # All towers: a store has the fingerprint of the whole encoder.
    embedder = load_embedder(options.model or source.encoder, ["image"], all_towers=True)
    return Opened(source, picture_fingerprint(embedder, source), options.model or source.encoder)


def _check_width(embedder: Any, source: "CacheSource") -> None:
    if embedder.dim != source.dim:
        raise ConfigError(
            f"{source.name} holds vectors of {source.dim} numbers, and {embedder.name} makes {embedder.dim}; name the "
            "encoder that made them with --model"
        )
