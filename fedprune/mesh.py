"""Devices: the mesh, the one ``shard_map``, and every reduction over clients.

A mesh has two axes. Arms (independent experiments of one program) are spread over ``arms`` and
never communicate. A round's cohort is spread over ``clients`` and meets once a round, in
``accumulate``.

Cohort positions 0..S-1 are dealt to *lanes*: lane l takes positions l, l + L, l + 2L, ... in order,
``chunk`` of them at a time (vmapped). What a lane accumulates stays on its device.

  fast    one lane per device; lanes meet in a ``psum``. The order of additions, and so the last
          bits, depend on the number of devices.
  strict  a fixed number of lanes (8 by default) that the devices share out; the lane sums are
          gathered and added as a tree. Bitwise the same on 1, 2, 4 and 8 devices.

Positions beyond S are skipped, so any cohort runs on any number of devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from fedprune import processes, tree
from fedprune.types import PyTree, Total

ARMS, CLIENTS = "arms", "clients"


@dataclass(frozen=True)
class Layout:
    """How a program lies on the devices.

    Raises:
      ValueError: if strict lanes cannot be shared out evenly, or a number is not positive.
    """

    mesh: Mesh
    reduction: Literal["fast", "strict"] = "fast"
    lanes: int = 8
    """lanes of strict mode; a multiple of the devices on the clients axis"""
    chunk: int = 1
    """clients trained together, by vmap, in each lane"""

    def __post_init__(self) -> None:
        if self.reduction not in ("fast", "strict"):
            raise ValueError(f"reduction={self.reduction!r} is neither 'fast' nor 'strict'")
        if self.chunk < 1 or self.lanes < 1:
            raise ValueError(f"chunk={self.chunk} and lanes={self.lanes} must be at least 1")
        if self.reduction == "strict" and self.lanes % self.client_devices:
            raise ValueError(
                f"lanes={self.lanes} must be a multiple of the {self.client_devices} devices on"
                " the clients axis in strict mode"
            )

    @property
    def client_devices(self) -> int:
        return self.mesh.shape[CLIENTS]

    @property
    def arm_devices(self) -> int:
        return self.mesh.shape[ARMS]

    @property
    def platform(self) -> str:
        """ "cpu", "gpu" or "tpu": of the devices, which need not be those of this process."""
        return self.mesh.devices.flat[0].platform

    @property
    def local_lanes(self) -> int:
        """Lanes on each device."""
        return 1 if self.reduction == "fast" else self.lanes // self.client_devices

    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, spec(0))

    def per_arm(self) -> NamedSharding:
        """Arrays whose leading axis counts arms."""
        return NamedSharding(self.mesh, spec(1))


def make(clients: int | None = None, arms: int = 1, **layout: Any) -> Layout:
    """A layout over ``arms`` × ``clients`` devices; by default all devices on the clients axis.

    Args:
      clients: devices on the clients axis; None takes all that ``arms`` leaves.
      arms: devices on the arms axis.
      **layout: the other fields of ``Layout``.

    Raises:
      ValueError: if there are fewer devices than asked for, or none of a process's is among them.
    """
    available = len(processes.devices())
    clients = max(1, available // arms) if clients is None else clients
    if min(arms, clients) < 1 or arms * clients > available:
        raise ValueError(f"arms={arms} x clients={clients} devices asked for, {available} exist")
    axes = (AxisType.Auto, AxisType.Auto)
    devices = processes.devices()[: arms * clients]
    if len({device.process_index for device in devices}) < processes.count():
        raise ValueError(
            f"arms={arms} x clients={clients} devices leave some of the {processes.count()}"
            f" processes without one, {available} exist"
        )
    return Layout(jax.make_mesh((arms, clients), (ARMS, CLIENTS), axes, devices=devices), **layout)


def spec(axes: int) -> jax.P:
    """How an array lies on the mesh of whose leading axes so many are divided over devices.

    0: none, 1: the first, which counts arms, 2: and the second, which counts clients.
    """
    return jax.P(*(ARMS, CLIENTS)[:axes])


def spread(fn: Callable, layout: Layout, axes: tuple[Any, ...], results: Any = 1) -> Callable:
    """Runs ``fn`` on every device of the mesh: the only ``shard_map`` of the package.

    Args:
      fn: a function of pytrees; sees its own slice of the arguments that are divided.
      axes: for every argument, a pytree prefix of numbers: how many of its leading axes are divided
        over the mesh, see ``spec``. Their lengths must be multiples of the devices.
      results: the same for what it returns.

    Returns:
      A function with the same arguments.
    """
    args, out = (jax.tree.map(spec, prefix) for prefix in (axes, results))
    return jax.shard_map(fn, mesh=layout.mesh, in_specs=args, out_specs=out)


def finished(compiled: Any, layout: Layout) -> Any:
    """``compiled``, returning only when its results are there if it runs on several CPU devices.

    XLA's CPU devices share one pool of threads. While a program is under way, small operations on
    its results can take all threads of the pool on one device and wait there for the other devices,
    which then never get a thread: XLA kills the process after 40 seconds (seen with JAX 0.10).
    """
    if not _shares_threads(layout):
        return compiled
    return Compiled(lambda *args: jax.block_until_ready(compiled(*args)), compiled.lower)


def _shares_threads(layout: Layout) -> bool:
    """Several CPU devices have one pool of threads."""
    return layout.platform == "cpu" and layout.mesh.size > 1


def placed(compiled: Any, layout: Layout, axes: tuple[Any, ...]) -> Compiled:
    """``compiled``, with every argument brought to where it belongs before.

    Left to JAX, a program is compiled a second time when it gets its own results, which lie on the
    mesh, where fresh arrays were before. On several CPU devices the copies have arrived before the
    program starts, for the reason given in ``finished``.

    To lower it, shapes are enough (``jax.ShapeDtypeStruct``).

    Args:
      compiled: takes positional pytrees.
      layout: devices.
      axes: as for ``spread``. Clients that the devices do not divide are not divided here.
    """

    def where(number: int, values: PyTree) -> PyTree:
        def one(leaf: jax.Array) -> NamedSharding:
            whole = number < 2 or leaf.shape[1] % layout.client_devices == 0
            return NamedSharding(layout.mesh, spec(number if whole else 1))

        return jax.tree.map(one, values)

    def put_all(args: tuple[Any, ...]) -> tuple[Any, ...]:
        there = put(args, jax.tree.map(where, axes, args))
        return jax.block_until_ready(there) if _shares_threads(layout) else there

    def shapes(args: tuple[Any, ...]) -> tuple[Any, ...]:
        one = lambda leaf, there: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there)
        return jax.tree.map(one, args, jax.tree.map(where, axes, args))

    return Compiled(
        lambda *args: compiled(*put_all(args)), lambda *args: compiled.lower(*shapes(args))
    )


def put(values: PyTree, where: PyTree) -> PyTree:
    """``jax.device_put``, also onto devices of several processes, which all have equal values."""
    if processes.count() == 1:
        return jax.device_put(values, where)

    def one(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            same = leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
            return leaf if same else jax.jit(_unchanged, out_shardings=sharding)(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = one(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        here = np.asarray(leaf)
        return jax.make_array_from_callback(here.shape, sharding, lambda part: here[part])

    if not isinstance(where, NamedSharding):
        return jax.tree.map(one, values, where)
    return jax.tree.map(lambda leaf: one(leaf, where), values)


def _unchanged(value: jax.Array) -> jax.Array:
    return value


def to_host(values: PyTree) -> PyTree:
    """NumPy arrays on every process, gathered one by one where the devices share them out."""

    def one(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(one, values)


class Compiled:
    """A compiled function with more around it: what is called, and how it is lowered."""

    def __init__(self, call: Callable, lower: Callable) -> None:
        self._call = call
        self.lower = lower

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


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
    store = jax.tree.map(_whole, store)
    lanes = layout.local_lanes * layout.client_devices
    stride = lanes * layout.chunk
    steps = math.ceil(size / stride)
    row = jax.tree.map(lambda block: jax.ShapeDtypeStruct(block.shape[1:], block.dtype), given)
    at = jax.ShapeDtypeStruct((), jnp.int32)
    one, _, finding = jax.eval_shape(contribution, shared, at, row)
    zero = identity(one)
    empty = jax.tree.map(lambda r: jnp.zeros((layout.chunk, *r.shape), r.dtype), finding)
    device = lax.axis_index(CLIENTS)

    def typed(rows: PyTree) -> PyTree:
        return jax.tree.map(lambda bits, v: _of_bits(bits, v.dtype), rows, given)

    def positions_of(lane: jax.Array, step: jax.Array) -> jax.Array:
        return lane + lanes * (step * layout.chunk + jnp.arange(layout.chunk))

    def wanted(lane: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Whose rows all devices need in a step, [devices, chunk], and which of them exist."""
        assert ids is not None
        local = lane - device * layout.local_lanes
        every = jnp.arange(layout.client_devices) * layout.local_lanes + local
        positions = jax.vmap(positions_of, (0, None))(every, step)
        return ids[jnp.minimum(positions, size - 1)], positions < size

    def one_lane(store: PyTree, lane: jax.Array) -> tuple[PyTree, tuple[Total, PyTree]]:
        def several(total: Total, rows: PyTree, step: jax.Array):
            positions = positions_of(lane, step)
            rows = typed(rows)
            if layout.chunk == 1:
                first = jax.tree.map(lambda r: r[0], rows)
                part, *more = contribution(shared, positions[0], first)
                new, found = jax.tree.map(lambda r: r[None], more)
                return alike(merge(total, part), new, found)
            parts, new, found = jax.vmap(contribution, (None, 0, 0))(shared, positions, rows)
            return alike(merge(total, reduce(parts, positions < size)), new, found)

        def alike(total: Total, rows: PyTree, found: PyTree):
            rows = jax.tree.map(_whole, rows)
            return total, *tree.match(((rows, found), total, shared, lane))[0]

        def body(carry: tuple[Total, PyTree], step: jax.Array):
            total, store = carry
            rows = store
            if jax.tree.leaves(store):
                needed = wanted(lane, step)
                rows = _fetch(store, *needed)
            if size % stride == 0:
                total, rows, found = several(total, rows, step)
            else:
                idle = lambda total, rows, _: alike(total, rows, empty)
                busy = positions_of(lane, step)[0] < size
                total, rows, found = lax.cond(busy, several, idle, total, rows, step)
            if jax.tree.leaves(store):
                store = _give_back(store, *needed, rows)
            return (total, store), found

        start = tree.match((zero, shared, lane, store))[0]
        (total, store), found = lax.scan(body, (start, store), jnp.arange(steps))
        return store, (total, found)

    def in_order(findings: PyTree) -> PyTree:
        """From this device's [local lanes, steps, chunk, ...] to all positions' [size, ...]."""

        def one(leaf: jax.Array) -> jax.Array:
            leaf = jnp.moveaxis(_gathered(leaf), 0, 2)
            return leaf.reshape(-1, *leaf.shape[3:])[:size]

        return jax.tree.map(one, findings)

    if layout.reduction == "fast":
        store, (total, found) = one_lane(store, device)
        summed = lax.psum(total.sum, CLIENTS)
        largest = jax.tree.map(lambda a: lax.pmax(a, CLIENTS), total.max)
        found = in_order(jax.tree.map(lambda r: r[None], found))
        return Total(summed, largest), typed(store), found

    own = device * layout.local_lanes + jnp.arange(layout.local_lanes)
    store, (total, found) = lax.optimization_barrier(lax.scan(one_lane, store, own))
    gathered = jax.tree.map(_gathered, total.sum)
    summed = lax.optimization_barrier(jax.tree.map(_pairwise_sum, gathered))
    largest = jax.tree.map(lambda a: lax.pmax(a.max(0), CLIENTS), total.max)
    return Total(summed, largest), typed(store), in_order(found)


