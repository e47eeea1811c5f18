"""The command ``fedprune``: which of its commands is meant."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fedprune import __version__
from fedprune.cli import shell
from fedprune.config import suggestion

COMMANDS = {
    "run": "run an experiment, or go on with it; without one: list what ships",
    "sweep": "run an experiment for every combination of some values",
    "report": "make the page of runs, or the tables of one run, again",
}
USAGE = f"""fedprune {__version__}: federated learning with model pruning over wireless channels

usage: fedprune COMMAND ...

{chr(10).join(f"  {name:<8}{about}" for name, about in COMMANDS.items())}

  fedprune run                    the experiments that ship, with their variants
  fedprune run ota_pruning:fast   one of them, into runs/ota_pruning_fast
  fedprune run ./mine.py:variant  a file of your own, from anywhere
  fedprune COMMAND --help         the flags of a command

python -m fedprune is the same command."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: the command's own, 0 for help, 2 for a command that there is not."""
    word = argv[1] if len(argv) > 1 else "--help"
    if word in ("--help", "-h", "-help", "--helpfull", "help"):
        print(USAGE)
        return 0
    if word == "--version":
        print(__version__)
        return 0
    if word not in COMMANDS:
        allowed = ", ".join(COMMANDS)
        near = suggestion(word, COMMANDS)
        return shell.refuse(f"{word}: there is no such command, must be one of {allowed}{near}", 2)
    words = [f"fedprune {word}", *argv[2:]]
    if word == "run":
        from fedprune.cli import run

        return run.main(words)
    if word == "sweep":
        from fedprune.cli import sweep

        return sweep.main(words)
    from fedprune.cli import report

    return report.main(words)


def entry() -> None:
    """The program, as it is installed."""
    sys.argv[0] = "fedprune"
    shell.run(main)
