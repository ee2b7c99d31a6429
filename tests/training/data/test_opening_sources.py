"""Opening a data set: one table for its state, streamed or not, with its faults on the side."""

import json
import os
import pickle

import pytest

from bindlm.cli import data as data_cli
from bindlm.errors import ConfigError, MediaError
from bindlm.training.data import FORMATS, media_key, open_source
from bindlm.training.data.bad_rows import BadRow, BadRows
from bindlm.training.stage_recipe import SourceConfig

TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}] * 2
ALPACA = [{"instruction": f"do {n}", "input": "x" * (n % 2), "output": "done"} for n in range(5)]
DATA = {
    "captions": [{"image": f"{n}.jpg", "caption": ["a", "b"][: 1 + n % 2]} for n in range(5)],
    "coco": {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "a"}]},
    "mmc4": [{"text_list": ["a"], "image_info": [{"image_name": "a.jpg", "matched_text_index": 0}]}],
    "alpaca": [*ALPACA, {"instruction": "bad"}],
    "sharegpt": [{"conversations": TURNS}, {"conversations": TURNS[:3]}],
    "llava": [{"image": "a.jpg", "conversations": TURNS}, {"conversations": TURNS}],
    "minigpt4": {"annotations": [{"image_id": "1", "caption": "a"}]},
    "gpt4tools": ALPACA,
}


@pytest.fixture(params=list(FORMATS))
def any_source(request, json_file, tmp_path, tar_file):
    """A path in each format."""
    if request.param == "img2dataset":
        members = [(f"{n}.{end}", b"x") for n in range(3) for end in ("jpg", "txt")]
        return request.param, tar_file(tmp_path / "0.tar", [*members, ("9.jpg", b"x")])
    return request.param, json_file(DATA[request.param])


@pytest.mark.parametrize("fields", [{}, {"turns": "split"}, {"limit": 1}])
def test_streamed_and_mapped_rows_are_the_same(any_source, opened, fields):
    layout, path = any_source
    mapped, streamed = opened(layout, path, **fields), opened(layout, path, streaming=True, **fields)
    assert list(mapped.rows) == list(streamed.rows)
    assert list(mapped) == list(streamed)
    assert list(streamed) == list(streamed)
    assert list(mapped.rows.features) == ["id", "turns", "captions", "media", "modality"]
    assert streamed.bad.reasons == mapped.bad.reasons
    assert mapped.fingerprint == streamed.fingerprint


def test_ids_are_unique_within_a_source(any_source, opened):
    source = opened(*any_source, turns="split")
    assert len({sample.id for sample in source}) == len(source) > 0


def test_the_table_is_made_once_and_again_when_the_file_changes(json_file, opened, monkeypatch):
    path = json_file(ALPACA)
    first = opened("alpaca", path)
    monkeypatch.setattr("bindlm.training.data.sources.iterate", lambda *_: pytest.fail("read again"))
    again = opened("alpaca", path)
    assert list(again) == list(first)
    monkeypatch.undo()
    size, time = path.stat().st_size, path.stat().st_mtime_ns
    path.write_text(path.read_text().replace("do 3", "do 7"))
    os.utime(path, ns=(time, time + 10**9))
    assert path.stat().st_size == size
    assert [sample.turns[0].text for sample in opened("alpaca", path)][3] == "do 7"


def test_bad_rows_are_written_aside_with_line_and_reason(json_file, tmp_path, opened):
    path = json_file([*ALPACA, {"instruction": "no answer", "text": "\ud800"}])
    for attempt in ("first", "from the table"):
        aside = tmp_path / f"{attempt}.jsonl"
        source = opened("alpaca", path, bad_rows=aside)
        assert (source.bad.count, source.bad.kept_aside) == (1, aside)
        (line,) = aside.read_text().splitlines()
        row = json.loads(line)
        assert (row["file"], row["number"], row["reason"]) == ("data.json", 6, "no output")
        assert "no answer" in row["content"]


def test_streaming_counts_bad_rows_of_one_pass(json_file, tmp_path, opened):
    path = json_file([*ALPACA, {"instruction": "no answer"}])
    source = opened("alpaca", path, streaming=True, bad_rows=tmp_path / "bad.jsonl")
    for _ in range(2):
        assert len(list(source)) == 5
    assert source.bad.count == 1
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 1
    with pytest.raises(TypeError, match="streamed"):
        len(source)


