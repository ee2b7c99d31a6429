"""What a chat is about: the media that are shown, and what was said about them."""

import os
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any

from bindlm.cli.loading import check_senses
from bindlm.cli.media import SENSES, check_before_loading
from bindlm.cli.options import STANDARD_INPUT, answer_settings, load_picture
from bindlm.cli.output import AnswerPrinter, printable
from bindlm.errors import ConfigError

EXAMPLES = {
    "image": "cat.jpg",
    "video": "walk.mp4",
    "text": "a dog",
    "audio": "horn.wav",
    "point": "chair.obj",
    "depth": "room.png",
    "thermal": "street.png",
    "imu": "walk.csv",
}
"""Sense -> what may stand after its command."""
DOING = {"audio": "listening to", "text": "thinking of", "imu": "feeling"}
"""Sense -> what one does with it, where that is not looking."""


@dataclass(frozen=True)
class Shown:
    """One medium of the conversation."""

    sense: str
    name: str
    """What the user calls it: a path, or the words of a text."""
    source: Any
    """What `model.answer` takes: a decoded picture, a path, or a text."""


@dataclass
class Conversation:
    """Some media and what was said about them."""

    model: Any
    options: Namespace
    media: list[Shown] = field(default_factory=list)
    history: list[dict[str, str]] = field(default_factory=list)

    def ask(self, question: str, printer: AnswerPrinter | None = None) -> None:
        """Stream the answer to stdout. A turn that is stopped or fails is not remembered."""
        printer = printer or AnswerPrinter()
        # the first answer puts the media into words; from there the untouched language model converses better
        media = {} if self.history else as_keywords(self.media)
        answer = self.model.answer(
            question,
            media.pop("image", None),
            history=list(self.history),
            stream=printer,
            allow_url=self.options.allow_url,
            **media,
            **answer_settings(self.options),
        )
        printer.finish(answer.text)
        self.history += [{"role": "user", "content": question}, {"role": "assistant", "content": answer.text}]

    def show(self, *media: Shown) -> None:
        """Begin anew with other media, or with none: old answers about an old one would mislead the model."""
        self.media = list(media)
        self.history.clear()

    @property
    def senses(self) -> tuple[str, ...]:
        """Senses of the model, in the order in which they are listed."""
        return senses_of(self.model)

    def read(self, sense: str, text: str) -> Shown:
        """The medium that a command names.

        Raises:
            ConfigError: The model lacks the sense, or nothing is named.
            MediaError: The medium cannot be used.
        """
        check_senses(self.model, [sense], self.options.model)
        text = text.strip()
        if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":  # a terminal quotes what is dropped on it
            text = text[1:-1].strip()
        if not text or (text == STANDARD_INPUT and sense != "text"):
            wanted = "words" if sense == "text" else "the name of a file"
            raise ConfigError(f"/{sense} needs {wanted}, such as: /{sense} {EXAMPLES[sense]}")
        name = text if sense == "text" else os.path.expanduser(text)
        if sense == "image":
            return Shown(sense, name, load_picture(name, allow_url=self.options.allow_url))
        shown = Shown(sense, name, name)
        check(self.model, shown, allow_url=self.options.allow_url)
        return shown

    def described(self) -> str:
        """``looking at cat.jpg, listening to horn.wav``."""
        doing = (f"{DOING.get(shown.sense, 'looking at')} {printable(shown.name)}" for shown in self.media)
        return ", ".join(doing)


def senses_of(model: Any) -> tuple[str, ...]:
    """Senses that a bound model takes, in the order of `SENSES`."""
    return tuple(sense for sense in SENSES if sense in model.encoder.modalities)


def as_keywords(media: list[Shown]) -> dict[str, Any]:
    """Sense -> its medium, or a list of several, as `model.answer` takes them."""
    given: dict[str, list[Any]] = {}
    for shown in media:
        given.setdefault(shown.sense, []).append(shown.source)
    return {sense: sources[0] if len(sources) == 1 else sources for sense, sources in given.items()}


def open_media(given: dict[str, list[str]], *, allow_url: bool) -> list[Shown]:
    """The media of a command line, before a model is loaded: pictures decoded, of other senses whether they are there.

    Raises:
        MediaError: One of them cannot be used.
    """
    others = {sense: sources for sense, sources in given.items() if sense != "image"}
    check_before_loading(others, allow_url=allow_url, skip_bad=False)
    return [
        Shown(sense, source, load_picture(source, allow_url=allow_url) if sense == "image" else source)
        for sense, sources in given.items()
        for source in sources
    ]


def check(model: Any, shown: Shown, *, allow_url: bool) -> None:
    """Say now that a medium is bad, not at the next question; a question reads it once more.

    Raises:
        MediaError: It cannot be used.
    """
    from bindlm.media import load_text

    if shown.sense == "text":  # its tower's own preprocessing may have to be fetched first
        load_text(shown.source)
    elif shown.sense != "image":
        model.encoder.preprocess(shown.sense, shown.source, allow_url=allow_url)
