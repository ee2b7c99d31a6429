"""Files out of Debian packages, through the user's own apt."""

import hashlib
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

from bindlm.checkpoints.debian import debian_package_file, fetch_debian_package
from bindlm.errors import CheckpointError

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not on this machine")
NAME = "felines_1.0_all.deb"


@pytest.fixture
def deb(tmp_path: Path) -> Path:
    """A package with one file, in a folder of its own."""
    tree = tmp_path / "tree"
    (tree / "usr/share").mkdir(parents=True)
    (tree / "usr/share/cat.txt").write_text("miaow")
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        "Package: felines\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: cats\n"
    )
    (tmp_path / "store").mkdir()
    archive = tmp_path / "store" / NAME
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(archive)], check=True, capture_output=True
    )
    return archive


@pytest.fixture
def apt(tmp_path: Path, deb: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt-get that serves the one package; its log."""
    tools, log = tmp_path / "tools", tmp_path / "apt.log"
    tools.mkdir()
    (tools / "apt-get").write_text(
        f'#!/bin/sh\necho "$@" >> {log}\n[ "$2" = felines ] && exec cp {deb} .\necho secret-password >&2\nexit 100\n'
    )
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return log


def content(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_a_package_is_downloaded_and_unpacked_once(tmp_path: Path, apt: Path) -> None:
    root = tmp_path / "root"
    for _ in range(2):
        tree = fetch_debian_package("felines", root)
        assert tree == root / "felines"
        assert (tree / "usr/share/cat.txt").read_text() == "miaow"
    assert apt.read_text() == "download felines\n"
    assert content(root) == ["felines"], "nothing else is left"


def test_a_package_that_lies_in_the_root_is_not_downloaded(tmp_path: Path, deb: Path, apt: Path) -> None:
    tree = fetch_debian_package("felines", deb.parent)
    assert (tree / "usr/share/cat.txt").is_file()
    assert not apt.exists()
    assert content(deb.parent) == ["felines", NAME], "the user's file stays"


def test_a_known_checksum_is_silent_and_another_one_or_another_version_warns(tmp_path: Path, deb: Path) -> None:
    right = hashlib.sha256(deb.read_bytes()).hexdigest()

    def fetch(sha256: dict[str, str]) -> None:
        shutil.rmtree(deb.parent / "felines", ignore_errors=True)
        assert fetch_debian_package("felines", deb.parent, sha256=sha256).is_dir()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fetch({NAME: right})
        fetch({})
    with pytest.warns(UserWarning, match="felines_1.0_all.deb has another checksum"):
        fetch({NAME: "0" * 64})
    with pytest.warns(UserWarning, match=r"not one of the versions that are known \(felines_0\.9_all\.deb\)"):
        fetch({"felines_0.9_all.deb": right})


def test_failing_apt_is_reported_without_its_words(tmp_path: Path, apt: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'canines' could not be downloaded.*apt-get update") as caught:
        fetch_debian_package("canines", tmp_path / "root")
    assert "secret" not in str(caught.value)
    assert content(tmp_path / "root") == []


def test_without_apt_the_message_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    root = tmp_path / "root"
    with pytest.raises(CheckpointError, match=rf"apt-get is not on this machine.*felines_\*\.deb.*{root}"):
        fetch_debian_package("felines", root)
    with pytest.raises(CheckpointError, match=r"packages="):
        debian_package_file("felines", tmp_path)


def test_without_dpkg_the_message_says_where_to_unpack(
    tmp_path: Path, deb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=rf"dpkg-deb is not on this machine; unpack it into {deb.parent}/felines"
    ):
        fetch_debian_package("felines", deb.parent)


def test_a_damaged_package_is_refused_and_leaves_nothing(tmp_path: Path, deb: Path) -> None:
    deb.write_bytes(deb.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="felines_1.0_all.deb could not be unpacked"):
        fetch_debian_package("felines", deb.parent)
    assert content(deb.parent) == [NAME]


def test_the_newest_of_the_users_own_files_is_taken(tmp_path: Path) -> None:
    for version in ("1.0", "1.2"):
        (tmp_path / f"felines_{version}_all.deb").touch()
    assert debian_package_file("felines", tmp_path / "scratch", packages=tmp_path).name == "felines_1.2_all.deb"
