"""The command as a user starts it, on the real mini: in processes of its own where that is the point."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

import bindlm

PACKAGE = Path(bindlm.__file__).parent
DEMO = PACKAGE / "mini" / "demo.jpg"

needs_mini = pytest.mark.skipif(
    not (PACKAGE / "mini" / "model.safetensors").is_file(),
    reason="the mini's weights are not in src/bindlm/mini yet; `make mini` trains them",
)


def run(*words, env=()):
    """Like a shell without a terminal. The first of all runs fetches the language model: hence the long limit."""
    process = subprocess.run(
        [sys.executable, "-m", "bindlm", *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **dict(env)},
    )
    return process.returncode, process.stdout.decode(), process.stderr.decode()


def assert_only_notices(err):
    """Our own lines about what is fetched may be there; advice and warnings of the libraries may not."""
    assert [line for line in err.splitlines() if not line.startswith(("bindlm: ", "> "))] == []


@pytest.fixture
def mini_loaded(mini, monkeypatch):
    """The mini is there already, for commands in this process: a process of their own spends ten seconds on that."""
    monkeypatch.setitem(bindlm.__dict__, "load", lambda reference=None, **_: mini)
    return mini


@needs_mini
def test_ask_json_answers_in_a_sentence_and_accounts_for_its_time():
    code, out, err = run("ask", "What is this?", "--image", DEMO, "--json")
    assert code == 0, err
    assert_only_notices(err)
    report = json.loads(out)
    assert report["answer"].endswith(".")
    assert len(report["answer"].split()) >= 3
    assert report["bindlm"] == bindlm.__version__
    assert 1 <= report["tokens"]["answer"] <= 128
    assert report["tokens"]["prompt"] >= 5
    seconds = report["seconds"]
    assert all(seconds[phase] > 0 for phase in ("load", "media", "encode", "prefill", "decode"))
    assert sum(seconds.values()) - seconds["total"] <= seconds["total"]


@needs_mini
@pytest.mark.slow
def test_the_streamed_text_is_the_answer(mini_loaded, bindlm_command):
    words = ["ask", "What is this?", "--image", DEMO]
    streamed, whole = bindlm_command(*words), bindlm_command(*words, "--json")
    assert (streamed.code, whole.code) == (0, 0)
    assert streamed.out.strip() == json.loads(whole.out)["answer"]


@needs_mini
@pytest.mark.slow
def test_a_question_without_a_picture_is_answered_from_the_language_model(mini_loaded, bindlm_command):
    answered = bindlm_command("ask", "What is the capital of France?")
    assert answered.code == 0
    assert "Paris" in answered.out


@needs_mini
@pytest.mark.slow
def test_a_seed_repeats_a_drawn_answer(mini_loaded, bindlm_command):
    """With another seed between the two that must agree."""
    words = ["ask", "Tell me a story.", "--temperature", "1.5", "--max-new-tokens", "12", "--seed"]
    first, other, again = (bindlm_command(*words, seed).out for seed in (3, 4, 3))
    assert first == again != other


@needs_mini
@pytest.mark.slow
def test_chat_demo_without_a_terminal_shows_the_turns_and_ends():
    code, out, err = run("chat", "--demo")
    assert code == 0, err
    assert_only_notices(err)
    turns = [turn.splitlines() for turn in out.split("\n\n")]
    shown = [Path(medium[10:]).name for medium, _, _ in turns]
    bundled = [name for name in ("demo.jpg", "demo.flac", "demo.ply") if DEMO.with_name(name).is_file()]
    assert shown == bundled, "each bundled medium has a tower in the bundled model"
    for _, question, answer in turns:
        assert question.startswith("question: What ")
        assert answer.startswith("answer:   ")
        assert answer.endswith(".")
    assert re.search(r"\b(cat|tabby|kitten)\b", turns[0][2]), "the demo picture shows a tabby cat"


@needs_mini
@pytest.mark.slow
def test_chat_answers_piped_lines_in_turn(mini_loaded, bindlm_command):
    chat = bindlm_command("chat", "--image", DEMO, stdin=b"/clear\nWhat is the capital of France?\n")
    assert chat.code == 0
    assert "Paris" in chat.out.splitlines()[-1]


@needs_mini
@pytest.mark.slow
def test_embed_writes_unit_rows(tmp_path, bindlm_command):
    import numpy as np

    out = tmp_path / "demo.safetensors"
    embedded = bindlm_command("embed", "--image", DEMO, "-", "-o", out, stdin=DEMO.read_bytes())
    assert embedded.code == 0, embedded.err
    with safe_open(out, framework="numpy") as file:
        rows = file.get_tensor("image")
        assert json.loads(file.metadata()["names"]) == [str(DEMO), "standard input"]
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert np.allclose(rows[0], rows[1], atol=1e-5)  # the same picture by another way


def test_a_bad_picture_ends_with_3(tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(DEMO.read_bytes()[:100] if DEMO.is_file() else b"\xff\xd8\xff")
    code, out, err = run("ask", "What is this?", "--image", path)
    assert (code, out) == (3, "")
    assert err.startswith("bindlm: error: ")
    assert "broken.jpg" in err
    assert len(err.splitlines()) <= 2


def test_weights_that_are_not_there_end_with_4(tmp_path, bindlm_command):
    ended = bindlm_command("ask", "What is this?", "--model", tmp_path / "nowhere")
    assert (ended.code, ended.out) == (4, "")
    assert ended.err.startswith("bindlm: error: ")
    assert "nowhere" in ended.err
    assert len(ended.err.splitlines()) <= 2


@needs_mini
@pytest.mark.slow
def test_a_language_model_that_cannot_be_fetched_ends_with_4(tmp_path, bindlm_command, monkeypatch):
    # An empty cache, and an index where nothing answers.
    unreachable = {
        "BINDLM_HOME": str(tmp_path),
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_RETRIES": "0",
        "PIP_CACHE_DIR": str(tmp_path / "pip"),
    }
    for name, value in unreachable.items():
        monkeypatch.setenv(name, value)
    ended = bindlm_command("ask", "What is this?")
    assert (ended.code, ended.out) == (4, "")
    assert "bindlm: error: " in ended.err
    assert "Traceback" not in ended.err
