"""Data sets of many layouts, each opened as one table of samples.

from bindlm.training.data import open_source
from bindlm.training.stage_recipe import SourceConfig

source = open_source(SourceConfig("coco", "annotations/captions_train2017.json", media_root="train2017"))
sample = source.sample(source.rows[0])  # Sample(id='captions_train2017.json:391895', captions=('A man with a …
source.read_media(sample.media)         # PosixPath('train2017/000000391895.jpg')
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindlm.errors import ConfigError
from bindlm.media.names import printable
from bindlm.training.data import captions, coco, img2dataset, instructions, mmc4
from bindlm.training.data.bad_rows import BadRows
from bindlm.training.data.files import DataFile, find_files, fingerprint_of, stamp_of
from bindlm.training.data.media import MediaRoots
from bindlm.training.data.rows import Outcome
from bindlm.training.data.sample import Sample, Turn
from bindlm.training.data.table import open_table, sample_features
from bindlm.training.stage_recipe import SourceConfig

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Reader = Callable[[DataFile, SourceConfig], Iterator[Outcome]]


@dataclass(frozen=True)
class Format:
    """How the files of a layout are found and read."""

    read: Reader
    """One file's samples, bad rows and rows left out, in its order."""
    suffixes: tuple[str, ...]
    """Of its files in a folder."""
    find: Callable[[str], tuple[Path, list[DataFile]]] | None = None
    """How files are found where suffixes do not tell."""


FORMATS: dict[str, Format] = {
    "captions": Format(captions.read_captions, captions.SUFFIXES),
    "coco": Format(coco.read_coco, coco.SUFFIXES),
    "img2dataset": Format(img2dataset.read_img2dataset, (".tar", ".parquet"), img2dataset.find_img2dataset),
    "mmc4": Format(mmc4.read_mmc4, mmc4.SUFFIXES),
    "alpaca": Format(instructions.read_alpaca, instructions.SUFFIXES),
    "sharegpt": Format(instructions.read_conversations, instructions.SUFFIXES),
    "llava": Format(instructions.read_conversations, instructions.SUFFIXES),
    "minigpt4": Format(captions.read_minigpt4, (".json",)),
    "gpt4tools": Format(instructions.read_alpaca, instructions.SUFFIXES),
}
"""Name of a layout -> how it is read."""


class Source:
    """One data set, opened.

    Attributes:
        name: What messages and the feature store call it.
        config: What it was opened with.
        files: Its data files, in order.
        rows: `datasets.Dataset`, memory-mapped, or with `config.streaming` an `IterableDataset`; both have the same
            rows in the same order, with the columns id, turns, captions, media, modality.
        bad: Rows that are none of these. Of a streamed source, those of the pass that is under way, as far as it got
            in this process.
        fingerprint: 16 hexadecimal digits, for the record of a run: other files or settings have others.
    """

    def __init__(
        self,
        config: SourceConfig,
        files: list[DataFile],
        rows: "Dataset | IterableDataset",
        bad: BadRows,
        roots: MediaRoots,
        fingerprint: str,
    ) -> None:
        self.name = source_name(config)
        self.config = config
        self.files = files
        self.rows = rows
        self.bad = bad
        self.fingerprint = fingerprint
        self._roots = roots

    def __len__(self) -> int:
        """How many samples there are.

        Raises:
            TypeError: The source is streamed, so that nobody knows.
        """
        if self.config.streaming:
            raise TypeError(f"{self.name} is streamed and has no length")
        return len(self.rows)

    def __iter__(self) -> Iterator[Sample]:
        return map(self.sample, self.rows)

    def sample(self, row: Mapping[str, Any]) -> Sample:
        """A row as a sample."""
        turns = tuple(Turn(turn["role"], turn["text"], turn["context"]) for turn in row["turns"])
        return Sample(row["id"], turns, tuple(row["captions"]), row["media"], row["modality"])

    def read_media(self, media: str) -> Path | bytes:
        """The file of a medium, or its bytes where it lies in a shard.

        Raises:
            MediaError: There is no such medium.
        """
        return self._roots.read(media)

    def leave_out(self, media: Collection[str]) -> None:
        """Drop the samples of some media from `rows`; the fingerprint then is another one."""
        self.rows = self.rows.filter(_IsKept(frozenset(media)), input_columns=["media"])
        words = "\n".join([self.fingerprint, *sorted(media)])
        self.fingerprint = hashlib.sha256(words.encode()).hexdigest()[:16]

    def has_media(self, media: str) -> bool:
        """Whether a medium's file, or its shard, is on the disk."""
        return self._roots.has(media)


