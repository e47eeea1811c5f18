"""How every program of the command line meets the shell: its streams, its exit status, and how it
starts itself again."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
"""the folder that holds the package"""


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Ends the process with what ``main`` returns.

    What the terminal's encoding lacks is printed as an escape. A reader that has gone, as ``head``,
    ends it silently, with 141, and Ctrl-C in one line, with 130, as a shell counts both.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main(sys.argv)
        print(end="", flush=True)
    except BrokenPipeError:
        status = 128 + signal.SIGPIPE
        for number in (1, 2):  # the interpreter flushes both at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from what is saved", file=sys.stderr)
        status = 128 + signal.SIGINT
    sys.exit(status)


def refuse(error: Exception | str, status: int) -> int:
    """Says in one line what is wrong; returns the exit status."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return status


def command(*words: str) -> list[str]:
    """The command line that starts ``fedprune`` again, with this interpreter."""
    return [sys.executable, "-m", "fedprune", *words]


def variables() -> dict[str, str]:
    """What the environment of such a process has to have, so that it finds this package from any
    folder: nothing where fedprune is installed, a search path where this is a checkout."""
    if not (ROOT / "pyproject.toml").exists():
        return {}
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    search = dict.fromkeys([str(ROOT), *filter(None, others)])
    return {"PYTHONPATH": os.pathsep.join(search)}
