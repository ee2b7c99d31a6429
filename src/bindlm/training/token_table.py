"""A source's samples as tokens, made once and then memory-mapped."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from bindlm.checkpoints.locks import locked
from bindlm.errors import ConfigError
from bindlm.training.data.sample import Sample
from bindlm.training.render import IGNORED, Places, RefusedConversationError, Rendered, Renderer, renderer
from bindlm.training.stage_recipe import PromptConfig, SourceConfig

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

__all__ = ["OpenedSource", "TokenTable", "render_alternatives", "tokenize_source"]

_VERSION = "1"
"""Goes up when `render` makes other tokens of the same sample."""
_ROWS_A_CHUNK = 10_000


class OpenedSource(Protocol):
    """What is needed of `bindlm.training.data.sources.Source`."""

    name: str
    config: SourceConfig
    rows: Any
    fingerprint: str

    def sample(self, row: Any) -> Sample: ...


class TokenTable:
    """Tokens of a source: a row for each sample, or for each of a sample's captions, which then stand together.

    Args:
        dataset: columns `input_ids`, `is_target`, `sample` and `media`.
        num_rows: rows of the source.
    """

    def __init__(self, dataset: "Dataset", num_rows: int) -> None:
        self.dataset = dataset
        self._ragged: dict[str, _Ragged] = {}
        numbers = _flat(dataset.data.column("sample"))
        self._first = np.flatnonzero(np.diff(numbers, prepend=-1)).astype(_fitting(len(numbers)))
        self._row_lengths = self._column("input_ids").lengths().astype(np.int32)
        self.num_dropped = num_rows - len(self._first)
        """Samples with no token to learn."""

    def __len__(self) -> int:
        """Samples that can be learned from."""
        return len(self._first)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ragged": {}}  # a worker maps the file again, rather than being sent it

    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each sample, `(N,)`; the mean where it has several captions."""
        if not len(self._first):
            return np.zeros(0, np.int32)
        counts = self.num_alternatives(np.arange(len(self)))
        totals = np.add.reduceat(self._row_lengths, self._first, dtype=np.int64)
        return np.rint(totals / counts).astype(np.int32)

    def num_alternatives(self, samples: NDArray[np.integer]) -> NDArray[np.int64]:
        """How many captions each of these has, `(B,)`; 1 for a conversation."""
        ends = np.append(self._first, len(self._row_lengths))
        return (ends[samples + 1] - ends[samples]).astype(np.int64)

    def tokens(self, sample: int, alternative: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """`input_ids` and `is_target`, `(T,)` each, of one alternative of a sample."""
        row = int(self._first[sample]) + alternative
        return self._column("input_ids")[row], self._column("is_target")[row].view(np.bool_)

    def media(self) -> Iterator[list[str | None]]:
        """The media of all samples, in pieces."""
        numbers, media = self.dataset.data.column("sample"), self.dataset.data.column("media")
        last = -1
        for number, medium in zip(numbers.chunks, media.chunks, strict=True):
            values = number.to_numpy()
            is_first = np.diff(values, prepend=last) != 0
            last = int(values[-1]) if len(values) else last
            yield medium.filter(_as_arrow(is_first)).to_pylist()

    def _column(self, name: str) -> "_Ragged":
        if name not in self._ragged:
            self._ragged[name] = _Ragged(self.dataset.data.column(name))
        return self._ragged[name]


class _Ragged:
    """Rows of a column of lists as views of the file; `datasets` would take 200 µs for each."""

    def __init__(self, column: "pa.ChunkedArray") -> None:
        self._chunks = column.chunks
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self._chunks)])
        self._views: dict[int, tuple[NDArray[np.int32], NDArray[Any]]] = {}

    def __getitem__(self, row: int) -> NDArray[Any]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        if number not in self._views:
            self._views[number] = self._view(number)
        offsets, values = self._views[number]
        place = row - self._starts[number]
        return values[offsets[place] : offsets[place + 1]]

    def lengths(self) -> NDArray[np.integer]:
        parts = [np.diff(chunk.offsets.to_numpy()) for chunk in self._chunks]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def _view(self, number: int) -> tuple[NDArray[np.int32], NDArray[Any]]:
        chunk = self._chunks[number]
        return chunk.offsets.to_numpy(), chunk.values.to_numpy(zero_copy_only=True)


def render_alternatives(maker: Renderer, samples: Sequence[Sample]) -> tuple[list[list[Rendered]], str | None]:
    """Each sample's captions, or its conversation, as tokens; what has nothing to learn is left out.

    Returns:
        One list for each sample, empty where nothing is left; and why the chat template took none, if it did so.
    """
    wanted = [(sample, caption) for sample in samples for caption in range(max(1, len(sample.captions)))]
    refusal: str | None = None
    rendered: list[Rendered | None]
    try:
        rendered = list(maker.render(wanted))
    except RefusedConversationError:  # one of a thousand: the others are not to suffer
        rendered = []
        for pair in wanted:
            try:
                rendered += maker.render([pair])
            except RefusedConversationError as error:
                refusal = str(error)
                rendered.append(None)
    each = iter(rendered)
    found = [[next(each) for _ in range(max(1, len(sample.captions)))] for sample in samples]
    return [[one for one in alternatives if one is not None and one.num_targets] for alternatives in found], refusal


