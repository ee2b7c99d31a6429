"""A sample as the tokens a model reads, and which of them it learns.

The tokens before an answer are those that inference feeds, and the loss lies on the answer and the token that ends it,
nowhere else. Both hold at the seam only if the tokenizer is asked the same way as at inference: prompt and answer are
tokenised together where that leaves the prompt's tokens as they are (SentencePiece then adds no space), else apart.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice
from typing import NamedTuple

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from bindlm.errors import ConfigError
from bindlm.processing import CONDITIONED_CHAT_TEMPLATE, MEDIUM
from bindlm.training.data.sample import Sample, Turn
from bindlm.training.stage_recipe import PromptConfig

__all__ = [
    "IGNORED",
    "Places",
    "RefusedConversationError",
    "Rendered",
    "Renderer",
    "alpaca_prompt",
    "render",
    "renderer",
]

IGNORED = -100
"""Label of a token that is not learned, as everywhere in transformers."""

_ALPACA_TASK = "Below is an instruction that describes a task{input}. "
_ALPACA_INPUT = ", paired with an input that provides further context"
_ALPACA_REQUEST = "Write a response that appropriately completes the request."
_PROBE = "qwertzuiop"
_MARKER = re.compile(r"<image>\n|\n?<image>")


class RefusedConversationError(ConfigError):
    """The chat template takes no conversation of this shape, such as two turns of one side in a row."""


@dataclass(frozen=True)
class Rendered:
    """Tokens of one sample."""

    input_ids: list[int]
    """T tokens."""
    labels: list[int]
    """The same T, with `IGNORED` where there is no loss; aligned with the tokens, not shifted."""

    @property
    def num_targets(self) -> int:
        """Tokens with a loss; 0 where the cut left nothing to learn."""
        return len(self.labels) - self.labels.count(IGNORED)


class Places(NamedTuple):
    """Where a medium stands in the text, of an injection that gives it a place there."""

    placeholder_id: int
    """Token id in place of each soft token."""
    num_tokens: int
    """Soft tokens of a medium."""


class _Exchange(NamedTuple):
    """All that is read before an answer, and what is learned."""

    before: str
    target: str


def render(
    sample: Sample,
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptConfig,
    *,
    is_conditioned: bool,
    caption: int = 0,
    conditioned_template: str | None = None,
    places: Places | None = None,
) -> Rendered:
    """One sample as tokens and labels, cut on the right at `prompt.max_tokens`.

    Args:
        sample: a conversation, or captions.
        tokenizer: the language model's own.
        prompt: which template, and what captions answer.
        is_conditioned: whether a joint embedding goes in with it.
        caption: number of the caption to learn, modulo how many there are.
        conditioned_template: chat template with a medium; None for `CONDITIONED_CHAT_TEMPLATE` where the tokenizer
            knows `<|im_start|>`, else the tokenizer's own.
        places: what stands in the text where the template has its `<|medium|>`; None where a medium has no place.

    Raises:
        RefusedConversationError: the chat template takes no such conversation.
        ConfigError: the tokenizer has no template, or one that cannot be trained on.
    """
    maker = renderer(
        tokenizer, prompt, is_conditioned=is_conditioned, conditioned_template=conditioned_template, places=places
    )
    return maker.render([(sample, caption)])[0]


@lru_cache(maxsize=16)
def renderer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptConfig,
    *,
    is_conditioned: bool,
    conditioned_template: str | None = None,
    places: Places | None = None,
) -> "Renderer":
    """The renderer of these settings, made once: what the template puts around answers is found by probing it."""
    if places is not None and (prompt.template == "alpaca" or MEDIUM not in (conditioned_template or "")):
        raise ConfigError(
            f"The medium has a place in the text of this model, so its chat template must say where, by {MEDIUM}. Set "
            'data.prompt.template to "chat", and give the processor of model.start_from such a '
            "conditioned_chat_template."
        )
    if prompt.template == "alpaca":
        return Renderer(_Alpaca(tokenizer), prompt)
    if is_conditioned and conditioned_template is None and _is_chat_ml(tokenizer):
        conditioned_template = CONDITIONED_CHAT_TEMPLATE
    layout = _Chat(tokenizer, conditioned_template if is_conditioned else None)
    return Renderer(layout, prompt, places, num_media=int(is_conditioned))


class Renderer:
    """Samples to tokens under one template, many at a time.

    Args:
        layout: how turns become text.
        prompt: what captions answer, and where samples are cut.
        places: of media that stand in the text.
        num_media: how many each sample then has, 0 or 1; what has another number of places has nothing to learn.
    """

    def __init__(
        self, layout: "_Layout", prompt: PromptConfig, places: Places | None = None, num_media: int = 0
    ) -> None:
        self.layout = layout
        self.prompt = prompt
        self.places = places
        self.num_media = num_media
        self._end_id = layout.tokenizer.convert_tokens_to_ids(layout.end_token)

    def render(self, samples: Sequence[tuple[Sample, int]]) -> list[Rendered]:
        """Samples, each with the number of its caption, in one call of the tokenizer where they have one turn."""
        conversations = [self.layout.exchanges(self._turns(sample, caption)) for sample, caption in samples]
        firsts = [list(islice(each, 1)) for each in conversations]
        known = self._ids_of({text for [e] in filter(None, firsts) for text in (e.before, e.before + e.target)})
        return [self._tokens(chain(*pair), known) for pair in zip(firsts, conversations, strict=True)]

    def prompt_ids(self, turns: Sequence[Turn]) -> list[int]:
        """What inference feeds for a conversation that awaits an answer."""
        *_, last = self.layout.exchanges([*turns, Turn("assistant", "")])
        return self._ids_of({last.before})[last.before]

    def _turns(self, sample: Sample, caption: int) -> list[Turn]:
        """A caption as an answer to the stage's instruction; questions without the marker of a picture."""
        if sample.captions:
            answer = Turn("assistant", sample.captions[caption % len(sample.captions)])
            asked = self.prompt.caption_instruction
            return [answer] if asked is None else [Turn("user", asked), answer]
        turns = list(sample.turns)
        if self.places is not None:
            turns = [replace(turn, text=turn.text.replace(MEDIUM, "")) for turn in turns]
        if self.prompt.keeps_image_marker:
            return turns
        return [_without_marker(turn) if turn.role == "user" else turn for turn in turns]

    def _tokens(self, exchanges: Iterable[_Exchange], known: dict[str, list[int]]) -> Rendered:
        ids: list[int] = []
        labels: list[int] = []
        text = ""
        for before, target in exchanges:
            for read, piece in ((before, before[len(text) :]), (before + target, target)):
                added = self._added(ids, read, piece, known)
                is_learned = piece is target
                if is_learned and (not added or added[-1] != self._end_id):
                    raise ConfigError(f"The tokenizer does not read its own end token {self.layout.end_token!r}.")
                labels += added if is_learned else [IGNORED] * len(added)
                ids += added
                text = read
            if len(ids) >= self.prompt.max_tokens:
                break  # so that a long conversation costs no more than its part that is kept
        if labels:
            labels[0] = IGNORED  # nothing comes before it, and in a packed row another sample's last token would
        ids, labels = ids[: self.prompt.max_tokens], labels[: self.prompt.max_tokens]
        if (
            self.places is not None
            and ids.count(self.places.placeholder_id) != self.num_media * self.places.num_tokens
        ):
            labels = [IGNORED] * len(labels)  # no question to hold a medium, or a text that says placeholders itself
        return Rendered(ids, labels)

    def _added(self, ids: list[int], read: str, piece: str, known: dict[str, list[int]]) -> list[int]:
        """What a further piece of text adds to the tokens so far."""
        if not piece:
            return []
        whole = known.get(read) or self._ids_of({read})[read]
        if whole[: len(ids)] == ids:
            return whole[len(ids) :]
        return self._apart(piece)

    def _apart(self, piece: str) -> list[int]:
        """Tokens of a piece that, joined to the text before, would have merged with it.

        It is tokenised after a text that it does not merge with, because some tokenizers begin every text with a
        space of their own.
        """
        tokenizer, found = self.layout.tokenizer, None
        for anchor in (self.layout.end_token, "\n", ""):
            start, whole = (self._ids_of({anchor + text})[anchor + text] for text in ("", piece))
            if whole[: len(start)] != start:
                continue
            found = found if found is not None else whole[len(start) :]
            read, expected = (tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (whole, start))
            if read == expected + piece:
                return whole[len(start) :]
        assert found is not None  # the empty anchor always fits
        return found

    def _ids_of(self, texts: set[str]) -> dict[str, list[int]]:
        """Tokens of texts, without anything the tokenizer would add."""
        if not texts:
            return {}
        if self.places is not None and any(MEDIUM in text for text in texts):
            return {text: self._ids_around_media(text) for text in texts}
        ordered = sorted(texts)
        # verbose: the length that the tokenizer would warn of is this module's to cut
        encoded = self.layout.tokenizer(
            ordered, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )
        return dict(zip(ordered, encoded["input_ids"], strict=True))

    def _ids_around_media(self, text: str) -> list[int]:
        """Tokens of a text with media, each piece on its own, as the processor makes them for a question."""
        assert self.places is not None
        bos, bos_id = self.layout.tokenizer.bos_token, self.layout.tokenizer.bos_token_id
        ids: list[int] = []
        if bos and text.startswith(bos):
            ids, text = [bos_id], text.removeprefix(bos)
        pieces = text.split(MEDIUM)
        known = self._ids_of(set(pieces))
        for number, piece in enumerate(pieces):
            ids += [self.places.placeholder_id] * (self.places.num_tokens if number else 0) + known[piece]
        return ids


