"""Rounds by ``scan`` and arms by ``vmap``, all inside one ``shard_map``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import mesh, rng
from fedprune.rounds import STORED, Round, State
from fedprune.run.evaluate import Evaluate
from fedprune.types import Clients, Key, Params, PyTree


class Arms(NamedTuple):
    """The arms of a program; every leaf has a leading axis [A]."""

    hyper: PyTree
    """what the builder of the round takes"""
    key: Key
    """root key: one per seed, so that arms of equal seed are paired"""
    state: State
    rows: jax.Array
    """[A, K, n_max] index tables, see ``Clients.rows``"""
    size: jax.Array
    """[A, K]"""
    test: tuple[jax.Array, jax.Array] | None = None
    """the same two of the clients' own test examples, where they are evaluated on these"""


def pad(arms: Arms, count: int) -> Arms:
    """``count`` arms: the given ones, then copies of the first that keep idle devices busy."""
    extra = count - arms.key.shape[0]
    if extra == 0:
        return arms
    return jax.tree.map(lambda v: jnp.concatenate([v, *[v[:1]] * extra]), arms)


def head(arms: PyTree, count: int) -> PyTree:
    """The first ``count`` arms."""
    return jax.tree.map(lambda v: v[:count], arms)


def program(
    build: Callable[[PyTree], Round],
    layout: mesh.Layout,
    rounds: int,
    evaluate: Evaluate | None = None,
    arms_per_chunk: int | None = None,
    donate: bool = False,
) -> mesh.Compiled:
    """Compiles ``rounds`` rounds of all arms, and one evaluation at their end, into one program.

    Args:
      build: hyper -> round; numeric hyperparameters arrive as tracers.
      layout: the devices; the number of arms must be a multiple of ``layout.arm_devices``.
      rounds: rounds a call.
      evaluate: (state, test) -> metrics after the last round; None: nothing.
      arms_per_chunk: arms vmapped together on a device, the rest one chunk after another. None: one
        on CPU, where an arm's weights should stay in cache; all elsewhere.
      donate: the program may overwrite the state that it is given, which then cannot be used again:
        for models so large that there is no room for the old state beside the new one.

    Returns:
      (arms, train, test) -> (states [A], infos [A, rounds], metrics [A]). ``train`` and ``test``
      are shared by all arms, except that ``arms`` brings its own index tables (for ``test`` where
      it has them).
    """
    if arms_per_chunk is None and layout.platform == "cpu":
        arms_per_chunk = 1

    def one(arm: Arms, train: Clients, test: Clients):
        clients = train._replace(rows=arm.rows, size=arm.size)
        if arm.test is not None:
            test = test._replace(rows=arm.test[0], size=arm.test[1])
        algorithm = build(arm.hyper)
        state, infos = lax.scan(
            lambda state, _: algorithm.step(arm.key, state, clients), arm.state, length=rounds
        )
        if evaluate is None:
            return state, infos, ()
        shown = state
        if algorithm.model is not None:
            shown = state._replace(params=algorithm.model(state), mask=None)
        return state, infos, evaluate(shown, test)

    def on_device(state: State, rest: Arms, train: Clients, test: Clients):
        arms = rest._replace(state=state)
        here = partial(one, train=train, test=test)
        count = arms.key.shape[0]
        if arms_per_chunk is None or arms_per_chunk >= count > 1:
            return jax.vmap(here)(arms)
        if arms_per_chunk == 1 or count == 1:
            return lax.map(here, arms)
        return lax.map(here, arms, batch_size=arms_per_chunk)

    leading: Any = dict.fromkeys(State._fields, 1) | dict.fromkeys(STORED, 2)
    divided = State(**leading)
    axes = (divided, 1, 0, 0)
    spread = mesh.spread(on_device, layout, axes, (divided, 1, 1))

    def whole(state: State, *rest: Any) -> tuple[State, Any, Any]:
        """Clients filled up to a multiple of the devices while they are spread over them."""
        store = {name: getattr(state, name) for name in STORED}
        count = {leaf.shape[1] for leaf in jax.tree.leaves(store)}
        clients = rest[0].rows.shape[1]
        if other := count - {clients}:
            raise ValueError(
                f"personal: a state of {max(other)} clients, but the data has {clients}"
            )
        missing = -max(count, default=0) % layout.client_devices
        if not missing:
            return spread(state, *rest)
        fill = lambda v: jnp.pad(v, [(0, missing if axis == 1 else 0) for axis in range(v.ndim)])
        state, infos, metrics = spread(state._replace(**jax.tree.map(fill, store)), *rest)
        cut = {
            name: jax.tree.map(lambda v: v[:, :-missing], getattr(state, name)) for name in STORED
        }
        return state._replace(**cut), infos, metrics

    compiled = jax.jit(whole, donate_argnums=(0,) if donate else ())
    placed = mesh.placed(mesh.finished(compiled, layout), layout, axes)

    def apart(arms: Arms, train: Clients, test: Clients) -> tuple[Any, ...]:
        nothing: Any = ()
        return arms.state, arms._replace(state=nothing), train, test

    return mesh.Compiled(
        lambda *args: placed(*apart(*args)), lambda *args: placed.lower(*apart(*args))
    )


def start(
    build: Callable[[PyTree], Round],
    init: Callable[[Key], Params],
    hyper: PyTree,
    key: Key,
) -> State:
    """Initial states [A] of arms with hyperparameters ``hyper`` [A] and root keys ``key`` [A].

    Equal keys give equal initial weights.
    """

    def one(hyper: PyTree, key: Key) -> State:
        return build(hyper).init(init(rng.stream(key, "init")))

    return jax.jit(jax.vmap(one))(hyper, key)


class Footprint(NamedTuple):
    """Bytes that the arms of a program hold between rounds; training takes some times as much."""

    store: int
    """what is kept of every client (``rounds.STORED``), of all arms"""
    device: int
    """all of it, on each device"""
    checkpoint: int
    """all of it, once"""


def footprint(algorithm: Round, init: Callable[[Key], Params], arms: int) -> Footprint:
    """What the states of so many arms take, from shapes alone.

    Args:
      algorithm: from ``rounds.build``; its layout says how many devices share the arms, and the
        clients of an arm.
      init: gives the initial weights.
      arms: how many, those that pad the devices included.
    """
    state = jax.eval_shape(lambda: algorithm.init(init(jax.random.key(0))))
    layout = algorithm.layout

    def size(values: PyTree, clients: int = 1) -> int:
        """Bytes on each of so many devices that share the leading axis of all arrays."""

        def elements(v: jax.ShapeDtypeStruct) -> int:
            return v.size if clients == 1 else v.size // v.shape[0] * -(-v.shape[0] // clients)

        return sum(elements(v) * v.dtype.itemsize for v in jax.tree.leaves(values))

    kept = {name: getattr(state, name) for name in STORED}
    store, others = size(kept), size(state._replace(**dict.fromkeys(STORED)))
    here = size(kept, layout.client_devices) + others
    return Footprint(arms * store, -(-arms // layout.arm_devices) * here, arms * (store + others))
