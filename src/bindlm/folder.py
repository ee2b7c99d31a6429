"""A folder of media as an index that keeps up with it: what is new is embedded, what is gone is dropped.

import bindlm
from bindlm.folder import update_index

embedder = bindlm.load_embedder()
update = update_index("photos", embedder)
update.index.search(embedder.embed(image="cat.jpg"))  # [[Hit(key='2024/tabby.jpg', modality='image', score=0.93)]]
"""

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from bindlm.checkpoints.home import home_path
from bindlm.checkpoints.locks import locked
from bindlm.errors import ConfigError, MediaError
from bindlm.media.names import Medium, printable
from bindlm.space.index import EmbeddingIndex, FileStamp, IndexEntry, UnreadableEntry

INDEX_NAME = ".bindlm-index"
"""Of the index inside the folder that it is about; names with a dot in front are never looked into."""

SUFFIXES: dict[str, tuple[str, ...]] = {
    "image": tuple(".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .tif .tiff .pbm .pgm .ppm .pnm .mpo".split()),
    "audio": tuple(
        ".wav .wave .w64 .flac .mp3 .ogg .oga .opus .m4a .aac .aif .aiff .aifc .au .caf .wma .amr .mka".split()
    ),
    "video": tuple(".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .wmv .flv .3gp .ogv .mts .m2ts".split()),
    "point": tuple(".ply .pcd .xyz .pts .off .obj .stl .glb".split()),
}
"""Sense -> endings of files that can be nothing else. Depth and heat come as .png or .npy, movement as .csv: those
could be anything, so a folder is not searched for them."""

_MODALITY_OF_SUFFIX = {suffix: modality for modality, suffixes in SUFFIXES.items() for suffix in suffixes}
_CHUNK = 1 << 20
_SAVE_COST = 10
"""A save writes the whole index: the pause before the next is this many times what the last one took, at least."""


class FolderEmbedder(Protocol):
    """What is needed of a `bindlm.embedding.Embedder`."""

    @property
    def modalities(self) -> tuple[str, ...]: ...
    @property
    def dim(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    def stream(
        self, modality: str, sources: Iterable[Any], *, batch_size: int = 8, workers: int | None = None
    ) -> Iterator[tuple[int, Tensor | MediaError]]: ...


@dataclass(frozen=True)
class FolderUpdate:
    """What an update found and did."""

    index: EmbeddingIndex
    """Of the folder as it is now."""
    path: Path
    """Where the index lies."""
    embedded: int = 0
    """Files that were new or changed."""
    kept: int = 0
    """Files whose row was there already, under this name or another."""
    dropped: int = 0
    """Rows of files that are gone or changed."""
    unreadable: tuple[UnreadableEntry, ...] = ()
    """Files that cannot be used, those of earlier updates among them."""
    unlisted: tuple[str, ...] = ()
    """Folders that could not be looked into; what the index holds of them stays."""


@dataclass(frozen=True)
class FoundFile:
    """A file of one of the senses."""

    key: str
    """Path under the folder, with `/`."""
    path: str
    """Path to open it by."""
    modality: str
    size: int
    mtime_ns: int


def modality_of(path: str | os.PathLike[str]) -> str | None:
    """The sense that a file's ending tells, or None where it tells none."""
    return _MODALITY_OF_SUFFIX.get(os.path.splitext(os.fspath(path))[1].lower())


def default_index_path(folder: str | os.PathLike[str]) -> Path:
    """Where the index of a folder lies: in it, or under BINDLM_HOME where the folder is not writable."""
    folder = os.path.realpath(folder)
    if os.access(folder, os.W_OK):
        return Path(folder) / INDEX_NAME
    number = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return home_path() / "indexes" / number


def find_files(
    folder: str | os.PathLike[str], modalities: Collection[str], *, follow_links: bool = False
) -> tuple[list[FoundFile], list[str]]:
    """The files of some senses in a folder and below it.

    Names that start with a dot are passed over, and so is what is no regular file. A link to a file counts as the
    file.

    Args:
        folder: where to look.
        modalities: senses to look for, by `SUFFIXES`.
        follow_links: whether links to folders are followed. Each folder is looked into once, by its real path if that
            is under ``folder``: a link back up is no trap.

    Returns:
        Files, and the keys of folders that could not be looked into. Both in an order that does not change.

    Raises:
        MediaError: there is no such folder, or it cannot be looked into.
    """
    root = os.fspath(folder)
    medium = Medium("folder", f"'{printable(os.fsdecode(root))}'")
    if not os.path.isdir(root):
        raise medium.error("there is no such folder", "Check the path")
    files: list[FoundFile] = []
    unlisted: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting, links = [""], list[str]()
    while waiting or links:
        # Links wait until all real folders are through: a folder that is reached both ways keeps its real name.
        key = waiting.pop() if waiting else links.pop()
        path = os.path.join(root, key)
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            if key == "":
                raise medium.error("it cannot be looked into", "Check its permissions and the disk") from None
            unlisted.append(key)
            continue
        below = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{key}/{entry.name}" if key else entry.name
            try:
                if entry.is_dir(follow_symlinks=False):
                    below.append(name)
                elif entry.is_dir():
                    if follow_links:
                        links.append(name)
                elif (modality := modality_of(entry.name)) in modalities and modality is not None:
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):
                        files.append(FoundFile(name, entry.path, modality, status.st_size, status.st_mtime_ns))
            except OSError:  # a link that leads nowhere, or a file that has just gone
                continue
        waiting += reversed(below)
    return sorted(files, key=lambda file: file.key), sorted(unlisted)


