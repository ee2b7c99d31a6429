import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bindlm
from bindlm.cli import chat

SOURCE = Path(bindlm.__file__).parent.parent


@pytest.fixture
def demo(monkeypatch, red):
    monkeypatch.setattr(chat, "demo_picture", lambda: red)
    return red


def test_without_a_terminal_the_picture_is_described_and_lines_are_answered(bindlm_command, model, red):
    run = bindlm_command("chat", "--image", red, stdin=b"Is it red?\n\n Are you sure? \n")
    assert (run.code, run.out) == (0, "This is a red square.\n" * 3)
    assert [call["question"] for call in model.calls] == ["What is this?", "Is it red?", "Are you sure?"]
    assert run.err == "> What is this?\n> Is it red?\n> Are you sure?\n"


def test_each_turn_remembers_those_before_it(bindlm_command, model, red):
    bindlm_command("chat", "--image", red, stdin=b"Is it red?\n")
    first, second = model.calls
    assert first["history"] == []
    assert second["history"] == [
        {"role": "user", "content": "What is this?"},
        {"role": "assistant", "content": "This is a red square."},
    ]
    assert first["image"] is not None
    assert second["image"] is None, "the picture was put into words; the untouched language model converses about them"


def test_without_picture_and_lines_it_ends_quietly(bindlm_command, model):
    run = bindlm_command("chat")
    assert (run.code, run.out, run.err, model.calls) == (0, "", "", [])


