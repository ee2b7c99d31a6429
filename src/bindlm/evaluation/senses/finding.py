"""Do media find the pictures of their names, and pictures the media?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bindlm.binding.evaluate import retrieval
from bindlm.evaluation.senses.exam import Exam, Item
from bindlm.space.entry_names import NamedEntry


def find_pictures(items: Sequence[Item], media: Tensor, paths: Sequence[Path], pictures: Tensor) -> dict[str, Any]:
    """Retrieval both ways: own pictures, and where that differs, any picture of the same name.

    Args:
        items: of the media.
        media: `(N, D_joint)`.
        paths: of the pictures.
        pictures: `(G, D_joint)`.
    """
    place = {path: number for number, path in enumerate(paths)}
    own = torch.zeros(len(items), len(paths), dtype=torch.bool)
    for number, item in enumerate(items):
        own[number, [place[path] for path in item.pictures]] = True
    key = {path: item.key for item in items for path in item.pictures}
    same = torch.tensor([[item.key == key[path] for path in paths] for item in items])
    found = _both_ways("media", "own pictures", media, pictures, own)
    if not torch.equal(own, same):
        found |= _both_ways("media", "pictures of the same name", media, pictures, same)
    return found


def find_prototypes(exam: Exam, media: Tensor, keys: Tensor, entries: Sequence[NamedEntry]) -> dict[str, Any]:
    """Retrieval both ways against the prototypes of the names, for the items that have one; {} if none has.

    A prototype is the mean direction of the cache entries that stand for a name; names that share all of their
    entries share a prototype.

    Args:
        exam: with `entries_of`.
        media: `(N, D_joint)`.
        keys: `(E, D_joint)` of the cache.
        entries: their names.
    """
    assert exam.entries_of is not None
    chosen = [tuple(exam.entries_of(item, entries)) for item in exam.items]
    gallery = {numbers: place for place, numbers in enumerate(dict.fromkeys(filter(None, chosen)))}
    if not gallery:
        return {}
    directions = F.normalize(keys.float(), dim=-1)
    prototypes = F.normalize(torch.stack([directions[list(numbers)].mean(dim=0) for numbers in gallery]), dim=-1)
    found: dict[str, Any] = {}
    for group in ("", *exam.groups):
        asked = [
            number for number, numbers in enumerate(chosen) if numbers and group in ("", *exam.items[number].groups)
        ]
        if not asked:
            continue
        fits = torch.zeros(len(asked), len(gallery), dtype=torch.bool)
        fits[range(len(asked)), [gallery[chosen[number]] for number in asked]] = True
        found |= _both_ways(group or "media", "prototypes of names", media[asked], prototypes, fits)
    return found


def _both_ways(what: str, where: str, media: Tensor, gallery: Tensor, fits: Tensor) -> dict[str, Any]:
    """Scores of both directions; candidates that nothing asks for still stand in the way."""
    wanted = fits.any(dim=0)
    return {
        f"{what} → {where}": retrieval(media, gallery, fits).as_json(),
        f"{where} → {what}": retrieval(gallery[wanted], media, fits.T[wanted]).as_json(),
    }
