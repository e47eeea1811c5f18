"""Who owns which examples.

A partitioner splits train and test examples over K clients *by one rule*, so that a client's test
set looks like its training set. All are deterministic in their seed and end for every input. What
cannot be split as asked is a ValueError of one line.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedprune import check


class Partition(NamedTuple):
    """Example indices of every client. The partitioners here give each example to exactly one."""

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
    check.whole("clients", clients, 1)

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
    check.whole("clients", clients, 1)
    check.number("alpha", alpha, above=0)

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
        partition = _from_owners(owners, clients)
        return partition._replace(train=_nobody_empty(partition.train))

    return split


def label_k(clients: int, k: int) -> Partitioner:
    """Every client holds training examples of exactly ``k`` classes, and every class has a holder.

    With C classes there are clients · k holdings to give away. Each class gets one; each further
    one goes to the class whose examples are the most for every holder (ties at random), so that
    parts are as equal as whole holders allow: for classes of equal size, they differ by at most one
    holder. Clients then take, one after another, the k classes with the most holdings left (ties at
    random), which always comes out even. A class's examples are divided at random over its holders,
    in sizes that differ by at most one. Where clients · k = C every class has a single holder: the
    exclusive labels of P4 section V. Test examples have the same holders; those of a class without
    training examples are divided over all clients.

    Raises:
      ValueError: k not between 1 and C; clients · k below C, so that a class would have no holder;
        or too few training examples.
    """
    check.whole("clients", clients, 1)
    check.whole("classes_per_client", k, 1)

    def split(y_train: np.ndarray, y_test: np.ndarray, seed: int) -> Partition:
        _check(clients, y_train)
        rng = np.random.default_rng(seed)
        classes, size = np.unique(y_train, return_counts=True)
        if not 1 <= k <= len(classes):
            raise ValueError(f"classes_per_client={k} is not between 1 and {len(classes)} classes")
        if clients * k < len(classes):
            raise ValueError(
                f"clients={clients} with classes_per_client={k} leave some of the"
                f" {len(classes)} classes without a client"
            )
        holders = _hand_out(rng, _holdings(rng, size, clients, clients * k), clients, k)
        owners = [np.empty(len(y), np.int64) for y in (y_train, y_test)]
        for y, owner in zip((y_train, y_test), owners, strict=True):
            for c in np.unique(y):
                own = np.flatnonzero(classes == c)
                mine = rng.permutation(np.flatnonzero(y == c))
                who = rng.permutation(holders[own[0]] if len(own) else np.arange(clients))
                owner[mine] = who[np.arange(len(mine)) % len(who)]
        return _from_owners(owners, clients)

    return split


def shards(clients: int, per_client: int) -> Partitioner:
    """Training examples sorted by label, cut into equal shards of which each client gets some.

    The ``clients * per_client`` shards are consecutive and differ by at most one example; they are
    dealt at random. Examples of one class are in random order. Test examples follow: those of a
    class are divided over its shards in the proportions of training. Source: McMahan et al. (2017),
    section 3, with 100 clients and 2 shards each.

    Raises:
      ValueError: per_client below one, more shards than training examples, or clients out of range.
    """
    check.whole("clients", clients, 1)
    check.whole("shards_per_client", per_client, 1)

    def split(y_train: np.ndarray, y_test: np.ndarray, seed: int) -> Partition:
        _check(clients, y_train)
        n, total = len(y_train), clients * per_client
        if not 1 <= per_client <= n // clients:
            raise ValueError(
                f"shards_per_client={per_client} is not between 1 and {n // clients}, the training"
                f" examples for each of {clients} clients"
            )
        rng = np.random.default_rng(seed)
        dealt = rng.permutation(np.arange(total) % clients)
        ends = np.cumsum([len(part) for part in np.array_split(np.arange(n), total)])
        owners = [np.empty(len(y), np.int64) for y in (y_train, y_test)]
        ordered = np.sort(y_train)
        for y, owner in zip((y_train, y_test), owners, strict=True):
            for c in np.unique(y):
                mine = rng.permutation(np.flatnonzero(y == c))
                first, last = (np.searchsorted(ordered, c, side) for side in ("left", "right"))
                place = first + (np.arange(len(mine)) + 0.5) / len(mine) * (last - first)
                shard = np.searchsorted(ends, place, side="right")
                owner[mine] = dealt[np.minimum(shard, total - 1)]
        return _from_owners(owners, clients)

    return split


def natural(
    group_train: np.ndarray, group_test: np.ndarray, clients: int | None = None
) -> Partitioner:
    """The natural partition: what comes from one place belongs to one client, or to a few.

    Groups are taken in ascending order. With ``clients`` = G · m for G groups, the examples of each
    group are divided at random over m clients, in sizes that differ by at most one: clients g m to
    g m + m - 1 are those of the g-th group.

    Args:
      group_train: [n] the group of every training example.
      group_test: [m] the same of the test examples.
      clients: a multiple of the number of groups in the training set; default: that number.

    Raises:
      ValueError: clients is not such a multiple or too large for the smallest group, a test group
        without training examples, or numbers of groups and of labels that differ.
    """
    if clients is not None:
        check.whole("clients", clients, 1)
    groups, size = np.unique(group_train, return_counts=True)
    unknown = np.setdiff1d(group_test, groups)
    if len(unknown):
        raise ValueError(f"group {unknown[0]} has test examples but no training examples")
    if not len(groups):
        raise ValueError("natural: there are no training examples")
    total = len(groups) if clients is None else clients
    each = total // len(groups)
    if total % len(groups):
        raise ValueError(
            f"clients={total}: must be {len(groups)}, as many as there are natural groups, or a"
            " multiple of that"
        )
    if each > size.min():
        raise ValueError(
            f"clients={total}: {each} in each group, but group {groups[size.argmin()]} has only"
            f" {size.min()} training examples"
        )

    def split(y_train: np.ndarray, y_test: np.ndarray, seed: int) -> Partition:
        rng = np.random.default_rng(seed)
        owners = []
        for y, group in ((y_train, group_train), (y_test, group_test)):
            if len(y) != len(group):
                raise ValueError(f"{len(group)} examples have groups, but {len(y)} have labels")
            owner = np.empty(len(y), np.int64)
            for g, value in enumerate(groups):
                mine = rng.permutation(np.flatnonzero(group == value))
                owner[mine] = g * each + np.arange(len(mine)) % each
            owners.append(owner)
        return _from_owners(owners, total)

    return split


LISTED = 20
"""Up to so many clients ``summary`` has a line for each."""


def class_counts(parts: list[np.ndarray], y: np.ndarray, classes: int) -> np.ndarray:
    """How many examples of each class every client holds, [K, classes]."""
    return np.stack([np.bincount(y[part], minlength=classes) for part in parts])


def summary(partition: Partition, y_train: np.ndarray, y_test: np.ndarray) -> str:
    """A table of class counts, one line a client; above ``LISTED`` clients only statistics."""
    classes = int(max(y_train.max(), y_test.max())) + 1
    counts = class_counts(partition.train, y_train, classes)
    if len(counts) > LISTED:
        held = (counts > 0).sum(1)
        lines = [f"{len(counts)} clients (minimum / median / maximum)"]
        for what, values in (
            ("training examples", counts.sum(1)),
            ("test examples", np.array([len(part) for part in partition.test])),
            ("classes in training", held),
        ):
            lines.append(f"  {what}: {values.min()} / {np.median(values):g} / {values.max()}")
        return "\n".join([*lines, f"  classes in training, mean: {held.mean():.2f} of {classes}"])
    lines = ["client train  test  train examples per class"]
    for k, (train, test) in enumerate(zip(*partition, strict=True)):
        numbers = " ".join(f"{n:5d}" for n in counts[k])
        lines.append(f"{k:6d} {len(train):5d} {len(test):5d}  {numbers}")
    return "\n".join(lines)


def _check(clients: int, y_train: np.ndarray) -> None:
    if not 1 <= clients <= len(y_train):
        raise ValueError(f"clients={clients} is not between 1 and {len(y_train)} training examples")


def _from_owners(owners: list[np.ndarray], clients: int) -> Partition:
    """From every example's client to every client's examples."""
    train, test = ([np.flatnonzero(owner == k) for k in range(clients)] for owner in owners)
    return Partition(train, test)


def _holdings(rng: np.random.Generator, size: np.ndarray, most: int, total: int) -> np.ndarray:
    """How many clients hold each class: ``total`` in all, each between 1 and min(most, size)."""
    if np.minimum(size, most).sum() < total:
        raise ValueError(
            f"clients={most} with classes_per_client={total // most} need more training examples"
            f" than the smallest classes have ({size.min()} in one)"
        )
    holdings = np.ones(len(size), np.int64)
    queue = [(-float(n), rng.random(), c) for c, n in enumerate(size) if min(n, most) > 1]
    heapq.heapify(queue)
    for _ in range(total - len(size)):
        c = heapq.heappop(queue)[-1]
        holdings[c] += 1
        if holdings[c] < min(size[c], most):
            heapq.heappush(queue, (-float(size[c] / holdings[c]), rng.random(), c))
    return holdings


def _hand_out(
    rng: np.random.Generator, holdings: np.ndarray, clients: int, k: int
) -> list[np.ndarray]:
    """The holders of every class, such that each client holds k different ones.

    No class may have more holders than clients. Taking the classes with the most holdings left
    keeps it so for the clients that remain, hence all holdings are given away.
    """
    left = holdings.copy()
    holders: list[list[int]] = [[] for _ in left]
    for client in range(clients):
        for c in np.lexsort((rng.random(len(left)), -left))[:k]:
            holders[c].append(client)
            left[c] -= 1
    return [np.array(who) for who in holders]


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
