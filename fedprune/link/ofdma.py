"""OFDMA uplink: every device has a share of its edge server's band, and prunes to be in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import allocation, bill, check, resources
from fedprune.allocation import Allocation, Problem
from fedprune.link.uplink import ideal
from fedprune.types import Air, Arrival, Cohort, Cost, Key, Received, Uplink

SCHEMES: dict[str, Callable[[Problem, jax.Array | float], Allocation]] = {
    "optimal": allocation.optimal,
    "equal": allocation.equal,
    "post_hoc": lambda p, rho_max: allocation.post_hoc(p, allocation.optimal(p, rho_max)),
    "unpruned": lambda p, rho_max: allocation.unpruned(p),
    "printed": allocation.clipped_form,
}


class _Device(NamedTuple):
    """What a round takes one device."""

    seconds: jax.Array
    """[] computing and sending"""
    uses: jax.Array
    """[] channel uses"""
    energy: jax.Array
    """[] computing and sending"""


def ofdma(
    work: resources.Work,
    gains: Callable[[Key, jax.Array, jax.Array], jax.Array],
    threshold: jax.Array | float,
    frequency: jax.Array | float,
    power: jax.Array | float,
    noise: jax.Array | float,
    bandwidth: jax.Array | float,
    edge: jax.Array | None = None,
    edges: int = 1,
    scheme: str = "optimal",
    rho_max: jax.Array | float = 1.0,
    form: str = "derived",
    scaled: bool = False,
) -> Uplink:
    """Devices send error-free bits over shares of a band, allocated together with their pruning.

    Every round, from that round's channels, the edge servers solve P2 (32) for their own devices
    and bands. The pruning ratios go to local training with the channels (``Air.ratio``); what is
    billed are the latency and energy that the allocation implies, computing included. Where no
    allocation meets the threshold, the devices of that server prune rho_max, and take longer.

    The estimate is the mean over all clients; ``link.holders(ofdma(...), ideal(), ...)`` gives the
    mean over the holders of each weight, P2 (12).

    Args:
      work: of each device and round (``resources.hierarchical`` or ``personalized``), its fields []
        or [K].
      gains: (root key, round, ids [S]) -> power gains [S].
      threshold: T_th in s.
      frequency: f in Hz, [] or [K].
      power: p in W, [] or [K].
      noise: sigma^2 over the whole band, in W, [] or [K].
      bandwidth: B of every server in Hz.
      edge: [K] int32, the server of each client; None: one for all.
      edges: servers.
      scheme: one of ``SCHEMES``: "optimal"; with equal shares "equal" (as little pruning as meets
        the threshold), "post_hoc" (the optimal pruning) or "unpruned"; "printed", the closed form.
      rho_max: largest pruning ratio, in (0, 1].
      form: "derived" or "printed" (``allocation.problem``).
      scaled: whether what is billed are rates with the noise of the device's share only. Allocated
        is with that of the whole band, so devices are in time and have some left.

    Raises:
      ValueError: an unknown scheme or form; arguments for different numbers of clients, or servers
        outside 0..edges-1.

    Returns:
      An uplink whose ``Cost.seconds`` is the slowest device's time and whose energy is the sum.

    Source: P2 (9)-(16), (25)-(35); P4 (24)-(29), (47)-(58).
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme={scheme!r} is not one of {tuple(SCHEMES)}")
    if form not in allocation.FORMS:
        raise ValueError(f"form={form!r} is not one of {allocation.FORMS}")
    if scheme == "unpruned":
        work = work._replace(warm_cycles=0.0)  # no masks, so no steps to find them

    check.function("gains", gains)
    check.number("threshold", threshold, above=0)
    check.numbers("frequency", frequency, above=0)
    check.numbers("power", power, 0)
    check.numbers("noise", noise, above=0)
    check.number("bandwidth", bandwidth, above=0)
    check.whole("edges", edges, 1)
    check.number("rho_max", rho_max, above=0, high=1)
    exact = ideal()
    by_client = (work, frequency, power, noise, edge)
    counts = {v.shape[0] for v in jax.tree.leaves(by_client) if jnp.ndim(v)}
    if len(counts) > 1:
        raise ValueError(
            "work, frequency, power, noise and edge are for"
            f" {' and '.join(map(str, sorted(counts)))} clients: must be equal"
        )
    if edge is not None:
        check.wholes("edge", edge, 0, edges - 1)

    def prepare(cohort: Cohort) -> Air:
        ids = cohort.ids
        # Barriers: what is fused, and so rounded, must not depend on the number of devices, since
        # a last bit can decide how many weights are kept.
        gain = lax.optimization_barrier(gains(cohort.key, cohort.round, ids))
        if gain.shape != ids.shape:
            raise ValueError(f"gains: {gain.shape} for {ids.shape[0]} clients of a cohort")
        load, clock, sent, heard, place = jax.tree.map(
            lambda v: v[ids] if jnp.ndim(v) else v, by_client
        )
        rate = resources.full_rate(gain, sent, heard, bandwidth)
        problem = allocation.problem(load, clock, rate, threshold, form)
        own = jnp.zeros_like(ids) if edge is None else place
        found = allocation.by_edge(problem, own, edges, lambda p: SCHEMES[scheme](p, rho_max))
        found = lax.optimization_barrier(found)
        got = resources.rate(found.share, gain, sent, heard, bandwidth, scaled)
        bits_a_use = jnp.where(found.share > 0, got / found.share, rate) / bandwidth
        device = _Device(
            seconds=resources.seconds(load, found.keep, clock, got),
            uses=resources.bits_sent(load, found.keep) / bits_a_use,
            energy=resources.energy(load, found.keep, clock, got, sent),
        )
        everybody = jnp.ones(ids.shape, bool)
        air = Air(everybody, everybody, device, found.ratio, found.share)
        return lax.optimization_barrier(air)

    def finish(arrival: Arrival) -> Received:
        air = arrival.air
        device: _Device = jax.tree.map(lambda v: jnp.where(air.sends, v, 0.0), air.state)
        cost = Cost(
            channel_uses=bill.total(bill.count(jnp.ceil(device.uses))),
            side_information=bill.count(0),
            noise_variance=jnp.float32(0.0),
            seconds=device.seconds.max(),
            energy=device.energy.sum(),
        )
        return Received(exact.finish(arrival).update, cost)

    return Uplink(prepare, exact.encode, finish, clients=max(counts, default=None))
