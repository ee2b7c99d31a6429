"""Tables of pairs: the same in every format, clear when they are wrong, and split so that nothing leaks."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bindlm.binding.pairs import SPLITS, PairTable, read_pairs
from bindlm.binding.recipe import AnchorColumn, SplitRecipe
from bindlm.errors import ConfigError

ROWS = [
    {"audio": "a.wav", "image": "a.png", "label": "dog", "object": "rex"},
    {"audio": "b.wav", "image": "a.png", "label": "dog", "object": "rex"},
    {"audio": "sub/c.wav", "image": "c.png", "label": "cat", "object": "tom"},
    {"audio": "b.wav", "image": "c.png", "label": None, "object": "rex"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0], delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path: Path, **options: Any) -> PairTable:
    return read_pairs([path], "audio", **options)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_pairs(tmp_path, suffix):
    pairs = read(write(tmp_path / f"pairs{suffix}", ROWS))
    assert pairs.media == [str(tmp_path / name) for name in ("a.wav", "b.wav", "sub/c.wav")]
    assert pairs.medium.tolist() == [0, 1, 2, 1]
    assert pairs.sides[0].column == AnchorColumn("image")
    assert pairs.sides[0].rows.tolist() == [0, 0, 1, 1]
    assert pairs.labels == ["dog", "cat"]
    assert pairs.label.tolist() == [0, 0, 1, -1]
    assert pairs.objects == ["rex", "rex", "tom", "rex"]


def test_text_is_the_text_itself_and_features_are_rows_of_a_file_beside(tmp_path):
    np.save(tmp_path / "features.npy", np.ones((3, 4), np.float32))
    pairs = read_pairs([write(tmp_path / "p.csv", [{"text": "a dog", "feature": 2}])], "text")
    assert pairs.media == ["a dog"]
    assert pairs.sides[0].anchors == [f"{tmp_path / 'features.npy'}#2"]


def test_several_columns_may_be_anchors_and_a_row_may_lack_some(tmp_path):
    rows = [{"audio": "a.wav", "image": "a.png", "text": ""}, {"audio": "b.wav", "image": "", "text": "a cat"}]
    pairs = read(write(tmp_path / "p.csv", rows), columns=[AnchorColumn("image"), AnchorColumn("text", 0.5)])
    assert [side.rows.tolist() for side in pairs.sides] == [[0, -1], [-1, 0]]


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([{"sound": "a.wav", "image": "a.png"}], {}, "no column 'audio'.*image, sound"),
        ([{"audio": "a.wav", "picture": "a.png"}], {}, "no column to bind 'audio' to"),
        ([{"audio": "a.wav", "image": "a.png", "text": "a"}], {}, r"several columns to bind to \(image, text\)"),
        ([{"audio": "a.wav", "image": "a.png"}], {"columns": [AnchorColumn("text")]}, "no column 'text'"),
        ([*ROWS, {"audio": "", "image": "a.png", "label": "", "object": ""}], {}, "row 5: the cell of the audio"),
        ([*ROWS, {"audio": "a.wav", "image": "", "label": "", "object": ""}], {}, "row 5: the cell of the anchor"),
        ([{"audio": "a.wav", "feature": "1"}], {}, "features.safetensors or features.npy, which is not beside"),
        ([{"audio": "a.wav", "image": "a.png", "split": "dev"}], {}, "row 1: split must be one of train"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, rows, options, said):
    with pytest.raises(ConfigError, match=said):
        read(write(tmp_path / "p.csv", rows), **options)


@pytest.mark.parametrize("number", ["-1", "one", "1.5"])
def test_a_feature_is_a_row_number(tmp_path, number):
    np.save(tmp_path / "features.npy", np.ones((3, 4), np.float32))
    with pytest.raises(ConfigError, match="row number from 0"):
        read(write(tmp_path / "p.csv", [{"audio": "a.wav", "feature": number}]))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.jsonl", b"{}\nno json\n", "line 2 is no JSON object"),
        ("p.csv", b"audio,image\na,b,c\n", "row 1 has more cells"),
        ("p.csv", b"\xff\xfe\x00", "not UTF-8"),
        ("p.parquet", b"PAR1 no", "no Parquet file"),
        ("p.txt", b"", "must end in .csv"),
        ("p.csv", b"audio,image\n", "There are no pairs"),
    ],
)
def test_files_that_are_no_tables_are_said_to_be_none(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read(tmp_path / name)


def test_a_missing_table_is_said_to_be_missing(tmp_path):
    with pytest.raises(ConfigError, match="There is no table"):
        read(tmp_path / "p.csv")


# -- splits -----------------------------------------------------------------------------------------------------------


@given(
    objects=st.lists(st.integers(0, 20), min_size=1, max_size=60),
    validation=st.floats(0, 0.5),
    test=st.floats(0, 0.4),
    seed=st.integers(0, 5),
)
def test_no_object_is_in_two_splits_and_the_shares_are_kept(tmp_path_factory, objects, validation, test, seed):
    rows = [{"audio": f"{n}.wav", "image": "a.png", "object": f"thing {each}"} for n, each in enumerate(objects)]
    path = write(tmp_path_factory.mktemp("split") / "p.csv", rows)
    pairs = read(path, split=SplitRecipe(validation, test, seed))
    members = {split: {pairs.objects[row] for row in pairs.rows_of(split)} for split in SPLITS}
    assert not (members["train"] & members["validation"] | members["train"] & members["test"])
    assert not members["validation"] & members["test"]
    assert len(members["validation"]) == round(validation * len(set(objects)))
    assert len(members["test"]) == round(test * len(set(objects)))


def test_without_objects_a_medium_is_its_own(tmp_path):
    rows = [{"audio": f"{n % 10}.wav", "image": f"{n}.png"} for n in range(40)]
    pairs = read(write(tmp_path / "p.csv", rows), split=SplitRecipe(0.2, 0.2))
    split_of: dict[int, set[int]] = {}
    for medium, split in zip(pairs.medium.tolist(), pairs.split.tolist(), strict=True):
        split_of.setdefault(medium, set()).add(split)
    assert all(len(splits) == 1 for splits in split_of.values())


def test_the_deal_depends_on_the_seed_and_not_on_the_order_or_the_folder(tmp_path):
    rows = [{"audio": f"{n}.wav", "image": "a.png"} for n in range(30)]
    deals = []
    for name, order, seed in (("one", rows, 0), ("two", rows[::-1], 0), ("one", rows, 1)):
        (tmp_path / name).mkdir(exist_ok=True)
        pairs = read(write(tmp_path / name / "p.csv", order), split=SplitRecipe(0.3, 0.3, seed))
        deals.append({Path(pairs.media[m]).name: s for m, s in zip(pairs.medium, pairs.split, strict=True)})
    assert deals[0] == deals[1] != deals[2]


def test_the_tables_own_split_is_kept(tmp_path):
    rows = [{"audio": f"{n}.wav", "image": "a.png", "split": SPLITS[n % 3]} for n in range(6)]
    assert read(write(tmp_path / "p.csv", rows)).split.tolist() == [0, 1, 2, 0, 1, 2]


def test_an_object_that_a_table_tears_apart_is_refused(tmp_path):
    rows = [{"audio": f"{n}.wav", "image": "a.png", "object": "rex", "split": SPLITS[n]} for n in range(2)]
    path = write(tmp_path / "p.csv", rows)
    with pytest.raises(ConfigError, match="object 'rex' is in train and in validation"):
        read(path)
    assert len(read(path, split=SplitRecipe(0, 0)).rows_of("train")) == 2


# -- what cannot be used ----------------------------------------------------------------------------------------------


def test_rows_without_a_usable_medium_or_anchor_go(tmp_path):
    pairs = read(write(tmp_path / "p.csv", ROWS))
    left = pairs.without({1: "torn"})
    assert left.medium.tolist() == [0, 2]
    assert left.objects == ["rex", "tom"]
    assert left.left_out == {str(tmp_path / "b.wav"): "torn"}
    left = left.without({}, [{1: "no picture"}])
    assert left.medium.tolist() == [0]
    assert len(left.left_out) == 2


def test_a_row_stays_while_one_of_its_anchors_does(tmp_path):
    rows = [{"audio": "a.wav", "image": "a.png", "text": "a"}, {"audio": "b.wav", "image": "b.png", "text": ""}]
    pairs = read(write(tmp_path / "p.csv", rows), columns=[AnchorColumn("image"), AnchorColumn("text")])
    left = pairs.without({}, [{0: "torn", 1: "torn"}, {}])
    assert [side.rows.tolist() for side in left.sides] == [[-1], [0]]


def test_when_nothing_is_left_the_first_reason_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"None of the 4 pairs.*a\.wav.*torn"):
        read(write(tmp_path / "p.csv", ROWS)).without(dict.fromkeys(range(3), "torn"))


def test_the_fingerprint_knows_the_pairs_and_not_their_folder(tmp_path):
    found = []
    for name, rows in (("one", ROWS), ("two", ROWS), ("three", ROWS[:3])):
        (tmp_path / name).mkdir()
        found.append(read(write(tmp_path / name / "p.csv", rows)).fingerprint)
    assert found[0] == found[1] != found[2]
