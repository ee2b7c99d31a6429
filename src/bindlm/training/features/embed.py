"""A block of media to rows of a shard: reading, cropping and preprocessing run while the encoder works."""

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bindlm.errors import MediaError
from bindlm.folder import FolderEmbedder
from bindlm.media.names import Medium, printable
from bindlm.training.features.digests import bytes_digest
from bindlm.training.features.scan import NO_FILE, MediumRef, read_ahead
from bindlm.training.features.views import cut_views
from bindlm.training.stage_recipe import ViewsConfig

CROPPED = "image"
"""The sense that has several views; media of the others have one, which counts for all."""
_USUAL_SIDE = 224

Row = NDArray[np.float16]
ReadMedia = Callable[[int, str], Path | bytes]
"""Number of a source and the name of a medium to its file or its bytes."""


class MediaEmbedder(FolderEmbedder, Protocol):
    """What is needed of a `bindlm.embedding.Embedder`."""

    def preprocess(self, modality: str, source: Any, *, allow_url: bool = False) -> Tensor: ...


def embed_media(
    media: Sequence[MediumRef],
    read: ReadMedia,
    embedder: MediaEmbedder,
    views: ViewsConfig,
    *,
    batch_size: int,
    workers: int,
) -> Generator[tuple[int, Row | MediaError | None], None, None]:
    """Embed media of one sense.

    Args:
        media: of one modality.
        read: gives a medium.
        embedder: the encoder.
        views: how pictures are cropped.
        batch_size: rows a pass of the encoder.
        workers: threads that read and decode.

    Yields:
        In order the number of each medium, and `(V, D_joint)` fp16 of unit length, or the error that it has met; None
        where its file is no longer what it was when its content was looked at.
    """
    if not media:
        return
    modality = media[0].modality
    is_cropped = modality == CROPPED and views.num_views > 1
    rows_each = views.num_views if is_cropped else 1
    side = input_side(embedder) if is_cropped else 0
    owners: list[int] = []
    unread: dict[int, MediaError | None] = {}

    def prepare(ref: MediumRef) -> list[Any] | MediaError | None:
        try:
            source = read(ref.source, ref.media)
            if has_changed(ref, source):
                return None
            return cut_views(source, views, ref.content, side) if is_cropped else [source]
        except MediaError as error:
            return error

    def sources() -> Iterator[Any]:
        ready = read_ahead(prepare, media, workers=workers, depth=2 * batch_size)
        for number, prepared in enumerate(ready):
            if isinstance(prepared, list):
                owners.extend([number] * rows_each)
                yield from prepared
            else:
                unread[number] = prepared

    done = 0
    results: list[Tensor | MediaError] = []
    for order, result in embedder.stream(modality, sources(), batch_size=batch_size, workers=workers):
        results.append(result)
        if len(results) < rows_each:
            continue
        for number in range(done, owners[order]):
            yield number, _checked(media[number], unread[number], read)
        done = owners[order] + 1
        yield owners[order], _checked(media[owners[order]], _row(media[owners[order]], results, views), read)
        results = []
    for number in range(done, len(media)):
        yield number, _checked(media[number], unread[number], read)


def has_changed(ref: MediumRef, source: Path | bytes) -> bool:
    """Whether a medium is not what it was when its content was looked at."""
    if isinstance(source, bytes):
        return bytes_digest(source, ref.modality) != ref.content
    try:
        status = source.stat()
    except OSError:
        return True
    return (status.st_size, status.st_mtime_ns) != (ref.size, ref.mtime_ns)


def input_side(embedder: MediaEmbedder) -> int:
    """Pixels of a side of the pictures that an encoder looks at; 224 where its preprocessing does not tell."""
    shape = embedder.preprocess(CROPPED, np.zeros((8, 8, 3), dtype=np.uint8)).shape
    return shape[-1] if len(shape) >= 3 and shape[-1] == shape[-2] else _USUAL_SIDE


def _row(ref: MediumRef, results: list[Tensor | MediaError], views: ViewsConfig) -> Row | MediaError:
    """`(V, D_joint)` of the rows of one medium."""
    if errors := [result for result in results if isinstance(result, MediaError)]:
        return errors[0]
    rows = torch.stack([result for result in results if isinstance(result, Tensor)]).half().numpy()
    if not np.isfinite(rows).all():
        medium = Medium(ref.modality, f"'{printable(ref.media)}'")
        return medium.error("the encoder makes no number of it", "Try another version of it, or another encoder")
    return np.ascontiguousarray(np.broadcast_to(rows, (views.num_views, rows.shape[1])))  # (V, D_joint)


def _checked(ref: MediumRef, result: Row | MediaError | None, read: ReadMedia) -> Row | MediaError | None:
    """The result, unless the file was written to meanwhile: then it is of nobody knows what."""
    if result is None or ref.mtime_ns == NO_FILE:
        return result
    try:
        return None if has_changed(ref, read(ref.source, ref.media)) else result
    except MediaError:
        return None
