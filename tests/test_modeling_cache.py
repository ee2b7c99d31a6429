"""A bound model and its visual cache: attached, consulted by sense, named in the answer, and found again."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bindlm.asking import _pulling
from bindlm.attaching import FOLDER
from bindlm.checkpoints import load_state
from bindlm.embedding import Embedder
from bindlm.encoders.licences import LicenceWarning
from bindlm.errors import CheckpointError, ConfigError
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.space import StoredVisualCache
from bindlm.space.cache_writing import write_cache_folder

from .tiny import DIM, HIDDEN, picture, tiny_model, tiny_processor, token_batch, unit_rows

OWN: dict[str, Any] = {"num_entries": 20, "dim": DIM, "top_k": 3}
QUESTION = "What is this?"


@pytest.fixture(scope="module")
def built() -> BindLMForConditionalGeneration:
    model = tiny_model(gate=1.0)
    model.processor = tiny_processor()
    return model


@pytest.fixture(scope="module")
def fingerprint(built: BindLMForConditionalGeneration) -> str:
    return Embedder(built.encoder).fingerprint_of("image")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, fingerprint: str) -> Path:
    """A cache of the tiny model's picture tower."""
    place = tmp_path_factory.mktemp("caches") / "photos"
    write(place, fingerprint)
    return place


def write(place: Path, fingerprint: str, dim: int = DIM, **settings: Any) -> None:
    ids = [f"id-{row}" for row in range(40)]
    captions = [f"picture {row}" for row in range(40)]
    write_cache_folder(place, unit_rows(40, dim, seed=7).numpy(), ids, captions, fingerprint=fingerprint, **settings)


@pytest.fixture
def model(built: BindLMForConditionalGeneration) -> Any:
    """The tiny model without a cache, and without one again afterwards."""
    yield built
    built.attach_cache(None)


@torch.no_grad()
def test_an_attached_cache_pulls_the_embedding_unless_told_not_to(
    model: BindLMForConditionalGeneration, folder: Path
) -> None:
    joint = unit_rows(2)
    plain = model.condition_from(joint)
    model.attach_cache(folder, top_k=4, alpha=0.7)
    assert isinstance(model.cache, StoredVisualCache)
    assert (model.cache.config.top_k, model.cache.config.alpha) == (4, 0.7)
    pulled = model.condition_from(joint)
    assert torch.equal(pulled, model.bridge(model.cache.enhance(joint)))
    assert torch.equal(model.condition_from(joint, use_cache_entries=False), plain)
    assert (pulled - plain).abs().max() > 1e-3
    ids = token_batch(2, 4)
    for use_cache_entries, condition in ((True, pulled), (False, plain)):
        given = {"max_new_tokens": 4, "do_sample": False}
        made = model.generate(ids, joint_embedding=joint, use_cache_entries=use_cache_entries, **given)
        assert torch.equal(made, model.generate(ids, condition=condition, **given))


@torch.no_grad()
def test_pictures_are_left_as_they_are_unless_the_settings_say_otherwise(
    model: BindLMForConditionalGeneration, folder: Path
) -> None:
    ids, pixels = token_batch(1, 4), tiny_processor().image_processor(picture(1))["pixel_values"]
    plain = model(input_ids=ids, pixel_values=pixels).logits
    alone = model.answer(QUESTION, image=picture(1), max_new_tokens=4)
    model.attach_cache(folder)
    assert torch.equal(model(input_ids=ids, pixel_values=pixels).logits, plain)
    answer = model.answer(QUESTION, image=picture(1), max_new_tokens=4)
    assert (answer.text, answer.joint_neighbours) == (alone.text, [])
    model.attach_cache(folder, modalities=None)
    assert not torch.equal(model(input_ids=ids, pixel_values=pixels).logits, plain)


def test_an_answer_names_the_entries_it_drew_on(model: BindLMForConditionalGeneration, folder: Path) -> None:
    model.attach_cache(folder, modalities=["image"], top_k=3)
    assert model.cache is not None
    answer = model.answer(QUESTION, image=picture(1), max_new_tokens=2)
    (expected,) = model.cache.explain(model.embed(image=picture(1)))
    assert answer.joint_neighbours == [
        {
            "entry": each.entry,
            "similarity": round(each.similarity, 4),
            "weight": round(each.weight, 4),
            "id": f"id-{each.entry}",
            "caption": f"picture {each.entry}",
        }
        for each in expected
    ]
    json.dumps(answer.joint_neighbours)


