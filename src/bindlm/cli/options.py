"""Options that several verbs share, checked while the command line is read."""

import math
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bindlm.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

STANDARD_INPUT = "-"
QUANTIZATION_WORDS = ("int8", "int4")
"""What `bindlm.load` takes as `quantization`, written out so that help comes without the package of checkpoints."""


def add_model_option(parser: ArgumentParser) -> None:
    parser.add_argument("--model", metavar="PATH_OR_ID", help="a checkpoint's folder or hub id (default: the mini)")


def add_url_option(parser: ArgumentParser, what: str = "--image") -> None:
    parser.add_argument("--allow-url", action="store_true", help=f"let {what} fetch http(s) addresses")


def add_answer_options(parser: ArgumentParser) -> None:
    """How an answer is made: its length, its randomness, and with which model."""
    parser.add_argument("--max-new-tokens", type=positive_int, metavar="N", help="longest answer")
    parser.add_argument(
        "--temperature",
        type=non_negative_float,
        metavar="T",
        help="0 takes the likeliest token each time (as without it), 1 draws as the model weighs them",
    )
    parser.add_argument(
        "--sample",
        action="store_true",
        help="draw each token as the checkpoint was released to: with its own temperature, unless one is given",
    )
    add_cache_options(parser)
    parser.add_argument("--seed", type=seed_number, metavar="N", help="makes drawn answers repeatable")
    add_model_option(parser)
    parser.add_argument(
        "--quantize",
        choices=QUANTIZATION_WORDS,
        help="hold the language model in 8 or 4 bits: less memory, answers that differ a little, slower on a CPU",
    )
    add_url_option(parser)


def add_cache_options(parser: ArgumentParser) -> None:
    """Which visual cache is consulted, as `options.cache`: a folder, False for none, None for the model's own."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--cache",
        metavar="FOLDER",
        help="a visual cache to consult in place of the model's own (made by bindlm cache build)",
    )
    choice.add_argument(
        "--no-cache", dest="cache", action="store_const", const=False, help="consult no visual cache, not even its own"
    )


def answer_settings(options: Namespace) -> dict[str, Any]:
    """What `add_answer_options` was given, as keywords of `model.answer`; its own defaults hold for the rest."""
    settings = {
        "max_new_tokens": options.max_new_tokens,
        "do_sample": options.sample or None,
        "temperature": options.temperature,
    }
    return {name: value for name, value in settings.items() if value is not None}


def positive_int(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def seed_number(text: str) -> int:
    if not (text.isdecimal() and int(text) < 2**63):  # what torch.manual_seed takes
        raise ArgumentTypeError(f"expected a whole number from 0 to 2^63 - 1, got {text!r}")
    return int(text)


def non_negative_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ArgumentTypeError(f"expected a number of 0 or more, got {text!r}")
    return number


def modality_weight(text: str) -> tuple[str, float]:
    """``"image=0.6"`` -> ``("image", 0.6)``."""
    modality, equals, number = text.partition("=")
    if not (modality and equals):
        raise ArgumentTypeError(f"expected MODALITY=NUMBER such as image=0.6, got {text!r}")
    return modality, non_negative_float(number)


def collect_weights(pairs: Sequence[tuple[str, float]], given: Mapping[str, Sequence[str]]) -> dict[str, float] | None:
    """The share of each modality in the mixture, or None where the command line names none.

    Args:
        pairs: What `--weight` gave.
        given: Modality -> the files given for it.

    Raises:
        ConfigError: A modality is named twice, or is weighed although nothing of it is given.
    """
    weights: dict[str, float] = {}
    for modality, weight in pairs:
        if modality in weights:
            raise ConfigError(f"--weight {modality}=… is given twice; give one weight a modality")
        if not given.get(modality):
            raise ConfigError(f"--weight {modality}={weight:g} without --{modality}: there is nothing to weigh")
        weights[modality] = weight
    return weights or None


def load_pictures(sources: Sequence[str], *, allow_url: bool) -> "list[Image]":
    """Decode the pictures of a command line; ``-`` is one picture from standard input.

    Raises:
        ConfigError: ``-`` is given twice.
        MediaError: A picture cannot be used.
    """
    if sources.count(STANDARD_INPUT) > 1:
        raise ConfigError("--image - is given twice; standard input holds one picture")
    return [load_picture(source, allow_url=allow_url) for source in sources]


def load_picture(source: str, *, allow_url: bool) -> "Image":
    """Decode one picture of a command line."""
    from bindlm.media import load_image

    if source == STANDARD_INPUT:
        stdin = b"" if sys.stdin is None else sys.stdin.buffer
        return load_image(stdin, name="standard input")
    return load_image(source, allow_url=allow_url)


def as_image_argument(pictures: "list[Image]") -> Any:
    """None, one picture, or a list to mix: the forms that `model.answer` takes."""
    return pictures[0] if len(pictures) == 1 else pictures or None
