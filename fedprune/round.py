"""One federated round as one pure function, built from its stages.

    global params ─ mask ─ broadcast ─► cohort of S clients
      ► local training     one client after another, or vmapped in chunks
      ► uplink.encode      accumulated over clients and devices
      ► uplink.finish      receiver noise, once; estimate of the mean update
      ► server.update      and the mask again where it is the server's

Device-agnostic: everything about devices is in ``mesh``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedprune import mesh, rng, tree
from fedprune.types import (
    Air,
    Clients,
    Cost,
    Downlink,
    Key,
    LocalUpdate,
    Mask,
    Params,
    Participation,
    Personal,
    Pruner,
    PyTree,
    Server,
    Total,
    Uplink,
)

WEIGHTINGS = ("examples", "plain")
"""How clients count in means: by their number of examples D_k, or all the same."""


class State(NamedTuple):
    """Everything that one round hands to the next."""

    round: jax.Array
    """[] int32, the number of rounds done"""
    params: Params
    """the global model; where clients have personal parts, its global part"""
    mask: Mask
    """the mask of the last round, or None"""
    pruner: PyTree
    server: PyTree
    personal: PyTree = None
    """the clients' personal parts, leaves [K, ...]; in blocks of clients on the devices"""


class RoundInfo(NamedTuple):
    """What one round reports: scalars, and mappings from names to scalars."""

    train_loss: jax.Array
    """mean local loss over the clients that counted, weighted like updates; NaN if nobody did"""
    clients: jax.Array
    """int32, clients whose update counted"""
    excluded: jax.Array
    """int32, clients left out because their update or loss was NaN or infinite"""
    kept: jax.Array
    """int32, weights that the mask keeps"""
    sent: jax.Array
    """weights of the updates that counted, added up over the clients; pruned ones do not count"""
    density: dict[str, jax.Array]
    """path -> share of its weights that the mean of these clients kept, for each kernel
    (``tree.is_kernel``); empty where nothing is pruned, NaN if no client counted"""
    ratio: jax.Array
    """mean of the pruning ratios that were allocated to the clients; 0 if there is no allocation"""
    allocation: dict[str, jax.Array]
    """smallest and largest of what was allocated: ``ratio_low``, ``ratio_high`` and, of the band,
    ``share_low``, ``share_high``; empty if there is no allocation"""
    cost: Cost


class Round(NamedTuple):
    """A federated algorithm."""

    init: Callable[[Params], State]
    """params -> state"""
    step: Callable[[Key, State, Clients], tuple[State, RoundInfo]]
    """(root key of the run, state, clients) -> (state, info); runs inside ``mesh.spread``"""
    layout: mesh.Layout
    personal: Personal | None = None
    """what clients keep to themselves"""


class Tally(NamedTuple):
    """What a round itself counts beside the uplink; all [], float32."""

    weight: jax.Array
    loss: jax.Array
    """weighted sum"""
    clients: jax.Array
    excluded: jax.Array
    held: PyTree
    """weights that clients keep of each array, where they decide that themselves; else None"""


class Edges(NamedTuple):
    """Which of G models each client receives and updates: its edge server's."""

    of: jax.Array
    """[K] int32 in 0..servers-1"""
    servers: int
    """G"""


