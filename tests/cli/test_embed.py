import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import bindlm
from bindlm.cli import embed
from bindlm.cli.media import BATCH_SIZE


def test_safetensors_hold_a_row_a_picture_and_their_names(bindlm_command, embedder, tmp_path, red, blue):
    out = tmp_path / "out.safetensors"
    run = bindlm_command("embed", "--image", red, blue, "-o", out)
    assert (run.code, run.out) == (0, "")
    with safe_open(out, framework="numpy") as file:
        assert list(file.keys()) == ["image"]
        assert file.metadata() == {
            "names": json.dumps([str(red), str(blue)]),
            "model": "fake",
            "bindlm": bindlm.__version__,
        }
        rows = file.get_tensor("image")
    assert rows.shape == (2, 3)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert rows[0].argmax() == 0  # red
    assert rows[1].argmax() == 2  # blue


def test_npy_and_json_hold_the_same_numbers(bindlm_command, embedder, tmp_path, red, blue):
    for suffix in ("safetensors", "npy", "json"):
        assert bindlm_command("embed", "--image", red, blue, "-o", tmp_path / f"out.{suffix}").code == 0
    rows = load_file(tmp_path / "out.safetensors")["image"]
    assert np.array_equal(np.load(tmp_path / "out.npy", allow_pickle=False), rows)
    described = json.loads((tmp_path / "out.json").read_text())
    assert described["metadata"]["names"] == [str(red), str(blue)]
    assert np.array_equal(np.array(described["image"], dtype=np.float32), rows)


def test_more_pictures_than_a_batch_stay_in_order(bindlm_command, embedder, tmp_path, red, blue):
    sources = [red, blue, blue] * BATCH_SIZE
    out = tmp_path / "out.npy"
    assert bindlm_command("embed", "--image", *sources, "-o", out).code == 0
    assert embedder.batches == [("image", BATCH_SIZE)] * 3
    assert np.load(out).argmax(axis=1).tolist() == [0, 2, 2] * BATCH_SIZE


def test_a_bad_picture_ends_with_3_and_leaves_what_was_there(bindlm_command, embedder, tmp_path, red, broken):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"of yesterday")
    run = bindlm_command("embed", "--image", red, broken, "-o", out)
    assert run.code == 3
    assert "broken.png" in run.err
    assert out.read_bytes() == b"of yesterday"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.png", "out.safetensors", "red.png"]


def test_skip_bad_lists_what_was_left_out(bindlm_command, embedder, tmp_path, red, blue, broken):
    out = tmp_path / "out.json"
    run = bindlm_command("embed", "--skip-bad", "--image", red, broken, blue, tmp_path / "none.png", "-o", out)
    assert run.code == 0
    left_out = [line for line in run.err.splitlines() if "left out" in line]
    assert len(left_out) == 2
    assert "broken.png" in left_out[0]
    assert "none.png" in left_out[1]
    assert json.loads(out.read_text())["metadata"]["names"] == [str(red), str(blue)]


def test_nothing_but_bad_pictures_is_an_error_all_the_same(bindlm_command, embedder, loads, tmp_path, broken):
    run = bindlm_command("embed", "--skip-bad", "--image", broken, "-o", tmp_path / "out.npy")
    assert run.code == 3
    assert "none of the 1 pictures" in run.err
    assert not (tmp_path / "out.npy").exists()
    assert loads.references == []


def test_without_a_file_a_table_of_similarities_is_printed(bindlm_command, embedder, red, blue):
    run = bindlm_command("embed", "--image", red, blue)
    assert run.code == 0
    lines = run.out.splitlines()
    assert lines[0].startswith("image (2, 3)")
    cosine = f"{float(np.dot([256, 1, 1], [1, 1, 256]) / np.dot([256, 1, 1], [256, 1, 1])):.2f}"
    assert lines[2].endswith(f"red.png   1.00   {cosine}")
    assert lines[3].endswith(f"blue.png   {cosine}   1.00")


def test_a_long_table_is_cut_and_says_so(bindlm_command, embedder, red):
    run = bindlm_command("embed", "--image", *[red] * (embed.TABLE_ROWS + 1))
    assert len(run.out.splitlines()) == embed.TABLE_ROWS + 3
    assert run.out.splitlines()[-1] == "(the first 10 of 11; -o FILE writes them all)"


