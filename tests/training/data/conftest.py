"""Data sets of a few rows, each in a layout of its own, and a home of its own for their tables."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from bindlm.training.data import Sample, Source, open_source
from bindlm.training.stage_recipe import SourceConfig


@pytest.fixture(autouse=True)
def data_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("BINDLM_HOME", str(home))
    return home


@pytest.fixture
def opened() -> Callable[..., Source]:
    """Open a path as a format, with further fields of `SourceConfig`."""

    def open_as(layout: str, path: Path | str, *, bad_rows: Path | None = None, **fields: Any) -> Source:
        return open_source(SourceConfig(layout, str(path), **fields), bad_rows=bad_rows)

    return open_as


@pytest.fixture
def read(opened: Callable[..., Source]) -> Callable[..., list[Sample]]:
    """All samples of a path."""

    def read_all(layout: str, path: Path | str, **fields: Any) -> list[Sample]:
        return list(opened(layout, path, **fields))

    return read_all


@pytest.fixture
def json_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a value as JSON, or a list of values as one a line."""

    def write(value: Any, name: str = "data.json") -> Path:
        path = tmp_path / name
        as_lines = name.endswith("l")
        path.write_text("\n".join(map(json.dumps, value)) if as_lines else json.dumps(value), encoding="utf-8")
        return path

    return write


@pytest.fixture
def tar_file() -> Callable[..., Path]:
    """Write a shard of these names and bytes, in this order; a `TarInfo` in place of a name is taken as it is."""

    def write(path: Path, members: Iterable[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write