def tokenize_source(
    source: OpenedSource,
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptConfig,
    *,
    conditioned_template: str | None = None,
    places: Places | None = None,
    cache: Path | None = None,
) -> TokenTable:
    """All samples of a source as tokens.

    Args:
        source: opened, not streaming.
        tokenizer: the language model's own.
        prompt: how samples become text.
        conditioned_template, places: as for `render`.
        cache: folder where the table is kept, and found again by all that it depends on; None for memory.

    Raises:
        ConfigError: no sample has anything to learn, or the chat template takes hardly any.
    """
    key = _fingerprint(source, tokenizer, prompt, conditioned_template, places)
    if cache is None:
        return _checked(source, *_map(source, tokenizer, prompt, conditioned_template, places, key, None))
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"tokens-{key}.arrow"
    with locked(f"tokens-{key}", f"tokenizing {source.name}"):
        dataset, refusals = _map(source, tokenizer, prompt, conditioned_template, places, key, file)
        try:
            return _checked(source, dataset, refusals)
        except ConfigError:
            file.unlink(missing_ok=True)  # or the next run would not know why
            raise


def _map(
    source: OpenedSource,
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptConfig,
    template: str | None,
    places: Places | None,
    key: str,
    file: Path | None,
) -> tuple["Dataset", list[str]]:
    from datasets import Features, List, Value

    refusals: list[str] = []

    def tokenize(rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        samples = [source.sample(dict(zip(rows, values, strict=True))) for values in zip(*rows.values(), strict=True)]
        found: dict[str, list[Any]] = {"input_ids": [], "is_target": [], "sample": [], "media": []}
        for is_conditioned in (False, True):
            chosen = [at for at, each in enumerate(samples) if is_conditioned_sample(each, prompt) == is_conditioned]
            maker = renderer(
                tokenizer, prompt, is_conditioned=is_conditioned, conditioned_template=template, places=places
            )
            alternatives, refusal = render_alternatives(maker, [samples[at] for at in chosen])
            refusals.extend([refusal] if refusal else [])
            for at, each in zip(chosen, alternatives, strict=True):
                for one in each:
                    found["input_ids"].append(one.input_ids)
                    found["is_target"].append([label != IGNORED for label in one.labels])
                    found["sample"].append(numbers[at])
                    found["media"].append(samples[at].media)
        order = np.argsort(found["sample"], kind="stable").tolist()
        return {name: [values[at] for at in order] for name, values in found.items()}

    features = Features(
        {
            "input_ids": List(Value("int32")),
            "is_target": List(Value("uint8")),
            "sample": Value("int64"),
            "media": Value("string"),
        }
    )
    dataset = source.rows.map(
        tokenize,
        batched=True,
        with_indices=True,
        remove_columns=source.rows.column_names,
        features=features,
        cache_file_name=str(file) if file else None,
        keep_in_memory=file is None,
        load_from_cache_file=file is not None,
        writer_batch_size=_ROWS_A_CHUNK,
        new_fingerprint=key,
        desc=f"tokenizing {source.name}",
    )
    return dataset, refusals


def is_conditioned_sample(sample: Sample, prompt: PromptConfig) -> bool:
    """Whether a joint embedding goes in with it."""
    return sample.media is not None or prompt.zero_image_for_text


def _checked(source: OpenedSource, dataset: "Dataset", refusals: list[str]) -> TokenTable:
    table = TokenTable(dataset, len(source.rows))
    if refusals and table.num_dropped > len(table):
        raise ConfigError(f"{table.num_dropped} of {len(source.rows)} samples of {source.name}: {refusals[0]}")
    if not len(table):
        raise ConfigError(
            f"None of the {len(source.rows)} samples of {source.name} has a token to learn: is PromptConfig.max_tokens"
            " too small for its questions?"
        )
    return table


def _fingerprint(
    source: OpenedSource,
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptConfig,
    template: str | None,
    places: Places | None,
) -> str:
    """Of all that the tokens depend on."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    parts = (_VERSION, source.fingerprint, words, tokenizer.chat_template, tokenizer.special_tokens_map)
    return hashlib.sha256(
        repr((*parts, *(places or ()), prompt, template)).encode("utf-8", "surrogateescape")
    ).hexdigest()[:32]


def _fitting(count: int) -> type[np.integer]:
    return np.int32 if count < 2**31 else np.int64


def _flat(column: "pa.ChunkedArray") -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *(chunk.to_numpy() for chunk in column.chunks)])


def _as_arrow(mask: NDArray[np.bool_]) -> "pa.Array":
    import pyarrow as pa

    return pa.array(mask)
