"""`bindlm cache` with an embedder of three colours: every action, its output and its exit code."""

import json
import time

import numpy as np
import pytest
from PIL import Image

from bindlm.cli import cache as cache_module


@pytest.fixture
def embedder(embedder):
    """With the fingerprint of its picture tower, as the real one has."""
    embedder.fingerprint_of = lambda sense: f"{sense}-{embedder.fingerprint}"
    return embedder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in (("red", (250, 0, 0)), ("green", (0, 250, 0)), ("blue", (0, 0, 250))):
        Image.new("RGB", (8, 8), colour).save(folder / f"{name}.png")
    (folder / "red.txt").write_text("a red square")
    return folder


@pytest.fixture
def cache(embedder, bindlm_command, photos, tmp_path):
    """A cache of three pictures."""
    run = bindlm_command("cache", "build", photos, "-o", tmp_path / "cache")
    assert (run.code, run.out) == (0, ""), run.err
    return tmp_path / "cache"


def test_a_folder_of_pictures_becomes_a_cache(embedder, bindlm_command, photos, tmp_path):
    (photos / "broken.png").write_bytes(b"no picture")
    run = bindlm_command("cache", "build", photos, "-o", tmp_path / "cache", "--json")
    assert run.code == 0
    result = json.loads(run.out)
    assert (result["num_entries"], result["encoder"], result["fingerprint"]) == (3, "fake", "image-0123456789abcdef")
    assert result["index"]["key"] == "IDMap2,Flat"
    assert result["unfinished"] is None
    assert "left out: broken.png" in run.err
    assert not (tmp_path / "cache" / ".bindlm-build").exists()


def test_explain_prints_the_neighbours_of_a_sound(cache, bindlm_command, tmp_path):
    (tmp_path / "siren.wav").write_bytes(b"red red blue")
    run = bindlm_command("cache", "explain", cache, "--audio", tmp_path / "siren.wav", "--top-k", 2)
    head, first, second = run.out.splitlines()
    assert head.split() == ["cosine", "weight", "id", "caption"]
    assert first.split()[2:] == ["red.png", "a", "red", "square"]
    assert second.split()[2:] == ["blue.png"]
    assert (run.code, run.err) == (0, "")


def test_explain_as_json_says_everything(cache, bindlm_command, photos):
    run = bindlm_command("cache", "explain", cache, "--image", photos / "green.png", "--json")
    result = json.loads(run.out)
    assert [each["id"] for each in result["neighbours"]][0] == "green.png"
    assert result["neighbours"][0]["source"] == str(photos / "green.png")
    assert sum(each["weight"] for each in result["neighbours"]) == pytest.approx(1)
    assert result["is_pulled"] is False  # pictures stay as they are
    assert result["encoder"] == "fake"
    run = bindlm_command("cache", "explain", cache, "--image", photos / "green.png")
    assert "leaves pictures as they are" in run.err


def test_explain_draws_a_sheet(cache, bindlm_command, photos, tmp_path):
    sheet = tmp_path / "sheet.png"
    run = bindlm_command("cache", "explain", cache, "--image", photos / "red.png", "--image-sheet", sheet)
    assert run.code == 0
    assert Image.open(sheet).size[0] > 100
    run = bindlm_command("cache", "explain", cache, "--text", "red", "--image-sheet", tmp_path / "sheet.svg")
    assert (run.code, "no known suffix" in run.err) == (2, True)


def test_explain_refuses_another_encoder_and_no_medium(cache, bindlm_command, embedder):
    assert bindlm_command("cache", "explain", cache).code == 2
    embedder.fingerprint = "f" * 16
    run = bindlm_command("cache", "explain", cache, "--text", "red")
    assert run.code == 4
    assert "made with another encoder" in run.err


