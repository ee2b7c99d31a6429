import json

import pytest

import bindlm


def test_the_answer_is_streamed_to_stdout_and_nothing_else_is(bindlm_command, model, red):
    run = bindlm_command("ask", "What is this?", "--image", red)
    assert (run.code, run.out, run.err) == (0, "This is a red square.\n", "")
    (call,) = model.calls
    assert call["question"] == "What is this?"
    assert call["image"].getpixel((0, 0)) == (255, 0, 0)
    assert call["stream"] is not None


def test_an_answer_in_no_pieces_is_printed_whole(bindlm_command, model):
    model.answer = lambda *words, **options: type("A", (), {"text": "Yes."})()
    assert bindlm_command("ask", "Well?").out == "Yes.\n"


def test_without_a_picture_the_model_gets_none(bindlm_command, model, loads):
    assert bindlm_command("ask", "What is the capital of France?").code == 0
    assert model.calls[0]["image"] is None
    assert model.calls[0]["weights"] is None
    assert loads.references == [None]


def test_several_pictures_are_handed_over_as_a_list_in_order(bindlm_command, model, red, blue):
    bindlm_command("ask", "What?", "--image", red, "--image", blue)
    assert [picture.getpixel((0, 0)) for picture in model.calls[0]["image"]] == [(255, 0, 0), (0, 0, 255)]


def test_options_reach_the_model(bindlm_command, model, loads, red):
    words = "--weight image=0.6 --max-new-tokens 5 --temperature 0.7 --model some/where".split()
    assert bindlm_command("ask", "What?", "--image", red, *words).code == 0
    call = model.calls[0]
    assert call["weights"] == {"image": 0.6}
    assert call["max_new_tokens"] == 5
    assert call["temperature"] == 0.7
    assert loads.references == ["some/where"]


def test_sampling_as_released_is_one_flag(bindlm_command, model):
    assert bindlm_command("ask", "What?", "--sample").code == 0
    assert model.calls[0]["do_sample"] is True
    assert "temperature" not in model.calls[0]


def test_what_is_not_given_is_left_to_the_defaults_of_the_model(bindlm_command, model):
    bindlm_command("ask", "What?")
    assert set(model.calls[0]) == {"question", "image", "weights", "stream"}


def test_the_way_of_mixing_reaches_the_model(bindlm_command, model, red, blue):
    from bindlm.cli.ask import MIXES
    from bindlm.space.mix import TURNS, MixForm

    assert MIXES == (TURNS, *MixForm)
    assert bindlm_command("ask", "What?", "--image", red, "--image", blue, "--mix", "released").code == 0
    assert model.calls[0]["mix"] == "released"


def test_a_seed_repeats_the_draw(bindlm_command, model, monkeypatch):
    import torch

    drawn = []
    answer = model.answer
    monkeypatch.setattr(model, "answer", lambda *w, **o: drawn.append(torch.rand(3).tolist()) or answer(*w, **o))
    for seed in ("7", "7", "8"):
        assert bindlm_command("ask", "What?", "--seed", seed).code == 0
    assert drawn[0] == drawn[1] != drawn[2]


def test_json_is_one_object_with_everything_that_was_measured(bindlm_command, model, red):
    run = bindlm_command("ask", "What is this?", "--image", red, "--json")
    assert run.code == 0
    assert run.out.count("\n") == 1
    report = json.loads(run.out)
    assert set(report) == {"answer", "tokens", "seconds", "neighbours", "model", "bindlm"}
    assert report["answer"] == "This is a red square."
    assert report["tokens"] == {"prompt": 11, "answer": 7}
    assert report["model"] == "fake"
    assert report["bindlm"] == bindlm.__version__
    seconds = report["seconds"]
    assert list(seconds) == ["load", "media", "encode", "prefill", "decode", "total"]
    assert (seconds["encode"], seconds["prefill"], seconds["decode"]) == (0.5, 1.0, 2.0)
    assert seconds["media"] > 0.25  # the model's own and what reading the file took
    assert model.calls[0]["stream"] is None


def test_json_keeps_letters_beyond_ascii(bindlm_command, model):
    model.text = "café 猫"
    run = bindlm_command("ask", "What?", "--json")
    assert json.loads(run.out)["answer"] == "café 猫"


