"""The model of a recipe, and the form in which it is asked."""

from pathlib import Path

import pytest
import torch
from tests.tiny import HIDDEN, picture, tiny_language_model, tiny_model, tiny_processor, tiny_tokenizer
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import bindlm
from bindlm.embedding import bound_embedder, load_embedder
from bindlm.errors import ConfigError
from bindlm.training.bound import adopt_prompt, recipe_embedder, recipe_model
from bindlm.training.data.sample import Turn
from bindlm.training.dry_run import plan_stage
from bindlm.training.render import renderer
from bindlm.training.stage_recipe import (
    DataConfig,
    ModelRecipe,
    OptimizerConfig,
    PromptConfig,
    SourceConfig,
    Stage,
    StageRecipe,
)

CONVERSATIONS = {
    "one question": [("user", "What is this?")],
    "a system's words": [("system", "Be brief."), ("user", "What is this?")],
    "a second round": [("user", "What is this?"), ("assistant", "A cat."), ("user", "Sure?")],
}


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("is_conditioned", [True, False])
def test_a_model_trained_in_alpacas_form_is_asked_in_it(turns: list[tuple[str, str]], is_conditioned: bool) -> None:
    model = tiny_model()
    model.processor = tiny_processor()
    prompt = PromptConfig(template="alpaca")
    adopt_prompt(model, prompt)
    messages = [{"role": role, "content": text} for role, text in turns]
    asked = model.processor.tokenize_chat(messages, is_conditioned=is_conditioned)["input_ids"][0].tolist()
    trained = renderer(model.processor.tokenizer, prompt, is_conditioned=is_conditioned)
    assert asked == trained.prompt_ids([Turn(role, text) for role, text in turns])


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> ModelRecipe:
    """A decoder and a CLIP, each in a folder as its publisher would have it."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_language_model().save_pretrained(folder / "decoder")
    tiny_tokenizer().save_pretrained(folder / "decoder")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**tower, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=tower, vision_config=vision, projection_dim=12)).save_pretrained(folder / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder / "clip"
    )
    return ModelRecipe(
        language_model=str(folder / "decoder"),
        encoder={"family": "clip", "modalities": ["image"]},
        encoder_weights=str(folder / "clip"),
        bridge={"hidden_dim": 24},
    )


def test_two_published_parts_make_a_model_that_saves_and_loads_without_either(
    parts: ModelRecipe, tmp_path: Path
) -> None:
    model = recipe_model(parts, seed=3)
    torch.nn.init.constant_(model.injection.gate, 0.5)
    assert (model.bridge.config.input_dim, model.bridge.config.output_dim) == (12, HIDDEN)
    model.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    assert all(name.startswith(("bridge.", "injection.")) for name in load_file(tmp_path / "model.safetensors"))
    again = bindlm.load(tmp_path)
    looked_at = picture(1)
    assert again.ask("What is this?", image=looked_at, max_new_tokens=8) == model.ask(
        "What is this?", image=looked_at, max_new_tokens=8
    )
    torch.testing.assert_close(load_embedder(tmp_path).embed(image=looked_at), model.embed(image=looked_at))


def test_the_features_encoder_is_the_models(parts: ModelRecipe) -> None:
    """`bindlm features` loads the encoder alone, `bindlm train` takes the model's: one store serves both."""
    model, embedder = recipe_model(parts), recipe_embedder(parts)
    torch.testing.assert_close(embedder.embed(image=picture(2)), model.embed(image=picture(2)))
    own = bound_embedder(model.encoder, model.processor.image_processor)
    assert own.fingerprint == embedder.fingerprint
    assert torch.equal(own.embed(image=picture(2)), embedder.embed(image=picture(2)))


def test_the_minis_encoder_is_the_same_with_and_without_its_language_model() -> None:
    recipe = ModelRecipe(start_from="mini")
    model, embedder = recipe_model(recipe), recipe_embedder(recipe)
    assert bound_embedder(model.encoder, model.processor.image_processor).fingerprint == embedder.fingerprint


def test_the_seed_decides_the_new_bridge(parts: ModelRecipe) -> None:
    weights = [recipe_model(parts, seed=seed).bridge.input.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_encoder_without_weights_is_refused(parts: ModelRecipe) -> None:
    with pytest.raises(ConfigError, match="encoder_weights must name"):
        recipe_model(ModelRecipe(language_model=parts.language_model, encoder=parts.encoder))


def test_a_dry_run_needs_no_sizes_of_a_published_encoder(parts: ModelRecipe, tmp_path: Path) -> None:
    (tmp_path / "captions.tsv").write_text("image\tcaption\na.jpg\ta cat\nb.jpg\ta dog\n")
    recipe = StageRecipe(
        stage=Stage.PRETRAIN,
        output=tmp_path / "run",
        model=parts,
        data=DataConfig(sources=(SourceConfig("captions", str(tmp_path / "captions.tsv")),)),
        optimizer=OptimizerConfig(learning_rate=1e-3, num_steps=2, batch_size=2, micro_batch_size=2),
    )
    plan = plan_stage(recipe)
    assert plan.memory.num_trained == plan.parameters.trained > 0
