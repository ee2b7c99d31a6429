"""`bindlm convert`: a folder from the command line, and plain words where it cannot be."""

import json
import warnings

import pytest

import bindlm
from bindlm.cli import EXIT_USAGE, EXIT_WEIGHTS, main

from ..golden import GOLDEN
from ..released import golden_config

FOLDER = GOLDEN / "imagebind_llm"


@pytest.fixture
def words(tmp_path):
    golden_config("imagebind_llm")  # or skip
    llama = ["--llama", str(FOLDER / "llama.safetensors"), "--sizes", str(FOLDER / "config.json")]
    return ["convert", "imagebind-llm", str(FOLDER / "adapter.safetensors"), *llama, "-o", str(tmp_path / "out")]


def test_converts_and_names_what_it_made(words, tmp_path, capsys):
    assert main([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["folder"] == str(tmp_path / "out")
    assert printed["release"] == "ImageBind-LLM"
    assert printed["phase"] == "finetune"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert bindlm.load(tmp_path / "out").config.injection["kind"] == "zero_init_attention"


def test_says_how_to_open_it(words, tmp_path, capsys):
    assert main(words) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"bindlm.load({str(tmp_path / 'out')!r})" in printed.err


@pytest.mark.parametrize(
    ("more", "code", "complaint"),
    [
        (["--phase", "pretrain"], EXIT_WEIGHTS, "of the phase finetune, not pretrain"),
        (["--gate", "none"], EXIT_USAGE, "--gate goes with llama-adapter-v1"),
        (["--sizes", "nowhere.json"], EXIT_USAGE, "nowhere.json cannot be read"),
        (["--llama", "nowhere"], EXIT_WEIGHTS, "nowhere is missing"),
    ],
)
def test_refuses_in_plain_words(words, tmp_path, capsys, more, code, complaint):
    assert main([*words, *more]) == code
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_knows_no_other_release(capsys):
    assert main(["convert", "nose-llm", "a", "--llama", "b", "-o", "c"]) == EXIT_USAGE
    assert "imagebind-llm" in capsys.readouterr().err
