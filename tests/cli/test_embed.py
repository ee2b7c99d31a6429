import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import bindlm
from bindlm.cli import embed


def test_safetensors_hold_a_row_a_picture_and_their_names(bindlm_command, model, tmp_path, red, blue):
    out = tmp_path / "out.safetensors"
    run = bindlm_command("embed", "--image", red, blue, "-o", out)
    assert (run.code, run.out) == (0, "")
    with safe_open(out, framework="numpy") as file:
        assert list(file.keys()) == ["image"]
        assert file.metadata() == {
            "names": json.dumps([str(red), str(blue)]),
            "model": "mini",
            "bindlm": bindlm.__version__,
        }
        rows = file.get_tensor("image")
    assert rows.shape == (2, 3)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert rows[0].argmax() == 0  # red
    assert rows[1].argmax() == 2  # blue


def test_npy_and_json_hold_the_same_numbers(bindlm_command, model, tmp_path, red, blue):
    for suffix in ("safetensors", "npy", "json"):
        assert bindlm_command("embed", "--image", red, blue, "-o", tmp_path / f"out.{suffix}").code == 0
    rows = load_file(tmp_path / "out.safetensors")["image"]
    assert np.array_equal(np.load(tmp_path / "out.npy", allow_pickle=False), rows)
    described = json.loads((tmp_path / "out.json").read_text())
    assert described["metadata"]["names"] == [str(red), str(blue)]
    assert np.array_equal(np.array(described["image"], dtype=np.float32), rows)


def test_more_pictures_than_a_batch_stay_in_order(bindlm_command, model, tmp_path, red, blue):
    sources = [red, blue, blue] * embed.BATCH_SIZE
    out = tmp_path / "out.npy"
    assert bindlm_command("embed", "--image", *sources, "-o", out).code == 0
    assert [len(batch) for batch in model.embedded] == [embed.BATCH_SIZE] * 3
    assert np.load(out).argmax(axis=1).tolist() == [0, 2, 2] * embed.BATCH_SIZE


def test_a_bad_picture_ends_with_3_and_leaves_what_was_there(bindlm_command, model, tmp_path, red, broken):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"of yesterday")
    run = bindlm_command("embed", "--image", red, broken, "-o", out)
    assert run.code == 3
    assert "broken.png" in run.err
    assert out.read_bytes() == b"of yesterday"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.png", "out.safetensors", "red.png"]


def test_skip_bad_lists_what_was_left_out(bindlm_command, model, tmp_path, red, blue, broken):
    out = tmp_path / "out.json"
    run = bindlm_command("embed", "--skip-bad", "--image", red, broken, blue, tmp_path / "none.png", "-o", out)
    assert run.code == 0
    left_out = [line for line in run.err.splitlines() if "left out" in line]
    assert len(left_out) == 2
    assert "broken.png" in left_out[0]
    assert "none.png" in left_out[1]
    assert json.loads(out.read_text())["metadata"]["names"] == [str(red), str(blue)]


def test_nothing_but_bad_pictures_is_an_error_all_the_same(bindlm_command, model, loads, tmp_path, broken):
    run = bindlm_command("embed", "--skip-bad", "--image", broken, "-o", tmp_path / "out.npy")
    assert run.code == 3
    assert "none of the 1 pictures" in run.err
    assert not (tmp_path / "out.npy").exists()
    assert loads.references == []


def test_without_a_file_a_table_of_similarities_is_printed(bindlm_command, model, red, blue):
    run = bindlm_command("embed", "--image", red, blue)
    assert run.code == 0
    lines = run.out.splitlines()
    assert lines[0].startswith("image (2, 3)")
    cosine = f"{float(np.dot([256, 1, 1], [1, 1, 256]) / np.dot([256, 1, 1], [256, 1, 1])):.2f}"
    assert lines[2].endswith(f"red.png   1.00   {cosine}")
    assert lines[3].endswith(f"blue.png   {cosine}   1.00")


def test_a_long_table_is_cut_and_says_so(bindlm_command, model, red):
    run = bindlm_command("embed", "--image", *[red] * (embed.TABLE_ROWS + 1))
    assert len(run.out.splitlines()) == embed.TABLE_ROWS + 3
    assert run.out.splitlines()[-1] == "(the first 10 of 11; -o FILE writes them all)"


@pytest.mark.parametrize(
    ("output", "reason"), [("out.pt", "suffix"), ("out", "suffix"), ("nowhere/out.npy", "cannot be written")]
)
def test_an_impossible_output_is_refused_before_any_work(bindlm_command, model, loads, tmp_path, red, output, reason):
    run = bindlm_command("embed", "--image", red, "-o", tmp_path / output)
    assert run.code == 2
    assert reason in run.err
    assert loads.references == []


def test_a_failing_disk_leaves_nothing_half_written(bindlm_command, model, tmp_path, red, monkeypatch):
    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embed.os, "replace", fail)
    run = bindlm_command("embed", "--image", red, "-o", tmp_path / "out.npy")
    assert run.code == 1
    assert "No space left on device" in run.err
    assert [path.name for path in tmp_path.iterdir()] == ["red.png"]


def test_a_picture_from_standard_input_is_named_so(bindlm_command, model, tmp_path, red):
    out = tmp_path / "out.json"
    assert bindlm_command("embed", "--image", "-", "-o", out, stdin=red.read_bytes()).code == 0
    assert json.loads(out.read_text())["metadata"]["names"] == ["standard input"]


def test_no_picture_is_bad_usage(bindlm_command, model):
    run = bindlm_command("embed")
    assert run.code == 2
    assert "--image" in run.err
