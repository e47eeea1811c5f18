"""Every reduction over clients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import tree
from fedprune.mesh.blocks import fetch, give_back, of_bits, whole
from fedprune.mesh.layout import CLIENTS, Layout
from fedprune.mesh.totals import identity, merge, pairwise_sum, reduce
from fedprune.types import PyTree, Total


def accumulate(
    contribution: Callable[[PyTree, jax.Array], Total],
    shared: PyTree,
    size: int,
    layout: Layout,
) -> Total:
    """Total of ``contribution(shared, position)`` over positions 0..size-1, on all devices.

    Must run inside ``spread``. Memory does not grow with ``size``.
    """

    def one(shared: PyTree, position: jax.Array, row: PyTree) -> tuple[Total, PyTree, PyTree]:
        return contribution(shared, position), row, ()

    return collect(one, shared, size, layout)[0]


def collect(
    contribution: Callable[[PyTree, jax.Array, PyTree], tuple[Total, PyTree, PyTree]],
    shared: PyTree,
    size: int,
    layout: Layout,
    store: PyTree = (),
    ids: jax.Array | None = None,
) -> tuple[Total, PyTree, PyTree]:
    """The total over positions, as from ``accumulate``, with what is kept of every client.

    A row of the store moves to the device that has its client's position, and back to its owner,
    one step of all lanes at a time; no device ever has the rows of the whole cohort.

    Args:
      contribution: (shared, position, row of the store) -> (one position's part, its new row, its
        findings, small arrays); vmapped over ``layout.chunk`` positions.
      shared: everything that it reads (params, masks, data, keys). It is marked as varying over
        devices here, in one place: a gradient with respect to an unmarked value would be summed
        over all devices without a word.
      size: number of positions.
      layout: lanes, chunk and reduction.
      store: arrays [K, ...] of any types that are divided over the clients axis, of which every
        device has its block.
      ids: [size] int32, whose rows the positions have, without repetition; None: there is no store.

    Returns:
      The total, on all devices; the store with the new rows; and the findings of all positions,
      leaves [size, ...], on all devices.
    """
    shared = tree.vary(shared, {CLIENTS})
    given = store
    store = jax.tree.map(whole, store)
    row = jax.tree.map(lambda block: jax.ShapeDtypeStruct(block.shape[1:], block.dtype), given)
    at = jax.ShapeDtypeStruct((), jnp.int32)
    one, _, finding = jax.eval_shape(contribution, shared, at, row)
    zero = identity(one)
    empty = jax.tree.map(lambda r: jnp.zeros((layout.chunk, *r.shape), r.dtype), finding)
    deal = _Deal(size, layout, ids, lax.axis_index(CLIENTS))

    def typed(rows: PyTree) -> PyTree:
        return jax.tree.map(lambda bits, v: of_bits(bits, v.dtype), rows, given)

    def one_lane(store: PyTree, lane: jax.Array) -> tuple[PyTree, tuple[Total, PyTree]]:
        def several(total: Total, rows: PyTree, step: jax.Array):
            positions = deal.positions(lane, step)
            rows = typed(rows)
            if layout.chunk == 1:
                first = jax.tree.map(lambda r: r[0], rows)
                part, *more = contribution(shared, positions[0], first)
                new, found = jax.tree.map(lambda r: r[None], more)
                return alike(merge(total, part), new, found)
            parts, new, found = jax.vmap(contribution, (None, 0, 0))(shared, positions, rows)
            return alike(merge(total, reduce(parts, positions < size)), new, found)

        def alike(total: Total, rows: PyTree, found: PyTree):
            rows = jax.tree.map(whole, rows)
            return total, *tree.match(((rows, found), total, shared, lane))[0]

        def body(carry: tuple[Total, PyTree], step: jax.Array):
            total, store = carry
            rows = store
            if jax.tree.leaves(store):
                needed = deal.wanted(lane, step)
                rows = fetch(store, *needed)
            if size % deal.stride == 0:
                total, rows, found = several(total, rows, step)
            else:
                idle = lambda total, rows, _: alike(total, rows, empty)
                busy = deal.positions(lane, step)[0] < size
                total, rows, found = lax.cond(busy, several, idle, total, rows, step)
            if jax.tree.leaves(store):
                store = give_back(store, *needed, rows)
            return (total, store), found

        start = tree.match((zero, shared, lane, store))[0]
        steps = math.ceil(size / deal.stride)
        (total, store), found = lax.scan(body, (start, store), jnp.arange(steps))
        return store, (total, found)

    if layout.reduction == "fast":
        store, (total, found) = one_lane(store, deal.device)
        summed = lax.psum(total.sum, CLIENTS)
        largest = jax.tree.map(lambda a: lax.pmax(a, CLIENTS), total.max)
        found = _in_order(jax.tree.map(lambda r: r[None], found), size)
        return Total(summed, largest), typed(store), found

    own = deal.device * layout.local_lanes + jnp.arange(layout.local_lanes)
    store, (total, found) = lax.optimization_barrier(lax.scan(one_lane, store, own))
    gathered = jax.tree.map(_gathered, total.sum)
    summed = lax.optimization_barrier(jax.tree.map(pairwise_sum, gathered))
    largest = jax.tree.map(lambda a: lax.pmax(a.max(0), CLIENTS), total.max)
    return Total(summed, largest), typed(store), _in_order(found, size)


class _Deal(NamedTuple):
    """How positions are dealt to the lanes of all devices, as one device sees it."""

    size: int
    """of the cohort"""
    layout: Layout
    ids: jax.Array | None
    """[size] int32, whose the positions are"""
    device: jax.Array
    """[] int32, on the clients axis"""

    @property
    def lanes(self) -> int:
        return self.layout.local_lanes * self.layout.client_devices

    @property
    def stride(self) -> int:
        """Positions that one step of all lanes takes."""
        return self.lanes * self.layout.chunk

    def positions(self, lane: jax.Array, step: jax.Array) -> jax.Array:
        """[chunk] int32, which a lane takes in a step."""
        chunk = self.layout.chunk
        return lane + self.lanes * (step * chunk + jnp.arange(chunk))

    def wanted(self, lane: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Whose rows all devices need in a step, [devices, chunk], and which of them exist."""
        assert self.ids is not None
        local = lane - self.device * self.layout.local_lanes
        every = jnp.arange(self.layout.client_devices) * self.layout.local_lanes + local
        positions = jax.vmap(lambda lane: self.positions(lane, step))(every)
        return self.ids[jnp.minimum(positions, self.size - 1)], positions < self.size


