"""What the documents show runs: the examples of the README, the how-to pages and the notebooks."""

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from fedprune import config as cfg
from fedprune.cli import grid, main, parse, report, run, sweep_flags

ROOT = Path(__file__).parents[1]
HOWTO = ROOT / "docs" / "howto"


def blocks(path: Path, language: str) -> list[str]:
    """The code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.S | re.M)


PRINTING = re.compile(
    r"^```python\n(.*?)^```\n(?:\nIt prints:\n\n```text\n(.*?)^```\n)?", re.S | re.M
)
"""A Python block, and what the page says that it prints"""
EXAMPLES = blocks(ROOT / "README.md", "python")
PAGES = sorted(page for page in HOWTO.glob("*.md") if page.name != "README.md")
WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
PROMISES = (ROOT / "docs" / "promises.md").read_text()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LAUNCHES = [
    line.strip()
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    for line in re.sub(r"\\\n *", "", page.read_text()).splitlines()
    if re.match(r" *(srun .*)?\.venv/bin/fedprune ", line)
]


def script(path: Path):
    """A file that is in no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages = script(ROOT / "docs" / "pages.py")
execute = script(ROOT / "notebooks" / "execute.py")


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda code: code.splitlines()[0])
def test_readme_example(code, tmp_path):
    """In a fresh interpreter and an empty folder, after the run that it reads."""
    commands = [["-W", "error::FutureWarning", "-c", code]]
    if "runs/single_tiny" in code:
        commands.insert(0, ["-m", "fedprune", "run", "single:tiny"])
    for command in commands:
        result = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, result.stderr
    assert "0.80" in result.stdout or "classes" in result.stdout


def test_there_are_examples():
    assert EXAMPLES
    assert NOTEBOOKS
    assert PAGES
    assert {line.partition("fedprune ")[2].split()[0] for line in LAUNCHES} == set(main.COMMANDS)


@pytest.fixture
def quickly_compiled():
    """The pages compute next to nothing, so it is compiling that takes long."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_howto(page, monkeypatch, tmp_path, capsys, quickly_compiled):
    """Its blocks alone, as in a fresh interpreter in an empty folder, on one device and with JAX's
    own defaults. What stands under "It prints:" is what the block before it prints."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for code, promised in PRINTING.findall(page.read_text()):
            exec(compile(code, page.name, "exec"), names)
            printed = capsys.readouterr().out
            assert printed == (promised or printed)


def test_howto_pages_begin_alike():
    """Who has read one page knows the federation of the others."""
    rooms = "data, link, local, mesh, models, prune, rounds, run, server"
    begin = f"from fedprune import {rooms}\n\nK = 10"
    first = [blocks(page, "python")[0] for page in WITH_PYTHON]
    federations = {begin + code.partition(begin)[2] for code in first if begin in code}
    assert len(federations) == 1


@pytest.mark.parametrize("line", sorted(set(LAUNCHES)))
def test_launch_lines(line, tmp_path, monkeypatch, capsys):
    """Flags exist and take these values, and configuration and grid are ones that are allowed."""
    command = line.partition("bin/fedprune ")[2].partition(" || ")[0]
    name, *arguments = shlex.split(command, comments=True)
    if name == "report":
        monkeypatch.chdir(tmp_path)  # where none of the folders is
        assert report.main([name, *arguments]) == 2
        says = ": is no run directory" if "--remake" in arguments else ": there is no such folder"
        assert says in capsys.readouterr().err
        return
    given = parse.parse([name, *arguments], {"run": run, "sweep": sweep_flags}[name].define)
    if given.experiment is None:
        assert (name, given.values.grid) == ("sweep", None)
        assert given.values.workdir
        return
    cfg.validate(given.config)
    if name == "sweep":
        assert given.values.workdir
        asked = grid.parse(given.values.grid, given.config)
        grid.check(given.config, asked, given.experiment.arms)


def test_every_page_is_listed():
    """The index of the how-to pages decides what the site shows, and in which order."""
    linked = {
        Path(match[1]).name for match in pages.LINK.findall((HOWTO / "README.md").read_text())
    }
    assert {page.name for page in (*PAGES, *NOTEBOOKS)} <= linked


