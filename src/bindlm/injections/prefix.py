"""Prefix injection: soft tokens that take the place of placeholders in the prompt.

PandaGPT (arXiv 2305.16355) has one soft token for a sample, LLaVA (arXiv 2304.08485) 256 or 576 for a picture. They
have positions, attend and are attended to, and lie in the key-value cache like words.

A text holds one placeholder id for each soft token, so lengths, labels, masks and position ids are right from the
start; `expand_placeholders` makes N of one. The `condition` of a call has a row for each row of the text, its soft
tokens in reading order, whatever medium they are of; `stack_media` makes it from media.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bindlm.errors import ConfigError
from bindlm.injections.base import Injection, InjectionHook, check_is_free

__all__ = ["IGNORED_LABEL", "PrefixConfig", "PrefixInjection", "expand_placeholders", "stack_media"]

IGNORED_LABEL = -100
"""What transformers takes no loss for."""
_USED = "_bindlm_soft_tokens"
"""Kept on a key-value cache, whose text it belongs to: how many soft tokens of each row it holds, `(B,)`."""


@dataclass
class PrefixConfig:
    """What a soft token stands for in the text."""

    placeholder_id: int
    """Token id whose embedding is replaced; best one that text never has. It need not be in the vocabulary."""
    hidden_dim: int
    """Width of the language model, D_lm."""
    num_tokens: int = 1
    """Soft tokens, and so placeholders, for each medium."""

    def __post_init__(self) -> None:
        for field in ("hidden_dim", "num_tokens"):
            if not isinstance(getattr(self, field), int) or getattr(self, field) < 1:
                raise ConfigError(f"PrefixConfig.{field} must be a number from 1 up, got {getattr(self, field)!r}.")

    def build(self) -> "PrefixInjection":
        """The injection, which has no weights of its own."""
        return PrefixInjection(self)

    @property
    def num_parameters(self) -> int:
        """None: all that is learned is in the bridge."""
        return 0


class PrefixInjection(Injection):
    """Puts soft tokens where a text has placeholders.

    Example:
        >>> injection = PrefixConfig(placeholder_id=0, hidden_dim=4096).build()
        >>> injection.attach_to(language_model)
        >>> language_model(input_ids, condition=bridge(joint_embedding)).logits
    """

    condition_tokens = None

    def __init__(self, config: PrefixConfig) -> None:
        super().__init__()
        self.config = config
        self.placeholder_id = config.placeholder_id
        self._handles: list[RemovableHandle] = []

    @property
    def is_attached(self) -> bool:
        """Whether the hook is on a language model now."""
        return bool(self._handles)

    def attach_to(self, language_model: nn.Module) -> None:
        """Hook the decoder of a transformers causal language model; its `forward` then takes the keyword `condition`.

        A condition is `(B, S, D_lm)`: row b's soft tokens in reading order, as many as the row with most has, zeros
        behind the others. One row serves all. Soft tokens are not scaled where a model scales its words (Gemma). A
        call without `condition` runs as it always did, placeholders and all.

        With a key-value cache a later piece may bring further placeholders; its condition then has all soft tokens of
        the text so far. A piece without placeholders, as each generated word is, runs whatever the condition.

        Raises:
            ConfigError: this injection is attached already, the language model has another, or has another width.
        """
        if self._handles:
            raise ConfigError("This injection is attached already; call detach() first.")
        decoder = getattr(language_model, "get_decoder", lambda: language_model)() or language_model
        check_is_free(decoder)
        for layer in getattr(decoder, "layers", []):
            check_is_free(layer)
        width = language_model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
        if width != self.config.hidden_dim:
            raise ConfigError(f"Soft tokens of width {self.config.hidden_dim} do not fit a model of width {width}.")
        self._handles.append(decoder.register_forward_pre_hook(_DecoderHook(self), with_kwargs=True))

    def detach(self) -> None:
        """Take the hook off; the language model is then exactly what it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def embed(
        self,
        embedding: nn.Module,
        input_ids: Tensor,
        condition: Tensor,
        attention_mask: Tensor | None = None,
        past: Any = None,
    ) -> Tensor:
        """Embeddings of a text `(B, T)` with its soft tokens in place, `(B, T, D_lm)`.

        Args:
            embedding: the language model's own.
            condition: as `attach_to` takes it.
            attention_mask: `(B, T)` or longer at the front, 0 where there is padding, which holds no placeholders.
            past: the key-value cache of what stands before this text, if there is one.

        Raises:
            ConfigError: there are not as many placeholders as soft tokens, or the shapes do not fit.
        """
        condition = self._checked(condition, len(input_ids))
        is_soft = input_ids == self.config.placeholder_id  # (B, T)
        if attention_mask is not None and attention_mask.ndim == 2:
            is_soft = is_soft & attention_mask[:, -input_ids.shape[1] :].bool()
        used = self._used_before(past, is_soft)  # (B,)
        order = is_soft.cumsum(dim=1) + used[:, None]  # (B, T), 1 for the first
        is_first = past is None or bool(past.get_seq_length() == 0)
        if not torch.compiler.is_compiling() and (is_first or bool(is_soft.any())):
            _check_counts(order[:, -1], condition, self.config.placeholder_id)
        if past is not None:
            setattr(past, _USED, order[:, -1])
        words = embedding(input_ids.masked_fill(is_soft, 0))  # (B, T, D_lm)
        index = (order - 1).clamp(0, condition.shape[1] - 1).unsqueeze(-1).expand(-1, -1, condition.shape[-1])
        soft = condition.to(words).gather(1, index)  # (B, T, D_lm)
        return torch.where(is_soft.unsqueeze(-1), soft, words)

    def _checked(self, condition: Tensor, num_rows: int) -> Tensor:
        width = self.config.hidden_dim
        fits = condition.ndim == 3 and condition.shape[-1] == width and condition.shape[1] > 0
        if not fits or len(condition) not in (1, num_rows):
            raise ConfigError(
                f"The condition of {num_rows} rows of text must be ({num_rows}, S, {width}), or (1, S, {width}) for "
                f"all of them, got {tuple(condition.shape)}. Where rows have several media, see stack_media()."
            )
        return condition.expand(num_rows, -1, -1)

    def _used_before(self, past: Any, is_soft: Tensor) -> Tensor:
        """Soft tokens that each row's cache holds already."""
        used = getattr(past, _USED, None)
        if used is not None and len(used) == len(is_soft):
            return used.to(is_soft.device)
        if past is not None and bool(past.get_seq_length() > 0) and bool(is_soft.any()):
            raise ConfigError(
                "There are placeholders in this piece of text, and nothing says how many came before it: give the "
                "first piece a key-value cache of your own too, or the whole prompt at once."
            )
        return is_soft.new_zeros(len(is_soft), dtype=torch.long)


