"""One round of hierarchical federated learning: devices, edge servers, cloud (P2 section III).

    global params ─► G edge servers, each with its own model
      for each of E edge rounds
        ► as in a flat round     every device trains its edge server's model
        ► uplink.finish          one estimate an edge server
        ► edge models            w_k <- w_k + mean update of its devices       P2 (12)
      ► cloud link             the edge servers' changes
      ► server.update          mean over edge servers                          P2 (13)

With one edge server, one edge round, an ideal cloud link and averaging this is the flat round.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import bill, check, mesh, rng, tree
from fedprune.rounds import row
from fedprune.rounds.agreement import agree, kinds
from fedprune.rounds.stages import Masks, decided, initial, served
from fedprune.rounds.state import Edges, Round, RoundInfo, State, Tally
from fedprune.rounds.training import Given, Store, Trainer, trainer
from fedprune.types import (
    Air,
    Arrival,
    Candidates,
    Clients,
    Cohort,
    Cost,
    Count,
    Key,
    LocalUpdate,
    Mask,
    Outcome,
    Params,
    Participation,
    Pruner,
    PyTree,
    Received,
    Sender,
    Server,
    Total,
    Trained,
    Uplink,
)


def build(
    *,
    local: LocalUpdate,
    uplink: Uplink,
    cloud: Uplink,
    server: Server,
    participation: Participation,
    edges: Edges,
    edge_rounds: int,
    layout: mesh.Layout,
    pruner: Pruner | None = None,
    weighting: str = "plain",
) -> Round:
    """Composes the stages into a cloud round of ``edge_rounds`` edge rounds.

    Edge servers may have any numbers of devices. One from whom nobody's update arrives keeps its
    model in that edge round, and counts in the cloud's mean if it heard anybody in any of them. So
    does one that receives an update that is not finite.
    Edge round e of cloud round t has the number t E + e in the addresses of its random numbers.
    Local training is told t, so schedules and decays count cloud rounds.

    Args:
      local: trains one device.
      uplink: device to edge server; every server has one of its own.
      cloud: edge server to cloud, once a cloud round; its clients are the G servers.
      server: applies the cloud's mean change to the global model.
      participation: picks the devices of each edge round, over all servers together.
      edges: who belongs to which edge server.
      edge_rounds: E, at least 1.
      layout: devices to compute on, from ``mesh.make``.
      pruner: decides the masks, once a cloud round; ``own`` scope leaves them to the devices.
      weighting: "plain" means over devices and over edge servers as in P2, or "examples": by D_k.

    Returns:
      A round whose info adds up channel uses, side information and energy; ``clients``,
      ``excluded`` and ``rejected`` count updates over all edge rounds, the last the cloud's too.
      ``seconds`` is the slowest edge server's sum over its edge rounds, plus the cloud link's.
      ``noise_variance`` is that of the global update: edge rounds and servers add up, and the mean
      over servers divides.

    Raises:
      ValueError: edge_rounds below 1, an unknown weighting, or a stage that needs what only a flat
        round carries: strata, memory of the uplink, messages of the server, a mask that is revised
        after the round, a selection that learns, probes, gives numbers or asks for channels; when
        the round is traced, training that reports or keeps personal parts.

    Source: P2 section III-B, Algorithm 1.
    """
    check.function("local", local)
    kinds(uplink, server, participation, pruner)
    check.kind("cloud", cloud, Uplink)
    check.kind("edges", edges, Edges)
    check.whole("edges.servers", edges.servers, 1)
    check.whole("edge_rounds", edge_rounds, 1)
    check.wholes("edges.of", edges.of, 0, edges.servers - 1)
    if cloud.clients not in (None, edges.servers):
        raise ValueError(f"cloud: for {cloud.clients} servers, but edges has {edges.servers}")
    _refuse_flat(local, uplink, cloud, server, participation, pruner)
    cohort = trainer(local, uplink, layout, weighting, edges)
    everyone = jnp.arange(edges.servers)
    stages = _Stages(
        uplink,
        cloud,
        server,
        participation,
        edges,
        edge_rounds,
        pruner,
        weighting,
        cohort,
        everyone,
    )
    return Round(
        lambda params: initial(params, pruner, server),
        lambda key, state, clients: _step(stages, key, state, clients),
        layout,
    )


class _Stages(NamedTuple):
    """The stages of a cloud round, which have been checked."""

    uplink: Uplink
    cloud: Uplink
    server: Server
    participation: Participation
    edges: Edges
    edge_rounds: int
    pruner: Pruner | None
    weighting: str
    cohort: Trainer
    everyone: jax.Array
    """[G] int32, the edge servers"""


class _EdgeRound(NamedTuple):
    """What an edge round has brought."""

    cost: Cost
    """of every edge server, [G]"""
    tally: Tally
    """likewise"""
    ratio: jax.Array | None
    """[S] what was allocated"""
    share: jax.Array | None
    heard: jax.Array
    """[G] bool, whose model has changed"""
    rejected: jax.Array
    numbers: dict[str, jax.Array]
    """[G]"""


def _edge_round(
    stages: _Stages, key: Key, t, u, models: Params, masks: Masks, clients: Clients
) -> tuple[Params, _EdgeRound]:
    """Edge models after edge round u of all, which is in cloud round t."""
    uplink, participation, edges = stages.uplink, stages.participation, stages.edges
    mask = masks.effective
    ids = participation.select(Candidates(rng.stream(key, "cohort", u), u, clients.size))
    air = uplink.prepare(Cohort(key, u, ids, mask, edges.of[ids], edges.servers))
    agree(clients, participation, uplink, ids, air, edges=edges.of.shape[0])
    given = Given(key, t, u, models, masks.shared, mask, clients, ids, air)
    total, _, _ = stages.cohort(given, Store())
    if total.sum[1].report is not None:
        raise ValueError("local: reports to the server, which edge servers do not carry")

    def finish(edge: tuple[jax.Array, Total]) -> tuple[Params, Cost, dict[str, jax.Array]]:
        g, total = edge
        mine = edges.of[ids] == g
        here = air._replace(sends=air.sends & mine, active=air.active & mine)
        received = Total(total.sum[0], total.max)
        found = uplink.finish(Arrival(rng.stream(key, "uplink", u, g), here, received, mask))
        return found.update, found.cost, found.numbers

    # Not vmap: XLA may divide by a vector of weights by multiplying with its reciprocals, which
    # it decides differently for other numbers of devices.
    update, cost, numbers = lax.map(finish, (stages.everyone, total))
    tally: Tally = total.sum[1]
    after = jax.tree.map(jnp.add, models, update)
    finite = jax.vmap(tree.all_finite)((update, after))
    heard = (tally.clients > 0) & finite
    rejected = jnp.sum((tally.clients > 0) & ~finite, dtype=jnp.int32)
    models = jax.vmap(tree.where)(heard, after, models)
    return models, _EdgeRound(cost, tally, air.ratio, air.share, heard, rejected, numbers)


def _to_cloud(
    stages: _Stages, key: Key, t, change: Params, mask: Mask, weight: jax.Array
) -> tuple[Received, jax.Array]:
    """The cloud's estimate of the mean change, from changes [G, ...] and weights [G]."""
    cloud = stages.cloud
    air: Air = cloud.prepare(Cohort(rng.stream(key, "cloud"), t, stages.everyone, mask))

    def encode(state: PyTree, change: Params, weight: jax.Array) -> Total:
        trained = Trained(change, jnp.float32(0.0))
        return cloud.encode(Sender(state, air.common, trained, mask, weight)).total

    parts = jax.vmap(encode)(air.state, change, weight)
    total = mesh.reduce(parts, air.active & (weight > 0))
    arrival = Arrival(rng.stream(key, "cloud", t), air, total, mask)
    return cloud.finish(arrival), air.active