def load_index(
    folder: str | os.PathLike[str], embedder: FolderEmbedder, index_path: Path | None = None
) -> FolderUpdate:
    """The index of a folder as it was last saved; the folder is not looked at.

    Raises:
        CheckpointError: there is none, it is damaged, or another model made it.
    """
    path = default_index_path(folder) if index_path is None else Path(index_path)
    index = EmbeddingIndex.load(path, fingerprint=embedder.fingerprint, model=embedder.name)
    return FolderUpdate(index, path, kept=len(index), unreadable=index.unreadable)


def update_index(
    folder: str | os.PathLike[str],
    embedder: FolderEmbedder,
    index_path: str | os.PathLike[str] | None = None,
    *,
    modalities: Sequence[str] | None = None,
    batch_size: int = 8,
    workers: int | None = None,
    save_seconds: float = 30.0,
    follow_links: bool = False,
    progress: bool = True,
) -> FolderUpdate:
    """Bring the index of a folder up to date: embed what is new or changed, drop what is gone.

    A file counts as changed if its size did, or if its time of change did and its content too. Interrupted, by Ctrl-C
    or an error, it saves what it has, and the next call goes on from there. Files that cannot be used are left
    out, remembered, and tried again when they change or bindlm does.

    Args:
        folder: where to look, below it too.
        embedder: a `bindlm.embedding.Embedder`.
        index_path: the index; None for `default_index_path`.
        modalities: senses to bring up to date; None for all that the embedder has and that files can be told by.
        batch_size: media encoded at once.
        workers: threads that decode; None leaves it to the embedder.
        save_seconds: the least time between two saves.
        follow_links: whether links to folders are followed.
        progress: whether to show a bar on stderr, at a terminal only.

    Raises:
        MediaError: there is no such folder, or it cannot be looked into.
        CheckpointError: the index is damaged, another model made it, or it cannot be written.
        ConfigError: a sense that the embedder lacks, or an impossible setting.
    """
    if not save_seconds >= 0:
        raise ConfigError(f"save_seconds must be at least 0, got {save_seconds}.")
    senses = _senses(embedder, modalities)
    files, unlisted = find_files(folder, senses, follow_links=follow_links)
    path = default_index_path(folder) if index_path is None else Path(os.path.abspath(index_path))
    name = f"index-{hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]}"
    with locked(name, f"updating {path}", progress=progress):
        update = _Update(_start(folder, path, embedder), path, senses, unlisted, save_seconds)
        todo = update.sort(files)
        try:
            for sense in senses:
                update.embed(
                    embedder, [file for file in todo if file.modality == sense], batch_size, workers, progress
                )
        finally:
            update.save()
    return update.report()


