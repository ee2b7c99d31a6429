"""bindlm embed --image *.jpg -o pictures.safetensors"""

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindlm.cli.loading import load_model
from bindlm.cli.options import STANDARD_INPUT, add_model_option, add_url_option, load_picture
from bindlm.cli.output import printable, say
from bindlm.errors import BindLMError, ConfigError, MediaError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUFFIXES = (".safetensors", ".npy", ".json")
BATCH_SIZE = 8
"""Pictures decoded at once: a large one takes 200 MB, so a larger batch costs memory and saves nothing on a CPU."""
TABLE_ROWS = 10
"""Pictures in the printed table; a larger one no longer fits a screen."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--image",
        action="extend",
        nargs="+",
        required=True,
        metavar="FILE",
        help="pictures; - reads one from standard input",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        help="where to write: .safetensors (`image` (N, D), names in the metadata), .npy, or .json; "
        "without it, a table of cosine similarities is printed",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out pictures that cannot be read, and list them"
    )
    add_model_option(parser)
    add_url_option(parser)


def run(options: Namespace) -> int:
    """Embed the pictures; write the rows in the order given, or print how similar they are."""
    if options.output is not None:
        check_output(options.output)
    if options.image.count(STANDARD_INPUT) > 1:
        raise ConfigError("--image - is given twice; standard input holds one picture")
    names, embeddings, bad = embed_pictures(options)
    if options.output is None:
        print_table(names, embeddings)
    else:
        from bindlm import __version__

        metadata = {"names": json.dumps(names), "model": options.model or "mini", "bindlm": __version__}
        write_embeddings(options.output, embeddings, metadata)
        say(f"wrote {options.output}: image {tuple(embeddings.shape)}")
    for error in bad:
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


def embed_pictures(options: Namespace) -> "tuple[list[str], NDArray[np.float32], list[MediaError]]":
    """Names and embeddings ``(N, D)`` of the usable pictures, and the errors of the others.

    Raises:
        MediaError: A picture cannot be used and `--skip-bad` is not given, or none can be used.
    """
    import numpy as np
    from tqdm import tqdm

    say(f"embedding {len(options.image)} pictures")
    model: Any = None
    names: list[str] = []
    rows: list[NDArray[np.float32]] = []
    bad: list[MediaError] = []
    # disable=None: a bar at a terminal only.
    with tqdm(total=len(options.image), desc="bindlm", unit="picture", leave=False, disable=None) as bar:
        for start in range(0, len(options.image), BATCH_SIZE):
            batch = []
            for source in options.image[start : start + BATCH_SIZE]:
                try:
                    batch.append(load_picture(source, allow_url=options.allow_url))
                    names.append("standard input" if source == STANDARD_INPUT else source)
                except MediaError as error:
                    if not options.skip_bad:
                        raise
                    bad.append(error)
                bar.update()
            if batch:
                # Loaded after the first pictures are read: if the only one is bad, that is said at once.
                model = model or load_model(options.model)
                rows.append(model.embed(image=batch).float().cpu().numpy())  # (B, D)
    if not rows:
        raise MediaError(f"none of the {len(options.image)} pictures can be used; the first: {bad[0]}")
    return names, np.concatenate(rows), bad


def write_embeddings(path: Path, embeddings: "NDArray[np.float32]", metadata: dict[str, str]) -> None:
    """Write ``embeddings (N, D)`` so that ``path`` holds either all of it or what it held before.

    Args:
        path: Its suffix decides the format. A .npy file has no place for the metadata.
        embeddings: Rows of unit length.
        metadata: Texts; ``names`` is a JSON list with one name a row.

    Raises:
        BindLMError: The disk refuses.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(scratch, "wb") as file:
            if path.suffix.lower() == ".npy":
                import numpy as np

                np.save(file, embeddings, allow_pickle=False)
            elif path.suffix.lower() == ".json":
                described = {**metadata, "names": json.loads(metadata["names"])}
                file.write(json.dumps({"metadata": described, "image": embeddings.tolist()}).encode())
            else:
                from safetensors.numpy import save

                file.write(save({"image": embeddings}, metadata))
        os.replace(scratch, path)
    except OSError as error:
        raise BindLMError(f"cannot write {path}: {error.strerror}; check its folder and the space there") from error
    finally:
        scratch.unlink(missing_ok=True)


def print_table(names: list[str], embeddings: "NDArray[np.float32]") -> None:
    """Print the shape and the cosine similarity of each pair, for the first pictures."""
    shown = min(len(names), TABLE_ROWS)
    print(f"image {tuple(embeddings.shape)}, rows of unit length; cosine similarity:")
    labels = [f"{number}  {_shorten(printable(name))}" for number, name in enumerate(names[:shown], start=1)]
    width = max(map(len, labels))
    print(" " * width + "".join(f"{number:>7}" for number in range(1, shown + 1)))
    for label, row in zip(labels, embeddings[:shown] @ embeddings[:shown].T, strict=True):
        print(label.ljust(width) + "".join(f"{cosine:7.2f}" for cosine in row))
    if shown < len(names):
        print(f"(the first {shown} of {len(names)}; -o FILE writes them all)")
    sys.stdout.flush()


def _shorten(name: str, limit: int = 30) -> str:
    return name if len(name) <= limit else f"…{name[1 - limit :]}"
