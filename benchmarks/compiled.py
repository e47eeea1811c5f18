"""What the rounds of the workloads cost once compiled, beside another checkout of this repository.

    python -m benchmarks.compiled --against=DIR

One process a workload and checkout compiles the rounds of a turn and counts its floating-point
operations and the bytes that they read and write, as XLA does, which counts the body of a loop
once; then turns are timed, one of each checkout after the other.
Prints a JSON line a workload: both counts, and the median time, of this checkout over the other's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

from absl import app, flags

from benchmarks import machine
from benchmarks.workloads import NAMES

AGAINST = flags.DEFINE_string("against", None, "root of the other checkout", required=True)
WORKLOADS = flags.DEFINE_list("workloads", NAMES[:-1], "which of them")
TURNS = flags.DEFINE_integer("turns", 5, "timed turns of each", lower_bound=1)
OUT = flags.DEFINE_string("out", "", "also write the lines to this file")

ROUND = """
import jax
import fedprune as fp
from benchmarks.peers import fedprune as ours
from benchmarks.worker import serve

def prepare(w):
    layout = fp.mesh.make()
    train, test = jax.device_put(ours.federation(w), layout.replicated())
    one, key = ours.algorithm(w, layout), jax.random.key(0)[None]
    state = fp.run.start(lambda _: one, ours.MODELS[w.model]().init, (), key)
    arms = fp.run.Arms((), key, state, train.rows[None], train.size[None])
    program = fp.run.program(lambda _: one, layout, w.rounds)
    cost = program.lower(arms, train, test).compile().cost_analysis()
    counts = {"operations": cost["flops"], "bytes": cost["bytes accessed"]}
    return lambda: jax.block_until_ready(program(arms, train, test)), counts

fp.backend.configure(0, cache=False)
serve(prepare)
"""


class Rounds:
    """One workload of one checkout, in a process of its own."""

    def __init__(self, checkout: Path, workload: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", ROUND, workload],
            cwd=checkout,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.counts = self._answer()
        self.seconds: list[float] = []

    def _answer(self):
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a process ended: {' '.join(self._process.args[2:])}")  # type: ignore
        return json.loads(line)

    def turn(self) -> None:
        """One timed turn."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.seconds.append(self._answer())

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def compared(workload: str) -> dict[str, object]:
    """This checkout over the other one."""
    here, there = (Rounds(Path(root), workload) for root in (".", AGAINST.value))
    for _ in range(TURNS.value):
        here.turn()
        there.turn()
    for rounds in (here, there):
        rounds.close()
    counts = {
        f"{what}_{name}": rounds.counts[what]
        for what in ("operations", "bytes")
        for name, rounds in (("here", here), ("there", there))
    }
    time = median(a / b for a, b in zip(here.seconds, there.seconds, strict=True))
    return {
        "workload": workload,
        **counts,
        "operations": round(here.counts["operations"] / there.counts["operations"], 4),
        "bytes": round(here.counts["bytes"] / there.counts["bytes"], 4),
        "time": round(time, 3),
        "turns": TURNS.value,
        **machine.facts(),
    }


def main(_) -> None:
    machine.publish([compared(workload) for workload in WORKLOADS.value], OUT.value)


if __name__ == "__main__":
    app.run(main)
