"""The frozen side: an embedding of every anchor, made once.

Anchors never change while a tower learns, so that a batch of thousands costs nothing but the tower (ImageBind's and
LanguageBind's setting, where the anchor is frozen too).
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bindlm.binding.array_store import ArrayStore
from bindlm.binding.pairs import AnchorSide
from bindlm.binding.recipe import AnchorRecipe
from bindlm.checkpoints.state import load_state, sha256_of
from bindlm.embedding import Embedder
from bindlm.errors import ConfigError, MediaError
from bindlm.space.zero_shot import TEMPLATE_SETS, class_embeddings
from bindlm.training.features.embed import input_side
from bindlm.training.features.views import cut_views
from bindlm.training.stage_recipe import ViewsConfig

__all__ = ["AnchorBank", "feature_bank", "read_distractors", "text_prototypes"]

Advance = Callable[[int], object]


@dataclass(frozen=True)
class AnchorBank:
    """Embeddings of the anchors of one column."""

    rows: NDArray[np.float32]
    """`(A, V, D_joint)`, unit length; zeros where an anchor cannot be used."""
    unusable: dict[int, str]
    """Number of an anchor -> why."""
    fingerprint: str
    """Of what they were made with."""

    @property
    def dim(self) -> int:
        """D_joint."""
        return self.rows.shape[2]

    @property
    def num_views(self) -> int:
        """V."""
        return self.rows.shape[1]

    def get(self, numbers: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.float32]:
        """`(B, D_joint)`: a view of each anchor; zeros for number -1."""
        picked = self.rows[numbers, views % self.num_views]  # (B, D_joint)
        return np.where((numbers >= 0)[:, None], picked, np.float32(0))

    def centres(self, numbers: NDArray[np.int64]) -> Tensor:
        """`(B, D_joint)`: each anchor's views averaged, unit length."""
        return F.normalize(torch.from_numpy(self.rows[numbers]).mean(dim=1), dim=-1)


def feature_bank(side: AnchorSide) -> AnchorBank:
    """The ready embeddings that a table's `feature` column counts the rows of.

    Raises:
        ConfigError: a file holds no `(N, D)` or `(N, V, D)`, or lacks a row; or two differ in shape.
        CheckpointError: a file is damaged.
    """
    places = [name.rpartition("#") for name in side.anchors]
    files = {file: _features(Path(file)) for file in dict.fromkeys(file for file, _, _ in places)}
    if len({values.shape[1:] for values in files.values()}) > 1:
        shapes = ", ".join(f"{file} {values.shape}" for file, values in files.items())
        raise ConfigError(f"Tables that are trained on together need features of one width and number: {shapes}.")
    rows, unusable = [], {}
    for number, (file, _, row) in enumerate(places):
        if int(row) >= len(files[file]):
            raise ConfigError(f"{file} has {len(files[file])} rows, from 0, and a table asks for row {row}.")
        values = np.asarray(files[file][int(row)], dtype=np.float32)  # (V, D)
        lengths = np.linalg.norm(values, axis=-1, keepdims=True)
        if not np.isfinite(values).all() or not (lengths > 0).all():
            unusable[number] = "the row holds no direction (zeros or no numbers)"
            values, lengths = np.zeros_like(values), np.ones_like(lengths)
        rows.append(values / lengths)
    digest = hashlib.sha256("".join(sha256_of(file) for file in sorted(files)).encode()).hexdigest()[:16]
    return AnchorBank(np.stack(rows), unusable, digest)


def read_distractors(file: Path | None, dim: int) -> Tensor | None:
    """Embeddings that no medium is of, `(M, D_joint)`, unit length.

    Raises:
        ConfigError: the file holds something else, or is of another width.
        CheckpointError: it is missing or damaged.
    """
    if file is None:
        return None
    values = np.asarray(_features(file), dtype=np.float32)[:, 0]
    if values.shape[1] != dim:
        raise ConfigError(f"{file} holds embeddings {values.shape[1]} wide, and the anchors are {dim} wide.")
    return F.normalize(torch.from_numpy(values), dim=-1)


def _features(path: Path) -> NDArray[Any]:
    """`(N, V, D)`, memory-mapped."""
    if path.suffix == ".npy":
        try:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError):
            raise ConfigError(f"{path} is damaged or no .npy file of numbers.") from None
    else:
        state = load_state(path)
        if len(state) != 1:
            raise ConfigError(f"{path} must hold one tensor (N, D) or (N, V, D), got {', '.join(state) or 'none'}.")
        values = next(iter(state.values())).float().numpy()
    if values.ndim not in (2, 3) or not np.issubdtype(values.dtype, np.floating):
        raise ConfigError(f"{path} must hold features (N, D) or (N, V, D), got {values.shape} of {values.dtype}.")
    return values[:, None] if values.ndim == 2 else values


