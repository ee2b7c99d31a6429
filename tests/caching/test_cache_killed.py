"""A build that is killed, interrupted, or has no more room on the disk."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bindlm.caching import Budget, add_to_cache, build_cache, check_out, describe_cache, open_embeddings, verify_cache
from bindlm.caching import build as build_module
from bindlm.errors import CheckpointError, ConfigError

from .cache_case import FINGERPRINT, GRAPH, LISTS, Choice, files_of, save_embeddings

LARGE = Budget(choice=Choice("IVF8,Flat", {"nprobe": 8}))
"""An index larger than the values."""
HERE = Path(__file__).resolve().parent


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("BINDLM_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def embeddings(tmp_path):
    save_embeddings(tmp_path / "img_emb", [400, 300])
    return tmp_path / "img_emb"


def make(folder, out, **options):
    budget = options.pop("budget", Budget(choice=LISTS))
    return build_cache(open_embeddings(folder), out, fingerprint=FINGERPRINT, budget=budget, progress=False, **options)


def worker(script, *words, timeout=240):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / script), *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize("kind", ["lists", "graph"])
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.exhaustive), 7])
def test_a_build_and_an_addition_killed_at_any_moment_end_with_the_bytes_of_unkilled_ones(tmp_path, step, kind):
    """Every seventh of the moments at which something changes, or all of them."""
    save_embeddings(tmp_path / "sources" / "first", [400, 300])
    save_embeddings(tmp_path / "sources" / "second", [333], seed=1)
    os.rename(tmp_path / "sources" / "second" / "img_emb_0.npy", tmp_path / "sources" / "second" / "more.npy")
    result = json.loads(worker("worker_builds.py", tmp_path, step, kind, timeout=900))
    assert result["moments"] > 25  # files that took their places
    assert result["killed"] >= result["moments"] // step
    assert result["different"] == []
    assert [name for name in result["files"] if name.startswith(".")] == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured through /proc")
def test_a_file_of_400_megabytes_takes_less_than_half_of_that_in_memory(tmp_path):
    taken = int(worker("worker_memory.py", tmp_path, 200_000, 512))
    assert taken < 200e6  # 84 MB were measured
    assert verify_cache(tmp_path / "cache").is_sound


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured through /proc")
def test_memory_does_not_grow_with_the_number_of_rows(tmp_path):
    """40 and 80 MB: what differs is 24 bytes a row for the ids, and what an allocator keeps."""
    (tmp_path / "small").mkdir()
    (tmp_path / "large").mkdir()
    small = int(worker("worker_memory.py", tmp_path / "small", 40_000, 256))
    large = int(worker("worker_memory.py", tmp_path / "large", 80_000, 256))
    assert large - small < 25e6


def test_a_resumed_build_reads_only_what_is_missing(embeddings, tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "ROWS_A_FILE", 256)
    out = tmp_path / "cache"
    source = open_embeddings(embeddings)
    whole = source.chunks

    def broken(start=0):
        for number, chunk in enumerate(whole(start)):
            if number == 1:
                raise KeyboardInterrupt
            yield chunk

    source.chunks = broken
    with pytest.raises(KeyboardInterrupt):
        build_cache(source, out, fingerprint=FINGERPRINT, budget=Budget(choice=LISTS), progress=False)
    left = describe_cache(out)["unfinished"]
    assert left == {"action": "build", "source": str(embeddings), "rows": 700, "rows_written": 256, "index": None}
    starts = []
    source.chunks = lambda start=0: starts.append(start) or whole(start)
    record = build_cache(source, out, fingerprint=FINGERPRINT, budget=Budget(choice=LISTS), progress=False)
    assert (starts, record.num_entries, len(record.values)) == ([256], 700, 3)
    make(embeddings, tmp_path / "whole")
    assert files_of(out) == files_of(tmp_path / "whole")


def stopped_after_one_file(embeddings, out, monkeypatch):
    """An unfinished build of which one file is done."""
    monkeypatch.setattr(build_module, "ROWS_A_FILE", 256)
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "make_index", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(embeddings, out)


def interrupted(*arguments, **options):
    raise KeyboardInterrupt


def test_a_build_that_is_killed_before_its_first_file_is_whole_goes_on(embeddings, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "write_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(embeddings, tmp_path / "cache")
    assert describe_cache(tmp_path / "cache")["unfinished"]["rows_written"] == 0
    assert make(embeddings, tmp_path / "cache").num_entries == 700


def test_a_source_that_has_changed_since_is_refused_until_one_begins_anew(embeddings, tmp_path, monkeypatch):
    stopped_after_one_file(embeddings, tmp_path / "cache", monkeypatch)
    save_embeddings(embeddings, [400, 301], seed=3)
    with pytest.raises(ConfigError, match=r"has changed since this build was stopped \(700 rows then, 701 now\)"):
        make(embeddings, tmp_path / "cache")
    assert make(embeddings, tmp_path / "cache", is_fresh=True).num_entries == 701
    assert verify_cache(tmp_path / "cache").is_sound


def test_a_source_that_changes_while_it_is_read_is_refused(embeddings, tmp_path):
    source = open_embeddings(embeddings)
    source.digest = iter(["a", "b"]).__next__
    with pytest.raises(ConfigError, match="has changed while it was read"):
        build_cache(source, tmp_path / "cache", fingerprint=FINGERPRINT, progress=False)


def test_another_source_or_other_settings_do_not_go_on_from_an_unfinished_build(embeddings, tmp_path, monkeypatch):
    stopped_after_one_file(embeddings, tmp_path / "cache", monkeypatch)
    save_embeddings(tmp_path / "others", [10])
    with pytest.raises(ConfigError, match="unfinished build of .*img_emb; run that command again"):
        make(tmp_path / "others", tmp_path / "cache")
    with pytest.raises(ConfigError, match="begun with other settings"):
        make(embeddings, tmp_path / "cache", notice="CC BY 4.0")
    damaged = tmp_path / "cache" / ".bindlm-build" / "journal.json"
    damaged.write_text(damaged.read_text()[:100])
    with pytest.raises(CheckpointError, match=r"journal\.json is damaged"):
        make(embeddings, tmp_path / "cache")


def test_a_file_that_went_missing_meanwhile_is_written_again(embeddings, tmp_path, monkeypatch):
    stopped_after_one_file(embeddings, tmp_path / "cache", monkeypatch)
    (tmp_path / "cache" / "values-000001.npy").unlink()
    make(embeddings, tmp_path / "cache")
    make(embeddings, tmp_path / "whole")
    assert files_of(tmp_path / "cache") == files_of(tmp_path / "whole")


@pytest.fixture
def small_files():
    """No file may be larger than this: what a full disk looks like to who writes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(num_bytes):
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("budget", [LARGE, Budget(choice=GRAPH)], ids=["lists", "graph"])
@pytest.mark.parametrize("room", [3000, 15_000, 24_000])  # for not even names, for not all values, for no index
def test_a_full_disk_is_said_and_leaves_the_old_cache_as_it_was(embeddings, tmp_path, small_files, room, budget):
    out = tmp_path / "cache"
    save_embeddings(tmp_path / "old", [50], seed=5)
    make(tmp_path / "old", out)
    before = files_of(out)
    small_files(room)
    try:
        with pytest.raises(CheckpointError, match="no space is left"):
            make(embeddings, out, replaces=True, budget=budget)
    finally:
        small_files(resource.RLIM_INFINITY)
    after = files_of(out)
    assert {name: after[name] for name in before} == before
    assert verify_cache(out).is_sound
    assert make(embeddings, out, replaces=True, budget=budget).num_entries == 700
    assert verify_cache(out).is_sound
    assert not set(before) & set(files_of(out)) - {"config.json"}


