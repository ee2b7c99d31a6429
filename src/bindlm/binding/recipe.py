"""The recipe of a binding run, as `bindlm bind` reads it.

Sources: ImageBind (arXiv 2305.05665), LanguageBind (arXiv 2310.01852), Point-Bind (arXiv 2309.00615), OpenCLIP.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from bindlm.binding.augment_settings import AugmentRecipe
from bindlm.errors import ConfigError

__all__ = [
    "AnchorColumn",
    "AnchorRecipe",
    "BindRecipe",
    "DataRecipe",
    "EvaluateRecipe",
    "Masking",
    "ObjectiveRecipe",
    "OptimizerRecipe",
    "RunRecipe",
    "SplitRecipe",
    "TowerRecipe",
]


class Masking(StrEnum):
    """Which other rows of a batch are no negatives of a row."""

    NONE = "none"
    """All others are negatives, as in the published losses."""
    SAME = "same"
    """Rows with the same medium or the same anchor are not."""
    LABEL = "label"
    """Nor are rows with the same label."""


@dataclass(frozen=True)
class AnchorColumn:
    """One column of the table that the new sense is bound to."""

    column: str
    """`image`, `text` or any other sense of the anchor; `feature`, or any name with a `file`, for ready embeddings."""
    weight: float = 1.0
    """Factor on this column's loss."""
    file: str | None = None
    """Embeddings that the column counts the rows of, beside the table; None finds `features.safetensors` or `.npy`."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(f"AnchorColumn.weight must be above 0, got {self.weight}.")

    @property
    def is_feature(self) -> bool:
        """Whether the column holds row numbers of ready embeddings."""
        return self.file is not None or self.column == "feature"


@dataclass(frozen=True)
class AnchorRecipe:
    """The frozen side."""

    encoder: str | None = None
    """What `bindlm.load_embedder` takes: `mini`, a bound model's folder, a weight file; None where all anchors are
    ready embeddings."""
    columns: tuple[AnchorColumn, ...] = ()
    """Bound to all of these at once, their losses added (Point-Bind); empty takes the one that the table has."""
    views: int = 1
    """Embeddings of each picture, of which an epoch draws one; with 1 the whole picture, else random crops."""
    templates: tuple[str, ...] = ()
    """Sentences around texts, `{}` for the text, or the name of a set of them (photos, sounds, objects); their
    embeddings are averaged (Point-Bind, from ULIP). Empty for the text as it is."""
    batch_size: int = 8
    """Media a pass of the anchor."""

    def __post_init__(self) -> None:
        _at_least_1(self, "views", "batch_size")
        names = [column.column for column in self.columns]
        if len(set(names)) < len(names):
            raise ConfigError(f"AnchorRecipe.columns names a column twice: {', '.join(names)}.")


@dataclass(frozen=True)
class TowerRecipe:
    """What is trained."""

    kind: str = ""
    """A row of `bindlm.encoders.towers.TOWER_KINDS`; may be left out where `start_from` says it."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of that kind's configuration; the joint width is the anchor's where it is left out."""
    start_from: Path | None = None
    """Folder of a trained tower to go on from."""

    def __post_init__(self) -> None:
        if bool(self.kind) == (self.start_from is not None):
            raise ConfigError("TowerRecipe needs one of kind and start_from.")


@dataclass(frozen=True)
class SplitRecipe:
    """How objects are dealt out where the table does not say; all rows of an object go the same way."""

    validation: float = 0.1
    """Share of the objects that evaluation during training looks at."""
    test: float = 0.1
    """Share that is looked at once, at the end."""
    seed: int = 0
    """Another seed, another deal."""

    def __post_init__(self) -> None:
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise ConfigError(
                "SplitRecipe.validation and test must be 0 or more and leave something to train on, got "
                f"{self.validation} and {self.test}."
            )


@dataclass(frozen=True)
class DataRecipe:
    """The pairs."""

    pairs: tuple[Path, ...]
    """Tables: jsonl, csv, tsv or parquet."""
    split: SplitRecipe | None = None
    """None takes the table's own `split` column, or a tenth each where it has none."""
    limit: int | None = None
    """Only the first so many rows of each table."""
    cache: Path | None = None
    """Folder of decoded media and anchors; None for `cache` in the run's. Runs may share one."""
    cache_gb: float = 8.0
    """Decoded media beyond this are decoded anew each time."""

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ConfigError("DataRecipe.pairs must name at least one table.")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"DataRecipe.limit must be at least 1 or absent, got {self.limit}.")


