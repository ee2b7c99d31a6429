"""bindlm data check captions.tsv --media-root pictures --plot lengths.png; bindlm data fetch furniture -o folder"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindlm.cli import data_fetch
from bindlm.cli.options import positive_int
from bindlm.cli.output import print_json, printable, say
from bindlm.errors import ConfigError

if TYPE_CHECKING:
    from bindlm.training.data.check import DataReport, ShownSample

FORMATS = ("captions", "coco", "img2dataset", "mmc4", "alpaca", "sharegpt", "llava", "minigpt4", "gpt4tools")
"""The names in `bindlm.training.data.FORMATS`, here without the cost of its import."""
CAPTION_TOKENS, TURN_TOKENS = 96, 512
"""Where the release cuts captions and instructions."""
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_MOST_SHOWN = 2000
"""Characters of a part of a shown sample."""


def add_arguments(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    what = "read a data set and say what training would see of it"
    check = actions.add_parser("check", help=what, description=f"{what[0].upper()}{what[1:]}.")
    check.add_argument("path", metavar="FILE", help="the data: a file, a folder or a quoted glob")
    formats = ", ".join(FORMATS)
    check.add_argument("--format", choices=FORMATS, metavar="F", help=f"{formats} (default: told by the content)")
    check.add_argument("--media-root", metavar="DIR", help="folder of the media (default: that of the data)")
    check.add_argument(
        "--tokenizer", metavar="REF", help="whose tokens are counted: a bound or a language model (default: the mini)"
    )
    check.add_argument("--template", choices=("chat", "alpaca"), default="chat", help="how samples become text (chat)")
    check.add_argument(
        "--max-tokens",
        type=positive_int,
        metavar="N",
        help=f"where samples are cut ({CAPTION_TOKENS} for captions, {TURN_TOKENS} for conversations)",
    )
    check.add_argument("--plot", type=Path, metavar="OUT", help="draw the lengths: .png, .svg or .pdf")
    check.add_argument("--bad-rows", type=Path, metavar="OUT", help="JSONL file for rows that cannot be used")
    check.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    data_fetch.add_arguments(actions)


def run(options: Namespace) -> int:
    """Check a data set, or fetch one."""
    return data_fetch.run(options) if options.action == "fetch" else run_check(options)


def run_check(options: Namespace) -> int:
    """Read a data set once; print counts, faults, lengths and three samples."""
    from bindlm.training.data.check import check_source
    from bindlm.training.data.sources import open_source
    from bindlm.training.stage_recipe import PromptConfig, SourceConfig

    if options.plot is not None:
        from bindlm.space.plot import check_plot_path

        check_plot_path(options.plot)
    chosen = options.format or guessed(options.path)
    config = SourceConfig(chosen, options.path, media_root=options.media_root)
    source = open_source(config, bad_rows=options.bad_rows)
    cut = options.max_tokens or (CAPTION_TOKENS if source.sample(source.rows[0]).captions else TURN_TOKENS)
    prompt = PromptConfig(template=options.template, max_tokens=cut)
    tokenizer, template = load_tokenizer_of(options.tokenizer)
    report = check_source(source, tokenizer, prompt, conditioned_template=template)
    if options.plot is not None:
        from bindlm.training.data.lengths_plot import plot_lengths

        plot_lengths(options.plot, report.token_lengths, cut, title=report.name)
        say(f"wrote {options.plot}: lengths of {len(report.token_lengths)} samples")
    if options.json:
        print_json({**report.to_dict(), "bad_rows_file": str(source.bad.kept_aside)})
    else:
        print_report(report, None if source.bad.count == 0 else source.bad.kept_aside)
    return 0


def guessed(path: str) -> str:
    """The format of a data set, by its content.

    Raises:
        ConfigError: There are no data, or nothing fits.
    """
    from bindlm.training.data.files import find_files
    from bindlm.training.data.guess import guess_format

    if (found := guess_format(path)) is None:
        find_files(path, ("",))  # says it better where there is no file at all
        raise ConfigError(f"what {printable(path)!r} is cannot be told by its content; say it with --format")
    say(f"{path}: read as {found}")
    return found


def load_tokenizer_of(reference: str | None) -> tuple[Any, str | None]:
    """A tokenizer, and the chat template for samples with media where the reference is a bound model.

    Raises:
        CheckpointError: It is not to be had.
    """
    from bindlm.checkpoints import load_tokenizer, resolve
    from bindlm.loading import MINI
    from bindlm.processing import BindLMProcessor

    folder = MINI if reference is None else resolve(reference)
    if folder.is_dir() and (folder / "processor_config.json").is_file() and (folder / "config.json").is_file():
        processor = BindLMProcessor.from_pretrained(folder)
        return processor.tokenizer, processor.conditioned_chat_template
    return load_tokenizer(folder), None


def print_report(report: "DataReport", bad_rows: Path | None) -> None:
    """Print the findings, and the shown samples with what is masked from the loss made plain."""
    print(f"{printable(report.name)}: {report.samples} samples of format {report.format}, {report.bad} bad rows")
    for reason, count in report.bad_reasons.items():
        print(f"  bad: {printable(reason)}: {count}")
    if bad_rows is not None:
        print(f"  bad rows are in {printable(str(bad_rows))}")
    for reason, count in report.left_out.items():
        print(f"  left out: {printable(reason)}: {count}")
    senses = "".join(f", {count} {sense}" for sense, count in report.modalities.items())
    print(f"media: {report.with_media} with{senses}; {report.without_media} without")
    if report.missing:
        names = ", ".join(map(printable, report.missing_names))
        print(f"  not on the disk: {report.missing} ({report.addresses} are addresses), such as {names}")
    print(f"duplicates: {report.duplicates}")
    if (lengths := report.lengths) is not None:
        print(
            f"tokens: min {lengths.min}, median {lengths.median:g}, 95 % up to {lengths.p95}, max {lengths.max} "
            f"(of {lengths.measured} samples); {report.share_cut:.1%} are cut at {report.max_tokens}"
        )
    if report.refused:
        print(f"  the chat template does not take {report.refused} of the measured samples")
    for sample in report.shown:
        print_sample(sample, is_terminal=sys.stdout.isatty())
    sys.stdout.flush()


def print_sample(sample: "ShownSample", *, is_terminal: bool) -> None:
    """Print one sample; what is masked is dim on a terminal, and between marks elsewhere."""
    opening, closing = (_DIM, _PLAIN) if is_terminal else ("[masked]", "[/masked]")
    print(f"\n--- {printable(sample.id)}, {printable(sample.media or 'no medium')}")
    texts = ((_shortened(printable(text)), is_learned) for text, is_learned in sample.pieces)
    print("".join(text if is_learned else f"{opening}{text}{closing}" for text, is_learned in texts))


def _shortened(text: str) -> str:
    half = _MOST_SHOWN // 2
    return text if len(text) <= _MOST_SHOWN else f"{text[:half]} … {text[-half:]}"
