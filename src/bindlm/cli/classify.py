"""bindlm classify cat.jpg bark.wav --labels "cat,dog" --model imagebind_huge.pth"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from bindlm.cli.loading import load_embedder
from bindlm.cli.media import SENSES, check_before_loading, embed_each, given_media, name_of, open_standard_input
from bindlm.cli.options import add_model_option, add_url_option, positive_int
from bindlm.cli.output import print_json, printable, say
from bindlm.cli.parser import Parser
from bindlm.errors import ConfigError, MediaError

PROMPTS_AT_ONCE = 32


def add_arguments(parser: ArgumentParser) -> None:
    if isinstance(parser, Parser):
        parser.takes_options_between = True
    parser.add_argument("files", nargs="+", metavar="FILE", help="media of any sense; - reads one from standard input")
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument("--labels", metavar="A,B,…", help="the words to choose from, with commas between")
    labels.add_argument("--labels-file", type=Path, metavar="FILE", help="the words to choose from, one a line")
    parser.add_argument(
        "--as",
        dest="sense",
        choices=[sense for sense in SENSES if sense != "text"],
        help="what the files are, where their endings do not tell (depth, thermal, imu)",
    )
    parser.add_argument(
        "--template",
        action="append",
        default=[],
        metavar="TEXT",
        help="a sentence with {} where the word goes, such as 'a photo of a {}.'; give several to average them, or "
        "the name of a set: plain, photos, sounds, objects (default: one that suits the sense)",
    )
    parser.add_argument("--top-k", type=positive_int, default=5, metavar="K", help="how many words to print (5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--skip-bad", action="store_true", help="leave out media that cannot be used, and list them")
    add_model_option(parser)
    add_url_option(parser, "media")


def run(options: Namespace) -> int:
    """Print for each file, in the order given, the likeliest words with their probabilities."""
    from bindlm.space.zero_shot import check_labels, class_embeddings, classify, templates_for

    labels = read_labels(options)
    check_labels(labels)
    if len(labels) < 2:
        raise ConfigError("there is only one label; give at least two to choose from, such as --labels 'cat,dog'")
    given = by_sense(options)
    templates = {sense: templates_for(sense, chosen_templates(options.template)) for sense in given}
    media = open_standard_input(given)
    check_before_loading(media, allow_url=options.allow_url, skip_bad=options.skip_bad)
    embedder = load_embedder(options.model, [*given, "text"])

    def encode_text(prompts: list[str]) -> Any:
        return embedder.embed(text=prompts, batch_size=PROMPTS_AT_ONCE)

    results: dict[str, Any] = {}
    bad = []
    classes: dict[tuple[str, ...], Any] = {}
    for sense, sources in media.items():
        if templates[sense] not in classes:
            classes[templates[sense]] = class_embeddings(encode_text, labels, templates[sense])  # (C, D_joint)
        for source, row in zip(
            given[sense], embed_each(embedder, sense, sources, allow_url=options.allow_url), strict=True
        ):
            if isinstance(row, MediaError):
                if not options.skip_bad:
                    raise row
                bad.append(row)
                continue
            shares, numbers = classify(row[None], classes[templates[sense]], top_k=options.top_k)
            pairs = zip(shares[0].tolist(), numbers[0].tolist(), strict=True)
            results[source] = {"file": name_of(source), "modality": sense} | {
                "labels": [{"label": labels[number], "score": round(share, 4)} for share, number in pairs]
            }
    if not results:
        raise MediaError(f"none of the {len(options.files)} files can be used; the first: {bad[0]}")
    ordered = [results[source] for source in options.files if source in results]
    if options.json:
        from bindlm import __version__

        print_json({"results": ordered, "model": options.model or embedder.name, "bindlm": __version__})
    else:
        for result in ordered:
            ranked = ", ".join(f"{printable(each['label'])} {each['score']:.2f}" for each in result["labels"])
            print(f"{printable(result['file'])}: {ranked}")
        sys.stdout.flush()
    for error in bad:
        say(f"left out: {error}")
    return 0


def read_labels(options: Namespace) -> list[str]:
    """The words to choose from; blanks around them, and empty ones, do not count.

    Raises:
        MediaError: The file of labels cannot be read.
    """
    if options.labels is not None:
        words = options.labels.split(",")
    else:
        from bindlm.media import load_text

        words = load_text(options.labels_file).splitlines()
    return [word.strip() for word in words if word.strip()]


def chosen_templates(given: list[str]) -> str | list[str] | None:
    """What `--template` gave, as `templates_for` takes it: None, the name of a set or one template, or several."""
    return given[0] if len(given) == 1 else given or None


def by_sense(options: Namespace) -> dict[str, list[str]]:
    """The files by sense.

    Raises:
        ConfigError: What a file is cannot be told by its name, and `--as` does not say it.
    """
    from bindlm.folder import modality_of

    grouped = Namespace(**{sense: [] for sense in SENSES})
    for file in dict.fromkeys(options.files):
        sense = options.sense or modality_of(file)
        if sense is None:
            raise ConfigError(f"what {printable(name_of(file))!r} is cannot be told by its name; say it with --as")
        getattr(grouped, sense).append(file)
    if options.files.count("-") > 1:
        raise ConfigError("- is given twice; standard input holds one medium")
    return given_media(grouped)
