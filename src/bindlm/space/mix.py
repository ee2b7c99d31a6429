"""Mixtures of joint embeddings: several senses in one answer, and sums and differences of what they mean."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from bindlm.errors import ConfigError

_SHORTEST = 1e-4
"""A sum of unit vectors below this length has cancelled out: what is left is rounding, not a direction."""


TURNS = "turns"
"""In place of a `MixForm` where a model is asked: unlike inputs are told one after the other, see `take_turns`."""

ALIKE = 0.5
"""Cosine, after the visual cache, from which inputs are one thing. With the mini about 80 % of pairs of photographs of
one object reach it, of photographs of different kinds of object fewer than 1 %."""

LEAST = 0.1
"""Of the weightiest turn's weight: below it an input has no turn of its own."""


class MixForm(StrEnum):
    """What becomes of the weights of a mixture."""

    RELEASED = "released"
    """Release: divided by their sum plus 1e-6, so that a mixture is never longer than 1."""
    PAPER = "paper"
    """Paper: "a set of coefficients", taken as they are. Weights that sum to 1 give what the release gives."""


def mix_embeddings(
    weighted: Sequence[tuple[Tensor, float]],
    *,
    form: MixForm | str = MixForm.RELEASED,
    normalize: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    """Weighted mixture of joint embeddings.

    Each embedding is L2-normalised again before it is weighed. The sum is **not** normalised in either form, so a
    mixture of unlike things is shorter than 1; `normalize` is for those who compare mixtures, as a search does.

    Source: ImageBind-LLM (arXiv 2309.03905), section 3.2; its release by default, the printed form by `form`.

    Args:
        weighted: pairs of `(B, D_joint)` and a weight of at least 0. Several inputs of one sense are several pairs;
            `share_weights` divides a sense's weight among them.
        form: what becomes of the weights.
        normalize: whether rows of the result are brought to unit length.
        eps: the release's 1e-6; the paper's form has none.

    Returns:
        `(B, D_joint)`.

    Raises:
        ConfigError: nothing to mix, unequal shapes, a negative weight, weights that sum to 0, or, with `normalize`,
            embeddings that cancel out.
    """
    form = _mix_form(form)
    weights = _checked_shares(weighted)
    scale = sum(weights) + eps if form is MixForm.RELEASED else 1.0
    mixed = torch.zeros_like(weighted[0][0])
    for embedding, weight in weighted:
        mixed = mixed + weight / scale * F.normalize(embedding, dim=-1)
    return _unit(mixed, weights) if normalize else mixed


def arithmetic(weighted: Sequence[tuple[Tensor, float]], *, normalize: bool = True) -> Tensor:
    """Sum and difference of meanings: `arithmetic([(street, 1.0), (rain, 1.0), (car, -0.5)])`.

    Source: ImageBind (arXiv 2305.05665), section 4.3, adds unit embeddings; negative weights are its mirror image.

    Args:
        weighted: pairs of `(B, D_joint)`, brought to unit length first, and any finite weight but 0 throughout.
        normalize: whether rows of the result have unit length, as what they are searched among.

    Returns:
        `(B, D_joint)`.

    Raises:
        ConfigError: nothing to add, unequal shapes, a weight that is not finite, only zeros, or, with `normalize`,
            embeddings that cancel out.
    """
    weights = _checked_weights(weighted)
    if not all(abs(weight) < float("inf") for weight in weights) or not any(weights):
        raise ConfigError(f"Weights must be finite and not all 0, got {weights}.")
    result = torch.zeros_like(weighted[0][0])
    for embedding, weight in weighted:
        result = result + weight * F.normalize(embedding, dim=-1)
    return _unit(result, weights) if normalize else result


def take_turns(
    weighted: Sequence[tuple[Tensor, float]],
    *,
    compared: Sequence[Tensor] | None = None,
    alike: float = ALIKE,
    least: float = LEAST,
) -> list[list[tuple[Tensor, float]]]:
    """Which inputs are told together and which one after the other: one mixture for each turn of an answer.

    One vector cannot say two things: between two unlike inputs a model that names one thing flips from one name to
    the other, and no weight gives both (`docs/mixing.md`). So like inputs are mixed, unlike ones take turns.

    - An input joins the turn whose weightiest input it resembles, or opens one.
    - The weightiest turn comes first, where a turn weighs what its inputs weigh together.
    - A turn that weighs less than `least` of the first has none of its own: its inputs are mixed into the first.
    - A weight of 0 leaves an input out. Where there is one turn, it is the whole mixture, weights as given.

    Args:
        weighted: pairs of `(1, D_joint)` and a weight of at least 0.
        compared: `(1, D_joint)` each, compared in place of the embeddings, such as what the visual cache makes of
            them: photographs of one thing then have a cosine of about 0.7, as they come one of about 0.4.
        alike: cosine from which two inputs are one thing.
        least: share of the first turn's weight below which there is no turn, 0 to 1. At 0.1 two inputs take turns
            where the lighter one has at least 1/11 of the whole.

    Returns:
        Turns, weightiest first, each for `mix_embeddings`; the weights of each sum to 1 where there are several.

    Raises:
        ConfigError: as `mix_embeddings`; more than one row; or another number of `compared`.
    """
    weights = _checked_shares(weighted)
    compared = [embedding for embedding, _ in weighted] if compared is None else list(compared)
    if len(compared) != len(weighted) or len(weighted[0][0]) != 1:
        raise ConfigError(
            f"take_turns plans one answer, got {len(compared)} embeddings to compare for {len(weighted)} inputs of "
            f"{len(weighted[0][0])} rows; expected as many, of one row."
        )
    directions = F.normalize(torch.cat(compared), dim=-1)
    cosines = (directions @ directions.T).tolist()
    turns: list[list[int]] = []  # numbers of inputs, the weightiest of a turn first
    for number in sorted((n for n, weight in enumerate(weights) if weight > 0), key=lambda n: -weights[n]):
        joined = next((turn for turn in turns if cosines[turn[0]][number] >= alike), None)
        if joined is None:
            turns.append([number])
        else:
            joined.append(number)
    totals = {turn[0]: sum(weights[number] for number in turn) for turn in turns}
    turns.sort(key=lambda turn: -totals[turn[0]])
    first = turns[0]
    told = [turn for turn in turns if totals[turn[0]] >= least * totals[first[0]]]
    if len(told) == 1:
        return [list(weighted)]
    told[0] = first + [number for turn in turns if turn not in told for number in turn]
    return [_rescaled([weighted[number] for number in sorted(turn)]) for turn in told]


def _rescaled(weighted: Sequence[tuple[Tensor, float]]) -> list[tuple[Tensor, float]]:
    """Weights that sum to 1: an input alone is then exactly what it is without the others."""
    total = sum(weight for _, weight in weighted)
    return [(embedding, weight / total) for embedding, weight in weighted]


def share_weights(counts: Mapping[str, int], weights: Mapping[str, float] | None = None) -> dict[str, list[float]]:
    """Weights of single inputs, where weights are given by sense.

    Args:
        counts: sense -> how many inputs of it there are, at least 1 each.
        weights: sense -> its share of the mixture; a sense without one has 1.

    Returns:
        Sense -> one weight for each of its inputs, which share what the sense has equally.

    Raises:
        ConfigError: a weight for a sense of which nothing is given.

    Example:
        >>> share_weights({"image": 2, "audio": 1}, {"image": 0.6})
        {'image': [0.3, 0.3], 'audio': [1.0]}
    """
    given = {sense: count for sense, count in counts.items() if count > 0}
    if unknown := sorted(set(weights or {}) - set(given)):
        what = ", ".join(given) or "nothing"
        raise ConfigError(f"weights names {', '.join(unknown)}, but only {what} was given.")
    return {sense: [float((weights or {}).get(sense, 1.0)) / count] * count for sense, count in given.items()}


def _mix_form(form: MixForm | str) -> MixForm:
    if form == TURNS:
        raise ConfigError(
            "Turns are several mixtures, not one: take_turns() plans them, and ask(mix='turns') uses it."
        )
    if form not in list(MixForm):
        raise ConfigError(f"form must be one of {', '.join(MixForm)}, got {form!r}.")
    return MixForm(form)


def _checked_weights(weighted: Sequence[tuple[Tensor, float]]) -> list[float]:
    """The weights alone, once the embeddings are known to fit together."""
    if not weighted:
        raise ConfigError("There is nothing to mix: give at least one (embedding, weight).")
    shapes = {tuple(embedding.shape) for embedding, _ in weighted}
    if len(shapes) > 1:
        raise ConfigError(f"Embeddings of one mixture must have one shape, got {sorted(shapes)}.")
    return [float(weight) for _, weight in weighted]


def _checked_shares(weighted: Sequence[tuple[Tensor, float]]) -> list[float]:
    """The weights of a mixture: none negative, not all 0."""
    weights = _checked_weights(weighted)
    if any(not weight >= 0 for weight in weights) or not 0 < sum(weights) < float("inf"):
        raise ConfigError(f"Weights must be at least 0 and sum to more than 0, got {weights}.")
    return weights


def _unit(mixed: Tensor, weights: Sequence[float]) -> Tensor:
    lengths = mixed.norm(dim=-1, keepdim=True)
    if not bool((lengths > _SHORTEST * sum(map(abs, weights))).all()):
        raise ConfigError(
            f"The embeddings cancel out under weights {list(weights)}: nothing is left to give a direction; change "
            "a weight."
        )
    return mixed / lengths
