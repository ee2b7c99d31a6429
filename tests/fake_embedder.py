"""An embedder in three dimensions that needs no weights: what is red points one way, what is green another.

Pictures count by their mean colour. Of any other file, and of text, the colours that it names count: b"red blue".
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bindlm.errors import ConfigError, MediaError
from bindlm.media import load_image
from bindlm.media.source import describe, read_bytes

COLOURS = ("red", "green", "blue")
SENSES = ("image", "video", "text", "audio", "depth", "thermal", "imu", "point")


class FakeEmbedder:
    """Has what the command and the folder's index use of `bindlm.embedding.Embedder`."""

    dim = 3

    def __init__(
        self, modalities: Sequence[str] = SENSES, *, name: str = "fake", fingerprint: str = "0123456789abcdef"
    ) -> None:
        self.modalities = tuple(modalities)
        self.name = name
        self.fingerprint = fingerprint
        self.batches: list[tuple[str, int]] = []
        """Sense and size of each batch encoded."""
        self.seen: list[str] = []
        """Names of the files preprocessed."""
        self.stop_after: int | None = None
        """Ctrl-C comes when so many files have been preprocessed."""

    def preprocess(self, modality: str, source: Any, *, allow_url: bool = False) -> Tensor:
        if modality not in self.modalities:
            raise ConfigError(f"FakeEmbedder has no {modality!r}; it takes {', '.join(self.modalities)}.")
        if isinstance(source, os.PathLike):
            if self.stop_after is not None and len(self.seen) >= self.stop_after:
                raise KeyboardInterrupt
            self.seen.append(os.path.basename(source))
        if modality == "image":
            colour = load_image(source, allow_url=allow_url).convert("RGB").resize((1, 1)).getpixel((0, 0))
            return torch.tensor(colour, dtype=torch.float32)
        medium = describe(source, modality)
        if modality == "text":
            content = str(source)
        else:
            content = read_bytes(source, medium, max_bytes=1000, allow_url=allow_url).decode(errors="replace")
        if "broken" in content:
            raise medium.error("it is broken", "Mend it")
        if "nan" in content:
            return torch.full((3,), torch.nan)
        return torch.tensor([200.0 * content.count(colour) for colour in COLOURS])

    def encode(self, modality: str, values: Tensor) -> Tensor:
        self.batches.append((modality, len(values)))
        return torch.nn.functional.normalize(values + 1.0, dim=-1)

    def embed(self, *, batch_size: int = 8, allow_url: bool = False, **media: Any) -> Tensor:
        ((modality, sources),) = media.items()
        listed = sources if isinstance(sources, list) else [sources]
        rows = []
        for _, row in self.stream(modality, listed, batch_size=batch_size, allow_url=allow_url):
            if isinstance(row, MediaError):
                raise row
            rows.append(row)
        return torch.stack(rows)

    def stream(
        self,
        modality: str,
        sources: Iterable[Any],
        *,
        batch_size: int = 8,
        workers: int | None = None,
        allow_url: bool = False,
    ) -> Iterator[tuple[int, Tensor | MediaError]]:
        listed = list(sources)
        for start in range(0, len(listed), batch_size):
            results: list[Tensor | MediaError] = []
            for source in listed[start : start + batch_size]:
                try:
                    results.append(self.preprocess(modality, source, allow_url=allow_url))
                except MediaError as error:
                    results.append(error)
            values = [result for result in results if isinstance(result, Tensor)]
            rows = iter(self.encode(modality, torch.stack(values)) if values else ())
            for number, result in enumerate(results, start):
                yield number, result if isinstance(result, MediaError) else next(rows)
