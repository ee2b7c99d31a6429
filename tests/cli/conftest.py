"""A model that answers at once and remembers what it was asked, and the command line run in this process."""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import bindlm
from bindlm.cli import main
from bindlm.errors import ConfigError

from ..fake_embedder import FakeEmbedder


class FakeModel:
    """Has the methods of a model that the command uses; the text and the tokens are made up."""

    def __init__(self) -> None:
        self.text = "This is a red square."
        self.error: BaseException | None = None
        self.calls: list[dict[str, Any]] = []
        self.encoder = FakeEmbedder(("image",))

    def answer(self, question: str, image: Any = None, **options: Any) -> SimpleNamespace:
        self.calls.append({"question": question, "image": image, **options})
        pieces = self.text.split(" ")
        for number, word in enumerate(pieces):
            if self.error is not None and number == 1:
                raise self.error
            if options.get("stream"):
                options["stream"](word if number == 0 else f" {word}")
        return SimpleNamespace(
            text=self.text,
            prompt_tokens=11,
            answer_tokens=7,
            seconds={"media": 0.25, "encode": 0.5, "prefill": 1.0, "decode": 2.0},
            model="fake",
            joint_neighbours=None,
        )


@dataclass
class Run:
    """What one command left behind."""

    code: int
    out: str
    err: str


@dataclass
class Loads:
    """Which checkpoints were asked for."""

    references: list[Any] = field(default_factory=list)
    caches: list[Any] = field(default_factory=list)
    """Which visual caches they were loaded with, where one was chosen."""


@pytest.fixture
def loads() -> Loads:
    return Loads()


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, loads: Loads) -> FakeModel:
    """The model that `bindlm.load` gives in this test."""
    fake = FakeModel()

    def load(reference: Any = None, **options: Any) -> FakeModel:
        loads.references.append(reference)
        loads.caches += options.values()
        return fake

    # Not setattr: that would first ask for the real one and import torch.
    monkeypatch.setitem(bindlm.__dict__, "load", load)
    return fake


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch, loads: Loads, tmp_path_factory: pytest.TempPathFactory) -> FakeEmbedder:
    """What `bindlm.embedding.load_embedder` gives in this test, and an empty BINDLM_HOME."""
    fake = FakeEmbedder()

    def load_embedder(reference: Any = None, *, modalities: Any = None, progress: bool = True) -> FakeEmbedder:
        loads.references.append(reference)
        for modality in modalities or ():
            if modality not in fake.modalities:
                raise ConfigError(f"FakeEncoder has no {modality!r}; it takes {', '.join(fake.modalities)}.")
        return fake

    module = ModuleType("bindlm.embedding")
    module.load_embedder = load_embedder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bindlm.embedding", module)
    monkeypatch.setenv("BINDLM_HOME", str(tmp_path_factory.mktemp("home")))
    return fake


@pytest.fixture
def bindlm_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Run `bindlm` with these words and these bytes on standard input."""

    def run(*words: object, stdin: bytes = b"", is_terminal: bool = False) -> Run:
        stream = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        stream.isatty = lambda: is_terminal  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stdin", stream)
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return run


@pytest.fixture
def red(tmp_path: Path) -> Path:
    return save_square(tmp_path / "red.png", (255, 0, 0))


@pytest.fixture
def blue(tmp_path: Path) -> Path:
    return save_square(tmp_path / "blue.png", (0, 0, 255))


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"no picture" * 9)
    return path


def save_square(path: Path, colour: tuple[int, int, int]) -> Path:
    Image.new("RGB", (8, 8), colour).save(path)
    return path