class _Layout:
    """How turns become text, and which token ends an answer."""

    tokenizer: PreTrainedTokenizerBase
    end_token: str

    def exchanges(self, turns: Sequence[Turn]) -> Iterator[_Exchange]:
        """One for each assistant's turn, made as it is asked for: a cut needs only the first."""
        raise NotImplementedError


class _Alpaca(_Layout):
    """The published template of this family; further rounds repeat its instruction and response.

    `ALPACA_CHAT_TEMPLATE` asks the same way at inference, but knows no `### Input:`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.eos_token is None:
            raise ConfigError(
                'PromptConfig.template "alpaca" ends answers with the eos token; this tokenizer has none.'
            )
        self.tokenizer = tokenizer
        self.end_token = tokenizer.eos_token

    def exchanges(self, turns: Sequence[Turn]) -> Iterator[_Exchange]:
        text, is_first = self.tokenizer.bos_token or "", True
        for turn in turns:
            if turn.role == "assistant":
                target = turn.text + self.end_token
                yield _Exchange(text, target)
                text += target
            elif turn.role == "system":
                text += f"{turn.text}\n\n"
            else:
                text += alpaca_prompt(turn.text, turn.context) if is_first else _alpaca_round(turn)
                is_first = False


def alpaca_prompt(instruction: str, context: str | None = None) -> str:
    """The published template up to the colon that the answer follows without a space.

    Source: Stanford Alpaca's template as the release of ImageBind-LLM has it; an empty `context` is none.
    """
    task = _ALPACA_TASK.format(input=_ALPACA_INPUT if context else "") + _ALPACA_REQUEST
    return task + _alpaca_round(Turn("user", instruction, context))


def _alpaca_round(turn: Turn) -> str:
    context = f"\n\n### Input:\n{turn.context}" if turn.context else ""
    return f"\n\n### Instruction:\n{turn.text}{context}\n\n### Response:"


class _Chat(_Layout):
    """A chat template of transformers; None for the tokenizer's own.

    What it puts around answers is found with a probe. The probe is not the last turn, because some templates (Qwen3's)
    show the last answer otherwise than earlier ones, and only these have the form that a model is to write.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
        if template is None and tokenizer.chat_template is None:
            raise ConfigError('This tokenizer has no chat template; set PromptConfig.template to "alpaca".')
        self.tokenizer = tokenizer
        self.template = template
        self._asked: dict[tuple[Turn, ...], str] = {}
        self._probe()

    def _probe(self) -> None:
        question, padded = Turn("user", "Q"), f"\t{_PROBE}\t"
        before = self._text([question], opened=True)
        bare = self._text([question])
        earlier = self._text([question, Turn("assistant", padded), question])
        last = self._text([question, Turn("assistant", padded)])
        self.trims = padded not in last
        shown = _PROBE if self.trims else padded
        if shown not in last or shown not in earlier:
            raise ConfigError("The chat template does not show the assistant's words, so there is nothing to learn.")
        shape = earlier if earlier.startswith(before) else last
        self.lead = shape[len(before) : shape.index(shown)] if shape.startswith(before) else ""
        self.tail = last[last.index(shown) + len(shown) :]
        self.end_token = self._first_special(self.tail)
        self.end = self.tail[: self.tail.index(self.end_token) + len(self.end_token)]
        opener = before[len(bare) :] if before.startswith(bare) else ""
        bos = self.tokenizer.bos_token or ""
        self.opener = opener if opener.startswith(bos) or not before.startswith(bos) else bos + opener

    def exchanges(self, turns: Sequence[Turn]) -> Iterator[_Exchange]:
        so_far = ""
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = self._before(tuple(turns[:number])) if number else self.opener
            if not before.startswith(so_far):
                raise RefusedConversationError(
                    "The chat template rewrites earlier turns of a conversation, so its answers cannot be learned "
                    'together. Set turns: split or turns: first for this source, or template: "alpaca".'
                )
            answer = self.lead + (turn.text.strip() if self.trims else turn.text)
            yield _Exchange(before, answer + self.end)
            so_far = before + answer + self.tail

    def _before(self, turns: tuple[Turn, ...]) -> str:
        """The text up to an answer; that of one short question is kept, for captions all answer the same."""
        if len(turns) > 1 or len(turns[0].text) > 200:
            return self._text(turns, opened=True)
        if turns not in self._asked:
            if len(self._asked) >= 1024:
                self._asked.clear()
            self._asked[turns] = self._text(turns, opened=True)
        return self._asked[turns]

    def _text(self, turns: Sequence[Turn], opened: bool = False) -> str:
        messages = [
            {"role": turn.role, "content": f"{turn.text}\n\n{turn.context}" if turn.context else turn.text}
            for turn in turns
        ]
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=opened,
                is_conditioned=self.template is not None,  # as the processor says it
            )
        except TemplateError as error:
            roles = ", ".join(turn.role for turn in turns)
            raise RefusedConversationError(
                f"The chat template takes no conversation of the turns {roles}: {error}."
            ) from error

    def _first_special(self, tail: str) -> str:
        """The token that ends a turn: the first that is one whole entry of the vocabulary."""
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values()}
        known = sorted(added | set(self.tokenizer.all_special_tokens), key=len, reverse=True)
        places = [(tail.index(token), -len(token), token) for token in known if token and token in tail]
        if not places:
            raise ConfigError(
                f"The chat template ends an answer with {tail!r}, in which no special token is: the model would never "
                'learn to stop. Set PromptConfig.template to "alpaca".'
            )
        return min(places)[2]


def _is_chat_ml(tokenizer: PreTrainedTokenizerBase) -> bool:
    number = tokenizer.convert_tokens_to_ids("<|im_start|>")
    return number is not None and number != tokenizer.unk_token_id or "<|im_start|>" in tokenizer.all_special_tokens


def _without_marker(turn: Turn) -> Turn:
    return replace(turn, text=_MARKER.sub("", turn.text)) if "<image>" in turn.text else turn
