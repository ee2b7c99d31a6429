"""The table of bad inputs: each must end in a `MediaError` within 2 s of the processor's time and 512 MB."""

import time
from importlib import import_module
from pathlib import Path

import pytest

from bindlm.errors import MediaError

KINDS = sorted(path.stem for path in Path(__file__).parent.glob("bad_*.py"))
MEBIBYTE = 1024
CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def reset_peak() -> bool:
    """Set the peak of resident memory back to what is resident now; False where the system has no such thing."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def table(kind, folder):
    return import_module(f".{kind}", __package__).cases(folder)


def test_the_table_has_at_least_200_inputs(tmp_path):
    folders = {kind: tmp_path / kind for kind in KINDS}
    for folder in folders.values():
        folder.mkdir()
    assert len(KINDS) >= 6
    assert sum(len(table(kind, folder)) for kind, folder in folders.items()) >= 200


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_ends_in_a_media_error_soon_and_in_little_memory(kind, tmp_path):
    cases = table(kind, tmp_path)
    assert len({name for name, _ in cases}) == len(cases)
    can_measure = reset_peak()
    faults = []
    for name, call in cases:
        if can_measure:
            reset_peak()
            before = peak_kib()
        begin = time.process_time()
        try:
            result = call()
        except MediaError as error:
            text = str(error)
            if len(text) > 1000 or "Traceback" in text:
                faults.append(f"{name}: says {text[:200]!r}")
        except BaseException as error:
            faults.append(f"{name}: {type(error).__name__}")
        else:
            faults.append(f"{name}: taken for good, gave {type(result).__name__}")
        seconds = time.process_time() - begin
        if seconds > 2:
            faults.append(f"{name}: {seconds:.1f} s")
        if can_measure and peak_kib() - before > 512 * MEBIBYTE:
            faults.append(f"{name}: {(peak_kib() - before) // MEBIBYTE} MiB")
    assert not faults, "\n".join(faults)
