"""Ask a bound model: the few lines most users need, on top of processor and `generate`."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bindlm.errors import ConfigError

if TYPE_CHECKING:
    from bindlm.processing import BindLMProcessor

Media = Any
"""A path, bytes, a PIL picture, an array, or a list of these."""


@dataclass
class Answer:
    """What a model said, and what it took."""

    text: str
    """The answer, without special tokens."""
    prompt_tokens: int
    """Tokens of the whole prompt."""
    answer_tokens: int
    """Tokens generated, the end token included."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by phase: media (decoding), encode (joint embedding), prefill (to the first token), decode (rest)."""
    model: str = ""
    """Name of the model."""
    joint_neighbours: list[dict[str, Any]] | None = None
    """Where there is a visual cache: its nearest entries, as `{"entry", "similarity"}`."""


class _Timeline:
    """A streamer that notes when text appears and hands pieces on.

    transformers calls `put` with the prompt first, then with each new token.
    """

    def __init__(self, tokenizer: Any, stream: Callable[[str], None] | None) -> None:
        self.tokenizer = tokenizer
        self.stream = stream
        self.first_token_at: float | None = None
        self._ids: list[int] = []
        self._shown = 0
        self._is_prompt = True

    def put(self, value: Tensor) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        self._ids += value.flatten().tolist()
        if self.stream is None:
            return
        text = self.tokenizer.decode(self._ids, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # half of a character: wait for its other bytes
            self._show(text)

    def end(self) -> None:
        if self.stream is not None:
            self._show(self.tokenizer.decode(self._ids, skip_special_tokens=True))

    def _show(self, text: str) -> None:
        assert self.stream is not None
        text = text.strip()  # as the answer is; white space waits for the word after it
        if len(text) > self._shown:
            self.stream(text[self._shown :])
            self._shown = len(text)


class AskMixin:
    """`ask`, `answer` and `embed` for a model with a processor."""

    processor: Any
    name: str

    def _needed_processor(self) -> "BindLMProcessor":
        if self.processor is None:
            raise ConfigError(
                "This model has no processor; load it with bindlm.load(), or set model.processor = "
                "BindLMProcessor.from_pretrained(folder)."
            )
        return self.processor

    def ask(self, question: str, image: Media = None, **kwargs: Any) -> str:
        """Answer a question, about a picture or without one.

        Args:
            question: in plain words.
            image: a path, bytes, PIL picture or array; a list of them is mixed. None asks the language model itself,
                untouched.
            **kwargs: see `answer`.

        Returns:
            The answer's text.

        Raises:
            MediaError: a picture cannot be used.

        Example:
            >>> bindlm.load().ask("What is this?", image="cat.jpg")
            'This is a cat, a kind of animal.'
        """
        return self.answer(question, image, **kwargs).text

    def answer(
        self,
        question: str,
        image: Media = None,
        *,
        weights: Mapping[str, float] | Sequence[float] | None = None,
        history: Sequence[Mapping[str, Any]] | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 0.75,
        stream: Callable[[str], None] | None = None,
        allow_url: bool = False,
    ) -> Answer:
        """Answer a question and say what it took.

        Args:
            question: in plain words.
            image: as in `ask`.
            weights: shares of the mixture: by modality (`{"image": 0.4}`), or one for each picture.
            history: chat messages before this turn, `{"role", "content"}`; media in them are not looked at again.
            max_new_tokens: where to stop at the latest.
            temperature: 0 takes the likeliest token each time; above 0 samples.
            top_p: nucleus for sampling; 0.75 is the released default.
            stream: called with each piece of text as it is made.
            allow_url: whether a picture may be an http(s) address.

        Raises:
            MediaError: a picture cannot be used.
            ConfigError: an impossible setting.
        """
        if not isinstance(question, str) or not question.strip():
            raise ConfigError("The question is empty: ask something, for example 'What is this?'.")
        if not 0 <= temperature < math.inf:
            raise ConfigError(f"temperature must be at least 0, got {temperature}.")
        if not 0 < top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {top_p}.")
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
        processor = self._needed_processor()
        seconds = {"media": 0.0, "encode": 0.0}
        pictures = _as_list(image)
        shares = _picture_weights(weights, len(pictures))
        mixed: list[tuple[Tensor, float]] | None = None
        if pictures:
            start = time.perf_counter()
            loaded = processor.image_processor.load(pictures, allow_url=allow_url)
            pixel_values = processor.image_processor(loaded)["pixel_values"]  # (M, V, 3, S, S)
            seconds["media"] = time.perf_counter() - start
            start = time.perf_counter()
            joint = self.encode_media(image=pixel_values)["image"]  # type: ignore[attr-defined]
            mixed = list(zip(joint.split(1), shares, strict=True))
            seconds["encode"] = time.perf_counter() - start
        messages = [*(history or []), {"role": "user", "content": question}]
        inputs = processor.tokenize_chat(messages, is_conditioned=bool(pictures))
        tokenizer: Any = processor.tokenizer
        timeline = _Timeline(tokenizer, stream)
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature else {"do_sample": False}
        )
        start = time.perf_counter()
        with torch.inference_mode():
            output = self.generate(  # type: ignore[attr-defined]
                **inputs.to(self.device),  # type: ignore[attr-defined]
                joint_embedding=mixed,
                max_new_tokens=max_new_tokens,
                streamer=timeline,
                pad_token_id=tokenizer.pad_token_id,
                **sampling,
            )
        end = time.perf_counter()
        first = timeline.first_token_at or end
        seconds |= {"prefill": first - start, "decode": end - first}
        prompt_tokens = inputs["input_ids"].shape[1]
        tokens = output[0, prompt_tokens:]
        return Answer(
            text=tokenizer.decode(tokens, skip_special_tokens=True).strip(),
            prompt_tokens=prompt_tokens,
            answer_tokens=len(tokens),
            seconds=seconds,
            model=self.name,
            joint_neighbours=self._neighbours(mixed),
        )

    def embed(self, *, image: Media = None, batch_size: int = 8, allow_url: bool = False) -> Tensor:
        """Joint embeddings of media.

        Args:
            image: one picture or a list of N.
            batch_size: pictures encoded at once.
            allow_url: whether a picture may be an http(s) address.

        Returns:
            `(N, D_joint)`, unit length, fp32, on the CPU.

        Raises:
            MediaError: a picture cannot be used; nothing is returned for the others.
        """
        pictures = _as_list(image)
        if not pictures:
            raise ConfigError("There is nothing to embed: give image=… a picture or a list of pictures.")
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}.")
        processor = self._needed_processor()
        parts = []
        for start in range(0, len(pictures), batch_size):
            loaded = processor.image_processor.load(pictures[start : start + batch_size], allow_url=allow_url)
            pixel_values = processor.image_processor(loaded)["pixel_values"]
            with torch.inference_mode():
                parts.append(self.encode_media(image=pixel_values)["image"].float().cpu())  # type: ignore[attr-defined]
        return torch.cat(parts)

    def _neighbours(self, mixed: list[tuple[Tensor, float]] | None) -> list[dict[str, Any]] | None:
        """The cache entries an answer drew on."""
        from bindlm.space.mix import mix_embeddings

        cache = getattr(self, "cache", None)
        if mixed is None or cache is None:
            return None
        similarity, entries = cache.search(mix_embeddings(mixed))
        return [
            {"entry": entry, "similarity": round(value, 4)}
            for value, entry in zip(similarity[0].tolist(), entries[0].tolist(), strict=True)
        ]


def _as_list(media: Media) -> list[Any]:
    """None -> [], one medium -> [it], a list or tuple -> a list."""
    if media is None:
        return []
    return list(media) if isinstance(media, (list, tuple)) else [media]


def _picture_weights(weights: Mapping[str, float] | Sequence[float] | None, count: int) -> list[float]:
    """One weight for each picture."""
    if weights is None:
        return [1.0] * count
    if count == 0:
        raise ConfigError("weights were given, but nothing to weigh; give image=… as well.")
    if isinstance(weights, Mapping):
        unknown = set(weights) - {"image"}
        if unknown:
            raise ConfigError(f"weights names {', '.join(sorted(unknown))}, but only image was given.")
        return [float(weights.get("image", 1.0)) / count] * count
    if len(weights) != count:
        raise ConfigError(f"{len(weights)} weights were given for {count} pictures.")
    return [float(weight) for weight in weights]
