"""Who owns which examples.

A partitioner splits train and test examples over K clients *by one rule*, so that a client's test
set looks like its training set. All are deterministic in their seed and end for every input.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Partition(NamedTuple):
    """Example indices of every client; each example belongs to exactly one."""

    train: list[np.ndarray]
    """K arrays of sorted indices into the training examples"""
    test: list[np.ndarray]
    """K arrays of sorted indices into the test examples"""


Partitioner = Callable[[np.ndarray, np.ndarray, int], Partition]
"""(train labels [n], test labels [m], seed) -> partition"""


def iid(clients: int) -> Partitioner:
    """A uniformly random split into ``clients`` parts whose sizes differ by at most one.

    Raises:
      ValueError: more clients than training examples, or fewer than one.
    """

    def split(y_train: np.ndarray, y_test: np.ndarray, seed: int) -> Partition:
        _check(clients, y_train)
        rng = np.random.default_rng(seed)
        parts = (
            [np.sort(part) for part in np.array_split(rng.permutation(len(y)), clients)]
            for y in (y_train, y_test)
        )
        return Partition(*parts)

    return split


def dirichlet(clients: int, alpha: float) -> Partitioner:
    """Label-skewed: each class is spread over the clients in proportions drawn from Dir(alpha).

    Small alpha gives each client few classes and very unequal sizes; large alpha approaches iid.
    The same proportions serve train and test. A client left without a training example is given
    one of the largest client's, so that everybody can take part. Source: Hsu et al. (2019), drawn
    per class as in Yurochkin et al. (2019).

    Raises:
      ValueError: alpha not positive, more clients than training examples, or fewer than one.
    """
    if not alpha > 0:
        raise ValueError(f"alpha={alpha} must be above 0")

    def split(y_train: np.ndarray, y_test: np.ndarray, seed: int) -> Partition:
        _check(clients, y_train)
        rng = np.random.default_rng(seed)
        owners = [np.empty(len(y), np.int64) for y in (y_train, y_test)]
        for c in np.union1d(y_train, y_test):
            share = _dirichlet(rng, clients, alpha)
            for y, owner in zip((y_train, y_test), owners, strict=True):
                mine = rng.permutation(np.flatnonzero(y == c))
                cuts = np.round(np.cumsum(share)[:-1] * len(mine)).astype(int)
                for k, part in enumerate(np.split(mine, cuts)):
                    owner[part] = k
        train, test = ([np.flatnonzero(owner == k) for k in range(clients)] for owner in owners)
        return Partition(_nobody_empty(train), test)

    return split


def summary(partition: Partition, y_train: np.ndarray, y_test: np.ndarray) -> str:
    """A table of class counts, one line a client."""
    classes = int(max(y_train.max(), y_test.max())) + 1
    lines = ["client  train   test  train examples per class"]
    for k, (train, test) in enumerate(zip(*partition, strict=True)):
        counts = " ".join(f"{n:5d}" for n in np.bincount(y_train[train], minlength=classes))
        lines.append(f"{k:6d} {len(train):6d} {len(test):6d}  {counts}")
    return "\n".join(lines)


def _check(clients: int, y_train: np.ndarray) -> None:
    if not 1 <= clients <= len(y_train):
        raise ValueError(f"clients={clients} is not between 1 and {len(y_train)} training examples")


def _dirichlet(rng: np.random.Generator, clients: int, alpha: float) -> np.ndarray:
    share = rng.dirichlet(np.full(clients, min(alpha, 1e12)))  # beyond that the draws overflow
    if not np.isfinite(share).all() or share.sum() <= 0:  # alpha so small that all draws underflow
        share = np.eye(clients)[rng.integers(clients)]
    return share


def _nobody_empty(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Gives every client without examples the last one of the client who then has the most."""
    richest = [(-len(part), k) for k, part in enumerate(parts)]
    heapq.heapify(richest)
    for k, part in enumerate(parts):
        if len(part) == 0:
            size, rich = heapq.heappop(richest)
            parts[k], parts[rich] = parts[rich][-1:], parts[rich][:-1]
            heapq.heappush(richest, (size + 1, rich))
    return parts
