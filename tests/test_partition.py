"""Partitions over clients, and the arrays that they become on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedprune import data

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


@pytest.mark.parametrize("split", [data.iid(9), data.dirichlet(9, 0.5)], ids=("iid", "dirichlet"))
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
    with pytest.raises(ValueError, match=rf"clients={clients} is not between 1 and 600 training"):
        build(clients)(Y_TRAIN, Y_TEST, 0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha} must be above 0"):
        data.dirichlet(3, alpha)


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
