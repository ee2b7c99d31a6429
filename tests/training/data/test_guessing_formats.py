"""The format of a file by its content."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bindlm.training.data.guess import guess_format

TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


@pytest.mark.parametrize(
    ("content", "layout"),
    [
        ([{"image": "a.jpg", "caption": "x"}], "captions"),
        ({"info": {}, "images": [{"id": 1, "file_name": "a"}], "annotations": []}, "coco"),
        ([{"text_list": [], "image_info": []}], "mmc4"),
        ([{"instruction": "a", "output": "b"}], "alpaca"),
        ([{"conversations": TURNS}], "sharegpt"),
        ([{"messages": []}], "sharegpt"),
        ([{"conversations": TURNS}] * 9 + [{"image": "a.jpg", "conversations": TURNS}], "llava"),
        ({"annotations": [{"image_id": "1", "caption": "x"}]}, "minigpt4"),
        ([{"what": "ever"}], None),
        ({"what": "ever"}, None),
        ([], None),
    ],
)
def test_json_is_told_by_its_rows(json_file, content, layout):
    assert guess_format(str(json_file(content))) == layout


def test_tables_and_shards_are_told_by_their_names_and_columns(tmp_path, tar_file):
    (tmp_path / "a.tsv").write_text("url\tcaption\n")
    assert guess_format(str(tmp_path / "a.tsv")) == "captions"
    assert guess_format(str(tar_file(tmp_path / "0.tar", []))) == "img2dataset"
    pq.write_table(pa.Table.from_pylist([{"url": "a", "text": "b"}]), tmp_path / "a.parquet")
    assert guess_format(str(tmp_path / "a.parquet")) == "captions"
    pq.write_table(pa.Table.from_pylist([{"jpg": b"a", "key": "0", "caption": "b"}]), tmp_path / "b.parquet")
    assert guess_format(str(tmp_path / "b.parquet")) == "img2dataset"


def test_a_folder_of_shards_is_img2datasets_in_spite_of_the_parquet_beside_them(tmp_path, tar_file):
    pq.write_table(pa.Table.from_pylist([{"url": "a", "caption": "b", "key": "0"}]), tmp_path / "00000.parquet")
    tar_file(tmp_path / "00000.tar", [])
    assert guess_format(str(tmp_path)) == "img2dataset"


def test_pictures_beside_a_table_do_not_hide_it(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(b"")
    (tmp_path / "train.tsv").write_text("url\tcaption\n")
    assert guess_format(str(tmp_path)) == "captions"


def test_pictures_with_texts_beside_them_are_img2datasets(tmp_path):
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000" / "1.jpg").write_bytes(b"")
    (tmp_path / "00000" / "1.txt").write_text("one")
    (tmp_path / "00000" / "1.json").write_text("{}")
    assert guess_format(str(tmp_path)) == "img2dataset"
    assert guess_format(str(tmp_path / "none")) is None
    assert guess_format(str(tmp_path / "00000" / "1.jpg")) is None
