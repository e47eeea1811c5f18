"""What every reader returns, and the error that it raises."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedprune import check


class Dataset(NamedTuple):
    """A labelled dataset in memory: images, or signals."""

    name: str
    source: str
    """where it was found"""
    x_train: np.ndarray
    """[n, height, width, channels] uint8, or [n, samples, channels] float32"""
    y_train: np.ndarray
    """[n] uint8 classes"""
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    group_train: np.ndarray | None = None
    """[n] integers: where the example comes from by nature; None where the set does not say"""
    group_test: np.ndarray | None = None
    names: np.ndarray | None = None
    """[at least classes] what the classes are called; None where the set does not say"""


class DataError(Exception):
    """A dataset that is missing or damaged; the message is one line and names the file."""


def first(dataset: Dataset, n: int) -> Dataset:
    """The dataset with its first n training examples only.

    Raises:
      DataError: fewer are there.
      ValueError: n is below 1.
    """
    check.whole("data.examples", n, 1)
    if n > len(dataset.y_train):
        raise DataError(f"data.examples={n}: {dataset.name} has {len(dataset.y_train)}")
    groups = None if dataset.group_train is None else dataset.group_train[:n]
    return dataset._replace(
        x_train=dataset.x_train[:n], y_train=dataset.y_train[:n], group_train=groups
    )
