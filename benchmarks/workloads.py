"""What is timed: federated rounds of plain SGD on synthetic images, the same for every framework.

  W1  CNN of P4 (5×5 kernels, 32 and 64 filters, 128 hidden), 25 clients × 10 steps × batch 128
  W2  the same network, 100 clients × 5 steps × batch 64
  W3  MLP 784-200-10, 100 clients × 10 steps × batch 32
  W4  ResNet18 with group norm, images of CIFAR's shape, 20 clients × 2 steps × batch 64
  W5  CIFAR10-IID of pfl-research (Granqvist et al., 2024): 1000 users with 50 examples each, 50 of
      them a round, one epoch in batches of 10, its CNN with two convolutions (without dropout)
  W6  logistic regression on MNIST of FLUTE (Dimitriadis et al., 2022): 1000 users, 10 of them a
      round, one epoch in batches of 10, 100 rounds; every user has 60 examples
  W7  W3's network, all of 10, 100, 1,000 or 10,000 clients in a round

This module needs nothing but NumPy, so that every framework's environment can import it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LEARNING_RATE = 1e-3
CLASSES = 10


class Workload(NamedTuple):
    """A turn: some federated rounds."""

    model: str
    clients: int
    """S, clients in a round"""
    steps: int
    """local SGD steps of a client"""
    batch: int
    users: int = 0
    """K, of whom a round's clients are drawn; 0: the clients are all there are"""
    size: int = 0
    """examples of a user; 0: an equal share of all"""
    rounds: int = 1
    """rounds in a turn"""
    timed: int = 0
    """clients of a round that are trained; 0: all. The time is then scaled up to all of them"""
    turns: int = 3
    """timed turns by default"""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: height, width, channels."""
        return (32, 32, 3) if self.model in ("resnet18", "cifar_cnn") else (28, 28, 1)

    @property
    def population(self) -> int:
        return self.users or self.clients

    @property
    def examples(self) -> int:
        """Examples of each user."""
        total = 50_000 if self.shape[-1] == 3 else 60_000
        return self.size or total // self.population

    @property
    def epoch(self) -> bool:
        """Whether the steps are one pass over the user's examples, and not draws from them."""
        return self.steps * self.batch == self.examples

    @property
    def cohort(self) -> int:
        """Clients that are trained in a round."""
        return self.timed or self.clients

    def flops(self) -> float:
        """Of a round: additions and multiplications of forward and backward passes, where the
        first layer needs no gradient with respect to its input."""
        first, *rest = (layer.macs for layer in LAYERS[self.model])
        return 2.0 * (2 * first + 3 * sum(rest)) * self.clients * self.steps * self.batch

    def traffic(self) -> float:
        """Bytes that a round moves if every operation reads its operands and writes its result
        once, in float32: of weights, six times (forward, backward, gradient written, step: two
        reads, one write); of every layer's result, five (written, read by the next layer, read
        backward, its gradient written and read)."""
        layers = LAYERS[self.model]
        numbers = 6 * sum(x.weights for x in layers) + self.batch * 5 * sum(
            x.output for x in layers
        )
        return 4.0 * numbers * self.clients * self.steps


WORKLOADS = {
    "W1": Workload("cnn", 25, 10, 128, turns=4),
    "W2": Workload("cnn", 100, 5, 64),
    "W3": Workload("mlp", 100, 10, 32, rounds=10, turns=5),
    "W4": Workload("resnet18", 20, 2, 64, timed=4),
    "W5": Workload("cifar_cnn", 50, 5, 10, users=1000, size=50, rounds=2, turns=5),
    "W6": Workload("logistic", 10, 6, 10, users=1000, size=60, rounds=100),
    "W7_10": Workload("mlp", 10, 10, 32, rounds=100),
    "W7_100": Workload("mlp", 100, 10, 32, rounds=10),
    "W7_1000": Workload("mlp", 1000, 10, 32),
    "W7_10000": Workload("mlp", 10_000, 10, 32),
}
NAMES = sorted({name.split("_")[0] for name in WORKLOADS})
"""W7 stands for its four sizes."""


class Layer(NamedTuple):
    """A convolution or a dense layer, for one example."""

    macs: int
    """multiply-adds"""
    weights: int
    output: int
    """numbers that it gives"""


def _conv(out: int, kernel: int, c: int, d: int) -> Layer:
    return Layer(out * out * kernel * kernel * c * d, kernel * kernel * c * d, out * out * d)


def _dense(c: int, d: int) -> Layer:
    return Layer(c * d, c * d, d)


def _resnet18() -> list[Layer]:
    layers, before, size = [_conv(32, 3, 3, 64)], 64, 32
    for width in (64, 128, 256, 512):
        if width > before:
            size //= 2
            layers.append(_conv(size, 1, before, width))
        layers.append(_conv(size, 3, before, width))
        layers += [_conv(size, 3, width, width)] * 3
        before = width
    return [*layers, _dense(512, CLASSES)]


LAYERS = {
    "cnn": [_conv(28, 5, 1, 32), _conv(14, 5, 32, 64), _dense(3136, 128), _dense(128, CLASSES)],
    "mlp": [_dense(784, 200), _dense(200, CLASSES)],
    "logistic": [_dense(784, CLASSES)],
    "cifar_cnn": [
        _conv(30, 3, 3, 32),
        _conv(28, 3, 32, 64),
        _dense(14 * 14 * 64, 128),
        _dense(128, CLASSES),
    ],
    "resnet18": _resnet18(),
}


def workload(name: str) -> Workload:
    """By name; ``NAME:smoke`` is as small as it can be and shows only that everything runs."""
    name, _, small = name.partition(":")
    full = WORKLOADS[name]
    return full._replace(timed=min(2, full.cohort), rounds=1, turns=1) if small else full


def images(w: Workload) -> tuple[np.ndarray, np.ndarray]:
    """x [population * examples, h, w, c] uint8 and y int64, always the same; users in order."""
    rng = np.random.default_rng(0)
    n = w.population * w.examples
    return rng.integers(0, 256, (n, *w.shape), dtype=np.uint8), rng.integers(0, CLASSES, n)
