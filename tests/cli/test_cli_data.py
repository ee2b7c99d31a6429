"""`bindlm data check`."""

import json

import pytest

import bindlm.cli
from bindlm.cli import data as data_cli

from ..tiny import tiny_tokenizer

ROWS = [{"instruction": "Say hi.", "input": "", "output": "Hi!"}, {"instruction": "Say ho.", "output": "Ho!"}]


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """The verb with the tiny tokenizer, and a home of its own; the list of references asked for."""
    asked = []
    monkeypatch.setitem(bindlm.cli.VERBS, "data", "look into data sets")
    monkeypatch.setattr(
        data_cli, "load_tokenizer_of", lambda reference: asked.append(reference) or (tiny_tokenizer(), None)
    )
    monkeypatch.setenv("BINDLM_HOME", str(tmp_path / "home"))
    return asked


@pytest.fixture
def alpaca(tmp_path):
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps([*ROWS, {"instruction": "?"}]))
    return path


def test_a_check_prints_counts_lengths_and_marked_samples(bindlm_command, alpaca, tiny):
    run = bindlm_command("data", "check", alpaca)
    assert run.code == 0
    assert "read as alpaca" in run.err
    assert "alpaca: 2 samples of format alpaca, 1 bad rows" in run.out
    assert "bad: no output: 1" in run.out
    assert "media: 0 with; 2 without" in run.out
    assert "tokens: min " in run.out
    assert "0.0% are cut at 512" in run.out
    assert "[masked]" in run.out
    assert "[/masked]Hi!<|im_end|>" in run.out
    assert tiny == [None]


def test_a_terminal_shows_the_masked_part_dim(capsys):
    from bindlm.training.data.check import ShownSample

    data_cli.print_sample(ShownSample("a:1", None, (("Q\x1b[2J", False), ("A", True))), is_terminal=True)
    assert capsys.readouterr().out.endswith("\x1b[2mQ\\x1b[2J\x1b[0mA\n")


def test_json_is_one_object_with_all_of_it(bindlm_command, alpaca, tmp_path):
    aside = tmp_path / "bad.jsonl"
    run = bindlm_command(
        "data", "check", alpaca, "--json", "--max-tokens", 16, "--template", "alpaca", "--bad-rows", aside
    )
    found = json.loads(run.out)
    assert (found["samples"], found["bad"], found["share_cut"], found["max_tokens"]) == (2, 1, 1.0, 16)
    assert found["token_lengths"]["measured"] == 2
    assert found["examples"][0]["id"] == "alpaca.json:1"
    assert json.loads(aside.read_text())["reason"] == "no output"


def test_captions_are_cut_where_the_release_cuts_them_and_missing_pictures_are_named(bindlm_command, tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("url\tcaption\na.jpg\ta cat\nb.jpg\ta dog\n")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(b"")
    run = bindlm_command("data", "check", path, "--media-root", tmp_path / "pictures")
    assert "cut at 96" in run.out
    assert "not on the disk: 1 (0 are addresses), such as b.jpg" in run.out


def test_lengths_are_plotted(bindlm_command, alpaca, tmp_path):
    run = bindlm_command("data", "check", alpaca, "--format", "gpt4tools", "--plot", tmp_path / "lengths.png")
    assert run.code == 0
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.json"], "there is no data at"),
        (["odd.json"], "say it with --format"),
        (["odd.json", "--format", "alpaca"], "no row that can be used"),
        (["odd.json", "--format", "x"], "invalid choice"),
        (["odd.json", "--plot", "x.txt"], "suffix"),
        (["odd.json", "--max-tokens", "3", "--format", "alpaca"], "no row that can be used"),
    ],
)
def test_what_cannot_be_checked_is_a_usage_error(bindlm_command, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.json").write_text('[{"what": "ever"}]')
    run = bindlm_command("data", "check", *words)
    assert run.code == 2
    assert message in run.err
    assert "Traceback" not in run.err


def test_an_action_is_asked_for(bindlm_command):
    run = bindlm_command("data")
    assert run.code == 2
    assert "ACTION" in run.err


def test_a_language_models_folder_gives_its_tokenizer(monkeypatch, tmp_path):
    monkeypatch.undo()
    from ..tiny import tiny_text_config

    tiny_tokenizer().save_pretrained(tmp_path)
    tiny_text_config().save_pretrained(tmp_path)
    tokenizer, template = data_cli.load_tokenizer_of(str(tmp_path))
    assert (tokenizer("hi").input_ids, template) == (tiny_tokenizer()("hi").input_ids, None)
