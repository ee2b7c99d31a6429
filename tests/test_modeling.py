"""The composed model: media in any of their forms, rows with and without, generation and streaming."""

import threading
from typing import Any

import pytest
import torch
from transformers import TextIteratorStreamer, TextStreamer

from bindlm.errors import ConfigError
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.processing import BindLMProcessor
from bindlm.space.mix import mix_embeddings

from .tiny import (
    DIM,
    HIDDEN,
    SIDE,
    picture,
    tiny_config,
    tiny_language_model,
    tiny_model,
    tiny_processor,
    token_batch,
    unit_rows,
)

CACHE: dict[str, Any] = {"num_entries": 20, "dim": DIM, "top_k": 4, "alpha": 0.6}


@pytest.fixture(scope="module")
def model() -> BindLMForConditionalGeneration:
    return tiny_model(gate=1.0)


@pytest.fixture(scope="module")
def processor() -> BindLMProcessor:
    return tiny_processor()


def pixels(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


# -- one condition, in three forms ---------------------------------------------------------------------------------


@torch.no_grad()
def test_pictures_embeddings_and_conditions_are_one_way(model: BindLMForConditionalGeneration) -> None:
    ids, pictures = token_batch(2, 5), pixels(2)
    joint = model.encode_media(image=pictures)["image"]
    condition = model.condition_from(joint)
    assert joint.shape == (2, DIM)
    assert condition.shape == (2, 1, HIDDEN)
    logits = model(input_ids=ids, pixel_values=pictures).logits
    assert torch.equal(model(input_ids=ids, joint_embedding=joint).logits, logits)
    assert torch.equal(model(input_ids=ids, condition=condition).logits, logits)
    assert (logits[0] - model(input_ids=ids, pixel_values=pictures.flip(0)).logits[0]).abs().max() > 0.05


@torch.no_grad()
def test_weighted_embeddings_are_mixed(model: BindLMForConditionalGeneration) -> None:
    ids, weighted = token_batch(2, 5), [(unit_rows(2, seed=1), 0.3), (unit_rows(2, seed=2), 0.9)]
    expected = model(input_ids=ids, joint_embedding=mix_embeddings(weighted)).logits
    assert torch.equal(model(input_ids=ids, joint_embedding=weighted).logits, expected)


@torch.no_grad()
def test_has_media_says_which_rows_the_pictures_belong_to(model: BindLMForConditionalGeneration) -> None:
    ids, pictures = token_batch(4, 5), pixels(2)
    has_media = torch.tensor([False, True, False, True])
    logits = model(input_ids=ids, pixel_values=pictures, has_media=has_media).logits
    plain = model(input_ids=ids).logits
    every = model(input_ids=ids[has_media], pixel_values=pictures).logits
    assert torch.equal(logits[~has_media], plain[~has_media])
    torch.testing.assert_close(logits[has_media], every, rtol=0, atol=1e-5)
    assert (logits[has_media] - plain[has_media]).abs().amax(dim=(1, 2)).min() > 0.05


@pytest.mark.parametrize(
    ("media", "complaint"),
    [
        ({"condition": torch.zeros(2, 1, HIDDEN), "joint_embedding": unit_rows(2)}, "not several"),
        ({"pixel_values": pixels(2), "joint_embedding": unit_rows(2)}, "not several"),
        # (B, D_lm) would be broadcast over tokens in place of rows wherever B happens to equal T
        ({"condition": torch.zeros(2, HIDDEN)}, r"must be \(2, 1, 32\), .* got \(2, 32\)"),
        ({"condition": torch.zeros(2, 5, HIDDEN)}, r"got \(2, 5, 32\)"),
        ({"condition": torch.zeros(3, 1, HIDDEN)}, r"got \(3, 1, 32\)"),
        ({"joint_embedding": unit_rows(3)}, r"got \(3, 1, 32\)"),
        ({"joint_embedding": unit_rows(2, DIM + 1)}, r"takes joint embeddings \(B, 16\)"),
        ({"pixel_values": pixels(1)[0]}, r"takes pictures \(B, V, 3, S, S\)"),
        ({"joint_embedding": unit_rows(1), "has_media": torch.tensor([True, True])}, "marks 2 rows, but .* for 1"),
        ({"joint_embedding": unit_rows(2), "has_media": torch.tensor([False, True])}, "marks 1 rows, but .* for 2"),
        ({"has_media": torch.tensor([False, True])}, "no pixel_values and no joint_embedding"),
    ],
)
def test_media_that_do_not_fit_the_text_are_refused(
    model: BindLMForConditionalGeneration, media: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        model(input_ids=token_batch(2, 2), **media)
    with pytest.raises(ConfigError, match=complaint):
        model.generate(token_batch(2, 2), **media, max_new_tokens=2)


@torch.no_grad()
def test_cache_pulls_the_embedding_unless_told_not_to() -> None:
    model, joint = tiny_model(cache=CACHE), unit_rows(2)
    assert model.cache is not None
    enhanced = model.bridge(model.cache.enhance(joint))
    assert torch.equal(model.condition_from(joint), enhanced)
    assert torch.equal(model.condition_from(joint, use_cache_entries=False), model.bridge(joint))
    ids = token_batch(2, 5)
    expected = model(input_ids=ids, condition=enhanced).logits
    assert torch.equal(model(input_ids=ids, joint_embedding=joint).logits, expected)


@torch.no_grad()
def test_cache_can_be_added_and_exchanged() -> None:
    model, joint = tiny_model(), unit_rows(2)
    before = model.condition_from(joint)
    for seed in (1, 2):
        model.add_cache(unit_rows(12, seed=seed), unit_rows(12, seed=seed + 5), top_k=3, weighting="cosine")
        assert model.cache is not None
        assert torch.equal(model.cache.keys, unit_rows(12, seed=seed))
        assert torch.equal(model.condition_from(joint), model.bridge(model.cache.enhance(joint)))
        assert not torch.equal(model.condition_from(joint), before)
    settings = model.config.cache
    with pytest.raises(ConfigError, match="cache is 17 wide, the encoder 16"):
        model.add_cache(unit_rows(12, DIM + 1))
    with pytest.raises(ConfigError, match="top_k must lie in"):
        model.add_cache(unit_rows(12), top_k=13)
    assert (
        model.config.cache
        == settings
        == {
            "num_entries": 12,
            "dim": DIM,
            "has_own_values": True,
            "top_k": 3,
            "weighting": "cosine",
        }
    )


# -- what must not change ------------------------------------------------------------------------------------------


def test_training_mode_leaves_the_encoder_as_it_is() -> None:
    """In training mode its batch norms would follow the batch, and their running means drift from step to step."""
    model, pictures = tiny_model(), pixels(2)
    expected = model.encode_media(image=pictures)["image"]
    buffers = {name: buffer.clone() for name, buffer in model.encoder.named_buffers()}
    model.train()
    assert model.training
    assert model.bridge.training
    assert model.language_model.training
    assert not any(module.training for module in model.encoder.modules())
    assert torch.equal(model.encode_media(image=pictures)["image"], expected)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.encoder.named_buffers())


@torch.no_grad()
def test_embeddings_made_without_gradients_can_be_trained_on(model: BindLMForConditionalGeneration) -> None:
    """Tensors of inference mode could not: "Inference tensors cannot be saved for backward"."""
    joint = model.encode_media(image=pixels(2))["image"]
    assert not joint.requires_grad
    with torch.enable_grad():
        model.condition_from(joint).sum().backward()
    assert model.bridge.input.weight.grad is not None
    model.zero_grad()


def test_encoder_is_frozen_and_the_rest_trains() -> None:
    model = tiny_model()
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    assert all(parameter.requires_grad for parameter in model.bridge.parameters())
    assert model.injection.gate.requires_grad


@torch.no_grad()
def test_bound_decoder_keeps_its_attention_and_its_mask() -> None:
    """A configuration made around a decoder's own once set its attention to None: no mask, and every token saw all."""
    language_model = tiny_language_model()
    assert language_model.config._attn_implementation == "sdpa"
    expected = language_model(token_batch(1, 6)).logits
    bound = tiny_model(language_model=language_model)
    assert language_model.config._attn_implementation == "sdpa"
    logits = bound(input_ids=token_batch(1, 6)).logits
    assert torch.equal(logits, expected)
    longer = torch.cat([token_batch(1, 6), token_batch(1, 3, seed=7)], dim=1)
    torch.testing.assert_close(bound(input_ids=longer).logits[:, :6], logits, rtol=0, atol=1e-5)


def test_tiny_models_are_what_their_seed_says() -> None:
    one, other = tiny_model(cache=CACHE), tiny_model(cache=CACHE)
    for (name, tensor), same in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, same), name


