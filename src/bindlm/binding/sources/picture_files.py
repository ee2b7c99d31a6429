"""Pictures that a data script writes: PNG, whole or not there, and never without anything to see."""

import io
from pathlib import Path

from PIL import Image

from bindlm.binding.sources.source import write_bytes
from bindlm.errors import MediaError


def write_png(file: Path, picture: Image.Image) -> None:
    """Write a picture as PNG, at once.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    write_bytes(file, png_of(picture))


def png_of(picture: Image.Image) -> bytes:
    """A picture as PNG."""
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()


def check_visible(data: bytes, named: str) -> None:
    """Refuse the bytes of a picture in which there is nothing to see.

    Args:
        data: what is in the file.
        named: what the message calls it.

    Raises:
        MediaError: it is broken, or wholly transparent.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            is_empty = picture.convert("RGBA").getbbox() is None
    except Exception as error:  # a broken picture raises whatever its decoder likes
        raise MediaError(f"Cannot use {named}: it is no whole picture.") from error
    if is_empty:
        raise MediaError(f"Cannot use {named}: nothing in it is visible.")
