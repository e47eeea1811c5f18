"""What the documents show runs: the README's examples and the notebooks."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
PROMISES = (ROOT / "docs" / "promises.md").read_text()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


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


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit without outputs"
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()


@pytest.mark.parametrize("line", re.findall(r"pytest (tests/[^`\n]+)", PROMISES))
def test_the_commands_of_promises_find_tests(line):
    """Every file is there, and every word of -k is in the name of a test of one of them."""
    files, _, words = line.partition(" -k ")
    text = "".join((ROOT / file).read_text() for file in files.split())
    names = re.findall(r"^def (test_\w+)", text, re.M)
    for word in words.strip('"').split(" or "):
        assert any(word in name for name in names), word
