"""From messages with media parts to the tensors a bound model takes."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.image_processing_utils import BaseImageProcessor

from bindlm.checkpoints import load_tokenizer, resolve
from bindlm.configuration import BindLMConfig
from bindlm.errors import CheckpointError, ConfigError
from bindlm.media import ImageLimits, ImagePreprocessConfig, load_image, preprocess_image

CONDITIONED_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML without the default system message, which would name another model and make every conditioned turn longer."""

ALPACA_CHAT_TEMPLATE = (
    "{{ bos_token }}{% set told = namespace(task=false) %}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% else %}{% if not told.task %}{{ 'Below is an instruction that describes a task. Write a response that "
    "appropriately completes the request.' }}{% set told.task = true %}{% endif %}"
    "{{ '\n\n### Instruction:\n' + message['content'] + '\n\n### Response:' }}{% endif %}{% endfor %}"
)
"""The published template of the LLaMA-Adapter family as a chat template; the answer follows the colon directly."""

ALPACA_INPUT_CHAT_TEMPLATE = (
    "{{ bos_token }}{% set told = namespace(task=false, context='') %}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{% set told.context = message['content'] %}"
    "{% else %}{% if not told.task %}{{ 'Below is an instruction that describes a task' }}"
    "{% if told.context %}{{ ', paired with an input that provides further context' }}{% endif %}"
    "{{ '. Write a response that appropriately completes the request.' }}{% set told.task = true %}{% endif %}"
    "{{ '\n\n### Instruction:\n' + message['content'] }}"
    "{% if told.context %}{{ '\n\n### Input:\n' + told.context }}{% set told.context = '' %}{% endif %}"
    "{{ '\n\n### Response:' }}{% endif %}{% endfor %}"
)
"""The same with the published `### Input:`: what a system message says is the input of the question that follows."""

MEDIUM = "<|medium|>"
"""Stands in a chat template where a medium has its place in the text; such words in what users write are taken out."""

PANDAGPT_CHAT_TEMPLATE = (
    "{{ bos_token }}{% set told = namespace(first=true) %}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + '\n###' }}"
    "{% elif message['role'] == 'user' %}{% if told.first %}{{ '### Human: ' }}"
    "{% if is_conditioned %}{{ '<Img><|medium|></Img> ' }}{% endif %}{% set told.first = false %}"
    "{% else %}{{ ' Human: ' }}{% endif %}"
    "{{ message['content'] + '\n### Assistant:' }}{% if not loop.last %}{{ ' ' }}{% endif %}{% endif %}{% endfor %}"
)
"""PandaGPT's conversation, earlier rounds as its demo writes them; one medium in front, behind `<Img>`."""

LLAVA_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}"
    "{% endif %}{% for part in message['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""LLaVA v1.5's conversation as transformers' conversions of it write it, for a folder that brings none."""

_PADDING: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt"}

CHAT_TEMPLATES = {
    "chatml": CONDITIONED_CHAT_TEMPLATE,
    "alpaca": ALPACA_INPUT_CHAT_TEMPLATE,
    "llava": LLAVA_CHAT_TEMPLATE,
    "pandagpt": PANDAGPT_CHAT_TEMPLATE,
}
"""Chat templates that a folder may name in place of writing them out."""


