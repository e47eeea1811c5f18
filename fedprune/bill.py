"""Exact integers on the device, for bills that 32 bits do not hold.

A ``Count`` is 65536 high + low. Sums of counts add their parts, in any order and grouping: they are
exact up to 1.1e12, for at most 32,767 parts at a time, whatever the order of the additions. Beyond
that they are rounded, and infinite where a part is.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedprune.types import Cost, Count, PyTree

_BASE = 65536


def count(number: jax.Array | int) -> Count:
    """Of non-negative integers of any shape below 2^31, or whole numbers in float32.

    A float32 that is no whole number is rounded down.
    """
    number = jnp.asarray(number)
    if jnp.issubdtype(number.dtype, jnp.integer):
        number = number.astype(jnp.int32)
        return Count((number // _BASE).astype(jnp.float32), number % _BASE)
    high = jnp.floor(number / _BASE)
    low = jnp.where(jnp.isfinite(high), number - high * _BASE, 0.0)
    return Count(high, low.astype(jnp.int32))


def times(number: jax.Array | int, factor: jax.Array | int) -> Count:
    """The product of two non-negative integers below 2^31, the second one below 32,768."""
    number, factor = jnp.asarray(number, jnp.int32), jnp.asarray(factor, jnp.int32)
    return carried(Count((number // _BASE * factor).astype(jnp.float32), number % _BASE * factor))


def carried(count: Count) -> Count:
    """The same number with 0 <= low < 65536, so that it can be added up again."""
    return Count(count.high + (count.low // _BASE).astype(jnp.float32), count.low % _BASE)


def add(*counts: Count) -> Count:
    """Their sum."""
    high, low = counts[0]
    for other in counts[1:]:
        high, low = high + other.high, low + other.low
    return carried(Count(high, low))


def total(count: Count) -> Count:
    """The sum over all axes, [] each."""
    return carried(Count(count.high.sum(), count.low.sum()))


def settled(cost: Cost) -> Cost:
    """A cost whose counts were added up over clients, ready to be added up again."""
    uses, side = carried(cost.channel_uses), carried(cost.side_information)
    return cost._replace(channel_uses=uses, side_information=side)


def both(up: Cost, down: Cost) -> Cost:
    """The cost of two directions. The noise variance is that of ``up``, of the mean update."""
    return settled(jax.tree.map(jnp.add, up, down))._replace(noise_variance=up.noise_variance)


def approximate(count: Count) -> jax.Array:
    """float32, for rates and seconds."""
    return count.high * float(_BASE) + count.low.astype(jnp.float32)


def on_host(values: PyTree) -> PyTree:
    """``values`` with NumPy integers (int64) in place of every ``Count``; float64 if one is
    infinite."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Count):
            return leaf
        high, low = np.asarray(leaf.high, np.float64), np.asarray(leaf.low, np.int64)
        if np.isfinite(high).all():
            return high.astype(np.int64) * _BASE + low
        return high * _BASE + low

    return jax.tree.map(one, values, is_leaf=lambda leaf: isinstance(leaf, Count))
