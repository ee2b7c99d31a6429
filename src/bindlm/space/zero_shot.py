"""Zero-shot classification: the nearest of some words, for anything that shares a joint space with text."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from bindlm.errors import ConfigError

DEFAULT_TEMPLATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "image": ("a photo of a {}.",),
        "video": ("a video of a {}.",),
        "audio": ("a sound of {}.",),
        "point": ("a 3D model of a {}.",),
        "depth": ("a depth image of a {}.",),
        "thermal": ("a thermal image of a {}.",),
        "imu": ("a person moving: {}.",),
        "text": ("{}",),
    }
)
"""Sense -> the sentence that a label is put into where none is given."""

TEMPLATE_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "plain": ("{}",),
        "photos": (
            "a photo of a {}.",
            "a close-up photo of a {}.",
            "a bright photo of the {}.",
            "a dark photo of the {}.",
            "a blurry photo of a {}.",
            "a drawing of a {}.",
            "a photo of many {}.",
        ),
        "sounds": (
            "a sound of {}.",
            "the sound of a {}.",
            "a recording of {}.",
            "{} can be heard.",
            "a noisy recording of {}.",
        ),
        "objects": (
            "a 3D model of a {}.",
            "a point cloud of a {}.",
            "a rendering of a {}.",
            "a depth map of a {}.",
            "the shape of a {}.",
        ),
    }
)
"""Sets by name. Several sentences a label, averaged, make up for the odd wording of one (CLIP, arXiv 2103.00020,
section 3.1.4). The wording is ours; published figures need the published list, given as templates."""

_PROMPTS_AT_ONCE = 1024
"""Bounds the prompts held before they are averaged: at width 1024 these take 4 MB."""


def templates_for(modality: str, templates: str | Sequence[str] | None = None) -> tuple[str, ...]:
    """The templates to use for a sense: its default, a named set, or those given.

    Args:
        modality: the sense that is classified.
        templates: None, the name of a set in `TEMPLATE_SETS`, one template, or several.

    Raises:
        ConfigError: no set has that name, or a template does not hold `{}` exactly once.
    """
    if templates is None:
        return DEFAULT_TEMPLATES.get(modality, ("{}",))
    if isinstance(templates, str):
        templates = TEMPLATE_SETS.get(templates, (templates,))
    if not templates:
        raise ConfigError("templates is empty; give at least one sentence with {} in it.")
    for template in templates:
        if template.count("{}") != 1:
            raise ConfigError(
                f"A template holds {{}} once, where the label goes, got {template!r}; named sets are "
                f"{', '.join(TEMPLATE_SETS)}."
            )
    return tuple(templates)


def class_embeddings(
    encode_text: Callable[[list[str]], Tensor], labels: Sequence[str], templates: Sequence[str] = ("{}",)
) -> Tensor:
    """One direction for each label: the mean over its prompts.

    Source: CLIP (arXiv 2103.00020), section 3.1.4; ImageBind and Point-Bind follow it.

    Args:
        encode_text: prompts -> `(P, D_joint)`, of any length.
        labels: C different names.
        templates: sentences that hold `{}` once.

    Returns:
        `(C, D_joint)`, fp32, unit length: each prompt is brought to unit length, then the mean of a label's prompts.

    Raises:
        ConfigError: no labels, an empty one, one given twice, or a bad template.
    """
    check_labels(labels)
    templates = templates_for("text", tuple(templates))
    step = max(1, _PROMPTS_AT_ONCE // len(templates))
    rows = []
    for start in range(0, len(labels), step):
        group = labels[start : start + step]
        # replace, not format: a label may hold braces of its own
        prompts = [template.replace("{}", label) for label in group for template in templates]
        encoded = F.normalize(encode_text(prompts).float(), dim=-1)  # (C' * T, D_joint)
        rows.append(F.normalize(encoded.view(len(group), len(templates), -1).mean(dim=1), dim=-1))  # (C', D_joint)
    return torch.cat(rows)


def check_labels(labels: Sequence[str]) -> None:
    """Refuse labels among which nothing can be chosen.

    Raises:
        ConfigError: none, an empty one, or one given twice.
    """
    if isinstance(labels, str) or not labels:
        raise ConfigError(f"labels must be a list of at least one name, got {labels!r}.")
    if not all(isinstance(label, str) and label.strip() for label in labels):
        raise ConfigError("labels holds an empty name; leave it out.")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if list(labels).count(label) > 1)
        raise ConfigError(f"labels holds {twice!r} twice; give each name once.")


def classify(
    embeddings: Tensor, class_embeddings: Tensor, *, logit_scale: float = 100.0, top_k: int = 5
) -> tuple[Tensor, Tensor]:
    """The likeliest classes of each row.

    Args:
        embeddings: `(B, D_joint)`, unit length.
        class_embeddings: `(C, D_joint)`, unit length.
        logit_scale: factor on the cosines before the softmax over all C; 100 is what CLIP's is clipped at. It sets
            how sure the numbers look, never their order.
        top_k: how many classes to give; of fewer, all.

    Returns:
        Probabilities `(B, K)`, falling, and class numbers `(B, K)`; of equally likely ones the lowest first.

    Raises:
        ConfigError: shapes that do not fit, or an impossible setting.
    """
    if embeddings.ndim != 2 or class_embeddings.ndim != 2 or embeddings.shape[1] != class_embeddings.shape[1]:
        raise ConfigError(
            f"embeddings (B, D) and class_embeddings (C, D) must share a width, got {tuple(embeddings.shape)} and "
            f"{tuple(class_embeddings.shape)}."
        )
    if len(class_embeddings) == 0:
        raise ConfigError("class_embeddings has no rows; give at least one class.")
    if not 0 < logit_scale < math.inf:
        raise ConfigError(f"logit_scale must be above 0 and finite, got {logit_scale}.")
    if top_k < 1:
        raise ConfigError(f"top_k must be at least 1, got {top_k}.")
    logits = logit_scale * (embeddings.float() @ class_embeddings.float().T)  # (B, C)
    probabilities, classes = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    return probabilities[:, :top_k], classes[:, :top_k]