def _in_order(findings: PyTree, size: int) -> PyTree:
    """From this device's [local lanes, steps, chunk, ...] to all positions' [size, ...]."""

    def one(leaf: jax.Array) -> jax.Array:
        leaf = jnp.moveaxis(_gathered(leaf), 0, 2)
        return leaf.reshape(-1, *leaf.shape[3:])[:size]

    return jax.tree.map(one, findings)


def each(
    fn: Callable[[PyTree, PyTree, jax.Array], PyTree],
    shared: PyTree,
    blocks: PyTree,
    clients: int,
    layout: Layout,
) -> PyTree:
    """``fn(shared, row, k)`` of every client k, on the device that has its row of ``blocks``.

    Must run inside ``spread``. Nothing but the results moves between devices.

    Args:
      fn: its results should be small.
      shared: what all clients read.
      blocks: arrays [K, ...] divided over the clients axis, of which every device has its block.
      clients: K.
      layout: devices.

    Returns:
      The results of all clients, leaves [K, ...], on all devices.
    """
    count = -(-clients // layout.client_devices)
    first = lax.axis_index(CLIENTS) * count
    shared, blocks = tree.vary((shared, blocks), {CLIENTS})

    def one(i: jax.Array) -> PyTree:
        row = jax.tree.map(lambda block: block[i], blocks)
        return fn(shared, row, jnp.minimum(first + i, clients - 1))

    found = lax.map(one, jnp.arange(count))
    return jax.tree.map(lambda v: _gathered(v)[:clients], found)


def _gathered(values: jax.Array) -> jax.Array:
    """The leading axes of all devices behind one another."""
    return lax.all_gather(values, CLIENTS, tiled=True, to="invarying")
