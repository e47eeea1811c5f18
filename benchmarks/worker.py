"""A framework's side of the conversation with ``benchmarks.run``; needs only NumPy.

The parent sends a line for every turn and takes the seconds that it took. What a framework prints
goes to the error output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

from benchmarks.workloads import Workload, workload


class Turns:
    """Times turns, one after every line on the input."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._began = time.perf_counter()
        self._first = True

    def begin(self) -> None:
        """Everything is imported and prepared; the first turn, which may compile, starts."""
        self._began = time.perf_counter()

    def more(self, **facts: object) -> bool:
        """Ends a turn and waits until the next one may start; False if there is none.

        Args:
          **facts: versions and settings; reported at the end of the first turn only.
        """
        seconds = time.perf_counter() - self._began
        answer = {"first_turn_s": round(seconds, 2), **facts} if self._first else seconds
        self._first = False
        print(json.dumps(answer), file=self._out, flush=True)
        going = bool(sys.stdin.readline())
        self._began = time.perf_counter()
        return going


def asked() -> Workload:
    """The workload that the command line names."""
    return workload(sys.argv[1])


def serve(prepare: Callable[[Workload], tuple[Callable[[], None], dict]]) -> None:
    """The main function of a framework that can run one round at a time.

    Args:
      prepare: workload -> (a function that runs one turn to its end, facts to report).
    """
    turns = Turns()
    turn, facts = prepare(asked())
    turns.begin()
    turn()
    while turns.more(**facts):
        turn()


def fastest(settings: dict[str, Callable[[], None]]) -> str:
    """The name of the setting that runs fastest, each tried twice after a first time."""
    best = {}
    for name, run in settings.items():
        run()
        times = []
        for _ in range(2):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        best[name] = min(times)
    return min(best, key=best.__getitem__)