def _senses(embedder: FolderEmbedder, modalities: Sequence[str] | None) -> list[str]:
    if modalities is None:
        return [sense for sense in embedder.modalities if sense in SUFFIXES]
    for sense in modalities:
        if sense not in embedder.modalities:
            raise ConfigError(f"{embedder.name} has no {sense!r}; it takes {', '.join(embedder.modalities)}.")
        if sense not in SUFFIXES:
            raise ConfigError(
                f"Files of {sense!r} cannot be told by their names; that works for {', '.join(SUFFIXES)}."
            )
    return list(modalities)


def _start(folder: str | os.PathLike[str], path: Path, embedder: FolderEmbedder) -> EmbeddingIndex:
    """What to begin with: the saved index, else one that came with a folder we may not write in, else an empty one."""
    aside = path.with_name(f".{path.name}.replaced")
    if aside.is_dir() and not path.exists():
        os.replace(aside, path)  # a save was killed between its two renames
    for place in (path, Path(folder) / INDEX_NAME):
        if place.is_dir() and any(place.iterdir()):
            return EmbeddingIndex.load(place, fingerprint=embedder.fingerprint, model=embedder.name)
    return EmbeddingIndex(torch.zeros(0, embedder.dim), [], fingerprint=embedder.fingerprint, model=embedder.name)


