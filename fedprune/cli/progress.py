"""How far the trials of a sweep are, on the screen."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from typing import TextIO

from fedprune.cli import trials
from fedprune.cli.trials import State, Sweep


class Table:
    """Progress: a table in place on a terminal, else a line whenever a trial starts or ends."""

    def __init__(self, sweep: Sweep, stream: TextIO | None = None) -> None:
        self._sweep, self._stream = sweep, stream or sys.stdout
        self._states = {trial.name: trials.state(sweep, trial) for trial in sweep.trials()}
        self._height = 0

    def show(self) -> None:
        """Reads how far the trials are, and shows it."""
        before = dict(self._states)
        for trial in self._sweep.trials():
            if before[trial.name].word != "finished":
                self._states[trial.name] = trials.state(self._sweep, trial)
        if self._stream.isatty():
            # Lines that wrap, or that have left the screen, could not be taken back.
            columns, rows = shutil.get_terminal_size()
            lines = [line[: columns - 1] for line in self.text(rows - 5).splitlines()]
            # To the first line of the last table, and everything below it away.
            up = f"\x1b[{self._height}F\x1b[J" if self._height else ""
            print(up + "\n".join(lines), file=self._stream, flush=True)
            self._height = len(lines)
            return
        ended = sum(state.word in ("finished", "failed") for state in self._states.values())
        for name, state in self._states.items():
            if state.word != before[name].word:
                line = f"[{ended}/{len(before)}] {name}: {_words(state)}"
                print(line, file=self._stream, flush=True)

    def text(self, most: int = 20) -> str:
        """Counts, and a line for each trial that runs or has failed, of the last ``most``."""
        from fedprune import report

        counts = Counter(state.word for state in self._states.values())
        shown = {n: s for n, s in self._states.items() if s.word in ("running", "failed")}
        words = ("finished", "running", "waiting", "failed")
        lines = [f"{len(self._states)} trials: " + ", ".join(f"{counts[w]} {w}" for w in words)]
        if shown:
            body = [[name, _words(state)] for name, state in shown.items()]
            lines.append(report.table(["trial", "state"], body[-max(1, min(most, 20)) :]))
        return "\n".join(lines)


def _words(state: State) -> str:
    parts = [state.word]
    if state.round:
        parts.append(f"round {state.round}")
    if state.accuracy is not None:
        parts.append(f"accuracy {state.accuracy:.3f}")
    if state.seconds is not None:
        parts.append(f"{state.seconds:.0f} s")
    return ", ".join(parts)