def test_closed_standard_input_counts_as_empty(bindlm_command, model, red, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert chat.run(options_of("--image", str(red))) == 0
    assert len(model.calls) == 1


def options_of(*words):
    from bindlm.cli import parse

    return parse(["chat", *words])[0]


def test_demo_shows_a_whole_turn_on_stdout(bindlm_command, model, demo):
    run = bindlm_command("chat", "--demo")
    assert run.code == 0
    assert run.out == f"picture:  {demo}\nquestion: What is this?\nanswer:   This is a red square.\n"


def test_demo_at_a_terminal_goes_on_with_a_hint_and_a_prompt(bindlm_command, model, demo):
    run = bindlm_command("chat", "--demo", stdin=b"Is it red?\n", is_terminal=True)
    assert run.code == 0
    assert run.out.endswith("answer:   This is a red square.\nThis is a red square.\n")
    assert run.err == f"{chat.HINT}\n> > \nBye.\n"
    assert len(model.calls[1]["history"]) == 2


def test_at_a_terminal_the_first_question_is_the_users(bindlm_command, model, red):
    run = bindlm_command("chat", "--image", red, stdin=b"/quit\n", is_terminal=True)
    assert (run.code, run.out, model.calls) == (0, "", [])
    assert run.err.endswith("Bye.\n")


def test_another_picture_starts_anew(bindlm_command, model, red, blue):
    run = bindlm_command("chat", "--image", red, stdin=f"/image '{blue}'\nAnd this?\n".encode(), is_terminal=True)
    assert run.code == 0
    (call,) = model.calls
    assert call["image"].getpixel((0, 0)) == (0, 0, 255)
    assert call["history"] == []


def test_clear_forgets_picture_and_conversation(bindlm_command, model, red):
    bindlm_command("chat", "--image", red, stdin=b"Hm?\n/clear\nAnd now?\n", is_terminal=True)
    assert model.calls[0]["image"] is not None
    assert (model.calls[1]["image"], model.calls[1]["history"]) == (None, [])


def test_help_lists_the_commands(bindlm_command, model):
    run = bindlm_command("chat", stdin=b"/help\n", is_terminal=True)
    for command in ("/image FILE", "/clear", "/help", "/quit"):
        assert command in run.err


@pytest.mark.parametrize(
    ("line", "reason"),
    [("/image", "needs the name"), ("/image nope.png", "nope.png"), ("/sing", "there is no /sing")],
)
def test_a_mistake_at_a_terminal_leads_back_to_the_prompt(bindlm_command, model, red, line, reason):
    run = bindlm_command("chat", "--image", red, stdin=f"{line}\nStill there?\n".encode(), is_terminal=True)
    assert run.code == 0
    assert "bindlm: error: " in run.err
    assert reason in run.err
    assert [call["question"] for call in model.calls] == ["Still there?"]
    assert model.calls[0]["image"].getpixel((0, 0)) == (255, 0, 0)


def test_a_mistake_in_a_pipe_ends_with_its_code(bindlm_command, model):
    run = bindlm_command("chat", stdin=b"/image nope.png\nStill there?\n")
    assert run.code == 3
    assert model.calls == []


def test_quit_in_a_pipe_stops_there(bindlm_command, model):
    assert bindlm_command("chat", stdin=b"One?\n/quit\nTwo?\n").code == 0
    assert [call["question"] for call in model.calls] == ["One?"]


def test_bytes_that_are_no_text_do_not_stop_a_pipe(bindlm_command, model):
    assert bindlm_command("chat", stdin=b"caf\xff?\n").code == 0
    assert model.calls[0]["question"] == "caf\N{REPLACEMENT CHARACTER}?"


def test_a_stopped_answer_is_forgotten_and_the_prompt_comes_back(bindlm_command, model):
    answers = iter([KeyboardInterrupt(), None])
    answer = model.answer

    def stop_the_first(*words, **options):
        model.error = next(answers)
        return answer(*words, **options)

    model.answer = stop_the_first
    run = bindlm_command("chat", stdin=b"One?\nTwo?\n", is_terminal=True)
    assert run.code == 0
    assert "(stopped; this turn is forgotten)" in run.err
    assert [call["history"] for call in model.calls] == [[], []]
    assert run.out == "ThisThis is a red square.\n"


@pytest.mark.parametrize("words", [["--image", "-"], ["--image", "a.png", "--demo"]])
def test_bad_usage(bindlm_command, model, words):
    assert bindlm_command("chat", *words).code == 2


DRIVER = """
import sys, time, types
import bindlm

def answer(question, image=None, *, stream, **options):
    for word in ["Slowly"] + [" and"] * (200 if question == "slow" else 1):
        stream(word)
        time.sleep(0.05)
    return types.SimpleNamespace(text="Slowly and")

bindlm.load = lambda reference: types.SimpleNamespace(answer=answer)
from bindlm.cli import main
raise SystemExit(main(["chat"]))
"""


class Terminal:
    """A chat in a real pseudo-terminal, so that line editing and Ctrl-C are the terminal's own."""

    def __init__(self):
        import pty

        self.controller, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**os.environ, "PYTHONPATH": str(SOURCE), "TERM": "dumb"},
            preexec_fn=self.own_the_terminal,
        )
        os.close(terminal)
        self.seen = ""

    @staticmethod
    def own_the_terminal():
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def type(self, text):
        os.write(self.controller, text.encode())

    def wait_for(self, text, seconds=30):
        """Read until ``text`` is seen, and forget what came up to it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"no {text!r} in {self.seen!r}"
            if select.select([self.controller], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.controller, 4096).decode()
                except OSError:  # Linux: the other end is closed
                    assert text in self.seen, f"ended without {text!r}: {self.seen!r}"
        self.seen = self.seen.partition(text)[2]

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.controller)


@pytest.fixture
def terminal():
    pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    session = Terminal()
    yield session
    session.close()


def test_control_c_stops_an_answer_and_leaves_at_the_prompt(terminal):
    terminal.wait_for("> ")
    terminal.type("slow\n")
    terminal.wait_for("Slowly and")
    terminal.type("\x03")
    terminal.wait_for("(stopped; this turn is forgotten)")
    terminal.wait_for("> ")
    terminal.type("quick\n")
    terminal.wait_for("Slowly and")
    terminal.wait_for("> ")
    # a signal between readline's prompt and its wait for a key is seen only at the next key: no person is that fast
    time.sleep(0.5)
    terminal.type("\x03")
    terminal.wait_for("Bye.")
    assert terminal.process.wait(timeout=30) == 0


def test_control_d_leaves_with_0(terminal):
    terminal.wait_for("> ")
    terminal.type("\x04")
    terminal.wait_for("Bye.")
    assert terminal.process.wait(timeout=30) == 0
