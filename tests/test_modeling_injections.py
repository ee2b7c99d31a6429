"""Every way in, chosen by configuration: built, saved, asked in batches, generated with, refused where it cannot."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bindlm.errors import ConfigError
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.processing import MEDIUM, BindLMProcessor
from bindlm.training.packing import Packable, collate_packed

from .tiny import (
    DECODERS,
    DIM,
    HIDDEN,
    VOCAB_SIZE,
    padded_batch,
    tiny_language_model,
    tiny_model,
    tiny_tokenizer,
    token_batch,
    unit_rows,
)
from .tiny import randomize_ as randomized

PLACE = VOCAB_SIZE - 1
QUERIES = {"kind": "visual_query", "embed_dim": 8, "num_blocks": 1, "num_heads": 2, "num_queries": 3}
KINDS: dict[str, dict[str, Any]] = {
    "additive": {"injection": {}},
    "value path": {"injection": {"kind": "zero_init_attention"}},
    "prompts and queries": {
        "injection": {"kind": "zero_init_attention", "num_layers": 2, "num_tokens": 3, "has_new_gate": True},
        "bridge": QUERIES,
    },
    "prefix": {"injection": {"kind": "prefix", "placeholder_id": PLACE}, "bridge": {"kind": "linear"}},
}
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}


def model_of(kind: str, family: str = "llama", **changes: Any) -> BindLMForConditionalGeneration:
    """A bound model of random weights, gates open."""
    model = tiny_model(family, gate=None, **{**KINDS[kind], **changes})
    generator = torch.Generator().manual_seed(9)
    for parameter in model.injection.parameters():
        randomized(parameter, 0.7, generator)
    return model


def text_for(kind: str, rows: int = 2, length: int = 7) -> Tensor:
    """Words, and a placeholder in each row where the injection has a place in the text."""
    ids = token_batch(rows, length).clamp(max=PLACE - 1)
    if kind == "prefix":
        ids[:, 2] = PLACE
    return ids


def padded_for(kind: str) -> dict[str, Tensor]:
    texts = padded_batch([4, 7])
    texts["input_ids"] = texts["input_ids"].clamp(max=PLACE - 1)
    if kind == "prefix":
        texts["input_ids"][:, -2] = PLACE
    return texts


def alone(texts: dict[str, Tensor], row: int) -> Tensor:
    """One row of a padded batch, without its padding."""
    return texts["input_ids"][row][texts["attention_mask"][row].bool()][None]


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_medium_counts_and_comes_back_from_a_folder(kind: str, family: str, tmp_path: Path) -> None:
    model, ids = model_of(kind, family), text_for(kind)
    logits = model(input_ids=ids, joint_embedding=unit_rows(2)).logits
    assert (logits - model(input_ids=ids, joint_embedding=unit_rows(2, seed=3)).logits).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    again = BindLMForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.injection == model.config.injection
    # not to the bit: tensors of a mapped file lie at odd addresses, by which Mixtral's experts round otherwise
    torch.testing.assert_close(again(input_ids=ids, joint_embedding=unit_rows(2)).logits, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "prefix"])
@torch.no_grad()
def test_rows_without_media_run_the_plain_language_model(kind: str) -> None:
    model, ids = model_of(kind), text_for(kind, rows=3)
    has_media = torch.tensor([True, False, True])
    logits = model(input_ids=ids, joint_embedding=unit_rows(2), has_media=has_media).logits
    plain = tiny_language_model()(ids).logits
    assert torch.equal(model(input_ids=ids).logits, plain)
    torch.testing.assert_close(logits[1], plain[1], rtol=0, atol=1e-5)
    every = model(input_ids=ids[has_media], joint_embedding=unit_rows(2)).logits
    torch.testing.assert_close(logits[has_media], every, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["additive", "value path", "prompts and queries"])
@torch.no_grad()
def test_shut_gates_are_the_plain_language_model_bit_for_bit(kind: str) -> None:
    model, ids = model_of(kind), text_for(kind)
    for parameter in model.injection.gate_parameters():
        parameter.zero_()
    given = model(input_ids=ids, joint_embedding=unit_rows(2)).logits
    assert torch.equal(given, tiny_language_model()(ids).logits)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padding_on_the_left_changes_nothing(kind: str) -> None:
    model, texts, joint = model_of(kind), padded_for(kind), unit_rows(2)
    logits = model(**texts, joint_embedding=joint).logits
    settings = {"do_sample": False, "max_new_tokens": 5, "eos_token_id": None}
    made = model.generate(**texts, joint_embedding=joint, **settings)
    for row in range(2):
        ids = alone(texts, row)
        single = model(input_ids=ids, joint_embedding=joint[row : row + 1]).logits[0]
        torch.testing.assert_close(logits[row, -ids.shape[1] :], single, rtol=0, atol=2e-4)
        expected = model.generate(ids, joint_embedding=joint[row : row + 1], **settings)[0, -5:]
        assert torch.equal(made[row, -5:], expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 2])
@torch.no_grad()
def test_generation_is_what_forward_without_a_cache_says(kind: str, beams: int) -> None:
    model, ids, joint = model_of(kind), text_for(kind), unit_rows(2)
    settings = {"do_sample": False, "max_new_tokens": 4, "eos_token_id": None, "num_beams": beams}
    expected = model.generate(ids, joint_embedding=joint, use_cache=False, **settings)
    assert torch.equal(model.generate(ids, joint_embedding=joint, **settings), expected)
    if beams == 1:
        text = ids
        for _ in range(4):
            scores = model(input_ids=text, joint_embedding=joint).logits[:, -1]
            scores[:, PLACE] = -torch.inf if kind == "prefix" else scores[:, PLACE]
            text = torch.cat([text, scores.argmax(-1, keepdim=True)], dim=1)
        assert torch.equal(expected, text)


@pytest.mark.parametrize("kind", ["value path", "prompts and queries"])
@torch.no_grad()
def test_adapters_are_on_for_rows_with_media_though_gates_are_shut(kind: str) -> None:
    """Keys and values made ahead are zero then, and must not be taken for "no medium"."""
    model, ids = model_of(kind, lora=LORA), text_for(kind, rows=3)
    for parameter in model.injection.gate_parameters():
        parameter.zero_()
    has_media = torch.tensor([True, False, True])
    settings = {"do_sample": False, "max_new_tokens": 4, "eos_token_id": None}
    made = model.generate(ids, joint_embedding=unit_rows(2), has_media=has_media, **settings)
    model.set_lora_scope("always")
    always = model.generate(ids, **settings)
    model.set_lora_scope("conditioned")
    never = model.generate(ids, **settings)
    assert torch.equal(made[has_media], always[has_media])
    assert torch.equal(made[~has_media], never[~has_media])
    assert not torch.equal(always, never)


@torch.no_grad()
def test_prompts_that_need_no_medium_are_on_for_every_text() -> None:
    injection = {"kind": "zero_init_attention", "num_layers": 2, "num_tokens": 3, "needs_condition": False}
    model = model_of("additive", injection=injection, bridge={"kind": "none"})
    texts = padded_batch([4, 7])
    assert (model(**texts).logits - tiny_language_model()(**texts).logits).abs().max() > 1e-2
    settings = {"do_sample": False, "max_new_tokens": 5, "eos_token_id": None}
    made = model.generate(**texts, **settings)
    for row in range(2):
        assert torch.equal(made[row, -5:], model.generate(alone(texts, row), **settings)[0, -5:])
    with pytest.raises(ConfigError, match="no bridge: it takes text only"):
        model(input_ids=texts["input_ids"], joint_embedding=unit_rows(2))


@torch.no_grad()
def test_packed_samples_read_their_own_medium_on_the_value_path() -> None:
    model, ids, joint = model_of("value path"), text_for("value path", rows=2, length=5), unit_rows(2)
    apart = model(input_ids=ids, joint_embedding=joint).logits
    packed = model(
        input_ids=ids.reshape(1, 10),
        position_ids=torch.arange(5).repeat(2)[None],
        media_rows=torch.tensor([0, 1]).repeat_interleave(5)[None],
        joint_embedding=joint,
    ).logits
    torch.testing.assert_close(packed.reshape(2, 5, -1), apart, rtol=0, atol=1e-4)


def test_packing_is_refused_where_a_medium_is_several_tokens_without_a_place() -> None:
    kind = "prompts and queries"
    with pytest.raises(ConfigError, match="pack no samples for this one"):
        model_of(kind)(
            input_ids=text_for(kind), joint_embedding=unit_rows(2), media_rows=torch.zeros(2, 7, dtype=torch.long)
        )


@pytest.mark.parametrize("num_tokens", [1, 3])
@torch.no_grad()
def test_packed_samples_read_their_own_medium_at_its_place(num_tokens: int) -> None:
    """Two samples with media and one without in a row, and one in another: as each alone."""
    model = prefix_of(num_tokens)
    joint, media = unit_rows(3), [2, 0, -1, 1]
    samples = []
    for length, medium in zip((4, 6, 5, 7), media, strict=True):
        words = token_batch(1, length, seed=length)[0].clamp(max=PLACE - 1)
        ids = torch.cat([words[:2], words.new_full((num_tokens if medium >= 0 else 0,), PLACE), words[2:]])
        samples.append(Packable(ids.numpy(), ids.ne(ids).numpy(), medium))
    batch = collate_packed(samples, [[0, 1, 2], [3]], pad_token_id=0)
    batch.pop("labels")
    logits = model(**batch, joint_embedding=joint).logits
    starts = [
        (0, 0),
        (0, len(samples[0].input_ids)),
        (0, len(samples[0].input_ids) + len(samples[1].input_ids)),
        (1, 0),
    ]
    for sample, (row, start) in zip(samples, starts, strict=True):
        given = {} if sample.media_row < 0 else {"joint_embedding": joint[sample.media_row][None]}
        alone = model(input_ids=torch.from_numpy(sample.input_ids)[None], **given).logits[0]
        torch.testing.assert_close(logits[row, start : start + len(alone)], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("ids", "media"),
    [
        ([7, PLACE, 9, PLACE, 8], [0, 0, 0, 1, 1]),  # one each, of two
        ([7, PLACE, PLACE, PLACE, 8], [0, 0, 0, 0, 0]),  # one too many
        ([7, PLACE, PLACE, 9, 8], [2, 2, 2, 2, 2]),  # no such medium
        ([7, PLACE, PLACE, 9, 8], [-1, -1, -1, -1, -1]),  # none
    ],
)
def test_packed_samples_need_a_place_for_each_soft_token(ids: list[int], media: list[int]) -> None:
    with pytest.raises(ConfigError, match="must name one, and hold 2 placeholders"):
        prefix_of(2)(input_ids=torch.tensor([ids]), joint_embedding=unit_rows(2), media_rows=torch.tensor([media]))


def prefix_of(num_tokens: int) -> BindLMForConditionalGeneration:
    """A prefix of several soft tokens of one embedding."""
    return model_of("prefix", bridge={"kind": "bind_network", "num_tokens": num_tokens, "hidden_dim": 8})


@pytest.mark.parametrize(
    ("kind", "shape", "complaint"),
    [
        ("value path", (2, 3, HIDDEN), r"must be \(2, 1, 32\)"),
        ("prompts and queries", (2, 2, HIDDEN), r"must be \(2, 1 or 3, 32\)"),
        ("prompts and queries", (3, 3, HIDDEN), r"got \(3, 3, 32\)"),
        ("prefix", (2, 1, HIDDEN + 1), r"must be \(2, S, 32\)"),
        ("prefix", (2, 2, HIDDEN), "placeholders"),
    ],
)
def test_conditions_of_another_shape_are_refused(kind: str, shape: tuple[int, ...], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        model_of(kind)(input_ids=text_for(kind), condition=torch.ones(shape))


# -- soft tokens -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_placeholders_are_never_said_nor_learned() -> None:
    model, ids = model_of("prefix"), text_for("prefix")
    head = model.get_output_embeddings()
    assert head is not None
    head.weight[PLACE] = 100 * head.weight[4]
    for settings in ({}, {"suppress_tokens": [5]}):
        made = model.generate(ids, joint_embedding=unit_rows(2), do_sample=False, max_new_tokens=6, **settings)
        assert not (made[:, ids.shape[1] :] == PLACE).any()
    labels = ids.clone()
    loss = model(input_ids=ids, joint_embedding=unit_rows(2), labels=labels).loss
    masked = labels.masked_fill(ids == PLACE, -100)
    assert torch.equal(loss, model(input_ids=ids, joint_embedding=unit_rows(2), labels=masked).loss)


def test_processor_puts_placeholders_where_the_template_has_the_medium() -> None:
    processor = BindLMProcessor(
        tokenizer=tiny_tokenizer(),
        conditioned_chat_template="pandagpt",
        text_chat_template="pandagpt",
        pictures="encoder",
        placeholder={"id": PLACE, "num_tokens": 2},
    )
    tokenizer: Any = processor.tokenizer
    pieces = ["### Human: <Img>", "</Img> What is\n### Assistant:"]
    expected = [tokenizer.bos_token_id, *tokenizer(pieces[0])["input_ids"], PLACE, PLACE]
    expected += tokenizer(pieces[1])["input_ids"]
    for question in ("What is", f"{MEDIUM}What is"):  # nobody writes themselves a medium
        inputs = processor.tokenize_chat([{"role": "user", "content": question}], is_conditioned=True)
        assert inputs["input_ids"].tolist() == [expected]
        assert inputs["attention_mask"].tolist() == [[1] * len(expected)]
    text = processor.render_chat([{"role": "user", "content": "What is"}], is_conditioned=False)
    assert text == tokenizer.bos_token + "### Human: What is\n### Assistant:"
    history = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    expected_text = f"### Human: <Img>{MEDIUM}</Img> one\n### Assistant: two\n### Human: three\n### Assistant:"
    assert processor.render_chat(history, is_conditioned=True) == tokenizer.bos_token + expected_text


def test_processor_keeps_what_is_unusual_about_it(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"placeholder": {"id": 3, "num_tokens": 1}, "text_chat_template": "alpaca"}
    processor = BindLMProcessor(tokenizer=tiny_tokenizer(), pictures="encoder", **settings)
    processor.save_pretrained(tmp_path)
    again = BindLMProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert again.placeholder == settings["placeholder"]
    assert again.text_chat_template == processor.text_chat_template != "alpaca"


# -- several media ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_media_are_summed_behind_the_bridge_at_their_published_length() -> None:
    model = model_of("prefix", mixing="sum")
    one, other = unit_rows(2), 20 * unit_rows(2, seed=5)
    expected = model.bridge(one) + model.bridge(other)
    torch.testing.assert_close(model.condition_from([(one, 1.0), (other, 1.0)]), expected, rtol=0, atol=1e-6)
    model.encoder.official_output = lambda modality, values: 20.0 * model.encoder.embed(modality, values)
    pixels = torch.randn(2, 2, 3, 32, 32)
    published = model.encode_media(image=pixels)["image"]
    assert torch.equal(published, 20.0 * model.encoder.embed("image", pixels))
    with pytest.raises(ConfigError, match="nothing to join"):
        model.condition_from([])


def test_unknown_way_of_mixing_is_refused() -> None:
    with pytest.raises(ConfigError, match='mixing must be "mixture" or "sum"'):
        tiny_model(mixing="soup")


def test_parts_of_unknown_kind_are_refused() -> None:
    for changes, complaint in (
        ({"injection": {"kind": "syringe"}}, "no injection 'syringe'"),
        ({"bridge": {"kind": "ferry"}}, "no bridge 'ferry'"),
        ({"injection": {"kind": "prefix"}}, "BindLMConfig.injection has an unknown setting or lacks one"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            tiny_model(**changes)
    assert DIM == tiny_model().bridge.config.input_dim
