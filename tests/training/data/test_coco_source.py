"""COCO's captions."""

import pytest

from bindlm.errors import ConfigError


def test_all_captions_of_a_picture_are_alternatives_of_one_sample(json_file, read):
    path = json_file(
        {
            "images": [{"id": 9, "file_name": "9.jpg"}, {"id": 3, "file_name": "3.jpg"}],
            "annotations": [
                {"image_id": 3, "caption": "a dog"},
                {"image_id": 9, "caption": "a cat\n"},
                {"image_id": 3, "caption": "one dog"},
            ],
        }
    )
    assert [(each.id, each.media, each.captions) for each in read("coco", path)] == [
        ("data.json:9", "9.jpg", ("a cat",)),
        ("data.json:3", "3.jpg", ("a dog", "one dog")),
    ]


def test_faults_are_counted_and_the_rest_is_kept(json_file, opened):
    path = json_file(
        {
            "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2}, 5, {"id": 4, "file_name": "4.jpg"}, {"id": []}],
            "annotations": [
                {"image_id": 1, "caption": "a cat"},
                {"image_id": 1, "caption": 8},
                {"image_id": 77, "caption": "gone"},
                {"caption": "whose?"},
                {"image_id": {}, "caption": "whose?"},
                None,
            ],
        }
    )
    source = opened("coco", path)
    assert [sample.captions for sample in source] == [("a cat",)]
    assert dict(source.bad.reasons) == {
        "caption is no text but a number": 1,
        "annotation of a picture that is not listed": 1,
        "annotation without image_id": 2,
        "not a JSON object": 2,
        "no name of a medium": 1,
        "picture without id": 1,
    }
    assert sum(source.bad.left_out.values()) == 1


@pytest.mark.parametrize("content", [[{"image_id": 1}], {"images": []}, {"images": {}, "annotations": []}])
def test_another_file_is_refused(json_file, read, content):
    with pytest.raises(ConfigError, match=r"data\.json"):
        read("coco", json_file(content))


def test_a_file_that_is_cut_off_is_refused(tmp_path, read):
    path = tmp_path / "data.json"
    path.write_text('{"images": [{"id": 1, "file_')
    with pytest.raises(ConfigError, match="not valid JSON, or not whole"):
        read("coco", path)
