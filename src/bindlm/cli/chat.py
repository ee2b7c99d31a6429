"""bindlm chat --image cat.jpg"""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bindlm.cli.loading import load_model, set_seed
from bindlm.cli.options import add_answer_options, answer_settings, as_image_argument, load_picture, load_pictures
from bindlm.cli.output import AnswerPrinter, print_error
from bindlm.errors import BindLMError, ConfigError

FIRST_QUESTION = "What is this?"
PROMPT = "> "
HINT = "Ask on about what was said, or /image FILE to look at a picture, /help, /quit."
HELP = """\
/image FILE   look at another picture, or once more at this one; the conversation starts anew
/clear        forget the picture and the conversation
/help         this list
/quit         leave (so does Ctrl-D; Ctrl-C stops an answer)"""


def add_arguments(parser: ArgumentParser) -> None:
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="a picture to talk about; several are mixed",
    )
    shown.add_argument("--demo", action="store_true", help="begin with the bundled picture and a question about it")
    add_answer_options(parser)


def run(options: Namespace) -> int:
    """Converse at a terminal; without one, answer about the picture and then each line of standard input."""
    if "-" in options.image:
        raise ConfigError("--image - does not go with chat, which reads questions from standard input; name a file")
    sources = [str(demo_picture())] if options.demo else options.image
    pictures = load_pictures(sources, allow_url=options.allow_url)
    conversation = Conversation(load_model(options.model), options, as_image_argument(pictures))
    set_seed(options.seed)
    is_terminal = sys.stdin is not None and sys.stdin.isatty()
    if options.demo:
        show_demo(conversation, sources[0])
    if is_terminal:
        return converse(conversation)
    if pictures and not options.demo:
        answer_aloud(conversation, FIRST_QUESTION)
    for line in piped_lines():
        if not obey(conversation, line):
            break
    return 0


def demo_picture() -> Path:
    """The picture that the package carries."""
    import bindlm

    return Path(bindlm.__path__[0]) / "mini" / "demo.jpg"


@dataclass
class Conversation:
    """One picture and what was said about it."""

    model: Any
    options: Namespace
    image: Any = None
    """What `model.answer` takes as its image: None, a picture, or a list of them."""
    history: list[dict[str, str]] = field(default_factory=list)

    def ask(self, question: str) -> None:
        """Stream the answer to stdout. A turn that is stopped or fails is not remembered."""
        printer = AnswerPrinter()
        # the first answer puts the picture into words; from there the untouched language model converses better
        answer = self.model.answer(
            question,
            None if self.history else self.image,
            history=list(self.history),
            stream=printer,
            **answer_settings(self.options),
        )
        printer.finish(answer.text)
        self.history += [{"role": "user", "content": question}, {"role": "assistant", "content": answer.text}]

    def look_at(self, image: Any) -> None:
        """Begin anew with another picture, or with none: old answers about an old picture would mislead the model."""
        self.image = image
        self.history.clear()


def show_demo(conversation: Conversation, source: str) -> None:
    """Show a whole turn on stdout: the picture's path, the question, the answer."""
    print(f"picture:  {source}\nquestion: {FIRST_QUESTION}\nanswer:   ", end="", flush=True)
    conversation.ask(FIRST_QUESTION)


def converse(conversation: Conversation) -> int:
    """The conversation at a terminal. A mistake or a stopped answer leads back to the prompt."""
    note(HINT)
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
        note(HELP)
    elif command == "/clear":
        conversation.look_at(None)
        note("(no picture now; the conversation starts anew)")
    elif command == "/image":
        show_picture(conversation, rest.strip())
    else:
        raise ConfigError(f"there is no {command}; /help lists the commands")
    return True


def show_picture(conversation: Conversation, text: str) -> None:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":  # a terminal quotes what is dropped on it
        text = text[1:-1]
    if not text or text == "-":
        raise ConfigError("/image needs the name of a file, such as: /image cat.jpg")
    path = os.path.expanduser(text)
    conversation.look_at(load_picture(path, allow_url=conversation.options.allow_url))
    note(f"(looking at {path})")


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