# What every client has, in blocks of clients on the devices -----


def _fetch(blocks: PyTree, ids: jax.Array, exist: jax.Array) -> PyTree:
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
        return _of_bits(lax.psum_scatter(sent, CLIENTS), block.dtype)

    return jax.tree.map(one, blocks)


def _give_back(blocks: PyTree, ids: jax.Array, exist: jax.Array, rows: PyTree) -> PyTree:
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


def _whole(values: jax.Array) -> jax.Array:
    """Floats as the integers of their bits, which no copy changes. XLA copies small floats on CPU
    through larger ones, and a NaN may come out as another NaN."""
    return _bits(values) if jnp.issubdtype(values.dtype, jnp.floating) else values


def _of_bits(bits: jax.Array, dtype: Any) -> jax.Array:
    if jnp.issubdtype(dtype, jnp.bool_):
        return bits.astype(bool)
    return lax.bitcast_convert_type(bits, dtype)


def _local(block: jax.Array, ids: jax.Array, exist: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where clients stand in this device's block, and whether they do."""
    row = ids - lax.axis_index(CLIENTS) * block.shape[0]
    mine = (row >= 0) & (row < block.shape[0]) & exist
    return jnp.clip(row, 0, block.shape[0] - 1), mine


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


def _pairwise_sum(values: jax.Array) -> jax.Array:
    """Sum over the leading axis as a balanced tree, in an order fixed by its length alone."""
    while values.shape[0] > 1:
        if values.shape[0] % 2:
            values = jnp.concatenate([values, jnp.zeros_like(values[:1])])
        values = values[0::2] + values[1::2]
    return values[0]