def _check_counts(found: Tensor, condition: Tensor, placeholder_id: int) -> None:
    """See that each row has as many placeholders, `found` `(B,)`, as soft tokens, of which none is all zeros.

    A picture without a placeholder would be ignored, and nothing would say so.
    """
    numbers = torch.arange(1, condition.shape[1] + 1, device=condition.device)
    given = (condition.detach().ne(0).any(dim=-1) * numbers).amax(dim=1)  # (B,), the last that is not zero
    if bool((found != given).any()):
        raise ConfigError(
            f"The rows of text have {found.tolist()} placeholders (id {placeholder_id}) and soft tokens for "
            f"{given.tolist()}: put one placeholder for each soft token, all in the first piece of a prompt; see "
            "expand_placeholders()."
        )


class _DecoderHook(InjectionHook):
    """Gives the decoder embeddings in place of ids."""

    def __init__(self, injection: PrefixInjection) -> None:
        self.injection = injection

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        condition = kwargs.pop("condition", None)
        if condition is None:
            return None
        input_ids = args[0] if args else kwargs.get("input_ids")
        if input_ids is None:
            raise ConfigError(
                "Soft tokens take the place of placeholders among input_ids: give those, not embeddings."
            )
        kwargs["inputs_embeds"] = self.injection.embed(
            layer.get_input_embeddings(),  # type: ignore[operator]
            input_ids,
            condition,
            kwargs.get("attention_mask"),
            kwargs.get("past_key_values"),
        )
        if args:
            return (None, *args[1:]), kwargs
        kwargs["input_ids"] = None
        return args, kwargs


