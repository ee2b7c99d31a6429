"""Ask a bound model: the few lines most users need, on top of processor and `generate`."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bindlm.errors import ConfigError
from bindlm.space import CacheNeighbour, VisualCacheBase
from bindlm.space.mix import TURNS, MixForm, mix_embeddings, share_weights, take_turns

if TYPE_CHECKING:
    from bindlm.encoders import JointEncoder
    from bindlm.processing import BindLMProcessor

Media = Any
"""A path, bytes, a PIL picture, an array, or a list of these."""


@dataclass
class Answer:
    """What a model said, and what it took."""

    text: str
    """The answer, without special tokens; of several turns, their sentences in order."""
    prompt_tokens: int
    """Tokens of the whole prompt."""
    answer_tokens: int
    """Tokens generated, the end tokens included."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by phase: media (decoding), encode (joint embedding), prefill (to the first token), decode (rest)."""
    model: str = ""
    """Name of the model."""
    joint_neighbours: list[dict[str, Any]] | None = None
    """Where a visual cache was consulted: the entries drawn on, turn by turn, nearest first: `{"entry", "similarity",
    "weight"}`, and `"id"`, `"caption"` and `"source"` where there are any. A turn that was not pulled adds none."""


class _Timeline:
    """A streamer that notes when text appears and hands pieces on.

    transformers calls `put` with the prompt first, then with each new token.
    """

    def __init__(self, tokenizer: Any, stream: Callable[[str], None] | None, stops: "_Stops | None" = None) -> None:
        self.tokenizer = tokenizer
        self.stream = stream
        self.stops = stops or _Stops()
        self.first_token_at: float | None = None
        self._ids: list[int] = []
        self._shown = 0
        self._is_prompt = True
        self._told: list[str] = []

    def next_turn(self, told: Sequence[str]) -> None:
        """Begin another turn of the same answer, after these."""
        self._ids, self._shown, self._is_prompt, self._told = [], 0, True, list(told)

    def put(self, value: Tensor) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        self._ids += value.flatten().tolist()
        if self.stream is None:
            return
        text = self.stops.begun(self.stops.text_of(self.tokenizer, self._ids))
        repeats = any(told.startswith(text.strip()) for told in self._told)  # so far: wait for something new
        if not text.endswith("\ufffd") and not repeats:  # half of a character: wait for its other bytes
            self._show(text)

    def end(self) -> None:
        if self.stream is None:
            return
        text = self.stops.text_of(self.tokenizer, self._ids)
        if text.strip() not in self._told:
            self._show(text)

    def _show(self, text: str) -> None:
        assert self.stream is not None
        text = text.strip()  # as the answer is; white space waits for the word after it
        if len(text) > self._shown:
            self.stream((" " if self._told and not self._shown else "") + text[self._shown :])
            self._shown = len(text)


@dataclass(frozen=True)
class _Stops:
    """What ends an answer, by a checkpoint's `generation_config`, and is no part of it.

    An end token may be a word to its tokenizer: PandaGPT's answers end in "###", of which LLaMA's "##" is the token.
    """

    tokens: Collection[int] = ()
    words: Sequence[str] = ()

    @classmethod
    def of(cls, settings: Any) -> "_Stops":
        ends, words = settings.eos_token_id, settings.stop_strings or ()
        tokens = ends if isinstance(ends, (list, tuple)) else [ends]
        return cls({token for token in tokens if token is not None}, [words] if isinstance(words, str) else words)

    def text_of(self, tokenizer: Any, ids: Sequence[int]) -> str:
        """What these tokens say before the first end token and before the first stop word."""
        end = next((place for place, token in enumerate(ids) if token in self.tokens), len(ids))
        text = tokenizer.decode(ids[:end], skip_special_tokens=True)
        return text[: min([text.index(word) for word in self.words if word in text], default=len(text))]

    def begun(self, text: str) -> str:
        """Without what may turn out to be the beginning of a stop word."""
        starts = [word[:length] for word in self.words for length in range(1, len(word))]
        return text[: len(text) - max([len(start) for start in starts if text.endswith(start)], default=0)]


