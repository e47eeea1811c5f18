"""What every reader returns, and the error that it raises."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

LARGEST = 2.0**63
"""magnitude of the examples' numbers: the square of a difference of two is finite in float32"""
_PART = 1 << 18
"""numbers that are looked at together, in float64 2 MiB"""


class Dataset(NamedTuple):
    """A labelled dataset in memory: images, or signals."""

    name: str
    source: str
    """where it was found"""
    x_train: np.ndarray
    """[n, height, width, channels] uint8, or [n, samples, channels] float32; finite numbers"""
    y_train: np.ndarray
    """[n] integers, the classes: 0 to classes - 1"""
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    group_train: np.ndarray | None = None
    """[n] integers: whose the example is by nature, such as a client's; None where the set does not
    say"""
    group_test: np.ndarray | None = None
    names: np.ndarray | None = None
    """[at least classes] what the classes are called; None where the set does not say"""
    group_names: np.ndarray | None = None
    """[groups] what the groups 0 to groups - 1 are called; None where the set does not say"""


class DataError(Exception):
    """A dataset that is missing, damaged or impossible; the message is one line and names it."""


def made(name: str, source: str, arrays: Mapping[str, Any]) -> Dataset:
    """A dataset of arrays under the names of its fields; uint8 [n, height, width] are grey images.

    Raises:
      DataError: numbers of examples and labels that differ, and as ``checked``.
    """
    arrays = dict(arrays)
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if len(x) != len(y) or len(x) == 0:
            raise DataError(f"{source}: {len(x)} {part} images but {len(y)} {part} labels")
        if x.ndim == 3 and x.dtype == np.uint8:
            arrays[f"x_{part}"] = x[..., None]
    return checked(Dataset(name, source, **arrays, classes=int(arrays["y_train"].max()) + 1))


def first(dataset: Dataset, n: int) -> Dataset:
    """The dataset with its first n training examples only.

    Raises:
      TypeError: n is no whole number.
      DataError: n is below 1, or fewer are there.
    """
    from fedprune import check

    check.whole("data.examples", n)
    there = len(dataset.y_train)
    if not 1 <= n <= there:
        raise DataError(f"data.examples={n}: {dataset.name} has {there}; 1 to {there} can be taken")
    groups = None if dataset.group_train is None else dataset.group_train[:n]
    return dataset._replace(
        x_train=dataset.x_train[:n], y_train=dataset.y_train[:n], group_train=groups
    )


def checked(dataset: Dataset) -> Dataset:
    """The dataset, if its arrays can be trained and tested on.

    Raises:
      DataError: no training examples; examples and labels that differ in number; labels that are
        not integers [n] in 0..classes-1; examples that are not numbers, are not finite or exceed
        ``LARGEST``; integers that JAX would wrap; test examples of another shape. The message names
        the array and the first index.
    """
    if dataset.classes < 1:
        raise DataError(f"{dataset.name}: classes={dataset.classes} must be at least 1")
    for part in ("train", "test"):
        x, y = (np.asarray(getattr(dataset, f"{v}_{part}")) for v in "xy")
        _check_labels(f"{dataset.name}: y_{part}", y, dataset.classes)
        if x.ndim < 2:
            raise DataError(f"{dataset.name}: x_{part} {x.shape} is not [n, ..., channels]")
        if len(x) != len(y):
            raise DataError(f"{dataset.name}: {len(x)} x_{part} but {len(y)} y_{part}")
        check_numbers(f"{dataset.name}: x_{part}", x)
    shapes = np.shape(dataset.x_train), np.shape(dataset.x_test)
    if shapes[0][1:] != shapes[1][1:]:
        raise DataError(f"{dataset.name}: x_test {shapes[1]} is not shaped as x_train {shapes[0]}")
    if 0 in shapes[0]:
        raise DataError(f"{dataset.name}: x_train {shapes[0]} is empty")
    return dataset


def parts(x: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(index of the first, some examples [m, ...] of x), so few that a copy takes little memory."""
    step = max(1, _PART // max(1, math.prod(x.shape[1:])))
    for first_of in range(0, len(x), step):
        yield first_of, x[first_of : first_of + step]


def _check_labels(name: str, y: np.ndarray, classes: int) -> None:
    if y.ndim != 1:
        raise DataError(f"{name} has shape {y.shape}, but labels are [n]")
    if not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{name} is {y.dtype}, but labels are integers")
    wrong = np.flatnonzero((y < 0) | (y >= classes))
    if len(wrong):
        at = wrong[0]
        raise DataError(
            f"{name}[{at}] is {y[at]}, but the {classes} classes are 0 to {classes - 1}"
        )


def check_numbers(name: str, x: np.ndarray) -> None:
    """Whether examples are numbers that can be trained on.

    Raises:
      DataError: as ``checked``.
    """
    if not (np.issubdtype(x.dtype, np.integer) or np.issubdtype(x.dtype, np.floating)):
        raise DataError(f"{name} is {x.dtype}, but examples are integers or floats")
    low, high = -LARGEST, LARGEST
    if np.issubdtype(x.dtype, np.integer):
        import jax  # with 64-bit types it keeps more

        kept = np.iinfo(jax.dtypes.canonicalize_dtype(x.dtype))
        low, high = kept.min, kept.max
        if np.iinfo(x.dtype).min >= low and np.iinfo(x.dtype).max <= high:
            return
    for start, part in parts(x):
        wrong = np.argwhere(~((part >= low) & (part <= high)))  # a NaN too
        if len(wrong):
            at = tuple(wrong[0])
            where = ", ".join(str(i) for i in (start + at[0], *at[1:]))
            value = f"is {part[at]:g}" if np.issubdtype(x.dtype, np.floating) else f"is {part[at]}"
            raise DataError(f"{name}[{where}] {value}, not a number from {low:g} to {high:g}")