@pytest.mark.parametrize(
    ("output", "reason"), [("out.pt", "suffix"), ("out", "suffix"), ("nowhere/out.npy", "cannot be written")]
)
def test_an_impossible_output_is_refused_before_any_work(
    bindlm_command, embedder, loads, tmp_path, red, output, reason
):
    run = bindlm_command("embed", "--image", red, "-o", tmp_path / output)
    assert run.code == 2
    assert reason in run.err
    assert loads.references == []


def test_a_failing_disk_leaves_nothing_half_written(bindlm_command, embedder, tmp_path, red, monkeypatch):
    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embed.os, "replace", fail)
    run = bindlm_command("embed", "--image", red, "-o", tmp_path / "out.npy")
    assert run.code == 1
    assert "No space left on device" in run.err
    assert [path.name for path in tmp_path.iterdir()] == ["red.png"]


def test_a_picture_from_standard_input_is_named_so(bindlm_command, embedder, tmp_path, red):
    out = tmp_path / "out.json"
    assert bindlm_command("embed", "--image", "-", "-o", out, stdin=red.read_bytes()).code == 0
    assert json.loads(out.read_text())["metadata"]["names"] == ["standard input"]


def test_no_picture_is_bad_usage(bindlm_command, embedder):
    run = bindlm_command("embed")
    assert run.code == 2
    assert "--image" in run.err


# --- every sense ---


@pytest.fixture
def barks(tmp_path):
    path = tmp_path / "barks.wav"
    path.write_text("blue")
    return path


def test_each_sense_is_a_key_with_names_of_its_own(bindlm_command, embedder, tmp_path, red, barks):
    out = tmp_path / "out.safetensors"
    words = ["--text", "a red thing", "--audio", barks, "--image", red, red, "-o", out]
    run = bindlm_command("embed", *words)
    assert run.code == 0, run.err
    assert "image (2, 3), text (1, 3), audio (1, 3)" in run.err
    with safe_open(out, framework="numpy") as file:
        assert sorted(file.keys()) == ["audio", "image", "text"]
        names = json.loads(file.metadata()["names"])
        assert file.get_tensor("audio").argmax() == 2
        assert file.get_tensor("text").argmax() == 0
    assert names == {"image": [str(red)] * 2, "text": ["a red thing"], "audio": [str(barks)]}
    assert bindlm_command("embed", *words[:-1], tmp_path / "out.json").code == 0
    described = json.loads((tmp_path / "out.json").read_text())
    assert described["metadata"]["names"] == names
    assert len(described["image"]) == 2


@pytest.mark.parametrize("sense", ["video", "audio", "point", "depth", "thermal", "imu"])
def test_every_sense_has_its_option(bindlm_command, embedder, tmp_path, barks, sense):
    out = tmp_path / "out.json"
    assert bindlm_command("embed", f"--{sense}", barks, "-o", out).code == 0
    described = json.loads(out.read_text())
    assert (described["metadata"]["names"], len(described[sense])) == ([str(barks)], 1)


def test_the_table_compares_across_senses(bindlm_command, embedder, red, barks):
    run = bindlm_command("embed", "--image", red, "--text", "red", "blue", "--audio", barks)
    lines = run.out.splitlines()
    assert lines[0] == "image (1, 3), text (2, 3), audio (1, 3), rows of unit length; cosine similarity:"
    assert lines[3].startswith("2  red")
    assert lines[5].split()[-4:] == ["0.01", "0.01", "1.00", "1.00"], "the sound is as the word blue, not as red"


def test_one_array_holds_one_sense(bindlm_command, embedder, loads, tmp_path, red, barks):
    run = bindlm_command("embed", "--image", red, "--audio", barks, "-o", tmp_path / "out.npy")
    assert run.code == 2
    assert "one array" in run.err
    assert loads.references == []


def test_a_sense_that_the_model_lacks_is_bad_usage_with_a_cure(bindlm_command, embedder, barks):
    embedder.modalities = ("image",)
    run = bindlm_command("embed", "--audio", barks)
    assert run.code == 2
    assert "no 'audio'; it takes image" in run.err
    assert "--model PATH" in run.err


def test_a_missing_file_of_any_sense_is_said_before_a_model_is_loaded(bindlm_command, embedder, loads, tmp_path):
    run = bindlm_command("embed", "--audio", tmp_path / "none.wav")
    assert run.code == 3
    assert "none.wav" in run.err
    assert loads.references == []