def encoded_bank(
    side: AnchorSide, embedder: Embedder, recipe: AnchorRecipe, cache: Path, advance: Advance
) -> AnchorBank:
    """Embeddings by the frozen anchor; what the cache has is not made again.

    Args:
        side: the column.
        embedder: the anchor.
        recipe: views and templates.
        cache: folder of stores, one for each anchor and each way to use it.
        advance: told how many are done.

    Raises:
        ConfigError: the anchor lacks the column's sense.
        CheckpointError: the disk is full.
    """
    modality = side.column.column
    if modality not in embedder.modalities:
        raise ConfigError(
            f"The anchor {embedder.name} has no {modality!r}, which a column is named after; it takes "
            f"{', '.join(embedder.modalities)}."
        )
    views = recipe.views if modality == "image" else 1
    templates = recipe.templates if modality == "text" else ()
    way = hashlib.sha256(repr((modality, views, templates)).encode()).hexdigest()[:8]
    fingerprint = embedder.fingerprint_of(modality)
    store = ArrayStore(cache / f"anchors-{fingerprint}-{modality}-{way}")
    names = [_name(modality, anchor) for anchor in side.anchors]
    missing = [number for number, name in enumerate(names) if name not in store]
    advance(len(names) - len(missing))
    for number, made in _embed(embedder, modality, [side.anchors[n] for n in missing], views, templates, recipe):
        name = names[missing[number]]
        if isinstance(made, MediaError):
            store.put_error(name, str(made))
        elif name not in store:
            store.put(name, made)
        advance(1)
    unusable = {number: why for number, name in enumerate(names) if (why := store.error(name)) is not None}
    rows = np.zeros((len(names), views, embedder.dim), dtype=np.float32)
    for number, name in enumerate(names):
        if number not in unusable:
            rows[number] = store.get(name)
    return AnchorBank(rows, unusable, fingerprint)


def _embed(
    embedder: Embedder,
    modality: str,
    anchors: Sequence[str],
    views: int,
    templates: tuple[str, ...],
    recipe: AnchorRecipe,
) -> Iterator[tuple[int, NDArray[np.float32] | MediaError]]:
    """In order the number of each anchor and its `(V, D_joint)`, unit length, or why there is none."""
    if templates:
        for number, text in enumerate(anchors):
            yield number, text_prototypes(embedder, [text], templates).numpy()
        return
    if views > 1:
        yield from _embed_views(embedder, anchors, views, recipe.batch_size)
        return
    for number, row in embedder.stream(modality, anchors, batch_size=recipe.batch_size):
        yield number, row if isinstance(row, MediaError) else row.numpy()[None]


def _embed_views(
    embedder: Embedder, pictures: Sequence[str], views: int, batch_size: int
) -> Iterator[tuple[int, NDArray[np.float32] | MediaError]]:
    """The first view is the whole picture, as at inference; the others are random crops."""
    crops, side = ViewsConfig(num_views=views - 1), input_side(embedder)
    for number, picture in enumerate(pictures):
        try:
            content = hashlib.blake2b(Path(picture).read_bytes(), digest_size=16).digest()
            cut = [picture, *cut_views(picture, crops, content, side)]
            yield number, embedder.embed(image=cut, batch_size=batch_size).numpy()
        except MediaError as error:
            yield number, error
        except OSError as error:
            yield number, MediaError(f"{picture}: it cannot be read ({error.strerror}).")


def text_prototypes(embedder: Embedder, texts: Sequence[str], templates: Sequence[str]) -> Tensor:
    """`(C, D_joint)`, unit length: each text's sentences, averaged.

    Source: Point-Bind (arXiv 2309.00615), section 3.2, and ULIP, which it builds on; CLIP, section 3.1.4.
    """
    named = TEMPLATE_SETS.get(templates[0]) if len(templates) == 1 else None
    return class_embeddings(lambda prompts: embedder.embed(text=prompts), texts, named or templates)


def _name(modality: str, anchor: str) -> str:
    """An anchor as its store knows it: a file that has changed is another one."""
    if modality == "text":
        return anchor
    return file_name(anchor)


def file_name(path: str) -> str:
    """A file by name, size and time of change."""
    try:
        status = Path(path).stat()
    except OSError:
        return path
    return f"{path}|{status.st_size}|{status.st_mtime_ns}"


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Advance]:
    """A bar on stderr, at a terminal only."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, disable=None, dynamic_ncols=True) as bar:
        yield bar.update
