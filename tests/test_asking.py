"""`ask`, `answer` and `embed`: the few lines most users need."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bindlm.asking import Answer, _Timeline
from bindlm.errors import ConfigError, MediaError
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.processing import BindLMImageProcessor
from bindlm.space.mix import mix_embeddings

from .tiny import DIM, picture, tiny_config, tiny_language_model, tiny_model, tiny_processor, tiny_tokenizer

LORA: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
CACHE: dict[str, Any] = {"num_entries": 20, "dim": DIM, "top_k": 3}
QUESTION = "What is this?"


@pytest.fixture(scope="module")
def model() -> BindLMForConditionalGeneration:
    """With all there is: cache, adapters, a processor."""
    built = tiny_model(gate=1.0, lora=LORA, cache=CACHE)
    built.processor = tiny_processor()
    built.name = "tiny"
    return built


@pytest.fixture
def speaking(model: BindLMForConditionalGeneration, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the model say given token ids, whatever it is asked; the path around `generate` stays real."""

    def say(ids: list[int]) -> BindLMForConditionalGeneration:
        def generate(input_ids: torch.Tensor, streamer: Any, **kwargs: Any) -> torch.Tensor:
            streamer.put(input_ids.cpu())
            for token in ids:
                streamer.put(torch.tensor([token]))
            streamer.end()
            return torch.cat([input_ids, torch.tensor([ids])], dim=1)

        monkeypatch.setattr(model, "generate", generate)
        return model

    return say


