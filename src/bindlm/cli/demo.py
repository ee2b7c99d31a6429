"""The bundled media, each shown with a question and the model's answer."""

import os
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bindlm.cli.conversation import Conversation, Shown, senses_of
from bindlm.cli.output import AnswerPrinter, print_error
from bindlm.errors import BindLMError, ConfigError


@dataclass(frozen=True)
class DemoMedium:
    """One row of the demo."""

    sense: str
    label: str
    """What stands before its path."""
    file: str
    """Beside the bundled model."""
    question: str = "What is this?"


DEMO = (
    DemoMedium("image", "picture", "demo.jpg"),
    DemoMedium("audio", "sound", "demo.flac"),
    DemoMedium("point", "shape", "demo.ply"),
)
"""In the order in which they are shown; a model that lacks the sense is not asked."""


def demo_folder() -> Path:
    """Where the package carries the media."""
    import bindlm

    return Path(bindlm.__path__[0]) / "mini"


def show_demo(model: Any, options: Namespace) -> Conversation:
    """Show each medium that the model has a sense for on stdout: its path, the question, the answer.

    A medium that fails, be it that a part of the model cannot be fetched, is reported and the next one is shown.

    Returns:
        The conversation about the last one that was answered.

    Raises:
        BindLMError: None was answered.
    """
    folder, senses = demo_folder(), senses_of(model)
    media = [medium for medium in DEMO if medium.sense in senses and (folder / medium.file).is_file()]
    conversation: Conversation | None = None
    for number, medium in enumerate(media):
        if number:
            print(flush=True)
        try:
            conversation = show_medium(model, options, medium, folder / medium.file)
        except BindLMError as error:
            if conversation is None and number == len(media) - 1:
                raise
            print_error(str(error))
    if conversation is None:
        raise ConfigError(f"there is no demo for this model, which takes {', '.join(senses)}; leave out --demo")
    return conversation


def show_medium(model: Any, options: Namespace, medium: DemoMedium, path: Path) -> Conversation:
    """Show one medium and its answer; the conversation about it."""
    name = short_name(path)
    conversation = Conversation(model, options, [Shown(medium.sense, name, str(path))])
    print(f"{medium.label + ':':<10}{name}\nquestion: {medium.question}", flush=True)
    printer = LabelledPrinter()
    try:
        conversation.ask(medium.question, printer)
    except BaseException:
        if printer.has_printed:
            print(flush=True)  # what comes next does not belong to the answer's line
        raise
    return conversation


class LabelledPrinter(AnswerPrinter):
    """Writes its label with the first piece: what is fetched for an answer is told above its line, not in it."""

    def __call__(self, piece: str) -> None:
        if piece and not self.has_printed:
            sys.stdout.write("answer:   ")
        super().__call__(piece)

    def finish(self, text: str) -> None:
        """As `AnswerPrinter.finish`."""
        if not self.has_printed:
            sys.stdout.write("answer:   ")
        super().finish(text)


def short_name(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return os.fspath(path.relative_to(here) if path.is_relative_to(here) else path)
