"""Totals of clients: the empty one, two merged, many reduced."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedprune.types import Total


def identity(like: Total) -> Total:
    """The total of nobody: zero for sums, -inf for maxima."""
    return Total(
        jax.tree.map(jnp.zeros_like, like.sum),
        jax.tree.map(lambda a: jnp.full_like(a, -jnp.inf), like.max),
    )


def reduce(parts: Total, counts: jax.Array) -> Total:
    """Sum and maximum over the leading axis [n] of those parts for which ``counts`` [n] is True."""
    parts = jax.tree.map(
        lambda p, z: jnp.where(counts.reshape((-1,) + (1,) * (p.ndim - 1)), p, z),
        parts,
        identity(parts),
    )
    return Total(
        jax.tree.map(lambda p: p.sum(0), parts.sum), jax.tree.map(lambda p: p.max(0), parts.max)
    )


def merge(a: Total, b: Total) -> Total:
    """The total over both."""
    return Total(jax.tree.map(jnp.add, a.sum, b.sum), jax.tree.map(jnp.maximum, a.max, b.max))


def pairwise_sum(values: jax.Array) -> jax.Array:
    """Sum over the leading axis as a balanced tree, in an order fixed by its length alone."""
    while values.shape[0] > 1:
        if values.shape[0] % 2:
            values = jnp.concatenate([values, jnp.zeros_like(values[:1])])
        values = values[0::2] + values[1::2]
    return values[0]