# -- without media -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "history", [None, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]]
)
def test_turn_without_media_is_the_language_models_own(
    model: BindLMForConditionalGeneration, history: list[dict[str, str]] | None
) -> None:
    """Token for token, with its own template, its adapters off, also right after a turn with a picture."""
    plain, tokenizer = tiny_language_model(), tiny_tokenizer()
    model.ask(QUESTION, image=picture(1), max_new_tokens=2)
    messages = [*(history or []), {"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = plain.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    answer = model.answer(QUESTION, history=history, max_new_tokens=24)
    assert answer.text == tokenizer.decode(made, skip_special_tokens=True).strip()
    assert answer.answer_tokens == len(made)
    assert answer.prompt_tokens == prompt["input_ids"].shape[1]
    assert answer.joint_neighbours is None


def test_turn_without_media_samples_as_the_language_model_does(model: BindLMForConditionalGeneration) -> None:
    plain, tokenizer = tiny_language_model(), tiny_tokenizer()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    torch.manual_seed(5)
    made = plain.generate(**prompt, max_new_tokens=12, do_sample=True, temperature=0.7, top_p=0.9)
    torch.manual_seed(5)
    answer = model.ask(QUESTION, max_new_tokens=12, temperature=0.7, top_p=0.9)
    assert answer == tokenizer.decode(made[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()


# -- with media ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["path", "PIL", "numpy", "bytes", "list"])
def test_picture_may_come_in_any_form(model: BindLMForConditionalGeneration, tmp_path: Path, form: str) -> None:
    path = tmp_path / "picture.png"
    picture(1).save(path)
    given: dict[str, Any] = {
        "path": path,
        "PIL": picture(1),
        "numpy": np.asarray(picture(1)),
        "bytes": path.read_bytes(),
        "list": [str(path)],
    }
    assert model.ask(QUESTION, image=given[form], max_new_tokens=8) == model.ask(
        QUESTION, picture(1), max_new_tokens=8
    )


def test_picture_makes_a_difference(model: BindLMForConditionalGeneration) -> None:
    answers = {model.ask(QUESTION, image=picture(seed), max_new_tokens=12) for seed in range(3)}
    assert len(answers) > 1
    assert model.ask(QUESTION, max_new_tokens=12) not in answers


def test_several_pictures_are_mixed_by_weight(model: BindLMForConditionalGeneration) -> None:
    pictures, weights = [picture(1), picture(2)], [0.2, 0.6]
    joint = model.embed(image=pictures)
    mixed = mix_embeddings(list(zip(joint.split(1), weights, strict=True)))
    inputs = model.processor.tokenize_chat([{"role": "user", "content": QUESTION}], is_conditioned=True)
    made = model.generate(**inputs, joint_embedding=mixed, max_new_tokens=12, do_sample=False)
    text = model.processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert model.ask(QUESTION, image=pictures, weights=weights, max_new_tokens=12) == text.strip()


def asked_with(model: BindLMForConditionalGeneration, count: int, **options: Any) -> list[tuple[torch.Tensor, float]]:
    """What `answer` hands to `generate` as the mixture."""
    seen: list[Any] = []

    class Stop(Exception):
        pass

    def generate(**kwargs: Any) -> None:
        seen.append(kwargs["joint_embedding"])
        raise Stop

    original = model.generate
    model.generate = generate
    try:
        with pytest.raises(Stop):
            model.answer(QUESTION, image=[picture(seed) for seed in range(count)], **options)
    finally:
        model.generate = original
    return seen[0]


@pytest.mark.parametrize(
    ("weights", "shares"),
    [(None, [1, 1, 1]), ([0.5, 0.0, 2], [0.5, 0.0, 2.0]), ({"image": 0.6}, [0.2, 0.2, 0.2]), ({}, [1 / 3] * 3)],
)
def test_weights_are_one_a_picture_or_one_a_modality(
    model: BindLMForConditionalGeneration, weights: Any, shares: list[float]
) -> None:
    mixture = asked_with(model, 3, weights=weights)
    assert [weight for _, weight in mixture] == pytest.approx(shares)
    joint = model.embed(image=[picture(seed) for seed in range(3)])
    for (embedding, _), expected in zip(mixture, joint, strict=True):
        assert torch.equal(embedding, expected[None])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"weights": [1.0]}, "1 weights were given for 2 pictures"),
        ({"weights": {"audio": 0.5}}, "weights names audio, but only image was given"),
        ({"weights": {"image": 1, "point": 2, "audio": 3}}, "weights names audio, point, but"),
        ({"weights": [1.0, -1.0]}, "at least 0 and sum to more than 0"),
        ({"weights": [0.0, 0.0]}, "at least 0 and sum to more than 0"),
        ({"weights": [1.0, float("nan")]}, "at least 0 and sum to more than 0"),
        ({"temperature": -0.1}, "temperature must be at least 0"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"temperature": float("inf")}, "temperature must be at least 0"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.5}, "top_p must be above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(
    model: BindLMForConditionalGeneration, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        model.answer(QUESTION, image=[picture(1), picture(2)], **options)


UNLIKE = torch.nn.functional.normalize(torch.tensor([[1.0] * 8 + [-1.0] * 8, [1.0, -1.0] * 8]))
"""Two joint embeddings at a right angle, which the cache of the tiny model leaves unlike."""


@pytest.fixture
def unlike(model: BindLMForConditionalGeneration, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Asks about two unlike media, or some of them alone."""
    assert model.cache is not None
    assert torch.nn.functional.cosine_similarity(*model.cache.enhance(UNLIKE), dim=0) < 0.5

    def ask(rows: list[int], **options: Any) -> Answer:
        monkeypatch.setattr(model, "encode_media", lambda **media: {"image": UNLIKE[rows]})
        return model.answer(QUESTION, image=[picture(1)] * len(rows), max_new_tokens=24, **options)

    return ask


def test_unlike_media_are_told_in_turn_the_weightiest_first(unlike: Any) -> None:
    one, other = unlike([0]), unlike([1])
    assert one.text != other.text
    for weights, expected in (([0.4, 0.6], f"{other.text} {one.text}"), ([0.6, 0.4], f"{one.text} {other.text}")):
        pieces: list[str] = []
        answer = unlike([0, 1], weights=weights, stream=pieces.append)
        assert answer.text == expected == "".join(pieces)
        assert answer.answer_tokens == one.answer_tokens + other.answer_tokens
        assert answer.prompt_tokens == one.prompt_tokens
    assert answer.joint_neighbours == one.joint_neighbours + other.joint_neighbours


def test_a_medium_of_weight_0_or_1_gives_what_it_gives_alone(unlike: Any) -> None:
    assert unlike([0, 1], weights=[1.0, 0.0]).text == unlike([0]).text
    assert unlike([0, 1], weights=[0.0, 1.0]).text == unlike([1]).text


@pytest.mark.parametrize("form", ["released", "paper"])
def test_one_mixture_can_be_had_by_name(unlike: Any, model: BindLMForConditionalGeneration, form: str) -> None:
    mixed = mix_embeddings([(UNLIKE[:1], 0.7), (UNLIKE[1:], 0.9)], form=form)
    inputs = model.processor.tokenize_chat([{"role": "user", "content": QUESTION}], is_conditioned=True)
    made = model.generate(**inputs, joint_embedding=mixed, max_new_tokens=24, do_sample=False)
    text = model.processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    answer = unlike([0, 1], weights=[0.7, 0.9], mix=form)
    assert answer.text == text.strip()
    assert torch.equal(
        model.condition_from([(UNLIKE[:1], 0.7), (UNLIKE[1:], 0.9)], form=form), model.condition_from(mixed)
    )


def test_an_unknown_mix_is_refused(model: BindLMForConditionalGeneration) -> None:
    with pytest.raises(ConfigError, match="mix must be one of turns, released, paper, got 'sum'"):
        model.ask(QUESTION, image=picture(1), mix="sum")


def test_a_turn_that_says_nothing_new_is_not_streamed(unlike: Any, speaking: Any) -> None:
    tokenizer = tiny_tokenizer()
    speaking(tokenizer("A cat.")["input_ids"])
    pieces: list[str] = []
    assert unlike([0, 1], stream=pieces.append).text == "A cat."
    assert "".join(pieces) == "A cat."


@pytest.mark.parametrize("weights", [[1.0], {"image": 1.0}, {}])
def test_weights_without_media_are_refused(model: BindLMForConditionalGeneration, weights: Any) -> None:
    with pytest.raises(ConfigError, match="nothing to weigh"):
        model.ask(QUESTION, weights=weights)


@pytest.mark.parametrize("question", ["", "  \n", None, 3])
def test_empty_question_is_refused(model: BindLMForConditionalGeneration, question: Any) -> None:
    with pytest.raises(ConfigError, match="question is empty"):
        model.ask(question, image=picture())


def test_bad_picture_is_named_before_anything_is_generated(
    model: BindLMForConditionalGeneration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    monkeypatch.setattr(model, "generate", lambda **kwargs: pytest.fail("generated"))
    with pytest.raises(MediaError, match="broken.png"):
        model.ask(QUESTION, image=[picture(1), tmp_path / "broken.png"])
    with pytest.raises(MediaError, match="allow_url"):
        model.ask(QUESTION, image="https://example.com/cat.jpg")


def test_model_without_processor_says_where_to_get_one() -> None:
    bare = tiny_model()
    for call in (lambda: bare.ask(QUESTION), lambda: bare.embed(image=picture())):
        with pytest.raises(ConfigError, match="has no processor; load it with bindlm.load"):
            call()


# -- history -------------------------------------------------------------------------------------------------------


def test_history_comes_before_the_question_and_its_media_are_not_looked_at_again(
    model: BindLMForConditionalGeneration,
) -> None:
    looked = [{"role": "user", "content": [{"type": "image", "image": picture(2)}, {"type": "text", "text": "A"}]}]
    plain = [{"role": "user", "content": "A"}]
    reply = [{"role": "assistant", "content": "B"}]
    for image in (None, picture(1)):
        with_media = model.answer(QUESTION, image, history=[*looked, *reply], max_new_tokens=8)
        without = model.answer(QUESTION, image, history=[*plain, *reply], max_new_tokens=8)
        alone = model.answer(QUESTION, image, max_new_tokens=8)
        assert with_media.text == without.text
        earlier = len("user\nA" + "\n" + "assistant\nB" + "\n") + 4  # a token a byte, and four special ones
        assert with_media.prompt_tokens == alone.prompt_tokens + earlier
        assert with_media.prompt_tokens == without.prompt_tokens


def test_history_is_not_changed(model: BindLMForConditionalGeneration) -> None:
    history = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
    copy = [dict(message) for message in history]
    model.ask(QUESTION, image=picture(1), history=history, max_new_tokens=2)
    assert history == copy


@pytest.mark.parametrize("history", [["Hi"], [{"content": "Hi"}], [{"role": "user", "content": [{"type": "smell"}]}]])
def test_wrong_history_is_refused(model: BindLMForConditionalGeneration, history: Any) -> None:
    with pytest.raises(ConfigError, match="message"):
        model.ask(QUESTION, history=history)


# -- what an answer says -------------------------------------------------------------------------------------------


def test_answer_counts_tokens_and_times_phases(model: BindLMForConditionalGeneration) -> None:
    answer = model.answer(QUESTION, image=picture(1), max_new_tokens=9)
    assert isinstance(answer, Answer)
    assert answer.text == model.ask(QUESTION, image=picture(1), max_new_tokens=9)
    assert 1 <= answer.answer_tokens <= 9
    inputs = model.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": picture(1)}, {"type": "text", "text": QUESTION}]}]
    )
    assert answer.prompt_tokens == inputs["input_ids"].shape[1]
    assert set(answer.seconds) == {"media", "encode", "prefill", "decode"}
    assert all(seconds > 0 for seconds in answer.seconds.values())
    assert answer.model == "tiny"


def test_answer_names_the_entries_it_drew_on(model: BindLMForConditionalGeneration) -> None:
    neighbours = model.answer(QUESTION, image=picture(1), max_new_tokens=2).joint_neighbours
    assert model.cache is not None
    cosines = model.cache.keys @ model.embed(image=picture(1))[0]
    expected = cosines.argsort(descending=True)[:3]
    assert neighbours is not None
    assert [row["entry"] for row in neighbours] == expected.tolist()
    assert [row["similarity"] for row in neighbours] == pytest.approx(cosines[expected].tolist(), abs=1e-4)


def test_special_tokens_and_outer_white_space_are_not_in_the_text(speaking: Any) -> None:
    tokenizer = tiny_tokenizer()
    model = speaking([*tokenizer(" \n A  cat.\n ").input_ids, 2])
    answer = model.answer(QUESTION)
    assert answer.text == "A  cat."
    assert answer.answer_tokens == len(" \n A  cat.\n ") + 1, "the end token is counted"


# -- streaming -----------------------------------------------------------------------------------------------------

TEXTS = ["A cat.", "naïve café", "猫在垫子上", "👩‍🚀 and 🐈‍⬛", "  padded\n\n twice \n", "", "tail: é", "\n"]


@pytest.mark.parametrize("words", TEXTS)
def test_pieces_make_up_the_text(speaking: Any, words: str) -> None:
    """One token a byte: most characters here come in two to four tokens, and none may be shown in halves."""
    pieces: list[str] = []
    model = speaking([*tiny_tokenizer()(words).input_ids, 2])
    text = model.ask(QUESTION, stream=pieces.append)
    assert text == words.strip()
    assert "".join(pieces) == text
    assert all(pieces)
    assert "\ufffd" not in text


def test_pieces_come_as_soon_as_they_are_whole(speaking: Any) -> None:
    pieces: list[str] = []
    speaking(tiny_tokenizer()("aé 猫").input_ids).ask(QUESTION, stream=pieces.append)
    assert pieces == ["a", "é", " 猫"]


def test_half_a_character_at_the_end_is_shown_as_such(speaking: Any) -> None:
    pieces: list[str] = []
    model = speaking(tiny_tokenizer()("a猫").input_ids[:-1])
    text = model.ask(QUESTION, stream=pieces.append)
    assert "".join(pieces) == text
    assert text.startswith("a\ufffd")


def test_real_generation_streams_its_text(model: BindLMForConditionalGeneration) -> None:
    for options in ({}, {"temperature": 1.5, "top_p": 1.0}):
        for seed in range(3):
            pieces: list[str] = []
            torch.manual_seed(seed)
            text = model.ask(QUESTION, image=picture(seed), max_new_tokens=20, stream=pieces.append, **options)
            assert "".join(pieces) == text


def test_prompt_is_not_streamed() -> None:
    pieces: list[str] = []
    tokenizer = tiny_tokenizer()
    timeline = _Timeline(tokenizer, pieces.append)
    timeline.put(tokenizer("the prompt", return_tensors="pt").input_ids)
    assert timeline.first_token_at is None
    timeline.put(torch.tensor(tokenizer("x").input_ids))
    timeline.end()
    assert timeline.first_token_at is not None
    assert pieces == ["x"]


def test_error_in_the_stream_is_the_callers(model: BindLMForConditionalGeneration) -> None:
    """And leaves the model as it was: adapters off, ready for the next turn."""

    def closed(piece: str) -> None:
        raise BrokenPipeError

    expected = model.ask(QUESTION, max_new_tokens=6)
    with pytest.raises(BrokenPipeError):
        model.ask(QUESTION, image=picture(1), stream=closed)
    assert model.ask(QUESTION, max_new_tokens=6) == expected


# -- embed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_embeddings_are_rows_of_unit_length_whatever_the_batch(
    model: BindLMForConditionalGeneration, batch_size: int
) -> None:
    pictures = [picture(seed) for seed in range(5)]
    joint = model.embed(image=pictures, batch_size=batch_size)
    assert joint.shape == (5, DIM)
    assert joint.dtype == torch.float32
    torch.testing.assert_close(joint.norm(dim=-1), torch.ones(5))
    for row, each in enumerate(pictures):
        torch.testing.assert_close(joint[row], model.embed(image=each)[0], rtol=1e-4, atol=1e-5)
    assert torch.pdist(joint).min() > 0.05


def test_embeddings_can_be_trained_on(model: BindLMForConditionalGeneration) -> None:
    joint = model.embed(image=picture(1))
    weight = torch.ones(DIM, requires_grad=True)
    (joint * weight).square().sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"image": []}, "nothing to embed"),
        ({}, "nothing to embed"),
        ({"image": 1, "batch_size": 0}, "batch_size must"),
    ],
)
def test_nothing_to_embed_is_refused(
    model: BindLMForConditionalGeneration, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        model.embed(**options)


def test_one_bad_picture_fails_the_whole_call(model: BindLMForConditionalGeneration) -> None:
    with pytest.raises(MediaError):
        model.embed(image=[picture(1), b"no picture"])


def test_a_sound_and_a_picture_share_an_answer(tmp_path: Path) -> None:
    """With ImageBind's towers as encoder, any of its senses can be asked about, alone or mixed by weight."""
    import soundfile

    towers = ("vision", "text", "audio")
    sizes = {f"{tower}_num_blocks": 1 for tower in towers} | {f"{tower}_embed_dim": 48 for tower in towers}
    encoder = {"family": "imagebind", "modalities": ["image", "audio"], "out_embed_dim": 8, **sizes}
    torch.manual_seed(0)
    model = BindLMForConditionalGeneration(tiny_config(encoder=encoder), tiny_language_model()).eval()
    model.processor = tiny_processor()
    model.processor.image_processor = BindLMImageProcessor(size=224, views=["center"])
    sound = tmp_path / "tone.wav"
    soundfile.write(sound, np.sin(np.arange(20_000) / 7).astype(np.float32), 16_000)
    assert model.embed(audio=sound).shape == (1, 8)
    given: list[Any] = []
    generate = model.generate
    model.generate = lambda **kwargs: (given.append(kwargs["joint_embedding"]), generate(**kwargs))[1]  # type: ignore
    options: dict[str, Any] = {"weights": {"image": 0.5, "audio": 0.8}, "max_new_tokens": 2}
    model.ask("What?", image=picture(), audio=[sound, sound], mix="released", **options)
    assert [weight for _, weight in given[0]] == [0.5, 0.4, 0.4]
    torch.testing.assert_close(given[0][1][0], model.embed(audio=sound))
    given.clear()
    model.ask("What?", image=picture(), audio=[sound, sound], **options)  # the same sound twice has one turn
    assert [[weight for _, weight in turn] for turn in given] == [[0.5, 0.5], [1.0]]
    with pytest.raises(ConfigError, match="has no 'point'"):
        model.ask("What?", point="chair.ply")
    with pytest.raises(ConfigError, match="weights names image"):
        model.ask("What?", audio=sound, weights={"image": 1})
