"""Arrays of one's own as a ``Dataset``: numbered classes and clients, and a share for testing.

Classes and clients may be called by integers or words. They are numbered from 0 in ascending order:
integers by their value, words by their letters' code points, so "B" comes before "a".
``Dataset.names`` and ``Dataset.group_names`` have what each number stands for.

Where no test set is given, a share of the examples is taken out of every client's, and of all
where there are no clients: round(share · n) of n, spread evenly over the classes and otherwise at
random. One example of every class and of every client always stays in training.

Numbers are not scaled here: training and evaluation see (raw - mean) / std, with mean and standard
deviation of the training examples along the last axis (``data.federate``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedprune.data.dataset import DataError, Dataset, check_numbers, made

TEST_SHARE = 0.2
"""of the examples, if nothing is said"""


def from_arrays(
    x: Any,
    y: Any,
    x_test: Any = None,
    y_test: Any = None,
    client: Any = None,
    client_test: Any = None,
    *,
    test_share: float | None = None,
    seed: int = 0,
    name: str = "arrays",
) -> Dataset:
    """Examples in memory, for ``data.federate`` and, with clients, ``data.natural``.

    Args:
      x: [n, ..., channels] numbers: features [n, features], signals [n, samples, channels], images
        [n, height, width, channels]; uint8 [n, height, width] are grey images. Floats become
        float32.
      y: [n] classes, integers or words.
      x_test: the test set's examples; None: a share of x is taken out.
      y_test: their classes.
      client: [n] whose each example is, integers or words; None: that is not known.
      client_test: the same of the test set.
      test_share: above 0 and below 1; None: ``TEST_SHARE``. Not with a test set.
      seed: of the examples that are taken out.
      name: of the data, for messages.

    Raises:
      DataError: arrays that do not belong together; classes that are no integers or words; examples
        that are no finite numbers; classes or clients of the test set that training lacks; both a
        test set and a share; a share that leaves no test example.
      ValueError, TypeError: a share or seed that is no such number.
    """
    from fedprune import check

    check.whole("seed", seed, 0)
    if test_share is not None:
        check.number("test_share", test_share, above=0, below=1)
    own_test = {"x_test": x_test is not None, "y_test": y_test is not None}
    if client is not None or client_test is not None:
        own_test["client_test"] = client_test is not None
    if len(set(own_test.values())) > 1:
        one, other = (next(k for k, v in own_test.items() if v == there) for there in (True, False))
        raise DataError(f"{name}: has {one}, but no {other}")
    if client_test is not None and client is None:
        raise DataError(f"{name}: has client_test, but no client")
    if x_test is not None and test_share is not None:
        raise DataError(
            f"{name}: has a test set of its own, so test_share={test_share} is too much"
        )
    sides = {"": (x, y, client)} | (
        {} if x_test is None else {"_test": (x_test, y_test, client_test)}
    )
    examples, labels, owners = [], [], []
    for side, (values, classes, whose) in sides.items():
        examples.append(_examples(f"{name}: x{side}", values))
        labels.append(_keys(f"{name}: y{side}", classes, len(examples[-1])))
        if whose is not None:
            owners.append(_keys(f"{name}: client{side}", whose, len(examples[-1])))
    names, codes = _numbered(name, "class", labels)
    group_names: np.ndarray | None = None
    groups: list[np.ndarray] | None = None
    if owners:
        group_names, groups = _numbered(name, "client", owners)
    if x_test is None:
        share = TEST_SHARE if test_share is None else test_share
        is_test = _taken_out(codes[0], None if groups is None else groups[0], share, seed)
        if not is_test.any():
            raise DataError(f"{name}: test_share={share} of {len(is_test)} examples leaves none")
        parts = [~is_test, is_test]
        examples, codes = [examples[0][p] for p in parts], [codes[0][p] for p in parts]
        groups = None if groups is None else [groups[0][p] for p in parts]
    arrays: dict[str, Any] = {"names": names, "group_names": group_names}
    for i, part in enumerate(("train", "test")):
        arrays |= {f"x_{part}": examples[i], f"y_{part}": codes[i]}
        arrays[f"group_{part}"] = None if groups is None else groups[i]
    return made(name, name, arrays)


def in_order(words: Sequence[str]) -> np.ndarray:
    """Words as ``from_arrays`` takes them: as integers, if all of them are integers."""
    if all(re.fullmatch(r"0|-?[1-9]\d{0,17}", word) for word in words):
        return np.array([int(word) for word in words], np.int64)
    return np.array(words, str)


def _examples(name: str, values: Any) -> np.ndarray:
    x = np.asarray(values)
    if np.issubdtype(x.dtype, np.floating):
        with np.errstate(over="ignore"):  # what is too large is refused as infinite
            x = x.astype(np.float32, copy=False)
    if x.ndim < 2:
        raise DataError(f"{name} {list(x.shape)} is not [n, ..., channels]")
    check_numbers(name, x)
    return x


def _keys(name: str, values: Any, examples: int) -> np.ndarray:
    """Classes or clients as integers or words, [examples]."""
    keys = np.asarray(values)
    if keys.dtype == object and all(isinstance(key, str) for key in keys.ravel()):
        keys = keys.astype(str)
    if keys.ndim != 1 or len(keys) != examples:
        raise DataError(f"{name} {list(keys.shape)} must be one of each of the {examples} examples")
    if np.issubdtype(keys.dtype, np.floating):
        wrong = np.flatnonzero(~np.isfinite(keys) | (keys != np.floor(keys)))
        if len(wrong):
            raise DataError(f"{name}[{wrong[0]}] is {keys[wrong[0]]:g}, not an integer or a word")
        keys = keys.astype(np.int64)
    if keys.dtype.kind not in "iubU":
        raise DataError(f"{name} is {keys.dtype}, but must be integers or words")
    if keys.dtype.kind == "U" and (keys == "").any():
        raise DataError(f"{name}[{np.argmax(keys == '')}] is an empty word")
    return keys


def _numbered(name: str, what: str, keys: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """What the numbers stand for, in ascending order, and the numbers of both sides."""
    if len({side.dtype.kind == "U" for side in keys}) > 1:
        raise DataError(f"{name}: a {what} is an integer on one side and a word on the other")
    known = np.unique(keys[0])
    for side in keys[1:]:
        unknown = np.setdiff1d(side, known)
        if len(unknown):
            raise DataError(
                f"{name}: {what} {unknown[0].item()!r} has test examples but no training examples"
            )
    return known.astype(str), [np.searchsorted(known, side).astype(np.int32) for side in keys]


def _taken_out(y: np.ndarray, group: np.ndarray | None, share: float, seed: int) -> np.ndarray:
    """Which examples are for testing, [n] booleans."""
    rng = np.random.default_rng(seed)
    group = np.zeros(len(y), np.int32) if group is None else group
    order = rng.permutation(len(y))
    stays = np.zeros(len(y), bool)
    for keys in (y, group):
        stays[order[np.unique(keys[order], return_index=True)[1]]] = True
    is_test = np.zeros(len(y), bool)
    for g in range(group.max() + 1):
        mine = order[group[order] == g]
        free = mine[~stays[mine]]
        free = free[np.argsort(y[free], kind="stable")]
        count = min(len(free), round(share * len(mine)))
        is_test[free[((np.arange(count) + 0.5) * len(free) / max(1, count)).astype(int)]] = True
    return is_test