# -- parts that do not fit together --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"bridge": {"input_dim": 8}}, "bridge is 8 -> 32, but the encoder gives 16 and the language model takes 32"),
        ({"bridge": {"output_dim": 64}}, "bridge is 16 -> 64"),
        ({"bridge": {"depth": 3}}, "BindLMConfig.bridge has an unknown setting"),
        ({"injection": {"bound": 3}}, "BindLMConfig.injection has an unknown setting"),
        ({"injection": {"gate_bound": -1.0}}, "gate_bound must be above 0"),
        ({"cache": {"num_entries": 20, "dim": 8}}, "cache is 8 wide, the encoder 16"),
        ({"cache": {"dim": DIM}}, "BindLMConfig.cache has an unknown setting or lacks one"),
        ({"encoder": {"size": "lite0"}}, "BindLMConfig.encoder has an unknown setting or lacks one"),
        ({"encoder": {"family": "nose"}}, "Unknown encoder family 'nose'"),
        ({"lora": {"r": 2, "target_modules": ["nowhere"]}}, "LoRA settings"),
    ],
)
def test_impossible_configuration_is_refused_and_leaves_the_decoder_alone(
    changes: dict[str, Any], complaint: str
) -> None:
    language_model = tiny_language_model()
    keys = list(language_model.state_dict())
    with pytest.raises(ConfigError, match=complaint):
        BindLMForConditionalGeneration(tiny_config(language_model.config, **changes), language_model)
    assert list(language_model.state_dict()) == keys
    assert not any(module._forward_pre_hooks for module in language_model.modules())
    tiny_model(language_model=language_model)  # can be bound still


