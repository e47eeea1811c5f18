"""The rooms: who may import whom, read from the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedprune

ROOT = Path(__file__).parents[1]
STAGES = {"data", "models", "nn", "local", "prune", "link", "channel", "server", "payload"}
STAGES |= {"resources", "allocation", "theory", "coding"}
WORDS = {"types", "rng", "tree", "bill", "check", "paths"}
# Rooms beyond the common words that a stage may use.
ALSO = {
    "nn": set(),
    "models": {"nn"},
    "link": {"channel", "coding", "resources", "allocation"},
    "local": set(),
}
ALSO |= {"allocation": {"resources"}}
SOURCES = sorted([*ROOT.glob("fedprune/**/*.py"), *ROOT.glob("experiments/*.py")])


def imports(path: Path) -> set[str]:
    """All modules that a file imports, as dotted names; names imported from a module count too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(ROOT / "fedprune").parts[0].removesuffix(".py")


def rooms_used(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("fedprune.")}


PACKAGE = [p for p in SOURCES if p.is_relative_to(ROOT / "fedprune")]


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms(path):
    here, used = room(path), rooms_used(path)
    if here in ("__init__", "__main__", "cli"):
        return
    if here in ("types", "check", "paths"):
        assert used == set()
    elif here in WORDS:
        assert used <= {"types"}
    elif here in STAGES:
        assert used <= WORDS | {here} | ALSO.get(here, set())
    elif here == "mesh":
        assert used <= WORDS | {"mesh", "processes"}
    elif here == "meeting":
        assert used == set()
    elif here == "processes":
        assert used == {"meeting"}
    elif here == "backend":
        assert used <= {"processes"}
    elif here == "rounds":
        assert used <= WORDS | STAGES | {"mesh", "rounds"}
    elif here == "config":
        assert used <= {"paths", "config", "data"}
    elif here in ("profile", "progress"):
        assert used == set()
    elif here == "report":
        assert used <= {"report", "runs", "config", "__version__"}
    elif here == "runs" and path.stem not in ("execution", "loading", "loop", "checkpoint"):
        assert used <= {"runs"}
    elif here == "runs":
        assert not used & {"report", "studies", "airnet", "cli"}
    elif here == "algorithms":
        assert used <= WORDS | STAGES | {"mesh", "rounds", "run", "algorithms"}
        assert path.name == "__init__.py" or len(path.read_text().splitlines()) <= 80
        private = [name for name in imports(path) if any(p[0] == "_" for p in name.split("."))]
        assert private in ([], ["__future__.annotations"])
    elif here == "run":
        assert used <= WORDS | STAGES | {"mesh", "progress", "rounds", "run"}
    if here not in ("airnet", "studies"):
        assert not used & {"airnet", "studies"}
    if here == "studies":
        assert "airnet" not in used


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_only_some_may_import(path):
    names = imports(path)
    tops = {name.split(".")[0] for name in names}
    inside = path.is_relative_to(ROOT / "fedprune")
    assert "launch" not in tops, "nothing imports launch"
    if not (inside and room(path) == "cli"):
        assert not tops & {"absl", "ml_collections"}, "flags live in cli"
        assert not any(name.startswith("fedprune.cli") for name in names) or path.stem == "__main__"
    assert not tops & {"tensorflow", "torch"}
    assert "experiments" not in tops, "an experiment is a file by itself"
    if inside:
        assert "flax" not in tops or room(path) == "models"
        assert "orbax" not in tops or path == ROOT / "fedprune/runs/checkpoint.py"
        assert "mlflow" not in tops or path == ROOT / "fedprune/runs/mlflow.py"


AIRNET = (
    "settings",
    "lab",
    "training",
    "protection",
    "delivery",
    "digital",
    "comparison",
    "present",
)


@pytest.mark.parametrize("name", AIRNET)
def test_airnet_is_imported_one_way(name):
    assert {p.stem for p in ROOT.glob("fedprune/airnet/*.py")} == {"__init__", *AIRNET}
    used = imports(ROOT / "fedprune" / "airnet" / f"{name}.py")
    inside = {
        parts[2] for parts in (n.split(".") for n in used) if parts[:2] == ["fedprune", "airnet"]
    }
    assert inside <= set(AIRNET[: AIRNET.index(name)])


LINES, IN_FUNCTION = 350, 80
LONG_FILES = {
    "fedprune/types.py": "the contracts on one page, which users read from top to bottom",
}
LONG_FUNCTIONS: dict[str, str] = {}


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    said = function.body[0]
    return lines - (said.end_lineno - said.lineno + 1)


def test_files_and_functions_are_short():
    """But for those that are named with a reason, and none of these without need."""
    files, functions = set(), set()
    for path in [*SOURCES, *ROOT.glob("launch/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        name, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        if len(text.splitlines()) > LINES:
            files.add(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
                length(node) > IN_FUNCTION
            ):
                functions.add(f"{name}: {node.name}")
    assert files == {*LONG_FILES}
    assert functions == {*LONG_FUNCTIONS}


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_mesh_knows_devices(path):
    collectives = {"shard_map", "psum", "pmax", "pmin", "pmean", "all_gather", "ppermute"}
    used = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
    assert room(path) == "mesh" or not used & {*collectives, "all_to_all", "axis_index"}


def test_config_needs_no_jax():
    """Nor do its fields, its words and its rules, for every kind of everything."""
    code = (
        "import sys; from fedprune import config as cfg; c = cfg.Config(); cfg.validate_arms(c, [])"
        "; cfg.explain(c); print(*{'jax', 'flax', 'optax', 'orbax', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_rooms_are_imported_when_they_are_used():
    """All that are promised as ``fedprune.ROOM``, and none before; a name that is none is said."""
    code = """
import sys, fedprune
assert not [name for name in sys.modules if name.startswith("fedprune.") or name == "jax"]
assert {*fedprune.__all__} <= {*dir(fedprune)}
for name in fedprune.__all__:
    found = getattr(fedprune, name)
    if name == "load_run":
        assert found.__module__ == "fedprune.runs.loading"
    else:
        assert found.__name__ == f"fedprune.{name}"
try:
    fedprune.rund
except AttributeError as e:
    assert str(e) == "module 'fedprune' has no attribute 'rund'"
else:
    sys.exit(1)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    typed = imports(ROOT / "fedprune/__init__.py") - {"importlib", "typing.TYPE_CHECKING"}
    rooms = {f"fedprune.{name}" for name in fedprune.__all__ if name != "load_run"}
    assert typed - {"typing.Any"} == rooms | {"fedprune.runs.loading.load"}


def text_without_encoding(path: Path) -> list[int]:
    """Lines of calls that read or write text as the locale says."""
    found = []
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call) or any(k.arg == "encoding" for k in call.keywords):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        owner = getattr(getattr(call.func, "value", None), "id", "")
        binary = any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in call.args)
        of_path = name in ("read_text", "write_text") and isinstance(call.func, ast.Attribute)
        opened = name in ("open", "fdopen") and not binary and (owner, name) != ("Image", "open")
        if (of_path or opened) and (owner, name) != ("os", "open"):
            found.append(call.lineno)
    return found


@pytest.mark.parametrize("folder", ["fedprune", "experiments", "launch"])
def test_text_is_utf8_whatever_the_locale_says(folder):
    found = {path: text_without_encoding(path) for path in ROOT.glob(f"{folder}/**/*.py")}
    assert len(found) >= 4
    assert {path: lines for path, lines in found.items() if lines} == {}
