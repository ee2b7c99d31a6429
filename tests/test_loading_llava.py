"""A LLaVA in transformers' format is loaded as it is, and says what transformers' own class says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AddedToken,
    AutoImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

import bindlm
from bindlm.errors import CheckpointError, ConfigError
from bindlm.modeling import BindLMForConditionalGeneration

from .tiny import picture, tiny_tokenizer

SIDE, PATCH = 28, 7
NUM_PATCHES = (SIDE // PATCH) ** 2
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}"
    "{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
FORMS: dict[str, dict[str, Any]] = {
    "v1.5": {},
    "whole picture kept": {"vision_feature_select_strategy": "full"},
    "several layers": {"vision_feature_layer": [-1, -2]},
    "no biases": {"multimodal_projector_bias": False},
}


def tokenizer() -> PreTrainedTokenizerFast:
    """The tiny one, with a token for a picture."""
    made = tiny_tokenizer()
    made.add_tokens([AddedToken("<image>", special=True, normalized=False)])
    made.chat_template = None
    return made


def llava_folder(folder: Path, *, is_old: bool = False, **changes: Any) -> LlavaForConditionalGeneration:
    """Writes a tiny random LLaVA as published ones lie there; gives transformers' own model."""
    words = tokenizer()
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    settings = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=SIDE, patch_size=PATCH, initializer_range=0.2, **vision),
        text_config=LlamaConfig(vocab_size=len(words) + 4, initializer_range=0.2, **text, **ids),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=NUM_PATCHES,
        **changes,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(settings).eval()
    model.generation_config.update(**ids)
    for parameter in model.model.multi_modal_projector.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    pictures: dict[str, Any] = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "resample": 3}
    pictures |= {"size": {"shortest_edge": SIDE}, "do_center_crop": True}
    pictures |= {"crop_size": {"height": SIDE, "width": SIDE}, "do_rescale": True, "rescale_factor": 1 / 255}
    pictures |= {"do_normalize": True, "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    if is_old:  # as llava-hf published them: a further level in the names of the tower
        path = folder / "model.safetensors"
        state = {name.replace("tower.", "tower.vision_model."): tensor for name, tensor in load_file(path).items()}
        save_file(state, path, metadata={"format": "pt"})
    return model


def asked(
    folder: Path, model: LlavaForConditionalGeneration, words: Any, shown: Image.Image, question: str
) -> dict[str, Tensor]:
    """What transformers' processor makes of a question about a picture, written out."""
    pictures = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    count = NUM_PATCHES + (model.config.vision_feature_select_strategy == "full")
    text = f"USER: {'<image>' * count}\n{question} ASSISTANT:"
    return {
        **words(text, return_tensors="pt"),
        "pixel_values": pictures(images=shown, return_tensors="pt")["pixel_values"],
    }


@pytest.mark.parametrize("form", FORMS)
def test_logits_and_greedy_answer_are_transformers_own(form: str, tmp_path: Path) -> None:
    theirs = llava_folder(tmp_path, is_old=form == "v1.5", **FORMS[form])
    model = bindlm.load(tmp_path)
    assert isinstance(model, BindLMForConditionalGeneration)
    assert not model.training
    shown = picture(1)
    given = asked(tmp_path, theirs, model.processor.tokenizer, shown, "What is this?")
    given = {name: given[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    labels = given["input_ids"].masked_fill(given["input_ids"] == theirs.config.image_token_id, -100)
    with torch.no_grad():
        expected, output = theirs(**given, labels=labels), model(**given, labels=labels)
    torch.testing.assert_close(output.logits, expected.logits, **TOLERANCE)
    torch.testing.assert_close(output.loss, expected.loss, **TOLERANCE)
    made = theirs.generate(**given, do_sample=False, max_new_tokens=12)[0, given["input_ids"].shape[1] :]
    assert theirs.config.image_token_id not in made.tolist()
    answer = model.answer("What is this?", image=shown, max_new_tokens=12)
    assert answer.text == model.processor.decode(made, skip_special_tokens=True).strip()
    assert answer.prompt_tokens == given["input_ids"].shape[1]
    blind = model.generate(given["input_ids"], do_sample=False, max_new_tokens=12)
    assert not torch.equal(blind[0, given["input_ids"].shape[1] :], made), "the picture matters"


def test_prompt_and_pictures_are_transformers_own(tmp_path: Path) -> None:
    theirs = llava_folder(tmp_path)
    processor = bindlm.load(tmp_path).processor
    for seed, (width, height) in enumerate([(48, 40), (31, 77), (28, 28), (90, 33)]):
        shown = picture(seed, width, height)
        given = asked(tmp_path, theirs, processor.tokenizer, shown, "Who?")
        parts = [{"type": "image", "image": shown}, {"type": "text", "text": "Who?"}]
        ours = processor.apply_chat_template([{"role": "user", "content": parts}])
        assert torch.equal(ours["input_ids"], given["input_ids"])
        # bytes are rounded between the two steps of resizing, which differ in their order: a level of 255
        difference = (ours["pixel_values"][0] - given["pixel_values"]).abs()
        assert difference.mean() < 0.01
        assert np.quantile(difference.numpy(), 0.95) < 0.05


def test_history_keeps_the_picture_in_the_first_question_and_text_alone_has_none(tmp_path: Path) -> None:
    llava_folder(tmp_path)
    model = bindlm.load(tmp_path)
    told = [{"role": "user", "content": "What is <image> this?"}, {"role": "assistant", "content": "A cat."}]
    messages = [*told, {"role": "user", "content": "Sure?"}]
    text = model.processor.render_chat(messages, is_conditioned=True)
    assert text == "USER: <image>\nWhat is  this? ASSISTANT: A cat. USER: Sure? ASSISTANT:"
    ids = model.processor.tokenize_chat(messages, is_conditioned=True)["input_ids"]
    assert int((ids == model.injection.placeholder_id).sum()) == NUM_PATCHES
    assert "<image>" not in model.processor.render_chat(messages, is_conditioned=False)
    assert model.ask("Sure?", image=picture(1), history=told, max_new_tokens=2) is not None
    assert model.ask("What?", max_new_tokens=2) is not None


def test_several_pictures_are_told_one_after_the_other(tmp_path: Path) -> None:
    """Patches of two pictures have no mean."""
    llava_folder(tmp_path)
    model = bindlm.load(tmp_path)
    shown = [picture(1), picture(2)]
    answers = [model.ask("What?", image=each, max_new_tokens=6) for each in shown]
    assert model.ask("What?", image=shown, max_new_tokens=6) == " ".join(dict.fromkeys(filter(None, answers)))


@torch.no_grad()
def test_several_pictures_in_one_text_each_stand_at_their_place(tmp_path: Path) -> None:
    """Two in a text, then one, as transformers' own model takes them: all in reading order."""
    theirs = llava_folder(tmp_path)
    model = bindlm.load(tmp_path)
    words, count = model.processor.tokenizer, "<image>" * NUM_PATCHES
    texts = [f"USER: Is {count} more than {count}? ASSISTANT:", f"USER: {count}\nWho? ASSISTANT:"]
    given = dict(words(texts, return_tensors="pt", padding=True, padding_side="left"))
    given = {name: given[name] for name in ("input_ids", "attention_mask")}
    given["pixel_values"] = model.processor.image_processor([picture(1), picture(2), picture(3)])["pixel_values"]
    flat = {**given, "pixel_values": given["pixel_values"].flatten(0, 1)}  # views are an axis of ours
    logits = model(**given).logits
    torch.testing.assert_close(logits, theirs(**flat).logits, **TOLERANCE)
    swapped = {**given, "pixel_values": given["pixel_values"][[1, 0, 2]]}
    assert (model(**swapped).logits - logits)[0].abs().max() > 0.01, "which is where matters"
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8}
    assert torch.equal(model.generate(**given, **options), theirs.generate(**flat, **options))


def test_patches_of_several_pictures_are_never_summed(tmp_path: Path) -> None:
    llava_folder(tmp_path)
    model = bindlm.load(tmp_path)
    for mix in ("released", "paper"):
        with pytest.raises(ConfigError, match="2 media of patches cannot be mixed"):
            model.ask("What?", image=[picture(1), picture(2)], mix=mix, max_new_tokens=2)
    joint = model.embed(image=picture(1))
    assert joint.ndim > 2
    with pytest.raises(ConfigError, match="2 media of patches cannot be mixed"):
        model(input_ids=torch.ones(1, 4, dtype=torch.long), joint_embedding=[(joint, 0.5), (joint, 0.5)])


def test_a_picture_too_few_or_too_many_is_refused(tmp_path: Path) -> None:
    llava_folder(tmp_path)
    model = bindlm.load(tmp_path)
    ids = model.processor.tokenize_chat([{"role": "user", "content": "Who?"}], is_conditioned=True)["input_ids"]
    pictures = model.processor.image_processor([picture(1), picture(2)])["pixel_values"]
    with pytest.raises(ConfigError, match="must be"):
        model(input_ids=ids, pixel_values=pictures)
    with pytest.raises(ConfigError, match="put one placeholder for each soft token"):
        model(input_ids=torch.cat([ids, ids], dim=1), pixel_values=pictures[:1])


def test_loaded_llava_is_saved_and_loaded_as_any_bound_model(tmp_path: Path) -> None:
    llava_folder(tmp_path / "llava")
    model = bindlm.load(tmp_path / "llava")
    model.save_pretrained(tmp_path / "bound")
    again = bindlm.load(tmp_path / "bound")
    ask: dict[str, Any] = {"question": "What is this?", "image": picture(3), "max_new_tokens": 8}
    assert again.ask(**ask) == model.ask(**ask)
    assert again.config.bridge["kind"] == "mlp"
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_folder_without_a_template_has_llavas_own(tmp_path: Path) -> None:
    llava_folder(tmp_path)
    (tmp_path / "chat_template.json").unlink()
    text = bindlm.load(tmp_path).processor.render_chat([{"role": "user", "content": "Who?"}], is_conditioned=True)
    assert text == "USER: <image>\nWho? ASSISTANT:"


# -- what does not fit -----------------------------------------------------------------------------------------------


def test_what_is_missing_or_unknown_is_named(tmp_path: Path) -> None:
    llava_folder(tmp_path)
    with pytest.raises(ConfigError, match="quantization: not for a LLaVA in transformers' format"):
        bindlm.load(tmp_path, quantization="int8")
    model = bindlm.load(tmp_path)
    with pytest.raises(ConfigError, match=r"takes pictures \(B, 3, 28, 28\)"):
        model.encode_media(image=torch.zeros(1, 3, 14, 14))
    path = tmp_path / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "resample": 2}))
    with pytest.raises(CheckpointError, match="in a way of its own: {'resample': 2}"):
        bindlm.load(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match="no readable preprocessor_config.json"):
        bindlm.load(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("multi_modal_projector.linear_2.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 1 weights of its model, such as .*linear_2"):
        bindlm.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be loaded as a LLaVA"):
        bindlm.load(tmp_path)
