"""Max-pooling against ``lax.reduce_window`` in value and derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fedprune import nn

# x, window, strides
CASES = {
    "2x2": ((2, 6, 8, 3), 2, None),
    "does not divide": ((2, 7, 8, 3), (2, 3), None),
    "overlap": ((2, 7, 8, 3), 3, 2),
    "overlap by one axis": ((2, 7, 8, 3), (2, 3), (2, 1)),
    "gaps": ((2, 8, 7, 3), 2, 3),
    "whole input": ((2, 4, 5, 3), (4, 5), None),
    "1": ((2, 4, 5, 3), 1, None),
    "1d": ((2, 9, 3), 2, None),
    "1d overlap": ((2, 9, 3), 3, 2),
    "3d": ((2, 4, 5, 6, 2), (2, 1, 3), None),
    "3d overlap": ((2, 4, 5, 6, 2), (2, 3, 2), (1, 2, 3)),
}


def reference(x, window, strides=None):
    n = x.ndim - 2
    strides = window if strides is None else strides
    sizes = [(v,) * n if isinstance(v, int) else v for v in (window, strides)]
    sizes = [(1, *v, 1) for v in sizes]
    return lax.reduce_window(x, -jnp.inf, lax.max, *sizes, "VALID")


def distinct(shape, seed=0):
    """Negative and positive entries, no two alike."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.permutation(np.prod(shape)).reshape(shape) / 10 - 5, jnp.float32)


@pytest.mark.parametrize(("shape", "window", "strides"), CASES.values(), ids=CASES)
def test_value_and_gradient_equal_reduce_window(shape, window, strides):
    x = distinct(shape)
    ct = distinct(reference(x, window, strides).shape, 1)

    @partial(jax.jit, static_argnums=0)
    def both(pool, x, ct):
        value, pullback = jax.vjp(lambda x: pool(x, window, strides), x)
        return value, pullback(ct)[0]

    (value, gradient), want = both(nn.max_pool, x, ct), both(reference, x, ct)
    np.testing.assert_array_equal(value, want[0])
    # Windows that overlap may choose the same entry, and add their cotangents in another order.
    np.testing.assert_allclose(gradient, want[1], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("window", "strides"), [(2, None), (3, 2)])
def test_hvp_equals_that_of_the_chosen_entries(window, strides):
    """Away from ties pooling picks entries, and is linear."""
    x, v = distinct((2, 7, 6, 2)), distinct((2, 7, 6, 2), 1)
    order = np.argsort(x, None)
    rank = np.argsort(order).reshape(x.shape)
    chosen = order[np.asarray(reference(jnp.asarray(rank, jnp.float32), window, strides), int)]

    @partial(jax.jit, static_argnums=0)
    def hvp(pool, x):
        f = lambda x: jnp.mean(jnp.tanh(0.2 * pool(x)) ** 3)
        forward = jax.jvp(jax.grad(f), (x,), (v,))[1]
        reverse = jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), v))(x)
        return forward, reverse

    ours = hvp(lambda x: nn.max_pool(x, window, strides), x)
    want = hvp(lambda x: x.ravel()[chosen], x)
    assert np.abs(want[0]).max() > 1e-3
    np.testing.assert_allclose(ours, want, rtol=1e-5, atol=1e-7)


def test_vmap_and_scan():
    x = distinct((3, 2, 6, 5, 2))
    for window, strides in ((2, None), (3, 1)):
        want = jnp.stack([reference(one, window, strides) for one in x])
        pool = partial(nn.max_pool, window=window, strides=strides)
        np.testing.assert_array_equal(jax.vmap(pool)(x), want)
        np.testing.assert_array_equal(jax.jit(partial(lax.map, pool))(x), want)


@pytest.mark.parametrize(("shape", "window"), [((1, 2, 2, 1), 2), ((1, 2, 1), 2)])
def test_ties_share_the_gradient_equally(shape, window):
    gradient = jax.grad(lambda x: nn.max_pool(x, window).sum())(jnp.ones(shape))
    np.testing.assert_array_equal(gradient, np.full(shape, 1 / np.prod(shape)))


def test_only_the_largest_entries_share():
    x = jnp.array([3.0, 1.0, 3.0, 2.0]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: nn.max_pool(x, 2).sum())(x)
    np.testing.assert_array_equal(gradient.ravel(), [0.5, 0, 0.5, 0])


def test_overlapping_ties_share_all_of_the_gradient():
    """Every window's cotangent goes to its maxima, all of them, and nothing is lost."""
    x = jnp.array([1.0, 1.0, 1.0, 0.0, 2.0]).reshape(1, 5, 1)
    gradient = jax.grad(lambda x: nn.max_pool(x, 3, 2).sum())(x).ravel()
    assert (np.asarray(gradient[:3]) > 0).all()
    np.testing.assert_allclose(gradient[:3].sum(), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(gradient[3:], [0.0, 1.0])


def test_negative_infinity_and_nan():
    x = jnp.array([-jnp.inf, -jnp.inf, jnp.nan, 1.0]).reshape(1, 4, 1)
    for strides in (2, 1):
        got = nn.max_pool(x, 2, strides).ravel()
        assert got[0] == -jnp.inf
        assert jnp.isnan(got[-1])


@pytest.mark.parametrize(
    ("shape", "window"), [((1, 4, 4, 1), 5), ((1, 4, 4, 1), (2, 5)), ((1, 3, 1), 4)]
)
def test_window_larger_than_the_input(shape, window):
    with pytest.raises(ValueError, match=r"max_pool: window .* is larger than the input"):
        nn.max_pool(jnp.ones(shape), window)
