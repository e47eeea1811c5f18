"""Uplinks: how the server learns the weighted mean of the clients' updates.

Client k's update g_k (d weights that its mask keeps) is weighted by w_k = D_k; W = sum_k w_k over
the clients that count. What is wanted is (1/W) sum_k w_k g_k.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedprune import bill, channel, check, tree
from fedprune.types import (
    Air,
    Arrival,
    Cohort,
    Cost,
    Mask,
    Params,
    PyTree,
    Received,
    Sender,
    Sent,
    Survey,
    Total,
    Uplink,
)

NORMALISATIONS = ("none", "common", "device", "receiver")


def free() -> Cost:
    """Nothing was used."""
    nothing, none = jnp.float32(0.0), bill.count(0)
    return Cost(none, none, nothing, nothing, nothing)


def ideal() -> Uplink:
    """A perfect link that costs nothing: exactly federated averaging."""

    def prepare(cohort: Cohort) -> Air:
        everybody = jnp.ones(cohort.ids.shape, bool)
        return Air(everybody, everybody, ())

    def encode(sender: Sender) -> Sent:
        delta, weight = sender.trained.delta, sender.weight
        return Sent(Total((tree.scale(weight, delta), weight), ()))

    def finish(arrival: Arrival) -> Received:
        signal, weight = arrival.total.sum
        return Received(tree.mean(signal, weight), free())

    return Uplink(prepare, encode, finish)


class _Sums(NamedTuple):
    """What over-the-air superposition adds up over clients."""

    signal: Params
    """what the receiver hears, before noise and in units of the updates"""
    weight: jax.Array
    """of w_k; this and the two below are [B] where symbols fade in B > 1 blocks, over those clients
    that send in the block"""
    rms: jax.Array
    """of m_k"""
    gain: jax.Array
    """of |h_hat_k|"""
    clients: jax.Array
    power: jax.Array
    """of q_k, the power at unit scale"""


def over_the_air(
    snr_db: jax.Array | float,
    normalisation: str = "receiver",
    packing: str = "complex",
    fading: channel.Fading | None = None,
    threshold: jax.Array | float = 0.0,
    power: jax.Array | float = 1.0,
    bandwidth: jax.Array | float = 1e6,
    repeats: jax.Array | int = 1,
) -> Uplink:
    """Analog over-the-air superposition with fading and AWGN.

    All clients send at once, weight by weight, and the channel adds. With a_k = w_k g_k,
    m_k = rms(a_k) over its d transmitted weights, h_k the channel and h_hat_k what the client knows
    of it, s^2 the noise-to-signal ratio per real dimension (``channel.noise_to_signal``) and
    n ~ N(0, 1) drawn once, after the sum:

      none      (sum_k a_k) / W                                    v = 0
                no channel at all
      common    (sum_k c_k a_k + s max_k p_k n) / W                v = s^2 max_k p_k^2 / W^2
                channel inversion with c_k = h_k / h_hat_k and p_k = m_k / |h_hat_k|: one scale, set
                by the client that needs the most power. Unbiased if the channel is known
      device    r (sum_k c_k a_k / m_k + s n) / W                  v = s^2 r^2 / W^2
                every client at full power, only its phase corrected: c_k = h_k h_hat_k^* /
                |h_hat_k| and r = mean(m_k) / mean(|h_hat_k|). Biased towards clients with small
                updates and strong channels
      receiver  (sum_k c_k a_k + s rms(sum_k c_k a_k) n) / W       v = s^2 mean((sum_k c_k a_k)^2)
                                                                       / W^2
                inversion as in ``common``; the SNR is that of the superposition at the receiver

    Sums, means and maxima are over the clients that count: *truncated* inversion leaves out those
    with |h_hat_k|^2 < threshold. If nobody is left, the round changes nothing. v is the noise
    variance per weight of the estimate. "10 dB" means anything from 1e-5 to 0.1 of noise-to-signal
    energy depending on the normalisation (P0 does not state its own). Pruned weights occupy no
    symbols, take no power and receive no noise; the server knows the mask.

    Where symbols fade in blocks (``channel.Fading.blocks``), h_k is that of a symbol's block, a
    client is silent in those of its blocks that are below the threshold, W is that of the clients
    that send in the block (weights in a block in which nobody sends stay), p_k^2 is the mean power
    of a client's symbols after inversion, and v is the mean over the weights that arrive.

    Billed: channel uses, shared by all clients, and their time; as side information, per round,
    ``common`` one p_k from every client and the scale back, ``device`` m_k from every client (and
    |h_hat_k| where there is fading), ``receiver`` the common gain (set by the same rule as
    ``common``'s, so its energy is the same); energy sent, sum_k P q_k / max_k q_k per channel use
    with q_k = p_k^2 (``device``: P per client). D_k are known from registration, channels from
    pilots that are not billed.

    Args:
      snr_db: P / no in dB, P the power budget per complex symbol; may be traced.
      normalisation: one of ``NORMALISATIONS``.
      packing: "complex", two weights per symbol, or "real", one (``channel.awgn``).
      fading: channels, for example ``channel.block_fading()``; None: h_k = 1.
      threshold: of |h_hat_k|^2, at least 0.
      power: P in W, for the energy only.
      bandwidth: channel uses a second, in Hz.
      repeats: symbols a weight, averaged by the receiver: r of them divide v by r. Repetition is
        linear, so it passes through the superposition; a sum of spirals is no spiral of the sum.

    Raises:
      ValueError: an unknown normalisation or packing.

    Source: P0 section II.2 for superposition; it names no normalisation, so these four are the ways
    in which its 10 dB can be read.
    """
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation={normalisation!r} is not one of {NORMALISATIONS}")
    if packing not in channel.PACKINGS:
        raise ValueError(f"packing={packing!r} is not one of {channel.PACKINGS}")
    check.number("snr_db", snr_db, above=-check.INFINITY, infinite=True)
    check.kind("fading", fading, channel.Fading, type(None))
    check.number("threshold", threshold, 0)
    check.number("power", power, 0)
    check.number("bandwidth", bandwidth, above=0)
    check.whole("repeats", repeats, 1)
    faded = fading is not None and normalisation != "none"
    draw = fading if fading is not None and faded else channel.none()
    air = _Superposition(
        snr_db, normalisation, packing, draw, faded, threshold, power, bandwidth, repeats
    )
    return Uplink(
        lambda cohort: _prepare(air, cohort),
        lambda sender: _encode(air, sender),
        lambda arrival: _finish(air, arrival),
        memory_of(draw),
        survey=survey_of(draw),
        clients=draw.clients,
    )


class _Superposition(NamedTuple):
    """The arguments of ``over_the_air``, which have been checked."""

    snr_db: jax.Array | float
    normalisation: str
    packing: str
    draw: channel.Fading
    faded: bool
    threshold: jax.Array | float
    power: jax.Array | float
    bandwidth: jax.Array | float
    repeats: jax.Array | int

    @property
    def blocks(self) -> int:
        return self.draw.blocks if self.faded else 1

    @property
    def pairs(self) -> bool:
        """Whether it matters which weights share a symbol."""
        return (self.faded and self.packing == "complex") or self.blocks > 1


def _prepare(air: _Superposition, cohort: Cohort) -> Air:
    at = channel.Instant(cohort.key, cohort.round, cohort.ids, cohort.memory)
    channels, memory = air.draw.draw(at)
    gains = channel.superposed(channels, cohort.server, cohort.servers)
    strong = (jnp.square(jnp.abs(gains.known)) >= air.threshold).any(1)
    paired = channel.pairs(cohort.mask) if air.pairs else ()
    return Air(strong, strong, gains, common=paired, memory=memory)


def _encode(air: _Superposition, sender: Sender) -> Sent:
    # What belongs to each block, [B]; [] where there is one only.
    gains = channel.Gains(*(g[0] if air.blocks == 1 else g for g in sender.state))
    mask, weight, packing = sender.mask, sender.weight, air.packing
    paired = sender.common if air.pairs else None
    signal = tree.scale(weight, sender.trained.delta)
    count = tree.count(mask, signal)
    rms, known, here = _rms(signal, count), jnp.abs(gains.known), jnp.float32(1.0)
    needed, power_of_one = rms / known, here
    if air.blocks > 1:
        here = (jnp.square(known) >= air.threshold).astype(jnp.float32)
        heard = channel.of_blocks(here, signal, packing, paired)
        signal = jax.tree.map(jnp.multiply, heard, signal)
        inverse = channel.of_blocks(here / known, signal, packing, paired)
        needed = _rms(jax.tree.map(jnp.multiply, inverse, signal), count)
        power_of_one = jnp.square(_rms(signal, count) / jnp.where(rms > 0, rms, 1.0))
    if air.faded and air.normalisation == "device":
        turn = gains.true * _phase(gains.known).conj()
        signal = channel.rotate(turn, signal, packing, paired)
    elif air.faded:
        signal = channel.rotate(gains.true / gains.known, signal, packing, paired)
    if air.normalisation == "device":
        signal = tree.scale(jnp.where(rms > 0, 1.0 / rms, 0.0), signal)
    else:
        power_of_one = jnp.square(needed)
    signal = tree.apply_mask(mask, signal)
    one = jnp.ones_like(weight)
    sums = _Sums(signal, weight * here, rms * here, known * here, one, power_of_one)
    return Sent(Total(sums, needed))


class _Receiver(NamedTuple):
    """How a receiver hears the superposition."""

    scale: jax.Array
    """from what it hears to updates; [B] where symbols fade in blocks"""
    deviation: jax.Array
    """of the noise on a weight, before the scale"""
    reports: jax.Array
    """[] int32, numbers sent beside the symbols"""
    sent: jax.Array
    """energy of a channel use, added up over clients, in units of P"""


def _receiver(air: _Superposition, arrival: Arrival, peak: jax.Array, d: jax.Array) -> _Receiver:
    sums: _Sums = arrival.total.sum
    times = jnp.asarray(air.repeats, jnp.float32)
    s = jnp.sqrt(channel.noise_to_signal(air.snr_db, air.packing) / times)
    scale, reports = jnp.float32(1.0), jnp.int32(0)
    sent = jnp.where(peak > 0, sums.power / jnp.square(peak), 0.0)
    if air.normalisation == "none":
        deviation = jnp.float32(0.0)
    elif air.normalisation == "common":
        deviation = s * peak
        reports = sums.clients.astype(jnp.int32) + 1
    elif air.normalisation == "device":
        deviation = s
        scale = sums.rms / jnp.where(sums.gain > 0, sums.gain, 1.0)
        reports = sums.clients.astype(jnp.int32) * (1 + air.blocks if air.faded else 1)
        sent = sums.power
    else:
        deviation = s * _rms(sums.signal, d)
        reports = jnp.int32(1)
    return _Receiver(scale, deviation, reports, sent)


def _finish(air: _Superposition, arrival: Arrival) -> Received:
    sums: _Sums = arrival.total.sum
    signal, peak, mask = sums.signal, jnp.maximum(arrival.total.max, 0.0), arrival.mask
    d = tree.count(mask, signal)
    paired = arrival.air.common if air.blocks > 1 else None

    def of_weights(values: jax.Array) -> PyTree:
        return channel.of_blocks(values, signal, air.packing, paired)

    scale, deviation, reports, sent = _receiver(air, arrival, peak, d)
    if air.normalisation != "none":
        noise = channel.noise(arrival.key, signal, mask)
        signal = jax.tree.map(
            lambda r, y, n: r * (y + deviation * n), of_weights(scale), signal, noise
        )
    variance = jnp.square(scale * deviation / jnp.maximum(sums.weight, 1e-30))
    if air.blocks == 1:
        update = tree.mean(signal, sums.weight)
    else:
        weight = of_weights(sums.weight)
        update = jax.tree.map(lambda v, w: jnp.where(w > 0, v / w, 0.0), signal, weight)
        heard = of_weights((sums.weight > 0).astype(jnp.float32))
        variance = _mean_where(heard, of_weights(variance), mask)
    symbols = jnp.where(sums.clients > 0, channel.symbols(mask, signal, air.packing), 0)
    uses = bill.times(symbols, air.repeats)
    seconds = bill.approximate(uses) / air.bandwidth
    cost = Cost(uses, bill.count(reports), variance, seconds, air.power * seconds * sent)
    return Received(update, cost)


def memory_of(fading: channel.Fading) -> Callable[[Params], PyTree] | None:
    """``Uplink.init`` of an uplink that keeps the state of the fading and nothing else."""
    start = fading.init
    return None if start is None else lambda params: start()


def survey_of(fading: channel.Fading) -> Callable[[Survey], tuple[jax.Array, PyTree]]:
    """``Uplink.survey`` of an uplink whose channels are drawn by the fading."""

    def survey(asked: Survey) -> tuple[jax.Array, PyTree]:
        everybody = jnp.arange(asked.clients)
        at = channel.Instant(asked.key, asked.round, everybody, asked.memory)
        channels, memory = fading.draw(at)
        return channel.power(channel.separate(channels).true), memory

    return survey


def _phase(gain: jax.Array) -> jax.Array:
    """gain / |gain|"""
    return gain / jnp.abs(gain).astype(gain.dtype)


def _rms(values: Params, count: jax.Array) -> jax.Array:
    """Root mean square over the transmitted weights."""
    return jnp.sqrt(tree.square_sum(values) / jnp.maximum(count, 1).astype(jnp.float32))


def _share(values: PyTree, mask: Mask) -> jax.Array:
    """Mean of one number a weight over the kept weights."""
    kept = jnp.maximum(tree.count(mask, values), 1).astype(jnp.float32)
    return tree.total(tree.apply_mask(mask, values)) / kept


def _mean_where(chosen: PyTree, values: PyTree, mask: Mask) -> jax.Array:
    """Mean of one number a weight over those kept weights where ``chosen`` is 1, not 0."""
    some = jax.tree.map(lambda c, v: jnp.where(c > 0, v, 0.0), chosen, values)
    return _share(some, mask) / jnp.maximum(_share(chosen, mask), 1e-30)