@pytest.mark.parametrize("kind", ["own", "folder"])
def test_a_question_searches_the_cache_once_and_tells_what_that_found(
    model: BindLMForConditionalGeneration, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "own":
        model.add_cache(unit_rows(40, DIM, seed=7), top_k=3)
    else:
        model.attach_cache(folder, modalities=None, top_k=3)
    assert model.cache is not None
    queries: list[Tensor] = []
    search = type(model.cache).search

    def counted(cache: Any, joint_embedding: Tensor) -> tuple[Tensor, Tensor]:
        queries.append(joint_embedding)
        return search(cache, joint_embedding)

    monkeypatch.setattr(type(model.cache), "search", counted)
    answer = model.answer(QUESTION, image=picture(1), max_new_tokens=2)
    (query,) = queries
    torch.testing.assert_close(query, model.embed(image=picture(1)))
    assert answer.joint_neighbours is not None
    assert [each["entry"] for each in answer.joint_neighbours] == search(model.cache, query)[1][0].tolist()


def test_a_question_may_leave_the_cache_out_or_demand_it(model: BindLMForConditionalGeneration, folder: Path) -> None:
    plain = model.answer(QUESTION, image=picture(1), max_new_tokens=6)
    with pytest.raises(ConfigError, match="no visual cache; give it one with model.attach_cache"):
        model.ask(QUESTION, image=picture(1), cache=True)
    model.attach_cache(folder, modalities=None, alpha=1.0)
    without = model.answer(QUESTION, image=picture(1), cache=False, max_new_tokens=6)
    assert (without.text, without.joint_neighbours) == (plain.text, None)
    demanded = model.answer(QUESTION, image=picture(1), cache=True, max_new_tokens=6)
    assert demanded.joint_neighbours == model.answer(QUESTION, image=picture(1), max_new_tokens=6).joint_neighbours
    assert demanded.joint_neighbours


def test_a_mixture_is_pulled_when_one_of_its_senses_is(folder: Path) -> None:
    cache = StoredVisualCache.open(folder)
    weighted = [(row, 1.0) for row in unit_rows(3).split(1)]
    photo, sound, other_photo = weighted
    turns = [[photo, sound], [other_photo]]
    assert _pulling(cache, weighted, ["image", "audio", "image"], turns) == [cache, None]
    assert _pulling(None, weighted, ["image", "audio", "image"], turns) == [None, None]


def test_a_cache_of_another_encoder_is_refused_and_the_old_one_stays(
    model: BindLMForConditionalGeneration, folder: Path, tmp_path: Path
) -> None:
    model.attach_cache(folder)
    before, settings = model.cache, model.config.cache
    write(tmp_path, "another")
    with pytest.raises(CheckpointError, match="made with another encoder"):
        model.attach_cache(tmp_path)
    with pytest.raises(CheckpointError, match="made with another encoder"):
        model.attach_cache(StoredVisualCache.open(tmp_path))
    assert model.cache is before
    assert model.config.cache == settings


def test_a_cache_of_another_width_is_refused(
    model: BindLMForConditionalGeneration, fingerprint: str, tmp_path: Path
) -> None:
    write(tmp_path, fingerprint, dim=2 * DIM)
    with pytest.raises(ConfigError, match=f"The cache is {2 * DIM} wide, the encoder {DIM}"):
        model.attach_cache(tmp_path)
    assert model.cache is None


def test_the_terms_of_its_pictures_are_told_once(
    model: BindLMForConditionalGeneration, fingerprint: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    write(tmp_path, fingerprint, notice="for research only")
    for _ in range(2):
        model.attach_cache(tmp_path)
    told = [str(each.message) for each in recwarn if each.category is LicenceWarning]
    assert told == [f"the visual cache {tmp_path}: for research only"]


def test_an_open_cache_keeps_its_settings(model: BindLMForConditionalGeneration, folder: Path) -> None:
    cache = StoredVisualCache.open(folder, alpha=0.2, modalities=["audio"])
    model.attach_cache(cache)
    assert model.cache is cache
    assert model.config.cache == {FOLDER: str(folder), "alpha": 0.2, "modalities": ["audio"]}
    with pytest.raises(ConfigError, match="An open cache has its settings"):
        model.attach_cache(cache, alpha=0.3)


def test_a_model_without_a_picture_tower_takes_only_a_cache_that_is_open(folder: Path) -> None:
    model = tiny_model_without_encoder()
    with pytest.raises(ConfigError, match="no picture tower to compare"):
        model.attach_cache(folder)
    model.attach_cache(StoredVisualCache.open(folder))
    assert model.condition_from(unit_rows(1)).shape == (1, 1, HIDDEN)


def tiny_model_without_encoder() -> BindLMForConditionalGeneration:
    from .tiny import tiny_config, tiny_language_model

    language_model = tiny_language_model()
    config = tiny_config(language_model.config, encoder={"family": "none", "dim": DIM})
    return BindLMForConditionalGeneration(config, language_model).eval()


def test_a_model_that_sums_its_media_has_no_place_for_a_cache(folder: Path) -> None:
    model = tiny_model_without_encoder()
    model.config.mixing = "sum"
    with pytest.raises(ConfigError, match="sums its media"):
        model.attach_cache(folder)


def test_copies_of_a_model_share_its_cache(model: BindLMForConditionalGeneration, folder: Path) -> None:
    model.attach_cache(folder)
    copied = copy.deepcopy(model).to("cpu")
    assert copied.cache.files is model.cache.files  # type: ignore[union-attr]
    assert torch.equal(copied.condition_from(unit_rows(1)), model.condition_from(unit_rows(1)))


# -- saved and loaded ----------------------------------------------------------------------------------------------


def load(place: Path, **options: Any) -> BindLMForConditionalGeneration:
    return BindLMForConditionalGeneration.from_pretrained(place, progress=False, **options)


@pytest.mark.parametrize("is_inside", [False, True])
def test_a_saved_model_finds_its_cache_again(
    model: BindLMForConditionalGeneration, folder: Path, tmp_path: Path, is_inside: bool
) -> None:
    """By its path; within the model's folder by the path from there, so that the two may be moved together."""
    place, joint = tmp_path / "model", unit_rows(2)
    held = place / "photos" if is_inside else folder
    if is_inside:
        shutil.copytree(folder, held)
    model.attach_cache(held, alpha=0.9)
    expected = model.condition_from(joint)
    model.save_pretrained(place)
    named = json.loads((place / "config.json").read_text())["cache"]
    assert named == {FOLDER: "photos" if is_inside else str(folder), "alpha": 0.9}
    assert not [name for name in load_state(place / "model.safetensors") if name.startswith("cache")]
    assert model.config.cache[FOLDER] == str(held), "the model at hand goes on as it was"
    if is_inside:
        place = place.rename(tmp_path / "moved")
    loaded = load(place)
    torch.testing.assert_close(loaded.condition_from(joint), expected)


def test_a_model_whose_cache_is_gone_says_what_to_do(
    model: BindLMForConditionalGeneration, folder: Path, tmp_path: Path
) -> None:
    lost = Path(shutil.copytree(folder, tmp_path / "lost"))
    model.attach_cache(lost)
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(lost)
    with pytest.raises(CheckpointError, match="lost, which .*config.json names, is missing; .* cache=False"):
        load(tmp_path / "model")
    without = load(tmp_path / "model", cache=False)
    assert without.cache is None
    assert without.config.cache is None
    elsewhere = load(tmp_path / "model", cache=folder)
    assert elsewhere.config.cache == {FOLDER: str(folder)}


def test_a_models_own_cache_may_be_left_out_replaced_or_demanded(folder: Path, tmp_path: Path) -> None:
    tiny_model(cache=OWN).save_pretrained(tmp_path / "own")
    assert load(tmp_path / "own", cache=True).cache.config.top_k == 3  # type: ignore[union-attr]
    assert load(tmp_path / "own", cache=False).cache is None
    assert isinstance(load(tmp_path / "own", cache=str(folder)).cache, StoredVisualCache)
    tiny_model().save_pretrained(tmp_path / "none")
    with pytest.raises(ConfigError, match="has no visual cache; give its folder as cache="):
        load(tmp_path / "none", cache=True)


def test_entries_of_a_models_own_cache_have_the_names_beside_its_weights(tmp_path: Path) -> None:
    tiny_model(cache=OWN).save_pretrained(tmp_path)
    names = tmp_path / "cache_entries.json"
    names.write_text(json.dumps([[f"thing {row}", "kind", "emoji"] for row in range(20)]))
    model = load(tmp_path)
    assert model.cache is not None
    for neighbour in model.cache.explain(unit_rows(1))[0]:
        assert (neighbour.id, neighbour.caption, neighbour.source) == (
            f"emoji:thing {neighbour.entry}",
            f"thing {neighbour.entry}",
            "emoji",
        )
    names.write_text(json.dumps([["one", "", "emoji"]]))
    with pytest.raises(CheckpointError, match="names 1 entries, and the cache has 20"):
        load(tmp_path)
    names.write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path)
