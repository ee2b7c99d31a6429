"""Embeddings that bindlm made: those of a feature store, and those of a folder of pictures, made one first."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindlm.caching.chunks import CHUNK_ROWS, Chunk, unit_rows
from bindlm.errors import CheckpointError, ConfigError

SENSE = "image"
"""What a visual cache is made of."""
PICTURES = "pictures"
"""How the data set is called that a folder of pictures becomes."""
_MAX_CAPTION_BYTES = 4096
_PICTURES_A_FILE = 2048
"""What a killed run embeds again at most."""
NamedRow = tuple[str, str | None, str | None]
"""Id, caption and source."""


def name_by_key(key: str) -> NamedRow:
    """The key of a medium as its id."""
    return key, None, None


class StoreSource:
    """The pictures of a finished feature store. It is a `CacheSource`.

    A picture that several keys have is one row, called by the first of them in the alphabet. Of several views the mean
    counts, as Tip-Adapter (arXiv 2111.03930) makes its keys of augmented pictures.

    Memory: 16 bytes a picture for the order of the keys, and as much again while they are sorted.

    Args:
        path: folder of the store.
        named: id, caption and source by key.

    Raises:
        CheckpointError: there is no store, it is unfinished or damaged.
        ConfigError: it holds no pictures.
    """

    def __init__(self, path: str | os.PathLike[str], *, named: Callable[[str], NamedRow] = name_by_key) -> None:
        from bindlm.training.features import FeatureStore
        from bindlm.training.features.keys import KeyTable
        from bindlm.training.features.record import read_record

        self.path = Path(path)
        self.notes: Sequence[str] = ()
        store = FeatureStore.open(self.path)  # which checks that it is finished and whole
        record = read_record(self.path)
        assert record is not None
        self._record, self._named = record, named
        self.name, self.dim = str(self.path), store.dim
        self.fingerprint, self.encoder = store.fingerprint, store.encoder
        self._starts = np.cumsum([0, *(shard.rows for shard in record.shards)])
        self._keys = KeyTable([(self.path / keys.file, keys.rows) for keys in record.keys])
        self._rows, self._positions = self._pictures()
        self.num_rows = len(self._rows)
        if not self.num_rows:
            held = ", ".join(store.modalities) or "nothing"
            raise ConfigError(f"the feature store {path} holds {held} and no pictures; a cache is made of these")

    def _pictures(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of pictures that some key has, `(R,)` rising, and the place of the first key of each, `(R,)`.

        The first by the alphabet: the order of the store's files tells which worker wrote which. A row that none
        has is a picture whose file was replaced since; its embedding stays in the store.
        """
        from bindlm.checkpoints import load_state

        assert self._record.index is not None
        state = load_state(self.path / self._record.index.file)
        rows, positions = state["row"].numpy(), state["position"].numpy()
        order = np.argsort(rows, kind="stable")
        rows, positions = rows[order], positions[order]
        is_kept = np.ones(len(rows), dtype=bool)
        is_kept[1:] = rows[1:] != rows[:-1]
        starts = np.flatnonzero(is_kept)
        ends = np.append(starts[1:], len(rows))
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            positions[start] = min(positions[start:end].tolist(), key=self._keys.key)
        for number, shard in enumerate(self._record.shards):
            if shard.modality != SENSE:
                begin, end = np.searchsorted(rows, self._starts[number : number + 2])
                is_kept[begin:end] = False
        return rows[is_kept], positions[is_kept]

    def digest(self) -> str:
        """Of the encoder, the media and their keys."""
        files = [(shard.file, shard.checksum) for shard in self._record.shards]
        index = self._record.index
        content = [self.fingerprint, self._record.views, files, index.file if index else None]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def keys(self) -> Iterator[str]:
        """All keys of the store, of media of any sense."""
        return (self._keys.entry(position).key for position in range(len(self._keys)))

    def chunks(self, start: int = 0) -> Iterator[Chunk]:
        """See `CacheSource.chunks`."""
        from bindlm.training.features.shards import read_shard

        while start < self.num_rows:
            number = int(np.searchsorted(self._starts, self._rows[start], side="right")) - 1
            shard, first = self._record.shards[number], int(self._starts[number])
            end = int(np.searchsorted(self._rows, first + shard.rows))
            embedding = read_shard(self.path, self._record, shard).embedding  # (N, V, D), mapped
            for begin in range(start, end, CHUNK_ROWS):
                places = slice(begin, min(begin + CHUNK_ROWS, end))
                views = embedding[self._rows[places] - first].astype(np.float32)  # (n, V, D)
                vectors = unit_rows(views.mean(axis=1), str(self.path / shard.file), begin)
                yield self._chunk(vectors, self._positions[places])
            start = end

    def _chunk(self, vectors: NDArray[np.float32], positions: NDArray[np.int64]) -> Chunk:
        named = [self._named(self._keys.entry(position).key) for position in positions.tolist()]
        ids, captions, sources = zip(*named, strict=True)
        return Chunk(vectors, list(ids), list(captions), list(sources))