def test_pictures_are_added_and_removed(cache, bindlm_command, tmp_path):
    more = tmp_path / "more"
    more.mkdir()
    Image.new("RGB", (8, 8), (250, 250, 0)).save(more / "yellow.png")
    assert bindlm_command("cache", "add", cache, more).code == 0
    (tmp_path / "gone.txt").write_text("red.png\n")
    run = bindlm_command("cache", "remove", cache, "blue.png", "--ids-from", tmp_path / "gone.txt", "--json")
    result = json.loads(run.out)
    assert (result["num_entries"], result["removed"]) == (2, 2)
    run = bindlm_command("cache", "remove", cache, "blue.png")
    assert (run.code, "nothing was removed" in run.err) == (2, True)
    assert bindlm_command("cache", "remove", cache).code == 2


def test_inspect_and_verify(cache, bindlm_command):
    run = bindlm_command("cache", "inspect", cache)
    assert "3 entries of 3 numbers" in run.out
    assert "fake (image-0123456789abcdef)" in run.out
    assert json.loads(bindlm_command("cache", "inspect", cache, "--json").out)["num_entries"] == 3
    run = bindlm_command("cache", "verify", cache)
    assert (run.code, "is sound" in run.out) == (0, True)
    values = next(cache.glob("values-*.npy"))
    values.write_bytes(values.read_bytes()[:-1] + b"\x00")
    run = bindlm_command("cache", "verify", cache, "--json")
    assert run.code == 4
    assert json.loads(run.out)["problems"] == [f"{values.name} is not what was written: its SHA-256 differs"]
    assert "values-000000.npy" in bindlm_command("cache", "verify", cache).out
    assert bindlm_command("cache", "inspect", cache.parent / "photos").code == 4


def save_embeddings(folder, rows=12, seed=0):
    folder.mkdir(parents=True)
    np.save(folder / "img_emb_0.npy", np.random.default_rng(seed).standard_normal((rows, 3)).astype(np.float16))
    return folder


def test_embeddings_need_to_be_said_of_which_encoder(embedder, bindlm_command, tmp_path):
    folder = save_embeddings(tmp_path / "laion" / "img_emb")
    run = bindlm_command("cache", "build", "--embeddings", folder, "-o", tmp_path / "cache")
    assert run.code == 2
    assert "which encoder made" in run.err
    run = bindlm_command(
        "cache", "build", folder, "-o", tmp_path / "cache", "--model", "clip", "--encoder", "ViT-B/32"
    )
    assert run.code == 0
    record = json.loads(bindlm_command("cache", "inspect", tmp_path / "cache", "--json").out)
    assert (record["encoder"], record["fingerprint"]) == ("ViT-B/32", "image-0123456789abcdef")
    run = bindlm_command("cache", "build", folder, "-o", tmp_path / "other", "--fingerprint", "abc", "--json")
    assert json.loads(run.out)["fingerprint"] == "abc"
    run = bindlm_command("cache", "add", tmp_path / "other", folder)
    assert "the cache has abc" in run.err


def test_shards_of_two_feature_stores_become_one_cache(embedder, bindlm_command, photos, tmp_path):
    from bindlm.caching.stores import PictureFolder
    from bindlm.training.features import extract_features
    from bindlm.training.stage_recipe import FeaturesConfig

    for number, colour in enumerate(((9, 9, 200), (200, 9, 9))):
        folder = tmp_path / f"shard-{number}"
        folder.mkdir()
        Image.new("RGB", (8, 8), colour).save(folder / f"{number}.png")
        source = PictureFolder(folder)
        source.name = f"shard-{number}"
        extract_features([source], embedder, FeaturesConfig(str(tmp_path / f"store-{number}")), progress=False)
        run = bindlm_command(
            "cache", "build", "--features", tmp_path / f"store-{number}", "-o", tmp_path / f"cache-{number}"
        )
        assert run.code == 0, run.err
    run = bindlm_command(
        "cache", "merge", tmp_path / "cache-0", tmp_path / "cache-1", "-o", tmp_path / "cache", "--json"
    )
    assert json.loads(run.out)["num_entries"] == 2
    run = bindlm_command("cache", "explain", tmp_path / "cache", "--text", "blue", "--json")
    assert json.loads(run.out)["neighbours"][0]["id"] == "shard-0/0.png"
    embedder.fingerprint = "f" * 16
    run = bindlm_command("cache", "build", "--features", tmp_path / "store-0", "-o", tmp_path / "new")
    assert (run.code, "name the encoder that made it" in run.err) == (4, True)
    bindlm_command("cache", "build", photos, "-o", tmp_path / "foreign")
    run = bindlm_command("cache", "merge", tmp_path / "cache", tmp_path / "foreign", "-o", tmp_path / "mixed")
    assert (run.code, "another encoder" in run.err) == (4, True)