class BindLMImageProcessor(BaseImageProcessor):
    """Pictures to views.

    Args:
        size: side S of a view in pixels.
        crop_fraction: share of the shorter side that the centre crop keeps.
        mean, std: of each channel, on the scale 0..1.
        interpolation: "bicubic" or "bilinear".
        views: which views; see `bindlm.media.preprocess_image`.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: int = 260,
        crop_fraction: float = 1.0,
        mean: Sequence[float] = (127 / 255,) * 3,
        std: Sequence[float] = (128 / 255,) * 3,
        interpolation: str = "bicubic",
        views: Sequence[str] = ("center", "full"),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = size
        self.crop_fraction = crop_fraction
        self.mean = list(mean)
        self.std = list(std)
        self.interpolation = interpolation
        self.views = list(views)

    @property
    def preprocess_config(self) -> ImagePreprocessConfig:
        """The same settings, checked."""
        return ImagePreprocessConfig(
            size=self.size,
            crop_fraction=self.crop_fraction,
            mean=cast(tuple[float, float, float], tuple(self.mean)),
            std=cast(tuple[float, float, float], tuple(self.std)),
            interpolation=cast(Any, self.interpolation),
        )

    def load(
        self, pictures: Sequence[Any], *, allow_url: bool = False, limits: ImageLimits | None = None
    ) -> list[Any]:
        """Decode pictures from paths, bytes, arrays, …

        Raises:
            MediaError: one of them cannot be used.
        """
        return [load_image(picture, limits=limits or ImageLimits(), allow_url=allow_url) for picture in pictures]

    def preprocess(self, images: Any, return_tensors: str | None = "pt", **kwargs: Any) -> BatchFeature:
        """Pictures to `pixel_values` `(N, V, 3, S, S)` fp32.

        Args:
            images: one picture or a list: whatever `bindlm.media.load_image` takes.
            return_tensors: "pt" or "np".
        """
        pictures = self.load(list(images) if isinstance(images, (list, tuple)) else [images])
        views = [preprocess_image(picture, self.preprocess_config, views=tuple(self.views)) for picture in pictures]
        stacked = np.stack(views) if views else np.zeros((0, len(self.views), 3, self.size, self.size), np.float32)
        return BatchFeature({"pixel_values": torch.from_numpy(stacked) if return_tensors == "pt" else stacked})

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        """See `preprocess`."""
        return self.preprocess(images, **kwargs)


class BindLMProcessor(ProcessorMixin):
    """Messages with media parts in, model inputs out.

    A turn's condition comes from the media of the **last user message**: an earlier picture is remembered by what was
    said about it, and a turn without media runs the untouched language model.

    Args:
        image_processor: pictures to views.
        tokenizer: the language model's own.
        conditioned_chat_template: template for turns with media, written out or a name of `CHAT_TEMPLATES`.
        text_chat_template: template for turns without; None is the tokenizer's own.
        is_piecewise: whether the text between special places (the first token, media) is tokenised piece by piece, as
            the LLaMA releases do; their tokenizers treat the beginning of a text unlike its middle.
        placeholder: where media have a place in the text, the token `id` that stands there and `num_tokens`, how often
            for each medium; with `token`, what that id is in words ("<image>"), the templates are ones of transformers
            that take parts and write it themselves. None where media have no place in the text.
        may_lack_tokenizer: whether a folder without a tokenizer is opened; the model then takes ids, and no questions.
        pictures: who prepares pictures: this processor, or, with "encoder", the model's encoder, as published
            encoders do. The processor then takes text only, and pictures go to `model.ask` and `model.embed`.

    Example:
        >>> inputs = processor.apply_chat_template(
        ...     [{"role": "user", "content": [{"type": "image", "image": "cat.jpg"},
        ...                                   {"type": "text", "text": "What is this?"}]}])
        >>> model.generate(**inputs, max_new_tokens=20)
    """

    def __init__(
        self,
        image_processor: BindLMImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        conditioned_chat_template: str = CONDITIONED_CHAT_TEMPLATE,
        pictures: str = "processor",
        text_chat_template: str | None = None,
        is_piecewise: bool = False,
        placeholder: Mapping[str, Any] | None = None,
        may_lack_tokenizer: bool = False,
        **kwargs: Any,
    ) -> None:
        if pictures not in ("processor", "encoder"):
            raise ConfigError(f'BindLMProcessor.pictures must be "processor" or "encoder", got {pictures!r}.')
        self.image_processor = (image_processor or BindLMImageProcessor()) if pictures == "processor" else None
        self.tokenizer = tokenizer
        self.conditioned_chat_template = CHAT_TEMPLATES.get(conditioned_chat_template, conditioned_chat_template)
        self.text_chat_template = CHAT_TEMPLATES.get(text_chat_template or "", text_chat_template)
        self.placeholder = dict(placeholder) if placeholder is not None else None
        self.is_piecewise = is_piecewise or (placeholder is not None and self._medium_token is None)
        self.may_lack_tokenizer = may_lack_tokenizer
        self.chat_template = None

    @property
    def _medium_token(self) -> str | None:
        """What templates write for a medium, where they do so themselves."""
        return None if self.placeholder is None else self.placeholder.get("token")

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Parts that transformers saves and prints."""
        return ["image_processor", "tokenizer"]

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any) -> BatchFeature:
        """Plain text and pictures, without a chat template.

        Args:
            images: one picture, or one (or None) for each text.
            text: one text or a list of B.
            **kwargs: for the tokenizer; `padding`, `return_tensors="pt"` and left padding are the defaults.

        Returns:
            `input_ids`, `attention_mask` `(B, T)`; with pictures also `pixel_values` `(M, V, 3, S, S)` and `has_media`
            `(B,)`.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        per_row: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images] * (images is not None)
        if texts and per_row and len(per_row) != len(texts):
            raise ConfigError(
                f"{len(per_row)} pictures were given for {len(texts)} texts; use None where there is none."
            )
        data: dict[str, Any] = {}
        if texts:
            data.update(self._tokenize(texts, **kwargs))
        data.update(self._pictures(per_row))
        return BatchFeature(data)

    def _pictures(self, per_row: Sequence[Any]) -> dict[str, Tensor]:
        present = [picture for picture in per_row if picture is not None]
        if not present:
            return {}
        if self.image_processor is None:
            raise ConfigError(
                "This model's encoder prepares its own pictures: use model.ask(…, image=…), or give the model "
                "joint_embedding=model.embed(image=…)."
            )
        return {
            "pixel_values": self.image_processor(present)["pixel_values"],
            "has_media": torch.tensor([picture is not None for picture in per_row]),
        }

    def _tokenize(self, texts: list[str], **kwargs: Any) -> dict[str, Tensor]:
        tokenizer = self._needed_tokenizer()
        if self.is_piecewise and kwargs.get("add_special_tokens") is False:
            return dict(tokenizer.pad({"input_ids": [self._pieces(text) for text in texts]}, **_PADDING))
        options = {"padding": True, "padding_side": "left", "return_tensors": "pt", **kwargs}
        if self.placeholder is not None and self._medium_token is not None:
            texts = [
                text.replace(self._medium_token, self._medium_token * self.placeholder["num_tokens"]) for text in texts
            ]
            # as transformers' processors do: a template that writes the first token itself gets no second one
            begun = tokenizer.bos_token is not None and texts[0].startswith(tokenizer.bos_token)
            options["add_special_tokens"] = not begun
        encoded = tokenizer(texts, **options)
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def _pieces(self, text: str) -> list[int]:
        """Ids of one rendered text: the first token, then each piece between media on its own."""
        tokenizer = self._needed_tokenizer()
        ids: list[int] = []
        if tokenizer.bos_token and text.startswith(tokenizer.bos_token):
            ids, text = [tokenizer.bos_token_id], text.removeprefix(tokenizer.bos_token)
        soft = [] if self.placeholder is None else [self.placeholder["id"]] * self.placeholder["num_tokens"]
        for number, piece in enumerate(text.split(MEDIUM)):
            ids += [*(soft if number else []), *tokenizer(piece, add_special_tokens=False)["input_ids"]]
        return ids

    def _needed_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise ConfigError(
                "This processor has no tokenizer. Where the model's folder lacks one, put the files of its language "
                "model's tokenizer there (tokenizer.json, tokenizer_config.json)."
            )
        return self.tokenizer

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, is_conditioned: bool, add_generation_prompt: bool = True
    ) -> str:
        """One conversation as the text the model reads; media parts leave no trace in it."""
        tokenizer = self._needed_tokenizer()
        texts = [_text_of(message) for message in messages]
        if self.placeholder is not None:
            texts = [text.replace(self._medium_token or MEDIUM, "") for text in texts]
        plain: list[dict[str, Any]] = [
            {"role": message["role"], "content": text} for message, text in zip(messages, texts, strict=True)
        ]
        if self._medium_token is not None:
            plain = _in_parts(plain, is_conditioned=is_conditioned)
        template = self.conditioned_chat_template if is_conditioned else self.text_chat_template
        return tokenizer.apply_chat_template(
            plain,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            is_conditioned=is_conditioned,
        )

    def tokenize_chat(self, messages: Sequence[Mapping[str, Any]], *, is_conditioned: bool) -> BatchFeature:
        """`input_ids` and `attention_mask` `(1, T)` of one conversation, ready for an answer."""
        text = self.render_chat(messages, is_conditioned=is_conditioned)
        return BatchFeature(self._tokenize([text], add_special_tokens=False))

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = True,
        return_dict: bool = True,
        return_tensors: str = "pt",
        **kwargs: Any,
    ) -> Any:
        """Conversations with media parts to model inputs.

        Args:
            conversation: messages `{"role", "content"}`, or a list of such conversations. Content is a string or parts
                `{"type": "text", "text": …}`, `{"type": "image", "image": …}` (or `"path"`, `"url"`: any source
                `bindlm.media.load_image` takes; an address only where the caller allows it there).
            tokenize: False gives the rendered text.
            add_generation_prompt: whether the assistant's turn is opened.

        Returns:
            `input_ids`, `attention_mask` `(B, T)`, padded on the left; `pixel_values`, `has_media` where any of the
            conversations' last user messages has a picture.

        Raises:
            MediaError: a picture cannot be used.
            ConfigError: an unknown part, or several pictures in one message.
        """
        is_batch = bool(conversation) and isinstance(conversation[0], (list, tuple))
        conversations: list[Any] = list(conversation) if is_batch else [conversation]
        if not all(conversations):
            raise ConfigError("The conversation is empty.")
        pictures = [_last_picture(messages) for messages in conversations]
        texts = [
            self.render_chat(messages, is_conditioned=picture is not None, add_generation_prompt=add_generation_prompt)
            for messages, picture in zip(conversations, pictures, strict=True)
        ]
        if not tokenize:
            return texts if is_batch else texts[0]
        inputs = BatchFeature({**self._tokenize(texts, add_special_tokens=False), **self._pictures(pictures)})
        return inputs if return_dict else inputs["input_ids"]

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """The tokenizer's."""
        assert self.tokenizer is not None
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """The tokenizer's."""
        assert self.tokenizer is not None
        return self.tokenizer.decode(*args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """What `processor_config.json` holds: all but the tokenizer."""
        return {
            "processor_class": type(self).__name__,
            "conditioned_chat_template": self.conditioned_chat_template,
            **{name: getattr(self, name) for name, usual in _UNLESS_USUAL.items() if getattr(self, name) != usual},
            "image_processor": self.image_processor.to_dict() if self.image_processor is not None else None,
        }

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write `processor_config.json` and the tokenizer into a folder."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / "processor_config.json")
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, local_files_only: bool = False, **kwargs: Any
    ) -> "BindLMProcessor":
        """Load from a folder or a hub id.

        A folder without tokenizer files takes the tokenizer of the language model that its `config.json` names.

        Raises:
            CheckpointError: the folder holds no processor, or the tokenizer is not to be had.
        """
        folder = resolve(pretrained_model_name_or_path, local_files_only=local_files_only)
        image, others = _settings_in(folder)
        tokenizer: PreTrainedTokenizerBase | None = None
        if (folder / "tokenizer_config.json").is_file():
            tokenizer = _tokenizer_in(folder)
        elif not others.get("may_lack_tokenizer"):
            has_config = (folder / "config.json").is_file()
            language_model = BindLMConfig.from_pretrained(folder).language_model if has_config else None
            if language_model is None:
                raise CheckpointError(
                    f"{folder} has neither a tokenizer nor the name of a language model to take one from."
                )
            tokenizer = load_tokenizer(language_model, local_files_only=local_files_only)
        return cls(
            image_processor=image,
            tokenizer=tokenizer,
            pictures="encoder" if image is None else "processor",
            **others,
        )


