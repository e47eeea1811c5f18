"""What is kept of every client, in blocks of clients on the devices: how a row of it moves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedprune.mesh.layout import CLIENTS
from fedprune.types import PyTree


def fetch(blocks: PyTree, ids: jax.Array, exist: jax.Array) -> PyTree:
    """This device's rows [chunk, ...] of arrays [K, ...] in blocks, where ``ids`` [devices, chunk]
    says whose rows each device needs and ``exist`` whether it does."""
    devices, chunk = ids.shape

    def one(block: jax.Array) -> jax.Array:
        if devices == 1:
            return block[ids[0]]
        row, mine = _local(block, ids.reshape(-1), exist.reshape(-1))
        mine = mine.reshape((-1,) + (1,) * (block.ndim - 1))
        bits = _bits(block[row])
        # Bits of one owner and zeros: a sum of floats would turn -0.0 into 0.0.
        sent = jnp.where(mine, bits, jnp.zeros((), bits.dtype))
        sent = sent.reshape(devices, chunk, *block.shape[1:])
        return of_bits(lax.psum_scatter(sent, CLIENTS), block.dtype)

    return jax.tree.map(one, blocks)


def give_back(blocks: PyTree, ids: jax.Array, exist: jax.Array, rows: PyTree) -> PyTree:
    """Such arrays with this device's new rows [chunk, ...] in the places of their owners."""

    def one(block: jax.Array, new: jax.Array) -> jax.Array:
        everybody = new if ids.shape[0] == 1 else lax.all_gather(new, CLIENTS, tiled=True)
        row, mine = _local(block, ids.reshape(-1), exist.reshape(-1))
        return block.at[jnp.where(mine, row, block.shape[0])].set(everybody, mode="drop")

    return jax.tree.map(one, blocks, rows)


def _bits(values: jax.Array) -> jax.Array:
    """As unsigned integers of the same size."""
    if jnp.issubdtype(values.dtype, jnp.bool_):
        return values.astype(jnp.uint8)
    unsigned = jnp.dtype(f"uint{8 * values.dtype.itemsize}")
    return lax.bitcast_convert_type(values, unsigned)


def whole(values: jax.Array) -> jax.Array:
    """Floats as the integers of their bits, which no copy changes. XLA copies small floats on CPU
    through larger ones, and a NaN may come out as another NaN."""
    return _bits(values) if jnp.issubdtype(values.dtype, jnp.floating) else values


def of_bits(bits: jax.Array, dtype: Any) -> jax.Array:
    if jnp.issubdtype(dtype, jnp.bool_):
        return bits.astype(bool)
    return lax.bitcast_convert_type(bits, dtype)


def _local(block: jax.Array, ids: jax.Array, exist: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where clients stand in this device's block, and whether they do."""
    row = ids - lax.axis_index(CLIENTS) * block.shape[0]
    mine = (row >= 0) & (row < block.shape[0]) & exist
    return jnp.clip(row, 0, block.shape[0] - 1), mine
