"""MMC4's documents as pairs."""

import pytest

from bindlm.errors import ConfigError

DOCUMENT = {
    "text_list": ["A cat.", "A dog.", "A bird."],
    "image_info": [
        {"image_name": "a.jpg", "matched_text_index": 1, "matched_sim": 0.31},
        {"image_name": None, "raw_url": "http://x.org/b.jpg", "matched_text_index": 0, "matched_sim": 0.2},
        {"image_name": "c.png"},
    ],
    "similarity_matrix": [[0.1, 0.31, 0.0], [0.2, 0.0, 0.0], [0.1, 0.2, 0.26]],
}


def test_each_picture_goes_with_its_matched_sentence(json_file, read):
    samples = read("mmc4", json_file([DOCUMENT], "docs.jsonl"))
    assert [(each.id, each.media, each.captions) for each in samples] == [
        ("docs.jsonl:1#0", "a.jpg", ("A dog.",)),
        ("docs.jsonl:1#1", "http://x.org/b.jpg", ("A cat.",)),
        ("docs.jsonl:1#2", "c.png", ("A bird.",)),
    ]


def test_pairs_below_the_similarity_are_left_out_and_are_not_bad(json_file, opened):
    source = opened("mmc4", json_file([DOCUMENT], "docs.jsonl"), min_similarity=0.26)
    assert [sample.media for sample in source] == ["a.jpg", "c.png"]
    assert (source.bad.count, dict(source.bad.left_out)) == (0, {"similarity below min_similarity": 1})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text_list": None}, "without text_list"),
        ({"image_info": ["a.jpg"]}, "no JSON object"),
        ({"image_info": [{"image_name": "a.jpg", "matched_text_index": 3}]}, "not there"),
        ({"image_info": [{"image_name": "a.jpg", "matched_text_index": -1}]}, "not there"),
        ({"image_info": [{"image_name": "a.jpg"}], "similarity_matrix": "x"}, "without matched sentence"),
        ({"image_info": [{"matched_text_index": 0, "matched_sim": 1}]}, "no name of a medium"),
        ({"image_info": [{"image_name": "a.jpg", "matched_text_index": 0}], "similarity_matrix": []}, "without sim"),
    ],
)
def test_a_damaged_document_is_one_bad_row(json_file, opened, change, reason):
    path = json_file([{**DOCUMENT, **change}, DOCUMENT], "docs.jsonl")
    source = opened("mmc4", path, min_similarity=0.1)
    assert len(source) == 3
    assert [row.number for row in source.bad.first] == [1]
    assert reason in source.bad.first[0].reason


def test_a_filter_that_leaves_nothing_is_an_error(json_file, read):
    with pytest.raises(ConfigError, match="3 rows were left out"):
        read("mmc4", json_file([DOCUMENT], "docs.jsonl"), min_similarity=0.9)
