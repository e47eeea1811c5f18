"""Orthogonal digital uplink: every client has channel uses of its own and sends bits."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedprune import bill, channel, check, rng, tree
from fedprune.link.uplink import memory_of, survey_of
from fedprune.types import (
    Air,
    Arrival,
    Cohort,
    Cost,
    Key,
    Mask,
    Params,
    Received,
    Sender,
    Sent,
    Total,
    Uplink,
)

BITSTREAMS = ("fixed", "entropy")


class _Link(NamedTuple):
    """One client's."""

    rate: jax.Array
    """[] bits a channel use"""
    key: Key


def orthogonal(
    snr_db: jax.Array | float,
    rate: jax.Array | float | None = None,
    value_bits: int = 32,
    fading: channel.Fading | None = None,
    threshold: jax.Array | float = 0.0,
    power: jax.Array | float = 1.0,
    bandwidth: jax.Array | float = 1e6,
    bitstream: str = "fixed",
) -> Uplink:
    """Clients send their updates one after another, as error-free bits or not at all.

    With gamma_k = |h_k|^2 P / no, client k's channel carries C_k = log2(1 + gamma_k) bits a use.
    A receiver with several antennas combines each client's own channel (maximum-ratio combining,
    ``channel.separate``), so a client's rate does not depend on who else is in the cohort.

      rate None   the client knows its channel and sends at C_k: no outage
      rate R      it does not, and sends at R bits a use: lost (outage) where C_k < R, with
                  probability 1 - exp(-(2^R - 1) no / P) under Rayleigh fading; the channel uses
                  of a lost update are billed all the same

    Where symbols fade in blocks (``channel.Fading.blocks``), C_k is the mean over the blocks, which
    a code spans, and |h_k|^2 is the mean, too.

    Clients with |h_k|^2 < threshold do not send at all. At capacity a threshold of zero lets single
    deep fades take most of the time: E[1 / C_k] is infinite under Rayleigh fading.

    An update takes B = d value_bits bits (+ 32 for the scale if value_bits < 32) and B / rate uses,
    rounded up; the uses of all clients are added up exactly.
    Only the d kept weights are sent: the server knows the round's mask, and a client with a mask of
    its own sends that as well, one bit a weight. Where such clients keep different numbers of
    weights, all are billed at the largest. With 32 bits values arrive exactly. With fewer they are
    rounded at random to a grid of 2^value_bits - 1 points over [-max|g|, max|g|], up or down such
    that the mean is exact (unbiased).

    Args:
      snr_db: P / no in dB, as for ``over_the_air``; may be traced.
      rate: R in bits a channel use, above 0; None: capacity.
      value_bits: 2 to 32.
      fading: channels; None: h_k = 1. Imperfect CSI does not matter here.
      threshold: of |h_k|^2, at least 0.
      power: P in W, for the energy.
      bandwidth: channel uses a second, in Hz.
      bitstream: "fixed", value_bits a weight; or "entropy", what an entropy coder makes of the
        grid's points: the empirical entropy of the client's own points, and 4 bits for each point
        of the grid for the table. For value_bits up to 12.

    Raises:
      ValueError: value_bits out of range, or an unknown bitstream.

    Source: Shannon capacity of a block-fading channel, as in P2 (10) for one whole band.
    """
    check.number("snr_db", snr_db)
    check.kind("fading", fading, channel.Fading, type(None))
    if rate is not None:
        check.number("rate", rate, above=0)
    check.whole("value_bits", value_bits, 2, 32)
    check.number("threshold", threshold, 0)
    check.number("power", power, 0)
    check.number("bandwidth", bandwidth, above=0)
    if bitstream not in BITSTREAMS:
        raise ValueError(f"bitstream={bitstream!r} is not one of {BITSTREAMS}")
    if bitstream == "entropy" and value_bits > 12:
        raise ValueError(f"value_bits={value_bits} must be at most 12 for bitstream='entropy'")
    draw = channel.none() if fading is None else fading

    def prepare(cohort: Cohort) -> Air:
        root, t, ids = cohort.key, cohort.round, cohort.ids
        channels, memory = draw.draw(channel.Instant(root, t, ids, cohort.memory))
        gains = channel.separate(channels).true
        gain = channel.power(gains)
        capacity = jnp.log2(1.0 + jnp.square(jnp.abs(gains)) * channel.from_db(snr_db)).mean(1)
        chosen = capacity if rate is None else jnp.full(ids.shape, rate, jnp.float32)
        keys = jax.vmap(lambda k: rng.stream(root, "rounding", t, k))(ids)
        sends = gain >= threshold
        return Air(sends, sends & (capacity >= chosen), _Link(chosen, keys), memory=memory)

    def bits_of(kept: jax.Array) -> jax.Array:
        return kept.astype(jnp.float32) * value_bits + (32.0 if value_bits < 32 else 0.0)

    def encode(sender: Sender) -> Sent:
        link: _Link = sender.state
        trained, delta = sender.trained, sender.trained.delta
        held = sender.mask if trained.held is None else trained.held
        if value_bits < 32:
            delta = tree.apply_mask(held, _rounded(link.key, delta, value_bits))
        bits = bits_of(tree.count(held, delta))
        if bitstream == "entropy":
            bits = _entropy(delta, held, value_bits) + 4.0 * 2**value_bits + 32.0
        if trained.held is not None:
            bits += tree.count(None, delta).astype(jnp.float32)
        return Sent(Total((tree.scale(sender.weight, delta), sender.weight), bits))

    def finish(arrival: Arrival) -> Received:
        air, (signal, weight) = arrival.air, arrival.total.sum
        # If everybody's update is lost there is no largest; then the round's mask decides.
        whole = bits_of(tree.count(arrival.mask, signal))
        bits = jnp.where(weight > 0, arrival.total.max, whole)
        each = jnp.where(air.sends, jnp.ceil(bits / air.state.rate), 0.0)
        uses = bill.total(bill.count(each))
        seconds = bill.approximate(uses) / bandwidth
        cost = Cost(uses, bill.count(0), jnp.float32(0.0), seconds, power * seconds)
        return Received(tree.mean(signal, weight), cost)

    return Uplink(
        prepare,
        encode,
        finish,
        memory_of(draw),
        survey=survey_of(draw),
        masks=True,
        clients=draw.clients,
    )