def _step(stages: _Stages, key: Key, state: State, clients: Clients) -> tuple[State, RoundInfo]:
    server, pruner, t = stages.server, stages.pruner, state.round
    masks = decided(key, pruner, state)
    start = tree.apply_mask(masks.shared, state.params)
    count = stages.edges.servers
    copies = jax.tree.map(lambda w: jnp.broadcast_to(w, (count, *w.shape)), start)

    def one(models: Params, e: jax.Array):
        return _edge_round(stages, key, t, t * stages.edge_rounds + e, models, masks, clients)

    models, found = lax.scan(one, copies, jnp.arange(stages.edge_rounds))
    costs, heard = found.cost, found.heard
    weight = found.tally.weight.sum(0) if stages.weighting == "examples" else 1.0
    weight = jnp.where(heard.any(0), weight, 0.0)
    change = jax.tree.map(jnp.subtract, models, copies)
    received, arrives = _to_cloud(stages, key, t, change, masks.effective, weight)
    weight = jnp.where(arrives, weight, 0.0)
    share = weight / jnp.maximum(weight.sum(), 1e-30)
    cost = bill.both(received.cost, _added(costs))._replace(
        seconds=costs.seconds.sum(0).max() + received.cost.seconds,
        noise_variance=jnp.sum(jnp.square(share) * costs.noise_variance.sum(0))
        + received.cost.noise_variance,
    )
    outcome = Outcome(
        key=rng.stream(key, "server", t),
        round=t,
        params=state.params,
        mask=masks.decided,
        update=received.update,
        heard=(weight > 0).any(),
        cost=cost,
    )
    params, server_state, after = served(server, state, outcome)
    if pruner is not None and pruner.scope == "server":
        params = tree.apply_mask(masks.decided, params)
    rejected = found.rejected.sum() + (outcome.heard & ~after.heard).astype(jnp.int32)
    numbers = row.numbers_of(
        {name: value.mean((0, 1)) for name, value in found.numbers.items()},
        {f"cloud_{name}": value for name, value in received.numbers.items()},
        {} if server.numbers is None else server.numbers(server_state),
        {} if pruner is None or pruner.numbers is None else pruner.numbers(masks.state),
    )
    tally = _added(found.tally)
    info = row.info(masks, tally, params, cost, found.ratio, found.share, rejected, numbers)
    return State(t + 1, params, masks.decided, masks.state, server_state), info


def _added(values: PyTree) -> PyTree:
    """Sums over edge rounds and servers, of counts too."""

    def one(leaf: PyTree) -> PyTree:
        return bill.total(leaf) if isinstance(leaf, Count) else leaf.sum()

    return jax.tree.map(one, values, is_leaf=lambda leaf: isinstance(leaf, Count))


def _refuse_flat(
    local: LocalUpdate,
    uplink: Uplink,
    cloud: Uplink,
    server: Server,
    participation: Participation,
    pruner: Pruner | None,
) -> None:
    """Refuses what only a flat round carries."""
    needs = {
        "local: has strata": not callable(local),
        "uplink: keeps memory (init or remember)": uplink.init or uplink.remember,
        "cloud: keeps memory (init or remember)": cloud.init or cloud.remember,
        "server: sends a message": server.message,
        "participation: learns (init or learn)": participation.init or participation.learn,
        "participation: asks for channels": participation.gains,
        "participation: probes": participation.probe,
        "participation: gives numbers": participation.numbers,
        "pruner: revises its mask after the round": pruner and pruner.revise,
    }
    for what, wanted in needs.items():
        if wanted:
            raise ValueError(f"{what}, which rounds with edge servers do not carry")
