"""Memory of the three stages for well-known sizes of language models, as a table for people and for machines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bindlm.checkpoints.notice import human_size
from bindlm.configuration import BindLMConfig
from bindlm.errors import ConfigError
from bindlm.training.memory import MemoryEstimate, estimate_memory
from bindlm.training.rehearsal import StepShape
from bindlm.training.stage_recipe import TuningConfig

SIZES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "LLaMA-7B": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "tie_word_embeddings": False,
    },
}
"""Published configurations of the language models, as far as memory depends on them."""

JOINT_DIM = 1024
"""ImageBind's."""


@dataclass(frozen=True)
class Precision:
    """How numbers are kept and multiplied."""

    frozen_dtype: str
    """Of what does not train."""
    trained_dtype: str
    """Of what does."""
    bf16: bool
    """Whether products are made in bfloat16."""


PRECISIONS = {
    "fp32": Precision("float32", "float32", bf16=False),
    "bf16 + fp32": Precision("bfloat16", "float32", bf16=True),
    "bf16": Precision("bfloat16", "bfloat16", bf16=True),
}
"""By the name in the table: all in fp32; frozen in bfloat16 and trained in fp32; all in bfloat16."""

TABLE_SHAPE = StepShape(rows=8, row_tokens=512, target_tokens=1024, media=32)
"""Eight full rows of 512 tokens, a quarter of which are learned."""


@dataclass(frozen=True)
class MemoryRow:
    """One line of the table."""

    model: str
    """Key of `SIZES`."""
    stage: str
    """pretrain or instruct; quality is as instruct."""
    precision: str
    """Key of `PRECISIONS`."""
    whole: MemoryEstimate
    """All activations kept."""
    checkpointed: MemoryEstimate
    """With gradient checkpointing."""

    def as_json(self) -> dict[str, Any]:
        """The row with both estimates."""
        names = {"model": self.model, "stage": self.stage, "precision": self.precision}
        return {**names, "whole": self.whole.as_json(), "checkpointed": self.checkpointed.as_json()}


def sized_config(name: str) -> BindLMConfig:
    """A bound model around a language model of a known size, with a joint space of ImageBind's width.

    Raises:
        ConfigError: there is no such size.
    """
    if name not in SIZES:
        raise ConfigError(f"There is no size {name!r}; known: {', '.join(SIZES)}.")
    encoder = {"family": "mini", "size": "lite0", "dim": JOINT_DIM}
    return BindLMConfig(text_config=dict(SIZES[name]), encoder=encoder)


def memory_table(
    models: Sequence[str] = tuple(SIZES),
    stages: Sequence[str] = ("pretrain", "instruct"),
    precisions: Sequence[str] = tuple(PRECISIONS),
    *,
    shape: StepShape = TABLE_SHAPE,
    device: str = "cuda",
) -> list[MemoryRow]:
    """Estimates for every combination, on one device with one micro-batch a step; takes seconds a row.

    Args:
        models: keys of `SIZES`.
        stages: of `prepare_stage`.
        precisions: keys of `PRECISIONS`.
        shape: of the micro-batch.
        device: "cpu" or "cuda".
    """
    rows = []
    for model in models:
        config = sized_config(model)
        for stage in stages:
            for name in precisions:
                precision = PRECISIONS[name]
                tuning = TuningConfig(frozen_dtype=precision.frozen_dtype, trained_dtype=precision.trained_dtype)
                whole, checkpointed = (
                    estimate_memory(
                        config, stage, tuning, shape, bf16=precision.bf16, gradient_checkpointing=saves, device=device
                    )
                    for saves in (False, True)
                )
                rows.append(MemoryRow(model, stage, name, whole, checkpointed))
    return rows


def as_markdown(rows: Sequence[MemoryRow]) -> str:
    """The table as documentation shows it."""
    lines = [
        "| model | stage | weights | frozen | trained, gradients, AdamW | activations | in all "
        "| in all, gradient checkpointing |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        whole = row.whole
        learning = whole.trained + whole.gradients + whole.optimizer
        sizes = (whole.frozen, learning, whole.activations, whole.total, row.checkpointed.total)
        cells = [row.model, row.stage, row.precision, *map(human_size, sizes)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
