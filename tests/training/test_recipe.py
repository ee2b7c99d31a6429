"""Recipes: YAML read into checked dataclasses."""

from pathlib import Path

import pytest

from bindlm.errors import ConfigError
from bindlm.training.mini.stages import SpaceRecipe, StageRecipe
from bindlm.training.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes" / "mini"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["1-readout", "2-bind", "3-instruct"])
def test_shipped_stage_recipes_are_read_whole(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml", StageRecipe)
    assert recipe.num_steps > 0
    assert 0 < recipe.mix.classes + recipe.mix.emoji <= 1
    assert 0 < recipe.noise.cosine_low < recipe.noise.cosine_high < 1


def test_shipped_space_recipe_names_files_whose_hash_is_known() -> None:
    from bindlm.checkpoints import known_files

    model = load_recipe(RECIPES / "0-space.yaml", SpaceRecipe).model
    assert {model.language_model, model.image_tower} <= set(known_files())


def test_overrides_win_over_the_file_and_reach_inside_sections() -> None:
    recipe = load_recipe(RECIPES / "2-bind.yaml", StageRecipe, ["num_steps=3", "mix.bare_turns=0.25"])
    assert (recipe.num_steps, recipe.mix.bare_turns) == (3, 0.25)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("num_steps: 1\nbatch_size: 1\nlearning_rate: 1.0\nlearning_rat: 2\n", "unknown key 'learning_rat'"),
        ("num_steps: 1\nbatch_size: 1\nlearning_rate: fast\n", "learning_rate must be of type float"),
        ("num_steps: 1.5\nbatch_size: 1\nlearning_rate: 1\n", "num_steps must be of type int"),
        ("num_steps: true\nbatch_size: 1\nlearning_rate: 1\n", "num_steps must be of type int"),
        ("num_steps: 1\n", "lacks batch_size, learning_rate"),
        ("num_steps: 1\nbatch_size: 1\nlearning_rate: 1\nmix: {clases: 1}\n", "mix: unknown key 'clases'"),
        ("num_steps: 1\nbatch_size: 1\nlearning_rate: 1\nmix: 3\n", "mix must be a section"),
        ("- 1\n- 2\n", "must hold key: value lines"),
        ("a: [1\n", "not valid YAML"),
    ],
)
def test_a_wrong_recipe_is_one_clear_error(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, text), StageRecipe)
    assert said in str(caught.value)


@pytest.mark.parametrize("override", ["num_steps", "=3", "num_steps.inner=3"])
def test_a_wrong_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        load_recipe(RECIPES / "2-bind.yaml", StageRecipe, [override])


def test_a_missing_recipe_is_named() -> None:
    with pytest.raises(ConfigError, match="no recipe nowhere.yaml"):
        load_recipe(Path("nowhere.yaml"), StageRecipe)
