"""Times the compilation of a round, with an empty compilation cache and with a filled one.

    python -m benchmarks.startup

Fresh processes compile a round of W4 (ResNet18) and end. Prints a JSON line for the first start and
one for the second: seconds of compilation (or of reading the compiled program), and of the whole
process with its imports and data.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

import jax
from absl import app, flags

import fedprune as fp
from benchmarks import environments, machine
from benchmarks.peers import fedprune as ours
from benchmarks.workloads import WORKLOADS

CHILD = flags.DEFINE_bool("child", False, "compile, and print the seconds that it took")
SMOKE = flags.DEFINE_bool("smoke", False, "W3 instead of W4")
OUT = flags.DEFINE_string("out", "", "also write the lines to this file")


def compile_seconds() -> float:
    """Of lowering and compiling one round, from ``fedprune.run.program``."""
    w = WORKLOADS["W3" if SMOKE.value else "W4"]._replace(rounds=1)
    layout = fp.mesh.make()
    train, test = jax.device_put(ours.federation(w), layout.replicated())
    one = ours.algorithm(w, layout)
    key = jax.random.key(0)[None]
    state = fp.run.start(lambda _: one, ours.MODELS[w.model]().init, (), key)
    arms = fp.run.Arms((), key, state, train.rows[None], train.size[None])
    program = fp.run.program(lambda _: one, layout, rounds=1)
    began = time.perf_counter()
    program.lower(arms, train, test).compile()
    return time.perf_counter() - began


def main(_) -> None:
    fp.backend.configure()
    if CHILD.value:
        print(compile_seconds())
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for start in ("first", "second"):
            began = time.perf_counter()
            result = subprocess.run(
                [sys.executable, "-m", "benchmarks.startup", "--child", *["--smoke"] * SMOKE.value],
                cwd=environments.ROOT,
                env={**os.environ, "JAX_COMPILATION_CACHE_DIR": folder},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            row = {
                "start": start,
                "compile_s": round(float(result.stdout), 2),
                "process_s": round(time.perf_counter() - began, 2),
                "versions": {"jax": jax.__version__},
            }
            rows.append({**row, **machine.facts()})
    machine.publish(rows, OUT.value)


if __name__ == "__main__":
    app.run(main)
