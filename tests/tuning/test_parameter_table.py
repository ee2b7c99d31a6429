"""The table of what trains adds up to the model."""

import pytest

from bindlm.training.stage_recipe import TuningConfig
from bindlm.tuning.parameter_table import parameter_table
from bindlm.tuning.stages import prepare_stage

from ..tiny import DIM, HIDDEN, NUM_LAYERS, tiny_language_model, tiny_model

PARTS = ["encoder", "visual cache", "bridge", "injection gates", "language model", "LoRA", "norms", "biases"]
NORMS = (2 * NUM_LAYERS + 1) * HIDDEN


@pytest.mark.parametrize("has_cache", [False, True])
@pytest.mark.parametrize("stage", ["pretrain", "instruct", "quality"])
def test_every_number_is_in_one_row(stage: str, has_cache: bool) -> None:
    model = tiny_model(cache={"num_entries": 20, "dim": DIM, "top_k": 4} if has_cache else None)
    prepare_stage(model, stage, TuningConfig())
    table = parameter_table(model)
    assert [row.part for row in table.rows] == PARTS
    assert table.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert table.trained + table.frozen == sum(tensor.numel() for tensor in model.state_dict().values())
    assert {row.part: row.frozen for row in table.rows}["visual cache"] == (20 * DIM if has_cache else 0)


def test_rows_say_what_a_stage_trains() -> None:
    model = tiny_model()
    plain = sum(p.numel() for p in model.language_model.parameters())
    prepare_stage(model, "pretrain", TuningConfig())
    rows = {row.part: (row.trained, row.frozen) for row in parameter_table(model).rows}
    assert rows["bridge"] == (model.bridge.config.num_parameters, 0)
    assert rows["injection gates"] == (NUM_LAYERS, 0)
    assert rows["language model"] == (0, plain - NORMS)
    assert rows["norms"] == (0, NORMS)
    assert rows["LoRA"] == rows["biases"] == (0, 0)
    prepare_stage(model, "instruct", TuningConfig(lora={"r": 2}, biases=("q_proj", "down_proj")))
    rows = {row.part: (row.trained, row.frozen) for row in parameter_table(model).rows}
    assert rows["bridge"] == (0, model.bridge.config.num_parameters)
    assert rows["language model"] == (0, plain - NORMS)
    assert rows["norms"] == (NORMS, 0)
    assert rows["biases"] == (NUM_LAYERS * 2 * 32, 0)
    # in and out of queries and output, keys and values, then gate, up and down
    widths = 2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48)
    assert rows["LoRA"] == (2 * widths * NUM_LAYERS, 0)


def test_tied_head_counts_once() -> None:
    tied = tiny_model(language_model=tiny_language_model(tie_word_embeddings=True))
    rows = {row.part: row for row in parameter_table(tied).rows}
    total = sum(p.numel() for p in tied.language_model.parameters())
    assert rows["language model"].trained + rows["norms"].trained == total


def test_text_is_aligned_and_ends_with_the_total() -> None:
    model = tiny_model()
    prepare_stage(model, "pretrain", TuningConfig())
    table = parameter_table(model)
    lines = str(table).splitlines()
    assert lines[0].split() == ["part", "trained", "frozen"]
    assert len(lines) == len(PARTS) + 2
    assert len({len(line) for line in lines}) == 1
    assert lines[-1].split() == ["total", f"{table.trained:,}", f"{table.frozen:,}"]
    assert "," in lines[-1]