def build(
    *,
    local: LocalUpdate,
    uplink: Uplink,
    server: Server,
    participation: Participation,
    layout: mesh.Layout,
    pruner: Pruner | None = None,
    weighting: str = "examples",
    downlink: Downlink | None = None,
    personal: Personal | None = None,
) -> Round:
    """Composes the stages into a round.

    A client whose update or loss is not finite, who has no examples, or whose channel is too weak
    to send, contributes nothing; if nobody contributes the model stays.

    Args:
      local: trains one client.
      uplink: carries the updates.
      server: applies the mean update.
      participation: picks the cohort.
      layout: devices, from ``mesh.make``.
      pruner: decides the masks; None trains the dense model.
      weighting: one of ``WEIGHTINGS``.
      downlink: what clients receive of the broadcast; None: the model itself, for nothing. A
        client's update is the change from what it received, and its cost is added to the uplink's.
      personal: what clients keep to themselves; all other stages then see the global part only,
        and ``local`` finds the rest in ``Client.personal``. A client keeps what it had if its
        update, loss or new personal part is not finite, and what is new if its update is lost.

    Raises:
      ValueError: an unknown weighting.
    """
    cohort = trainer(local, uplink, layout, weighting, downlink=downlink)

    def init(params: Params) -> State:
        if personal is None:
            return initial(params, pruner, server)
        shared, own = personal.split(params)
        own = jax.tree.map(lambda v: jnp.broadcast_to(v, (personal.clients, *v.shape)), own)
        return initial(shared, pruner, server)._replace(personal=own)

    def step(key: Key, state: State, clients: Clients) -> tuple[State, RoundInfo]:
        t = state.round
        mask, shared_mask, pruner_state = masks(pruner, state)
        broadcast = tree.apply_mask(shared_mask, state.params)
        ids = participation.select(rng.stream(key, "cohort", t))
        air = uplink.prepare(key, t, ids)
        own = mesh.take_rows(state.personal, ids)
        total, own = cohort(key, t, t, broadcast, shared_mask, clients, ids, air, own)
        received, tally = total.sum
        update, cost = uplink.finish(
            rng.stream(key, "uplink", t), air, Total(received, total.max), shared_mask
        )
        if downlink is not None:
            cost = both(cost, downlink.bill(broadcast, shared_mask))
        params, server_state = server.update(state.server, state.params, update)
        params, server_state = tree.where(
            tally.clients > 0, (params, server_state), (state.params, state.server)
        )
        if pruner is not None and pruner.scope == "server":
            params = tree.apply_mask(mask, params)
        sent, density = kept_by_clients(shared_mask, tally, params)
        info = RoundInfo(
            train_loss=tally.loss / tally.weight,
            clients=tally.clients.astype(jnp.int32),
            excluded=tally.excluded.astype(jnp.int32),
            kept=tree.count(mask, params),
            sent=sent,
            density=density,
            ratio=mean_ratio(air.ratio),
            allocation=extremes(air.ratio, air.share),
            cost=cost,
        )
        own = mesh.put_rows(state.personal, ids, own)
        return State(t + 1, params, mask, pruner_state, server_state, own), info

    return Round(init, step, layout, personal)


# What flat and hierarchical rounds share -----

Cohort = Callable[..., tuple[Total, PyTree]]
"""(key, t, u, models, mask, clients, ids [S], air, personal [S, ...]) -> (total over the cohort,
whose sum is (what the uplink adds up, Tally); new personal parts). t is the round that local
training is told, u the number in the addresses of its random numbers: the same, except with edge
rounds."""


def initial(params: Params, pruner: Pruner | None, server: Server) -> State:
    """The state before the first round."""
    if pruner is None:
        return State(jnp.int32(0), params, None, None, server.init(params))
    mask = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    return State(jnp.int32(0), params, mask, pruner.init(params), server.init(params))


def mean_ratio(ratio: jax.Array | None) -> jax.Array:
    """Mean of the allocated pruning ratios, [] float32."""
    return jnp.float32(0.0) if ratio is None else jnp.mean(ratio)


def extremes(ratio: jax.Array | None, share: jax.Array | None) -> dict[str, jax.Array]:
    """``RoundInfo.allocation`` of allocated ratios and shares of any shape."""
    given = {name: v for name, v in (("ratio", ratio), ("share", share)) if v is not None}
    ends = {"low": jnp.min, "high": jnp.max}
    return {f"{name}_{end}": of(v) for name, v in given.items() for end, of in ends.items()}


