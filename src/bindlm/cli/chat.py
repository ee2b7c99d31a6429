"""bindlm chat --image cat.jpg"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence

from bindlm.cli.conversation import EXAMPLES, Conversation, check, open_media
from bindlm.cli.demo import show_demo
from bindlm.cli.loading import check_senses, load_model, set_seed
from bindlm.cli.media import SENSES, add_sense_options, given_media
from bindlm.cli.options import STANDARD_INPUT, add_answer_options
from bindlm.cli.output import print_error, printable
from bindlm.errors import BindLMError, ConfigError

FIRST_QUESTION = "What is this?"
PROMPT = "> "


def add_arguments(parser: ArgumentParser) -> None:
    # One word an option: `--text a dog` without quotes must not become two texts.
    add_sense_options(parser, tuple(SENSES), note=" to talk about", takes_many=False)
    parser.add_argument(
        "--demo",
        action="store_true",
        help="begin with the bundled media, of each sense that the model has, and a question about each",
    )
    add_answer_options(parser)


def run(options: Namespace) -> int:
    """Converse at a terminal; without one, answer about the media and then each line of standard input."""
    given = given_media(options)
    if sense := next((sense for sense, sources in given.items() if STANDARD_INPUT in sources), None):
        raise ConfigError(
            f"--{sense} - does not go with chat, which reads questions from standard input; "
            + ("give the words" if sense == "text" else "name a file")
        )
    if options.demo and given:
        raise ConfigError(f"--demo brings its own media; leave out --{next(iter(given))}, or --demo")
    media = open_media(given, allow_url=options.allow_url)  # before the model: a bad one is reported at once
    model = load_model(options.model, options.cache, options.quantize)
    check_senses(model, tuple(given), options.model)
    for shown in media:
        check(model, shown, allow_url=options.allow_url)
    set_seed(options.seed)
    conversation = show_demo(model, options) if options.demo else Conversation(model, options, media)
    if sys.stdin is not None and sys.stdin.isatty():
        return converse(conversation)
    if media:
        answer_aloud(conversation, FIRST_QUESTION)
    for line in piped_lines():
        if not obey(conversation, line):
            break
    return 0


def hint(conversation: Conversation) -> str:
    """What a prompt begins with."""
    about = ", ".join(printable(shown.name) for shown in conversation.media)
    commands = ", ".join(f"/{sense} {SENSES[sense][1]}" for sense in conversation.senses)
    return f"Ask {f'on about {about}' if about else 'anything'}, or show something: {commands}; /help, /quit."


def help_text(senses: Sequence[str]) -> str:
    """The commands, for a model with these senses."""
    showing = [(f"/{sense} {SENSES[sense][1]}", f"such as: /{sense} {EXAMPLES[sense]}") for sense in senses]
    adding = senses[-1] if senses else "image"
    others = [
        ("/add SENSE FILE", f"show something beside it, such as: /add {adding} {EXAMPLES[adding]}"),
        ("/clear", "forget what was shown and said"),
        ("/help", "this list"),
        ("/quit", "leave (so does Ctrl-D; Ctrl-C stops an answer)"),
    ]
    lines = [f"{command:<18}{meaning}" for command, meaning in (*showing, *others)]
    lines.insert(len(showing), "    (each in place of what was shown; the conversation starts anew)")
    return "\n".join(lines)


def converse(conversation: Conversation) -> int:
    """The conversation at a terminal. A mistake or a stopped answer leads back to the prompt."""
    note(hint(conversation))
    while True:
        try:
            line = read_line()
        except (EOFError, KeyboardInterrupt):
            note("\nBye.")
            return 0
        try:
            if not obey(conversation, line):
                note("Bye.")
                return 0
        except KeyboardInterrupt:
            note("\n(stopped; this turn is forgotten)")
        except BindLMError as error:
            print_error(str(error))


def obey(conversation: Conversation, line: str) -> bool:
    """Carry out one line, a question or a command; whether to go on."""
    line = line.strip()
    command, _, rest = line.partition(" ")
    if not line:
        return True
    if not line.startswith("/"):
        answer_aloud(conversation, line)
    elif command in ("/quit", "/exit"):
        return False
    elif command == "/help":
        note(help_text(conversation.senses))
    elif command == "/clear":
        conversation.show()
        note("(nothing is shown now; the conversation starts anew)")
    elif command == "/add":
        sense, _, rest = rest.strip().partition(" ")
        if sense not in SENSES or not rest.strip():
            raise ConfigError("/add needs a sense and a file, such as: /add image cat.jpg")
        conversation.show(*conversation.media, conversation.read(sense, rest))
        note(f"({conversation.described()})")
    elif command[1:] in SENSES:
        conversation.show(conversation.read(command[1:], rest))
        note(f"({conversation.described()})")
    else:
        raise ConfigError(f"there is no {command}; /help lists the commands")
    return True


def answer_aloud(conversation: Conversation, question: str) -> None:
    """Answer; where nobody typed the question at a prompt, repeat it on stderr so that the output can be followed."""
    if sys.stdin is None or not sys.stdin.isatty():
        note(PROMPT + question)
    conversation.ask(question)


def note(text: str) -> None:
    """Print what is not an answer: on stderr, so that stdout holds answers only."""
    print(text, file=sys.stderr, flush=True)


def read_line() -> str:
    """One line from the terminal, with editing and recall where readline is there.

    Raises:
        EOFError: The input has ended.
    """
    if sys.stdout.isatty():
        try:
            import readline  # noqa: F401 - importing it is what gives `input` its line editing
        except ImportError:
            pass
        return input(PROMPT)
    # `input` would write its prompt among the answers.
    print(PROMPT, end="", file=sys.stderr, flush=True)
    if line := sys.stdin.readline():
        return line
    raise EOFError


def piped_lines() -> Iterator[str]:
    """The lines of standard input, each as soon as it is there; none where it is closed."""
    if sys.stdin is None:
        return
    if reconfigure := getattr(sys.stdin, "reconfigure", None):
        reconfigure(errors="replace")
    yield from iter(sys.stdin.readline, "")
