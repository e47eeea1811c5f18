"""One federated round as one pure function, built from its stages.

    global params ─ mask ─ broadcast ─► cohort of S clients
      ► local training     one client after another, or vmapped in chunks
      ► uplink.encode      accumulated over clients and devices
      ► uplink.finish      receiver noise, once; estimate of the mean update
      ► server.update      and the mask again where it is the server's

Device-agnostic: everything about devices is in ``mesh.accumulate``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedprune import mesh, rng, tree
from fedprune.types import (
    Clients,
    Cost,
    Key,
    LocalUpdate,
    Mask,
    Params,
    Participation,
    Pruner,
    PyTree,
    Server,
    Total,
    Uplink,
)


class State(NamedTuple):
    """Everything that one round hands to the next."""

    round: jax.Array
    """[] int32, the number of rounds done"""
    params: Params
    """the global model"""
    mask: Mask
    """the mask of the last round, or None"""
    pruner: PyTree
    server: PyTree


class RoundInfo(NamedTuple):
    """What one round reports; every field is a scalar."""

    train_loss: jax.Array
    """mean local loss over the clients that counted, weighted by D_k; NaN if nobody did"""
    clients: jax.Array
    """int32, clients whose update counted"""
    excluded: jax.Array
    """int32, clients left out because their update or loss was NaN or infinite"""
    kept: jax.Array
    """int32, weights that the mask keeps"""
    cost: Cost


class Round(NamedTuple):
    """A federated algorithm."""

    init: Callable[[Params], State]
    """params -> state"""
    step: Callable[[Key, State, Clients], tuple[State, RoundInfo]]
    """(root key of the run, state, clients) -> (state, info); runs inside ``mesh.spread``"""
    layout: mesh.Layout


class _Tally(NamedTuple):
    """What the round itself counts beside the uplink."""

    weight: jax.Array
    loss: jax.Array
    clients: jax.Array
    excluded: jax.Array


def build(
    *,
    local: LocalUpdate,
    uplink: Uplink,
    server: Server,
    participation: Participation,
    layout: mesh.Layout,
    pruner: Pruner | None = None,
) -> Round:
    """Composes the stages into a round.

    Clients are weighted by their number of examples D_k. A client whose update or loss is not
    finite, who has no examples, or whose channel is too weak to send, contributes nothing; if
    nobody contributes the model stays.

    Args:
      local: trains one client.
      uplink: carries the updates.
      server: applies the mean update.
      participation: picks the cohort.
      layout: devices, from ``mesh.make``.
      pruner: decides the masks; None trains the dense model.
    """

    def init(params: Params) -> State:
        if pruner is None:
            return State(jnp.int32(0), params, None, None, server.init(params))
        state = pruner.init(params)
        mask = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
        return State(jnp.int32(0), params, mask, state, server.init(params))

    def step(key: Key, state: State, clients: Clients) -> tuple[State, RoundInfo]:
        t = state.round
        mask, pruner_state = None, None
        if pruner is not None:
            mask, pruner_state = pruner.update(state.pruner, state.params, t)
        shared_mask = None if pruner is not None and pruner.scope == "own" else mask
        broadcast = tree.apply_mask(shared_mask, state.params)
        ids = participation.select(rng.stream(key, "cohort", t))
        air = uplink.prepare(key, t, ids)

        def contribution(shared, position: jax.Array) -> Total:
            broadcast, mask, clients, ids, air, key, t = shared
            k = ids[position]
            heard, channel = jax.tree.map(lambda leaf: leaf[position], air)
            client = clients.client(k)
            trained = local(rng.stream(key, "local", t, k), t, broadcast, mask, client)
            weight = client.size.astype(jnp.float32)
            sent = uplink.encode(channel, trained, mask, weight)
            finite = tree.all_finite((trained.delta, sent, trained.loss))
            one, none = jnp.ones_like(weight), jnp.zeros_like(weight)
            part = Total((sent.sum, _Tally(weight, weight * trained.loss, one, none)), sent.max)
            counts = finite & (client.size > 0) & heard
            part = tree.where(counts, part, mesh.identity(part))
            signal, tally = part.sum
            excluded = jnp.where(heard & (client.size > 0) & ~finite, one, none)
            return Total((signal, tally._replace(excluded=excluded)), part.max)

        shared = (broadcast, shared_mask, clients, ids, air, key, t)
        total = mesh.accumulate(contribution, shared, participation.size, layout)
        received, tally = total.sum
        update, cost = uplink.finish(
            rng.stream(key, "uplink", t), air, Total(received, total.max), shared_mask
        )
        params, server_state = server.update(state.server, state.params, update)
        params, server_state = tree.where(
            tally.clients > 0, (params, server_state), (state.params, state.server)
        )
        if pruner is not None and pruner.scope == "server":
            params = tree.apply_mask(mask, params)
        info = RoundInfo(
            train_loss=tally.loss / tally.weight,
            clients=tally.clients.astype(jnp.int32),
            excluded=tally.excluded.astype(jnp.int32),
            kept=tree.count(mask, params),
            cost=cost,
        )
        return State(t + 1, params, mask, pruner_state, server_state), info

    return Round(init, step, layout)
