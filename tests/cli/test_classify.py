import json

import pytest

import bindlm


def test_the_likeliest_word_comes_first(bindlm_command, embedder, red, blue):
    run = bindlm_command("classify", red, blue, "--labels", "red, green,blue")
    assert run.code == 0, run.err
    first, second = run.out.splitlines()
    assert first.startswith(f"{red}: red 1.00, ")
    assert second.startswith(f"{blue}: blue 1.00, ")
    assert run.err == ""


def test_files_of_several_senses_come_in_the_order_given(bindlm_command, embedder, tmp_path, red, blue):
    (tmp_path / "bark.wav").write_text("green")
    run = bindlm_command("classify", red, tmp_path / "bark.wav", blue, "--labels", "red,green,blue", "--json")
    assert run.out.count("\n") == 1
    report = json.loads(run.out)
    assert set(report) == {"results", "model", "bindlm"}
    assert (report["model"], report["bindlm"]) == ("fake", bindlm.__version__)
    assert [(result["modality"], result["labels"][0]["label"]) for result in report["results"]] == [
        ("image", "red"),
        ("audio", "green"),
        ("image", "blue"),
    ]
    scores = [each["score"] for each in report["results"][0]["labels"]]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-3)


def test_labels_may_stand_in_a_file_and_options_before_files(bindlm_command, embedder, tmp_path, red):
    (tmp_path / "labels").write_text("green\n\n red \nblue\n")
    run = bindlm_command("classify", "--labels-file", tmp_path / "labels", "--top-k", "1", red)
    assert (run.code, run.out) == (0, f"{red}: red 1.00\n")


def test_templates_reach_the_text_tower(bindlm_command, embedder, red, monkeypatch):
    prompts = []
    embed = embedder.embed
    monkeypatch.setattr(embedder, "embed", lambda **media: prompts.append(media["text"]) or embed(**media))
    for words in ([], ["--template", "see: {}"], ["--template", "plain"], ["--template", "{}!", "--template", "{}?"]):
        assert bindlm_command("classify", red, "--labels", "red,{0}", *words).code == 0
    assert prompts == [
        ["a photo of a red.", "a photo of a {0}."],
        ["see: red", "see: {0}"],
        ["red", "{0}"],
        ["red!", "red?", "{0}!", "{0}?"],
    ]


def test_what_a_file_is_can_be_said(bindlm_command, embedder, tmp_path, red):
    assert "depth" in bindlm_command("classify", red, "--labels", "a,b", "--as", "depth", "--json").out
    run = bindlm_command("classify", tmp_path / "cloud.npy", "--labels", "a,b")
    assert run.code == 2
    assert "--as" in run.err
    run = bindlm_command("classify", "-", "--labels", "red,blue", "--as", "audio", stdin=b"blue")
    assert run.out.startswith("standard input: blue 1.00")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--labels", "red"], "only one label"),
        (["--labels", " , "], "at least one"),
        (["--labels", "red,blue,red"], "twice"),
        (["--labels", "red,blue", "--template", "no place"], "holds {} once"),
        (["--labels", "red,blue", "--top-k", "0"], "above 0"),
        ([], "--labels"),
        (["--labels", "red,blue", "--labels-file", "x"], "not allowed"),
    ],
)
def test_bad_usage_ends_with_2_before_a_model_is_loaded(bindlm_command, embedder, loads, red, words, reason):
    run = bindlm_command("classify", red, *words)
    assert run.code == 2
    assert reason in run.err
    assert loads.references == []


def test_without_a_text_tower_it_says_which_models_have_one(bindlm_command, embedder, red):
    embedder.modalities = ("image",)
    run = bindlm_command("classify", red, "--labels", "red,blue")
    assert run.code == 2
    assert "no 'text'" in run.err
    assert "ImageBind, CLIP or LanguageBind" in run.err


def test_bad_files_stop_it_unless_skipped(bindlm_command, embedder, tmp_path, red, broken):
    run = bindlm_command("classify", broken, red, "--labels", "red,blue")
    assert (run.code, run.out) == (3, "")
    run = bindlm_command("classify", broken, red, "--labels", "red,blue", "--skip-bad")
    assert run.code == 0
    assert run.out.startswith(f"{red}: red")
    assert run.out.count("\n") == 1
    assert "left out: " in run.err
    assert bindlm_command("classify", broken, "--labels", "red,blue", "--skip-bad").code == 3
    assert bindlm_command("classify", red, "--labels-file", tmp_path / "none").code == 3


def test_the_terms_of_weights_are_shown_once_on_stderr(monkeypatch, capsys):
    """Warnings of libraries are silenced in a terminal; this one is for the user."""
    from bindlm import embedding
    from bindlm.cli.loading import load_embedder
    from bindlm.encoders import licences

    monkeypatch.setattr(licences, "_told", set())

    def load(*args, **kwargs):
        licences.tell_licence("ImageBind", "not for commercial use")
        return type("Loaded", (), {"modalities": ("image",), "name": "x"})()

    monkeypatch.setattr(embedding, "load_embedder", load)
    load_embedder("weights.pth", ["image"])
    load_embedder("weights.pth", ["image"])
    captured = capsys.readouterr()
    assert captured.err.count("ImageBind: not for commercial use") == 1
    assert not captured.out
