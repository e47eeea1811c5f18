"""Exact top-k against numpy's stable sort."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType

from fedprune.prune import top_k

SHAPES = {"a": (4, 5), "b": (), "c": (2, 3, 2)}
D = 33
SMALLEST = np.float32(1e-45)


def expected(scores: np.ndarray, k: int, alive: np.ndarray | None = None) -> np.ndarray:
    """The first k of a stable descending sort of what is alive; NumPy puts NaN last."""
    order = np.argsort(-scores, kind="stable")
    if alive is not None:
        order = order[alive[order]]
    mask = np.zeros(scores.shape, bool)
    mask[order[:k]] = True
    return mask


def split(flat):
    """One flat array as a pytree of ``SHAPES``, in the order of its leaves."""
    tree, start = {}, 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        tree[name] = jnp.asarray(flat[start : start + size]).reshape(shape)
        start += size
    assert start == D
    return tree


def join(tree) -> np.ndarray:
    assert {name: leaf.shape for name, leaf in tree.items()} == SHAPES
    assert all(leaf.dtype == bool for leaf in tree.values())
    return np.concatenate([np.ravel(tree[name]) for name in SHAPES])


jitted = jax.jit(top_k)
METHODS = ("histogram", "counting")


@partial(jax.jit, static_argnums=1)
def every_k(scores, method):
    return jax.vmap(lambda k: top_k(scores, k, method=method))(jnp.arange(D + 1))


def random(seed=0, size=D):
    return np.random.default_rng(seed).exponential(size=size).astype(np.float32)


def kinds():
    rng = np.random.default_rng(1)
    return {
        "random": random(),
        "many ties": rng.integers(0, 4, D).astype(np.float32),
        "all equal": np.full(D, 0.7, np.float32),
        "zeros": np.zeros(D, np.float32),
        "signed zeros": np.where(rng.random(D) < 0.5, np.float32(-0.0), np.float32(0.0)),
        "denormals": (rng.integers(0, 20, D) * SMALLEST).astype(np.float32),
        "infinities": np.where(rng.random(D) < 0.4, np.float32(np.inf), random(2)),
        "neighbours": (1 + rng.integers(0, 3, D) * 2.0**-23).astype(np.float32),
        "signed": rng.normal(size=D).round(1).astype(np.float32),
        "signed denormals": (rng.integers(-9, 9, D) * SMALLEST).astype(np.float32),
        "signed extremes": rng.choice(
            np.array([-np.inf, -3.4e38, -1.2e-38, -SMALLEST, -0.0, 0, SMALLEST, 1, np.inf], "f4"), D
        ),
        "all negative": -random(4),
        "not numbers": rng.choice(
            np.array([np.nan, -np.nan, -np.inf, -1, -0.0, 0, 2, np.inf], "f4"), D
        ),
        "extremes": rng.choice(np.array([0, SMALLEST, 1.2e-38, 1, 3.4e38, np.inf], "f4"), D),
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scores", kinds().values(), ids=kinds())
def test_every_k_equals_a_stable_sort(scores, method):
    """k from 0 to d, by vmap over k."""
    assert scores.dtype == np.float32
    got = every_k(split(scores), method)
    for k in range(D + 1):
        mask = join(jax.tree.map(lambda m, k=k: m[k], got))
        np.testing.assert_array_equal(mask, expected(scores, k), err_msg=f"k={k}")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("d", [1, 2, 3, 4, 7, 8, 9])
def test_ties_at_powers_of_two(d, method):
    """The tie-break searches indices bit by bit."""
    ks = jnp.arange(d + 1)
    got = jax.jit(jax.vmap(lambda k: top_k(jnp.ones(d), k, method=method)))(ks)
    np.testing.assert_array_equal(got, np.arange(d)[None] < np.arange(d + 1)[:, None])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step", [1.0, 2.0**-10, 2.0**-21])
def test_many_scores_that_agree_in_their_leading_digits(method, step):
    """20,000 scores of which many share the first, or the first two, of the three digits."""
    rng = np.random.default_rng(9)
    scores = (1 + step * rng.integers(0, 4, 20_000) + 1e-6 * rng.integers(0, 9, 20_000)).astype(
        "f4"
    )
    alive = rng.random(20_000) < 0.7
    select = jax.jit(lambda k: top_k(jnp.asarray(scores), k, jnp.asarray(alive), method))
    for k in (0, 1, 1234, 7000, 13_000, int(alive.sum())):
        np.testing.assert_array_equal(select(k), expected(scores, k, alive), err_msg=f"k={k}")


def test_unknown_method():
    with pytest.raises(ValueError, match="method='sort' is not one of auto, histogram, counting"):
        top_k(jnp.ones(3), 1, method="sort")


@pytest.mark.parametrize("k", [0, 1, D - 1, D])
def test_static_k(k):
    scores = random(3)
    np.testing.assert_array_equal(join(top_k(split(scores), k)), expected(scores, k))
    np.testing.assert_array_equal(join(jitted(split(scores), k)), expected(scores, k))


FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, float("inf"), float(SMALLEST), float("nan")]),
    st.floats(allow_infinity=True, allow_nan=True, allow_subnormal=True, width=32),
)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.lists(FLOATS, min_size=D, max_size=D),
    st.lists(st.booleans(), min_size=D, max_size=D),
    st.integers(0, D),
)
def test_any_scores_any_candidates(scores, alive, k):
    scores, alive = np.array(scores, np.float32), np.array(alive)
    k = min(k, int(alive.sum()))
    got = join(jitted(split(scores), jnp.int32(k), split(alive)))
    np.testing.assert_array_equal(got, expected(scores, k, alive))
    np.testing.assert_array_equal(join(jitted(split(scores), jnp.int32(k))), expected(scores, k))


def test_selections_nest():
    """Each mask is chosen among what the last one kept, on new scores; dead infinities stay out."""
    alive = np.ones(D, bool)
    for step, k in enumerate([30, 30, 17, 5, 1, 0]):
        scores = random(step)
        scores[~alive] = np.inf
        mask = join(jitted(split(scores), k, split(alive)))
        np.testing.assert_array_equal(mask, expected(scores, k, alive))
        assert mask.sum() == k
        assert not (mask & ~alive).any()
        alive = mask


@pytest.mark.parametrize("lowest", [-np.inf, np.nan])
def test_the_lowest_scores_that_are_alive_come_before_dead_ones(lowest):
    scores = np.where(np.arange(D) % 3 == 1, np.float32(lowest), np.float32(1))
    alive = np.arange(D) % 3 == 1
    k = int(alive.sum())
    np.testing.assert_array_equal(join(jitted(split(scores), k, split(alive))), alive)


def test_zero_scores_that_are_alive_come_before_dead_ones():
    scores = np.zeros(D, np.float32)
    alive = np.arange(D) % 3 == 1
    k = int(alive.sum())
    np.testing.assert_array_equal(join(jitted(split(scores), k, split(alive))), alive)


def test_large_leaf():
    scores = np.round(random(5, 200_000), 3)
    for k in (0, 1, 12_345, 100_000, 199_999, 200_000):
        np.testing.assert_array_equal(jitted(jnp.asarray(scores), k), expected(scores, k))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_scores(dtype):
    scores = jnp.asarray(random(6)).astype(dtype)
    wide = np.asarray(scores.astype(jnp.float32))
    np.testing.assert_array_equal(jitted(scores, 11), expected(wide, 11))


def test_vmap_over_scores_candidates_and_k():
    scores = np.stack([random(s) for s in range(4)]).round(1)
    alive = np.random.default_rng(7).random((4, D)) < 0.6
    k = np.array([0, 3, 9, 12])
    got = jax.jit(jax.vmap(top_k))(jnp.asarray(scores), jnp.asarray(k), jnp.asarray(alive))
    want = [expected(*row) for row in zip(scores, k, alive, strict=True)]
    np.testing.assert_array_equal(got, want)


def test_inside_scan():
    scores = np.stack([random(s) for s in range(5)]).round(1)
    ks = np.array([29, 20, 11, 6, 1])

    def step(alive, now):
        mask = top_k(*now, alive)
        return mask, mask

    scan = jax.jit(lambda *xs: lax.scan(step, jnp.ones(D, bool), xs)[1])
    alive = np.ones(D, bool)
    for mask, row, k in zip(scan(jnp.asarray(scores), jnp.asarray(ks)), scores, ks, strict=True):
        alive = expected(row, k, alive)
        np.testing.assert_array_equal(mask, alive)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("scores_vary", "k_varies"), [(True, False), (False, True), (True, True), (False, False)]
)
def test_inside_shard_map(scores_vary, k_varies, method):
    """Each device selects among its own scores; nothing is counted across devices."""
    mesh = jax.make_mesh((4,), ("d",), (AxisType.Auto,), devices=jax.devices()[:4])
    scores = np.stack([random(s) for s in range(4)]).round(1)[: 4 if scores_vary else 1]
    k = np.array([1, 20, D, 0])[: 4 if k_varies else 1]
    specs = [jax.P("d") if v else jax.P() for v in (scores_vary, k_varies)]
    out = jax.P("d") if scores_vary or k_varies else jax.P()
    local = lambda s, k: top_k(s[0], k[0], method=method)[None]
    spread = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=tuple(specs), out_specs=out))
    got = spread(jnp.asarray(scores), jnp.asarray(k))
    want = [expected(scores[i % len(scores)], k[i % len(k)]) for i in range(len(got))]
    assert len(got) == (4 if scores_vary or k_varies else 1)
    np.testing.assert_array_equal(got, want)
