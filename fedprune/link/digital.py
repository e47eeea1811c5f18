"""Orthogonal digital uplink: every client has channel uses of its own and sends bits."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedprune import channel, rng, tree
from fedprune.types import Air, Cost, Key, Mask, Params, Total, Trained, Uplink


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
) -> Uplink:
    """Clients send their updates one after another, as error-free bits or not at all.

    With gamma_k = |h_k|^2 P / no, client k's channel carries C_k = log2(1 + gamma_k) bits a use.

      rate None   the client knows its channel and sends at C_k: no outage
      rate R      it does not, and sends at R bits a use: lost (outage) where C_k < R, with
                  probability 1 - exp(-(2^R - 1) no / P) under Rayleigh fading; the channel uses
                  of a lost update are billed all the same

    Clients with |h_k|^2 < threshold do not send at all. At capacity a threshold of zero lets single
    deep fades take most of the time: E[1 / C_k] is infinite under Rayleigh fading.

    An update takes B = d value_bits bits (+ 32 for the scale if value_bits < 32) and B / rate uses.
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

    Raises:
      ValueError: value_bits out of range.

    Source: Shannon capacity of a block-fading channel, as in P2 (10) for one whole band.
    """
    if not 2 <= value_bits <= 32:
        raise ValueError(f"value_bits={value_bits} is not between 2 and 32")
    draw = channel.none() if fading is None else fading

    def prepare(root: Key, t: jax.Array, ids: jax.Array) -> Air:
        gain = jnp.square(jnp.abs(draw(root, t, ids).true))
        capacity = jnp.log2(1.0 + gain * 10.0 ** (jnp.asarray(snr_db, jnp.float32) / 10.0))
        chosen = capacity if rate is None else jnp.full(ids.shape, rate, jnp.float32)
        keys = jax.vmap(lambda k: rng.stream(root, "rounding", t, k))(ids)
        sends = gain >= threshold
        return Air(sends, sends & (capacity >= chosen), _Link(chosen, keys))

    def bits_of(kept: jax.Array) -> jax.Array:
        return kept.astype(jnp.float32) * value_bits + (32.0 if value_bits < 32 else 0.0)

    def encode(link: _Link, trained: Trained, mask: Mask, weight: jax.Array) -> Total:
        delta, held = trained.delta, mask if trained.held is None else trained.held
        if value_bits < 32:
            delta = tree.apply_mask(held, _rounded(link.key, delta, value_bits))
        bits = bits_of(tree.count(held, delta))
        if trained.held is not None:
            bits += tree.count(None, delta).astype(jnp.float32)
        return Total((tree.scale(weight, delta), weight), bits)

    def finish(key: Key, air: Air, total: Total, mask: Mask) -> tuple[Params, Cost]:
        signal, weight = total.sum
        # If everybody's update is lost there is no largest; then the round's mask decides.
        bits = jnp.where(weight > 0, total.max, bits_of(tree.count(mask, signal)))
        uses = jnp.sum(jnp.where(air.sends, jnp.ceil(bits / air.state.rate), 0.0))
        seconds = uses / bandwidth
        cost = Cost(uses, jnp.int32(0), jnp.float32(0.0), seconds, power * seconds)
        return tree.mean(signal, weight), cost

    return Uplink(prepare, encode, finish)


def _rounded(key: Key, values: Params, bits: int) -> Params:
    """Unbiased random rounding to 2^bits - 1 points over [-max, max]."""
    leaves, treedef = jax.tree.flatten(values)
    largest = jnp.max(jnp.array([jnp.max(jnp.abs(v)) for v in leaves]))
    step = jnp.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1.0)
    keys = jax.random.split(key, len(leaves))
    rounded = [
        step * jnp.floor(v / step + jax.random.uniform(k, v.shape))
        for k, v in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, rounded)
