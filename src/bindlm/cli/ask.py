"""bindlm ask "What is this?" --image cat.jpg --audio meow.ogg"""

import time
from argparse import ArgumentParser, Namespace
from typing import Any

from bindlm.cli.loading import check_senses, load_model, set_seed
from bindlm.cli.media import SENSES, add_sense_options, check_before_loading, given_media, open_standard_input
from bindlm.cli.options import (
    add_answer_options,
    answer_settings,
    as_image_argument,
    collect_weights,
    load_pictures,
    modality_weight,
)
from bindlm.cli.output import AnswerPrinter, print_json
from bindlm.errors import ConfigError

OTHERS = tuple(sense for sense in SENSES if sense != "image")
MIXES = ("turns", "released", "paper")
"""What `model.answer` takes as `mix`, written out so that help comes without torch."""
PHASES = ("load", "media", "encode", "prefill", "decode")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("question", help="what to ask, in quotes")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="a picture; give several to mix them, - to read one from standard input",
    )
    add_sense_options(parser, OTHERS, note=", if the model has that sense", takes_many=False)
    parser.add_argument(
        "--weight",
        action="append",
        default=[],
        type=modality_weight,
        metavar="MODALITY=NUMBER",
        help="share of a modality in the mixture, for example image=0.6",
    )
    parser.add_argument(
        "--mix",
        choices=MIXES,
        help="what becomes of several media: turns tells unlike ones one after the other (as without it), released "
        "and paper ask about one mixture of all",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    add_answer_options(parser)


def run(options: Namespace) -> int:
    """Answer, streaming to stdout; or print the answer as JSON with its token counts and timings."""
    started = time.perf_counter()
    if not options.question.strip():
        raise ConfigError("the question is empty; give one in quotes, such as 'What is this?'")
    given = given_media(options)
    weights = collect_weights(options.weight, given)
    # Before the model: a bad medium is reported at once, not after seconds of loading.
    pictures = load_pictures(options.image, allow_url=options.allow_url)
    others = open_standard_input({sense: sources for sense, sources in given.items() if sense != "image"})
    check_before_loading(others, allow_url=options.allow_url, skip_bad=False)
    read = time.perf_counter()
    model = load_model(options.model, options.cache, options.quantize)
    check_senses(model, tuple(others), options.model)
    set_seed(options.seed)
    loaded = time.perf_counter()
    printer = None if options.json else AnswerPrinter()
    answer = model.answer(
        options.question,
        as_image_argument(pictures),
        weights=weights,
        stream=printer,
        **({} if options.mix is None else {"mix": options.mix}),
        **others,
        **answer_settings(options),
    )
    if printer is not None:
        printer.finish(answer.text)
    else:
        before = {"media": read - started, "load": loaded - read}
        print_json(report(answer, before, total=time.perf_counter() - started))
    return 0


def report(answer: Any, before: dict[str, float], total: float) -> dict[str, Any]:
    """What `--json` prints.

    Args:
        answer: A `bindlm.Answer`.
        before: Seconds spent before the model was asked, added to those of the same phase in the answer.
        total: Seconds from the first look at the options to the whole answer.
    """
    from bindlm import __version__

    seconds = {phase: before.get(phase, 0.0) + answer.seconds.get(phase, 0.0) for phase in PHASES}
    return {
        "answer": answer.text,
        "tokens": {"prompt": answer.prompt_tokens, "answer": answer.answer_tokens},
        "seconds": {phase: round(spent, 4) for phase, spent in {**seconds, "total": total}.items()},
        "neighbours": answer.joint_neighbours,
        "model": answer.model,
        "bindlm": __version__,
    }
