"""From messages to tensors: which text, which picture, for which row."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bindlm.errors import CheckpointError, ConfigError, MediaError
from bindlm.media import ImagePreprocessConfig, preprocess_image
from bindlm.processing import BindLMImageProcessor, BindLMProcessor

from .tiny import SIDE, picture, tiny_model, tiny_processor, tiny_tokenizer

ASSISTANT = "<|im_start|>assistant\n"
SYSTEM = "<|im_start|>system\nBe kind.<|im_end|>\n"


@pytest.fixture(scope="module")
def processor() -> BindLMProcessor:
    return tiny_processor()


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def image(seed: int = 0) -> dict[str, Any]:
    return {"type": "image", "image": picture(seed)}


def turn(role: str, words: str) -> str:
    return f"<|im_start|>{role}\n{words}<|im_end|>\n"


# -- text ----------------------------------------------------------------------------------------------------------


def test_picture_leaves_no_trace_in_the_text(processor: BindLMProcessor) -> None:
    rendered = processor.apply_chat_template([user(image(), text("What is this?"))], tokenize=False)
    assert rendered == turn("user", "What is this?") + ASSISTANT
    same = processor.apply_chat_template([user(text("What is this?"), image())], tokenize=False)
    assert same == rendered


def test_conversation_without_picture_is_the_language_models_own_template(processor: BindLMProcessor) -> None:
    rendered = processor.apply_chat_template([user("Hi")], tokenize=False)
    assert rendered == SYSTEM + turn("user", "Hi") + ASSISTANT
    own = tiny_tokenizer().apply_chat_template([user("Hi")], tokenize=False, add_generation_prompt=True)
    assert rendered == own


def test_text_parts_are_joined_by_line(processor: BindLMProcessor) -> None:
    rendered = processor.apply_chat_template([user(text("Look."), image(), text("What is it?"))], tokenize=False)
    assert rendered == turn("user", "Look.\nWhat is it?") + ASSISTANT


def test_whole_conversation_is_rendered_in_order(processor: BindLMProcessor) -> None:
    conversation = [
        {"role": "system", "content": "Be brief."},
        user(image(), text("What is it?")),
        {"role": "assistant", "content": [text("A cat.")]},
        user(image(), text("And now?")),
    ]
    expected = turn("system", "Be brief.") + turn("user", "What is it?") + turn("assistant", "A cat.")
    assert (
        processor.apply_chat_template(conversation, tokenize=False) == expected + turn("user", "And now?") + ASSISTANT
    )
    closed = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=False)
    assert closed == expected + turn("user", "And now?")


def test_special_tokens_are_single_and_none_is_added(processor: BindLMProcessor) -> None:
    ids = processor.apply_chat_template([user(image(), text("é"))])["input_ids"][0].tolist()
    tokenizer = processor.tokenizer
    assert tokenizer is not None
    assert ids.count(1) == 2, "one <|im_start|> for each turn"
    assert ids.count(2) == 1
    assert tokenizer.decode(ids) == turn("user", "é") + ASSISTANT
    assert len(ids) == 3 + len("user\né\n".encode()) + len("assistant\n")


def test_only_ids_where_no_dictionary_is_wanted(processor: BindLMProcessor) -> None:
    conversation = [user("Hi")]
    ids = processor.apply_chat_template(conversation, return_dict=False)
    assert torch.equal(ids, processor.apply_chat_template(conversation)["input_ids"])


# -- which picture -------------------------------------------------------------------------------------------------


def pixel_values(processor: BindLMProcessor, seed: int) -> Tensor:
    return processor.image_processor(picture(seed))["pixel_values"]


def test_last_user_turn_decides_about_the_picture(processor: BindLMProcessor) -> None:
    answered = {"role": "assistant", "content": "A cat."}
    both = processor.apply_chat_template([user(image(1), text("This?")), answered, user(image(2), text("That?"))])
    assert torch.equal(both["pixel_values"], pixel_values(processor, 2))
    assert not torch.equal(both["pixel_values"], pixel_values(processor, 1))
    followed_up = processor.apply_chat_template([user(image(1), text("This?")), answered, user("Why?")])
    assert "pixel_values" not in followed_up
    assert "has_media" not in followed_up
    being_answered = processor.apply_chat_template([user(image(1), text("This?")), answered])
    assert torch.equal(being_answered["pixel_values"], pixel_values(processor, 1))


def test_pictures_of_other_roles_are_not_looked_at(processor: BindLMProcessor) -> None:
    conversation = [{"role": "assistant", "content": [image(1), text("Here you are.")]}, user("Thanks")]
    assert "pixel_values" not in processor.apply_chat_template(conversation)


def test_batch_is_padded_on_the_left_and_knows_its_rows_with_pictures(processor: BindLMProcessor) -> None:
    conversations = [[user("Hi")], [user(image(1), text("What is this, please?"))], [user(image(2), text("Hm?"))]]
    inputs = processor.apply_chat_template(conversations)
    assert inputs["has_media"].tolist() == [False, True, True]
    expected = torch.cat([pixel_values(processor, seed) for seed in (1, 2)])
    assert torch.equal(inputs["pixel_values"], expected)
    assert inputs["pixel_values"].shape == (2, 2, 3, SIDE, SIDE)
    for row, conversation in enumerate(conversations):
        alone = processor.apply_chat_template(conversation)["input_ids"][0]
        padding = inputs["input_ids"].shape[1] - len(alone)
        assert torch.equal(inputs["input_ids"][row, padding:], alone)
        assert inputs["input_ids"][row, :padding].eq(0).all()
        assert inputs["attention_mask"][row].tolist() == [0] * padding + [1] * len(alone)
    assert len({len(processor.apply_chat_template(c)["input_ids"][0]) for c in conversations}) == 3


@pytest.mark.parametrize("key", ["image", "path"])
@pytest.mark.parametrize("form", ["path", "string", "PIL", "numpy", "bytes"])
def test_picture_may_come_in_any_form(processor: BindLMProcessor, tmp_path: Path, form: str, key: str) -> None:
    path = tmp_path / "picture.png"
    picture(5).save(path)
    forms: dict[str, Any] = {
        "path": path,
        "string": str(path),
        "PIL": picture(5),
        "numpy": np.asarray(picture(5)),
        "bytes": path.read_bytes(),
    }
    inputs = processor.apply_chat_template([user({"type": "image", key: forms[form]}, text("Hm?"))])
    assert torch.equal(inputs["pixel_values"], pixel_values(processor, 5))


@pytest.mark.parametrize("key", ["url", "image", "path"])
def test_address_is_refused_unless_allowed(processor: BindLMProcessor, key: str) -> None:
    with pytest.raises(MediaError, match="allow_url"):
        processor.apply_chat_template([user({"type": "image", key: "https://example.com/cat.jpg"}, text("Hm?"))])


def test_picture_that_is_none_is_named(processor: BindLMProcessor, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_text("not a picture")
    with pytest.raises(MediaError, match="cat.jpg"):
        processor.apply_chat_template([user({"type": "image", "path": tmp_path / "cat.jpg"}, text("Hm?"))])


# -- messages that are wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conversation", "complaint"),
    [
        ([user({"type": "video", "video": "a.mp4"})], "Unknown part type 'video' in a message; known: image, text"),
        ([user({"text": "What?"})], "Unknown part type None"),
        ([user("Hi", "there")], "Unknown part type 'str'"),
        ([user(np.zeros((4, 4, 3)), text("What?"))], "Unknown part type 'ndarray'"),
        ([user({"type": ["image"]})], r"Unknown part type \['image'\]"),
        ([user({"type": "text"})], 'A text part must be {"type": "text", "text": …}'),
        ([user({"type": "text", "text": 3})], "A text part must be"),
        ([user({"type": "image"})], "An image part needs its picture"),
        ([user({"type": "image", "image": None}, text("What?"))], "An image part needs its picture"),
        ([user(image(1), image(2), text("Which?"))], r"has 2 pictures; .* model.ask\(image=\[…\], weights=\[…\]\)"),
        ([{"role": "user", "content": None}], "content must be a string or a list of parts, got NoneType"),
        ([{"role": "user"}], "content must be a string or a list of parts, got NoneType"),
        ([{"content": "Hi"}], 'A message must be {"role": …, "content": …}'),
        ([user("Hi"), "there"], 'A message must be {"role": …, "content": …}, got \'there\''),
        ([], "conversation is empty"),
        ([[user("Hi")], []], "conversation is empty"),
    ],
)
def test_wrong_messages_are_refused(processor: BindLMProcessor, conversation: list[Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        processor.apply_chat_template(conversation)


def test_error_does_not_print_a_whole_picture(processor: BindLMProcessor) -> None:
    with pytest.raises(ConfigError) as caught:
        processor.apply_chat_template([{"role": 3, "content": b"\0" * 100_000}])
    assert len(str(caught.value)) < 200


def test_unknown_part_in_an_earlier_turn_is_refused_as_well(processor: BindLMProcessor) -> None:
    with pytest.raises(ConfigError, match="Unknown part type 'audio'"):
        processor.apply_chat_template([user({"type": "audio", "audio": "a.wav"}), user("And?")])


def test_processor_without_tokenizer_says_so() -> None:
    processor = BindLMProcessor(image_processor=BindLMImageProcessor(size=SIDE))
    with pytest.raises(ConfigError, match="no tokenizer"):
        processor.apply_chat_template([user("Hi")])
    with pytest.raises(ConfigError, match="no tokenizer"):
        processor(text="Hi")
    assert set(processor(images=picture())) == {"pixel_values", "has_media"}


# -- without a template --------------------------------------------------------------------------------------------


def test_plain_call_pairs_texts_with_pictures(processor: BindLMProcessor) -> None:
    inputs = processor(images=[picture(1), None, picture(2)], text=["one", "two, longer", "3"])
    assert inputs["has_media"].tolist() == [True, False, True]
    assert torch.equal(inputs["pixel_values"], torch.cat([pixel_values(processor, 1), pixel_values(processor, 2)]))
    assert inputs["attention_mask"].sum(dim=1).tolist() == [3, 11, 1]
    assert inputs["attention_mask"][2].tolist() == [0] * 10 + [1]
    single = processor(images=picture(1), text="one")
    assert single["has_media"].tolist() == [True]
    assert set(processor(text="one")) == {"input_ids", "attention_mask"}
    assert set(processor(images=[None], text="one")) == {"input_ids", "attention_mask"}


def test_plain_call_with_unequal_numbers_is_refused(processor: BindLMProcessor) -> None:
    with pytest.raises(ConfigError, match="2 pictures were given for 1 texts"):
        processor(images=[picture(1), picture(2)], text="one")


def test_decoding_is_the_tokenizers(processor: BindLMProcessor) -> None:
    ids = processor(text=["naïve 猫", "b"])["input_ids"]
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["naïve 猫", "b"]
    assert processor.decode(ids[0]) == "naïve 猫"


# -- pictures ------------------------------------------------------------------------------------------------------


def test_views_are_those_of_the_media_station() -> None:
    images = BindLMImageProcessor(
        size=SIDE, crop_fraction=0.8, interpolation="bilinear", views=("full", "center_flip")
    )
    config = ImagePreprocessConfig(
        size=SIDE, crop_fraction=0.8, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, interpolation="bilinear"
    )
    expected = preprocess_image(picture(3), config, views=("full", "center_flip"))
    np.testing.assert_array_equal(images(picture(3), return_tensors="np")["pixel_values"][0], expected)
    assert images([picture(3), picture(4)])["pixel_values"].shape == (2, 2, 3, SIDE, SIDE)


def test_default_scaling_is_the_towers() -> None:
    """`(v - 127) / 128` on bytes."""
    grey = Image.new("RGB", (40, 40), (127, 255, 0))
    views = BindLMImageProcessor(size=SIDE)(grey)["pixel_values"]
    for channel, expected in enumerate((0.0, 1.0, -127 / 128)):
        torch.testing.assert_close(views[:, :, channel], torch.full((1, 2, SIDE, SIDE), expected), rtol=0, atol=1e-6)


def test_no_picture_gives_an_empty_batch() -> None:
    assert BindLMImageProcessor(size=SIDE)([])["pixel_values"].shape == (0, 2, 3, SIDE, SIDE)


@pytest.mark.parametrize(
    "settings",
    [{"size": 0}, {"crop_fraction": 1.5}, {"interpolation": "nearest"}, {"views": ("left",)}, {"views": ()}],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        BindLMImageProcessor(**{"size": SIDE, **settings})(picture())


# -- saving and loading --------------------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "size": 40,
    "crop_fraction": 0.9,
    "mean": [0.1, 0.2, 0.3],
    "std": [0.5, 0.6, 0.7],
    "interpolation": "bilinear",
    "views": ["full"],
}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def own_processor() -> BindLMProcessor:
    return BindLMProcessor(BindLMImageProcessor(**SETTINGS), tiny_tokenizer(), conditioned_chat_template=TEMPLATE)


def test_processor_comes_back_as_it_was(tmp_path: Path) -> None:
    processor = own_processor()
    processor.save_pretrained(tmp_path)
    again = BindLMProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    for name, value in SETTINGS.items():
        assert getattr(again.image_processor, name) == value
    for conversation in ([user(image(1), text("naïve 猫"))], [user("Hi")]):
        given, expected = again.apply_chat_template(conversation), processor.apply_chat_template(conversation)
        assert set(given) == set(expected)
        assert all(torch.equal(given[name], expected[name]) for name in expected)
    again.save_pretrained(tmp_path / "again")
    name = "processor_config.json"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_processor_without_tokenizer_files_takes_the_language_models(tmp_path: Path) -> None:
    model = tiny_model(reference=str(tmp_path / "lm"))
    model.language_model.save_pretrained(tmp_path / "lm")
    tiny_tokenizer().save_pretrained(tmp_path / "lm")
    model.save_pretrained(tmp_path / "bound")
    BindLMProcessor(BindLMImageProcessor(**SETTINGS), conditioned_chat_template=TEMPLATE).save_pretrained(
        tmp_path / "bound"
    )
    assert not list((tmp_path / "bound").glob("tokenizer*"))
    again = BindLMProcessor.from_pretrained(tmp_path / "bound")
    conversation = [user(image(1), text("naïve 猫"))]
    expected = own_processor().apply_chat_template(conversation)
    assert torch.equal(again.apply_chat_template(conversation)["input_ids"], expected["input_ids"])


def test_processor_without_any_tokenizer_is_refused(tmp_path: Path) -> None:
    BindLMProcessor(BindLMImageProcessor(size=SIDE)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="neither a tokenizer nor the name of a language model"):
        BindLMProcessor.from_pretrained(tmp_path)
    tiny_model().save_pretrained(tmp_path)  # its language model is in the same folder, and has no tokenizer either
    with pytest.raises(CheckpointError, match="neither a tokenizer nor the name of a language model"):
        BindLMProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", json.dumps({"image_processor": {}})])
def test_folder_without_a_usable_processor_is_refused(tmp_path: Path, content: str | None) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    if content is not None:
        (tmp_path / "processor_config.json").write_text(content)
    with pytest.raises(CheckpointError, match="no readable processor_config.json"):
        BindLMProcessor.from_pretrained(tmp_path)


def test_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    own_processor().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="the tokenizer in .* is missing or damaged"):
        BindLMProcessor.from_pretrained(tmp_path)


def test_settings_file_is_plain_json_without_the_tokenizer(tmp_path: Path) -> None:
    own_processor().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "processor_config.json").read_text(encoding="utf-8"))
    assert stored["processor_class"] == "BindLMProcessor"
    assert stored["image_processor"]["image_processor_type"] == "BindLMImageProcessor"
    assert stored["conditioned_chat_template"] == TEMPLATE
    assert not any("token" in key for key in stored)
    assert {name: stored["image_processor"][name] for name in SETTINGS} == SETTINGS


def test_processor_can_be_printed() -> None:
    shown = repr(own_processor())
    assert "BindLMImageProcessor" in shown
    assert "tokenizer" in shown.lower()
