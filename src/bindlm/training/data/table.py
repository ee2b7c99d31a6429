"""Samples as an Arrow table on the disk, made once for each state of the data's files and then memory-mapped."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindlm.checkpoints import atomic_folder, home
from bindlm.checkpoints.home import disk_errors
from bindlm.checkpoints.locks import locked
from bindlm.checkpoints.scratch import scratch_name
from bindlm.training.data.bad_rows import BadRows

if TYPE_CHECKING:
    from datasets import Dataset, Features

_VERSION = "1"
"""Goes up when a reader makes other samples of the same file."""
_BATCH_ROWS = 1000
_TABLE = "samples.arrow"
_COUNTS = "counts.json"
_BAD = "bad_rows.jsonl"


def sample_features() -> "Features":
    """The columns of every source's rows."""
    from datasets import Features, List, Value

    text = Value("string")
    turn = {"role": text, "text": text, "context": text}
    return Features(
        {"id": text, "turns": List(turn), "captions": List(text), "media": text, "modality": text},
    )


def open_table(
    key: str, label: str, make_rows: Callable[[BadRows], Iterator[dict[str, Any]]], bad_rows: Path | None
) -> tuple["Dataset", BadRows]:
    """The table of a state of the data; it is made where there is none, by one process while others wait.

    Args:
        key: All that the rows depend on.
        label: What messages call the data.
        make_rows: Gives the rows, and tells what it is given of the bad ones.
        bad_rows: Where the bad rows are to be written.

    Raises:
        CheckpointError: The disk is full or not writable.
    """
    from datasets import Dataset

    number = hashlib.sha256(f"{_VERSION}\0{key}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
    folder = home() / "tables" / number
    if not (folder / _TABLE).is_file():
        with locked(f"table-{number}", f"reading {label}"):
            if not (folder / _TABLE).is_file():
                with atomic_folder(folder) as scratch:
                    _write(scratch, label, make_rows)
    kept = _copy(folder / _BAD, bad_rows)
    bad = BadRows.from_dict(json.loads((folder / _COUNTS).read_text(encoding="ascii")), kept)
    return Dataset.from_file(str(folder / _TABLE)), bad


def _write(folder: Path, label: str, make_rows: Callable[[BadRows], Iterator[dict[str, Any]]]) -> None:
    import pyarrow as pa
    from datasets.arrow_writer import ArrowWriter
    from tqdm import tqdm

    bad = BadRows(folder / _BAD)
    bad.start()
    features = sample_features()
    rows = iter(tqdm(make_rows(bad), desc=f"reading {label}", unit=" samples", delay=2, disable=None))
    # Tables, since writing row by row takes ten times as long.
    with ArrowWriter(path=str(folder / _TABLE), features=features) as writer:
        while batch := list(islice(rows, _BATCH_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema=features.arrow_schema))
        writer.finalize()
    (folder / _COUNTS).write_text(json.dumps(bad.to_dict()), encoding="ascii")


def _copy(source: Path, target: Path | None) -> Path:
    """Where the bad rows lie that the user can look at."""
    if target is None:
        return source
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(scratch_name(f".{target.name}"))
        try:
            shutil.copyfile(source, scratch)
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
    return target