@dataclass
class _Update:
    """An update on its way."""

    index: EmbeddingIndex
    path: Path
    senses: list[str]
    unlisted: list[str]
    save_seconds: float
    added: list[tuple[IndexEntry, Tensor]] = field(default_factory=list)
    unreadable: dict[str, UnreadableEntry] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: {"embedded": 0, "kept": 0, "dropped": 0})
    is_changed: bool = False
    next_save: float = 0.0

    def sort(self, files: Sequence[FoundFile]) -> list[FoundFile]:
        """Drop what is gone, keep what is as it was, and give the files that are left to embed."""
        from bindlm import __version__

        found = {file.key: file for file in files}
        rows = {entry.key: entry for entry in self.index.entries}
        gone = {key for key, entry in rows.items() if key not in found and self._is_ours(entry)}
        row_of = {entry.key: row for row, entry in enumerate(self.index.entries)}
        moved = {(rows[key].modality, rows[key].stamp.size, rows[key].stamp.mtime_ns): key for key in sorted(gone)}
        tried = {entry.key: entry for entry in self.index.unreadable}
        stamps: dict[str, FileStamp] = {}
        todo: list[FoundFile] = []
        drop = set(gone)
        for file in files:
            entry = rows.get(file.key)
            failed = tried.get(file.key)
            if entry is not None and entry.modality == file.modality:
                if (stamp := _unchanged(file, entry.stamp)) is not None:
                    self.counts["kept"] += 1
                    if stamp != entry.stamp:
                        stamps[file.key] = stamp
                    continue
            elif failed is not None and self.index.version == __version__ and _unchanged(file, failed.stamp):
                self.unreadable[file.key] = failed
                continue
            elif old := moved.get((file.modality, file.size, file.mtime_ns)):
                if _unchanged(file, rows[old].stamp, is_sure=False):  # the same file under another name
                    entry = IndexEntry(file.key, file.modality, rows[old].stamp)
                    self.added.append((entry, self.index.vectors[row_of[old]]))
                    self.counts["kept"] += 1
                    gone.discard(old)
                    continue
            todo.append(file)
            if entry is not None:
                drop.add(file.key)
        for key, each in tried.items():  # of senses and folders that were not looked for or into
            if key not in found and not self._is_ours(each):
                self.unreadable[key] = each
        self.counts["dropped"] = len(gone) + sum(file.key in rows for file in todo)
        self.is_changed = bool(drop or stamps or self.added or set(tried) != set(self.unreadable))
        self.index = self.index.restamped(stamps).updated(drop=drop, version=__version__)
        self.next_save = time.monotonic() + self.save_seconds
        return todo

    def embed(
        self,
        embedder: FolderEmbedder,
        files: Sequence[FoundFile],
        batch_size: int,
        workers: int | None,
        progress: bool,
    ) -> None:
        """Embed files of one sense, saving now and then."""
        from tqdm import tqdm

        if not files:
            return
        # As paths: a text could be taken for an address, if a folder is called so.
        sources = (Path(file.path) for file in files)
        results = embedder.stream(files[0].modality, sources, batch_size=batch_size, workers=workers)
        closing = contextlib.closing(results) if isinstance(results, Generator) else contextlib.nullcontext()
        # Closed on Ctrl-C too, or files already waiting for a thread would still be decoded.
        with closing, tqdm(
            total=len(files), desc=f"bindlm: {files[0].modality}", unit="file", leave=False,
            disable=None if progress else True,
        ) as bar:  # fmt: skip
            for number, result in results:
                self._take(files[number], result)
                bar.update()
                if time.monotonic() >= self.next_save:
                    started = time.monotonic()
                    self.save()
                    took = time.monotonic() - started
                    self.next_save = started + took + max(self.save_seconds, _SAVE_COST * took)

    def _take(self, file: FoundFile, result: Tensor | MediaError) -> None:
        stamp = FileStamp(file.size, file.mtime_ns, _content_hash(file))
        self.is_changed = True
        if isinstance(result, Tensor) and not bool(torch.isfinite(result).all()):
            cure = "Try another version of the file, or another model"
            result = Medium(file.modality, f"'{printable(file.key)}'").error("the model makes no number of it", cure)
        if isinstance(result, MediaError):
            self.unreadable[file.key] = UnreadableEntry(file.key, file.modality, stamp, str(result))
        else:
            self.added.append((IndexEntry(file.key, file.modality, stamp), result.clone()))  # not a view of its batch
            self.counts["embedded"] += 1

    def save(self) -> None:
        """Write the index, if there is anything new in it or none yet."""
        if not self.is_changed and self.path.exists():
            return
        self.index = self.index.updated(
            add=self.added, unreadable=sorted(self.unreadable.values(), key=lambda entry: entry.key)
        )
        self.added = []
        self.index.save(self.path)
        self.is_changed = False

    def report(self) -> FolderUpdate:
        unreadable = tuple(sorted(self.unreadable.values(), key=lambda entry: entry.key))
        return FolderUpdate(self.index, self.path, **self.counts, unreadable=unreadable, unlisted=tuple(self.unlisted))

    def _is_ours(self, entry: IndexEntry | UnreadableEntry) -> bool:
        """Whether this update may say that a file is gone: it looked for its sense, and into its folder."""
        is_listed = not any(entry.key.startswith(f"{folder}/") for folder in self.unlisted)
        return entry.modality in self.senses and is_listed


def _unchanged(file: FoundFile, stamp: FileStamp, *, is_sure: bool = True) -> FileStamp | None:
    """The stamp that a file has now if it holds what it held, else None.

    Args:
        is_sure: whether equal size and time suffice; a file under another name is compared by content as well.
    """
    if not stamp.sha256 or file.size != stamp.size:
        return None
    if is_sure and file.mtime_ns == stamp.mtime_ns:
        return stamp
    return FileStamp(file.size, file.mtime_ns, stamp.sha256) if _content_hash(file) == stamp.sha256 else None


def _content_hash(file: FoundFile) -> str:
    """SHA-256 of a file, or "" if it cannot be read or is no longer what it was when it was found."""
    digest = hashlib.sha256()
    try:
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(file.path, flags), "rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
            status = os.fstat(stream.fileno())
    except OSError:
        return ""
    is_same = stat.S_ISREG(status.st_mode) and (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns)
    return digest.hexdigest() if is_same else ""
