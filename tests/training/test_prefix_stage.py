"""A recipe that trains a prefix: from two published parts to a model that answers with its soft tokens in the text."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import VOCAB_SIZE, picture, tiny_language_model, tiny_tokenizer
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import bindlm
from bindlm.errors import ConfigError
from bindlm.training.bound import media_places, recipe_model
from bindlm.training.data.sample import Sample, Turn
from bindlm.training.dry_run import plan_stage
from bindlm.training.recipe import load_recipe
from bindlm.training.render import IGNORED, renderer
from bindlm.training.run import open_sources, train_stage, training_data
from bindlm.training.stage_recipe import PromptConfig, StageRecipe
from bindlm.tuning.stages import prepare_stage

from .stage_case import write_data, write_recipe

DIM = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder, a CLIP, data, and a recipe that makes a prefix of three soft tokens of them."""
    folder = tmp_path_factory.mktemp("prefix")
    tiny_language_model().save_pretrained(folder / "decoder")
    tiny_tokenizer().save_pretrained(folder / "decoder")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**tower, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=tower, vision_config=vision, projection_dim=DIM)).save_pretrained(folder / "clip")
    size = {"shortest_edge": 32}
    CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder / "clip")
    write_data(folder / "data")
    model: dict[str, Any] = {
        "language_model": str(folder / "decoder"),
        "encoder": {"family": "clip", "modalities": ["image"]},
        "encoder_weights": str(folder / "clip"),
        "bridge": {"hidden_dim": 24},
        "injection": {"kind": "prefix", "num_tokens": 3},
    }
    optimizer = {"learning_rate": 0.02, "num_steps": 24, "batch_size": 8, "micro_batch_size": 4}
    write_recipe(folder, stage="pretrain", model=model, optimizer=optimizer, tuning={})
    return folder


def recipe_in(folder: Path, *overrides: str) -> StageRecipe:
    return load_recipe(folder / "recipe.yaml", StageRecipe, overrides)


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_the_loss_falls_and_only_the_bridge_trains(folder: Path, tmp_path: Path, num_tokens: int) -> None:
    recipe = recipe_in(folder, f"output={tmp_path}", f"model.injection.num_tokens={num_tokens}")
    start = recipe_model(recipe.model, seed=recipe.run.seed).state_dict()
    result = train_stage(recipe)
    losses = [loss for _, loss in result.training.losses]
    # a frozen language model of random weights can be told little: from 5.9 to 5.5, by one token or by three
    assert sum(losses[-6:]) / 6 < 0.97 * sum(losses[:2]) / 2
    assert result.model is not None
    trained = load_file(result.model / "model.safetensors")
    assert trained
    assert all(name.startswith("bridge.") for name in trained)
    unmoved = [name for name, tensor in trained.items() if torch.equal(tensor, start[name])]
    assert not unmoved, f"never trained: {unmoved}"
    model = bindlm.load(result.model)
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("bridge.")}
    assert all(torch.equal(tensor, start[name]) for name, tensor in kept.items())
    assert model.processor.placeholder == {"id": VOCAB_SIZE - 1, "num_tokens": num_tokens}
    ids = model.processor.tokenize_chat([{"role": "user", "content": "Who?"}], is_conditioned=True)["input_ids"]
    assert int((ids == VOCAB_SIZE - 1).sum()) == num_tokens
    assert isinstance(model.ask("Say what it is.", image=picture(0), max_new_tokens=4), str)


