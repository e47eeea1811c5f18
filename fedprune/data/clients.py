"""A partitioned dataset as arrays for the device: flat examples and index tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fedprune.data.dataset import Dataset
from fedprune.data.partition import Partition
from fedprune.types import Clients


class Federation(NamedTuple):
    """Every client's training and test examples."""

    train: Clients
    test: Clients


def federate(dataset: Dataset, partition: Partition | Sequence[Partition]) -> Federation:
    """Puts a partitioned dataset on the device.

    Examples keep their type (uint8 images, float32 signals) and are stored once. Training and
    evaluation see x = (raw - mean) / std, with the training set's values per channel.

    Args:
      dataset: the examples.
      partition: one partition; or a list of them, one an arm, whose index tables are stacked to
        [A, K, n_max] for ``run.program``.
    """
    one = isinstance(partition, Partition)
    partitions = [partition] if isinstance(partition, Partition) else partition
    axes = tuple(range(dataset.x_train.ndim - 1))
    mean = dataset.x_train.mean(axes, dtype=np.float64, keepdims=True)[0]
    std = dataset.x_train.std(axes, dtype=np.float64, keepdims=True)[0]
    shift = jnp.asarray(mean, jnp.float32)
    scale = jnp.asarray(1.0 / np.maximum(std, 1e-6), jnp.float32)

    def side(x: np.ndarray, y: np.ndarray, owned: list[list[np.ndarray]]) -> Clients:
        rows, size = _tables(owned)
        if one:
            rows, size = rows[0], size[0]
        labels = jnp.asarray(y.astype(np.uint8 if dataset.classes <= 256 else np.int32))
        return Clients(jnp.asarray(x), labels, jnp.asarray(rows), jnp.asarray(size), shift, scale)

    return Federation(
        side(dataset.x_train, dataset.y_train, [p.train for p in partitions]),
        side(dataset.x_test, dataset.y_test, [p.test for p in partitions]),
    )


def _tables(owned: list[list[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Index tables [A, K, n_max] int32, padded with zeros, and sizes [A, K] int32."""
    size = np.array([[len(part) for part in parts] for parts in owned], np.int32)
    rows = np.zeros((*size.shape, max(1, int(size.max()))), np.int32)
    for a, parts in enumerate(owned):
        for k, part in enumerate(parts):
            rows[a, k, : len(part)] = part
    return rows, size
