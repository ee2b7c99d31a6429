import json
import sys

import pytest

from ..fake_embedder import FakeEmbedder
from .conftest import save_square

RECIPE = """
stage: pretrain
output: {folder}/run
model:
  start_from: mini
data:
  sources:
    - {{format: captions, path: "{folder}/captions.tsv", name: pairs}}
optimizer:
  learning_rate: 1e-3
  num_steps: 1
features:
  path: {folder}/features
  shard_size: 2
"""
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("BINDLM_HOME", str(tmp_path / "home"))
    lines = ["image\tcaption"]
    for name, colour in COLOURS.items():
        save_square(tmp_path / f"{name}.png", colour)
        lines.append(f"{name}.png\ta {name} square")
    (tmp_path / "captions.tsv").write_text("\n".join(lines) + "\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


@pytest.fixture
def fake(monkeypatch):
    """The embedder of every recipe in this test."""
    import torch

    from bindlm.training import bound

    fake = FakeEmbedder()
    fake.encoder = torch.nn.Identity()
    fake.asked = []

    def recipe_embedder(recipe, *, progress=True):
        fake.asked.append(recipe.start_from)
        return fake

    monkeypatch.setattr(bound, "recipe_embedder", recipe_embedder)
    return fake


def test_a_recipe_is_embedded_once(bindlm_command, recipe, fake, tmp_path):
    run = bindlm_command("features", recipe)
    assert run.code == 0, run.err
    assert "3 embedded, 0 there already" in run.err
    assert "holds 3 media (3 image)" in run.err
    assert (run.out, fake.asked) == ("", ["mini"])
    fake.seen.clear()
    run = bindlm_command("features", recipe, "--json")
    report = json.loads(run.out)
    assert (report["embedded"], report["reused"], report["media"], fake.seen) == (0, 3, 3, [])
    assert report["store"] == str(tmp_path / "features")


def test_settings_on_the_command_line_win(bindlm_command, recipe, fake, tmp_path):
    other = tmp_path / "other"
    run = bindlm_command("features", recipe, f"features.path={other}", "features.views.num_views=2", "--json")
    assert run.code == 0, run.err
    assert json.loads(run.out)["views"] == 2
    assert (other / "store.json").is_file()


def test_unreadable_media_are_listed_and_not_fatal(bindlm_command, recipe, fake, broken, tmp_path):
    broken.rename(tmp_path / "red.png")
    (tmp_path / "blue.png").unlink()
    run = bindlm_command("features", recipe, "--json")
    assert run.code == 0, run.err
    assert "1 embedded, 0 there already, 2 left out" in run.err
    assert "left out: pairs/red.png: Cannot use picture" in run.err
    assert [each["key"] for each in json.loads(run.out)["unreadable"]] == ["pairs/blue.png", "pairs/red.png"]


def test_damage_is_mended_with_verify(bindlm_command, recipe, fake, tmp_path):
    bindlm_command("features", recipe)
    shard = sorted((tmp_path / "features" / "shards").iterdir())[0]
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    run = bindlm_command("features", recipe, "--verify")
    assert run.code == 0, run.err
    assert "1 damaged or missing files made anew" in run.err
    assert shard.read_bytes() == good


def test_another_encoder_is_refused(bindlm_command, recipe, fake):
    bindlm_command("features", recipe)
    fake.fingerprint = "f" * 16
    run = bindlm_command("features", recipe)
    assert run.code == 2
    assert "was made with another encoder" in run.err
    assert "bindlm features RECIPE" in run.err


def test_a_recipe_without_features_is_a_usage_error(bindlm_command, recipe):
    recipe.write_text(recipe.read_text().split("features:")[0])
    run = bindlm_command("features", recipe)
    assert run.code == 2
    assert "features.path=DIR" in run.err


def test_workers_without_ray_are_a_usage_error(bindlm_command, recipe):
    run = bindlm_command("features", recipe, "--workers", "2")
    assert run.code == 2
    assert "--workers goes with --ray" in run.err


def test_without_the_package_ray_the_extra_is_named(bindlm_command, recipe, fake, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    run = bindlm_command("features", recipe, "--ray")
    assert run.code == 2
    assert "pip install 'bindlm[ray]'" in run.err


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(bindlm_command, recipe, fake):
    fake.stop_after = 1
    run = bindlm_command("features", recipe)
    assert run.code == 130
    fake.stop_after = None
    run = bindlm_command("features", recipe)
    assert run.code == 0, run.err
    assert "holds 3 media" in run.err
