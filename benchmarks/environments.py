"""The Python environments of the other frameworks, in ``.bench/NAME``.

``environments/NAME.txt`` holds all their versions. FedJAX needs Python 3.12 or newer, with the JAX
that it was tried on; the others run on the Python that runs this.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Environment(NamedTuple):
    """How an environment differs from ``pip install -r NAME.txt`` on this Python."""

    oldest: tuple[int, int] = (3, 11)
    """Python"""
    alone: tuple[str, ...] = ()
    """packages that are installed without what they ask for, after everything else"""


ENVIRONMENTS = {
    "torch": Environment(),
    "pfl": Environment(),
    # Flower asks for newer versions of packages that its simulation works without.
    "flower": Environment(alone=("flwr==1.42.0",)),
    "fedjax": Environment(oldest=(3, 12)),
}


def interpreter(name: str, create: bool) -> Path | None:
    """The Python of an environment; None if it is missing and not to be made.

    Args:
      name: one of ``ENVIRONMENTS``, or "" for the environment that runs this.
      create: make it if it is missing.

    Raises:
      RuntimeError: no Python that is new enough, or an installation that failed.
    """
    if not name:
        return Path(sys.executable)
    folder = ROOT / ".bench" / name
    python = folder / "bin" / "python"
    if python.exists() or not create:
        return python if python.exists() else None
    try:
        install = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([_python(ENVIRONMENTS[name].oldest), "-m", "venv", folder], check=True)
        subprocess.run(
            [*install, "-r", Path(__file__).parent / "environments" / f"{name}.txt"], check=True
        )
        if ENVIRONMENTS[name].alone:
            subprocess.run([*install, "--no-deps", *ENVIRONMENTS[name].alone], check=True)
    except (subprocess.CalledProcessError, RuntimeError) as e:
        shutil.rmtree(folder, ignore_errors=True)
        raise RuntimeError(f"environment {name} could not be made: {e}") from e
    return python


def _python(oldest: tuple[int, int]) -> str:
    """A Python that is at least so new: this one, or one on the PATH or of pyenv."""
    if sys.version_info[:2] >= oldest:
        return sys.executable
    pyenv = sorted(Path.home().glob(".pyenv/versions/3.*/bin/python"), reverse=True)
    for candidate in ["python3.13", "python3.12", *map(str, pyenv)]:
        test = f"import sys; sys.exit(sys.version_info[:2] < {oldest!r})"
        if (
            shutil.which(candidate)
            and subprocess.run([candidate, "-c", test], capture_output=True).returncode == 0
        ):
            return candidate
    raise RuntimeError(f"no Python {'.'.join(map(str, oldest))} or newer was found")