# -- generate ------------------------------------------------------------------------------------------------------


def chat(question: str, *, seed: int | None = None) -> list[dict[str, Any]]:
    if seed is None:
        return [{"role": "user", "content": question}]
    parts = [{"type": "image", "image": picture(seed)}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


def test_generate_takes_what_the_processor_gives(
    model: BindLMForConditionalGeneration, processor: BindLMProcessor
) -> None:
    """Conversations with and without pictures in one batch: each gets what it would get alone."""
    conversations = [chat("What is this?", seed=1), chat("Hi"), chat("And this, then?", seed=2), chat("Why not?")]
    batch = model.generate(**processor.apply_chat_template(conversations), **OPTIONS)
    assert batch.shape[0] == 4
    for row, conversation in enumerate(conversations):
        inputs = processor.apply_chat_template(conversation)
        alone = model.generate(**inputs, **OPTIONS)
        assert torch.equal(batch[row, -8:], alone[0, -8:])
        without = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], **OPTIONS)
        assert torch.equal(alone, without) == (row in (1, 3))


def test_greedy_generation_is_asks_path(processor: BindLMProcessor) -> None:
    model = tiny_model(gate=1.0)
    model.processor = processor
    inputs = processor.apply_chat_template(chat("What is this?", seed=1))
    made = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)
    text = processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert model.ask("What is this?", image=picture(1), max_new_tokens=12) == text.strip()


def test_media_are_encoded_once_not_once_a_token(
    model: BindLMForConditionalGeneration, processor: BindLMProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    encode = model.encoder.encode
    monkeypatch.setattr(model.encoder, "encode", lambda *given: calls.append(given) or encode(*given))
    model.generate(**processor.apply_chat_template(chat("Hi", seed=1)), **OPTIONS)
    assert len(calls) == 1


def test_text_streamer_prints_what_is_generated(
    model: BindLMForConditionalGeneration, processor: BindLMProcessor, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = processor.apply_chat_template(chat("Hi", seed=1))
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    made = model.generate(**inputs, **OPTIONS, streamer=streamer)
    text = processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert capsys.readouterr().out == text + "\n"


def test_text_iterator_streamer_gives_the_text_from_another_thread(
    model: BindLMForConditionalGeneration, processor: BindLMProcessor
) -> None:
    inputs = processor.apply_chat_template(chat("Hi", seed=1))
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=30)
    made: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: made.append(model.generate(**inputs, **OPTIONS, streamer=streamer)))
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == processor.decode(made[0][0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_generation_settings_are_the_language_models() -> None:
    language_model = tiny_language_model()
    language_model.generation_config.max_new_tokens = 3
    model = tiny_model(language_model=language_model)
    assert model.generate(token_batch(1, 4), do_sample=False, min_new_tokens=3).shape == (1, 7)


def test_generate_takes_input_embeddings(model: BindLMForConditionalGeneration) -> None:
    ids = token_batch(2, 5)
    embeds = model.get_input_embeddings()(ids).detach()
    expected = model.generate(ids, joint_embedding=unit_rows(2), **OPTIONS)[:, 5:]
    assert torch.equal(model.generate(inputs_embeds=embeds, joint_embedding=unit_rows(2), **OPTIONS), expected)