def kept_by_clients(
    mask: Mask, tally: Tally, params: Params
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """``RoundInfo.sent`` and ``RoundInfo.density``.

    Args:
      mask: that all clients share; None: they have the whole model, or masks of their own.
      tally: of the round.
      params: the global model.
    """
    pruned = mask is not None or tally.held is not None
    held = tally.held
    if held is None:
        everything = jax.tree.map(lambda p: jnp.float32(p.size), params)
        each = everything if mask is None else _counts(mask)
        held = tree.scale(tally.clients, each)
    found = jax.tree_util.tree_leaves_with_path(held)
    density = {
        tree.path_name(path): count / (tally.clients * p.size)
        for (path, count), p in zip(found, jax.tree.leaves(params), strict=True)
        if pruned and tree.is_kernel(tree.path_name(path), p)
    }
    return tree.total(held), density


def _counts(mask: Mask) -> PyTree:
    """How many weights a mask keeps of each array, float32; None of None."""
    return jax.tree.map(lambda m: jnp.sum(m, dtype=jnp.int32).astype(jnp.float32), mask)


def both(up: Cost, down: Cost) -> Cost:
    """The cost of two directions. The noise variance is the uplink's, that of the mean update."""
    return jax.tree.map(jnp.add, up, down)._replace(noise_variance=up.noise_variance)


def masks(pruner: Pruner | None, state: State) -> tuple[Mask, Mask, PyTree]:
    """The round's mask, the part of it that clients share, and the pruner's new state."""
    if pruner is None:
        return None, None, None
    mask, after = pruner.update(state.pruner, state.params, state.round)
    return mask, None if pruner.scope == "own" else mask, after


def trainer(
    local: LocalUpdate,
    uplink: Uplink,
    layout: mesh.Layout,
    weighting: str,
    edges: Edges | None = None,
    downlink: Downlink | None = None,
) -> Cohort:
    """Trains a cohort and adds up what its clients send.

    With ``edges``, the models received have a leading axis [G], and so have all leaves of the
    total: every client trains its edge server's model and adds to that server's total.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting={weighting!r} is not one of {WEIGHTINGS}")

    def contribution(shared, position: jax.Array) -> tuple[Total, PyTree]:
        models, mask, clients, edge_of, ids, air, personal, key, t, u = shared
        k = ids[position]
        here: Air
        here, own = jax.tree.map(lambda leaf: leaf[position], (air, personal))
        client = clients.client(k)._replace(ratio=here.ratio, personal=own)
        received = models if edges is None else jax.tree.map(lambda m: m[edge_of[k]], models)
        if downlink is not None:
            received = downlink.send(rng.stream(key, "downlink", u, k), received, mask)
        trained = local(rng.stream(key, "local", u, k), t, received, mask, client)
        size = client.size.astype(jnp.float32)
        one, none = jnp.ones_like(size), jnp.zeros_like(size)
        weight = size if weighting == "examples" else one
        new, trained = trained.personal, trained._replace(personal=None)  # nothing of it is sent
        sent = uplink.encode(here.state, trained, mask, weight)
        finite = tree.all_finite((trained.delta, sent, trained.loss, new))
        mine = Tally(weight, weight * trained.loss, one, none, _counts(trained.held))
        part = Total((sent.sum, mine), sent.max)
        takes_part = here.active & (client.size > 0)
        part = tree.where(takes_part & finite, part, mesh.identity(part))
        signal, tally = part.sum
        excluded = jnp.where(takes_part & ~finite, one, none)
        part = Total((signal, tally._replace(excluded=excluded)), part.max)
        new = tree.where(finite & (client.size > 0), new, own)
        return (part if edges is None else _placed(part, edge_of[k], edges.servers)), new

    def cohort(
        key: Key,
        t,
        u,
        models: Params,
        mask: Mask,
        clients: Clients,
        ids,
        air: Air,
        personal: PyTree = None,
    ) -> tuple[Total, PyTree]:
        edge_of = None if edges is None else edges.of
        shared = (models, mask, clients, edge_of, ids, air, personal, key, t, u)
        return mesh.collect(contribution, shared, ids.shape[0], layout)

    return cohort


def _placed(part: Total, edge: jax.Array, count: int) -> Total:
    """A contribution in its edge server's row of totals [G, ...], the identity in the others."""

    def rows(mine: jax.Array, other: jax.Array) -> jax.Array:
        here = (jnp.arange(count) == edge).reshape((count,) + (1,) * mine.ndim)
        return jnp.where(here, mine[None], other[None])

    return jax.tree.map(rows, part, mesh.identity(part))
