"""`bindlm data fetch`."""

import json

import pytest

import bindlm.binding.sources as module
from bindlm.binding.sources import SOURCES, Package, Skipped, Source, Summary

CALLS = []


def fetch(folder, root):
    CALLS.append((folder, root))
    skipped = tuple(Skipped(f"piece-{number}", "broken") for number in range(12))
    return Summary("things", folder, {"objects": 3}, ("pairs.jsonl",), skipped)


@pytest.fixture(autouse=True)
def things(monkeypatch, tmp_path):
    CALLS.clear()
    package = Package("apt", "things-data", {"things-data_1_all.deb": "0" * 64})
    monkeypatch.setitem(
        module.SOURCES, "things", Source("Things", (package,), "CC0", "images/", {"objects": 3}, fetch)
    )
    monkeypatch.setenv("BINDLM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def test_a_source_is_fetched_and_what_it_left_is_told(bindlm_command, tmp_path):
    run = bindlm_command("data", "fetch", "things", "-o", "out")
    assert run.code == 0
    assert CALLS == [(tmp_path / "out", tmp_path / "home/debian")]
    assert "3 objects" in run.out
    assert "licence: CC0" in run.out
    assert run.out.count("left out: piece-") == 10
    assert "left out: 2 more" in run.out


def test_json_holds_all_and_the_root_can_be_chosen(bindlm_command, tmp_path):
    run = bindlm_command("data", "fetch", "things", "-o", tmp_path / "out", "--root", "mine", "--json")
    assert run.code == 0
    found = json.loads(run.out)
    assert CALLS == [(tmp_path / "out", tmp_path / "mine")]
    assert found["counts"] == {"objects": 3}
    assert found["tables"] == ["pairs.jsonl"]
    assert len(found["skipped"]) == 12


def test_the_list_names_sources_packages_and_licences(bindlm_command):
    run = bindlm_command("data", "fetch", "--list")
    assert run.code == 0
    for name in ("furniture", "emoji", "stamps", "things"):
        assert f"{name}: " in run.out
    assert "sweethome3d-furniture (apt)" in run.out
    found = json.loads(bindlm_command("data", "fetch", "--list", "--json").out)
    assert found["stamps"]["may_ship"] is False
    assert found["things"]["packages"][0]["sha256"] == {"things-data_1_all.deb": "0" * 64}
    assert not CALLS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "no source was named"), (("chairs", "-o", "out"), "no source 'chairs'"), (("things",), "-o things")],
)
def test_mistakes_are_told_with_the_cure(bindlm_command, arguments, said):
    run = bindlm_command("data", "fetch", *arguments)
    assert run.code != 0
    assert said in run.err
    assert not CALLS


def test_every_row_says_what_it_gives_and_where_it_is_from():
    for name, source in SOURCES.items():
        assert source.title, name
        assert source.licence, name
        assert source.gives, name
        assert source.packages, name
        assert all(count > 0 for count in source.counts.values()), name
        assert all(len(digest) == 64 for package in source.packages for digest in package.sha256.values()), name
