"""The `bindlm` command: a table of verbs, each one file that is thin over the public API.

Start-up is kept short: a verb's module is imported when the verb is used, torch when a model is needed.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib import import_module

from bindlm.cli.output import close_broken_stdout, is_debugging, print_error
from bindlm.cli.parser import Parser
from bindlm.errors import BindLMError, CheckpointError, ConfigError, MediaError

VERBS = {
    "ask": "answer one question, about pictures or about none",
    "chat": "hold a conversation about a picture",
    "embed": "write the joint embeddings of media to a file, or draw them",
    "classify": "say which of some words fits a medium best",
    "search": "find the media of a folder that are like words or like a medium",
    "train": "run a stage of training from a recipe, or go on with it",
    "bind": "bind a new sense to a frozen encoder's space",
    "features": "embed a recipe's pictures once, so that training need not",
    "cache": "build, change and ask a visual cache of pictures",
    "convert": "make a folder for bindlm of a published checkpoint and its LLaMA",
    "data": "read a training data set and say what is in it",
    "bench": "measure how well a model answers",
}
"""Verb -> what `bindlm --help` says of it; `bindlm.cli.VERB` holds its `add_arguments` and `run`."""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_MEDIA = 3
EXIT_WEIGHTS = 4
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
"""128 plus the signal's number for the last two, as shells count."""

EXTRA_OF_PACKAGE = {
    "accelerate": "train",
    "datasets": "train",
    "matplotlib": "train",
    "pyarrow": "cache",
    "ray": "ray",
    "tensorboard": "tensorboard",
    "yaml": "train",
}
"""A package that only some verbs need -> the extra that installs it."""

EPILOG = """\
examples:
  bindlm ask "What is this?" --image cat.jpg
  bindlm chat --image cat.jpg
  bindlm embed --image *.jpg -o pictures.safetensors
  bindlm search --image cat.jpg photos

exit codes:
  0 answered   2 bad usage   3 bad input   4 weights not to be had   130 stopped by Ctrl-C

BINDLM_HOME names the folder for fetched weights; BINDLM_DEBUG=1 shows tracebacks."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        arguments: Words after `bindlm`; those of the process if None.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a letter gets an escape in its place instead of an abort in mid-answer.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
        sys.stdout.flush()  # here, where a broken pipe is still ours to handle
        return code
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the terminal has written ^C where the answer stood
        print_error("stopped", kind="")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `bindlm ask … | head -1`: the reader has what it wanted
        close_broken_stdout()
        return EXIT_BROKEN_PIPE
    except Exception as error:
        if is_debugging():
            raise
        message, code = explain(error)
        print_error(message)
        return code


def _run(arguments: Sequence[str]) -> int:
    try:
        options, run = parse(arguments)
    except SystemExit as stop:  # argparse has printed the help, the version or a usage error
        return stop.code if isinstance(stop.code, int) else EXIT_FAILED
    return run(options)


def parse(arguments: Sequence[str]) -> tuple[Namespace, Callable[[Namespace], int]]:
    """The options of a command line, and the function of its verb that takes them.

    Raises:
        SystemExit: --help, --version, or a usage error, all of them already printed.
    """
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    parser = build_parser(chosen)
    if chosen is not None and chosen not in VERBS and arguments[0] == chosen:
        parser.error(_unknown_verb(chosen))
    options = parser.parse_args(arguments)
    if options.verb is None:
        parser.error(f"which verb? There are {', '.join(VERBS)}")
    run: Callable[[Namespace], int] = import_module(f"bindlm.cli.{options.verb}").run
    return options, run


def build_parser(chosen: str | None) -> Parser:
    """A parser that knows every verb by name, and the arguments of the ``chosen`` one."""
    from bindlm import __version__

    parser = Parser(
        prog="bindlm",
        description="Bind pictures and other senses into a language model, and talk with it.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"bindlm {__version__}")
    verbs = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB")
    for verb, summary in VERBS.items():
        subparser = verbs.add_parser(verb, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if verb == chosen:
            import_module(f"bindlm.cli.{verb}").add_arguments(subparser)
            parser.speaks_for = verb  # argparse reports unknown options of a verb through the parser above it
    return parser


def explain(error: Exception) -> tuple[str, int]:
    """What to print about an error and which exit code to end with."""
    if isinstance(error, MediaError):
        return str(error), EXIT_MEDIA
    if isinstance(error, CheckpointError):
        return str(error), EXIT_WEIGHTS
    if isinstance(error, ConfigError):
        return str(error), EXIT_USAGE
    if isinstance(error, BindLMError):
        return str(error), EXIT_FAILED
    if isinstance(error, ModuleNotFoundError) and (extra := EXTRA_OF_PACKAGE.get(error.name or "")):
        return f"this needs the package {error.name}\ninstall it with: pip install 'bindlm[{extra}]'", EXIT_USAGE
    # The text of a foreign error may hold anything; its name and a traceback on demand serve a bug report better.
    return f"unexpected {type(error).__name__}\nset BINDLM_DEBUG=1 and run it again to see where", EXIT_FAILED


def _unknown_verb(word: str) -> str:
    from difflib import get_close_matches

    if any(char.isspace() for char in word):
        return f"a question goes with the verb ask: bindlm ask {word!r}"
    if close := get_close_matches(word.lower(), VERBS, n=1, cutoff=0.5):
        return f"there is no verb {word!r}; did you mean {close[0]!r}?"
    return f"there is no verb {word!r}; there are {', '.join(VERBS)}"
