import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path

import pytest

import bindlm
from bindlm.cli import VERBS, build_parser, explain
from bindlm.errors import BindLMError, CheckpointError, ConfigError, MediaError

SOURCE = Path(bindlm.__file__).parent.parent


def run_python(*words):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, timeout=120)


def test_help_comes_in_under_half_a_second():
    seconds: list[float] = []
    # One fast run is the proof, the start of Python included: slower ones measure what else the machine is doing.
    while len(seconds) < 10 and not any(each < 0.5 for each in seconds):
        started = time.perf_counter()
        assert run_python("-m", "bindlm", "--help").returncode == 0
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5, seconds


def test_help_imports_no_heavy_library():
    """All verbs in one process, the plain `--help` first: a later one can only have imported more."""
    words = [["--help"], *([verb, "--help"] for verb in VERBS if verb != "bench")]
    code = f"import sys; from bindlm.cli import main; codes = [main(each) for each in {words!r}]; print(*sys.modules)"
    imported = set(run_python("-c", code).stdout.splitlines()[-1].split())
    assert {"argparse", "bindlm.cli", *(f"bindlm.cli.{verb}" for verb in VERBS if verb != "bench")} <= imported
    assert not imported & {"torch", "transformers", "numpy", "PIL", "safetensors", "tqdm"}


def test_version(bindlm_command):
    run = bindlm_command("--version")
    assert (run.code, run.out) == (0, f"bindlm {bindlm.__version__}\n")


def test_help_lists_every_verb(bindlm_command):
    run = bindlm_command("--help")
    assert run.code == 0
    for verb, summary in VERBS.items():
        assert verb in run.out
        assert summary in run.out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_module_whose_first_line_is_an_example(verb):
    module = import_module(f"bindlm.cli.{verb}")
    assert module.__doc__.startswith(f"bindlm {verb} ")
    parser = ArgumentParser()
    module.add_arguments(parser)
    assert callable(module.run)


@pytest.mark.parametrize("verb", VERBS)
def test_only_the_chosen_verb_is_given_its_arguments(verb):
    parser = build_parser(verb)
    subparsers = next(action for action in parser._actions if action.dest == "verb").choices
    assert [name for name, subparser in subparsers.items() if len(subparser._actions) > 1] == [verb]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("aks", "did you mean 'ask'?"),
        ("Embed", "did you mean 'embed'?"),
        ("xylophone", f"there are {', '.join(VERBS)}"),
        ("What is this?", "bindlm ask 'What is this?'"),
    ],
)
def test_an_unknown_verb_gets_a_hint(bindlm_command, word, hint):
    run = bindlm_command(word)
    assert run.code == 2
    assert run.err.startswith("bindlm: error: ")
    assert hint in run.err
    assert run.out == ""


def test_no_verb_is_a_usage_error(bindlm_command):
    run = bindlm_command()
    assert run.code == 2
    assert run.err == f"bindlm: error: which verb? There are {', '.join(VERBS)}\n  see: bindlm --help\n"


def test_a_shortened_option_is_refused(bindlm_command):
    run = bindlm_command("ask", "What?", "--temp", "1")
    assert run.code == 2
    assert run.err == "bindlm: error: unrecognized arguments: --temp 1\n  see: bindlm ask --help\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MediaError("bad picture"), 3),
        (CheckpointError("no weights"), 4),
        (ConfigError("bad setting"), 2),
        (BindLMError("disk full"), 1),
        (RuntimeError("internals at 0x7f00"), 1),
        (ModuleNotFoundError("No module named 'yaml'", name="yaml"), 2),
        (ModuleNotFoundError("No module named 'bindlm.oops'", name="bindlm.oops"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(bindlm_command, model, error, code):
    model.error = error
    run = bindlm_command("ask", "What is this?")
    assert run.code == code
    assert "Traceback" not in run.err
    assert len(run.err.splitlines()) <= 2
    assert run.err.startswith("bindlm: error: " if code != 130 else "bindlm: stopped")


def test_a_missing_extra_is_named():
    message, _ = explain(ModuleNotFoundError("No module named 'accelerate'", name="accelerate"))
    assert "pip install 'bindlm[train]'" in message


def test_the_text_of_a_foreign_error_is_not_shown(bindlm_command, model):
    model.error = RuntimeError("internals at 0x7f00")
    run = bindlm_command("ask", "What is this?")
    assert "RuntimeError" in run.err
    assert "BINDLM_DEBUG=1" in run.err
    assert "0x7f00" not in run.err


def test_debugging_shows_the_traceback(bindlm_command, model, monkeypatch):
    monkeypatch.setenv("BINDLM_DEBUG", "1")
    model.error = RuntimeError("internals")
    with pytest.raises(RuntimeError, match="internals"):
        bindlm_command("ask", "What is this?")


def test_control_characters_of_a_message_are_escaped(bindlm_command, model):
    model.error = CheckpointError("\x1b[2J does not exist")
    assert bindlm_command("ask", "What?").err == "bindlm: error: \\x1b[2J does not exist\n"


ANSWERING = """
import types
from bindlm.cli import ask, main
model = types.SimpleNamespace(answer=lambda *_, **__: types.SimpleNamespace(text={text!r}))
ask.load_model = lambda *_, **__: model  # without importing torch
raise SystemExit(main({words!r}))
"""


@pytest.mark.parametrize("words", [["--help"], ["ask", "What?"]])
def test_a_reader_that_leaves_causes_no_noise(words):
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        process = subprocess.run(
            [sys.executable, "-c", ANSWERING.format(text="Yes.", words=words)],
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": ""},
            timeout=60,
        )
    finally:
        os.close(write_end)
    assert (process.returncode, process.stderr) == (141, "")


def test_a_terminal_without_the_letters_gets_escapes():
    process = subprocess.run(
        [sys.executable, "-c", ANSWERING.format(text="caf\u00e9 \U0001f600", words=["ask", "What?"])],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"},
        timeout=60,
    )
    assert (process.returncode, process.stdout) == (0, "caf\\xe9 \\U0001f600\n"), process.stderr
