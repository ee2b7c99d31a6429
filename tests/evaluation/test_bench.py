"""`bindlm bench mini --sense`: the command's own work."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tests import tiny
from tests.sense_stand_ins import ENTRIES, bound_model, write_source

import bindlm
from bindlm.errors import ConfigError
from bindlm.evaluation import bench
from bindlm.evaluation.photograph_answers import as_table, measure
from bindlm.evaluation.photographs import Photograph


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    bound = bound_model(tmp_path / "model", "point", "depth", "text")
    monkeypatch.setattr(bindlm, "load", lambda name: bound)
    return bound


@pytest.mark.parametrize("sense", ["point", "depth"])
def test_shapes_are_measured_and_printed(
    sense: str, model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(write_source(tmp_path / "furniture"))
    assert bench.main(["mini", "--sense", sense, "--root", root, "--limit", "2"]) == 0
    assert f"## {sense}, held-out test part" in capsys.readouterr().out


def test_json_holds_every_answer(model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, source in enumerate(("furniture", "emoji")):
        write_source(tmp_path / source, seed=seed)
    assert bench.main(["mini", "--sense", "text", "--root", str(tmp_path), "--json", "--split", "validation"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [answer["label"] for answer in report["answers"]] == ["oven"]
    assert report["ways"]["model"]["all"]["media"] == 1


def test_a_model_without_the_sense_is_refused_before_anything_is_fetched(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_exam", lambda options: pytest.fail("data were asked for"))
    with pytest.raises(ConfigError, match="audio"):
        bench.main(["mini", "--sense", "audio"])


def test_photographs_are_still_measured(model: Any, tmp_path: Path) -> None:
    tiny.picture(1).save(tmp_path / "dog.png")
    sha256 = hashlib.sha256((tmp_path / "dog.png").read_bytes()).hexdigest()
    names = {"object": "dog", "acceptable": ("dog",), "parents": ("animal",), "imagenet": True, "kind": "animal"}
    where = {"id": "dog", "source": "deb:dogs", "inside": "dog.png", "split": "test", "photo": True, "sha256": sha256}
    report = measure([Photograph(**names, **where, path=tmp_path / "dog.png")])
    assert report["ways"]["model"]["photographs"]["pictures"] == 1
    assert report["answers"][0]["nearest cache entry"] in {name for name, *_ in ENTRIES}
    assert "| nearest cache entry |" in as_table(report, "test")
