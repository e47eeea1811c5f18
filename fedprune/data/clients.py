"""A partitioned dataset as arrays for the device: flat examples and index tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fedprune.data.dataset import DataError, Dataset, checked, parts
from fedprune.data.partition import Partition
from fedprune.types import Clients

SMALLEST = 2.0**-63
"""spread of a channel, unless it is constant: 1 / spread is finite in float32"""


class Federation(NamedTuple):
    """Every client's training and test examples."""

    train: Clients
    test: Clients


def federate(dataset: Dataset, partition: Partition | Sequence[Partition]) -> Federation:
    """Puts a partitioned dataset on the device.

    Examples keep their type (uint8 images, float32 signals) and are stored once. Training and
    evaluation see x = (raw - mean) / std, with the training set's values per channel; a channel
    that is constant is only shifted.

    Args:
      dataset: the examples.
      partition: one partition; or a list of them, one an arm, whose index tables are stacked to
        [A, K, n_max] for ``run.program``. Clients may have examples in common.

    Raises:
      DataError: the dataset is not what ``dataset.checked`` asks for, or the spread of a channel is
        below ``SMALLEST``.
      TypeError: what is given is no partition.
      ValueError: no partition; no clients, or none with training examples; numbers of clients that
        differ; indices that are not integers, or not those of examples.
    """
    one = isinstance(partition, Partition)
    partitions = [partition] if isinstance(partition, Partition) else list(partition)
    checked(dataset)
    _check_partitions(partitions, len(dataset.y_train), len(dataset.y_test))
    shift, scale = normalisation(dataset)

    def side(x: np.ndarray, y: np.ndarray, owned: list[list[np.ndarray]]) -> Clients:
        rows, size = _tables(owned)
        if one:
            rows, size = rows[0], size[0]
        labels = jnp.asarray(np.asarray(y, np.uint8 if dataset.classes <= 256 else np.int32))
        classes = np.bincount(y, minlength=dataset.classes).astype(np.int32)
        indices = jnp.asarray(rows), jnp.asarray(size)
        return Clients(jnp.asarray(x), labels, *indices, shift, scale, jnp.asarray(classes))

    return Federation(
        side(dataset.x_train, dataset.y_train, [p.train for p in partitions]),
        side(dataset.x_test, dataset.y_test, [p.test for p in partitions]),
    )


def normalisation(dataset: Dataset) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Shift and scale [1, ..., 1, channels] float32, of an example's rank.

    Training and evaluation see x = (raw - shift) * scale.

    One pass in float64. Moments of two sets of examples are joined exactly: with d the difference
    of their means, M = M_1 + M_2 + d^2 n_1 n_2 / (n_1 + n_2) is the sum of squares around the
    common mean (Chan, Golub and LeVeque, 1979).
    """
    x = np.asarray(dataset.x_train)
    channels = x.shape[-1]
    count, mean, squares = 0, np.zeros(channels), np.zeros(channels)
    low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
    for _, part in parts(x):
        values = part.reshape(-1, channels).astype(np.float64)
        low, high = np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
        here = values.mean(0)
        values -= here
        here -= mean
        new = count + len(values)
        mean += here * (len(values) / new)
        squares += np.square(values, out=values).sum(0) + here**2 * (count * len(values) / new)
        count = new
    spread = np.where(low == high, 1.0, np.sqrt(squares / count))
    if (spread < SMALLEST).any():
        c = int(np.argmin(spread))
        raise DataError(
            f"{dataset.name}: channel {c} of x_train spreads by {spread[c]:g}, but {SMALLEST:g} is"
            " the least, unless it is constant"
        )
    shape = (1,) * (x.ndim - 2) + (channels,)
    shift, scale = (v.reshape(shape).astype(np.float32) for v in (mean, 1.0 / spread))
    return jnp.asarray(shift), jnp.asarray(scale)


def _check_partitions(partitions: list[Partition], train: int, test: int) -> None:
    if not partitions:
        raise ValueError("partition=[] must be one partition, or a list of at least one")
    for a, given in enumerate(partitions):
        if not isinstance(given, Partition):
            raise TypeError(f"partition[{a}]: {type(given).__name__} is not a Partition")
        name = "partition" if len(partitions) == 1 else f"partition[{a}]"
        clients = {len(each) for p in (partitions[0], given) for each in p}
        if len(clients) > 1:
            raise ValueError(f"{name}: {sorted(clients)} clients in training, test and other arms")
        for side, n in (("train", train), ("test", test)):
            for k, rows in enumerate(getattr(given, side)):
                _check_rows(f"{name}.{side}[{k}]", np.asarray(rows), n)
        if not any(len(rows) for rows in given.train):
            raise ValueError(f"{name}: none of {len(given.train)} clients has training examples")


def _check_rows(name: str, rows: np.ndarray, n: int) -> None:
    if rows.ndim != 1 or not (np.issubdtype(rows.dtype, np.integer) or not rows.size):
        raise ValueError(f"{name}: {rows.dtype} {rows.shape} are not integers [n]")
    wrong = rows[(rows < 0) | (rows >= n)]
    if len(wrong):
        raise ValueError(f"{name} names example {wrong[0]}, but there are {n}, from 0")


def _tables(owned: list[list[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Index tables [A, K, n_max] int32, padded with zeros, and sizes [A, K] int32."""
    size = np.array([[len(part) for part in clients] for clients in owned], np.int32)
    rows = np.zeros((*size.shape, max(1, int(size.max()))), np.int32)
    for a, clients in enumerate(owned):
        for k, part in enumerate(clients):
            rows[a, k, : len(part)] = part
    return rows, size
