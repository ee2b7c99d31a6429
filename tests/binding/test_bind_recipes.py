"""The shipped recipes are whole, and impossible settings are refused by name."""

from pathlib import Path

import pytest

from bindlm.binding.recipe import BindRecipe
from bindlm.encoders.towers import TOWER_KINDS
from bindlm.errors import ConfigError
from bindlm.training.recipe import load_recipe, plain

from .binding_case import write_recipe

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes" / "bind").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_and_its_towers_settings_are_known(path):
    recipe = load_recipe(path, BindRecipe)
    TOWER_KINDS[recipe.tower.kind].config(**recipe.tower.settings)


def test_the_published_numbers_are_in_the_recipes():
    recipes = {path.stem: load_recipe(path, BindRecipe) for path in RECIPES}
    sound, language, points = (recipes[n] for n in ("imagebind-audio", "languagebind-audio", "point-bind"))
    assert (sound.objective.temperature, sound.objective.is_learnable) == (0.05, False)
    assert (sound.optimizer.batch_size, sound.optimizer.learning_rate, sound.optimizer.num_epochs) == (
        2048,
        1.6e-3,
        64,
    )
    assert (language.tower.settings["r"], language.optimizer.batch_size) == (16, 1024)
    assert [column.column for column in points.anchor.columns] == ["image", "text", "audio"]
    assert (points.optimizer.batch_size, points.optimizer.learning_rate, points.optimizer.num_epochs) == (
        64,
        0.003,
        300,
    )


def test_a_recipe_written_out_reads_back_the_same(tmp_path):
    import yaml

    for path in RECIPES:
        recipe = load_recipe(path, BindRecipe)
        (tmp_path / "again.yaml").write_text(yaml.safe_dump(plain(recipe)))
        assert load_recipe(tmp_path / "again.yaml", BindRecipe) == recipe


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.temperature=0.001", "between 1 / max_scale and 1"),
        ("objective.temperature=0", "between 1 / max_scale and 1"),
        ("objective.hard_negatives=-1", "0 or more"),
        ("data.split={validation: 0.6, test: 0.5}", "leave something to train on"),
        ("data.pairs=[]", "at least one table"),
        ("optimizer.num_epochs=3", "one of num_epochs and num_steps"),
        ("optimizer.batch_size=1", "at least 2"),
        ("optimizer.ema=1.0", "between 0 and 1"),
        ("anchor.columns=[{column: image}, {column: image}]", "names a column twice"),
        ("anchor.columns=[{column: image, weight: 0}]", "weight must be above 0"),
        ("tower.kind=''", "one of kind and start_from"),
        ("evaluate={every: 0, keep_best: true}", "needs looks while training"),
        ("run.workers=-1", "0 or more"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, override, said):
    path = write_recipe(tmp_path, tmp_path / "pairs.csv")
    with pytest.raises(ConfigError, match=said):
        load_recipe(path, BindRecipe, [override])