def image_processor_in(folder: Path) -> BindLMImageProcessor | None:
    """The image processor of a saved model, without its tokenizer; None where the encoder prepares pictures.

    Raises:
        CheckpointError: the folder holds no processor.
    """
    return _settings_in(folder)[0]


_UNLESS_USUAL: dict[str, Any] = {
    "text_chat_template": None,
    "is_piecewise": False,
    "placeholder": None,
    "may_lack_tokenizer": False,
}
"""Settings that `processor_config.json` holds only where they differ from these."""


def _settings_in(folder: Path) -> tuple[BindLMImageProcessor | None, dict[str, Any]]:
    """The image processor of a saved model, and the other settings of its processor."""
    try:
        settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
        others = {name: settings[name] for name in _UNLESS_USUAL if name in settings}
        others["conditioned_chat_template"] = settings["conditioned_chat_template"]
        if settings["image_processor"] is None:
            return None, others
        image = {name: value for name, value in settings["image_processor"].items() if not name.endswith("_type")}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder} has no readable processor_config.json, so it is not a model saved by bindlm."
        ) from error
    return BindLMImageProcessor(**image), others


def _tokenizer_in(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved with a processor, beside a model or alone."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(
            f"the tokenizer in {folder} is missing or damaged; get tokenizer.json and tokenizer_config.json again"
        ) from error
    if tokenizer.pad_token is None:  # LLaMA's has none; the attention mask hides whatever fills a batch up
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A message's content as checked parts."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ConfigError(f'A message must be {{"role": …, "content": …}}, got {_shown(message)}.')
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, (list, tuple)):
        raise ConfigError(f"A message's content must be a string or a list of parts, got {type(content).__name__}.")
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if not isinstance(kind, str) or kind not in ("text", "image"):
            raise ConfigError(f"Unknown part type {_shown(kind)} in a message; known: image, text.")
        if kind == "text" and not isinstance(part.get("text"), str):
            raise ConfigError(f'A text part must be {{"type": "text", "text": …}}, got {_shown(part)}.')
    return list(content)


