"""How real numbers are packed into complex symbols, and what a complex factor does to them.

  complex  two reals a symbol, in phase and in quadrature
  real     one real a symbol, in phase; the receiver reads that part alone

Only what is sent takes a place in a symbol: with a mask, kept weights alone are packed, the first
with the second, the third with the fourth, and so on, by their index in their array. Every array
begins a symbol of its own, so that arrays need not be brought together on one device; one whose
number of kept weights is odd leaves half a symbol empty.

Symbol i of an array is sent in block i mod B of the B blocks of symbols that fade together, as
neighbouring symbols are on neighbouring subcarriers (``channel.fading``).

A factor that is not real mixes the two parts of a symbol. Weights that are pruned neither leak into
others nor receive anything.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedprune.types import Mask, Params, PyTree

PACKINGS = ("complex", "real")


class Pair(NamedTuple):
    """With what each real of an array of n shares its symbol."""

    partner: jax.Array
    """[n] int32, the other one's index"""
    sign: jax.Array
    """[n] float32: -1 in phase, 1 in quadrature, 0 for those that have no partner"""
    rank: jax.Array
    """[n] int32, how many are sent before it"""


def pairs(mask: Mask) -> PyTree:
    """The pairing of what a mask keeps: a ``Pair`` for each of its arrays; None of None.

    It depends on the mask alone, so it is made once a round and serves all clients.
    """
    return None if mask is None else jax.tree.map(_pair, mask)


def rotate(factor: jax.Array, signal: Params, packing: str, paired: PyTree = None) -> Params:
    """The receiver's view of a sender's reals after multiplication of its symbols by a factor.

    Args:
      factor: [] complex, of all symbols; or [B], of each block.
      signal: arrays of reals, zero where nothing is sent.
      packing: one of ``PACKINGS``.
      paired: from ``pairs``; None: everything is sent. With packing "real" and one factor for all
        symbols it does not matter.
    """
    factors = of_blocks(factor, signal, packing, paired)
    if packing == "real":
        return jax.tree.map(lambda c, v: c.real * v, factors, signal)
    if paired is None:
        return jax.tree.map(_rotated_whole, factors, signal)

    def one(c: jax.Array, v: jax.Array, pair: Pair) -> jax.Array:
        flat, c = v.reshape(-1), c.reshape(-1)
        mixed = c.real * flat + c.imag * pair.sign * flat[pair.partner]
        return mixed.reshape(v.shape)

    return jax.tree.map(one, factors, signal, paired)


def of_blocks(values: jax.Array, like: Params, packing: str, paired: PyTree = None) -> PyTree:
    """What belongs to each weight, of something that belongs to each block of symbols.

    Args:
      values: [B]; or [], the same for all blocks.
      like: arrays of the same shapes, of which only the shapes matter.
      packing: one of ``PACKINGS``.
      paired: from ``pairs``; None: everything is sent.

    Returns:
      ``values`` of its block for each weight, in arrays shaped like ``like``; of [], [] for each.
    """
    if values.ndim == 0:
        return jax.tree.map(lambda _: values, like)
    reals = 2 if packing == "complex" else 1

    def one(rank: jax.Array, v: jax.Array) -> jax.Array:
        return values[rank // reals % values.shape[0]].reshape(v.shape)

    if paired is None:
        return jax.tree.map(lambda v: one(jnp.arange(v.size), v), like)
    is_pair = lambda node: isinstance(node, Pair)
    return jax.tree.map(lambda pair, v: one(pair.rank, v), paired, like, is_leaf=is_pair)


def symbols(mask: Mask, like: Params, packing: str) -> jax.Array:
    """Complex symbols that the kept weights of all arrays take, [] int32.

    Args:
      mask: None: every weight is sent.
      like: arrays of the same shapes, of which only the shapes matter.
    """
    kept = jax.tree.map(lambda v: v.size, like) if mask is None else jax.tree.map(jnp.sum, mask)
    uses = [channel_uses(n, packing) for n in jax.tree.leaves(kept)]
    return jnp.int32(sum(uses))


def channel_uses(reals: jax.Array | int, packing: str) -> jax.Array | int:
    """Complex symbols for a number of reals that are packed together."""
    return (reals + 1) // 2 if packing == "complex" else reals


def _pair(mask: jax.Array) -> Pair:
    kept = mask.reshape(-1)
    rank = jnp.cumsum(kept, dtype=jnp.int32) - 1
    # Where the kept real of each rank stands; a rank of none leads beyond the end, and is dropped.
    place = jnp.zeros(kept.size + 1, jnp.int32)
    place = place.at[jnp.where(kept, rank, kept.size)].set(jnp.arange(kept.size, dtype=jnp.int32))
    other = rank ^ 1
    both = kept & (other <= rank[-1])
    sign = jnp.where(rank % 2 == 0, -1.0, 1.0).astype(jnp.float32)
    return Pair(place[jnp.where(both, other, 0)], jnp.where(both, sign, 0.0), jnp.maximum(rank, 0))


def _rotated_whole(factor: jax.Array, values: jax.Array) -> jax.Array:
    def in_symbols(reals: jax.Array) -> jax.Array:
        return jnp.pad(reals.reshape(-1), (0, reals.size % 2)).reshape(-1, 2)

    flat = values.reshape(-1)
    even = in_symbols(values)
    phase, quadrature = even[:, 0], even[:, 1]
    if factor.ndim:
        factor = in_symbols(factor)[:, 0]
    mixed = jnp.stack(
        [
            factor.real * phase - factor.imag * quadrature,
            factor.imag * phase + factor.real * quadrature,
        ],
        axis=1,
    )
    return mixed.reshape(-1)[: flat.size].reshape(values.shape)
