from pathlib import Path
from typing import Any

import pytest

from bindlm.checkpoints import resolve, source
from bindlm.errors import CheckpointError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What would have gone to the hub."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def fetch(hub_id: str, **options: Any) -> Path:
        calls.append((hub_id, options))
        return Path("/from/the/hub")

    monkeypatch.setattr(source, "fetch_from_hub", fetch)
    return calls


def test_existing_path_wins_over_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[str, dict[str, Any]]]
) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("org/name") == Path("org/name")
    assert asked == []


def test_file_and_folder_and_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path / "model.safetensors")) == tmp_path / "model.safetensors"
    assert resolve("~/model.safetensors") == tmp_path / "model.safetensors"
    assert resolve(tmp_path, filename="model.safetensors") == tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    "text",
    ["./missing", "/missing/folder", "~/missing", "model.gguf", "org/model.safetensors", "a/b/c", "C:\\w", "x/"],
)
def test_what_looks_like_a_path_and_is_missing_never_goes_to_the_hub(
    text: str, asked: list[tuple[str, dict[str, Any]]]
) -> None:
    with pytest.raises(CheckpointError, match="does not exist") as raised:
        resolve(text)
    assert text in str(raised.value)
    assert asked == []


def test_missing_path_object_never_goes_to_the_hub(asked: list[tuple[str, dict[str, Any]]]) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve(Path("org/name"))
    assert asked == []


@pytest.mark.parametrize("text", ["Qwen/Qwen2.5-0.5B", "org/name", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_hub_id_goes_to_the_hub_with_its_options(text: str, asked: list[tuple[str, dict[str, Any]]]) -> None:
    assert resolve(text, revision="v1", subfolder="sub", local_files_only=True, progress=False) == Path(
        "/from/the/hub"
    )
    options = {"subfolder": "sub", "filename": None, "revision": "v1", "local_files_only": True, "progress": False}
    assert asked == [(text, options)]


@pytest.mark.parametrize("text", ["", "  ", "minii", "what is this?", "org/na me", "nul\x00", "-org/name"])
def test_nonsense_says_what_is_expected(text: str, asked: list[tuple[str, dict[str, Any]]]) -> None:
    with pytest.raises(CheckpointError, match="a hub id org/name, or wheel:"):
        resolve(text)
    assert asked == []


@pytest.mark.parametrize("part", ["../secret", "/etc", "a/../../secret"])
def test_names_that_lead_out_of_the_folder_are_refused(part: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "secret").write_text("")
    with pytest.raises(CheckpointError, match="leads out of"):
        resolve(tmp_path / "folder", filename=part)
    with pytest.raises(CheckpointError, match="leads out of"):
        resolve(tmp_path / "folder", subfolder=part)


def test_missing_file_in_a_folder_and_dangling_link(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve(tmp_path, filename="model.safetensors")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve(tmp_path / "link")


def test_sha256_of_a_local_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    right = "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD"
    assert resolve(path, sha256=right) == path
    with pytest.raises(CheckpointError, match="get the right file"):
        resolve(path, sha256="0" * 64)


def test_wheel_takes_no_subfolder(home: Path) -> None:
    with pytest.raises(CheckpointError, match="do not go with"):
        resolve("wheel:a==1/b", subfolder="c")
