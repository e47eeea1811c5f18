"""Models after a round: on the pooled test set, on the clients' own, and over a noisy channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import mesh, rng, rounds, tree
from fedprune.local import cross_entropy
from fedprune.rounds import State
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
