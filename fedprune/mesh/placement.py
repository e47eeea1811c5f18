"""Programs and arrays on the mesh: the only ``shard_map`` of the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from fedprune import processes
from fedprune.mesh.layout import Layout, spec
from fedprune.types import PyTree


class Compiled:
    """A compiled function with more around it: what is called, and how it is lowered."""

    def __init__(self, call: Callable, lower: Callable) -> None:
        self._call = call
        self.lower = lower

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


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
