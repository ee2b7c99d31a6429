"""The mini as it ships: the real model, on its real picture."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from safetensors import safe_open

import bindlm
from bindlm.checkpoints import known_files, load_language_model
from bindlm.configuration import BindLMConfig
from bindlm.evaluation.scoring import is_whole_sentence, names_any, stutters
from bindlm.modeling import BindLMForConditionalGeneration

from .conftest import MINI_WEIGHTS

FOLDER = MINI_WEIGHTS.parent
DEMO = FOLDER / "demo.jpg"
MEGABYTE = 1_000_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not MINI_WEIGHTS.is_file(),
        reason="the mini's weights are not in src/bindlm/mini yet; `make mini` trains them",
    ),
]


@pytest.fixture(scope="module")
def plain(mini: Any) -> Any:
    """The language model, loaded once more and bound to nothing."""
    return load_language_model(mini.config.language_model, dtype=torch.float32)


# -- without a picture ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", ["What is the capital of France?", "Name three fruits.", "Why is the sky blue?"])
def test_text_only_answer_is_the_language_models_token_for_token(mini: Any, plain: Any, question: str) -> None:
    language_model, tokenizer = plain
    mini.ask("What is this?", image=DEMO, max_new_tokens=2)  # a conditioned turn must leave no trace
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    made = language_model.generate(**prompt, max_new_tokens=16, do_sample=False)
    bound = mini.generate(
        **mini.processor.tokenize_chat([{"role": "user", "content": question}], is_conditioned=False),
        max_new_tokens=16,
        do_sample=False,
    )
    assert torch.equal(bound, made)
    answer = mini.answer(question, max_new_tokens=16)
    assert answer.text == tokenizer.decode(made[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert answer.joint_neighbours is None


@torch.no_grad()
def test_text_only_logits_are_bit_identical(mini: Any, plain: Any) -> None:
    language_model, tokenizer = plain
    batch = tokenizer(
        ["The capital of France is", "Water boils at a temperature of"],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    expected = language_model(**batch).logits
    assert torch.equal(mini(**batch).logits, expected)
    assert torch.equal(mini.language_model(**batch).logits, expected)


@torch.no_grad()
def test_row_without_a_picture_is_untouched_in_a_mixed_batch(mini: Any, plain: Any) -> None:
    conversations = [
        [{"role": "user", "content": [{"type": "image", "image": DEMO}, {"type": "text", "text": "What is this?"}]}],
        [{"role": "user", "content": "What is the capital of France?"}],
    ]
    inputs = mini.processor.apply_chat_template(conversations)
    assert inputs["has_media"].tolist() == [True, False]
    logits = mini(**inputs).logits
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    # 30 layers of fp32 on logits up to 30; the picture moves them by several units
    torch.testing.assert_close(logits[1], plain[0](**text).logits[1], rtol=0, atol=1e-3)
    assert (logits[0, -1] - mini(**text).logits[0, -1]).abs().max() > 1


# -- with one ------------------------------------------------------------------------------------------------------


def test_it_names_the_cat_in_a_whole_sentence(mini: Any) -> None:
    pieces: list[str] = []
    answer = mini.answer("What is this?", image=DEMO, stream=pieces.append)
    assert names_any(answer.text, ["cat", "tabby"]), answer.text
    assert is_whole_sentence(answer.text), answer.text
    assert not stutters(answer.text), answer.text
    assert "".join(pieces) == answer.text
    assert answer.answer_tokens < 64, "it knows when to stop"
    assert answer.model == "mini"
    assert answer.joint_neighbours is not None
    assert len(answer.joint_neighbours) == mini.config.cache["top_k"]


def test_picture_in_any_form_gets_the_same_answer(mini: Any) -> None:
    answer = mini.ask("What is this?", image=DEMO, max_new_tokens=8)
    with Image.open(DEMO) as opened:
        opened.load()
    for form in (str(DEMO), DEMO.read_bytes(), opened, [DEMO, DEMO]):
        assert mini.ask("What is this?", image=form, max_new_tokens=8) == answer


def test_generate_is_asks_path(mini: Any) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image", "path": DEMO}, {"type": "text", "text": "What is this?"}]}
    ]
    inputs = mini.processor.apply_chat_template(messages)
    made = mini.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    text = mini.processor.decode(made, skip_special_tokens=True).strip()
    assert text == mini.ask("What is this?", image=DEMO, max_new_tokens=16)


def test_embeddings_have_unit_length_and_do_not_depend_on_the_batch(mini: Any) -> None:
    with Image.open(DEMO) as opened:
        cat = opened.convert("RGB")
    pictures = [cat, ImageOps.mirror(cat), Image.new("RGB", (300, 200), "navy"), ImageOps.invert(cat)]
    joint = mini.embed(image=pictures)
    assert joint.shape == (4, mini.config.encoder["dim"])
    torch.testing.assert_close(joint.norm(dim=-1), torch.ones(4))
    for row, each in enumerate(pictures):
        torch.testing.assert_close(mini.embed(image=each)[0], joint[row], rtol=0, atol=1e-5)
    cosines = joint @ joint.T
    assert cosines[0, 1] > 0.8, "a mirrored cat is much the same cat"
    assert cosines[0, 2] < 0.5, "and nothing like a navy blue square"


@torch.no_grad()
def test_decoding_step_by_step_equals_the_full_pass(mini: Any) -> None:
    joint = mini.embed(image=DEMO)
    ids = mini.processor.tokenize_chat([{"role": "user", "content": "What is this?"}], is_conditioned=True)[
        "input_ids"
    ]
    made = mini.generate(
        ids, joint_embedding=joint, do_sample=False, max_new_tokens=6, output_logits=True, return_dict_in_generate=True
    )
    full = mini(input_ids=made.sequences, joint_embedding=joint).logits[:, ids.shape[1] - 1 : -1]
    # relative to logits of up to 30 this is 1e-5 of fp32
    torch.testing.assert_close(torch.stack(made.logits, dim=1), full, rtol=1e-5, atol=3e-4)


# -- the folder ----------------------------------------------------------------------------------------------------


def test_what_ships_is_small_and_all_there() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 40 * MEGABYTE, sizes
    assert {"config.json", "generation_config.json", "model.safetensors", "processor_config.json", "demo.jpg"} <= set(
        sizes
    )
    assert not {name for name in sizes if name.endswith((".pt", ".pth", ".bin", ".pkl", ".npy"))}


def test_what_does_not_ship_is_named_and_known() -> None:
    config = BindLMConfig.from_pretrained(FOLDER)
    assert {config.language_model, *config.encoder_weights.values()} <= set(known_files())
    assert set(config.encoder_weights) == {"image_tower"}
    for path in FOLDER.glob("*.json"):
        written = re.findall(r'"(/[^"]+|[A-Z]:\\\\[^"]+)"', path.read_text(encoding="utf-8"))
        assert not written, f"{path.name} holds paths of the machine that trained it: {written}"
    with safe_open(MINI_WEIGHTS, "pt") as stored:
        names = set(stored.keys())
    assert not {name for name in names if name.startswith("encoder.image_tower.")}
    assert not {name for name in names if name.startswith("language_model.") and ".lora_" not in name}
    assert {"injection.gate", "bridge.input.weight", "encoder.projection", "cache.keys"} <= names


def test_cache_entries_have_names(mini: Any) -> None:
    table = json.loads((FOLDER / "cache_entries.json").read_text(encoding="utf-8"))
    assert len(table) == mini.cache.config.num_entries
    nearest = mini.answer("What is this?", image=DEMO, max_new_tokens=1).joint_neighbours[0]["entry"]
    assert "cat" in " ".join(map(str, table[nearest])).lower() or "tabby" in str(table[nearest])


def test_weights_are_finite_gates_are_bounded_and_the_rest_is_fp32(mini: Any) -> None:
    assert all(torch.isfinite(tensor).all() for tensor in mini.state_dict().values())
    bound = mini.config.injection["gate_bound"]
    factors = torch.stack([mini.injection.factor(layer) for layer in range(len(mini.injection.gate))])
    assert factors.abs().max() <= bound
    assert factors.abs().max() > 0.01, "gates at zero would mean that nothing was trained"
    assert {parameter.dtype for parameter in mini.parameters()} == {torch.float32}


@torch.no_grad()
def test_saved_copy_is_the_same_model(mini: Any, tmp_path: Path) -> None:
    mini.save_pretrained(tmp_path)
    stored, shipped = (path.stat().st_size for path in (tmp_path / "model.safetensors", MINI_WEIGHTS))
    assert stored <= 2.1 * shipped, "fp32 of what ships as bf16, and nothing besides"
    again = bindlm.load(tmp_path)
    assert type(again) is BindLMForConditionalGeneration
    ours, theirs = mini.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    # Equal weights at other addresses: convolution kernels choose by alignment and may round the last bit otherwise.
    joint = mini.embed(image=DEMO)
    torch.testing.assert_close(again.embed(image=DEMO), joint, atol=1e-6, rtol=0)
    ids = mini.processor.tokenize_chat([{"role": "user", "content": "What is this?"}], is_conditioned=True)[
        "input_ids"
    ]
    for media in ({}, {"joint_embedding": joint}):
        logits = again(input_ids=ids, **media).logits
        torch.testing.assert_close(logits, mini(input_ids=ids, **media).logits, atol=1e-3, rtol=0)
    assert again.ask("What is this?", image=DEMO, max_new_tokens=12) == mini.ask(
        "What is this?", image=DEMO, max_new_tokens=12
    )
