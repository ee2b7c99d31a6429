"""Shards in the three layouts of img2dataset, sound and hostile."""

import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bindlm.errors import ConfigError, MediaError
from bindlm.training.data import tars
from bindlm.training.data.files import DataFile
from bindlm.training.data.img2dataset import read_img2dataset
from bindlm.training.stage_recipe import SourceConfig


def members_of(number, status="success", caption=None):
    key = f"{number:09d}"
    details = {"key": key, "caption": f"json {number}", "status": status}
    words = f"caption {number}\n" if caption is None else caption
    return [
        (f"{key}.jpg", b"jpg %d" % number),
        (f"{key}.txt", words.encode()),
        (f"{key}.json", json.dumps(details).encode()),
    ]


def faults(path):
    rows = read_img2dataset(DataFile(path, path.name), SourceConfig("img2dataset", str(path)))
    return [row.reason for row in rows if hasattr(row, "reason")]


def special(name, kind, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info, b""


@pytest.fixture
def shards(tmp_path, tar_file):
    """Two shards of three pictures with the Parquet that img2dataset writes beside them."""
    folder = tmp_path / "cc3m"
    folder.mkdir()
    for shard in range(2):
        tar_file(folder / f"{shard:05d}.tar", [m for n in range(3) for m in members_of(shard * 10 + n)])
        pq.write_table(
            pa.Table.from_pylist([{"key": "0", "caption": "x", "url": "u"}]), folder / f"{shard:05d}.parquet"
        )
        (folder / f"{shard:05d}_stats.json").write_text("{}")
    return folder


def test_tar_shards_give_a_sample_a_key_and_its_bytes_by_offset(shards, opened):
    source = opened("img2dataset", shards)
    samples = list(source)
    assert [sample.id for sample in samples] == [
        f"{s:05d}.tar:{s * 10 + n:09d}" for s in range(2) for n in range(3)
    ]  # fmt: skip
    assert samples[4].media == "00001.tar::000000011.jpg"
    assert samples[4].captions == ("caption 11",)
    assert [source.read_media(sample.media) for sample in samples] == [b"jpg %d" % n for n in (0, 1, 2, 10, 11, 12)]


def test_a_single_shard_and_a_glob_are_data_sets_too(shards, read):
    assert len(read("img2dataset", shards / "00001.tar")) == 3
    assert [sample.media for sample in read("img2dataset", f"{shards}/0000[01].tar")][3] == "00001.tar::000000010.jpg"


def test_reading_a_member_does_not_read_the_shard(tmp_path, tar_file, opened, monkeypatch):
    path = tar_file(tmp_path / "0.tar", [("1.jpg", b"x" * 5_000_000), ("1.txt", b"one"), *members_of(2)])
    source = opened("img2dataset", path)
    asked = []
    read = tars._Headers.read
    monkeypatch.setattr(tars._Headers, "read", lambda self, size=-1: asked.append(size) or read(self, size))
    assert source.read_media("0.tar::000000002.jpg") == b"jpg 2"
    assert 0 < sum(asked) < 20_000
    before = len(asked)
    source.read_media("0.tar::1.jpg")
    assert len(asked) == before


def test_the_files_layout_is_read(tmp_path, opened):
    for number in (1, 2):
        folder = tmp_path / "data" / f"{number:05d}"
        folder.mkdir(parents=True)
        for name, data in members_of(number):
            (folder / name).write_bytes(data)
        (folder / "lonely.jpg").write_bytes(b"jpg")
    pq.write_table(pa.Table.from_pylist([{"key": "0", "caption": "x"}]), tmp_path / "data" / "00001.parquet")
    source = opened("img2dataset", tmp_path / "data")
    assert [(each.id, each.media, each.captions) for each in source] == [
        ("00001:000000001", "00001/000000001.jpg", ("caption 1",)),
        ("00002:000000002", "00002/000000002.jpg", ("caption 2",)),
    ]
    assert dict(source.bad.reasons) == {"no caption": 2}
    assert source.read_media("00002/000000002.jpg").read_bytes() == b"jpg 2"


def test_the_parquet_layout_is_read(tmp_path, opened):
    rows = [
        {"jpg": b"jpg 0", "key": "000000000", "caption": "zero", "status": "success"},
        {"jpg": None, "key": "000000001", "caption": "one", "status": "failed_to_download"},
        {"jpg": b"jpg 2", "key": "000000002", "caption": "two", "status": "success"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet", row_group_size=2)
    source = opened("img2dataset", tmp_path)
    assert [(each.media, each.captions) for each in source] == [
        ("00000.parquet::0", ("zero",)),
        ("00000.parquet::2", ("two",)),
    ]
    assert source.read_media("00000.parquet::2") == b"jpg 2"
    assert (source.bad.count, dict(source.bad.left_out)) == (0, {"download that failed": 1})


def test_parquet_without_pictures_says_what_to_do(tmp_path, read):
    pq.write_table(pa.Table.from_pylist([{"url": "u", "caption": "x"}]), tmp_path / "00000.parquet")
    with pytest.raises(ConfigError, match="fetch them with img2dataset"):
        read("img2dataset", tmp_path)


def test_failed_downloads_are_left_out_and_the_caption_may_stand_in_the_json(tmp_path, tar_file, opened):
    path = tar_file(
        tmp_path / "0.tar",
        [*members_of(1), *members_of(2, "failed_to_resize"), ("3.png", b"png"), ("3.json", b'{"caption": "three"}')],
    )
    source = opened("img2dataset", path)
    assert [sample.captions for sample in source] == [("caption 1",), ("three",)]
    assert dict(source.bad.left_out) == {"download that failed": 1}


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (special("1.jpg", tarfile.SYMTYPE, linkname="/etc/passwd"), "member that is no plain file"),
        (special("1.jpg", tarfile.LNKTYPE, linkname="2.jpg"), "member that is no plain file"),
        (special("1.jpg", tarfile.FIFOTYPE), "member that is no plain file"),
        (special("1.jpg", tarfile.CHRTYPE), "member that is no plain file"),
        (("/etc/1.jpg", b"x"), "member with a name that leads elsewhere"),
        (("../1.jpg", b"x"), "member with a name that leads elsewhere"),
        (("a\x1b[2J.jpg", b"x"), "member whose name is not printable"),
        (("1.txt", b"words only"), "no picture"),
        (("1.jpg", b"alone"), "no caption"),
    ],
)
def test_a_hostile_or_lonely_member_is_a_bad_row(tmp_path, tar_file, opened, member, reason):
    source = opened("img2dataset", tar_file(tmp_path / "0.tar", [member, *members_of(2)]))
    assert [sample.media for sample in source] == ["0.tar::000000002.jpg"]
    assert reason in source.bad.reasons


def test_a_member_of_an_impossible_size_is_a_bad_row(tmp_path, tar_file):
    path = tar_file(tmp_path / "0.tar", members_of(1))
    header = tarfile.TarInfo("2.jpg")
    header.size = 1 << 40
    path.write_bytes(path.read_bytes().rstrip(b"\0").ljust(3 * 1024, b"\0") + header.tobuf())
    assert "member larger than 64 MiB" in faults(path)


def test_an_extended_header_of_an_impossible_size_costs_no_memory(tmp_path):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    path = tmp_path / "0.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 10240)
    assert faults(path) == ["no tar file"]


def test_a_negative_size_ends_the_shard(tmp_path, tar_file):
    path = tar_file(tmp_path / "0.tar", members_of(1))
    header = tarfile.TarInfo("2.jpg")
    header.size = -1024
    sound = path.read_bytes()[:3072]
    path.write_bytes(sound + header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 10240)
    assert faults(path) == ["member of a negative size", "the shard is no whole tar file: it ends here"]


@pytest.mark.parametrize("kept", [1, 513, 1500, 2100, 3072, 4000, 5700])
def test_a_truncated_shard_keeps_its_sound_samples(tmp_path, tar_file, kept):
    path = tar_file(tmp_path / "0.tar", [*members_of(1), *members_of(2)])
    path.write_bytes(path.read_bytes()[:kept])
    rows = list(read_img2dataset(DataFile(path, path.name), SourceConfig("img2dataset", str(path))))
    assert len([row for row in rows if hasattr(row, "captions")]) == (kept > 1500) + (kept > 5000)
    assert any("no tar file" in row.reason or "ends here" in row.reason for row in rows if hasattr(row, "reason"))


def test_a_key_that_comes_twice_is_named_and_read_once(tmp_path, tar_file, opened):
    twice = [(name, b"other " + data) for name, data in members_of(1)[:2]]
    source = opened("img2dataset", tar_file(tmp_path / "0.tar", [*members_of(1), *members_of(2), *twice]))
    assert [sample.id for sample in source] == ["0.tar:000000001", "0.tar:000000002"]
    assert dict(source.bad.reasons) == {"key that the shard has twice": 1}
    assert source.read_media("0.tar::000000001.jpg") == b"jpg 1"


@pytest.mark.parametrize("name", ["0.tar::9.jpg", "1.tar::1.jpg", "../0.tar::1.jpg", "0.parquet::1", "none.jpg"])
def test_a_medium_that_is_not_there_is_a_media_error(tmp_path, tar_file, opened, name):
    source = opened("img2dataset", tar_file(tmp_path / "0.tar", members_of(1)))
    with pytest.raises(MediaError, match="Cannot use medium"):
        source.read_media(name)


def test_a_folder_without_shards_is_an_error(tmp_path, read):
    with pytest.raises(ConfigError, match="no data"):
        read("img2dataset", tmp_path)


@given(data=st.binary(max_size=64), place=st.integers(0, 6144))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_to_a_shard_is_fatal(tmp_path, tar_file, data, place):
    path = tar_file(tmp_path / "0.tar", [*members_of(1), *members_of(2)])
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + data + whole[place + len(data) :])
    for row in read_img2dataset(DataFile(path, path.name), SourceConfig("img2dataset", str(path))):
        assert hasattr(row, "reason") or row.captions
