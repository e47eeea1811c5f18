"""Problems a second that the exact allocation solves, many at once by vmap.

    python -m benchmarks.allocation

Each is one server's round with N devices: P2's sizes, rates drawn from 20 MHz at 0 to 50 dB, and a
limit 1.5 times the least feasible one. Printed: the median over five timed calls of 2^17 / N
problems each, after a first one that compiles.
"""

from __future__ import annotations

import time
from statistics import median

import jax
import jax.numpy as jnp

from fedprune import allocation, resources
from fedprune import report as rp

SIZES = (1, 5, 25, 200)
DEVICES = 2**17
REPEATS = 5


def problems(key: jax.Array, size: int, count: int, dtype: str) -> allocation.Problem:
    """Random feasible problems, fields [count, size]."""
    snr = 10.0 ** jax.random.uniform(key, (count, size), dtype, 0.0, 5.0)
    rate = 20e6 * jnp.log2(1.0 + snr)
    work = resources.hierarchical(18_720, 25_168, 10.0, 20.0, 64.0)

    def of(rate: jax.Array) -> allocation.Problem:
        trial = allocation.problem(work, 3e9, rate, 1.0)
        return trial._replace(threshold=1.5 * allocation.least_threshold(trial))

    return jax.vmap(of)(rate)


def seconds(size: int, dtype: str) -> tuple[int, float]:
    """Problems a call, and its median time."""
    count = max(1, DEVICES // size)
    data = problems(jax.random.key(size), size, count, dtype)
    solve = jax.jit(jax.vmap(allocation.optimal))
    jax.block_until_ready(solve(data))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(solve(data))
        times.append(time.perf_counter() - start)
    return count, median(times)


def main() -> None:
    """Prints the table."""
    body = []
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            for size in SIZES:
                count, took = seconds(size, dtype)
                body.append([dtype, f"{size}", f"{count}", f"{took:.3f}", f"{count / took:,.0f}"])
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}")
    print(rp.table(["type", "N", "problems", "s a call", "problems/s"], body))


if __name__ == "__main__":
    main()