def _shown(value: Any) -> str:
    """What was given, cut to a length that fits a message: a part may hold a whole picture."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _text_of(message: Mapping[str, Any]) -> str:
    return "\n".join(part["text"] for part in _parts(message) if part["type"] == "text")


def _in_parts(messages: Sequence[Mapping[str, Any]], *, is_conditioned: bool) -> list[dict[str, Any]]:
    """Messages as transformers' templates of several senses take them, the medium in front of the first question."""
    told = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    first = next((message for message in told if message["role"] == "user"), None)
    if is_conditioned and first is not None:
        first["content"] = [{"type": "image"}, *first["content"]]
    return told


def _last_picture(messages: Sequence[Mapping[str, Any]]) -> Any:
    """The picture of the last user message, or None."""
    users = [parts for message in messages for parts in [_parts(message)] if message["role"] == "user"]
    if not users:
        return None
    pictures = [part for part in users[-1] if part["type"] == "image"]
    if len(pictures) > 1:
        raise ConfigError(
            f"One message has {len(pictures)} pictures; a message here takes one. To mix several, use model.ask("
            "image=[…], weights=[…])."
        )
    if not pictures:
        return None
    for key in ("image", "path", "url"):
        if pictures[0].get(key) is not None:
            return pictures[0][key]
    raise ConfigError('An image part needs its picture: {"type": "image", "image": …}.')


AutoImageProcessor.register(BindLMConfig, slow_image_processor_class=BindLMImageProcessor, exist_ok=True)
AutoProcessor.register(BindLMConfig, BindLMProcessor)
