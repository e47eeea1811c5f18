"""On the device: rounds by ``scan``, arms by ``vmap``, all inside one ``shard_map``.

An *arm* is one run of one algorithm: a seed and a set of numeric hyperparameters. Arms whose shapes
agree form one program, whatever else differs between them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import bill, mesh, rng, tree
from fedprune import round as rounds
from fedprune.local import cross_entropy
from fedprune.round import STORED, Round, RoundInfo, State
from fedprune.types import Client, Clients, Key, Mask, Model, Params, Personal, PyTree, Total

Evaluate = Callable[[State, Clients], Any]


class Metrics(NamedTuple):
    """What the pooled test set says of the global model."""

    accuracy: jax.Array
    """share of right answers, in [0, 1]"""
    loss: jax.Array
    """mean cross-entropy in nats"""


class ClientMetrics(NamedTuple):
    """What the clients' own test sets say of their own models."""

    accuracy: jax.Array
    """pooled: share of right answers among all test examples, each given by its owner's model"""
    loss: jax.Array
    """pooled mean cross-entropy in nats"""
    mean: jax.Array
    """mean over clients of their accuracies"""
    worst: jax.Array
    """mean accuracy of the worst tenth of the clients (rounded up)"""
    histogram: jax.Array
    """[BINS] int32, clients by accuracy; the last bin holds 1 too"""


BINS = 20
"""Bins of equal width of ``ClientMetrics.histogram``."""


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


def evaluation(
    model: Model, layout: mesh.Layout, batch: int | None = None, pruned: bool = True
) -> Evaluate:
    """Accuracy and loss on all test examples, spread over the devices of the clients axis.

    Args:
      model: the network.
      layout: devices.
      batch: examples at a time; None: what is fast on this backend.
      pruned: whether the global model is evaluated with the last round's mask.
    """

    measure = _measuring(model, layout, batch)

    def evaluate(state: State, test: Clients) -> Metrics:
        return measure(tree.apply_mask(state.mask, state.params) if pruned else state.params, test)

    return evaluate


def delivery(
    model: Model,
    layout: mesh.Layout,
    receive: Callable[[PyTree], Callable[[Key, Params, Mask], Params]],
    draws: int,
    batch: int | None = None,
) -> mesh.Compiled:
    """Accuracy of models as receivers have them, over many draws of the channel.

    Args:
      model: the network.
      layout: devices; the cases are spread over those of the arms axis, any number of them.
      receive: hyper -> (key, params, mask) -> the network's params at the receiver, such as
        ``Downlink.send`` of ``link.analog``.
      draws: of the channel, one after another.
      batch: test examples at a time; None: what is fast on this backend.

    Returns:
      (hyper [A], key [A], params [A], masks [A], test) -> accuracies [A, draws] of A cases. Draw i
      of a case has the key of the address ("delivery", i). P3's measure is their mean.
    """
    measure = _measuring(model, layout, batch)

    def of_case(case: tuple[PyTree, Key, Params, Mask], test: Clients) -> jax.Array:
        hyper, key, params, mask = case
        at_receiver = receive(hyper)

        def draw(i: jax.Array) -> jax.Array:
            received = at_receiver(rng.stream(key, "delivery", i), params, mask)
            return measure(received, test).accuracy

        return lax.map(draw, jnp.arange(draws))

    def on_device(cases: PyTree, test: Clients) -> jax.Array:
        return lax.map(lambda case: of_case(case, test), cases)

    per_arm = (True, False)
    compiled = jax.jit(mesh.spread(on_device, layout, per_arm))
    placed = mesh.placed(mesh.finished(compiled, layout), layout, per_arm)

    def run(hyper: PyTree, key: Key, params: Params, mask: Mask, test: Clients) -> jax.Array:
        count = key.shape[0]
        idle = -count % layout.arm_devices
        fill = lambda v: jnp.concatenate([v, *[v[:1]] * idle]) if idle else v
        return placed(jax.tree.map(fill, (hyper, key, params, mask)), test)[:count]

    return mesh.Compiled(run, lambda *args: placed.lower(args[:-1], args[-1]))