def test_bad_media_of_one_sense_leave_the_others(bindlm_command, embedder, tmp_path, red, broken, barks):
    barks.write_text("broken")
    out = tmp_path / "out.json"
    run = bindlm_command("embed", "--skip-bad", "--image", broken, red, "--audio", barks, "-o", out)
    assert run.code == 0
    assert run.err.count("left out") == 2
    described = json.loads(out.read_text())
    assert described["metadata"]["names"] == [str(red)]
    assert "audio" not in described
    run = bindlm_command("embed", "--skip-bad", "--image", broken, "--audio", barks, "-o", out)
    assert run.code == 3
    assert "none of the 1 pictures or 1 sounds" in run.err


def test_standard_input_may_be_of_any_sense_but_once(bindlm_command, embedder, tmp_path):
    out = tmp_path / "out.json"
    assert bindlm_command("embed", "--audio", "-", "-o", out, stdin=b"green").code == 0
    assert np.argmax(json.loads(out.read_text())["audio"]) == 1
    assert bindlm_command("embed", "--text", "-", "-o", out, stdin=b"blue\n").code == 0
    assert np.argmax(json.loads(out.read_text())["text"]) == 2
    run = bindlm_command("embed", "--image", "-", "--audio", "-")
    assert run.code == 2
    assert "holds one medium" in run.err
    run = bindlm_command("embed", "--audio", "-", stdin=b"broken")
    assert (run.code, "standard input" in run.err) == (3, True)


# --- a folder, and plots ---


def test_a_folder_is_written_by_sense_from_its_index(bindlm_command, embedder, tmp_path, red, blue, broken, barks):
    out = tmp_path / "out.safetensors"
    run = bindlm_command("embed", "--folder", tmp_path, "-o", out)
    assert (run.code, run.out) == (0, ""), run.err
    assert "3 embedded, 0 as they were" in run.err
    assert "broken.png" in run.err
    with safe_open(out, framework="numpy") as file:
        assert json.loads(file.metadata()["names"]) == {"image": ["blue.png", "red.png"], "audio": ["barks.wav"]}
        assert file.get_tensor("image").argmax(axis=1).tolist() == [2, 0]
    embedder.seen.clear()
    assert "0 embedded, 3 as they were" in bindlm_command("embed", "--folder", tmp_path, "-o", out).err
    assert embedder.seen == []


def test_a_folder_with_nothing_in_it_is_bad_input(bindlm_command, embedder, tmp_path):
    run = bindlm_command("embed", "--folder", tmp_path)
    assert run.code == 3
    assert "holds no pictures or" in run.err
    assert bindlm_command("embed", "--folder", tmp_path / "none").code == 3


def test_a_folder_beside_media_is_bad_usage(bindlm_command, embedder, loads, tmp_path, red):
    run = bindlm_command("embed", "--folder", tmp_path, "--image", red)
    assert (run.code, loads.references) == (2, [])


def test_ctrl_c_keeps_what_was_embedded(bindlm_command, embedder, tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02}.wav").write_text("red")
    embedder.stop_after = 10
    run = bindlm_command("embed", "--folder", tmp_path)
    assert (run.code, run.err) == (130, "bindlm: stopped\n")
    embedder.stop_after = None
    run = bindlm_command("embed", "--folder", tmp_path)
    assert "12 embedded, 8 as they were" in run.err


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_plot_is_drawn(bindlm_command, embedder, tmp_path, red, blue, barks, suffix):
    pytest.importorskip("matplotlib")
    plot = tmp_path / f"plot.{suffix}"
    run = bindlm_command("embed", "--image", red, blue, "--audio", barks, "--plot", plot)
    assert (run.code, run.out) == (0, ""), run.err
    assert plot.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml"}[suffix])


@pytest.mark.parametrize(("plot", "reason"), [("plot.txt", "suffix"), ("nowhere/plot.png", "cannot be written")])
def test_an_impossible_plot_is_refused_before_any_work(bindlm_command, embedder, loads, tmp_path, red, plot, reason):
    pytest.importorskip("matplotlib")
    run = bindlm_command("embed", "--image", red, "--plot", tmp_path / plot)
    assert run.code == 2
    assert reason in run.err
    assert loads.references == []


def test_without_matplotlib_a_plot_names_the_extra(bindlm_command, embedder, loads, tmp_path, red, monkeypatch):
    from bindlm.space import plot

    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda name: None)
    run = bindlm_command("embed", "--image", red, "--plot", tmp_path / "plot.png")
    assert run.code == 2
    assert "pip install 'bindlm[train]'" in run.err
    assert loads.references == []
