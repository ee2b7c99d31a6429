import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bindlm
from bindlm.cli import chat, loading
from bindlm.cli import demo as demo_module
from bindlm.errors import CheckpointError

from .. import sense_stand_ins
from ..fake_embedder import FakeEmbedder

SOURCE = Path(bindlm.__file__).parent.parent


@pytest.fixture
def senses(model):
    """Give the model ears and hands."""
    model.encoder = FakeEmbedder(("image", "text", "audio", "point"))
    return model


@pytest.fixture
def horn(tmp_path):
    path = tmp_path / "horn.wav"
    path.write_bytes(b"red")
    return path


@pytest.fixture
def chair(tmp_path):
    path = tmp_path / "chair.obj"
    path.write_bytes(b"blue")
    return path


@pytest.fixture
def demo(monkeypatch, tmp_path):
    """A folder of bundled media; the working folder is elsewhere."""
    folder = tmp_path / "bundled"
    folder.mkdir()
    for name in ("demo.jpg", "demo.flac", "demo.ply"):
        (folder / name).write_bytes(b"red")
    monkeypatch.setattr(demo_module, "demo_folder", lambda: folder)
    return folder


def block(label, path, question="What is this?", answer="This is a red square."):
    return f"{label + ':':<10}{path}\nquestion: {question}\nanswer:   {answer}\n"


def about(call):
    """The media of a call, by sense."""
    media = {sense: call.get(sense) for sense in ("image", "text", "audio", "point")}
    return {sense: source for sense, source in media.items() if source is not None}


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


def test_demo_of_a_model_with_pictures_alone_shows_the_picture_alone(bindlm_command, model, demo):
    run = bindlm_command("chat", "--demo")
    assert (run.code, run.out, run.err) == (0, block("picture", demo / "demo.jpg"), "")


def test_demo_shows_a_medium_of_each_sense(bindlm_command, senses, demo):
    run = bindlm_command("chat", "--demo")
    questions = {medium.label: medium.question for medium in demo_module.DEMO}
    files = {"picture": demo / "demo.jpg", "sound": demo / "demo.flac", "shape": demo / "demo.ply"}
    assert run.out == "\n".join(block(label, path, questions[label]) for label, path in files.items())
    assert [about(call) for call in senses.calls] == [
        {"image": str(demo / "demo.jpg")},
        {"audio": str(demo / "demo.flac")},
        {"point": str(demo / "demo.ply")},
    ]
    assert all(call["history"] == [] for call in senses.calls)


def test_demo_leaves_out_what_is_not_bundled(bindlm_command, senses, demo):
    (demo / "demo.flac").unlink()
    assert bindlm_command("chat", "--demo").code == 0
    assert [list(about(call)) for call in senses.calls] == [["image"], ["point"]]


def test_demo_names_files_as_one_would_type_them_here(bindlm_command, model, demo, monkeypatch):
    monkeypatch.chdir(demo.parent)
    assert bindlm_command("chat", "--demo").out == block("picture", Path("bundled") / "demo.jpg")


def test_demo_of_a_model_without_such_senses_says_so(bindlm_command, model, demo):
    model.encoder.modalities = ("thermal",)
    run = bindlm_command("chat", "--demo")
    assert (run.code, run.out) == (2, "")
    assert "no demo for this model, which takes thermal" in run.err


def fail_at(model, sense, error):
    """Let the model fail where it is asked about a sense."""
    answer = model.answer

    def failing(question, image=None, **options):
        model.error = error if sense in about({"image": image, **options}) else None
        return answer(question, image, **options)

    model.answer = failing


def test_demo_goes_on_where_a_part_of_the_model_cannot_be_fetched(bindlm_command, senses, demo):
    def offline(question, image=None, *, answer=senses.answer, **options):
        if "audio" in options:
            raise CheckpointError("cannot fetch aisfx: no network")
        return answer(question, image, **options)

    senses.answer = offline
    run = bindlm_command("chat", "--demo", stdin=b"Is it red?\n", is_terminal=True)
    assert run.code == 0
    assert "bindlm: error: cannot fetch aisfx: no network\n" in run.err
    assert run.out.count("answer:   ") == 2
    assert block("shape", demo / "demo.ply") in run.out
    assert f"Ask on about {demo / 'demo.ply'}, " in run.err
    assert len(senses.calls[-1]["history"]) == 2


