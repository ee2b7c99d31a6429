"""bindlm embed --image *.jpg -o pictures.safetensors"""

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindlm.cli.loading import load_embedder
from bindlm.cli.media import (
    SENSES,
    add_sense_options,
    check_before_loading,
    count,
    embed_each,
    given_media,
    name_of,
    open_standard_input,
)
from bindlm.cli.options import add_model_option, add_url_option
from bindlm.cli.output import printable, say
from bindlm.errors import BindLMError, ConfigError, MediaError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bindlm.folder import FolderUpdate

SUFFIXES = (".safetensors", ".npy", ".json")
TABLE_ROWS = 10
"""Media in the printed table; a larger one no longer fits a screen."""


@dataclass
class Embedded:
    """Names and embeddings by sense, and what could not be used."""

    model: str
    names: "dict[str, list[str]]" = field(default_factory=dict)
    rows: "dict[str, NDArray[np.float32]]" = field(default_factory=dict)
    """Sense -> `(N, D_joint)`, unit length."""
    bad: list[MediaError] = field(default_factory=list)

    @property
    def all_names(self) -> list[str]:
        return [name for names in self.names.values() for name in names]

    def described(self) -> dict[str, Any]:
        """What is written beside the numbers: of one sense a list of names, of several a list for each."""
        from bindlm import __version__

        names = next(iter(self.names.values())) if len(self.names) == 1 else self.names
        return {"names": names, "model": self.model, "bindlm": __version__}


def add_arguments(parser: ArgumentParser) -> None:
    add_sense_options(parser, list(SENSES), note="; - reads one from standard input")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="all media in a folder and below it, by its index")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        help="where to write: .safetensors (a key a sense, such as `image` (N, D); names in the metadata), .npy (of "
        "one sense), or .json; without it, a table of cosine similarities is printed",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="OUT", help="draw them in two dimensions, coloured by sense: .png, .svg or .pdf"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out media that cannot be used, and list them")
    add_model_option(parser)
    add_url_option(parser, "media")


def run(options: Namespace) -> int:
    """Embed what is given; write the rows in the order given, draw them, or print how similar they are."""
    given = given_media(options)
    if bool(given) == (options.folder is not None):
        raise ConfigError(
            "give either media or --folder, not both"
            if given
            else "there is nothing to embed; give media, such as --image cat.jpg, or --folder DIR"
        )
    if options.output is not None:
        check_output(options.output)
        if options.output.suffix.lower() == ".npy" and len(given) > 1:
            raise ConfigError(f"-o {options.output} holds one array, and several senses are given; write .safetensors")
    if options.plot is not None:
        from bindlm.space.plot import check_plot_path

        check_plot_path(options.plot)
    embedded = embed_folder(options) if options.folder is not None else embed_media(given, options)
    if options.output is not None:
        write_embeddings(options.output, embedded.rows, embedded.described())
        shapes = ", ".join(f"{sense} {tuple(rows.shape)}" for sense, rows in embedded.rows.items())
        say(f"wrote {options.output}: {shapes}")
    if options.plot is not None:
        draw(options.plot, embedded)
    if options.output is None and options.plot is None:
        print_table(embedded)
    for error in embedded.bad:
        say(f"left out: {error}")
    return 0