class AskMixin:
    """`ask`, `answer` and `embed` for a model with a processor."""

    generation_config: Any
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
            image: a path, bytes, PIL picture or array; a list of them is mixed. None, with no other medium, asks the
                language model itself, untouched.
            **kwargs: media of other senses by name (`audio="horn.wav"`), and what `answer` takes.

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
        mix: MixForm | str = TURNS,
        history: Sequence[Mapping[str, Any]] | None = None,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stream: Callable[[str], None] | None = None,
        cache: bool | None = None,
        allow_url: bool = False,
        **media: Media,
    ) -> Answer:
        """Answer a question and say what it took.

        The same question has the same answer unless sampling is asked for, whatever the checkpoint's
        `generation_config` says; transformers' `generate` follows that also in whether to sample.

        Args:
            question: in plain words.
            image: as in `ask`.
            weights: shares of the mixture: by modality (`{"image": 0.4, "audio": 0.6}`, shared by the media of one),
                or one for each medium in the order given.
            mix: what becomes of several media. "turns": like ones are mixed, unlike ones are told one after the other,
                the weightiest first (`take_turns`), so that each is named; "released" and "paper": all in one mixture
                (`MixForm`), which mostly names one of them. A single medium is the same in each but for "paper".
            history: chat messages before this turn, `{"role", "content"}`; media in them are not looked at again.
            max_new_tokens: where to stop at the latest, counted anew in each turn; None for the checkpoint's own
                (`generation_config`), or 128.
            do_sample: True draws each token, with the checkpoint's own temperature and nucleus where none are given;
                None does so where a temperature above 0 is given.
            temperature: above 0; 0 takes the likeliest token each time. None for the checkpoint's own, or 1.
            top_p: nucleus for sampling; None for the checkpoint's own, or 0.75 as ImageBind-LLM was released with.
            stream: called with each piece of text as it is made.
            cache: False leaves the visual cache out; True demands one; None uses it where there is one. What it pulls
                is for its settings to say (`modalities`): a mixture, if one of its senses is among them.
            allow_url: whether a medium may be an http(s) address.
            **media: of the encoder's other senses by name, each one medium or a list.

        Raises:
            MediaError: a medium cannot be used.
            ConfigError: an impossible setting, or a sense that the encoder lacks.
        """
        if not isinstance(question, str) or not question.strip():
            raise ConfigError("The question is empty: ask something, for example 'What is this?'.")
        generating = self._generating(max_new_tokens, do_sample, temperature, top_p)
        if mix not in (TURNS, *MixForm):
            raise ConfigError(f"mix must be one of {', '.join((TURNS, *MixForm))}, got {mix!r}.")
        consulted = self._consulted(cache)
        processor = self._needed_processor()
        seconds = {"media": 0.0, "encode": 0.0}
        sources = {name: _as_list(given) for name, given in {"image": image, **media}.items()}
        sources = {name: listed for name, listed in sources.items() if listed}
        shares = _media_weights(weights, {name: len(listed) for name, listed in sources.items()})
        turns: list[list[tuple[Tensor, float]]] = []
        pulling: list[_Puller | None] = []
        if sources:
            start = time.perf_counter()
            values = {name: self._read(name, listed, allow_url) for name, listed in sources.items()}
            seconds["media"] = time.perf_counter() - start
            start = time.perf_counter()
            joint = torch.cat(list(self.encode_media(**values).values()))  # type: ignore[attr-defined]
            weighted = list(zip(joint.split(1), shares, strict=True))
            if mix != TURNS and len(weighted) > 1 and joint.ndim > 2:
                raise ConfigError(f"{len(weighted)} media of patches cannot be mixed; ask with mix={TURNS!r}.")
            senses = [name for name, listed in sources.items() for _ in listed]
            turns = self._turns(weighted, senses, consulted) if mix == TURNS else [weighted]
            caches = _pulling(consulted, weighted, senses, turns)
            pulling = [None if cache is None else _Puller(cache) for cache in caches]
            seconds["encode"] = time.perf_counter() - start
        messages = [*(history or []), {"role": "user", "content": question}]
        inputs = processor.tokenize_chat(messages, is_conditioned=bool(sources))
        tokenizer: Any = processor.tokenizer
        stops = _Stops.of(self.generation_config)
        timeline = _Timeline(tokenizer, stream, stops)
        if stops.words:
            generating["tokenizer"] = tokenizer
        form = MixForm.RELEASED if mix == TURNS else MixForm(mix)
        prompt_tokens, answer_tokens, told = inputs["input_ids"].shape[1], 0, list[str]()
        start = time.perf_counter()
        planned: list[list[tuple[Tensor, float]] | None] = [*turns] or [None]
        for turn, puller in zip(planned, pulling or [None], strict=True):
            timeline.next_turn(told)
            with torch.inference_mode():
                output = self.generate(  # type: ignore[attr-defined]
                    **inputs.to(self.device),  # type: ignore[attr-defined]
                    joint_embedding=mix_embeddings(turn, form=form) if turn and form is MixForm.PAPER else turn,
                    use_cache_entries=puller or False,
                    streamer=timeline,
                    pad_token_id=tokenizer.pad_token_id,
                    **generating,
                )
            tokens = output[0, prompt_tokens:]
            answer_tokens += len(tokens)
            told.append(stops.text_of(tokenizer, tokens.tolist()).strip())
        end = time.perf_counter()
        first = timeline.first_token_at or end
        seconds |= {"prefill": first - start, "decode": end - first}
        return Answer(
            text=told_in_turn(told),
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens,
            seconds=seconds,
            model=self.name,
            joint_neighbours=_neighbours(pulling) if turns and consulted is not None else None,
        )

    def _generating(
        self, max_new_tokens: int | None, do_sample: bool | None, temperature: float | None, top_p: float | None
    ) -> dict[str, Any]:
        """Keywords of `generate`: what is given, else the checkpoint's own."""
        if temperature is not None and not 0 <= temperature < math.inf:
            raise ConfigError(f"temperature must be at least 0, got {temperature}.")
        if top_p is not None and not 0 < top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {top_p}.")
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
        if do_sample is not None and temperature is not None and do_sample != (temperature > 0):
            raise ConfigError(f"do_sample={do_sample} and temperature={temperature} exclude each other; give one.")
        own = self.generation_config
        length = {"max_new_tokens": max_new_tokens or own.max_new_tokens or 128}
        if not (do_sample or temperature):
            return {**length, "do_sample": False}
        drawn = {"temperature": temperature or own.temperature or 1.0, "top_p": top_p or own.top_p or 0.75}
        return {**length, "do_sample": True, **drawn}

    def _consulted(self, cache: bool | None) -> VisualCacheBase | None:
        """The visual cache, unless it is to be left out or there is none."""
        own: VisualCacheBase | None = getattr(self, "cache", None)
        if cache and own is None:
            raise ConfigError("This model has no visual cache; give it one with model.attach_cache(folder).")
        return None if cache is False else own

    def _turns(
        self, weighted: list[tuple[Tensor, float]], senses: Sequence[str], cache: VisualCacheBase | None
    ) -> list[list[tuple[Tensor, float]]]:
        """The mixtures that are told one after the other, compared as the visual cache sees their inputs."""
        if len(weighted) == 1:
            return [weighted]
        if weighted[0][0].ndim > 2:  # patches: they have places, and no mean
            return [[each] for each in weighted]
        return take_turns(weighted, compared=enhanced_alone(cache, weighted, senses))

    def embed(self, *, image: Media = None, batch_size: int = 8, allow_url: bool = False, **media: Media) -> Tensor:
        """Joint embeddings of media of one sense; `bindlm.load_embedder` gives them without the language model.

        Args:
            image: one picture or a list of N.
            batch_size: media encoded at once.
            allow_url: whether a medium may be an http(s) address.
            **media: in place of pictures, another of the encoder's senses by name.

        Returns:
            `(N, D_joint)`, unit length, fp32, on the CPU.

        Raises:
            MediaError: a medium cannot be used; nothing is returned for the others.
            ConfigError: no sense or several, or one that the encoder lacks.
        """
        given = {name: _as_list(value) for name, value in {"image": image, **media}.items() if value is not None}
        if not any(given.values()):
            raise ConfigError("There is nothing to embed: give image=… a picture or a list of pictures.")
        if len(given) > 1:
            raise ConfigError(f"Give media of one sense, got {', '.join(given)}.")
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}.")
        modality, sources = next(iter(given.items()))
        parts = []
        for start in range(0, len(sources), batch_size):
            values = self._read(modality, sources[start : start + batch_size], allow_url)
            with torch.inference_mode():
                parts.append(self.encode_media(**{modality: values})[modality].float().cpu())  # type: ignore[attr-defined]
        return torch.cat(parts)

    def _read(self, modality: str, sources: list[Any], allow_url: bool) -> Tensor:
        """Media of one sense to a batch of what the encoder takes."""
        encoder: JointEncoder = self.encoder  # type: ignore[attr-defined]
        encoder.check_modality(modality)
        processor = self._needed_processor().image_processor
        if modality == "image" and processor is not None:
            return processor(processor.load(sources, allow_url=allow_url))["pixel_values"]
        return torch.stack([encoder.preprocess(modality, source, allow_url=allow_url) for source in sources])