def _entropy(values: Params, mask: Mask, bits: int) -> jax.Array:
    """Bits of the kept values on their grid at their empirical entropy, []."""
    step = _step(values, bits)
    top = 2 ** (bits - 1) - 1
    kept = jax.tree.map(lambda v: jnp.ones(v.shape, bool), values) if mask is None else mask
    counts = jnp.zeros(2 * top + 1, jnp.float32)
    for v, m in zip(jax.tree.leaves(values), jax.tree.leaves(kept), strict=True):
        level = jnp.clip(jnp.round(v / step), -top, top).astype(jnp.int32) + top
        counts = counts.at[level.reshape(-1)].add(m.reshape(-1).astype(jnp.float32))
    total = counts.sum()
    share = counts / jnp.maximum(total, 1.0)
    return -jnp.sum(counts * jnp.log2(jnp.where(counts > 0, share, 1.0)))


def _step(values: Params, bits: int) -> jax.Array:
    """Distance of the points of the grid, 1 where all values are 0."""
    largest = jnp.max(jnp.array([jnp.max(jnp.abs(v)) for v in jax.tree.leaves(values)]))
    return jnp.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1.0)


def _rounded(key: Key, values: Params, bits: int) -> Params:
    """Unbiased random rounding to 2^bits - 1 points over [-max, max]."""
    leaves, treedef = jax.tree.flatten(values)
    step = _step(values, bits)
    keys = jax.random.split(key, len(leaves))
    rounded = [
        step * jnp.floor(v / step + jax.random.uniform(k, v.shape))
        for k, v in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, rounded)
