"""The hub's client against a hub of this machine, and against none."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bindlm.checkpoints import hub, resolve
from bindlm.errors import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.model": b"pieces",
    "chat_template.jinja": b"template",
    "pytorch_model.bin": b"pickle",
    "model.gguf": b"GGUF",
    "modeling.py": b"code",
    "sub/model.safetensors": b"more weights",
    "sub/pytorch_model.bin": b"pickle",
}


@pytest.fixture
def loopback_hub() -> Iterator[tuple[str, list[str]]]:
    """Address of a hub with ``org/whole``, ``org/pickled`` and ``org/gated``; and the files that were asked for."""
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0].strip("/")
            name, kind, rest = re.fullmatch(r"(?:api/models/)?([^/]+/[^/]+)(?:/(\w+)/(.*))?", path).groups()  # type: ignore[union-attr]
            revision, _, wanted = (rest or "main").partition("/")
            files = [each for each in FILES if name != "org/pickled" or not each.endswith(".safetensors")]
            if name == "org/gated":
                self._answer(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
            elif name not in {"org/whole", "org/pickled"}:
                self._answer(404, {"error": "none"}, {"X-Error-Code": "RepoNotFound"})
            elif revision not in {"main", COMMIT}:
                self._answer(404, {"error": "none"}, {"X-Error-Code": "RevisionNotFound"})
            elif kind == "tree":
                self._answer(
                    200, [{"type": "file", "path": each, "size": len(FILES[each]), "oid": each} for each in files]
                )
            elif kind != "resolve":
                siblings = [{"rfilename": each} for each in files]
                self._answer(200, {"id": name, "sha": COMMIT, "siblings": siblings})
            else:
                if wanted not in files:
                    self._answer(404, {"error": "none"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                    return
                if self.command == "GET":
                    fetched.append(wanted)
                self._answer(200, FILES[wanted], {"ETag": f'"{len(wanted):040x}"', "X-Repo-Commit": COMMIT})

        def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", fetched
    server.shutdown()
    thread.join()
    server.server_close()


# The client reads its address and its cache when it is imported, so each hub needs a process of its own.
ASK = """
import json, sys
from bindlm.checkpoints import resolve
from bindlm.errors import CheckpointError
for line in json.loads(sys.argv[1]):
    try:
        path = resolve(line.pop("reference"), progress=False, **line)
        print(json.dumps(sorted(str(each.relative_to(path)) for each in path.rglob("*")) or path.name))
    except CheckpointError as error:
        print(json.dumps(f"CheckpointError: {error}"))
"""


def ask(endpoint: str, cache: Path, questions: list[dict[str, Any]], **settings: str) -> list[Any]:
    source = Path(__file__).parents[2] / "src"
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "NO_PROXY": "*"}
    environment |= {"PYTHONPATH": str(source), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_HUB_OFFLINE": "0", **settings}
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(questions)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_only_harmless_files_are_fetched_and_errors_are_ours(
    loopback_hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    endpoint, fetched = loopback_hub
    answers = ask(
        endpoint,
        tmp_path / "cache",
        [
            {"reference": "org/whole"},
            {"reference": "org/whole", "subfolder": "sub"},
            {"reference": "org/whole", "filename": "model.gguf"},
            {"reference": "org/whole", "revision": "v9"},
            {"reference": "org/whole", "filename": "missing.safetensors"},
            {"reference": "org/pickled"},
            {"reference": "org/gated"},
            {"reference": "org/unknown"},
        ],
    )
    safe = [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "sub",
        "sub/model.safetensors",
        "tokenizer.model",
    ]
    assert answers[0] == safe
    assert answers[1] == ["model.safetensors"]
    assert answers[2] == "model.gguf"
    for answer, claim in zip(
        answers[3:],
        [
            "org/whole has no revision 'v9'",
            "org/whole does not hold that file",
            "org/pickled holds no .safetensors file",
            "org/gated is gated: accept its licence",
            "the hub has no org/unknown, or it is private",
        ],
        strict=True,
    ):
        assert answer.startswith(f"CheckpointError: {claim}")
        assert "127.0.0.1" not in answer
    assert not any(name.endswith((".bin", ".py")) for name in fetched), "a pickle never reaches the disk"

    # What was fetched is found again without network, whichever way that is asked for.
    offline = [{"reference": "org/whole"}, {"reference": "org/other"}]
    for is_offline in ("1", "0"):
        answers = ask("http://127.0.0.1:9", tmp_path / "cache", offline, HF_HUB_OFFLINE=is_offline)
        assert set(answers[0]) == {*safe, "model.gguf"}
        assert answers[1].startswith("CheckpointError:")
        assert "127.0.0.1" not in answers[1]


def test_offline_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for options in ({}, {"filename": "config.json"}):
        with pytest.raises(CheckpointError, match="not in the hub's cache.*HF_HUB_OFFLINE"):
            resolve("org/name", **options)  # type: ignore[arg-type]
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(CheckpointError, match="not in the hub's cache"):
        resolve("org/name", local_files_only=True)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pth", "modeling.py", "weights.pt", "model.ckpt", "m.pkl"]
)
def test_pickles_and_code_are_refused_by_name(name: str) -> None:
    with pytest.raises(CheckpointError, match="may hold a pickle or code"):
        resolve("org/name", filename=name)


def test_bars_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    before = are_progress_bars_disabled()
    with hub._hub_bars(False):
        assert are_progress_bars_disabled()
    assert are_progress_bars_disabled() == before


def test_hub_cache_that_cannot_be_written_names_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def refuse(*args: object, **options: object) -> str:
        raise PermissionError(13, "Permission denied", str(tmp_path / "hub" / "lock"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="it is not writable") as raised:
        resolve("org/name")
    assert str(tmp_path / "hub") in str(raised.value)
