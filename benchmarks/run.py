"""Times frameworks side by side on one workload.

    python -m benchmarks.run --workload=W1 --frameworks=fedprune,torch,torch_channels_last

Every framework runs in a process, and where it needs one an environment, of its own
(``.bench/NAME``; ``--create`` makes those that are missing, otherwise they are skipped by name).
The processes take turns, one round each, while the others wait: whatever slows the machine down
slows all of them. Printed: a JSON line per framework with median, quartiles and ratios.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median, quantiles

from absl import app, flags

from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parents[1]
# name -> (environment or "" for ours, module and its arguments, requirements of the environment)
FRAMEWORKS = {
    "fedprune": ("", ["benchmarks.peers.fedprune"], []),
    "torch": ("torch", ["benchmarks.peers.torch_loop", "contiguous"], ["torch==2.13.0", "numpy"]),
    "torch_channels_last": (
        "torch",
        ["benchmarks.peers.torch_loop", "channels_last"],
        ["torch==2.13.0", "numpy"],
    ),
}

WORKLOAD = flags.DEFINE_enum("workload", "W1", sorted(WORKLOADS), "what is timed")
NAMES = flags.DEFINE_list("frameworks", sorted(FRAMEWORKS), "which frameworks")
ROUNDS = flags.DEFINE_integer("rounds", 5, "timed rounds of each", lower_bound=1)
CREATE = flags.DEFINE_bool("create", False, "make missing environments")
OUT = flags.DEFINE_string("out", "", "also write the lines to this file")


class Worker:
    """A framework's process, ready to run one round at a time."""

    def __init__(self, python: Path, module: list[str], workload: str) -> None:
        name, *arguments = module
        self._process = subprocess.Popen(
            [str(python), "-m", name, workload, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self._read()
        self.rounds: list[float] = []

    def round(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self.rounds.append(self._read())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self):
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker died (exit status {self._process.wait()})")
        return json.loads(line)


def interpreter(environment: str, requirements: list[str]) -> Path | None:
    """The Python of an environment; None if it is missing and not to be made."""
    if not environment:
        return Path(sys.executable)
    python = ROOT / ".bench" / environment / "bin" / "python"
    if not python.exists():
        if not CREATE.value:
            return None
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
    return python


def processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


def main(_) -> None:
    workload = WORKLOADS[WORKLOAD.value]
    unknown = set(NAMES.value) - set(FRAMEWORKS)
    if unknown:
        raise app.UsageError(f"frameworks={','.join(unknown)}: known: {', '.join(FRAMEWORKS)}")
    workers = {}
    for name in NAMES.value:
        environment, module, requirements = FRAMEWORKS[name]
        python = interpreter(environment, requirements)
        if python is None:
            print(f"{name}: skipped, no environment .bench/{environment} (--create)", flush=True)
        else:
            workers[name] = Worker(python, module, WORKLOAD.value)
    for _ in range(ROUNDS.value):
        for worker in workers.values():
            worker.round()
    for worker in workers.values():
        worker.close()
    best = min(median(w.rounds) for w in workers.values())
    lines = []
    for name, worker in workers.items():
        middle = median(worker.rounds)
        spread = quantiles(worker.rounds, n=4) if len(worker.rounds) > 1 else [middle] * 3
        row = {
            "workload": WORKLOAD.value,
            "framework": name,
            "rounds_per_s": round(1 / middle, 4),
            "round_s_median": round(middle, 3),
            "round_s_quartiles": [round(spread[0], 3), round(spread[2], 3)],
            "time_over_best": round(middle / best, 3),
            "gflops": round(workload.flops() / middle / 1e9, 1),
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            **worker.facts,
        }
        lines.append(json.dumps(row))
    print("\n".join(lines))
    if OUT.value:
        Path(OUT.value).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    app.run(main)
