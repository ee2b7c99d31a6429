"""How an answer is drawn and where it ends: what a checkpoint's `generation_config` says, and what a caller does."""

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from bindlm.asking import _Stops
from bindlm.errors import ConfigError
from bindlm.modeling import BindLMForConditionalGeneration

from .tiny import picture, tiny_model, tiny_processor, tiny_tokenizer

QUESTION = "What is this?"
RELEASED: dict[str, Any] = {"temperature": 0.1, "top_p": 0.75, "top_k": 0, "max_new_tokens": 9}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@pytest.fixture
def model() -> BindLMForConditionalGeneration:
    """With a release's way to generate."""
    built = tiny_model(gate=1.0)
    built.processor = tiny_processor()
    built.generation_config = GenerationConfig(do_sample=True, **RELEASED, **IDS)
    return built


def given_to_generate(model: BindLMForConditionalGeneration, **options: Any) -> dict[str, Any]:
    """Keywords that `answer` hands on."""
    seen: list[dict[str, Any]] = []
    generate = model.generate
    model.generate = lambda **kwargs: (seen.append(kwargs), generate(**kwargs))[1]  # type: ignore[method-assign]
    model.ask(QUESTION, image=picture(1), **options)
    return seen[0]


# -- how it is drawn -------------------------------------------------------------------------------------------------


def test_answers_are_the_same_each_time_though_the_release_samples(model: BindLMForConditionalGeneration) -> None:
    model.generation_config.temperature = 5.0
    assert given_to_generate(model)["do_sample"] is False
    answers = set()
    for seed in range(4):
        torch.manual_seed(seed)
        answers.add(model.ask(QUESTION))
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({"do_sample": True}, (0.1, 0.75)),
        ({"do_sample": True, "temperature": 0.6}, (0.6, 0.75)),
        ({"temperature": 0.6}, (0.6, 0.75)),
        ({"do_sample": True, "top_p": 0.3}, (0.1, 0.3)),
    ],
)
def test_sampling_takes_the_releases_settings_where_none_are_given(
    model: BindLMForConditionalGeneration, options: dict[str, Any], drawn: tuple[float, float]
) -> None:
    given = given_to_generate(model, **options)
    assert given["do_sample"] is True
    assert (given["temperature"], given["top_p"]) == drawn


def test_checkpoint_that_says_nothing_samples_as_the_first_release_did(model: BindLMForConditionalGeneration) -> None:
    model.generation_config = GenerationConfig(**IDS)
    given = given_to_generate(model, do_sample=True, max_new_tokens=2)
    assert (given["temperature"], given["top_p"]) == (1.0, 0.75)
    model.generation_config = GenerationConfig(**IDS, max_new_tokens=3)
    assert given_to_generate(model)["max_new_tokens"] == 3


def test_sampled_answer_is_transformers_own(model: BindLMForConditionalGeneration) -> None:
    """`generate`, left to the release's settings, draws the very same tokens, `top_k` and length included."""
    inputs = model.processor.tokenize_chat([{"role": "user", "content": QUESTION}], is_conditioned=False)
    model.generation_config.temperature = 2.0
    torch.manual_seed(3)
    made = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    torch.manual_seed(3)
    answer = model.answer(QUESTION, do_sample=True)
    assert answer.text == model.processor.decode(made, skip_special_tokens=True).strip()
    assert answer.answer_tokens == len(made)


@pytest.mark.parametrize("options", [{"do_sample": True, "temperature": 0}, {"do_sample": False, "temperature": 0.5}])
def test_contradictions_are_refused(model: BindLMForConditionalGeneration, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        model.ask(QUESTION, **options)


# -- where it ends ---------------------------------------------------------------------------------------------------


def saying(model: BindLMForConditionalGeneration, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the model say this, up to and with what ends an answer; a token here is a byte."""

    def generate(input_ids: torch.Tensor, streamer: Any, **kwargs: Any) -> torch.Tensor:
        streamer.put(input_ids.cpu())
        ids = tiny_tokenizer()(words, add_special_tokens=False).input_ids
        for token in ids:
            streamer.put(torch.tensor([token]))
        streamer.end()
        return torch.cat([input_ids, torch.tensor([ids])], dim=1)

    monkeypatch.setattr(model, "generate", generate)


def asked(model: BindLMForConditionalGeneration) -> tuple[str, str]:
    pieces: list[str] = []
    return model.ask(QUESTION, stream=pieces.append), "".join(pieces)


def test_end_token_that_is_a_word_is_no_part_of_the_answer(
    model: BindLMForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PandaGPT's `##`, which no tokenizer takes for special."""
    (mark,) = tiny_tokenizer()("#", add_special_tokens=False).input_ids
    model.generation_config.eos_token_id = [2, mark]
    saying(model, "A cat.\n#", monkeypatch)
    assert asked(model) == ("A cat.", "A cat.")
    model.generation_config.eos_token_id = 2
    assert asked(model) == ("A cat.\n#", "A cat.\n#")


def test_real_generation_ends_before_its_end_token(model: BindLMForConditionalGeneration) -> None:
    model.generation_config.do_sample = False
    inputs = model.processor.tokenize_chat([{"role": "user", "content": QUESTION}], is_conditioned=False)
    made = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :].tolist()
    end = next(token for place, token in enumerate(made) if place > 2 and token not in made[:place])
    model.generation_config.eos_token_id = [2, end]
    answer = model.answer(QUESTION)
    kept = made[: made.index(end)]
    assert answer.text == model.processor.decode(kept, skip_special_tokens=True).strip()
    assert answer.answer_tokens == len(kept) + 1


def test_stop_word_is_cut_and_no_part_of_it_is_streamed(
    model: BindLMForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.generation_config.stop_strings = ["###", "END"]
    saying(model, "C# is ##1, EN but no ###more", monkeypatch)
    assert asked(model) == ("C# is ##1, EN but no", "C# is ##1, EN but no")
    saying(model, "An unfinished ##", monkeypatch)
    assert asked(model) == ("An unfinished ##", "An unfinished ##")


def test_stop_words_reach_generate_with_the_tokenizer_it_needs(model: BindLMForConditionalGeneration) -> None:
    model.generation_config.do_sample = False
    text = model.ask(QUESTION)
    word = next(char for char in text[1:] if char.isprintable() and char not in text[:1] and char != "\ufffd")
    model.generation_config.stop_strings = word
    answer = model.answer(QUESTION)
    assert answer.text == text[: text.index(word)].strip()
    assert answer.answer_tokens < 9


def test_no_stop_settings_leave_text_alone() -> None:
    ids = tiny_tokenizer()("a#b", add_special_tokens=False).input_ids
    for settings in (GenerationConfig(), GenerationConfig(eos_token_id=2)):
        stops = _Stops.of(settings)
        assert stops.text_of(tiny_tokenizer(), ids) == stops.begun("a#b") == "a#b"