def enhanced_alone(
    cache: VisualCacheBase | None, weighted: Sequence[tuple[Tensor, float]], senses: Sequence[str]
) -> list[Tensor]:
    """What the visual cache makes of each input by itself, as its sense meets it: `(1, D_joint)` each."""
    views = [None if cache is None else cache.for_senses([sense]) for sense in senses]
    with torch.inference_mode():
        return [
            embedding if view is None else view.enhance(embedding)
            for view, (embedding, _) in zip(views, weighted, strict=True)
        ]


def senses_told(
    weighted: Sequence[tuple[Tensor, float]], senses: Sequence[str], turns: Sequence[Sequence[tuple[Tensor, float]]]
) -> list[frozenset[str]]:
    """The senses that each turn is made of; the turns hold the very embeddings of `weighted`."""
    sense_of = {id(embedding): sense for (embedding, _), sense in zip(weighted, senses, strict=True)}
    return [frozenset(sense_of[id(embedding)] for embedding, _ in turn) for turn in turns]


def _pulling(
    cache: VisualCacheBase | None,
    weighted: Sequence[tuple[Tensor, float]],
    senses: Sequence[str],
    turns: Sequence[Sequence[tuple[Tensor, float]]],
) -> list[VisualCacheBase | None]:
    """For each turn the cache as its senses meet it, or None where it leaves them as they are."""
    return [None if cache is None else cache.for_senses(each) for each in senses_told(weighted, senses, turns)]


