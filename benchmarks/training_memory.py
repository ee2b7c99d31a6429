"""Peak memory of training as measured, beside what `bindlm train --dry-run` says beforehand.

    .venv/bin/python benchmarks/training_memory.py

Each row is a process of its own: a bound model of SmolLM2-135M's sizes with random weights, two optimizer steps
through `fit`, and the most memory that the process ever had resident, less what it had after its imports. Two steps,
because AdamW makes its moments in the first. On a CPU without bfloat16 products such rows take minutes.

    .venv/bin/python benchmarks/training_memory.py --table

prints the table of the documentation: model size, stage and precision, estimated.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SAMPLES_A_ROW = 4
TARGET_SHARE = 0.25
MODEL = "SmolLM2-135M"
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
"""Of the frozen weights; with bf16 products are made in bfloat16 too."""


def measure(stage: str, precision: str, is_checkpointed: bool, rows: int, row_tokens: int) -> int:
    """Train two steps in this process; the most bytes resident beyond the imports."""
    import torch

    from bindlm.injections import AdditiveInjection
    from bindlm.modeling import BindLMForConditionalGeneration
    from bindlm.training.memory_table import sized_config
    from bindlm.training.stage_recipe import TuningConfig
    from bindlm.training.trainer import fit
    from bindlm.tuning.groups import optimizer_groups
    from bindlm.tuning.stages import prepare_stage

    batches = [micro_batch(rows, row_tokens, seed) for seed in (0, 1)]
    config = sized_config(MODEL)
    before = peak_bytes()
    model = BindLMForConditionalGeneration(config)
    prepare_stage(model, stage, TuningConfig(frozen_dtype=PRECISIONS[precision]))
    assert isinstance(model.injection, AdditiveInjection)
    torch.nn.init.constant_(model.injection.gate, 0.1)
    with tempfile.TemporaryDirectory() as folder:
        fit(
            model,
            batches,  # type: ignore[arg-type]
            output=Path(folder),
            num_steps=len(batches),
            optimizer_groups=optimizer_groups(model, learning_rate=1e-4, weight_decay=0.0),
            schedule=lambda step: 1.0,
            bf16=precision == "bf16",
            gradient_checkpointing=is_checkpointed,
        )
    return peak_bytes() - before


def micro_batch(rows: int, row_tokens: int, seed: int) -> dict[str, Any]:
    """Packed rows of a few samples each, every one with a medium."""
    import torch

    length = row_tokens // SAMPLES_A_ROW
    ids = torch.randint(100, 40_000, (rows, row_tokens), generator=torch.Generator().manual_seed(seed))
    tokens = torch.arange(row_tokens)
    positions = tokens.remainder(length).expand(rows, -1).contiguous()
    media_rows = torch.arange(rows)[:, None] * SAMPLES_A_ROW + tokens // length
    return {
        "input_ids": ids,
        "position_ids": positions,
        "labels": torch.where(positions >= (1 - TARGET_SHARE) * length, ids, -100),
        "joint_embedding": torch.nn.functional.normalize(torch.ones(rows * SAMPLES_A_ROW, 1024)),
        "media_rows": media_rows,
    }


def peak_bytes() -> int:
    """The most that this process ever had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measured_in_a_process(*arguments: Any) -> int:
    """`measure`, in a fresh process."""
    command = [sys.executable, __file__, "--measure", json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def compare(options: argparse.Namespace) -> None:
    """Print estimate and measurement of every combination."""
    from bindlm.training.memory import estimate_memory
    from bindlm.training.memory_table import sized_config
    from bindlm.training.rehearsal import StepShape
    from bindlm.training.stage_recipe import TuningConfig

    shape = StepShape.of(micro_batch(options.rows, options.row_tokens, 0))
    print(f"{MODEL}, micro-batch of {shape.rows} x {shape.row_tokens} tokens, {shape.target_tokens} learned\n")
    print("| stage | weights | gradient checkpointing | estimated | measured | estimated / measured |")
    print("|---|---|---|---:|---:|---:|")
    for stage, precision, is_checkpointed in itertools.product(options.stages, options.precisions, (False, True)):
        estimate = estimate_memory(
            sized_config(MODEL),
            stage,
            TuningConfig(frozen_dtype=PRECISIONS[precision]),
            shape,
            bf16=precision == "bf16",
            gradient_checkpointing=is_checkpointed,
            holds_encoder=True,
        )
        measured = measured_in_a_process(stage, precision, is_checkpointed, options.rows, options.row_tokens)
        print(
            f"| {stage} | {precision} | {'yes' if is_checkpointed else 'no'} | {estimate.total / 1e6:,.0f} MB "
            f"| {measured / 1e6:,.0f} MB | {estimate.total / measured:.2f} |",
            flush=True,
        )


def main() -> None:
    """Compare, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4, help="rows of the micro-batch")
    parser.add_argument("--row-tokens", type=int, default=256, help="tokens of a row")
    parser.add_argument("--stages", nargs="+", default=["pretrain", "instruct"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--table", action="store_true", help="print the table of the documentation")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(measure(*json.loads(options.measure)))
    elif options.table:
        from bindlm.training.memory_table import as_markdown, memory_table

        rows = memory_table()
        print(json.dumps([row.as_json() for row in rows], indent=1) if options.json else as_markdown(rows))
    else:
        compare(options)


if __name__ == "__main__":
    main()