def test_a_picture_from_standard_input(bindlm_command, model, red):
    assert bindlm_command("ask", "What?", "--image", "-", stdin=red.read_bytes()).code == 0
    assert model.calls[0]["image"].getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("stdin", [b"", b"not a picture"])
def test_a_bad_picture_on_standard_input_is_called_so(bindlm_command, model, loads, stdin):
    run = bindlm_command("ask", "What?", "--image", "-", stdin=stdin)
    assert run.code == 3
    assert "standard input" in run.err
    assert loads.references == []


def test_a_bad_picture_is_reported_before_a_model_is_loaded(bindlm_command, model, loads, red, broken):
    run = bindlm_command("ask", "What?", "--image", red, "--image", broken)
    assert run.code == 3
    assert "broken.png" in run.err
    assert run.out == ""
    assert loads.references == []


def test_an_address_is_refused_unless_allowed(bindlm_command, model, loads):
    run = bindlm_command("ask", "What?", "--image", "http://127.0.0.1:9/cat.png")
    assert run.code == 3
    assert "switched off" in run.err
    allowed = bindlm_command("ask", "What?", "--allow-url", "--image", "http://127.0.0.1:9/cat.png")
    assert allowed.code == 3
    assert "switched off" not in allowed.err
    assert loads.references == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["  "], "empty"),
        (["What?", "--weight", "image=0.5"], "nothing to weigh"),
        (["What?", "--weight", "audio=0.5", "--image", "RED"], "without --audio"),
        (["What?", "--weight", "image=1", "--weight", "image=2", "--image", "RED"], "twice"),
        (["What?", "--weight", "image"], "MODALITY=NUMBER"),
        (["What?", "--weight", "=1"], "MODALITY=NUMBER"),
        (["What?", "--weight", "image=much"], "number of 0 or more"),
        (["What?", "--weight", "image=nan"], "number of 0 or more"),
        (["What?", "--weight", "image=-1"], "number of 0 or more"),
        (["What?", "--mix", "sum"], "invalid choice: 'sum'"),
        (["What?", "--temperature", "inf"], "number of 0 or more"),
        (["What?", "--max-new-tokens", "0"], "above 0"),
        (["What?", "--max-new-tokens", "2.5"], "above 0"),
        (["What?", "--seed", "-1"], "whole number"),
        (["What?", "--seed", str(2**63)], "whole number"),
        (["What?", "--image", "-", "--image", "-"], "twice"),
    ],
)
def test_bad_usage_ends_with_2_and_says_why(bindlm_command, model, loads, red, words, reason):
    run = bindlm_command("ask", *(red if word == "RED" else word for word in words))
    assert run.code == 2
    assert reason in run.err
    assert loads.references == []


def test_an_interrupted_answer_ends_with_130(bindlm_command, model):
    model.error = KeyboardInterrupt()
    run = bindlm_command("ask", "What?")
    assert (run.code, run.out, run.err) == (130, "This", "bindlm: stopped\n")


def test_other_senses_are_asked_about_with_their_weights(bindlm_command, model, red, tmp_path):
    model.encoder.modalities = ("image", "audio", "text")
    sound = tmp_path / "meow.wav"
    sound.write_bytes(b"RIFF")
    words = ["--image", red, "--audio", sound, "--text", "a cat", "--weight", "audio=0.3"]
    assert bindlm_command("ask", "What is this?", *words).code == 0
    call = model.calls[0]
    assert call["audio"] == [str(sound)]
    assert call["text"] == ["a cat"]
    assert call["weights"] == {"audio": 0.3}


def test_a_sense_that_the_model_lacks_and_a_file_that_is_not_there_are_named(bindlm_command, model, tmp_path):
    model.encoder.modalities = ("image",)
    run = bindlm_command("ask", "What is this?", "--text", "a cat")
    assert run.code == 2
    assert "has no 'text'" in run.err
    run = bindlm_command("ask", "What is this?", "--audio", tmp_path / "nowhere.wav")
    assert run.code == 3
    assert "there is no such file" in run.err
