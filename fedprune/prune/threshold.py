"""Exact top-k by selection: no sort over the weights, k may be traced, ties broken by index.

A non-negative float's bit pattern, read as an integer, has the float's order. So the k-th largest
score is found bit by bit from the top (radix select): a bit is set if at least k keys are as large
as the result so far. That is 32 counting passes over the scores, whatever k is; log2(d) more settle
which of the scores equal to the k-th are kept (the first ones).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import tree
from fedprune.types import Mask, PyTree


def top_k(scores: PyTree, k: jax.Array | int, alive: Mask = None) -> Mask:
    """Keeps the k largest scores over all leaves together.

    Args:
      scores: non-negative floats of any shapes, d in all.
      k: [] how many to keep; at most the number alive, at least 0. May be traced.
      alive: candidates; entries that are False are never kept. None: all are.

    Returns:
      Booleans shaped like ``scores``, exactly k of them True. Of equal scores those that come first
      (in the leaves' order, then row-major) are kept.
    """
    leaves, treedef = jax.tree.flatten(scores)
    keys = [_key(leaf) for leaf in leaves]
    if alive is not None:
        keys = [
            jnp.where(m.ravel(), key, jnp.uint32(0))
            for m, key in zip(jax.tree.leaves(alive), keys, strict=True)
        ]
    keep, *keys = tree.match((jnp.asarray(k, jnp.int32), *keys))
    kth = _largest(lambda t: _count(key >= t for key in keys) >= keep, 32, keep)
    missing = keep - _count(key > kth for key in keys)
    d = sum(key.size for key in keys)
    ranks, start = [], 0
    for key in keys:  # d, d-1, ..., 1 over all leaves: earlier entries rank higher
        ranks.append(jnp.uint32(d - start) - jnp.arange(key.size, dtype=jnp.uint32))
        start += key.size
    tied = list(zip(keys, ranks, strict=True))
    last = _largest(
        lambda r: _count((key == kth) & (rank >= r) for key, rank in tied) >= missing,
        d.bit_length() + 1,
        keep,
    )
    kept = [(key > kth) | ((key == kth) & (rank >= last)) for key, rank in tied]
    shaped = [m.reshape(leaf.shape) for m, leaf in zip(kept, leaves, strict=True)]
    return jax.tree.unflatten(treedef, shaped)


def _key(score: jax.Array) -> jax.Array:
    """Unsigned integers in the order of the scores, all above 0, the key of what is not alive."""
    bits = lax.bitcast_convert_type(jnp.abs(score.astype(jnp.float32)).ravel(), jnp.uint32)
    return bits + jnp.uint32(1)


def _largest(holds: Callable[[jax.Array], jax.Array], bits: int, like: jax.Array) -> jax.Array:
    """The largest t < 2^bits with holds(t), for a predicate that holds up to some t >= 0."""

    def body(i: jax.Array, t: jax.Array) -> jax.Array:
        candidate = t | (jnp.uint32(1) << (jnp.uint32(bits - 1) - i.astype(jnp.uint32)))
        return jnp.where(holds(candidate), candidate, t)

    return lax.fori_loop(0, bits, body, jnp.zeros_like(like, jnp.uint32))


def _count(conditions) -> jax.Array:
    return sum((jnp.sum(c, dtype=jnp.int32) for c in conditions), start=jnp.int32(0))
