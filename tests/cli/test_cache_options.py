"""`--cache FOLDER` and `--no-cache` of the verbs that answer."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from ..space.stored import written

VERBS: list[tuple[str, ...]] = [("ask", "What is this?"), ("chat",)]


@pytest.mark.parametrize("words", VERBS)
def test_the_models_own_cache_is_used_where_none_is_chosen(bindlm_command, model, loads, words):
    assert bindlm_command(*words).code == 0
    assert loads.caches == []


@pytest.mark.parametrize("words", VERBS)
def test_a_cache_may_be_chosen_or_left_out(bindlm_command, model, loads, tmp_path, words):
    written(tmp_path)
    assert bindlm_command(*words, "--cache", tmp_path).code == 0
    assert bindlm_command(*words, "--no-cache").code == 0
    assert loads.caches == [str(tmp_path), False]
    assert loads.references == [None, None]


def test_a_folder_without_a_cache_is_told_before_a_model_is_loaded(bindlm_command, model, loads, tmp_path):
    run = bindlm_command("ask", "What is this?", "--cache", tmp_path / "nowhere")
    assert run.code == 4
    assert "holds no visual cache" in run.err
    assert loads.references == []


def test_a_cache_and_none_exclude_each_other(bindlm_command, model, tmp_path):
    run = bindlm_command("ask", "What is this?", "--cache", tmp_path, "--no-cache")
    assert run.code == 2
    assert "not allowed with" in run.err


def test_json_names_the_entries_an_answer_drew_on(bindlm_command, model, monkeypatch):
    neighbours = [{"entry": 3, "similarity": 0.5, "weight": 1.0, "caption": "a dog"}]
    answer = model.answer

    def drawing(*given: Any, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(**{**vars(answer(*given, **options)), "joint_neighbours": neighbours})

    monkeypatch.setattr(model, "answer", drawing)
    assert json.loads(bindlm_command("ask", "What?", "--json").out)["neighbours"] == neighbours