@pytest.mark.parametrize("packing", [True, False])
def test_a_micro_batch_has_the_gradients_of_its_samples(folder: Path, tmp_path: Path, packing: bool) -> None:
    """Packed or padded, through the model that trains; each sample alone is what transformers makes of it."""
    recipe = recipe_in(folder, f"output={tmp_path}", f"run.packing={str(packing).lower()}")
    model = recipe_model(recipe.model)
    prepare_stage(model, "pretrain", recipe.tuning)
    model.train()
    store: Any = FakeStore()
    data, _ = training_data(recipe, open_sources(recipe), model, store)
    batch = next(data[number] for number in range(8) if (data[number]["media_rows"] < 0).any())
    assert torch.equal((batch["input_ids"] == VOCAB_SIZE - 1).sum(), torch.tensor(3 * len(batch["joint_embedding"])))
    model(**batch, use_cache=False).loss.backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert set(packed) == {name for name, _ in model.named_parameters() if name.startswith("bridge.")}
    model.zero_grad()
    total = (batch["labels"] != IGNORED).sum()
    for ids, labels, embedding in samples_of(batch):
        own = (labels != IGNORED).sum()
        given = {} if embedding is None else {"joint_embedding": embedding}
        loss = model(input_ids=ids, labels=labels, **given).loss * own / total
        if loss.requires_grad:
            loss.backward()
    for name, gradient in packed.items():
        own_gradient = dict(model.named_parameters())[name].grad
        assert own_gradient is not None
        torch.testing.assert_close(gradient, own_gradient, rtol=1e-3, atol=1e-5, msg=name)


class FakeStore:
    """An embedding of its own for each medium."""

    num_views = 1

    def rows_of(self, keys: Any) -> Any:
        import numpy as np

        return np.arange(len(keys), dtype=np.int64)

    def get(self, rows: Any, views: Any) -> torch.Tensor:
        table = torch.randn(100, DIM, generator=torch.Generator().manual_seed(4))
        return torch.nn.functional.normalize(table, dim=-1)[rows]


def samples_of(batch: dict[str, torch.Tensor]) -> Any:
    """Each sample of a micro-batch alone, with its embedding."""
    for row, positions in enumerate(batch["position_ids"]):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(positions)]
        for start, end in zip(starts, starts[1:], strict=False):
            labels = batch["labels"][row, start:end]
            if not labels.ne(IGNORED).any():
                continue  # padding
            medium = int(batch["media_rows"][row, start])
            embedding = None if medium < 0 else batch["joint_embedding"][medium][None]
            yield batch["input_ids"][row : row + 1, start:end], labels[None], embedding


def test_training_reads_what_inference_feeds(folder: Path) -> None:
    model = recipe_model(recipe_in(folder).model)
    places = media_places(model)
    for is_conditioned in (True, False):
        maker = renderer(
            model.processor.tokenizer,
            PromptConfig(),
            is_conditioned=is_conditioned,
            conditioned_template=model.processor.conditioned_chat_template,
            places=places,
        )
        turns = [Turn("user", "Who is <|medium|> it?"), Turn("assistant", "A cat."), Turn("user", "Sure?")]
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        asked = model.processor.tokenize_chat(messages, is_conditioned=is_conditioned)["input_ids"][0].tolist()
        sample = Sample("0", (*turns, Turn("assistant", "Yes.")))
        ids = maker.render([(sample, 0)])[0].input_ids
        assert ids[: len(asked)] == asked
        assert ids.count(VOCAB_SIZE - 1) == 3 * is_conditioned


def test_a_bare_caption_has_no_place_for_a_medium_and_teaches_nothing(folder: Path) -> None:
    model = recipe_model(recipe_in(folder).model)
    maker = renderer(
        model.processor.tokenizer,
        PromptConfig(caption_instruction=None),
        is_conditioned=True,
        conditioned_template=model.processor.conditioned_chat_template,
        places=media_places(model),
    )
    assert maker.render([(Sample("0", captions=("a cat",)), 0)])[0].num_targets == 0


def test_a_dry_run_counts_a_prefix(folder: Path, tmp_path: Path) -> None:
    plan = plan_stage(recipe_in(folder, f"output={tmp_path}"))
    assert plan.memory.num_trained == plan.parameters.trained > 0
    assert plan.memory.activations > 0
    assert json.dumps(plan.as_json())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.bridge={kind: linear}", "only a bind_network makes several"),
        ("model.bridge={num_tokens: 2}", "The prefix has 3 soft tokens, but the bridge 'bind_network' makes 2"),
        ("data.prompt.template=alpaca", 'Set data.prompt.template to "chat"'),
    ],
)
def test_what_cannot_be_is_said_before_training(folder: Path, tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        train_stage(recipe_in(folder, f"output={tmp_path}", override))
    assert said in str(caught.value)
