import json
import os

import pytest

from .conftest import save_square


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "media"
    (folder / "deep").mkdir(parents=True)
    save_square(folder / "red.png", (255, 0, 0))
    save_square(folder / "deep" / "blue.png", (0, 0, 255))
    (folder / "bark.wav").write_text("blue")
    return folder


def paths(run):
    return [line.split(maxsplit=2)[2] for line in run.out.splitlines()]


def test_words_find_what_is_like_them_nearest_first(bindlm_command, embedder, folder):
    run = bindlm_command("search", "something red", folder)
    assert run.code == 0, run.err
    assert paths(run)[0] == str(folder / "red.png")
    assert len(paths(run)) == 3
    assert run.out.startswith(" 1.000  image  ")
    assert "3 embedded" in run.err


def test_a_second_search_embeds_only_the_query(bindlm_command, embedder, folder):
    bindlm_command("search", "red", folder)
    embedder.seen.clear()
    run = bindlm_command("search", "blue", folder)
    assert (run.code, run.err) == (0, "")
    assert embedder.seen == []
    assert set(paths(run)[:2]) == {str(folder / "bark.wav"), str(folder / "deep" / "blue.png")}


def test_a_medium_is_searched_by_in_place_of_words(bindlm_command, embedder, folder, blue, tmp_path):
    embedder.modalities = ("image", "audio")
    run = bindlm_command("search", "--image", blue, folder)
    assert run.code == 0, run.err
    assert paths(run)[-1] == str(folder / "red.png")
    (tmp_path / "hum.wav").write_text("red")
    run = bindlm_command("search", folder, "--audio", tmp_path / "hum.wav", "--top-k", "1")
    assert paths(run) == [str(folder / "red.png")]


def test_options_may_stand_between_words_and_folder(bindlm_command, embedder, folder):
    for words in (
        ["red", "--top-k", "1", folder],
        ["--top-k", "1", "red", folder],
        ["red", folder, "--top-k", "1"],
    ):
        run = bindlm_command("search", *words)
        assert paths(run) == [str(folder / "red.png")], run.err


def test_words_and_media_mix(bindlm_command, embedder, folder, red):
    save_square(folder / "purple.png", (128, 0, 128))
    run = bindlm_command("search", "blue", folder, "--image", red, "--top-k", "1")
    assert paths(run) == [str(folder / "purple.png")]


def test_only_one_sense_is_shown_if_asked(bindlm_command, embedder, folder):
    assert paths(bindlm_command("search", "red", folder, "--only", "audio")) == [str(folder / "bark.wav")]
    assert paths(bindlm_command("search", "red", folder, "--only", "video")) == []


def test_json_says_what_was_searched_and_found(bindlm_command, embedder, folder):
    (folder / "bad.wav").write_text("broken")
    run = bindlm_command("search", "red", folder, "--top-k", "1", "--json")
    assert run.out.count("\n") == 1
    report = json.loads(run.out)
    assert set(report) == {"query", "folder", "results", "indexed", "unreadable", "model", "bindlm"}
    assert report["query"] == {"text": ["red"]}
    assert report["results"] == [{"path": str(folder / "red.png"), "modality": "image", "score": 1.0}]
    assert report["indexed"] == 3
    assert [each["path"] for each in report["unreadable"]] == [str(folder / "bad.wav")]


def test_bad_files_are_listed_once(bindlm_command, embedder, folder):
    (folder / "bad.wav").write_text("broken")
    assert "it is broken" in bindlm_command("search", "red", folder).err
    run = bindlm_command("search", "red", folder)
    assert "files left out: 1" in run.err
    assert "it is broken" not in run.err


def test_no_update_leaves_the_folder_alone(bindlm_command, embedder, folder):
    run = bindlm_command("search", "red", folder, "--no-update")
    assert run.code == 4
    assert "no index" in run.err
    bindlm_command("search", "red", folder)
    os.unlink(folder / "red.png")
    (folder / "new.wav").write_text("red")
    run = bindlm_command("search", "red", folder, "--no-update")
    assert paths(run)[0] == str(folder / "red.png")
    assert str(folder / "new.wav") not in paths(run)
    run = bindlm_command("search", "red", folder)
    assert paths(run)[0] == str(folder / "new.wav")


def test_the_index_may_lie_elsewhere(bindlm_command, embedder, folder, tmp_path):
    assert bindlm_command("search", "red", folder, "--index", tmp_path / "elsewhere").code == 0
    assert (tmp_path / "elsewhere" / "entries.json").is_file()
    assert not (folder / ".bindlm-index").exists()


def test_without_a_text_tower_words_are_bad_usage_with_two_cures(bindlm_command, embedder, folder):
    embedder.modalities = ("image",)
    run = bindlm_command("search", "red", folder)
    assert run.code == 2
    assert "no 'text'" in run.err
    assert "ImageBind, CLIP or LanguageBind" in run.err
    assert "--image" in run.err
    assert not (folder / ".bindlm-index").exists()


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["FOLDER"], 2, "what to look for"),
        (["", "FOLDER"], 2, "empty"),
        ([], 2, "FOLDER"),
        (["red", "FOLDER", "more"], 2, "unrecognized"),
        (["red", "FOLDER", "--top-k", "0"], 2, "above 0"),
        (["red", "FOLDER", "--only", "text"], 2, "invalid choice"),
        (["red", "nowhere"], 3, "no such folder"),
        (["--image", "nothing.png", "FOLDER"], 3, "nothing.png"),
    ],
)
def test_mistakes_are_explained(bindlm_command, embedder, folder, words, code, reason):
    run = bindlm_command("search", *(folder if word == "FOLDER" else word for word in words))
    assert run.code == code
    assert reason in run.err


def test_another_models_index_ends_with_4(bindlm_command, embedder, folder):
    bindlm_command("search", "red", folder)
    embedder.fingerprint = "f" * 16
    run = bindlm_command("search", "red", folder)
    assert run.code == 4
    assert "another model" in run.err


def test_ctrl_c_keeps_what_was_embedded(bindlm_command, embedder, tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02}.wav").write_text("red")
    embedder.stop_after = 10
    assert bindlm_command("search", "red", tmp_path).code == 130
    embedder.stop_after = None
    assert "12 embedded, 8 as they were" in bindlm_command("search", "red", tmp_path).err