def check_output(path: Path) -> None:
    """Refuse what could not be written in the end, before minutes of work.

    Raises:
        ConfigError: An unknown suffix, or a folder that is missing or not writable.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"-o {path} has no known suffix; expected one of {', '.join(SUFFIXES)}")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"-o {path} cannot be written; name a file in a folder that exists and is writable")


def embed_media(given: dict[str, list[str]], options: Namespace) -> Embedded:
    """Embed media by sense.

    Raises:
        MediaError: A medium cannot be used and `--skip-bad` is not given, or none can be used.
        ConfigError: The model lacks a sense.
    """
    import torch

    media = open_standard_input(given)
    say(f"embedding {', '.join(count(sense, len(sources)) for sense, sources in given.items())}")
    check_before_loading(media, allow_url=options.allow_url, skip_bad=options.skip_bad)
    embedder = load_embedder(options.model, list(given))
    embedded = Embedded(options.model or embedder.name)
    for sense, sources in media.items():
        names, rows = [], []
        results = embed_each(embedder, sense, sources, allow_url=options.allow_url)
        for source, result in zip(given[sense], results, strict=True):
            if not isinstance(result, MediaError):
                names.append(name_of(source))
                rows.append(result)
            elif options.skip_bad:
                embedded.bad.append(result)
            else:
                raise result
        if rows:
            embedded.names[sense] = names
            embedded.rows[sense] = torch.stack(rows).numpy()
    if not embedded.rows:
        what = " or ".join(count(sense, len(sources)) for sense, sources in given.items())
        raise MediaError(f"none of the {what} can be used; the first: {embedded.bad[0]}")
    return embedded


def embed_folder(options: Namespace) -> Embedded:
    """Bring the index of the folder up to date and take its rows.

    Raises:
        MediaError: There is no such folder, or nothing in it that the model takes and that can be used.
        ConfigError: Several senses are to go into a .npy file.
    """
    from bindlm.folder import update_index

    embedder = load_embedder(options.model, (), all_towers=True)
    update = update_index(options.folder, embedder)
    report_update(options.folder, update)
    embedded = Embedded(options.model or embedder.name)
    entries = update.index.entries
    for sense in SENSES:
        rows = [row for row, entry in enumerate(entries) if entry.modality == sense]
        rows.sort(key=lambda row: entries[row].key)
        if rows:
            embedded.names[sense] = [entries[row].key for row in rows]
            embedded.rows[sense] = update.index.vectors[rows].numpy()
    if not embedded.rows:
        senses = " or ".join(SENSES[sense][0] for sense in embedder.modalities if sense != "text")
        raise MediaError(f"{options.folder} holds no {senses} that can be used; name another folder")
    if options.output is not None and options.output.suffix.lower() == ".npy" and len(embedded.rows) > 1:
        held = " and ".join(embedded.rows)
        raise ConfigError(f"-o {options.output} holds one array, and the folder has {held}; write .safetensors")
    return embedded


def report_update(folder: Path, update: "FolderUpdate") -> None:
    """Say what an update did, and what it could not use."""
    gone = f", {update.dropped} dropped" if update.dropped else ""
    say(f"{folder}: {update.embedded} embedded, {update.kept} as they were{gone}; index in {update.path}")
    for entry in update.unreadable:
        say(f"left out: {entry.reason}")
    for key in update.unlisted:
        say(f"left as it was: the folder {folder / key} cannot be looked into")


def draw(path: Path, embedded: Embedded) -> None:
    """Write the plot."""
    import numpy as np
    import torch

    from bindlm.space.plot import plot_embeddings

    embeddings = torch.from_numpy(np.concatenate(list(embedded.rows.values())))
    senses = [sense for sense, names in embedded.names.items() for _ in names]
    names = [_shorten(os.path.basename(name) if sense != "text" else name)
             for sense, name in zip(senses, embedded.all_names, strict=True)]  # fmt: skip
    plot_embeddings(path, embeddings, senses, names)
    say(f"wrote {path}: {len(senses)} points")


def write_embeddings(path: Path, rows: "dict[str, NDArray[np.float32]]", described: dict[str, Any]) -> None:
    """Write embeddings so that ``path`` holds either all of them or what it held before.

    Args:
        path: Its suffix decides the format. A .npy file holds one array and has no place for the metadata.
        rows: Sense -> ``(N, D)``, unit length.
        described: The metadata; safetensors takes only texts, so what is no text is written as JSON.

    Raises:
        BindLMError: The disk refuses.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(scratch, "wb") as file:
            if path.suffix.lower() == ".npy":
                import numpy as np

                np.save(file, next(iter(rows.values())), allow_pickle=False)
            elif path.suffix.lower() == ".json":
                lists = {sense: array.tolist() for sense, array in rows.items()}
                file.write(json.dumps({"metadata": described, **lists}).encode())
            else:
                from safetensors.numpy import save

                texts = {
                    key: value if isinstance(value, str) else json.dumps(value) for key, value in described.items()
                }
                file.write(save(dict(rows), texts))
        os.replace(scratch, path)
    except OSError as error:
        raise BindLMError(f"cannot write {path}: {error.strerror}; check its folder and the space there") from error
    finally:
        scratch.unlink(missing_ok=True)


def print_table(embedded: Embedded) -> None:
    """Print the shapes and the cosine similarity of each pair, for the first media."""
    import numpy as np

    names = embedded.all_names
    shown = min(len(names), TABLE_ROWS)
    shapes = ", ".join(f"{sense} {tuple(rows.shape)}" for sense, rows in embedded.rows.items())
    print(f"{shapes}, rows of unit length; cosine similarity:")
    labels = [f"{number}  {_shorten(printable(name))}" for number, name in enumerate(names[:shown], start=1)]
    width = max(map(len, labels))
    print(" " * width + "".join(f"{number:>7}" for number in range(1, shown + 1)))
    embeddings = np.concatenate(list(embedded.rows.values()))[:shown]
    for label, row in zip(labels, embeddings @ embeddings.T, strict=True):
        print(label.ljust(width) + "".join(f"{cosine:7.2f}" for cosine in row))
    if shown < len(names):
        print(f"(the first {shown} of {len(names)}; -o FILE writes them all)")
    sys.stdout.flush()


def _shorten(name: str, limit: int = 30) -> str:
    return name if len(name) <= limit else f"…{name[1 - limit :]}"