def test_a_full_disk_during_an_addition_leaves_the_cache_as_it_was(embeddings, tmp_path, small_files):
    out = tmp_path / "cache"
    make(embeddings, out)
    before = files_of(out)
    np.save(tmp_path / "more.npy", np.random.default_rng(1).standard_normal((900, 16)).astype(np.float32))
    small_files(20_000)
    try:
        with pytest.raises(CheckpointError, match="no space is left"):
            add_to_cache(open_embeddings(tmp_path / "more.npy"), out, fingerprint=FINGERPRINT, progress=False)
    finally:
        small_files(resource.RLIM_INFINITY)
    assert files_of(out).items() >= before.items()
    assert verify_cache(out).is_sound


def test_a_folder_with_something_else_in_it_is_never_written_in(embeddings, tmp_path):
    out = tmp_path / "notes"
    out.mkdir()
    (out / "config.json").write_text('{"model_type": "llama"}')
    for replaces in (False, True):
        with pytest.raises(ConfigError, match="is no cache; name a new or empty folder"):
            make(embeddings, out, replaces=replaces)
    (out / "config.json").rename(out / "diary.txt")
    with pytest.raises(ConfigError, match="is no cache"):
        check_out(out)
    with pytest.raises(ConfigError, match="is a file"):
        check_out(out / "diary.txt")
    assert [each.name for each in out.iterdir()] == ["diary.txt"]


def test_a_cache_that_is_there_makes_way_only_when_asked(embeddings, tmp_path):
    make(embeddings, tmp_path / "cache")
    with pytest.raises(ConfigError, match="is a cache already: bindlm cache add"):
        make(embeddings, tmp_path / "cache")
