"""All that a binding run needs before its first step, from its recipe: pairs, anchors, a tower, decoded media."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bindlm.binding.anchor import AnchorBank, encoded_bank, feature_bank, progress_bar, text_prototypes
from bindlm.binding.pairs import SPLITS, PairTable, read_pairs
from bindlm.binding.recipe import BindRecipe
from bindlm.binding.scoring import Trial
from bindlm.binding.values import BackboneFeatures, DecodedMedia
from bindlm.embedding import Embedder, load_embedder
from bindlm.encoders.towers import TOWER_KINDS, AdapterTower, Tower, build_tower
from bindlm.encoders.towers.views import ViewsAdapter
from bindlm.errors import ConfigError
from bindlm.training.processes import num_processes

__all__ = ["Setup", "prepare", "read_table"]

Say = Callable[[str], None]
_SHOWN = 5


@dataclass(frozen=True)
class Setup:
    """A run, ready to begin."""

    pairs: PairTable
    """What can be used."""
    banks: list[AnchorBank]
    """By anchor column."""
    tower: Tower
    values: DecodedMedia | BackboneFeatures
    anchor: dict[str, Any] | None
    """Reference, fingerprint and senses of the anchor, for the trained tower; None where nobody named it."""
    prototypes: Tensor | None
    """`(C, D_joint)` of the table's labels, where `evaluate.templates` asks for them."""

    def trial(self, split: str, max_media: int | None = None) -> Trial | None:
        """A split to be evaluated; None where it is empty."""
        rows = self.pairs.rows_of(split)
        if not len(rows):
            return None
        settings: dict[str, Any] = {"prototypes": self.prototypes, "max_media": max_media}
        return Trial(self.pairs, rows, self.banks, self.values, **settings)


def prepare(recipe: BindRecipe, say: Say) -> Setup:
    """Read, embed and decode what the recipe names; what an earlier run has cached is not made again.

    Args:
        recipe: of the run.
        say: takes lines of progress.

    Raises:
        ConfigError: a setting is impossible, or there is nothing to train on.
        CheckpointError: weights cannot be had, or the disk is full.
    """
    cache = recipe.data.cache or recipe.output / "cache"
    pairs = read_table(recipe)
    say(describe(pairs))
    embedder = load_anchor(recipe, pairs)
    with first_process_first():
        banks = make_banks(recipe, pairs, embedder, cache)
        tower = make_tower(recipe, banks[0].dim)
        attach_anchor(tower, embedder)
        if torch.cuda.is_available():
            tower.cuda()
        decoded = DecodedMedia(tower, pairs.media, cache, recipe.data.cache_gb, recipe.augment)
        with progress_bar(f"reading {pairs.modality}", len(pairs.media)) as advance:
            unreadable = decoded.decode(advance)
        pairs = pairs.without(unreadable, [bank.unusable for bank in banks])
        values: DecodedMedia | BackboneFeatures = decoded
        if isinstance(tower, AdapterTower):
            values = BackboneFeatures(tower, decoded, cache, recipe.run.seed)
            usable = sorted(set(pairs.medium.tolist()))
            with progress_bar("features", len(usable)) as advance:
                values.make(usable, advance)
    tell_left_out(pairs, say)
    train = pairs.rows_of("train")
    if len(train) < 2:
        raise ConfigError(f"There are {len(train)} pairs to train on; contrast needs at least 2.")
    decoded.partners = sorted(set(pairs.medium[train].tolist()))
    anchor = _named_anchor(recipe, pairs, embedder)
    return Setup(pairs, banks, tower, values, anchor, _prototypes(recipe, pairs, embedder))


def _named_anchor(recipe: BindRecipe, pairs: PairTable, embedder: Embedder | None) -> dict[str, Any] | None:
    """Reference, fingerprint and senses of the anchor; of one sense alone its own, which outlives further senses."""
    if embedder is None:
        return None
    senses = _senses_needed(recipe, pairs)
    of_one = senses is not None and len(senses) == 1
    fingerprint = embedder.fingerprint_of(senses[0]) if senses and of_one else embedder.fingerprint
    return {"reference": str(recipe.anchor.encoder), "fingerprint": fingerprint, "modalities": senses}


def read_table(recipe: BindRecipe) -> PairTable:
    """The recipe's pairs, as its tables have them.

    Raises:
        ConfigError: a table is missing, or does not hold what the recipe needs.
    """
    columns, data = recipe.anchor.columns, recipe.data
    return read_pairs(data.pairs, modality_of(recipe), columns, split=data.split, limit=data.limit)


def modality_of(recipe: BindRecipe) -> str:
    """The sense that the recipe's tower takes, without building it."""
    if recipe.tower.start_from is not None:
        return make_tower(recipe, None).modality
    kind = recipe.tower.kind
    if kind not in TOWER_KINDS:
        raise ConfigError(f"Unknown kind of tower {kind!r}; known: {', '.join(sorted(TOWER_KINDS))}.")
    row = TOWER_KINDS[kind]
    if "modality" in {field.name for field in dataclasses.fields(row.config)}:
        try:
            return row.config(**recipe.tower.settings).modality
        except TypeError as error:
            raise ConfigError(f"A tower of kind {kind!r} does not take these settings: {error}.") from None
    build: Any = row.build
    return build.modality