def test_rows_of_all_files_of_a_folder_or_glob_come_in_the_order_of_names(tmp_path, read):
    for name in ("b", "a", "sub/c", ".hidden/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.tsv").write_text(f"url\tcaption\n{name}.jpg\tx\n")
    assert [sample.id for sample in read("captions", tmp_path)] == ["a.tsv:2", "b.tsv:2", "sub/c.tsv:2"]
    assert [sample.id for sample in read("captions", tmp_path / "*.tsv")] == ["a.tsv:2", "b.tsv:2"]


def test_one_bad_file_of_several_is_not_fatal_if_it_has_only_bad_rows(tmp_path, read):
    (tmp_path / "a.tsv").write_text("url\tcaption\n")
    (tmp_path / "b.tsv").write_text("url\tcaption\nx.jpg\tx\n")
    assert len(read("captions", tmp_path)) == 1


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("layout", "name", "content", "message"),
    [
        ("nonsense", "a.json", "[]", "no data format 'nonsense'; there are captions, coco"),
        ("alpaca", "missing.json", None, "there is no data at"),
        ("alpaca", "a.json", "[]", "no row that can be used"),
        ("alpaca", "a.json", '[{"instruction": "x"}]', r"1 bad rows \(no output \(1\)\)"),
        ("captions", "a.txt", "hello", "no known suffix"),
        ("captions", "a.parquet", "hello", "no Parquet file"),
        ("captions", "a.tsv.gz", "hello", "compressed; unpack it"),
        ("img2dataset", "a.tar", "hello", "no tar file"),
    ],
)
def test_a_data_set_that_cannot_be_used_is_one_error(
    tmp_path, opened, data_home, streaming, layout, name, content, message
):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        opened(layout, tmp_path / name, streaming=streaming)
    assert not list(data_home.glob("tables/*"))


def test_the_fingerprint_follows_content_names_and_settings_but_not_the_place(tmp_path, opened):
    def fingerprint(folder, name="a.json", rows=ALPACA, **fields):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(json.dumps(rows))
        return opened("alpaca", tmp_path / folder / name, **fields).fingerprint

    base = fingerprint("1")
    assert len(base) == 16
    assert int(base, 16) >= 0
    assert fingerprint("2") == base
    changed = [*ALPACA[:4], {**ALPACA[4], "output": "DONE"}]
    others = [
        fingerprint("1", rows=changed),
        fingerprint("1", name="b.json"),
        fingerprint("3", limit=2),
        fingerprint("3", turns="split"),
    ]
    assert len({base, *others}) == 5


def test_media_are_found_under_the_media_root(tmp_path, json_file, opened):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "0.jpg").write_bytes(b"jpg")
    path = json_file(DATA["captions"])
    source = opened("captions", path, media_root=str(pictures))
    assert source.read_media("0.jpg") == pictures / "0.jpg"
    assert source.has_media("0.jpg")
    assert not source.has_media("1.jpg")
    for name in ("1.jpg", "..", "https://example.org/0.jpg"):
        with pytest.raises(MediaError, match="Cannot use medium"):
            source.read_media(name)


def test_a_pipe_is_no_medium(tmp_path, json_file, opened):
    os.mkfifo(tmp_path / "0.jpg")
    with pytest.raises(MediaError, match="no file"):
        opened("captions", json_file(DATA["captions"])).read_media("0.jpg")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/cc3m.tsv", "cc3m"),
        ("data/laion", "laion"),
        ("data/laion/*.tar", "laion"),
        ("x/coyo/0000[01].tar", "coyo"),
    ],
)
def test_a_source_is_called_after_its_file_or_folder(path, name):
    from bindlm.training.data.sources import source_name

    assert source_name(SourceConfig("captions", path)) == name
    assert source_name(SourceConfig("captions", path, name="mine")) == "mine"
    assert media_key(name, "a/b.jpg") == f"{name}/a/b.jpg"


def test_an_opened_source_survives_the_way_into_a_worker(json_file):
    for streaming in (False, True):
        source = open_source(SourceConfig("alpaca", str(json_file(ALPACA)), streaming=streaming))
        assert list(pickle.loads(pickle.dumps(source))) == list(source)


def test_bad_rows_stay_bounded(tmp_path):
    bad = BadRows(tmp_path / "bad.jsonl")
    bad.start()
    for number in range(300):
        bad.add(BadRow("a", number, f"reason {number}", "x"))
    assert (bad.count, len(bad.first), len(bad.reasons)) == (300, 5, 51)
    assert bad.reasons["other reasons"] == 250


def test_the_command_line_knows_every_format():
    assert list(data_cli.FORMATS) == list(FORMATS)
