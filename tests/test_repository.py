"""Promises of the repository itself: who imports whom, what is pinned, what ships, how large things are."""

import ast
import os
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import bindlm

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "bindlm"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = sorted(PACKAGE.rglob("*.py"))

# --- who imports whom ---

ROWS = [
    {"errors"},
    {"checkpoints"},
    {"media"},
    {"encoders", "space", "bridges", "injections"},
    {"tuning"},
    {"asking", "attaching", "bound_encoder", "configuration", "embedding", "folder"}
    | {"loading", "modeling", "modeling_folder", "processing"},
    {"training"},
    {"caching"},
    {"binding"},
    {"evaluation", "apps", "serving"},
    {"cli"},
    {"__main__"},
]
"""The data's journey from top to bottom: a module imports from its own row and from those above it, never below.

`checkpoints` stands first, since every part reads its own published weights; `media` next, since an encoder family is
weights and the preprocessing they were trained with. `tuning` stands above the model, which carries its LoRA.
"""
STATIONS = ROWS[3]
"""The stations do not know each other; only the model composes them."""
PUBLIC_API = "loading"
"""Where `bindlm.load` and the like come from, hence the row that `import bindlm` counts as."""


def station_of(path):
    """`media` for src/bindlm/media/image.py, `errors` for src/bindlm/errors.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_stations(path):
    """The parts of bindlm that a file imports anywhere in it, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")
            if node.level:  # relative, counted from the file's own package
                here = ["bindlm", *path.relative_to(PACKAGE).parent.parts]
                module = here[: len(here) - node.level + 1] + ([] if node.module is None else module)
            names = [[*module, alias.name] for alias in node.names]
        else:
            continue
        for package, *rest in names:
            if package == "bindlm":
                found.add(public_station(rest[0]) if rest else PUBLIC_API)
    return found - {None}


def public_station(name):
    """Where a name of `from bindlm import name` lives; None for the version."""
    if any(name in row for row in ROWS):
        return name
    if name in bindlm._LAZY_EXPORTS:
        return bindlm._LAZY_EXPORTS[name].split(".")[1]
    return "errors" if name.endswith("Error") else None if name == "__version__" else name


def wrong_imports(path):
    """Which imports of a file break the rule."""
    row_of = {station: number for number, row in enumerate(ROWS) for station in row}
    here = station_of(path)
    wrong = set()
    for other in imported_stations(path) - {here}:
        is_neighbour = here in STATIONS and other in STATIONS
        if other not in row_of or row_of[other] > row_of[here] or is_neighbour:
            wrong.add(other)
    return wrong


def test_every_part_has_its_row():
    parts = {station_of(path) for path in SOURCES} - {"__init__"}
    assert not parts - set().union(*ROWS), "add the new part to ROWS, where its imports may come from"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    if path == PACKAGE / "__init__.py":
        return  # it names the public parts of every row; test_imports.py holds that it loads none of them
    assert not wrong_imports(path)


@pytest.mark.parametrize(
    ("file", "line", "wrong"),
    [
        ("media/image.py", "from bindlm.encoders import build_encoder", {"encoders"}),
        ("media/image.py", "from ..encoders.mini import MiniEncoder", {"encoders"}),
        ("media/image.py", "def read():\n    import bindlm.modeling", {"modeling"}),
        ("media/image.py", "from bindlm import load", {"loading"}),
        ("media/image.py", "from . import limits\nfrom .limits import ImageLimits", set()),
        ("checkpoints/gguf.py", "from bindlm.modeling import Answer", {"modeling"}),
        ("training/mini/draws.py", "from bindlm.evaluation import bench", {"evaluation"}),
        ("training/mini/draws.py", "from bindlm.media import load_image", set()),
        ("cli/ask.py", "import bindlm\nfrom bindlm import __version__", set()),
        ("modeling.py", "from bindlm.errors import ConfigError\nfrom bindlm.nowhere import x", {"nowhere"}),
    ],
)
def test_the_rule_sees_what_breaks_it(tmp_path, monkeypatch, file, line, wrong):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    assert wrong_imports(path) == wrong


def test_lazy_names_are_those_that_type_checkers_see():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == bindlm._LAZY_EXPORTS
    assert set(seen) <= set(bindlm.__all__)


# --- nothing that runs code from a file of weights ---