class PictureFolder:
    """A folder of pictures as a data set: it is a `bindlm.training.features.scan.MediaSource`."""

    def __init__(self, folder: Path, follow_links: bool = False) -> None:
        from bindlm.folder import find_files

        self.name = PICTURES
        self.folder = folder
        files, self.unlisted = find_files(folder, (SENSE,), follow_links=follow_links)
        self.names = [file.key for file in files]
        if not files:
            raise ConfigError(f"{folder} holds no pictures; name another folder")

    @property
    def rows(self) -> "_Rows":
        """The pictures by their paths under the folder."""
        return _Rows(self.names)

    def read_media(self, media: str) -> Path:
        """The file of a picture."""
        return self.folder / media


class _Rows:
    """Rows of a data set that are made as they are read: a dictionary a picture would take 300 bytes."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[dict[str, str]]:
        return ({"media": name, "modality": SENSE} for name in self._names)


def embed_pictures(
    folder: str | os.PathLike[str],
    work: str | os.PathLike[str],
    embedder: Any,
    *,
    batch_size: int = 8,
    follow_links: bool = False,
    progress: bool = True,
) -> StoreSource:
    """The pictures of a folder and below it, embedded into a feature store: stopped, it goes on from there.

    Ids are paths under the folder; a caption is the text of the file beside a picture that is called like it and ends
    in `.txt`, as img2dataset leaves them.

    Args:
        folder: of pictures.
        work: folder for the embeddings, such as `work_folder(cache)`, where `build_cache` removes them once it is
            done.
        embedder: a `bindlm.embedding.Embedder`.
        batch_size: pictures encoded at once.
        follow_links: whether links to folders are followed.
        progress: whether to show a bar on stderr, at a terminal only.

    Raises:
        MediaError: there is no such folder.
        ConfigError: no pictures are in it, or none can be used; or the encoder takes none.
        CheckpointError: the disk is full; what is embedded stays.
    """
    from bindlm.training.features import extract_features
    from bindlm.training.stage_recipe import FeaturesConfig

    if SENSE not in embedder.modalities:
        raise ConfigError(f"{embedder.name} takes no pictures, but {', '.join(embedder.modalities)}")
    root = Path(os.path.abspath(folder))
    pictures = PictureFolder(root, follow_links)
    # Of a folder and an encoder of its own, so that nothing of another is taken for its pictures.
    name = hashlib.sha256(os.fsencode(root) + embedder.fingerprint.encode()).hexdigest()[:16]
    store = Path(work) / name

    def named(key: str) -> NamedRow:
        media = key.removeprefix(f"{PICTURES}/")
        return media, caption_beside(root / media), str(root / media)

    for _ in range(2):
        config = FeaturesConfig(os.fspath(store), batch_size=batch_size, shard_size=_PICTURES_A_FILE)
        report = extract_features([pictures], embedder, config, progress=progress)
        if not len(report.store):
            raise ConfigError(f"none of the pictures in {folder} can be used; the first: {report.unreadable[0][1]}")
        if not _has_others(StoreSource(store), pictures):
            break
        shutil.rmtree(store)  # pictures have gone since it was begun, and a store forgets none
    source = StoreSource(store, named=named)
    source.name = str(folder)
    left_out = [f"left out: {key.removeprefix(f'{PICTURES}/')}: {reason}" for key, reason in report.unreadable]
    alike = len(report.store) - source.num_rows
    if alike > 0:
        left_out.append(f"{alike} of the pictures have the content of another; each content is one entry")
    source.notes = [*left_out, *(f"left out: the folder {key} cannot be looked into" for key in pictures.unlisted)]
    return source


def _has_others(source: StoreSource, pictures: PictureFolder) -> bool:
    """Whether a store holds pictures that a folder no longer has."""
    held = {f"{PICTURES}/{name}" for name in pictures.names}
    return any(key not in held for key in source.keys())


def caption_beside(picture: Path) -> str | None:
    """The text beside a picture, as one line, or None where there is none."""
    try:
        with picture.with_suffix(".txt").open("rb") as stream:
            text = stream.read(_MAX_CAPTION_BYTES).decode("utf-8", errors="ignore")
    except OSError:
        return None
    return " ".join(text.split()) or None


def picture_fingerprint(embedder: Any, source: StoreSource) -> str:
    """The fingerprint of the picture tower that a feature store was made with.

    Raises:
        CheckpointError: ``embedder`` is another encoder.
    """
    fingerprint: str = embedder.fingerprint_of(SENSE)
    if source.fingerprint not in (embedder.fingerprint, fingerprint):
        raise CheckpointError(
            f"the feature store {source.path} was made with {source.encoder} ({source.fingerprint}), and "
            f"{embedder.name} has {embedder.fingerprint}; name the encoder that made it with --model"
        )
    return fingerprint