def test_ctrl_c_says_how_to_go_on(embedder, bindlm_command, photos, tmp_path):
    embedder.stop_after = 2
    run = bindlm_command("cache", "build", photos, "-o", tmp_path / "cache")
    assert run.code == 130
    assert run.err.endswith("bindlm: stopped; the same command goes on from there\n")
    embedder.stop_after = None
    assert bindlm_command("cache", "build", photos, "-o", tmp_path / "cache").code == 0
    run = bindlm_command("cache", "build", photos, "-o", tmp_path / "cache")
    assert (run.code, "is a cache already" in run.err) == (2, True)
    assert bindlm_command("cache", "build", photos, "-o", tmp_path / "cache", "--replace").code == 0


def test_settings_are_written_down(embedder, bindlm_command, photos, tmp_path):
    words = "--top-k 2 --alpha 0.2 --weighting cosine --notice CC0 --pulls audio text".split()
    assert bindlm_command("cache", "build", photos, "-o", tmp_path / "cache", *words).code == 0
    found = json.loads(bindlm_command("cache", "inspect", tmp_path / "cache", "--json").out)
    settings = {"top_k": 2, "alpha": 0.2, "temperature": 20.0, "weighting": "cosine", "modalities": ["audio", "text"]}
    assert (found["settings"], found["notice"]) == (settings, "CC0")
    run = bindlm_command("cache", "build", photos, "-o", tmp_path / "other", "--alpha", "1.5")
    assert (run.code, "alpha must lie in [0, 1]" in run.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "of what? give a folder of pictures"),
        (("a", "--features", "b"), "give one source"),
        (("nothing-there",), "is not there"),
        (("photos", "--max-memory", "much"), "expected a size such as 3.5GB"),
        (("photos", "--max-latency", "0ms"), "expected a time above 0"),
        (("photos", "--metadata", "names.parquet"), "--metadata goes with .npy"),
        (("photos", "--fingerprint", "abc"), "--fingerprint goes with embeddings"),
    ],
)
def test_a_wrong_command_is_a_usage_error(embedder, bindlm_command, photos, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    run = bindlm_command("cache", "build", *words, "-o", tmp_path / "cache")
    assert run.code == 2
    assert message in run.err
    assert not (tmp_path / "cache" / "config.json").exists()


@pytest.mark.parametrize(
    ("text", "value"), [("3.5GB", 3_500_000_000), ("512 MiB", 2**29), ("7", 7), (".5kb", 500), ("1tb", 10**12)]
)
def test_sizes(text, value):
    assert cache_module.num_bytes(text) == value


@pytest.mark.parametrize(("text", "value"), [("3ms", 3.0), ("0.5s", 500.0), ("250us", 0.25), ("4", 4.0)])
def test_times(text, value):
    assert cache_module.milliseconds(text) == value


def test_help_is_quick(bindlm_command):
    started = time.process_time()
    for action in ("", *cache_module.ACTIONS):
        run = bindlm_command("cache", *([action] if action else []), "--help")
        assert run.code == 0
    assert time.process_time() - started < 1
