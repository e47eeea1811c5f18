"""Partitions over clients, and the arrays that they become on the device."""

import math
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies
from scipy import stats

from fedprune import data, local, mesh, models, report, rounds, run, server

CLASSES = 6
Y_TRAIN = np.random.default_rng(0).permutation(np.repeat(np.arange(CLASSES), 100)).astype(np.uint8)
Y_TEST = np.random.default_rng(1).permutation(np.repeat(np.arange(CLASSES), 40)).astype(np.uint8)


def covers(parts, n):
    """Every index exactly once, each part in ascending order."""
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    assert all((np.diff(part) > 0).all() for part in parts)


def counts(parts, y):
    """[K, classes]"""
    return np.array([np.bincount(y[part], minlength=CLASSES) for part in parts])


def equal(a, b):
    return all(
        len(p) == len(q) and all(np.array_equal(x, y) for x, y in zip(p, q, strict=True))
        for p, q in zip(a, b, strict=True)
    )


# Partitions -----


@pytest.mark.parametrize("clients", [1, 7, 100, 600])
def test_iid_covers_evenly(clients):
    partition = data.iid(clients)(Y_TRAIN, Y_TEST, 3)
    for parts, y in zip(partition, (Y_TRAIN, Y_TEST), strict=True):
        assert len(parts) == clients
        covers(parts, len(y))
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_iid_classes_are_random():
    """Neither sorted nor stratified: a chi-squared statistic over clients × classes like chance."""
    chances = [
        stats.chi2_contingency(counts(data.iid(10)(Y_TRAIN, Y_TEST, seed).train, Y_TRAIN)).pvalue
        for seed in range(40)
    ]
    assert stats.kstest(chances, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("clients", [1, 7, 600])
@pytest.mark.parametrize("alpha", [1e-6, 1e-2, 0.3, 5.0, 1e6])
def test_dirichlet_covers_and_leaves_nobody_empty(clients, alpha):
    partition = data.dirichlet(clients, alpha)(Y_TRAIN, Y_TEST, 4)
    for parts, y in zip(partition, (Y_TRAIN, Y_TEST), strict=True):
        assert len(parts) == clients
        covers(parts, len(y))
    assert min(len(part) for part in partition.train) >= 1


def test_dirichlet_alpha_below_every_float_draw():
    """All gamma draws underflow; one client then takes the class."""
    for seed in range(5):
        parts = data.dirichlet(4, 1e-300)(Y_TRAIN, Y_TEST, seed).train
        covers(parts, len(Y_TRAIN))
        assert ((counts(parts, Y_TRAIN) > 90).sum(0) == 1).all()


@pytest.mark.parametrize(
    "split",
    [
        data.iid(9),
        data.dirichlet(9, 0.5),
        data.label_k(9, 2),
        data.shards(9, 2),
        data.natural(Y_TRAIN, Y_TEST, 12),
    ],
    ids=("iid", "dirichlet", "label_k", "shards", "group"),
)
def test_seed_decides(split):
    first = split(Y_TRAIN, Y_TEST, 5)
    np.random.seed(0)  # noqa: NPY002 - the global state must not matter
    assert equal(first, split(Y_TRAIN, Y_TEST, 5))
    other = split(Y_TRAIN, Y_TEST, 6)
    assert not equal(first, other)
    assert not equal([first.test], [other.test])


def test_dirichlet_shares_follow_the_law():
    """Over many classes one client's share of a class is Beta(alpha, (K-1) alpha)."""
    y = np.repeat(np.arange(300), 2000)
    for alpha in (0.4, 3.0):
        parts = data.dirichlet(5, alpha)(y, y[:0], 7).train
        for part in parts:
            share = np.bincount(y[part], minlength=300) / 2000
            assert stats.kstest(share, stats.beta(alpha, 4 * alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [1e6, 1e12])
def test_large_alpha_spreads_every_class_evenly(alpha):
    partition = data.dirichlet(5, alpha)(Y_TRAIN, Y_TEST, 8)
    np.testing.assert_allclose(counts(partition.train, Y_TRAIN), 20, atol=1)
    np.testing.assert_allclose(counts(partition.test, Y_TEST), 8, atol=1)


def test_alpha_whose_draws_overflow():
    """Large alpha approaches iid; it must not end up with one client for a class."""
    parts = data.dirichlet(5, 1e308)(Y_TRAIN, Y_TEST, 8).train
    np.testing.assert_allclose(counts(parts, Y_TRAIN), 20, atol=1)


def test_dirichlet_draws_examples_at_random():
    """A client's examples of a class lie anywhere in the dataset, not in one run."""
    place = np.empty(len(Y_TRAIN))
    for c in range(CLASSES):
        place[np.equal(Y_TRAIN, c)] = (np.arange(100) + 0.5) / 100
    for part in data.dirichlet(5, 1e6)(Y_TRAIN, Y_TEST, 8).train:
        assert stats.kstest(place[part], "uniform").pvalue > 1e-3


def test_small_alpha_concentrates():
    partition = data.dirichlet(5, 1e-3)(Y_TRAIN, Y_TEST, 9)
    assert (counts(partition.train, Y_TRAIN).max(0) > 90).mean() > 0.5
    assert (counts(partition.test, Y_TEST).max(0) > 36).mean() > 0.5


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_test_sets_look_like_training_sets(alpha):
    """The same proportions cut both, so shares differ by what rounding two cuts can do."""
    partition = data.dirichlet(5, alpha)(Y_TRAIN, Y_TEST, 10)
    train, test = counts(partition.train, Y_TRAIN), counts(partition.test, Y_TEST)
    assert train.std() > 5
    assert np.abs(train / 100 - test / 40).max() <= 1 / 100 + 1 / 40


def test_test_classes_that_training_lacks():
    """Each test example belongs to exactly one client, whatever its class."""
    y_train, y_test = np.repeat([0, 2], 50), np.tile([0, 1, 2, 3], 25)
    # Dirt for memory that is not initialised.
    dirt = [np.full(len(y_test), 10**9 + i) for i in range(50)]
    del dirt
    partition = data.dirichlet(4, 1.0)(y_train, y_test, 11)
    covers(partition.train, 100)
    covers(partition.test, 100)


@pytest.mark.parametrize("clients", [0, -1, 601])
@pytest.mark.parametrize("build", [data.iid, lambda k: data.dirichlet(k, 1.0)])
def test_impossible_numbers_of_clients(build, clients):
    allowed = " is not between 1 and 600 training" if clients > 0 else ": must be a whole number"
    with pytest.raises(ValueError, match=f"clients={clients}{allowed}"):
        build(clients)(Y_TRAIN, Y_TEST, 0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha}: must be a finite number, above 0"):
        data.dirichlet(3, alpha)


# Exactly k classes -----


def sizes(parts):
    return np.array([len(part) for part in parts])


@pytest.mark.parametrize(
    ("clients", "k"), [(6, 1), (3, 2), (2, 3), (1, 6), (7, 1), (10, 4), (5, 6), (50, 2), (100, 3)]
)
def test_label_k(clients, k):
    partition = data.label_k(clients, k)(Y_TRAIN, Y_TEST, 3)
    for parts, y in zip(partition, (Y_TRAIN, Y_TEST), strict=True):
        assert len(parts) == clients
        covers(parts, len(y))
    train, test = counts(partition.train, Y_TRAIN), counts(partition.test, Y_TEST)
    assert ((train > 0).sum(1) == k).all()
    assert (train > 0).any(0).all()
    assert (train[test > 0] > 0).all()  # tested only on classes that it trains on
    holders = (train > 0).sum(0)
    assert holders.max() - holders.min() <= 1
    for c in range(CLASSES):
        for n in (train[:, c], test[:, c]):
            held = n[train[:, c] > 0]
            assert held.max() - held.min() <= 1
    low, high = (k * (100 // n) for n in (holders.max(), holders.min()))
    assert (low <= sizes(partition.train)).all()
    assert (sizes(partition.train) <= high + k).all()


def test_label_k_is_exclusive_where_it_can_be():
    """clients · k = C: one holder a class, as in P4."""
    train = counts(data.label_k(3, 2)(Y_TRAIN, Y_TEST, 0).train, Y_TRAIN)
    np.testing.assert_array_equal(np.sort(train, axis=0)[:-1], 0)
    np.testing.assert_array_equal(train.max(0), 100)


def test_label_k_favours_nobody():
    """Of 10 examples over 3 holders the fourth goes to any of them."""
    y = np.zeros(10, int)
    larger = {int(sizes(data.label_k(3, 1)(y, y, seed).train).argmax()) for seed in range(20)}
    assert larger == {0, 1, 2}


def test_label_k_divides_large_classes_more():
    """Classes of 10, 20, 40, 80 give parts that are as equal as whole holders allow."""
    y = np.repeat(np.arange(4), [10, 20, 40, 80])
    partition = data.label_k(15, 1)(y, y, 0)
    np.testing.assert_array_equal(sizes(partition.train), 10)
    np.testing.assert_array_equal(sizes(partition.test), 10)


def test_label_k_pairs_of_classes_are_random():
    """Over seeds every pair of classes meets at some client."""
    met = np.zeros((CLASSES, CLASSES))
    for seed in range(30):
        held = counts(data.label_k(3, 2)(Y_TRAIN, Y_TEST, seed).train, Y_TRAIN) > 0
        met += held.T.astype(int) @ held
    assert (met > 0).all()


@settings(max_examples=200, deadline=None)
@given(strategies.data())
def test_label_k_ends_for_every_input(draw):
    """It splits as promised, or says in one line that it cannot, and only where it cannot."""
    size = draw.draw(strategies.lists(strategies.integers(1, 9), min_size=1, max_size=6))
    clients, k = draw.draw(strategies.integers(1, 12)), draw.draw(strategies.integers(1, 7))
    y = np.repeat(3 * np.arange(len(size)), size)
    possible = (
        k <= len(size) <= clients * k
        and clients <= len(y)
        and sum(min(n, clients) for n in size) >= clients * k
    )
    try:
        parts = data.label_k(clients, k)(y, y[:0], 0).train
    except ValueError as e:
        message = str(e)
    else:
        message = None
        covers(parts, len(y))
        assert all(len(np.unique(y[part])) == k for part in parts)
    assert (message is None) == possible
    assert message is None or "\n" not in message


@pytest.mark.parametrize(
    ("clients", "k", "what"),
    [
        (3, 0, "classes_per_client=0: must be a whole number, at least 1"),
        (3, 7, "classes_per_client=7 is not between 1 and 6 classes"),
        (2, 2, "leave some of the 6 classes without a client"),
        (0, 2, "clients=0: must be a whole number, at least 1"),
        (200, 6, "need more training examples"),
    ],
)
def test_label_k_that_is_impossible(clients, k, what):
    with pytest.raises(ValueError, match=what):
        data.label_k(clients, k)(Y_TRAIN, Y_TEST, 0)


# Shards -----


@pytest.mark.parametrize(("clients", "each"), [(1, 1), (6, 1), (10, 2), (7, 3), (300, 2), (600, 1)])
def test_shards(clients, each):
    partition = data.shards(clients, each)(Y_TRAIN, Y_TEST, 3)
    for parts, y in zip(partition, (Y_TRAIN, Y_TEST), strict=True):
        assert len(parts) == clients
        covers(parts, len(y))
    n = sizes(partition.train)
    shard = len(Y_TRAIN) / (clients * each)
    assert (each * np.floor(shard) <= n).all()
    assert (n <= each * np.ceil(shard)).all()


def test_shards_hold_few_classes():
    """30 shards of 20 lie within the classes of 100: at most 2 classes a client, both in test."""
    partition = data.shards(15, 2)(Y_TRAIN, Y_TEST, 1)
    train, test = counts(partition.train, Y_TRAIN), counts(partition.test, Y_TEST)
    assert set(np.unique(train)) <= {0, 20, 40}
    np.testing.assert_array_equal(test, train * 40 // 100)
    assert len({tuple(np.flatnonzero(row)) for row in train}) > 5  # dealt at random


def test_shards_across_classes():
    """4 shards of 150 over 6 classes of 100: each holds a class and a half."""
    partition = data.shards(4, 1)(Y_TRAIN, Y_TEST, 2)
    train, test = counts(partition.train, Y_TRAIN), counts(partition.test, Y_TEST)
    want = {(100, 50, 0, 0, 0, 0), (0, 50, 100, 0, 0, 0), (0, 0, 0, 100, 50, 0),
            (0, 0, 0, 0, 50, 100)}  # fmt: skip
    assert {tuple(row) for row in train.tolist()} == want
    np.testing.assert_array_equal(test, train * 40 // 100)


def test_shards_keep_test_proportions_of_unequal_classes():
    """A class that is rare in testing and common in training is divided as in training."""
    y_train, y_test = np.repeat([0, 1], [90, 30]), np.repeat([0, 1, 2], [4, 40, 3])
    partition = data.shards(4, 1)(y_train, y_test, 0)
    for train, test in zip(*partition, strict=True):
        share = np.bincount(y_train[train], minlength=2) / [90, 30]
        got = np.bincount(y_test[test], minlength=3)[:2] / [4, 40]
        assert (np.abs(share - got) <= 1 / np.array([4, 40]) + 1e-9).all()  # two rounded cuts
    covers(partition.test, 47)


def test_shards_of_the_last_class_that_a_byte_holds():
    y = np.repeat([254, 255], 10).astype(np.uint8)
    partition = data.shards(2, 1)(y, y, 0)
    assert {tuple(np.unique(y[part])) for part in partition.train} == {(254,), (255,)}
    assert {tuple(np.unique(y[part])) for part in partition.test} == {(254,), (255,)}


@pytest.mark.parametrize(("clients", "each"), [(3, 0), (3, 201), (601, 1), (0, 1), (300, 3)])
def test_shards_that_are_impossible(clients, each):
    with pytest.raises(
        ValueError, match=r"is not between 1 and|: must be a whole number, at least 1"
    ):
        data.shards(clients, each)(Y_TRAIN, Y_TEST, 0)


# Groups -----

GROUP_TRAIN = np.random.default_rng(4).permutation(np.repeat([3, 5, 9], [300, 200, 100]))
GROUP_TEST = np.random.default_rng(5).permutation(np.repeat([3, 5, 9], [100, 100, 40]))


def test_natural():
    partition = data.natural(GROUP_TRAIN, GROUP_TEST)(Y_TRAIN, Y_TEST, 0)
    for parts, group in zip(partition, (GROUP_TRAIN, GROUP_TEST), strict=True):
        for part, value in zip(parts, (3, 5, 9), strict=True):
            np.testing.assert_array_equal(part, np.flatnonzero(group == value))


def test_groups_divided_over_clients():
    split = data.natural(GROUP_TRAIN, GROUP_TEST, clients=12)
    partition = split(Y_TRAIN, Y_TEST, 0)
    for parts, group in zip(partition, (GROUP_TRAIN, GROUP_TEST), strict=True):
        covers(parts, len(group))
        for k, part in enumerate(parts):
            assert set(group[part]) == {(3, 5, 9)[k // 4]}
        for value in range(3):
            n = sizes(parts[4 * value : 4 * value + 4])
            assert n.max() - n.min() <= 1
    place = (partition.train[0] + 0.5) / len(Y_TRAIN)
    assert stats.kstest(place, "uniform").pvalue > 1e-3  # anywhere in the group, not its first part


def test_group_without_test_examples():
    partition = data.natural(np.array([0, 1, 1]), np.array([1]))(np.zeros(3), np.zeros(1), 0)
    np.testing.assert_array_equal(sizes(partition.test), [0, 1])


@pytest.mark.parametrize(
    ("train", "test", "clients", "what"),
    [
        ([0, 1], [2], None, "group 2 has test examples but no training examples"),
        ([0, 1, 1, 0], [0], 3, "clients=3: must be 2, as many as"),
        ([0, 1, 1, 0], [0], 0, "clients=0: must be a whole number, at least 1"),
        ([0, 1, 1], [0], 4, "group 0 has only 1 training examples"),
        ([], [], None, "natural: there are no training examples"),
    ],
)
def test_groups_that_are_impossible(train, test, clients, what):
    with pytest.raises(ValueError, match=what):
        data.natural(np.array(train, int), np.array(test, int), clients)


def test_groups_of_another_dataset():
    with pytest.raises(ValueError, match="600 examples have groups, but 599 have labels"):
        data.natural(GROUP_TRAIN, GROUP_TEST)(Y_TRAIN[:-1], Y_TEST, 0)


def test_summary():
    y_train, y_test = np.array([0, 1, 1, 2, 2, 2, 0]), np.array([2, 1, 0])
    partition = data.Partition(
        [np.array([0, 1, 2]), np.array([3, 4, 5, 6])], [np.array([0]), np.array([1, 2])]
    )
    head, *lines = data.summary(partition, y_train, y_test).splitlines()
    assert head.split() == ["client", "train", "test", "train", "examples", "per", "class"]
    assert [[int(n) for n in line.split()] for line in lines] == [
        [0, 3, 1, 1, 2, 0],
        [1, 4, 2, 1, 0, 3],
    ]
    assert len({len(line) for line in lines}) == 1  # aligned


def test_summary_of_many_clients_is_short():
    """21 clients of 1, 2, ..., 21 examples; all of class 0 but the last example of each."""
    parts = [np.arange(k * (k - 1) // 2, k * (k + 1) // 2) for k in range(1, 22)]
    y = np.zeros(231, int)
    y[[part[-1] for part in parts]] = 1
    none = [np.arange(0)] * 21
    text = data.summary(data.Partition(parts, [np.arange(4), *none[1:]]), y, y[:4])
    head, train, test, classes, mean = (line.split() for line in text.splitlines())
    assert head[0] == "21"
    assert train[-5:] == ["1", "/", "11", "/", "21"]
    assert test[-5:] == ["0", "/", "0", "/", "4"]
    assert classes[-5:] == ["1", "/", "2", "/", "2"]
    assert mean[-3:] == ["1.95", "of", "2"]  # 41 / 21


def test_partition_figure(tmp_path, monkeypatch):
    """Every bar starts where the one before it ends; equal runs write equal files."""
    counts = np.array([[3, 0, 2], [1, 4, 0]])
    figures = []
    save = report.save
    monkeypatch.setattr(
        report.figures, "save", lambda figure, p: (figures.append(figure), save(figure, p))
    )
    for name in ("a", "b"):
        report.partition_figure(tmp_path / name, counts, ["x", "y", "z"], "title")
    bars = sorted(
        (b.get_y() + b.get_height() / 2, b.get_x(), b.get_width())
        for b in figures[0].axes[0].patches
        if b.get_width()
    )
    np.testing.assert_allclose(bars, [(0, 0, 3), (0, 3, 2), (1, 0, 1), (1, 1, 4)], atol=1e-9)
    assert [t.get_text() for t in figures[0].legends[0].get_texts()] == ["x", "y", "z"]
    for suffix in ("png", "svg"):
        a, b = (tmp_path / f"{name}.{suffix}" for name in "ab")
        assert a.read_bytes() == b.read_bytes()


# Arrays -----


def small_dataset(classes=3):
    """Two channels of unlike mean and spread; the test set has statistics of its own."""
    rng = np.random.default_rng(12)
    x_train = np.stack([rng.integers(0, 50, (9, 4, 3)), rng.integers(90, 256, (9, 4, 3))], -1)
    x_test = rng.integers(0, 256, (5, 4, 3, 2))
    y_train, y_test = np.arange(9) % classes, np.arange(5) % classes
    return data.Dataset(
        "small",
        "a test",
        x_train.astype(np.uint8),
        y_train.astype(np.uint8),
        x_test.astype(np.uint8),
        y_test.astype(np.uint8),
        classes,
    )


def partition_of(train, test):
    return data.Partition([np.array(p, int) for p in train], [np.array(p, int) for p in test])


ONE = partition_of([[1, 4, 8], [0, 2, 3, 5], [6, 7]], [[0, 3], [], [1, 2, 4]])
OTHER = partition_of([[0, 1, 2, 3, 4, 5], [6, 7], [8]], [[0], [1, 2, 3], [4]])


def test_federate_tables():
    dataset = small_dataset()
    federation = data.federate(dataset, ONE)
    for clients, x, y, rows, size in (
        (
            federation.train,
            dataset.x_train,
            dataset.y_train,
            [[1, 4, 8, 0], [0, 2, 3, 5], [6, 7, 0, 0]],
            [3, 4, 2],
        ),
        (
            federation.test,
            dataset.x_test,
            dataset.y_test,
            [[0, 3, 0], [0, 0, 0], [1, 2, 4]],
            [2, 0, 3],
        ),
    ):
        assert clients.examples.dtype == jnp.uint8
        np.testing.assert_array_equal(clients.examples, x)
        np.testing.assert_array_equal(clients.labels, y)
        assert clients.rows.dtype == clients.size.dtype == jnp.int32
        np.testing.assert_array_equal(clients.rows, rows)
        np.testing.assert_array_equal(clients.size, size)


@pytest.mark.parametrize("container", [list, tuple])
def test_federate_stacks_arms(container):
    """Arms share the examples; tables are padded to the largest client of any arm."""
    federation = data.federate(small_dataset(), container([ONE, OTHER]))
    rows = np.array(
        [
            [[1, 4, 8, 0, 0, 0], [0, 2, 3, 5, 0, 0], [6, 7, 0, 0, 0, 0]],
            [[0, 1, 2, 3, 4, 5], [6, 7, 0, 0, 0, 0], [8, 0, 0, 0, 0, 0]],
        ]
    )
    np.testing.assert_array_equal(federation.train.rows, rows)
    np.testing.assert_array_equal(federation.train.size, [[3, 4, 2], [6, 2, 1]])
    np.testing.assert_array_equal(federation.test.size, [[2, 0, 3], [1, 3, 1]])
    assert federation.test.rows.shape == (2, 3, 3)
    assert federation.train.examples.shape == (9, 4, 3, 2)


def test_one_arm_in_a_list_keeps_its_axis():
    federation = data.federate(small_dataset(), [ONE])
    assert federation.train.rows.shape == (1, 3, 4)
    assert federation.train.size.shape == (1, 3)


def test_nobody_has_test_examples():
    federation = data.federate(small_dataset(), partition_of([[0], [1]], [[], []]))
    assert federation.test.rows.shape == (2, 1)
    np.testing.assert_array_equal(federation.test.size, [0, 0])


@pytest.mark.parametrize("side", ["train", "test"])
def test_take_normalises_by_the_training_statistics(side):
    dataset = small_dataset()
    federation = data.federate(dataset, ONE)
    clients = getattr(federation, side)
    raw, labels = (getattr(dataset, f"{v}_{side}") for v in "xy")
    mean = dataset.x_train.astype(np.float64).mean((0, 1, 2))
    std = dataset.x_train.astype(np.float64).std((0, 1, 2))
    for k, part in enumerate(getattr(ONE, side)):
        positions = np.arange(len(part))[::-1]
        x, y = clients.client(jnp.int32(k)).take(jnp.asarray(positions))
        assert x.dtype == jnp.float32
        assert y.dtype == jnp.int32
        np.testing.assert_allclose(x, (raw[part[positions]] - mean) / std, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(y, labels[part[positions]])


def test_take_under_vmap_over_clients():
    dataset = small_dataset()
    clients = data.federate(dataset, ONE).train
    each = jax.jit(jax.vmap(lambda k: clients.client(k).take(jnp.array([1, 0]))))
    x, y = each(jnp.arange(3))
    chosen = np.array([[4, 1], [2, 0], [7, 6]])
    raw = dataset.x_train[chosen].astype(np.float64)
    axes = (0, 1, 2)
    want = (raw - dataset.x_train.mean(axes)) / dataset.x_train.std(axes)
    np.testing.assert_allclose(x, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(y, dataset.y_train[chosen])


def test_training_set_has_zero_mean_and_unit_spread():
    dataset = small_dataset()
    everything = partition_of([range(9)], [range(5)])
    x, _ = data.federate(dataset, everything).train.client(jnp.int32(0)).take(jnp.arange(9))
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, rtol=1e-5)


def test_constant_channel_stays_finite():
    dataset = small_dataset()
    dataset.x_train[..., 0] = 7
    x, _ = data.federate(dataset, ONE).train.client(jnp.int32(1)).take(jnp.arange(4))
    np.testing.assert_array_equal(x[..., 0], 0)
    assert np.abs(x[..., 1]).max() > 0.5


def test_more_classes_than_a_byte_holds():
    dataset = small_dataset()._replace(y_train=np.arange(9) + 300, classes=309)
    _, y = data.federate(dataset, ONE).train.client(jnp.int32(1)).take(jnp.arange(4))
    np.testing.assert_array_equal(y, [300, 302, 303, 305])


# What is refused -----


def changed(name, at, value):
    array = getattr(small_dataset(), name).copy()
    array[at] = value
    return small_dataset()._replace(**{name: array})


def floats(name, at, value):
    """``small_dataset`` of floats, with one changed number."""
    both = {x: getattr(small_dataset(), x).astype(np.float32) for x in ("x_train", "x_test")}
    both[name] = both[name].astype(np.float64) if abs(value) > 3.4e38 else both[name]
    both[name][at] = value
    return small_dataset()._replace(**both)


SMALL = small_dataset()
IMPOSSIBLE = {
    r"x_train\[7, 3, 0, 1\] is nan": floats("x_train", (7, 3, 0, 1), np.nan),
    r"x_test\[2, 0, 1, 0\] is -inf": floats("x_test", (2, 0, 1, 0), -np.inf),
    r"x_train\[0, 0, 0, 0\] is 3e\+38, not a number": floats("x_train", (0, 0, 0, 0), 3e38),
    r"x_train\[8, 0, 0, 0\] is 1e\+300": floats("x_train", (8, 0, 0, 0), 1e300),
    r"x_test\[4, 1, 2, 0\] is 42949": SMALL._replace(
        x_test=SMALL.x_test + 2**32 * (np.arange(120).reshape(5, 4, 3, 2) >= 4 * 24 + 10)
    ),
    "x_train is complex64": SMALL._replace(x_train=SMALL.x_train.astype(np.complex64)),
    "x_train is <U": SMALL._replace(x_train=SMALL.x_train.astype(str)),
    r"x_train \(9,\) is not": SMALL._replace(x_train=np.zeros(9, np.float32)),
    r"x_test \(5, 4, 3, 1\) is not shaped": SMALL._replace(x_test=SMALL.x_test[..., :1]),
    "9 x_train but 8 y_train": SMALL._replace(y_train=SMALL.y_train[:8]),
    "4 x_test but 5 y_test": SMALL._replace(x_test=SMALL.x_test[:4]),
    r"x_train \(0, 4, 3, 2\) is empty": SMALL._replace(
        x_train=SMALL.x_train[:0], y_train=SMALL.y_train[:0]
    ),
    r"y_train has shape \(9, 1\)": SMALL._replace(y_train=SMALL.y_train[:, None]),
    "y_test is float32": SMALL._replace(y_test=SMALL.y_test.astype(np.float32)),
    r"y_train\[4\] is 3, but the 3 classes are 0 to 2": changed("y_train", 4, 3),
    r"y_test\[1\] is 255": changed("y_test", 1, 255),
    r"y_train\[2\] is -1": SMALL._replace(y_train=np.array([0, 1, -1, 2, 0, 1, 2, 0, 1])),
    r"y_train\[3\] is 256": SMALL._replace(y_train=np.array([0, 1, 2, 256, 0, 1, 2, 0, 1])),
    "classes=0": SMALL._replace(classes=0),
    r"channel 1 of x_train spreads by 4.96\d*e-30, but 1.0842e-19 is the least": SMALL._replace(
        x_train=np.ones((9, 4, 3, 2)) * (np.arange(9) % 2)[:, None, None, None] * [1, 1e-29]
    ),
}


@pytest.mark.parametrize("message", IMPOSSIBLE)
def test_impossible_data_are_refused_by_array_and_index(message):
    with pytest.raises(data.DataError, match=f"^small: .*{message}") as caught:
        data.federate(IMPOSSIBLE[message], ONE)
    assert "\n" not in str(caught.value)


def test_loading_refuses_what_federating_does(tmp_path, monkeypatch):
    """A label of the test set that no training example has, in raw files."""
    read = {f"x_{p}": np.zeros((2, 3, 3), np.uint8) for p in ("train", "test")}
    read |= {"y_train": np.array([0, 1], np.uint8), "y_test": np.array([0, 2], np.uint8)}
    monkeypatch.setattr(data.sources, "_candidates", lambda *_: [("here", lambda: read)])
    with pytest.raises(data.DataError, match=r"mnist: y_test\[1\] is 2"):
        data.load("mnist", tmp_path)


PARTITIONS = {
    r"partition=\[\]": [],
    r"partition: none of 0 clients": partition_of([], []),
    r"partition: none of 2 clients": partition_of([[], []], [[0], [1]]),
    r"partition: \[2, 3\] clients": partition_of([[0], [1]], [[0], [1], [2]]),
    r"partition\[1\]: \[2, 3\] clients": [ONE, partition_of([[0], [1]], [[0], [1]])],
    r"partition.train\[1\] names example 9, but there are 9": partition_of([[0], [3, 9]], [[], []]),
    r"partition.test\[0\] names example -1": partition_of([[0], [1]], [[2, -1], []]),
    r"partition.train\[0\]: float64": data.Partition([np.array([0.5])], [np.array([0])]),
    r"partition.train\[0\]: int64 \(1, 2\)": data.Partition([np.array([[0, 1]])], [np.array([0])]),
    r"partition.train\[0\]: bool": data.Partition([np.ones(9, bool)], [np.array([0])]),
}


@pytest.mark.parametrize("message", PARTITIONS)
def test_impossible_partitions_are_refused(message):
    with pytest.raises(ValueError, match=f"^{message}"):
        data.federate(small_dataset(), PARTITIONS[message])


def test_a_pair_of_lists_is_no_partition():
    with pytest.raises(TypeError, match=r"partition\[0\]: list is not a Partition"):
        data.federate(small_dataset(), tuple(ONE))


def test_first_examples_of_a_set():
    for n in (0, -1, 10):
        with pytest.raises(data.DataError, match=rf"data.examples={n}: small has 9; 1 to 9 can"):
            data.first(small_dataset(), n)


# Statistics -----


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e18])
def test_statistics_in_parts_are_those_of_the_whole(offset):
    """Several parts of unlike means, against sums that are exact (math.fsum)."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(700, 1024, 2)).astype(np.float32)
    x = (x * [1, 1 + offset] + np.arange(700)[:, None, None] / 50 + [0, offset]).astype(np.float32)
    y = np.zeros(700, np.uint8)
    train, _ = data.federate(data.Dataset("x", "", x, y, x[:1], y[:1], 1), data.iid(1)(y, y[:1], 0))
    for c in range(2):
        values = x[..., c].astype(np.float64).ravel()
        mean = math.fsum(values) / values.size
        variance = math.fsum((values - mean) ** 2) / values.size
        assert np.ravel(train.shift)[c] == np.float32(mean)
        assert np.ravel(train.scale)[c] == np.float32(1 / math.sqrt(variance))


def test_a_constant_channel_is_shifted_and_not_scaled():
    dataset = floats("x_train", (..., 0), np.float32(0.1))
    train = data.federate(dataset, ONE).train
    assert np.ravel(train.shift)[0] == np.float32(0.1)
    assert np.ravel(train.scale)[0] == 1


def test_statistics_take_little_memory():
    """The copy on the device is not NumPy's; beside it there are parts of a few MiB."""
    x = np.random.default_rng(0).integers(0, 256, (4000, 64, 64, 3), np.uint8)
    y = np.zeros(len(x), np.uint8)
    dataset = data.Dataset("x", "", x, y, x[:1], y[:1], 1)
    split = data.iid(1)(y, y[:1], 0)
    tracemalloc.start()
    data.federate(dataset, split)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * x.nbytes


# The number of classes -----


def test_federate_counts_classes():
    train, test = data.federate(small_dataset()._replace(classes=5), ONE)
    np.testing.assert_array_equal(train.classes, [3, 3, 3, 0, 0])
    np.testing.assert_array_equal(test.classes, [2, 2, 1, 0, 0])


@pytest.mark.parametrize("outputs", [2, 3, 4])
@pytest.mark.parametrize("where", ["training", "evaluation", "clients"])
def test_a_head_smaller_than_the_classes_is_refused(where, outputs):
    train, test = data.federate(small_dataset(), ONE)
    network = models.mlp((2,), classes=outputs, input_shape=(4, 3, 2))
    layout = mesh.make(1)
    local_update = local.sgd(network, optax.sgd(0.1), batch=2, steps=1)
    params = network.init(jax.random.key(0))
    state = rounds.initial(params, None, server.average())
    evaluation = {
        "evaluation": lambda: run.evaluation(network, layout),
        "clients": lambda: run.client_evaluation(network, layout, 3),
    }

    def go():
        if where == "training":
            key, t = jax.random.key(0), jnp.int32(0)
            return jax.eval_shape(local_update, key, t, params, None, train.client(jnp.int32(0)))
        spread = mesh.spread(evaluation[where](), layout, (0, 0), 0)
        return jax.eval_shape(spread, state, test)

    if outputs >= 3:
        assert go() is not None
        return
    with pytest.raises(ValueError, match=r"model: logits .* \[\d+, 2\], but the data have 3 class"):
        go()


def test_no_test_examples():
    """Pooled accuracy is refused; what clients have on average is not a number."""
    nothing = small_dataset()._replace(x_test=SMALL.x_test[:0], y_test=SMALL.y_test[:0])
    train, test = data.federate(nothing, partition_of([[0], [1]], [[], []]))
    network = models.mlp((2,), classes=3, input_shape=(4, 3, 2))
    layout = mesh.make(1)
    state = rounds.initial(network.init(jax.random.key(0)), None, server.average())
    with pytest.raises(ValueError, match="there are no test examples"):
        jax.eval_shape(mesh.spread(run.evaluation(network, layout), layout, (0, 0), 0), state, test)
    test = test._replace(examples=train.examples, labels=train.labels)
    own = jax.jit(mesh.spread(run.client_evaluation(network, layout, 2), layout, (0, 0), 0))
    found = own(state, test)
    for value in (found.accuracy, found.loss, found.mean, found.worst):
        assert np.isnan(value)
    assert found.histogram.sum() == 0
