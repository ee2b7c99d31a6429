"""One sample, whatever file it came from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """What one side said."""

    role: str
    """One of system, user and assistant."""
    text: str
    """The words, without any template."""
    context: str | None = None
    """Alpaca's `input`: further context of an instruction; an empty string is the same as None."""


@dataclass(frozen=True)
class Sample:
    """Words to learn, and the medium they are about.

    A caption sample has `captions` and no `turns`: what the model is asked is the stage's business, and of several
    captions one is drawn each epoch, as in the release.
    """

    id: str
    """Unique within its source."""
    turns: tuple[Turn, ...] = ()
    """A conversation that ends with an assistant's turn."""
    captions: tuple[str, ...] = ()
    """Alternatives, each of which describes the medium."""
    media: str | None = None
    """Name of its medium within the source, which `Source.read_media` takes; None for text only."""
    modality: str = "image"
    """Sense of the medium."""
