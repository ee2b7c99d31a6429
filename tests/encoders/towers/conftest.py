from pathlib import Path

import pytest

from .tiny_backbones import write_aisfx, write_sentence_model


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where the frozen parts of adapters lie, by kind."""
    folder = tmp_path_factory.mktemp("backbones")
    home = folder / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BINDLM_HOME", str(home))
        return {
            "text_adapter": str(write_sentence_model(folder / "sentence")),
            "aisfx_adapter": str(write_aisfx(folder / "checkpoint.pth")),
        }


@pytest.fixture(autouse=True)
def home_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Conversions do not go into the user's cache."""
    folder = tmp_path_factory.getbasetemp() / "home-of-towers"
    monkeypatch.setenv("BINDLM_HOME", str(folder))
    return folder
