"""The machine's limit: square float32 matrix products on all cores. Argument 2: jax or torch.

The libraries differ in their matrix products, so ``benchmarks.run`` takes the faster one as the
machine's peak.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks.worker import serve
from benchmarks.workloads import Workload

SIZE, PRODUCTS = 2048, 8


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


def prepare(_: Workload) -> tuple[Callable[[], None], dict]:
    library = sys.argv[2]
    turn, version = {"jax": in_jax, "torch": in_torch}[library]()
    return turn, {"versions": {library: version}, "flops": 2.0 * SIZE**3 * PRODUCTS}


if __name__ == "__main__":
    serve(prepare)
