"""Mixtures of joint embeddings: several senses in one answer, and sums and differences of what they mean."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from bindlm.errors import ConfigError

_SHORTEST = 1e-4
"""A sum of unit vectors below this length has cancelled out: what is left is rounding, not a direction."""


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
    weights = _checked_weights(weighted)
    total = sum(weights)
    if any(not weight >= 0 for weight in weights) or not 0 < total < float("inf"):
        raise ConfigError(f"Weights must be at least 0 and sum to more than 0, got {weights}.")
    scale = total + eps if form is MixForm.RELEASED else 1.0
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


def _unit(mixed: Tensor, weights: Sequence[float]) -> Tensor:
    lengths = mixed.norm(dim=-1, keepdim=True)
    if not bool((lengths > _SHORTEST * sum(map(abs, weights))).all()):
        raise ConfigError(
            f"The embeddings cancel out under weights {list(weights)}: nothing is left to give a direction; change "
            "a weight."
        )
    return mixed / lengths
