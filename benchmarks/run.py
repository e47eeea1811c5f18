"""Times frameworks side by side on one workload.

    python -m benchmarks.run --workload=W1 \
        --frameworks=fedprune,fedjax,pfl,flower,torch,torch_vmap,central

Every framework runs in a process, and where it needs one an environment, of its own
(``.bench/NAME``; ``--create`` makes those that are missing, otherwise they are skipped by name).
The processes take turns, one or some rounds each, while the others wait: whatever slows the machine
down slows all of them. Matrix products take turns with them, and are the peak of the machine.
Printed: a JSON line per framework with median, quartiles and ratios. ``--out`` also writes them to
a file, and draws them beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from absl import app, flags

from benchmarks import environments, figure, machine
from benchmarks.workloads import NAMES as WORKLOAD_NAMES
from benchmarks.workloads import WORKLOADS, workload

# name -> (environment or "" for ours, module and its arguments after the workload)
FRAMEWORKS: dict[str, tuple[str, list[str]]] = {
    "fedprune": ("", ["benchmarks.peers.fedprune"]),
    "fedjax": ("fedjax", ["benchmarks.peers.fedjax"]),
    "pfl": ("pfl", ["benchmarks.peers.pfl"]),
    "flower": ("flower", ["benchmarks.peers.flower"]),
    "torch": ("torch", ["benchmarks.peers.torch_loop", "loop"]),
    "torch_vmap": ("torch", ["benchmarks.peers.torch_loop", "vmap"]),
    "central": ("torch", ["benchmarks.peers.torch_loop", "central"]),
}
PEAK: dict[str, tuple[str, list[str]]] = {
    "matmul_jax": ("", ["benchmarks.peers.matmul", "jax"]),
    "matmul_torch": ("torch", ["benchmarks.peers.matmul", "torch"]),
    "copy": ("", ["benchmarks.peers.matmul", "copy"]),
}


class Entry(NamedTuple):
    """What takes part."""

    label: str
    workload: str
    environment: str
    module: list[str]


class Worker:
    """A framework's process, ready to run one turn at a time.

    Raises:
      RuntimeError: it died while it prepared itself.
    """

    def __init__(self, entry: Entry, python: Path) -> None:
        name, *arguments = entry.module
        self.entry = entry
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [str(python), "-m", name, entry.workload, *arguments],
            cwd=environments.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if not VERBOSE.value else None,
            text=True,
        )
        self.facts = self._read()
        self.ready_s = time.perf_counter() - began
        self.turns: list[float] = []
        self.peak_mb: float | None = None

    def turn(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self.turns.append(self._read())
        self.peak_mb = machine.peak_memory_mb(self._process.pid)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _read(self):
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"exit status {self._process.wait()} (--verbose shows why)")
        return json.loads(line)


def started(entries: list[Entry], create: bool) -> list[Worker]:
    """The workers that can be started; says why about the others."""
    workers = []
    for entry in entries:
        try:
            python = environments.interpreter(entry.environment, create)
            if python is None:
                raise RuntimeError(f"no environment .bench/{entry.environment} (--create)")
            workers.append(Worker(entry, python))
        except RuntimeError as e:
            print(f"{entry.label}: skipped, {e}", file=sys.stderr, flush=True)
    return workers


def interleave(workers: list[Worker], turns: int) -> None:
    """Every worker in turn, so many times; then all are closed."""
    for _ in range(turns):
        for worker in workers:
            worker.turn()
    for worker in workers:
        worker.close()


def spread(values: list[float]) -> list[float]:
    """First and third quartile."""
    if len(values) < 2:
        return [values[0]] * 2
    low, _, high = quantiles(values, n=4, method="inclusive")
    return [low, high]


def compare(entries: list[Entry], turns: int, create: bool) -> list[dict]:
    """A row for every entry that runs, and one for each measured limit of the machine.

    ``round_s`` is the time of a round with all its clients, ``compile_s`` that of the first turn
    beyond a later one, ``ready_s`` that from the process's start to the end of its first turn.
    ``limit_s`` is the time of a round on this machine if it did either nothing but the arithmetic
    of the network at the rate of matrix products, or nothing but move its operands at the rate of
    copies, whichever takes longer.
    """
    limits = [Entry(name, entries[0].workload, *PEAK[name]) for name in PEAK]
    workers = started([*limits, *entries], create)
    interleave(workers, turns)
    rates = {
        w.entry.label: w.facts.get("flops", w.facts.get("bytes")) / median(w.turns) / 1e9
        for w in workers
        if w.entry.label in PEAK
    }
    peak = max(rate for label, rate in rates.items() if label != "copy")
    rows: list[dict] = [
        {"framework": k, "gbytes_s" if k == "copy" else "gflops": round(v, 1)}
        for k, v in rates.items()
    ]
    timed = [_row(w, peak, rates["copy"]) for w in workers if w.entry.label not in PEAK]
    first = next((row["round_s"] for row in timed if row["framework"] == "fedprune"), None)
    for row in timed:
        if first:
            row["time_over_fedprune"] = round(row["round_s"] / first, 3)
    return [{**row, **machine.facts()} for row in [*rows, *timed]]


def _row(worker: Worker, peak: float, copied: float) -> dict:
    """What one worker took; ``peak`` in Gflop/s, ``copied`` in GB/s."""
    w = workload(worker.entry.workload)
    times = [w.clients / w.cohort / w.rounds * t for t in worker.turns]
    middle = median(times)
    limit = max(w.flops() / peak, w.traffic() / copied) / 1e9
    return {
        "workload": worker.entry.workload,
        "framework": worker.entry.label,
        "round_s": round(middle, 5),
        "round_s_quartiles": [round(q, 5) for q in spread(times)],
        "turns": len(times),
        "rounds_a_turn": w.rounds,
        "clients": w.clients,
        "clients_timed": w.cohort,
        "gflops": round(w.flops() / middle / 1e9, 2),
        "percent_of_peak": round(100 * w.flops() / middle / 1e9 / peak, 1),
        "limit_s": round(limit, 5),
        "percent_of_limit": round(100 * limit / middle, 1),
        "compile_s": round(max(0.0, worker.facts["first_turn_s"] - median(worker.turns)), 2),
        "ready_s": round(worker.ready_s, 2),
        "peak_memory_mb": worker.peak_mb,
        **worker.facts,
    }


WORKLOAD = flags.DEFINE_enum("workload", "W1", WORKLOAD_NAMES, "what is timed")
NAMES = flags.DEFINE_list("frameworks", list(FRAMEWORKS), "which frameworks")
TURNS = flags.DEFINE_integer(
    "turns", 0, "timed turns of each; 0: the workload's own", lower_bound=0
)
CREATE = flags.DEFINE_bool("create", False, "make missing environments")
SMOKE = flags.DEFINE_bool("smoke", False, "two clients, one turn: shows only that all runs")
VERBOSE = flags.DEFINE_bool("verbose", False, "show what the frameworks print")
OUT = flags.DEFINE_string("out", "", "also write the lines to this file")


def main(_) -> None:
    unknown = set(NAMES.value) - set(FRAMEWORKS)
    if unknown:
        raise app.UsageError(f"frameworks={','.join(unknown)}: known: {', '.join(FRAMEWORKS)}")
    name = WORKLOAD.value + (":smoke" if SMOKE.value else "")
    if WORKLOAD.value in WORKLOADS:
        entries = [Entry(f, name, *FRAMEWORKS[f]) for f in NAMES.value]
    else:  # the sizes of one workload, in fedprune alone
        sizes = [size for size in WORKLOADS if size.startswith(f"{WORKLOAD.value}_")]
        entries = [Entry("fedprune", size, *FRAMEWORKS["fedprune"]) for size in sizes]
    rows = compare(entries, TURNS.value or workload(entries[0].workload).turns, CREATE.value)
    machine.publish(rows, OUT.value)
    if OUT.value:
        figure.draw(rows, Path(OUT.value).with_suffix(".svg"))


if __name__ == "__main__":
    app.run(main)