@dataclass(frozen=True)
class ObjectiveRecipe:
    """Symmetric InfoNCE."""

    temperature: float = 0.07
    """Where it starts, or stays (CLIP). ImageBind keeps 0.05 for sound, 0.2 for depth and IMU, 0.1 for thermal."""
    is_learnable: bool = True
    """Whether it is learnt. ImageBind's ablation prefers a fixed one; LanguageBind and Point-Bind learn it."""
    max_scale: float = 100.0
    """Ceiling of 1 / temperature (CLIP)."""
    is_symmetric: bool = True
    """Whether anchors look for their media too."""
    mask_duplicates: Masking = Masking.SAME
    """Which rows of a batch are no negatives of each other."""
    hard_negatives: int = 0
    """Rows with the nearest other anchors that each drawn row brings into its batch."""
    extra_negatives: int = 0
    """Anchors from outside the batch that media are held against too: they are ready, so they cost one product."""

    distractors: Path | None = None
    """File of embeddings that no medium is of, though the joint space knows them: the other names of a cache, say.
    Media are held against all of them."""
    alike: float = 0.5
    """Cosine with a row's anchor from which a distractor is no negative of the row."""

    def __post_init__(self) -> None:
        if not -1 <= self.alike <= 1:
            raise ConfigError(f"ObjectiveRecipe.alike must lie in -1..1, got {self.alike}.")
        if not (self.temperature > 0 and self.max_scale >= 1 / self.temperature >= 1):
            raise ConfigError(
                "ObjectiveRecipe.temperature must lie between 1 / max_scale and 1, got "
                f"{self.temperature} and max_scale {self.max_scale}."
            )
        if min(self.hard_negatives, self.extra_negatives) < 0:
            raise ConfigError("ObjectiveRecipe.hard_negatives and extra_negatives must be 0 or more.")


@dataclass(frozen=True)
class OptimizerRecipe:
    """AdamW, linear warmup from 0, half cosine to `min_learning_rate`."""

    learning_rate: float
    """Peak."""
    num_epochs: float | None = None
    """Passes over the training pairs; one of this and `num_steps`."""
    num_steps: int | None = None
    """Optimizer steps."""
    batch_size: int = 512
    """Pairs held against each other, over all devices; at most all there are."""
    micro_batch_size: int = 64
    """Rows whose activations are in memory at once; changes nothing but memory and time."""
    warmup_steps: int = 0
    """Optimizer steps of warmup; used where `warmup_epochs` is absent."""
    warmup_epochs: float | None = None
    """Warmup in passes over the data."""
    min_learning_rate: float = 0.0
    """Where the cosine ends."""
    weight_decay: float = 0.2
    """For tensors of two dimensions and more (ImageBind: 0.2 for sound)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """ImageBind."""
    max_grad_norm: float | None = 1.0
    """Gradient clipping (ImageBind: 1, for thermal 5); None for none."""
    ema: float | None = None
    """Decay a step of an average of the weights, which is evaluated and saved in their place; None for no average."""

    def __post_init__(self) -> None:
        if (self.num_epochs is None) == (self.num_steps is None):
            raise ConfigError("OptimizerRecipe needs one of num_epochs and num_steps.")
        _at_least_1(self, "batch_size", "micro_batch_size")
        for name in ("learning_rate", "num_epochs", "num_steps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"OptimizerRecipe.{name} must be above 0, got {value}.")
        if self.batch_size < 2:
            raise ConfigError("OptimizerRecipe.batch_size must be at least 2: a pair is held against other pairs.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"OptimizerRecipe.ema must lie between 0 and 1, got {self.ema}.")


@dataclass(frozen=True)
class EvaluateRecipe:
    """What is looked at on pairs that are not trained on."""

    every: int = 200
    """Optimizer steps between looks at the validation split; 0 for the end alone."""
    templates: tuple[str, ...] = ()
    """Labels are classified by these sentences in the anchor's text tower (`{}` for the label, or a set's name); empty
    by the mean anchor of the label's rows."""
    max_media: int | None = None
    """Only so many media of the validation split while training; None for all."""
    keep_best: bool = False
    """Whether the weights with the best validation R@1, both ways added, are saved in place of the last."""

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ConfigError(f"EvaluateRecipe.every must be 0 or more, got {self.every}.")
        if self.keep_best and not self.every:
            raise ConfigError("EvaluateRecipe.keep_best needs looks while training: set every.")


@dataclass(frozen=True)
class RunRecipe:
    """How a run is run and watched."""

    seed: int = 0
    """Of everything random but the split."""
    save_every: int = 200
    """Optimizer steps between checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints that are kept."""
    log_every: int = 10
    """Optimizer steps between log lines."""
    workers: int = 0
    """Processes that prepare batches while the tower learns; 0 for none."""
    bf16: bool = False
    """Whether products are made in bfloat16 (autocast)."""
    report_to: tuple[str, ...] = ()
    """Of transformers' Trainer: tensorboard, wandb."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Further fields of `transformers.TrainingArguments`."""

    def __post_init__(self) -> None:
        _at_least_1(self, "save_every", "keep_checkpoints", "log_every")
        if self.workers < 0:
            raise ConfigError(f"RunRecipe.workers must be 0 or more, got {self.workers}.")


@dataclass(frozen=True)
class BindRecipe:
    """A new sense, bound."""

    output: Path
    """Folder of checkpoints, curves and, at the end, `tower` and `report.json`."""
    tower: TowerRecipe
    data: DataRecipe
    optimizer: OptimizerRecipe
    anchor: AnchorRecipe = field(default_factory=AnchorRecipe)
    objective: ObjectiveRecipe = field(default_factory=ObjectiveRecipe)
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    evaluate: EvaluateRecipe = field(default_factory=EvaluateRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)
    notice: str | None = None
    """Licence note of the data, kept with the tower."""


def _at_least_1(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{type(config).__name__}.{name} must be at least 1, got {getattr(config, name)}.")
