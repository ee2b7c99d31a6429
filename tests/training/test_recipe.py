"""Recipes: YAML read into checked dataclasses."""

from pathlib import Path

import pytest
import yaml

from bindlm.errors import ConfigError
from bindlm.training.mini.recipes import PairsRecipe, ReadoutRecipe, SpaceRecipe
from bindlm.training.recipe import load_recipe, plain
from bindlm.training.stage_recipe import Stage
from bindlm.training.stage_recipe import StageRecipe as BoundStageRecipe

RECIPES = Path(__file__).parents[2] / "recipes" / "mini"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_minis_own_preparations_are_read_whole() -> None:
    readout = load_recipe(RECIPES / "0-readout.yaml", ReadoutRecipe)
    pairs = load_recipe(RECIPES / "0-pairs.yaml", PairsRecipe)
    assert min(readout.num_steps, pairs.pretrain.num_samples, pairs.instruct.num_samples) > 0
    for draw in (readout.draw, pairs.pretrain.draw, pairs.instruct.draw):
        assert 0 < draw.classes + draw.emoji <= 1
        assert 0 < draw.noise.cosine_low < draw.noise.cosine_high < 1


def test_shipped_space_recipe_names_files_whose_hash_is_known() -> None:
    from bindlm.checkpoints import known_files

    model = load_recipe(RECIPES / "0-space.yaml", SpaceRecipe).model
    assert {model.language_model, model.image_tower} <= set(known_files())


def test_overrides_win_over_the_file_and_reach_inside_sections() -> None:
    recipe = load_recipe(RECIPES / "0-readout.yaml", ReadoutRecipe, ["num_steps=3", "draw.classes=0.25"])
    assert (recipe.num_steps, recipe.draw.classes) == (3, 0.25)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("num_steps: 1\nbatch_size: 1\nlearning_rate: 1.0\nlearning_rat: 2\n", "unknown key 'learning_rat'"),
        ("num_steps: 1\nbatch_size: 1\nlearning_rate: fast\n", "learning_rate must be a number"),
        ("num_steps: 1.5\nbatch_size: 1\nlearning_rate: 1\n", "num_steps must be of type int"),
        ("num_steps: true\nbatch_size: 1\nlearning_rate: 1\n", "num_steps must be of type int"),
        ("num_steps: 1\n", "lacks batch_size, learning_rate"),
        ("num_steps: 1\nbatch_size: 1\nlearning_rate: 1\ndraw: {clases: 1}\n", "draw: unknown key 'clases'"),
        ("num_steps: 1\nbatch_size: 1\nlearning_rate: 1\ndraw: 3\n", "draw must be a section"),
        ("- 1\n- 2\n", "must hold key: value lines"),
        ("a: [1\n", "not valid YAML"),
    ],
)
def test_a_wrong_recipe_is_one_clear_error(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, text), ReadoutRecipe)
    assert said in str(caught.value)


@pytest.mark.parametrize("override", ["num_steps", "=3", "num_steps.inner=3"])
def test_a_wrong_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        load_recipe(RECIPES / "0-readout.yaml", ReadoutRecipe, [override])


def test_a_missing_recipe_is_named() -> None:
    with pytest.raises(ConfigError, match="no recipe nowhere.yaml"):
        load_recipe(Path("nowhere.yaml"), ReadoutRecipe)


STAGE = """\
stage: instruct
output: out
model: {language_model: some-model}
data:
  sources:
    - {format: llava, path: a.json, weight: 2}
    - {format: alpaca, path: b.json}
optimizer: {learning_rate: 1e-4, num_epochs: 4, betas: [0.9, 0.95]}
"""


def stage_recipe(folder: Path, *overrides: str) -> BoundStageRecipe:
    return load_recipe(write(folder, STAGE), BoundStageRecipe, overrides)


def test_lists_of_sections_choices_and_numbers_without_a_point_are_read(tmp_path: Path) -> None:
    recipe = stage_recipe(tmp_path)
    assert recipe.stage is Stage.INSTRUCT
    assert [(source.format, source.weight) for source in recipe.data.sources] == [("llava", 2.0), ("alpaca", 1.0)]
    assert recipe.optimizer.learning_rate == 1e-4
    assert recipe.optimizer.betas == (0.9, 0.95)


def test_an_override_reaches_an_item_of_a_list(tmp_path: Path) -> None:
    recipe = stage_recipe(tmp_path, "data.sources.1.path=c.json", "data.prompt.template=alpaca")
    assert recipe.data.sources[1].path == "c.json"
    assert recipe.data.prompt.template == "alpaca"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stage=pretraining", "stage must be one of pretrain, instruct, quality"),
        ("data.sources.2.path=c", "'2' is no item of a list of 2"),
        ("data.sources.first.path=c", "'first' is no item"),
        ("data.sources=[]", "must name at least one"),
        ("optimizer.betas=[0.9]", "betas must have 2 items"),
        ("optimizer.num_steps=3", "one of num_epochs and num_steps"),
        ("data.sources.0.weigth=3", "unknown key 'weigth'"),
        ("model.start_from=there", "one of start_from and language_model"),
        ("tuning.biases=[1]", "biases[0] must be of type str"),
        ("run.trainer=[", "not valid YAML"),
    ],
)
def test_a_wrong_value_deep_inside_is_named(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stage_recipe(tmp_path, override)
    assert said in str(caught.value)


def test_a_written_recipe_reads_back_the_same(tmp_path: Path) -> None:
    recipe = stage_recipe(
        tmp_path, "tuning.lora={r: 4}", "run.caption_pictures=[a.png]", "model.encoder_weights=x.pth"
    )
    again = load_recipe(write(tmp_path, yaml.safe_dump(plain(recipe))), BoundStageRecipe)
    assert again == recipe


@pytest.mark.parametrize(
    "path", sorted(RECIPES.parent.glob("*/[1-9]-*.yaml")), ids=lambda path: "/".join(path.parts[-2:])
)
def test_every_shipped_stage_is_read_whole(path: Path) -> None:
    recipe = load_recipe(path, BoundStageRecipe)
    assert recipe.output.parts[:2] == ("runs", path.parent.name)
    assert recipe.optimizer.batch_size % recipe.optimizer.micro_batch_size == 0


def test_the_papers_stages_have_the_papers_numbers() -> None:
    """ImageBind-LLM (arXiv 2309.03905), section 4.1."""
    pretrain, instruct = (
        load_recipe(RECIPES.parent / "imagebind-llm" / name, BoundStageRecipe).optimizer
        for name in ("1-pretrain.yaml", "2-instruct.yaml")
    )
    assert (pretrain.batch_size, pretrain.learning_rate, pretrain.num_epochs) == (1024, 4e-4, 3)
    assert (instruct.batch_size, instruct.learning_rate, instruct.num_epochs) == (32, 1.25e-4, 4)
    assert (pretrain.weight_decay, instruct.weight_decay) == (0.05, 0.02)
    assert pretrain.warmup_epochs == 0.1
    assert instruct.warmup_epochs == 1
