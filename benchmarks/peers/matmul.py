"""The machine's limits. Argument 2: jax or torch, or copy.

Square float32 matrix products on all cores: libraries differ, so ``benchmarks.run`` takes the
faster one as the machine's peak. Copies, in all cores at once, of arrays that fit a second or third
level cache, where a client's activations lie.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.worker import serve
from benchmarks.workloads import Workload

SIZE, PRODUCTS = 2048, 8
COPIED, COPIES = 2_000_000, 200
"""float32 numbers in an array of each core; copies of it in a turn"""


def in_jax() -> tuple[Callable[[], None], str]:
    import jax
    import jax.numpy as jnp

    a = jax.random.normal(jax.random.key(0), (SIZE, SIZE))
    product = jax.jit(jnp.matmul)

    def turn() -> None:
        for _ in range(PRODUCTS):
            product(a, a).block_until_ready()

    return turn, jax.__version__


def in_torch() -> tuple[Callable[[], None], str]:
    import torch

    a = torch.randn(SIZE, SIZE)

    def turn() -> None:
        for _ in range(PRODUCTS):
            torch.mm(a, a)

    return turn, torch.__version__


def copies() -> tuple[Callable[[], None], float]:
    """A turn, and the bytes that it reads and writes."""
    cores = len(os.sched_getaffinity(0))
    pairs = [(np.ones(COPIED, np.float32), np.empty(COPIED, np.float32)) for _ in range(cores)]
    pool = ThreadPoolExecutor(cores)

    def one(pair: tuple[np.ndarray, np.ndarray]) -> None:
        for _ in range(COPIES):
            np.copyto(pair[1], pair[0])  # without Python's lock

    return lambda: list(pool.map(one, pairs)), 2.0 * 4 * COPIED * COPIES * cores


def prepare(_: Workload) -> tuple[Callable[[], None], dict]:
    library = sys.argv[2]
    if library == "copy":
        turn, moved = copies()
        return turn, {"bytes": moved}
    turn, version = {"jax": in_jax, "torch": in_torch}[library]()
    return turn, {"versions": {library: version}, "flops": 2.0 * SIZE**3 * PRODUCTS}


if __name__ == "__main__":
    serve(prepare)
