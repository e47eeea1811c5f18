"""Uplinks: how the server learns the weighted mean of the clients' updates.

Client k's update g_k (d weights that its mask keeps) is weighted by w_k = D_k; W = sum_k w_k over
the clients that count. What is wanted is (1/W) sum_k w_k g_k.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedprune import channel, tree
from fedprune.types import Cost, Key, Mask, Params, Total, Uplink

NORMALISATIONS = ("none", "common", "device", "receiver")


def ideal() -> Uplink:
    """A perfect link that costs nothing: exactly federated averaging."""

    def encode(delta: Params, mask: Mask, weight: jax.Array) -> Total:
        return Total((_scale(weight, delta), weight), ())

    def finish(key: Key, total: Total, mask: Mask) -> tuple[Params, Cost]:
        signal, weight = total.sum
        return _mean(signal, weight), Cost(jnp.int32(0), jnp.int32(0), jnp.float32(0.0))

    return Uplink(encode, finish)


def over_the_air(
    snr_db: jax.Array | float,
    normalisation: str = "receiver",
    packing: str = "complex",
) -> Uplink:
    """Analog over-the-air superposition with AWGN at the receiver.

    All clients send at once, weight by weight, and the channel adds. With a_k = w_k g_k,
    m_k = rms(a_k) over its d transmitted weights, s^2 the noise-to-signal ratio per real dimension
    (``channel.noise_to_signal``) and n ~ N(0, 1) drawn once, after the sum:

      none      (sum_k a_k) / W                              v = 0
      common    (sum_k a_k + s max_k m_k n) / W              v = s^2 max_k m_k^2 / W^2
                one scale, set by the client that needs the most power: unbiased
      device    mean_k(m_k) (sum_k a_k / m_k + s n) / W      v = s^2 mean(m_k)^2 / W^2
                every client at unit power: biased towards clients with small updates
      receiver  (sum_k a_k + s rms(sum_k a_k) n) / W         v = s^2 mean((sum_k a_k)^2) / W^2
                SNR defined at the receiver, relative to the superposition

    v is the noise variance per weight of the estimate. "10 dB" means anything from 1e-5 to 0.1 of
    noise-to-signal energy depending on this choice (P0 does not state its own). Pruned weights
    occupy no symbols, take no power and receive no noise; the server knows the mask.

    Billed: channel uses, shared by all clients; and as side information, per round, ``common`` one
    m_k from every client and the scale back, ``device`` one m_k from every client, ``receiver`` the
    common gain. The D_k are known from registration.

    Args:
      snr_db: P / no in dB, P the power budget per complex symbol; may be traced.
      normalisation: one of ``NORMALISATIONS``.
      packing: "complex", two weights per symbol, or "real", one (``channel.awgn``).

    Raises:
      ValueError: an unknown normalisation or packing.

    Source: P0 section II.2 for superposition; it names no normalisation, so these four are the ways
    in which its 10 dB can be read.
    """
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation={normalisation!r} is not one of {NORMALISATIONS}")
    if packing not in channel.PACKINGS:
        raise ValueError(f"packing={packing!r} is not one of {channel.PACKINGS}")

    def encode(delta: Params, mask: Mask, weight: jax.Array) -> Total:
        signal = _scale(weight, delta)
        rms = _rms(signal, tree.count(mask, delta))
        one = jnp.ones_like(weight)
        if normalisation == "device":
            signal = _scale(jnp.where(rms > 0, 1.0 / rms, 0.0), signal)
        peak = (rms,) if normalisation == "common" else ()
        return Total((signal, weight, one, rms), peak)

    def finish(key: Key, total: Total, mask: Mask) -> tuple[Params, Cost]:
        signal, weight, clients, rms = total.sum
        d = tree.count(mask, signal)
        s = jnp.sqrt(channel.noise_to_signal(snr_db, packing))
        gain, reports = jnp.float32(1.0), jnp.int32(0)
        if normalisation == "none":
            deviation = jnp.float32(0.0)
        elif normalisation == "common":
            deviation = s * jnp.maximum(total.max[0], 0.0)
            reports = clients.astype(jnp.int32) + 1
        elif normalisation == "device":
            deviation = s
            gain = rms / jnp.maximum(clients, 1.0)
            reports = clients.astype(jnp.int32)
        else:
            deviation = s * _rms(signal, d)
            reports = jnp.int32(1)
        if normalisation != "none":
            noise = channel.noise(key, signal, mask)
            signal = jax.tree.map(lambda y, n: gain * (y + deviation * n), signal, noise)
        variance = jnp.square(gain * deviation / jnp.maximum(weight, 1e-30))
        cost = Cost(channel.channel_uses(d, packing), reports, variance)
        return _mean(signal, weight), cost

    return Uplink(encode, finish)


def _rms(values: Params, count: jax.Array) -> jax.Array:
    """Root mean square over the transmitted weights."""
    return jnp.sqrt(tree.square_sum(values) / jnp.maximum(count, 1).astype(jnp.float32))


def _scale(factor: jax.Array, values: Params) -> Params:
    return jax.tree.map(lambda v: factor * v, values)


def _mean(signal: Params, weight: jax.Array) -> Params:
    """sum / W; zero where nobody counted."""
    return jax.tree.map(lambda y: jnp.where(weight > 0, y / weight, 0.0), signal)
