"""What is imported when: nothing heavy by `import bindlm`, and every module with nothing but the core install."""

import os
import pkgutil
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

import bindlm

SOURCE = Path(bindlm.__file__).parent.parent
MODULES = ["bindlm", *(module.name for module in pkgutil.walk_packages(bindlm.__path__, "bindlm."))]


def run_python(code, *options):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)


def test_the_walk_finds_the_package():
    assert {"bindlm.__main__", "bindlm.cli.ask", "bindlm.errors", "bindlm.media"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name):
    assert import_module(name).__doc__, f"{name} does not say what it is for"


@pytest.mark.slow
def test_the_core_install_is_enough_to_import_every_module():
    """Packages of the extras are hidden, whether they are installed here or not."""
    code = f"""
import importlib, importlib.machinery

find_spec = importlib.machinery.PathFinder.find_spec

@classmethod  # torch's pickling library calls it on an instance
def find_what_is_not_hidden(finder, name, path=None, target=None):
    hidden = {{"matplotlib", "datasets", "pyarrow", "ray", "tensorboard", "pytest", "hypothesis", "mypy", "ruff"}}
    return None if name.partition(".")[0] in hidden else find_spec(name, path, target)

importlib.machinery.PathFinder.find_spec = find_what_is_not_hidden
failed = {{}}
for name in {MODULES!r}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
for name in ("matplotlib", "pytest"):
    assert importlib.util.find_spec(name) is None, name
print(failed)
"""
    process = run_python(code)
    assert process.stdout == "{}\n", process.stdout + process.stderr


def test_import_bindlm_brings_in_nothing_heavy():
    code = "import sys, bindlm, bindlm.cli, bindlm.media, bindlm.checkpoints; print(*sys.modules)"
    process = run_python(code)
    assert process.returncode == 0, process.stderr
    imported = set(process.stdout.split())
    assert "bindlm.errors" in imported
    assert not imported & {"torch", "transformers", "numpy", "PIL", "safetensors", "peft", "faiss"}


def test_import_bindlm_takes_under_half_a_second():
    seconds: list[float] = []
    # One fast run is the proof, the start of Python included: slower ones measure what else the machine is doing.
    while len(seconds) < 10 and not any(each < 0.5 for each in seconds):
        started = time.perf_counter()
        assert run_python("import bindlm").returncode == 0
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5, seconds


def test_every_public_name_is_there_and_listed():
    assert bindlm.__all__ == sorted(bindlm.__all__)
    assert set(bindlm.__all__) <= set(dir(bindlm))
    for name in bindlm.__all__:
        assert getattr(bindlm, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'bindlm' has no attribute 'lode'"):
        bindlm.lode  # noqa: B018


def test_auto_classes_know_bindlm_once_its_model_is_imported():
    from transformers import AutoConfig

    assert bindlm.BindLMForConditionalGeneration.__name__  # importing its module registers it
    assert isinstance(AutoConfig.for_model("bindlm"), bindlm.BindLMConfig)