class _IsKept:
    """Whether a sample's medium is none of some; a class, as a stream is handed to other processes.

    Args:
        media: what is left out.
    """

    def __init__(self, media: frozenset[str]) -> None:
        self.media = media

    def __call__(self, media: str | None) -> bool:
        return media not in self.media


def media_key(source_name: str, media: str) -> str:
    """What a feature store calls a medium of a source."""
    return f"{source_name}/{media}"


def source_name(config: SourceConfig) -> str:
    """The name of a source: the given one, else the last part of its path that is no pattern, without suffix."""
    if config.name:
        return config.name
    parts = [part for part in Path(config.path).absolute().parts if not set("*?[") & set(part)]
    return Path(parts[-1]).stem


def open_source(config: SourceConfig, *, bad_rows: Path | None = None) -> Source:
    """Open a data set.

    Unless it is streamed, its samples are written as a table under BINDLM_HOME, once for each state of its files.

    Args:
        config: Which, and how it is read.
        bad_rows: JSONL file that gets the rows that cannot be used, with their reasons.

    Raises:
        ConfigError: The files are missing, of another format, or without any good row.
        CheckpointError: There is no room for the table.
    """
    layout = FORMATS.get(config.format)
    if layout is None:
        raise ConfigError(f"there is no data format {config.format!r}; there are {', '.join(FORMATS)}.")
    root, files = layout.find(config.path) if layout.find else find_files(config.path, layout.suffixes)
    settings = [config.format, config.turns, config.limit, config.min_similarity]
    fingerprint = fingerprint_of(files, json.dumps(settings))
    roots = MediaRoots(Path(config.media_root).expanduser() if config.media_root is not None else root, root)
    if config.streaming:
        bad = BadRows(bad_rows)
        rows = _stream(config, files, bad)
        _check_first(config, files)
        return Source(config, files, rows, bad, roots, fingerprint)

    def make_rows(bad: BadRows) -> Iterator[dict[str, Any]]:
        made = iterate(config, files, bad)
        first = next(made, None)
        if first is None:
            raise _nothing_good(config, bad)
        yield first
        yield from made

    table, bad = open_table(fingerprint + stamp_of(files), printable(config.path), make_rows, bad_rows)
    return Source(config, files, table, bad, roots, fingerprint)


def iterate(config: SourceConfig, files: list[DataFile], bad: BadRows) -> Iterator[dict[str, Any]]:
    """One pass over the files: good rows come out, others are told to `bad`."""
    good = (row for file in files for row in _good_rows(config, file, bad))
    return islice(good, config.limit)


def _good_rows(config: SourceConfig, file: DataFile, bad: BadRows) -> Iterator[dict[str, Any]]:
    for outcome in FORMATS[config.format].read(file, config):
        if isinstance(outcome, Sample):
            turns = [{"role": turn.role, "text": turn.text, "context": turn.context} for turn in outcome.turns]
            yield {
                "id": outcome.id,
                "turns": turns,
                "captions": list(outcome.captions),
                "media": outcome.media,
                "modality": outcome.modality,
            }
        else:
            bad.add(outcome)


@dataclass
class _Pass:
    """What `datasets` calls for each pass over a streamed source; a class, since a worker process gets a copy."""

    config: SourceConfig
    bad: BadRows

    def __call__(self, files: list[DataFile]) -> Iterator[dict[str, Any]]:
        self.bad.start()
        yield from iterate(self.config, files, self.bad)


def _stream(config: SourceConfig, files: list[DataFile], bad: BadRows) -> "IterableDataset":
    from datasets import IterableDataset

    # A list in gen_kwargs is what workers divide among themselves. With a limit over all files they must not.
    shards: Any = files if config.limit is None else tuple(files)
    return IterableDataset.from_generator(_Pass(config, bad), features=sample_features(), gen_kwargs={"files": shards})


def _check_first(config: SourceConfig, files: list[DataFile]) -> None:
    bad = BadRows()
    if next(iterate(config, files, bad), None) is None:
        raise _nothing_good(config, bad)


def _nothing_good(config: SourceConfig, bad: BadRows) -> ConfigError:
    from bindlm.training.data.guess import guess_format

    left_out = f"; {sum(bad.left_out.values())} rows were left out" if bad.left_out else ""
    reasons = f" ({bad.summary()})" if bad.count else ""
    guessed = guess_format(config.path)
    hint = f' It looks like format "{guessed}".' if guessed not in (None, config.format) else ""
    return ConfigError(
        f'{printable(config.path)} has no row that can be used as format "{config.format}": '
        f"{bad.count} bad rows{reasons}{left_out}.{hint}"
    )