class _Puller:
    """The cache of one turn as `generate` takes it; it keeps what was found, so that the answer can name it."""

    def __init__(self, cache: VisualCacheBase) -> None:
        self._cache = cache
        self._found: tuple[Tensor, Tensor] | None = None

    def enhance(self, joint_embedding: Tensor) -> Tensor:
        """See `VisualCacheBase.enhance`."""
        self._found = self._cache.search(joint_embedding)
        return self._cache.enhance(joint_embedding, self._found)

    def neighbours(self) -> list[CacheNeighbour]:
        """The entries that the turn was pulled toward, the nearest first."""
        return [] if self._found is None else self._cache.explain_found(*self._found)[0]


def _neighbours(pulling: Sequence[_Puller | None]) -> list[dict[str, Any]]:
    """The cache entries an answer drew on."""
    return [_described(neighbour) for puller in pulling if puller is not None for neighbour in puller.neighbours()]


def _described(neighbour: CacheNeighbour) -> dict[str, Any]:
    numbers = {"similarity": round(neighbour.similarity, 4), "weight": round(neighbour.weight, 4)}
    named = {"id": neighbour.id, "caption": neighbour.caption, "source": neighbour.source}
    is_named = neighbour.id != str(neighbour.entry)
    return {"entry": neighbour.entry, **numbers} | {
        name: value for name, value in named.items() if value is not None and (is_named or name != "id")
    }


def told_in_turn(turns: Sequence[str]) -> str:
    """One answer out of those of its turns: in order, what says nothing new left out."""
    return " ".join(text for text in dict.fromkeys(turns) if text)


def _as_list(media: Media) -> list[Any]:
    """None -> [], one medium -> [it], a list or tuple -> a list."""
    if media is None:
        return []
    return list(media) if isinstance(media, (list, tuple)) else [media]


def _media_weights(weights: Mapping[str, float] | Sequence[float] | None, counts: Mapping[str, int]) -> list[float]:
    """One weight for each medium; `counts` says how many there are of each sense."""
    total = sum(counts.values())
    if weights is None:
        return [1.0] * total
    if total == 0:
        raise ConfigError("weights were given, but nothing to weigh; give image=… as well.")
    if isinstance(weights, Mapping):
        return [share for shares in share_weights(counts, weights).values() for share in shares]
    if len(weights) != total:
        what = "pictures" if set(counts) == {"image"} else "media"
        raise ConfigError(f"{len(weights)} weights were given for {total} {what}.")
    return [float(weight) for weight in weights]
