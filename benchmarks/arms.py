"""Times many short runs in one program beside as many fresh processes.

    python -m benchmarks.arms

32 runs (seeds) of 20 rounds of W3's model. Whole processes are timed, from their start to their
end: one with a program of 32 arms, and some that run one arm each, as many at a time as there are
cores (8 of the 32; the time is scaled up). Then, in steady state and in turns: a program of 32 arms
against a program of one arm, per arm. Prints one JSON line.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import jax
from absl import app, flags

import fedprune as fp
from benchmarks import environments, machine
from benchmarks.peers import fedprune as ours
from benchmarks.workloads import WORKLOADS, Workload

ARMS = flags.DEFINE_integer("arms", 0, "run so many arms and nothing else; 0: the benchmark")
SMOKE = flags.DEFINE_bool("smoke", False, "2 arms and 1 round")
TURNS = flags.DEFINE_integer("turns", 3, "timed turns", lower_bound=1)
OUT = flags.DEFINE_string("out", "", "also write the line to this file")


def workload() -> Workload:
    return WORKLOADS["W3"]._replace(rounds=1 if SMOKE.value else 20)


def program(arms: int) -> Callable[[], None]:
    """``arms`` seeds of the workload; every call goes on where the last one ended."""
    w = workload()
    devices = jax.device_count()
    across = devices if arms >= devices else 1
    layout = fp.mesh.make(clients=devices // across, arms=across)
    train, test = jax.device_put(ours.federation(w), layout.replicated())
    one = ours.algorithm(w, layout)
    key = jax.vmap(jax.random.key)(jax.numpy.arange(arms))
    state = fp.run.start(lambda _: one, ours.MODELS[w.model]().init, (), key)
    tables = (jax.numpy.stack([table] * arms) for table in (train.rows, train.size))
    given = fp.run.Arms((), key, state, *tables)
    compiled = fp.run.program(lambda _: one, layout, w.rounds)

    def call() -> None:
        nonlocal given
        state, _, _ = jax.block_until_ready(compiled(given, train, test))
        given = given._replace(state=state)

    return call


def processes(arms: int, count: int, at_once: int) -> float:
    """Seconds that ``count`` processes of ``arms`` arms take, ``at_once`` of them at a time."""
    command = [sys.executable, "-m", "benchmarks.arms", f"--arms={arms}"]
    command += ["--smoke"] * SMOKE.value
    began = time.perf_counter()
    for _ in range(0, count, at_once):
        group = [subprocess.Popen(command, cwd=environments.ROOT) for _ in range(at_once)]
        if any(p.wait() for p in group):
            raise RuntimeError("a process failed")
    return time.perf_counter() - began


def main(_) -> None:
    cores = len(os.sched_getaffinity(0))
    # Alone, a process has as many devices as cores; beside others, one. Neither finds a program
    # that an earlier one has left behind.
    fp.backend.configure(devices=1 if ARMS.value == 1 else 0, cache=False)
    if ARMS.value:
        program(ARMS.value)()
        return
    arms, fresh = (2, cores) if SMOKE.value else (32, 4 * cores)
    whole = processes(arms, 1, 1)
    apart = processes(1, fresh, cores) * arms / fresh
    many, one = program(arms), program(1)
    many()
    one()
    times: dict[str, list[float]] = {"many": [], "one": []}
    for _ in range(1 if SMOKE.value else TURNS.value):
        for name, call in (("many", many), ("one", one)):
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    row = {
        "arms": arms,
        "rounds": workload().rounds,
        "one_program_s": round(whole, 2),
        "processes_s": round(apart, 2),
        "processes_timed": fresh,
        "processes_at_once": cores,
        "processes_over_program": round(apart / whole, 2),
        "steady_arm_s": round(median(times["many"]) / arms, 4),
        "steady_alone_s": round(median(times["one"]), 4),
        "alone_over_arm": round(median(times["one"]) * arms / median(times["many"]), 3),
        "versions": {"jax": jax.__version__},
        **machine.facts(),
    }
    machine.publish([row], OUT.value)


if __name__ == "__main__":
    app.run(main)
