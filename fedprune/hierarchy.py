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

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import check, mesh, rng, tree
from fedprune import round as rounds
from fedprune.round import Edges, Round, RoundInfo, State, Tally
from fedprune.types import (
    Air,
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
      ValueError: edge_rounds below 1, an unknown weighting, devices of servers that do not exist,
        or a cloud link for another number of servers; when a round meets the data, whatever is for
        another number of clients (``round.agree``).

    Source: P2 section III-B, Algorithm 1.
    """
    rounds.stages(local, uplink, server, participation, pruner)
    check.kind("cloud", cloud, Uplink)
    check.kind("edges", edges, Edges)
    check.whole("edges.servers", edges.servers, 1)
    check.whole("edge_rounds", edge_rounds, 1)
    check.wholes("edges.of", edges.of, 0, edges.servers - 1)
    if cloud.clients not in (None, edges.servers):
        raise ValueError(f"cloud: for {cloud.clients} servers, but edges has {edges.servers}")
    cohort = rounds.trainer(local, uplink, layout, weighting, edges)
    everyone = jnp.arange(edges.servers)

    def init(params: Params) -> State:
        return rounds.initial(params, pruner, server)

    def edge_round(key: Key, t, u, models: Params, mask: Mask, clients: Clients):
        """Edge models after one edge round; what each of the servers [G] has used, counted, heard
        and rejected; allocation."""
        ids = participation.select(rng.stream(key, "cohort", u))
        air = uplink.prepare(key, u, ids)
        rounds.agree(clients, participation, uplink, ids, air, edges=edges.of.shape[0])
        total, _ = cohort(key, t, u, models, mask, clients, ids, air)

        def finish(edge: tuple[jax.Array, Total]) -> tuple[Params, Cost]:
            g, total = edge
            mine = edges.of[ids] == g
            here = air._replace(sends=air.sends & mine, active=air.active & mine)
            received = Total(total.sum[0], total.max)
            return uplink.finish(rng.stream(key, "uplink", u, g), here, received, mask)

        # Not vmap: XLA may divide by a vector of weights by multiplying with its reciprocals, which
        # it decides differently for other numbers of devices.
        update, cost = lax.map(finish, (everyone, total))
        tally: Tally = total.sum[1]
        after = jax.tree.map(jnp.add, models, update)
        finite = jax.vmap(tree.all_finite)((update, after))
        heard = tally.clients > 0
        models = jax.vmap(tree.where)(heard & finite, after, models)
        return models, (cost, tally, heard & finite, heard & ~finite, air.ratio, air.share)

    def to_cloud(key: Key, t, change: Params, mask: Mask, weight: jax.Array):
        """The cloud's estimate of the mean change, from changes [G, ...] and weights [G]."""
        air: Air = cloud.prepare(rng.stream(key, "cloud"), t, everyone)

        def encode(state: PyTree, change: Params, weight: jax.Array) -> Total:
            return cloud.encode(state, Trained(change, jnp.float32(0.0)), mask, weight)

        parts = jax.vmap(encode)(air.state, change, weight)
        total = mesh.reduce(parts, air.active & (weight > 0))
        return *cloud.finish(rng.stream(key, "cloud", t), air, total, mask), air.active

    def step(key: Key, state: State, clients: Clients) -> tuple[State, RoundInfo]:
        t = state.round
        mask, shared_mask, pruner_state = rounds.masks(pruner, state)
        start = tree.apply_mask(shared_mask, state.params)
        copies = jax.tree.map(lambda w: jnp.broadcast_to(w, (edges.servers, *w.shape)), start)

        def one(models: Params, e: jax.Array):
            return edge_round(key, t, t * edge_rounds + e, models, shared_mask, clients)

        models, found = lax.scan(one, copies, jnp.arange(edge_rounds))
        costs, tallies, heard, rejected, ratio, band = found
        heard = heard.any(0)
        weight = jnp.where(heard, tallies.weight.sum(0) if weighting == "examples" else 1.0, 0.0)
        change = jax.tree.map(jnp.subtract, models, copies)
        update, cloud_cost, arrives = to_cloud(key, t, change, shared_mask, weight)
        weight = jnp.where(arrives, weight, 0.0)
        params, server_state, unusable = rounds.served(server, state, update, (weight > 0).any())
        if pruner is not None and pruner.scope == "server":
            params = tree.apply_mask(mask, params)
        share = weight / jnp.maximum(weight.sum(), 1e-30)
        cost = jax.tree.map(lambda c, v: c.sum().astype(v.dtype) + v, costs, cloud_cost)
        tally = jax.tree.map(jnp.sum, tallies)
        sent, density = rounds.kept_by_clients(shared_mask, tally, params)
        info = RoundInfo(
            train_loss=tally.loss / tally.weight,
            clients=tally.clients.astype(jnp.int32),
            excluded=tally.excluded.astype(jnp.int32),
            rejected=rejected.sum(dtype=jnp.int32) + unusable.astype(jnp.int32),
            kept=tree.count(mask, params),
            sent=sent,
            density=density,
            ratio=rounds.mean_ratio(ratio),
            allocation=rounds.extremes(ratio, band),
            cost=cost._replace(
                seconds=costs.seconds.sum(0).max() + cloud_cost.seconds,
                noise_variance=jnp.sum(jnp.square(share) * costs.noise_variance.sum(0))
                + cloud_cost.noise_variance,
            ),
        )
        return State(t + 1, params, mask, pruner_state, server_state), info

    return Round(init, step, layout)
