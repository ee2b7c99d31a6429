"""Tables of captions, in every format and under every usual name."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bindlm.errors import ConfigError
from bindlm.training.data import Sample
from bindlm.training.data.bad_rows import BadRow
from bindlm.training.data.captions import read_captions
from bindlm.training.data.files import DataFile
from bindlm.training.data.rows import MAX_ROW
from bindlm.training.stage_recipe import SourceConfig

ROWS = [{"url": "a.jpg", "caption": "a cat"}, {"url": "sub/b.png", "caption": "eine Tür, 门"}]
EXPECTED = [("a.jpg", ("a cat",)), ("sub/b.png", ("eine Tür, 门",))]


def pairs(samples):
    return [(sample.media, sample.captions) for sample in samples]


def outcomes(path):
    return list(read_captions(DataFile(path, path.name), SourceConfig("captions", str(path))))


def test_the_releases_tab_separated_file_is_read(tmp_path, read):
    path = tmp_path / "train.tsv"
    path.write_text("url\tcaption\na.jpg\ta cat\nsub/b.png\teine Tür, 门\n", encoding="utf-8")
    assert pairs(read("captions", path)) == EXPECTED


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_every_table_format_gives_the_same_samples(tmp_path, read, suffix):
    path = tmp_path / f"train.{suffix}"
    if suffix == "csv":
        path.write_text('url,caption\na.jpg,a cat\nsub/b.png,"eine Tür, 门"\n', encoding="utf-8")
    elif suffix == "json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    elif suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    assert pairs(read("captions", path)) == EXPECTED


@pytest.mark.parametrize("media", ["image", "image_path", "filepath", "file_name", "path", "key", "URL"])
@pytest.mark.parametrize("caption", ["text", "title", "description", "TEXT"])
def test_columns_are_found_by_their_usual_names(tmp_path, media, caption):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"width": 3, caption: "a cat", media: "a.jpg"}))
    assert pairs(outcomes(path)) == [("a.jpg", ("a cat",))]


def test_a_list_of_captions_is_kept_as_alternatives(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps([{"image": "a.jpg", "caption": [" one ", "two", "", "one"]}]))
    assert outcomes(path)[0].captions == ("one", "two")


def test_cc3ms_bare_file_needs_no_header(tmp_path):
    path = tmp_path / "cc3m.tsv"
    path.write_text("a cat\thttp://x.org/a.jpg\na dog\thttp://x.org/b.jpg\n")
    assert pairs(outcomes(path)) == [("http://x.org/a.jpg", ("a cat",)), ("http://x.org/b.jpg", ("a dog",))]


def test_an_odd_quote_in_a_tsv_costs_no_other_row(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text('url\tcaption\na.jpg\t"odd\nb.jpg\t"he said ""hi"""\nc.jpg\t5" disk\n')
    assert pairs(outcomes(path)) == [("a.jpg", ('"odd',)), ("b.jpg", ('he said "hi"',)), ("c.jpg", ('5" disk',))]


def test_a_quoted_csv_cell_may_run_over_lines(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text('url,caption\na.jpg,"one\n\ntwo"\n\nb.jpg,three\n')
    assert pairs(outcomes(path)) == [("a.jpg", ("one\n\ntwo",)), ("b.jpg", ("three",))]


def test_a_quote_that_does_not_close_is_a_bad_row(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text('url,caption\na.jpg,fine\nb.jpg,"open\nc.jpg,lost\n')
    good, bad = outcomes(path)
    assert good.media == "a.jpg"
    assert (bad.number, "quotes" in bad.reason) == (3, True)


def test_every_fault_is_a_bad_row_with_its_line_and_reason(tmp_path):
    path = tmp_path / "train.tsv"
    lines = [
        b"url\tcaption",
        b"a.jpg\tgood",
        b"a.jpg",
        b"a.jpg\t  ",
        b"\tx",
        b"a.jpg\t\xff\xfe",
        b"a\x07.jpg\tx",
        b"b.jpg\tend",
    ]
    path.write_bytes(b"\n".join(lines))
    found = outcomes(path)
    assert [(row.number, row.reason) for row in found if isinstance(row, BadRow)] == [
        (3, "another number of cells than the header has"),
        (4, "empty caption"),
        (5, "empty name of a medium"),
        (6, "caption is no valid UTF-8"),
        (7, "name of a medium has control characters"),
    ]
    assert [row.id for row in found if isinstance(row, Sample)] == ["train.tsv:2", "train.tsv:8"]


def test_a_huge_line_is_a_bad_row_and_the_next_line_is_read(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_bytes(b"url\tcaption\na.jpg\t" + b"x" * (MAX_ROW + 5) + b"\nb.jpg\tnext\n")
    bad, good = outcomes(path)
    assert "longer than 16 MiB" in bad.reason
    assert (good.id, good.captions) == ("train.tsv:3", ("next",))


def test_a_table_without_a_column_of_captions_is_refused_with_its_reason(tmp_path, read):
    path = tmp_path / "train.tsv"
    path.write_text("url\twidth\na.jpg\t3\n")
    with pytest.raises(ConfigError, match="no column with captions"):
        read("captions", path)


def test_pictures_in_parquet_are_read_back_by_their_row(tmp_path, opened):
    path = tmp_path / "train.parquet"
    pictures = [f"picture {number}".encode() for number in range(7)]
    rows = [{"image": {"bytes": data, "path": None}, "text": f"caption {n}"} for n, data in enumerate(pictures)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    source = opened("captions", path, media_root=str(tmp_path / "elsewhere"))
    assert [source.read_media(sample.media) for sample in source] == pictures


def test_a_minigpt4_file_names_its_pictures(tmp_path, json_file, opened):
    path = json_file({"annotations": [{"image_id": "12", "caption": "A cat."}, {"image_id": 7}]}, "filter_cap.json")
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "12.jpg").write_bytes(b"jpg")
    source = opened("minigpt4", path)
    assert pairs(source) == [("image/12.jpg", ("A cat.",))]
    assert source.read_media("image/12.jpg") == tmp_path / "image" / "12.jpg"
    assert source.bad.reasons == {"no caption": 1}


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=8), st.sampled_from(["tsv", "csv"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_makes_a_table_fatal(tmp_path, rows, suffix):
    path = tmp_path / f"any.{suffix}"
    body = "\n".join(f"{a}\t{b}" for a, b in rows)
    path.write_bytes(
        f"url\tcaption\nfirst.jpg\tgood\n{body}".replace("\t", "\t" if suffix == "tsv" else ",").encode(
            "utf-8", "surrogatepass"
        )
    )
    found = outcomes(path)
    assert found[0] == Sample(f"any.{suffix}:2", captions=("good",), media="first.jpg") or suffix == "csv"
    for row in found:
        assert isinstance(row, BadRow) or (row.media and all(text.strip() for text in row.captions))


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_make_a_tsv_fatal(tmp_path, data):
    path = tmp_path / "any.tsv"
    path.write_bytes(b"url\tcaption\n" + data)
    assert all(isinstance(row, BadRow | Sample) for row in outcomes(path))