def unsafe_loads(source):
    """Calls that unpickle, and imports of what unpickles."""
    unsafe = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = {alias.name.split(".")[0] for alias in node.names} | {(module or "").split(".")[0]}
            unsafe += names & {"pickle", "cPickle", "dill", "joblib", "shelve"}
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called == "torch.load" and keywords.get("weights_only") != "True":
                unsafe.append(ast.unparse(node))
            if keywords.get("allow_pickle") == "True" or keywords.get("trust_remote_code") == "True":
                unsafe.append(ast.unparse(node))
    return unsafe


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_unpickled(path):
    assert not unsafe_loads(path.read_text())


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "import pickle",
        "from joblib import load",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
    ],
)
def test_the_search_for_unpickling_finds_it(line):
    assert len(unsafe_loads(line)) == 1
    assert not unsafe_loads("torch.load(path, weights_only=True); np.load(path, allow_pickle=False)")


# --- what is pinned ---


def pins():
    lines = [line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def declared(*extras):
    lines = list(PROJECT["project"]["dependencies"])
    for extra in extras:
        lines += PROJECT["project"]["optional-dependencies"][extra]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != "bindlm"]


def test_constraints_are_plain_pins():
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert "torch==2.13.0\n" in text
    assert not [name for name, version in pins().items() if version.local], "only some indexes have local versions"


def test_constraints_cover_what_is_declared():
    pinned = pins()
    for requirement in declared("train", "test", "dev"):
        assert canonicalize_name(requirement.name) in pinned, requirement
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_constraints_cover_dependencies_of_dependencies():
    pinned = pins()
    waiting = declared("train", "test")
    seen = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        # CUDA builds of torch pin their own libraries, which a CPU build does not even name.
        assert name in pinned or name.startswith(("nvidia-", "cuda-", "triton")), f"{name} is not pinned"
        try:
            waiting += [Requirement(line) for line in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            pytest.fail(f"{name} is not installed: run `make test`, or pip install -c constraints.txt -e '.[test]'")
    assert {"torch", "sympy", "tokenizers", "pytest"} <= seen


def test_no_dependency_that_drags_in_a_build_of_torch():
    refused = {"torchvision", "torchaudio", "timm", "decord", "open3d", "pytorchvideo"}
    assert not refused & {requirement.name for requirement in declared("train", "test", "dev")}
    assert not refused & set(pins())


def test_each_dependency_says_why_it_is_there():
    text = (ROOT / "pyproject.toml").read_text()
    for requirement in declared("train", "test", "dev"):
        assert re.search(rf'^ +"{re.escape(requirement.name)}[^"]*", +# \w', text, re.MULTILINE), requirement.name


# --- what ships, and how large it is ---


def repository_files():
    """Everything that is or would be committed."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this copy is no git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_files_are_small():
    large = {str(path.relative_to(ROOT)): path.stat().st_size for path in repository_files()}
    weights = large.pop("src/bindlm/mini/model.safetensors", 0)
    assert weights <= 40e6, "the mini's weights are to be 40 MB at most"
    assert not {name: size for name, size in large.items() if size > 1e6}


def test_source_files_are_one_thought_each():
    long = {path: len(path.read_text().splitlines()) for path in repository_files() if path.suffix == ".py"}
    assert not {str(path.relative_to(ROOT)): lines for path, lines in long.items() if lines > 600}


def test_whatever_lies_beside_the_code_is_packaged():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["bindlm"]
    packaged = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    beside = {path for path in repository_files() if PACKAGE in path.parents and path.suffix != ".py"}
    assert {PACKAGE / "py.typed"} <= beside
    assert not beside - packaged, "add a pattern to package-data in pyproject.toml"


def test_every_folder_with_code_is_a_package():
    assert not {str(path.parent) for path in SOURCES if not (path.parent / "__init__.py").is_file()}


def test_the_version_is_in_the_changelog():
    assert f"## [{bindlm.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


# --- the commands that the pages name ---


def make_targets():
    lines = (ROOT / "Makefile").read_text().splitlines()
    return {match[1] for line in lines if (match := re.match(r"([a-z]+):(?!=)", line))}


@pytest.mark.parametrize(
    ("page", "needed"), [("README.md", {"chat", "test", "mini", "bench"}), ("CONTRIBUTING.md", {"test", "check"})]
)
def test_pages_name_commands_that_exist(page, needed):
    from bindlm.cli import VERBS

    text = (ROOT / page).read_text()
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    targets = set(re.findall(r"\bmake ([a-z]+)\b", code))
    assert needed <= targets
    assert targets <= make_targets()
    assert set(re.findall(r"(?:^|[`$] ?)bindlm ([a-z]+)\b", code, re.MULTILINE)) <= set(VERBS)


def test_ci_runs_the_test_command():
    script = ROOT / ".ci" / "run"
    assert script.read_text().rstrip().endswith("make --no-print-directory test")
    assert os.access(script, os.X_OK)
    assert "CI=true" in script.read_text()
