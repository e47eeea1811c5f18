"""The wheel, installed where there is no checkout: the command does there what the README does."""

import ast
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUICK = ["--config.run.rounds=4", "--config.pruning.steps=1", "--config.mesh.devices=1"]


def pip(*words) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def wheel_of(source: Path, folder: Path) -> Path:
    """With the build backend that is here, since an isolated build would ask the network."""
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", f"--wheel-dir={folder}", source)
    (built,) = folder.glob("*.whl")
    return built


def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return wheel_of(ROOT, tmp_path_factory.mktemp("dist"))


class Installed:
    """An environment with the wheel that sees the libraries of this one, and no checkout."""

    def __init__(self, place: Path, wheel: Path) -> None:
        self.bin, self.folder = place / "environment" / "bin", place / "empty"
        self.folder.mkdir()
        command = [sys.executable, "-m", "venv", "--without-pip", place / "environment"]
        subprocess.run(command, check=True, timeout=300)
        pip(f"--python={self.bin / 'python'}", "install", "--no-deps", "--no-index", wheel)
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        own = place / "environment" / "lib" / version / "site-packages"
        # Folders that a .pth names are searched, and their own .pth, the checkout's, are not read.
        libraries = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
        (own / "libraries.pth").write_text("\n".join(libraries), encoding="utf-8")

    def __call__(self, program: str, *words) -> subprocess.CompletedProcess:
        found = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return subprocess.run(
            [self.bin / program, *map(str, words)],
            cwd=self.folder, env=found, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def arms(self, folder: str) -> set[str]:
        rows = (self.folder / folder / "metrics.jsonl").read_text().splitlines()
        return {json.loads(row)["arm"] for row in rows}


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), built)


def test_what_a_wheel_holds(built, tmp_path):
    """The experiments inside of the package, and nothing beside it; the same from an sdist."""
    found = names(built)
    assert {name.partition("/")[0].partition("-")[0] for name in found} == {"fedprune"}
    files = {file.name for file in (ROOT / "experiments").glob("*.py")}
    assert {f"fedprune/experiments/{name}" for name in files} <= found
    assert "fedprune/data/fashion_mnist_10k.npz" in found
    assert not [name for name in found if "__pycache__" in name or "tests" in name]
    sdist = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(sdist, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    again = wheel_of(next(p for p in tmp_path.iterdir() if p.is_dir()), tmp_path / "again")
    assert names(again) == found


def test_help_and_a_list(installed):
    """Of a package that is not the checkout's."""
    place = installed("python", "-c", "import fedprune; print(fedprune.__file__)").stdout
    assert place.startswith(str(installed.bin.parent))
    for words in (["--help"], ["run", "--help"], ["sweep", "--help"], ["report", "--help"]):
        result = installed("fedprune", *words)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout
    assert installed("python", "-m", "fedprune", "--help").returncode == 0
    assert "\n  single: fast, tiny\n" in installed("fedprune", "run").stdout


def test_experiments_that_ship_are_found(installed):
    """All of them, so that each finds what it imports."""
    code = "from fedprune.cli import experiments as e\n"
    code += "print([e.load(about.name)[1].experiment for about in e.shipped()])"
    result = installed("python", "-c", code)
    assert result.returncode == 0, result.stderr
    files = {file.stem for file in (ROOT / "experiments").glob("*.py")}
    assert set(ast.literal_eval(result.stdout)) == files - {"__init__", "model_sizes"}


@pytest.mark.slow
def test_runs_in_an_empty_directory(installed):
    """One that ships, a changed copy with its own arms, a sweep of that, and reports."""
    result = installed("fedprune", "run", "single:tiny", *QUICK)
    assert result.returncode == 0, result.stderr
    assert installed.arms("runs/single_tiny") == {"run"}

    text = (ROOT / "experiments" / "single.py").read_text(encoding="utf-8")
    text = text.replace("Arm(ARM, {})", 'Arm("mine", {"uplink.link": "ideal"})')
    (installed.folder / "mine.py").write_text(text.replace('ARM = "run"', 'ARM = "mine"'))
    result = installed("fedprune", "run", "./mine.py:tiny", *QUICK, "--workdir=here")
    assert result.returncode == 0, result.stderr
    assert installed.arms("here") == {"mine"}
    (begun,) = json.loads((installed.folder / "here" / "run.json").read_text())["starts"]
    assert begun["experiment"]["file"] == str(installed.folder / "mine.py")

    sweep = ["mine.py:tiny", *QUICK, "--grid=seed=1", "--on=local", "--workdir=swept"]
    result = installed("fedprune", "sweep", *sweep)
    assert result.returncode == 0, result.stderr
    assert installed.arms("swept/trials/run.seed=1") == {"mine"}

    result = installed("fedprune", "report", "here", "runs/single_tiny", "--out=both.html")
    assert (result.returncode, result.stderr) == (0, "")
    assert (installed.folder / "both.html").exists()
    result = installed("fedprune", "report", "here", "--remake")
    assert result.returncode == 0, result.stderr
    assert "The whole run" in result.stdout


def test_refusals(installed):
    before = set(installed.folder.iterdir())
    for words, says in (
        (["run", "singel"], "singel: there is no such experiment (did you mean single?)"),
        (["run", "single", "--config.run.rounds=0"], "run.rounds=0: must be an integer"),
        (["run", "nothing.py"], "nothing.py: there is no such experiment file"),
        (["report", "nothing"], "nothing: there is no such folder"),
    ):
        result = installed("fedprune", *words)
        assert result.returncode == 2
        assert result.stderr.startswith(f"error: {says}")
        assert result.stderr.count("\n") == 1
    assert set(installed.folder.iterdir()) == before