def test_demo_stays_with_the_last_medium_that_was_answered(bindlm_command, senses, demo):
    fail_at(senses, "point", CheckpointError("gone"))
    run = bindlm_command("chat", "--demo", stdin=b"Is it red?\n", is_terminal=True)
    assert run.code == 0
    assert f"Ask on about {demo / 'demo.flac'}, " in run.err
    assert run.out.endswith("answer:   This\nThis is a red square.\n"), "a broken answer ends its line"
    assert len(senses.calls[-1]["history"]) == 2


def test_demo_in_which_nothing_is_answered_ends_with_the_errors_code(bindlm_command, senses, demo):
    senses.error = CheckpointError("gone")
    run = bindlm_command("chat", "--demo")
    assert run.code == 4
    assert run.err == "bindlm: error: gone\n" * 3


def test_demo_tells_what_is_fetched_above_the_answers_line(bindlm_command, senses, demo, monkeypatch):
    shown = []
    answer = senses.answer
    monkeypatch.setattr(sys.stdout, "write", lambda text, write=sys.stdout.write: shown.append(text) or write(text))

    def fetching(*words, **options):
        shown.append("FETCHING")
        return answer(*words, **options)

    senses.answer = fetching
    bindlm_command("chat", "--demo")
    first = "".join(shown).split("FETCHING")
    assert [part.endswith("\n") for part in first[:-1]] == [True] * 3
    assert all(part.startswith("answer:   ") for part in first[1:])


def test_demo_at_a_terminal_goes_on_with_a_hint_and_a_prompt(bindlm_command, model, demo):
    run = bindlm_command("chat", "--demo", stdin=b"Is it red?\n", is_terminal=True)
    assert run.code == 0
    assert run.out.endswith("answer:   This is a red square.\nThis is a red square.\n")
    hint = f"Ask on about {demo / 'demo.jpg'}, or show something: /image FILE; /help, /quit."
    assert run.err == f"{hint}\n> > \nBye.\n"
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


def test_help_lists_the_commands_of_the_senses_that_the_model_has(bindlm_command, senses):
    run = bindlm_command("chat", stdin=b"/help\n", is_terminal=True)
    listed = [line.split("  ")[0] for line in run.err.splitlines() if line.startswith(("/", "> /"))]
    assert [line.removeprefix("> ") for line in listed] == [
        *("/image FILE", "/text WORDS", "/audio FILE", "/point FILE", "/add SENSE FILE", "/clear", "/help", "/quit")
    ]
    assert "Ask anything, or show something: /image FILE, /text WORDS, /audio FILE, /point FILE;" in run.err


def test_every_sense_is_asked_about(bindlm_command, senses, horn, chair):
    lines = f"/audio {horn}\nWhat?\n/point '{chair}'\nWhat?\n/text a red dog\nWhat?\n"
    run = bindlm_command("chat", stdin=lines.encode(), is_terminal=True)
    assert run.code == 0
    assert [about(call) for call in senses.calls] == [
        {"audio": str(horn)},
        {"point": str(chair)},
        {"text": "a red dog"},
    ]
    for words in (f"(listening to {horn})", f"(looking at {chair})", "(thinking of a red dog)"):
        assert words in run.err


def test_the_command_line_takes_every_sense_and_mixes(bindlm_command, senses, red, horn, chair):
    words = ("--image", red, "--audio", horn, "--audio", horn, "--point", chair, "--text", "a dog")
    run = bindlm_command("chat", *words)
    assert (run.code, run.err) == (0, "> What is this?\n")
    (call,) = senses.calls
    assert call["image"].getpixel((0, 0)) == (255, 0, 0)
    media = {"audio": [str(horn)] * 2, "point": str(chair), "text": "a dog"}
    assert {sense: call[sense] for sense in media} == media


