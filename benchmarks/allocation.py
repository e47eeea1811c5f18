"""Problems a second that the exact allocation solves, many at once by vmap.

    python -m benchmarks.allocation

Each is one server's round with N devices: P2's sizes, rates drawn from 20 MHz at 0 to 50 dB, and a
limit 1.5 times the least feasible one. Prints a JSON line for each N and type: the median over
timed calls of 2^17 / N problems each, after a first one that compiles.
"""

from __future__ import annotations

from statistics import median

import jax
import jax.numpy as jnp
from absl import app

from benchmarks import machine
from benchmarks.overhead import OUT, SMOKE, TURNS
from fedprune import allocation, resources

SIZES = (1, 5, 25, 200)
DEVICES = 2**17


def problems(key: jax.Array, size: int, count: int, dtype: str) -> allocation.Problem:
    """Random feasible problems, fields [count, size]."""
    snr = 10.0 ** jax.random.uniform(key, (count, size), dtype, 0.0, 5.0)
    rate = 20e6 * jnp.log2(1.0 + snr)
    work = resources.hierarchical(18_720, 25_168, 10.0, 20.0, 64.0)

    def of(rate: jax.Array) -> allocation.Problem:
        trial = allocation.problem(work, 3e9, rate, 1.0)
        return trial._replace(threshold=1.5 * allocation.least_threshold(trial))

    return jax.vmap(of)(rate)


def measured(size: int, dtype: str) -> dict:
    """One row."""
    count = 2 if SMOKE.value else DEVICES // size
    data = problems(jax.random.key(size), size, count, dtype)
    solve = jax.jit(jax.vmap(allocation.optimal))
    call = {"": lambda: jax.block_until_ready(solve(data))}
    took = median(machine.in_turns(call, 1 if SMOKE.value else TURNS.value)[""])
    return {
        "type": dtype,
        "devices": size,
        "problems": count,
        "seconds": round(took, 4),
        "problems_per_s": round(count / took),
    }


def main(_) -> None:
    rows = []
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            rows += [measured(size, dtype) for size in SIZES]
    facts = {"versions": {"jax": jax.__version__}, **machine.facts()}
    machine.publish([{**row, **facts} for row in rows], OUT.value)


if __name__ == "__main__":
    app.run(main)