def _measuring(
    model: Model, layout: mesh.Layout, batch: int | None
) -> Callable[[Params, Clients], Metrics]:
    """(params, test) -> accuracy and loss, inside ``mesh.spread``."""
    if batch is None:  # on CPU so few that a CNN's activations stay in cache
        batch = 100 if layout.platform == "cpu" else 500

    def measure(params: Params, test: Clients) -> Metrics:
        n = test.labels.shape[0]
        if n == 0:
            raise ValueError("evaluation: there are no test examples")
        pool = Client(*test._replace(rows=jnp.arange(n, dtype=jnp.int32), size=jnp.int32(n)))

        def some(shared, position: jax.Array) -> Total:
            params, pool = shared
            index = position * batch + jnp.arange(batch)
            counts = index < n
            x, y = pool.take(jnp.where(counts, index, 0))
            logits = pool.answers(model.apply(params, x))
            right = jnp.argmax(logits, -1) == y
            loss = cross_entropy(logits, y)
            return Total((jnp.sum(right & counts), jnp.sum(jnp.where(counts, loss, 0.0))), ())

        total = mesh.accumulate(some, (params, pool), -(-n // batch), layout)
        right, loss = total.sum
        return Metrics(right.astype(jnp.float32) / n, loss / n)

    return measure


def client_evaluation(
    model: Model,
    layout: mesh.Layout,
    clients: int,
    personal: Personal | None = None,
    batch: int = 100,
    pruned: bool = True,
) -> Evaluate:
    """Accuracy of every client's model on its own test examples, each on the device that has it.

    Clients without test examples count in no mean; if all are, means are NaN.

    Args:
      model: the network.
      layout: devices.
      clients: K.
      personal: how a client's model is joined; None: all have the global one.
      batch: examples at a time.
      pruned: whether the global part is evaluated with the last round's mask.
    """

    def of_client(shared, own: PyTree, k: jax.Array):
        params, test = shared
        params = params if personal is None else personal.join(params, own)
        client: Client = test.client(k)

        def some(sums, first: jax.Array):
            index = first + jnp.arange(batch)
            counts = index < client.size
            x, y = client.take(jnp.where(counts, index, 0))
            logits = client.answers(model.apply(params, x))
            right = jnp.sum((jnp.argmax(logits, -1) == y) & counts)
            loss = jnp.sum(jnp.where(counts, cross_entropy(logits, y), 0.0))
            return sums[0] + right, sums[1] + loss

        def step(sums, first: jax.Array):
            return lax.cond(first < client.size, some, lambda sums, _: sums, sums, first), None

        nothing = (jnp.int32(0), jnp.float32(0.0))
        start = tree.match((nothing, params, client))[0]
        firsts = jnp.arange(0, client.rows.shape[0], batch)
        return (*lax.scan(step, start, firsts)[0], client.size)

    def evaluate(state: State, test: Clients) -> ClientMetrics:
        params = tree.apply_mask(state.mask, state.params) if pruned else state.params
        rounds.population(test, evaluation=clients)
        shared = (params, test)
        right, loss, size = mesh.each(of_client, shared, state.personal, clients, layout)
        share = right.astype(jnp.float32) / jnp.maximum(size, 1).astype(jnp.float32)
        tested = jnp.sum(size > 0)
        tenth = jnp.arange(clients) < (tested + 9) // 10
        ordered = jnp.sort(jnp.where(size > 0, share, jnp.inf))
        slot = jnp.minimum(right * BINS // jnp.maximum(size, 1), BINS - 1)
        total = size.sum().astype(jnp.float32)
        return ClientMetrics(
            accuracy=right.sum().astype(jnp.float32) / total,
            loss=loss.sum() / total,
            mean=_mean(share, size > 0),
            worst=_mean(ordered, tenth),
            histogram=jnp.zeros(BINS, jnp.int32).at[slot].add((size > 0).astype(jnp.int32)),
        )

    return evaluate


def _mean(values: jax.Array, counts: jax.Array) -> jax.Array:
    total = jnp.sum(jnp.where(counts, values, 0.0))
    return total / jnp.sum(counts).astype(jnp.float32)


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
    """what is kept of every client (``round.STORED``), of all arms"""
    device: int
    """all of it, on each device"""
    checkpoint: int
    """all of it, once"""


def footprint(algorithm: Round, init: Callable[[Key], Params], arms: int) -> Footprint:
    """What the states of so many arms take, from shapes alone.

    Args:
      algorithm: from ``round.build``; its layout says how many devices share the arms, and the
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


def simulate(
    algorithm: Round,
    model: Model,
    train: Clients,
    test: Clients,
    rounds: int,
    seed: int = 0,
) -> tuple[State, RoundInfo, Any]:
    """Runs one arm: the whole experiment in one call.

    Args:
      algorithm: from ``round.build``.
      model: gives the initial weights and is evaluated at the end.
      train: the clients' examples.
      test: the test examples, pooled; those of the clients where they have personal parts.
      rounds: how many.
      seed: decides every random number.

    Returns:
      (final state, infos [rounds] with bills as NumPy integers, final ``Metrics``;
      ``ClientMetrics`` with personal parts).

    Raises:
      ValueError: a network of fewer outputs than the data have classes, or no test examples.
    """
    hyper, key = (), jax.random.key(seed)[None]
    layout = algorithm.layout
    state = start(lambda _: algorithm, model.init, hyper, key)
    arms = Arms(hyper, key, state, train.rows[None], train.size[None])
    own = algorithm.personal
    evaluate = evaluation(model, layout)
    if own is not None and own.own_model:
        evaluate = client_evaluation(model, layout, own.clients, own)
    run = program(lambda _: algorithm, layout, rounds, evaluate)
    state, infos, metrics = jax.tree.map(lambda leaf: leaf[0], run(arms, train, test))
    return state, bill.on_host(infos), metrics