def test_a_medium_is_added_beside_another(bindlm_command, senses, red, horn):
    lines = f"Hm?\n/add audio {horn}\nWhat?\n"
    run = bindlm_command("chat", "--image", red, stdin=lines.encode(), is_terminal=True)
    assert f"(looking at {red}, listening to {horn})" in run.err
    assert list(about(senses.calls[1])) == ["image", "audio"]
    assert senses.calls[1]["history"] == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("/image", "needs the name"),
        ("/image nope.png", "nope.png"),
        ("/audio -", "/audio needs the name of a file, such as: /audio horn.wav"),
        ("/audio nope.wav", "'nope.wav': there is no such file"),
        ("/point {bad}", "it is broken"),
        ("/add point {bad}", "it is broken"),
        ("/add audio", "/add needs a sense"),
        ("/add smell rose.jpg", "/add needs a sense"),
        ("/text ''", "/text needs words"),
        ("/depth {bad}", "the mini has no 'depth'; it takes image, text, audio, point\n  name a bound model"),
        ("/sing", "there is no /sing"),
    ],
)
def test_a_mistake_at_a_terminal_leads_back_to_the_prompt(bindlm_command, senses, red, tmp_path, line, reason):
    (tmp_path / "bad.ply").write_bytes(b"broken")
    line = line.format(bad=tmp_path / "bad.ply")
    run = bindlm_command("chat", "--image", red, stdin=f"{line}\nStill there?\n".encode(), is_terminal=True)
    assert run.code == 0
    assert "bindlm: error: " in run.err
    assert reason in run.err
    assert [call["question"] for call in senses.calls] == ["Still there?"]
    assert list(about(senses.calls[0])) == ["image"], "what was shown is kept"


def test_a_file_that_is_not_there_is_reported_before_the_model_is_loaded(bindlm_command, senses, loads):
    run = bindlm_command("chat", "--audio", "nope.wav")
    assert (run.code, loads.references) == (3, [])


def test_a_broken_file_is_reported_before_a_question_is_asked(bindlm_command, senses, tmp_path):
    (tmp_path / "bad.ply").write_bytes(b"broken")
    run = bindlm_command("chat", "--point", tmp_path / "bad.ply")
    assert (run.code, senses.calls) == (3, [])
    assert "bad.ply': it is broken" in run.err


def test_a_sense_that_the_model_lacks_is_refused_with_what_to_do(bindlm_command, model, horn, monkeypatch):
    words = ("chat", "--audio", horn, "--model", "mine")
    monkeypatch.setattr(loading, "mini_senses", lambda: ("image",))
    run = bindlm_command(*words)
    assert (run.code, model.calls) == (2, [])
    assert run.err == (
        "bindlm: error: mine has no 'audio'; it takes image\n  name a bound model that has it with --model PATH\n"
    )
    monkeypatch.setattr(loading, "mini_senses", lambda: ("image", "audio"))
    assert bindlm_command(*words).err.endswith("the bundled mini has it: leave out --model\n")


def test_the_minis_senses_are_those_of_its_model():
    pytest.importorskip("torch")
    folder = Path(bindlm.__file__).parent / "mini"
    from bindlm.configuration import BindLMConfig
    from bindlm.encoders import build_encoder

    encoder = BindLMConfig.from_pretrained(folder).encoder
    assert loading.mini_senses() == build_encoder(**encoder).modalities


def test_a_bound_model_answers_about_a_sound_and_a_shape(bindlm_command, monkeypatch, tmp_path, horn, chair):
    bound = sense_stand_ins.bound_model(tmp_path / "model", "audio", "point")
    monkeypatch.setitem(bindlm.__dict__, "load", lambda reference=None: bound)
    encode, encoded = bound.encode_media, []
    monkeypatch.setattr(bound, "encode_media", lambda **media: encoded.append(list(media)) or encode(**media))
    lines = f"/point {chair}\nWhat is this?\n/add audio {horn}\nWhat is this?\n"
    run = bindlm_command("chat", "--audio", horn, "--max-new-tokens", 5, stdin=lines.encode())
    assert run.code == 0, run.err
    assert encoded == [["audio"], ["point"], ["point", "audio"]]
    assert len(run.out.splitlines()) >= 3


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


@pytest.mark.parametrize(
    "words", [["--image", "-"], ["--audio", "-"], ["--image", "a.png", "--demo"], ["--text", "a dog", "--demo"]]
)
def test_bad_usage(bindlm_command, model, words):
    assert bindlm_command("chat", *words).code == 2


DRIVER = """
import sys, time, types
from bindlm.cli import chat, main

def answer(question, image=None, *, stream, **options):
    for word in ["Slowly"] + [" and"] * (200 if question == "slow" else 1):
        stream(word)
        time.sleep(0.05)
    return types.SimpleNamespace(text="Slowly and")

encoder = types.SimpleNamespace(modalities=("image",))
chat.load_model = lambda *_, **__: types.SimpleNamespace(answer=answer, encoder=encoder)  # without importing torch
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