def test_every_link_leads_to_a_file():
    found = [pages.page(file) for file in [*pages.documents(), *NOTEBOOKS]]
    assert sum(len(linked) for _, linked in found) > 50


def test_a_link_to_nothing_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    page = tmp_path / "README.md"
    page.write_text("See [it](docs/it.md).")
    with pytest.raises(pages.BrokenLink, match=r"README\.md: docs/it\.md does not exist"):
        pages.page(page)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "it.md").write_text("")
    assert pages.page(page) == ("See [it](it.md).", [tmp_path / "docs" / "it.md"])


def test_reference_has_every_public_name():
    """Of the rooms as they are imported, where the reference reads their text."""
    for room in pages.rooms():
        text = pages.reference(room)
        module = importlib.import_module(f"fedprune.{room}")
        for name, value in vars(module).items():
            mine = getattr(value, "__module__", "").startswith(f"fedprune.{room}")
            if mine and callable(value) and not name.startswith("_") and value.__doc__:
                assert f"# {room}.{name}\n" in text, name
        assert module.__doc__.splitlines()[0].split("``")[0].split("_")[0] in text


@pytest.mark.parametrize(
    ("room", "name"), [("rounds", "hierarchical.build"), ("runs", "execution.plan")]
)
def test_reference_has_modules_that_are_imported_by_themselves(room, name):
    assert f"# {room}.{name}\n" in pages.reference(room)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_headings_of_notebooks(path):
    """A title, then sections."""
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    levels = [len(marks) for marks in re.findall(r"^(#+) ", text, re.M)]
    assert levels[0] == 1
    assert set(levels[1:]) == {2}


def outputs(notebook) -> list[list[tuple]]:
    """What kinds of outputs each cell has."""
    kinds = lambda output: (output.output_type, output.get("name"), *sorted(output.get("data", ())))
    return [[kinds(output) for output in cell.get("outputs", ())] for cell in notebook.cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_committed_with_its_outputs(path):
    """As ``make notebooks`` leaves it: no warning, no error, nothing of the machine behind it."""
    notebook = nbformat.read(path, as_version=4)
    for cell, found in zip(notebook.cells, outputs(notebook), strict=True):
        assert cell.cell_type != "code" or cell.execution_count
        assert not {kind for kind, *_ in found} & {"error"}
        assert not {name for _, name, *_ in found} & {"stderr"}
        figure = any("image/png" in data for _, _, *data in found)
        assert figure == ("plt.show()" in cell.source)
    assert not re.search(r"/(home|root|tmp|usr|Users|work)/", path.read_text())
    assert path.stat().st_size < 400_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path):
    """It runs, and has the outputs with which it is committed, but for their numbers."""
    assert outputs(execute.executed(path)) == outputs(nbformat.read(path, as_version=4))


def test_notebooks_install_what_is_missing(monkeypatch, tmp_path):
    """In a checkout that checkout, elsewhere nothing, with a line that says what to do."""
    (cell,) = {nbformat.read(path, as_version=4).cells[1].source for path in NOTEBOOKS}
    ran = []
    shell = SimpleNamespace(run_line_magic=lambda name, line, **_: ran.append((name, line)))
    code = TransformerManager().transform_cell(cell)
    monkeypatch.chdir(ROOT / "notebooks")
    exec(code, {"get_ipython": lambda: shell})
    assert not ran  # since fedprune is there
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    exec(code, {"get_ipython": lambda: shell})
    assert ran == [("pip", "install -q ..")]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="run `%pip install PATH`"):
        exec(code, {"get_ipython": lambda: shell})
    assert len(ran) == 1


@pytest.mark.parametrize("line", re.findall(r"pytest (tests/[^`\n]+)", PROMISES))
def test_the_commands_of_promises_find_tests(line):
    """Every file is there, and every word of -k is in the name of a test of one of them."""
    files, _, words = line.partition(" -k ")
    text = "".join((ROOT / file).read_text() for file in files.split())
    names = re.findall(r"^def (test_\w+)", text, re.M)
    for word in words.strip('"').split(" or "):
        assert any(word in name for name in names), word
