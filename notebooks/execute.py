"""Executes notebooks and keeps their outputs: ``python notebooks/execute.py [FILES]``, or all."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def executed(file: Path) -> nbformat.NotebookNode:
    """A notebook with its outputs, without anything that differs each time: progress, dates.

    Raises:
      ValueError: a cell printed a warning, or anything else but progress, on standard error.
      CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(file, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(file.parent)}},
    )
    client.execute()
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr" and not _is_progress(output.text):
                raise ValueError(f"{file.name}: {output.text.strip()}")
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def _is_progress(text: str) -> bool:
    """Whether ``run.simulate`` printed all of it."""
    return all(line.startswith("simulation: ") for line in text.splitlines() if line)


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:] or sorted(HERE.glob("*.ipynb"))):
        nbformat.write(executed(file), file)
        print(file.name)
