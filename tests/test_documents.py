"""What the documents show runs: the examples of the README, the how-to pages and the notebooks."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient

from fedprune import config

ROOT = Path(__file__).parents[1]
HOWTO = ROOT / "docs" / "howto"


def blocks(path: Path, language: str) -> list[str]:
    """The code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.S | re.M)


EXAMPLES = blocks(ROOT / "README.md", "python")
PAGES = sorted(page for page in HOWTO.glob("*.md") if page.name != "README.md")
PROMISES = (ROOT / "docs" / "promises.md").read_text()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LAUNCHES = [
    line
    for page in (ROOT / "README.md", ROOT / "docs" / "performance.md", *PAGES)
    for block in blocks(page, "sh")
    for line in re.sub(r"\\\n *", "", block).splitlines()
    if "launch.main" in line
]
spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pages)


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda code: code.splitlines()[0])
def test_readme_example(code):
    """In a fresh interpreter, as a reader would."""
    result = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr


def test_there_are_examples():
    assert EXAMPLES
    assert NOTEBOOKS
    assert PAGES
    assert LAUNCHES


@pytest.fixture
def quickly_compiled():
    """The pages compute next to nothing, so it is compiling that takes long."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_howto(page, monkeypatch, tmp_path, quickly_compiled):
    """The frame of the how-to pages and one of them, on one device and with JAX's own defaults."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names: dict = {"__name__": page.stem}
    code = "".join(code for file in (HOWTO / "README.md", page) for code in blocks(file, "python"))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(code, page.name, "exec"), names)


@pytest.mark.parametrize("line", sorted(set(LAUNCHES)))
def test_launch_lines(line):
    """Experiment and flags exist, and the configuration is one that is allowed."""
    flags = dict(re.findall(r"--([\w.]+)(?:=(\S+))?", line))
    defined = re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", (ROOT / "launch" / "main.py").read_text())
    assert {name.partition(".")[0] for name in flags} <= set(defined)
    file, _, variant = flags["config"].partition(":")
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    changes = {name[7:]: value for name, value in flags.items() if name.startswith("config.")}
    config.validate(
        config.override(module.get_config(variant), {k: said(v) for k, v in changes.items()})
    )


def said(value: str):
    """A flag's value: a number, a tuple or a word."""
    try:
        return ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return value


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


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit without outputs"
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    for cell in notebook.cells:
        if "plt.show()" in cell.source:
            assert any("image/png" in output.get("data", {}) for output in cell.outputs)


@pytest.mark.parametrize("line", re.findall(r"pytest (tests/[^`\n]+)", PROMISES))
def test_the_commands_of_promises_find_tests(line):
    """Every file is there, and every word of -k is in the name of a test of one of them."""
    files, _, words = line.partition(" -k ")
    text = "".join((ROOT / file).read_text() for file in files.split())
    names = re.findall(r"^def (test_\w+)", text, re.M)
    for word in words.strip('"').split(" or "):
        assert any(word in name for name in names), word
