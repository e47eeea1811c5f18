"""What is timed: one federated round of plain SGD on synthetic 28×28 images, 60,000 in all.

  W1  CNN of P4 (5×5 kernels, 32 and 64 filters, 128 hidden), 25 clients × 10 steps × batch 128
  W2  the same network, 100 clients × 5 steps × batch 64
  W3  MLP 784-200-10, 100 clients × 10 steps × batch 32

This module needs nothing but NumPy, so that every framework's environment can import it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

LEARNING_RATE = 1e-3


class Workload(NamedTuple):
    """One federated round."""

    model: str
    clients: int
    steps: int
    batch: int

    def flops(self) -> float:
        """Multiply-adds times two of forward and backward passes, without dx of the first layer."""
        return 2.0 * _MACS[self.model] * self.clients * self.steps * self.batch


WORKLOADS = {
    "W1": Workload("cnn", 25, 10, 128),
    "W2": Workload("cnn", 100, 5, 64),
    "W3": Workload("mlp", 100, 10, 32),
}
_MACS = {
    "cnn": 2 * 28 * 28 * 25 * 32 + 3 * (14 * 14 * 25 * 32 * 64 + 3136 * 128 + 128 * 10),
    "mlp": 2 * 784 * 200 + 3 * 200 * 10,
}


def images() -> tuple[np.ndarray, np.ndarray]:
    """x [60000, 28, 28] uint8 and y [60000] int64, always the same."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (60_000, 28, 28), dtype=np.uint8), rng.integers(0, 10, 60_000)


def serve(prepare: Callable[[Workload], tuple[Callable[[], None], dict]]) -> None:
    """A worker's main: prepares a workload, then times one round for every line on its input.

    Args:
      prepare: workload -> (a function that runs one round to its end, facts to report).
    """
    began = time.perf_counter()
    one_round, facts = prepare(WORKLOADS[sys.argv[1]])
    one_round()
    ready = {"first_round_s": round(time.perf_counter() - began, 2), **facts}
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        one_round()
        print(json.dumps(time.perf_counter() - began), flush=True)
