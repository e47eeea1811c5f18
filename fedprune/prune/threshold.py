"""Exact top-k by selection: no sort over the weights, k may be traced, ties broken by index.

A float's magnitude has the order of its bit pattern, read as an integer; ``_key`` minds the sign.
So the k-th largest score is found from the top bits down (radix select), whatever k is, in one of
two ways:

  histogram   11 bits at a time: three passes, each of which counts how often each of 2048 digits
              occurs among the scores that agree with the digits found so far
  counting    one bit at a time: 32 passes, a bit is set if at least k keys are as large as the
              result so far

The first is several times faster on CPU. It increments one counter after another, for which wide
devices are a bad place; there the second is used. Where not all of the scores equal to the k-th are
kept, log2(d) further counting passes settle which are (the first ones).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import check, tree
from fedprune.types import Mask, PyTree

METHODS = ("auto", "histogram", "counting")
"""How the k-th score is found; ``auto`` takes the histogram on CPU and counting elsewhere."""

_DIGITS = ((21, 11), (10, 11), (0, 10))
"""(lowest bit, number of bits) of a key's digits"""


def top_k(scores: PyTree, k: jax.Array | int, alive: Mask = None, method: str = "auto") -> Mask:
    """Keeps the k largest scores over all leaves together.

    Args:
      scores: floats of any shapes, d in all, ranked by value: 0.0 and -0.0 are equal, and NaN is
        below -inf, since it says nothing for its weight.
      k: [] how many to keep; at most the number alive, at least 0. May be traced.
      alive: candidates; entries that are False are never kept. None: all are.
      method: one of ``METHODS``; the result is the same.

    Returns:
      Booleans shaped like ``scores``, exactly k of them True. Of equal scores those that come first
      (in the leaves' order, then row-major) are kept.

    Raises:
      ValueError: an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"top_k: method={method!r} is not one of {', '.join(METHODS)}")
    leaves, treedef = jax.tree.flatten(scores)
    check.whole("k", k, 0, sum(leaf.size for leaf in leaves))
    keys = [_key(leaf) for leaf in leaves]
    if alive is not None:
        keys = [
            jnp.where(m.ravel(), key, jnp.uint32(0))
            for m, key in zip(jax.tree.leaves(alive), keys, strict=True)
        ]
    keep, *keys = tree.match((jnp.asarray(k, jnp.int32), *keys))
    find = {"histogram": _kth_by_histogram, "counting": _kth_by_counting}
    if method == "auto":
        default = find["counting"]
        kth = lax.platform_dependent(keys, keep, cpu=find["histogram"], default=default)
    else:
        kth = find[method](keys, keep)
    missing = keep - _count(key > kth for key in keys)
    equal = _count(key == kth for key in keys)
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
        needed=equal > missing,
    )
    kept = [(key > kth) | ((key == kth) & (rank >= last)) for key, rank in tied]
    shaped = [m.reshape(leaf.shape) for m, leaf in zip(kept, leaves, strict=True)]
    return jax.tree.unflatten(treedef, shaped)


def _key(score: jax.Array) -> jax.Array:
    """Unsigned integers in the order of the scores, all above 0, the key of what is not alive."""
    bits = lax.bitcast_convert_type(score.astype(jnp.float32).ravel(), jnp.uint32)
    zero, lowest, highest = (jnp.uint32(v) for v in (1 << 31, 0x00800000, 0xFF800000))  # 0, ±inf
    key = jnp.where(bits < zero, bits + zero, jnp.uint32(0) - bits)
    number = key - lowest <= highest - lowest  # below the lowest it wraps
    return jnp.where(number, key, jnp.uint32(1))


def _kth_by_counting(keys: list[jax.Array], k: jax.Array) -> jax.Array:
    """The k-th largest key, [] uint32; the largest number there is for k = 0."""
    return _largest(lambda t: _count(key >= t for key in keys) >= k, 32, k)


def _kth_by_histogram(keys: list[jax.Array], k: jax.Array) -> jax.Array:
    """The same."""
    found = jnp.zeros_like(k, jnp.uint32)
    for low, bits in _DIGITS:
        counts = jnp.zeros(1 << bits, jnp.int32)
        for key in keys:
            digit = (key >> low) & jnp.uint32((1 << bits) - 1)
            if low + bits < 32:  # others than those that agree so far lie outside and are dropped
                digit = jnp.where((key ^ found) >> (low + bits) == 0, digit, jnp.uint32(1 << bits))
            counts = counts.at[digit].add(1, mode="drop")
        at_least = jnp.flip(jnp.cumsum(jnp.flip(counts)))
        digit = jnp.sum(at_least >= k, dtype=jnp.uint32) - jnp.uint32(1)
        k = k - jnp.sum(jnp.where(jnp.arange(1 << bits, dtype=jnp.uint32) > digit, counts, 0))
        found = found | (digit << low)
    return found


def _largest(
    holds: Callable[[jax.Array], jax.Array],
    bits: int,
    like: jax.Array,
    needed: jax.Array | bool = True,
) -> jax.Array:
    """The largest t < 2^bits with holds(t), for a predicate that holds up to some t >= 0.

    Where it is not ``needed``, 0 after no work.
    """

    def body(i: jax.Array, t: jax.Array) -> jax.Array:
        candidate = t | (jnp.uint32(1) << (jnp.uint32(bits - 1) - i.astype(jnp.uint32)))
        return jnp.where(holds(candidate), candidate, t)

    passes = jnp.where(needed, jnp.int32(bits), jnp.int32(0))
    return lax.fori_loop(0, passes, body, jnp.zeros_like(like, jnp.uint32))


def _count(conditions) -> jax.Array:
    return sum((jnp.sum(c, dtype=jnp.int32) for c in conditions), start=jnp.int32(0))
