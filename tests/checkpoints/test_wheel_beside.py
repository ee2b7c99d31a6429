"""Files of one wheel that bindlm knows come together: the wheel is downloaded once."""

from pathlib import Path

import pytest

from bindlm.checkpoints import KnownFile, resolve, wheel
from bindlm.errors import CheckpointError

from .conftest import build_wheel, sha256

FILES = {"tiny/model.bin": b"weights", "tiny/tokenizer.json": b"{}", "tiny/code.py": b"print()"}
ADDRESS = "wheel:tiny-weights==1.0/tiny/"


def known(files: dict[str, bytes]) -> dict[str, KnownFile]:
    return {
        f"wheel:tiny-weights==1.0/{name}": KnownFile(sha256(data), len(data), 100, "CC0-1.0", "of a test")
        for name, data in files.items()
    }


def test_known_files_of_a_wheel_come_together(wheels: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = build_wheel(wheels, FILES)
    names = ("tiny/model.bin", "tiny/tokenizer.json")
    monkeypatch.setattr(wheel, "known_files", lambda: known({name: FILES[name] for name in names}))
    assert resolve(f"{ADDRESS}model.bin", progress=False).read_bytes() == b"weights"
    package.unlink()
    assert resolve(f"{ADDRESS}tokenizer.json", progress=False).read_bytes() == b"{}"
    assert sorted(path.name for path in (home / "files").rglob("*") if path.is_file()) == [
        "model.bin",
        "tokenizer.json",
    ], "what nobody knows stays in the wheel"


def test_neighbour_that_was_changed_is_not_kept(wheels: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_wheel(wheels, {**FILES, "tiny/tokenizer.json": b"[]"})
    monkeypatch.setattr(wheel, "known_files", lambda: known(FILES))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json' in the wheel .* has SHA-256"):
        resolve(f"{ADDRESS}model.bin", progress=False)
    assert not list((home / "files").rglob("tokenizer.json"))