def make_tower(recipe: BindRecipe, dim: int | None) -> Tower:
    """The tower to train, with the anchor's joint width.

    Raises:
        ConfigError: a setting is impossible, or the width is another.
        CheckpointError: a tower to go on from is missing or damaged.
    """
    torch.manual_seed(recipe.run.seed)
    if recipe.tower.start_from is not None:
        from bindlm.encoders.bound import load_tower_folder, read_tower_folder

        # built anew, so that what is frozen in its kind, as under LoRA, is frozen here
        tower = build_tower(**read_tower_folder(recipe.tower.start_from).settings)
        tower.load_state_dict(load_tower_folder(recipe.tower.start_from).state_dict())
    else:
        kind, settings = recipe.tower.kind, dict(recipe.tower.settings)
        has_dim = "dim" in {field.name for field in dataclasses.fields(TOWER_KINDS[kind].config)}
        if has_dim and dim is not None:
            settings.setdefault("dim", dim)
        tower = build_tower(kind, **settings)
    if dim is not None and tower.dim != dim:
        raise ConfigError(
            f"The tower is {tower.dim} wide, and the anchor's joint space {dim}; set tower.settings.dim."
        )
    return tower


def attach_anchor(tower: Tower, embedder: Embedder | None) -> None:
    """Give the anchor to a tower that looks through its pictures.

    Raises:
        ConfigError: the recipe names no anchor, or it knows no pictures.
    """
    if isinstance(tower, ViewsAdapter):
        if embedder is None:
            raise ConfigError("A views_adapter looks through the anchor's pictures; name it: anchor.encoder=mini.")
        tower.attach(embedder.encoder, fingerprint=embedder.fingerprint_of("image"))


def load_anchor(recipe: BindRecipe, pairs: PairTable) -> Embedder | None:
    """The frozen anchor with the senses that are needed; None where the recipe names none.

    Raises:
        ConfigError: it lacks a sense that is needed.
        CheckpointError: its weights cannot be had.
    """
    if recipe.anchor.encoder is None:
        return None
    embedder = load_embedder(recipe.anchor.encoder, modalities=_senses_needed(recipe, pairs))
    embedder.encoder.requires_grad_(False).eval()
    if torch.cuda.is_available():
        embedder.encoder.cuda()
    return embedder


def _senses_needed(recipe: BindRecipe, pairs: PairTable) -> tuple[str, ...] | None:
    """Of the anchor; None for all, where it only gives its name."""
    needed = [side.column.column for side in pairs.sides if not side.column.is_feature]
    needed += ["text"] if recipe.evaluate.templates else []
    needed += ["image"] if recipe.tower.kind == "views_adapter" else []
    return tuple(dict.fromkeys(needed)) or None


def make_banks(recipe: BindRecipe, pairs: PairTable, embedder: Embedder | None, cache: Path) -> list[AnchorBank]:
    """Embeddings of all anchors, by column.

    Raises:
        ConfigError: a column needs an anchor that the recipe does not name, or two columns differ in width.
    """
    banks = []
    for side in pairs.sides:
        if side.column.is_feature:
            banks.append(feature_bank(side))
            continue
        if embedder is None:
            raise ConfigError(
                f"Column {side.column.column!r} holds media to be embedded; name the encoder: anchor.encoder=mini."
            )
        with progress_bar(f"anchors: {side.column.column}", len(side.anchors)) as advance:
            banks.append(encoded_bank(side, embedder, recipe.anchor, cache, advance))
    widths = {bank.dim for bank in banks} | ({embedder.dim} if embedder is not None else set())
    if len(widths) > 1:
        raise ConfigError(f"The anchors are of different joint spaces: widths {', '.join(map(str, sorted(widths)))}.")
    return banks


def _prototypes(recipe: BindRecipe, pairs: PairTable, embedder: Embedder | None) -> Tensor | None:
    templates = recipe.evaluate.templates
    if not templates or not pairs.labels:
        return None
    if embedder is None or "text" not in embedder.modalities:
        raise ConfigError("evaluate.templates puts labels into words, so anchor.encoder has to have text.")
    return text_prototypes(embedder, pairs.labels, templates)


def describe(pairs: PairTable) -> str:
    """How many pairs there are, for people."""
    parts = [f"{split} {len(pairs.rows_of(split))}" for split in SPLITS]
    columns = ", ".join(side.column.column for side in pairs.sides)
    return (
        f"{len(pairs)} pairs of {pairs.modality} and {columns}: {', '.join(parts)}; {len(pairs.media)} media, "
        f"{len(set(pairs.objects))} objects, {len(pairs.labels)} labels"
    )


def tell_left_out(pairs: PairTable, say: Say) -> None:
    """Say what cannot be used, and why."""
    if not pairs.left_out:
        return
    say(f"{len(pairs.left_out)} media cannot be used and are left out; {len(pairs)} pairs stay")
    for name, why in list(pairs.left_out.items())[:_SHOWN]:
        say(f"  {name}: {why}")
    if len(pairs.left_out) > _SHOWN:
        say("  ... all are in report.json")


@contextmanager
def first_process_first() -> Iterator[None]:
    """Under torchrun the first process fills the caches, and the others then find them full."""
    if num_processes() == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
        yield


def counts(pairs: PairTable) -> dict[str, dict[str, int]]:
    """Split -> its pairs, media, objects and labels."""
    found = {}
    for split in SPLITS:
        rows: Sequence[int] = pairs.rows_of(split).tolist()
        found[split] = {
            "pairs": len(rows),
            "media": len({int(pairs.medium[row]) for row in rows}),
            "objects": len({pairs.objects[row] for row in rows}),
            "labels": len({int(pairs.label[row]) for row in rows} - {-1}),
        }
    return found