def stack_media(soft_tokens: Sequence[Sequence[Tensor]]) -> Tensor:
    """A condition from the media of each row of text, in reading order.

    Args:
        soft_tokens: by row, by medium: `(N, D_lm)`. Rows may have none, and media unlike N.

    Returns:
        `(B, S, D_lm)`, S that of the row with most, zeros behind the others.

    Raises:
        ConfigError: no row has media.
    """
    given = [medium for row in soft_tokens for medium in row]
    if not given:
        raise ConfigError("No row has media: leave the condition out.")
    empty = given[0].new_zeros(0, given[0].shape[-1])
    return nn.utils.rnn.pad_sequence([torch.cat([empty, *row]) for row in soft_tokens], batch_first=True)


def expand_placeholders(
    input_ids: Tensor,
    *,
    placeholder_id: int,
    counts: int | Sequence[Sequence[int]],
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    pad_id: int = 0,
    padding_side: str = "left",
) -> dict[str, Tensor]:
    """Make N placeholders of each, in a padded batch whose rows then have new lengths.

    Args:
        input_ids: `(B, T)`.
        placeholder_id: stands once for each medium.
        counts: soft tokens of each medium: one number for all, or by row, in reading order.
        attention_mask: `(B, T)`, 1 where there is a token; None where there is no padding.
        labels: `(B, T)`; placeholders and the first token of a row get none.
        pad_id: id in the padding.
        padding_side: "left" or "right", of the result.

    Returns:
        `input_ids`, `attention_mask` and, if given, `labels`, `(B, T')`.

    Raises:
        ConfigError: a row has another number of placeholders than `counts` has for it.
    """
    if padding_side not in ("left", "right"):
        raise ConfigError(f'padding_side must be "left" or "right", got {padding_side!r}.')
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    rows: dict[str, list[Tensor]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for number, (ids, is_token) in enumerate(zip(input_ids, mask.bool(), strict=True)):
        ids = ids[is_token]
        is_soft = ids == placeholder_id
        repeats = _repeats(is_soft, counts if isinstance(counts, int) else counts[number], number)
        rows["input_ids"].append(ids.repeat_interleave(repeats))
        rows["attention_mask"].append(mask.new_ones(len(rows["input_ids"][-1])))
        if labels is not None:
            kept = labels[number][is_token].masked_fill(is_soft, IGNORED_LABEL)
            kept[:1] = IGNORED_LABEL  # nothing comes before it; padding on the left would be taken for that
            rows["labels"].append(kept.repeat_interleave(repeats))
    fills = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORED_LABEL}
    return {
        name: nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=fills[name], padding_side=padding_side)
        for name, values in rows.items()
        if values
    }


def _repeats(is_soft: Tensor, counts: int | Sequence[int], number: int) -> Tensor:
    """How often each token of a row is to stand: `(T,)`."""
    found = int(is_soft.sum())
    wanted = [counts] * found if isinstance(counts, int) else list(counts)
    if len(wanted) != found:
        raise ConfigError(f"Row {number} has {found} placeholders, but {len(wanted)} media.")
    repeats = torch.ones_like(is_soft, dtype=torch.long)
    repeats[is_soft] = torch.tensor(wanted, dtype=torch.long, device=is_soft.device)
    return repeats
