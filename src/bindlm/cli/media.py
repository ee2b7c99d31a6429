"""Media of a command line: which option gives which sense, and their embeddings one by one."""

import io
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bindlm.cli.options import STANDARD_INPUT
from bindlm.errors import ConfigError, MediaError

if TYPE_CHECKING:
    from torch import Tensor

SENSES = {
    "image": ("pictures", "FILE", "pictures"),
    "video": ("videos", "FILE", "videos"),
    "text": ("texts", "WORDS", "texts, in quotes"),
    "audio": ("sounds", "FILE", "sounds"),
    "point": ("3-D objects", "FILE", "point clouds or meshes"),
    "depth": ("depth maps", "FILE", "depth maps"),
    "thermal": ("thermal pictures", "FILE", "thermal pictures"),
    "imu": ("recordings of movement", "FILE", "recordings of movement (IMU)"),
}
"""Sense -> how many of it are called, what stands for one in the help, and what the help says."""

BATCH_SIZE = 8
"""Media decoded at once: a large picture takes 200 MB, so a larger batch costs memory and saves nothing on a CPU."""


def add_sense_options(
    parser: ArgumentParser, senses: Sequence[str], *, note: str = "", takes_many: bool = True
) -> None:
    """`--image FILE …` and the like; what they give stands in the options as a list under the sense's name.

    Args:
        takes_many: Whether one option takes all the words after it; where other words follow, it must not.
    """
    how: dict[str, Any] = {"action": "extend", "nargs": "+"} if takes_many else {"action": "append"}
    for sense in senses:
        _, stand_in, meaning = SENSES[sense]
        parser.add_argument(f"--{sense}", default=[], metavar=stand_in, help=f"{meaning}{note}", **how)


def given_media(options: Namespace) -> dict[str, list[str]]:
    """Sense -> what was given of it, in the order of `SENSES`.

    Raises:
        ConfigError: standard input is named twice, or a text is empty.
    """
    given = {sense: list(sources) for sense in SENSES if (sources := getattr(options, sense, None))}
    at_stdin = [sense for sense, sources in given.items() for source in sources if source == STANDARD_INPUT]
    if len(at_stdin) > 1:
        raise ConfigError(
            f"--{at_stdin[1]} - is given twice; standard input holds one picture"
            if set(at_stdin) == {"image"}
            else f"--{at_stdin[-1]} - comes after another -; standard input holds one medium"
        )
    if not all(text.strip() for text in given.get("text", ())):
        raise ConfigError("--text is empty; give words in quotes, such as 'a dog'")
    return given


def count(sense: str, number: int) -> str:
    """``("image", 3)`` -> ``"3 pictures"``."""
    return f"{number} {SENSES[sense][0]}"


def name_of(source: str) -> str:
    return "standard input" if source == STANDARD_INPUT else source


def open_standard_input(given: dict[str, list[str]]) -> dict[str, list[Any]]:
    """``given`` with the bytes of standard input where ``-`` stood; of a text, the text.

    Raises:
        MediaError: Standard input is no text, where one is wanted.
    """
    from bindlm.media import load_text

    opened: dict[str, list[Any]] = {}
    for sense, sources in given.items():
        opened[sense] = list(sources)
        if STANDARD_INPUT in sources:
            data = _StandardInput(b"" if sys.stdin is None else sys.stdin.buffer.read())
            place = sources.index(STANDARD_INPUT)
            opened[sense][place] = load_text(data, name=data.name).strip() if sense == "text" else data
    return opened


class _StandardInput(io.BytesIO):
    """All of standard input, which can be read again, under a name for messages."""

    name = "standard input"


def check_before_loading(media: dict[str, list[Any]], *, allow_url: bool, skip_bad: bool) -> None:
    """Say at once that the first medium is bad, not after seconds of loading a model.

    Files must be there, and the first picture is decoded, for it costs little. With ``skip_bad`` that is no
    error unless no picture can be used and nothing else is given.

    Raises:
        MediaError: A medium cannot be used.
    """
    from bindlm.media import load_image
    from bindlm.media.source import describe

    for sense, sources in media.items():
        for source in sources if not skip_bad and sense not in ("image", "text") else ():
            if isinstance(source, str) and "://" not in source and not os.path.exists(source):
                raise describe(source, sense).error("there is no such file", "Check the path")
    faults = []
    for source in media.get("image", ()):
        try:
            load_image(source, allow_url=allow_url)
        except MediaError as error:
            if not skip_bad:
                raise
            faults.append(error)
        else:
            break
        finally:
            if isinstance(source, io.BytesIO):
                source.seek(0)
    if set(media) == {"image"} and len(faults) == len(media["image"]):
        raise MediaError(f"none of the {count('image', len(faults))} can be used; the first: {faults[0]}")


def embed_each(
    embedder: Any, sense: str, sources: Sequence[Any], *, allow_url: bool
) -> "Iterator[Tensor | MediaError]":
    """For each medium of a sense its embedding ``(D_joint,)`` or what is wrong with it, with a bar at a terminal."""
    from tqdm import tqdm

    results = embedder.stream(sense, sources, batch_size=BATCH_SIZE, allow_url=allow_url)
    # disable=None: a bar at a terminal only.
    with tqdm(total=len(sources), desc="bindlm", unit=sense, leave=False, disable=None) as bar:
        for _, result in results:
            yield result
            bar.update()
