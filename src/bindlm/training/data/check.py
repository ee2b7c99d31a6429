"""What a data set holds: counts, faults, lengths, and how its samples read.

from bindlm.training.data.check import check_source

report = check_source(open_source(config), tokenizer, PromptConfig(max_tokens=96))
report.lengths.median, report.share_cut  # (31, 0.02)
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING, Any

from bindlm.training.data.fields import is_url
from bindlm.training.data.media import split_name
from bindlm.training.data.sample import Sample
from bindlm.training.data.sources import Source
from bindlm.training.render import RefusedConversationError, Rendered, render
from bindlm.training.stage_recipe import PromptConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_MEASURED = 10_000
"""Samples whose tokens are counted; of more, these many evenly spaced ones."""
NUM_SHOWN = 3
_NO_CUT = 1 << 20
_NAMED = 3
"""Missing media that are named."""


@dataclass(frozen=True)
class Lengths:
    """Tokens a sample, before any cut."""

    measured: int
    """Samples that were counted."""
    min: int
    median: float
    p95: int
    max: int


@dataclass(frozen=True)
class ShownSample:
    """One sample as the model reads it."""

    id: str
    media: str | None
    pieces: tuple[tuple[str, bool], ...]
    """Its text in order, each part with whether it is learned; what is not learned is masked from the loss."""


@dataclass
class DataReport:
    """What `check_source` found."""

    name: str
    format: str
    fingerprint: str
    samples: int = 0
    """Good ones, which training sees."""
    bad: int = 0
    """Rows that cannot be used."""
    bad_reasons: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    """Sound rows that are not wanted, by reason."""
    with_media: int = 0
    without_media: int = 0
    modalities: Counter[str] = field(default_factory=Counter)
    """Samples with media, by sense."""
    missing: int = 0
    """Samples whose medium is not on the disk."""
    missing_names: list[str] = field(default_factory=list)
    """The first three of those."""
    addresses: int = 0
    """Samples whose medium is an address on the web; they count as missing too."""
    duplicates: int = 0
    """Samples that are equal to an earlier one."""
    refused: int = 0
    """Measured samples that the chat template does not take."""
    token_lengths: list[int] = field(default_factory=list)
    """Of the measured samples, before any cut."""
    max_tokens: int = 0
    shown: list[ShownSample] = field(default_factory=list)

    @property
    def lengths(self) -> Lengths | None:
        """None where nothing could be measured."""
        ordered = sorted(self.token_lengths)
        if not ordered:
            return None
        p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
        return Lengths(len(ordered), ordered[0], median(ordered), p95, ordered[-1])

    @property
    def share_cut(self) -> float:
        """Of the measured samples, those longer than `max_tokens`."""
        return sum(length > self.max_tokens for length in self.token_lengths) / max(1, len(self.token_lengths))

    def to_dict(self) -> dict[str, Any]:
        """All but the single lengths, as JSON can hold it."""
        found = {name: value for name, value in vars(self).items() if name not in ("token_lengths", "shown")}
        shown = [
            {
                "id": each.id,
                "media": each.media,
                "pieces": [{"text": text, "learned": is_learned} for text, is_learned in each.pieces],
            }
            for each in self.shown
        ]
        lengths = None if self.lengths is None else vars(self.lengths)
        return {**found, "token_lengths": lengths, "share_cut": round(self.share_cut, 4), "examples": shown}


def check_source(
    source: Source,
    tokenizer: "PreTrainedTokenizerBase",
    prompt: PromptConfig,
    *,
    conditioned_template: str | None = None,
) -> DataReport:
    """Read a data set once and report what training would see of it.

    Args:
        source: Opened, not streamed.
        tokenizer: The language model's own.
        prompt: How samples become text.
        conditioned_template: Chat template of samples with a medium; None as in `render`.

    Raises:
        ConfigError: The tokenizer cannot render any sample.
    """
    report = DataReport(source.name, source.config.format, source.fingerprint, max_tokens=prompt.max_tokens)
    report.bad, report.bad_reasons = source.bad.count, dict(source.bad.reasons.most_common())
    report.left_out = dict(source.bad.left_out)
    _count(source, report)
    total = len(source)
    whole = replace(prompt, max_tokens=max(_NO_CUT, prompt.max_tokens))
    refusal: RefusedConversationError | None = None
    for sample in _spaced(source, MOST_MEASURED):
        try:
            rendered = _render(sample, tokenizer, whole, conditioned_template)
        except RefusedConversationError as error:
            refusal = refusal or error
            report.refused += 1
        else:
            report.token_lengths.append(len(rendered.input_ids))
    if refusal is not None and not report.token_lengths:
        raise refusal
    for number in dict.fromkeys((0, total // 2, total - 1)):
        try:
            report.shown.append(_show(source.sample(source.rows[number]), tokenizer, prompt, conditioned_template))
        except RefusedConversationError:
            continue
    return report


def pieces_of(rendered: Rendered, tokenizer: "PreTrainedTokenizerBase") -> tuple[tuple[str, bool], ...]:
    """The text of a rendered sample, part by part: is it learned, or masked from the loss?

    Example:
        >>> pieces_of(render(sample, tokenizer, prompt, is_conditioned=True), tokenizer)
        (('<|im_start|>user\\nWhat is this?<|im_end|>\\n<|im_start|>assistant\\n', False), ('A cat.<|im_end|>', True))
    """
    pieces: list[tuple[str, bool]] = []
    before = ""
    is_learned = [label >= 0 for label in rendered.labels]
    for end in range(1, len(is_learned) + 1):
        if end < len(is_learned) and is_learned[end] == is_learned[end - 1]:
            continue
        # From the start each time: decoded alone, a part would lose the space that SentencePiece begins it with.
        text = tokenizer.decode(rendered.input_ids[:end], clean_up_tokenization_spaces=False)
        pieces.append((text[len(before) :], is_learned[end - 1]))
        before = text
    return tuple(pieces)


def _count(source: Source, report: DataReport) -> None:
    seen: set[bytes] = set()
    present: dict[str, bool] = {}
    for sample in source:
        report.samples += 1
        digest = hashlib.blake2b(repr(replace(sample, id="")).encode(), digest_size=8).digest()
        report.duplicates += digest in seen
        seen.add(digest)
        if sample.media is None:
            report.without_media += 1
            continue
        report.with_media += 1
        report.modalities[sample.modality] += 1
        report.addresses += is_url(sample.media)
        place = split_name(sample.media)[0]  # a shard is looked up once
        if place not in present:
            present[place] = source.has_media(sample.media)
        if not present[place]:
            report.missing += 1
            if len(report.missing_names) < _NAMED:
                report.missing_names.append(sample.media)


def _spaced(source: Source, most: int) -> Iterator[Sample]:
    step = -(-len(source) // most)
    rows = source.rows if step == 1 else source.rows.select(range(0, len(source), step))
    return map(source.sample, islice(rows, most))


def _render(
    sample: Sample, tokenizer: "PreTrainedTokenizerBase", prompt: PromptConfig, template: str | None
) -> Rendered:
    is_conditioned = sample.media is not None
    return render(sample, tokenizer, prompt, is_conditioned=is_conditioned, conditioned_template=template)


def _show(
    sample: Sample, tokenizer: "PreTrainedTokenizerBase", prompt: PromptConfig, template: str | None
) -> ShownSample:
    rendered = _render(sample, tokenizer, prompt, template)
    return ShownSample(sample.id, sample.media, pieces_of(rendered, tokenizer))
