"""COCO's captions: pictures and annotations in one JSON object, joined by the picture's number."""

from collections.abc import Iterator
from typing import Any

from bindlm.errors import ConfigError
from bindlm.media.names import printable
from bindlm.training.data.bad_rows import BadRow, BadRowError, LeftOut, shown
from bindlm.training.data.fields import media_of, modality_of_name, text_of
from bindlm.training.data.files import DataFile
from bindlm.training.data.rows import Outcome, json_document
from bindlm.training.data.sample import Sample
from bindlm.training.stage_recipe import SourceConfig

SUFFIXES = (".json",)


def read_coco(file: DataFile, config: SourceConfig) -> Iterator[Outcome]:
    """`captions_*.json`: one sample a picture, whose alternatives are all of its captions.

    Raises:
        ConfigError: The file is another.
    """
    document = json_document(file)
    images, annotations = document.get("images"), document.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise ConfigError(f'{printable(str(file.path))} lacks the lists "images" and "annotations" of COCO captions.')
    known = {number for image in images if isinstance(image, dict) and _is_id(number := image.get("id"))}
    captions: dict[Any, list[str]] = {}
    for number, annotation in enumerate(annotations, start=1):
        try:
            image_id, caption = _annotation(annotation)
            if image_id not in known:
                raise BadRowError("annotation of a picture that is not listed")
        except BadRowError as error:
            yield BadRow(file.label, number, str(error), shown(annotation))
        else:
            captions.setdefault(image_id, []).append(caption)
    for number, image in enumerate(images, start=1):
        try:
            yield _sample(file, image, captions)
        except BadRowError as error:
            yield BadRow(file.label, number, str(error), shown(image))


def _annotation(annotation: Any) -> tuple[Any, str]:
    if not isinstance(annotation, dict):
        raise BadRowError("not a JSON object")
    if not _is_id(image_id := annotation.get("image_id")):
        raise BadRowError("annotation without image_id")
    return image_id, text_of(annotation.get("caption"), "caption").strip()


def _sample(file: DataFile, image: Any, captions: dict[Any, list[str]]) -> Sample | LeftOut:
    if not isinstance(image, dict):
        raise BadRowError("not a JSON object")
    if not _is_id(number := image.get("id")):
        raise BadRowError("picture without id")
    name = media_of(image.get("file_name"))
    if number not in captions:
        return LeftOut("picture without captions, or listed twice")
    # Taken out, so that a picture that is listed twice is one sample.
    texts = tuple(dict.fromkeys(captions.pop(number)))
    return Sample(f"{file.label}:{number}", captions=texts, media=name, modality=modality_of_name(name))


def _is_id(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and value.isascii() and value.isprintable())
