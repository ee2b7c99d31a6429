"""The mini's senses: tables at its own prototypes, and towers that join its file and change nothing else."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import bindlm
from bindlm.binding.mini.attach import attach_towers
from bindlm.binding.mini.tables import SENSES, SOURCES_OF, read_prototypes, write_pairs
from bindlm.binding.sources import SOURCES
from bindlm.binding.sources.splits import split_of
from bindlm.bound_encoder import WEIGHTS_FILE
from bindlm.checkpoints import load_state
from bindlm.encoders.bound import save_tower
from bindlm.encoders.towers import build_tower
from bindlm.errors import CheckpointError, ConfigError
from bindlm.loading import MINI


def rows_of(table: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]


def furniture(folder: Path) -> list[str]:
    """A made-up source in the order of the mini's own entries."""
    names = [name for name, _, source in read_prototypes(MINI).entries if source == "furniture"]
    rows = [
        {
            "point": f"points/{n}.npy",
            "depth": f"depth/{n}.png",
            "label": name,
            "object": f"x{n}",
            "split": split_of(name),
        }
        for n, name in enumerate(names)
    ]
    (folder / "furniture").mkdir(parents=True)
    for table in ("pairs.jsonl", "pairs-depth.jsonl"):
        (folder / "furniture" / table).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return names


def test_shapes_are_bound_to_their_own_icons(tmp_path: Path) -> None:
    names, prototypes = furniture(tmp_path / "sources"), read_prototypes(MINI)
    table = write_pairs("point", prototypes, tmp_path / "sources", tmp_path / "pairs")
    rows = rows_of(table)
    assert len(rows) == 820
    assert [prototypes.entries[int(str(row["feature"]))][0] for row in rows] == names
    assert (tmp_path / "pairs" / str(rows[0]["point"])).resolve() == tmp_path / "sources/furniture/points/0.npy"
    features = load_state(tmp_path / "pairs/features.safetensors")["features"]
    torch.testing.assert_close(features, F.normalize(load_state(MINI / WEIGHTS_FILE)["cache.keys"].float(), dim=-1))


def test_furniture_of_another_catalogue_is_refused(tmp_path: Path) -> None:
    furniture(tmp_path / "sources")
    table = tmp_path / "sources/furniture/pairs.jsonl"
    table.write_text("".join(reversed(table.read_text(encoding="utf-8").splitlines(keepends=True))), encoding="utf-8")
    with pytest.raises(ConfigError, match="not the one in the mini's cache"):
        write_pairs("point", read_prototypes(MINI), tmp_path / "sources", tmp_path / "pairs")


def test_no_text_of_a_held_out_name_is_trained_on(tmp_path: Path) -> None:
    rows = rows_of(write_pairs("text", read_prototypes(MINI), tmp_path, tmp_path / "pairs"))
    held = {str(row["text"]) for row in rows if row["split"] != "train"}
    assert len(held) > 100
    trained = [str(row["text"]) for row in rows if row["split"] == "train"]
    assert held.isdisjoint(trained)
    assert not any(f"a picture of a {name}" in trained for name in held)
    assert {split_of(name) for name in held} == {"validation", "test"}


def test_sounds_are_bound_to_the_mean_of_their_names(tmp_path: Path) -> None:
    for name in ("soundfonts", "recordings"):
        (tmp_path / name).mkdir()
        rows = [{"audio": f"{label}.flac", "label": label, "object": label} for label in ("violin", "applause")]
        (tmp_path / name / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    prototypes = read_prototypes(MINI)
    rows = rows_of(write_pairs("audio", prototypes, tmp_path, tmp_path / "pairs"))
    assert [row["label"] for row in rows] == ["violin", "violin"], "the mini has no name for applause"
    feature = load_state(tmp_path / "pairs/features.safetensors")["features"][int(str(rows[0]["feature"]))]
    names = [prototypes.entries[place][0] for place in (prototypes.keys @ feature).topk(2).indices.tolist()]
    assert names == ["violin", "violin"]


def test_a_sense_it_cannot_have_and_sources_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no sense 'smell'"):
        write_pairs("smell", read_prototypes(MINI), tmp_path, tmp_path)
    with pytest.raises(ConfigError, match="bindlm data fetch soundfonts"):
        write_pairs("audio", read_prototypes(MINI), tmp_path, tmp_path / "pairs")
    with pytest.raises(CheckpointError, match="a whole mini"):
        read_prototypes(tmp_path)


def test_every_source_of_a_sense_is_known_and_may_ship() -> None:
    assert set(SOURCES_OF) == set(SENSES)
    assert all(SOURCES[name].may_ship for names in SOURCES_OF.values() for name in names)


def test_a_tower_joins_the_file_and_all_else_stays_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = build_tower("views_adapter", hidden_dim=64)
    with torch.no_grad():
        tower.adapter.out.weight.normal_()
    save_tower(tower, tmp_path / "tower")
    attach_towers(MINI, {"point": tmp_path / "tower"}, tmp_path / "mini")
    before, after = load_state(MINI / WEIGHTS_FILE), load_state(tmp_path / "mini" / WEIGHTS_FILE)
    kept = {name for name in before if not name.startswith("encoder.towers.point.")}
    assert all(torch.equal(before[name], after[name]) for name in kept)
    embedder = bindlm.load_embedder(tmp_path / "mini")
    assert "point" in embedder.modalities
    mini = bindlm.load(tmp_path / "mini", device="cpu")
    assert mini.cache.for_senses(["point"]).config.similarity == "cosine"
    assert mini.cache.for_senses(["image"]) is mini.cache
    held = embedder.encoder.towers["point"].adapter.out.weight  # type: ignore[union-attr]
    torch.testing.assert_close(held, tower.adapter.out.weight, rtol=1e-2, atol=1e-2)  # bf16 in the file
    attach_towers(tmp_path / "mini", {"point": tmp_path / "tower"}, tmp_path / "mini")  # again, and in place
    assert load_state(tmp_path / "mini" / WEIGHTS_FILE).keys() == after.keys()


def test_a_tower_under_the_name_of_another_sense_is_refused(tmp_path: Path) -> None:
    save_tower(build_tower("views_adapter", hidden_dim=8), tmp_path / "tower")
    with pytest.raises(CheckpointError, match="wanted is one of 'depth'"):
        attach_towers(MINI, {"depth": tmp_path / "tower"}, tmp_path / "mini")
    assert not (tmp_path / "mini").exists()
