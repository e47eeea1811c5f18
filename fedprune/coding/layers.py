"""From a model's layers to one vector of symbols within the power budget, and back.

Layer i of d_i weights with energy E_i = ||w_i||^2 is scaled to unit mean square, coded with r_i
symbols a weight, and scaled by alpha_i rms(w_i). For every code the energy sent is

    sum_i alpha_i^2 r_i E_i = P_real sum_i r_i d_i

with P_real the budget per real symbol, averaged over the symbols that are really sent. A weight
that is repeated r_i times is so received with noise deviation sigma_real / (alpha_i sqrt(r_i)). P3
takes one alpha for all layers; ``amplitudes`` also knows the ones that minimise sum_i s_i d_i
sigma_real^2 / (alpha_i^2 r_i), alpha_i^2 proportional to sqrt(s_i d_i / E_i) / r_i.

The receiver needs alpha_i rms(w_i) for every layer, and rms(w_i): ``Side``, sent without error
beside the symbols and billed as reals.

Source: P3 sections III-A (power) and V (expansion).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedprune import check
from fedprune.coding.code import Code


class Side(NamedTuple):
    """What the receiver must know besides the symbols: 2 L reals."""

    amplitude: jax.Array
    """[L] alpha_i"""
    rms: jax.Array
    """[L] root mean square of the layer's weights"""

    @property
    def reals(self) -> int:
        """How many real numbers it takes."""
        return self.amplitude.size + self.rms.size


def amplitudes(
    energy: jax.Array,
    sizes: jax.Array,
    repeats: jax.Array,
    power: jax.Array | float = 1.0,
    sensitivity: jax.Array | None = None,
) -> jax.Array:
    """alpha_i [L], float32.

    Args:
      energy: [L] E_i; where it is 0 (a layer of zeros) nothing is sent.
      sizes: [L] d_i.
      repeats: [L] r_i.
      power: P_real.
      sensitivity: [L] s_i > 0, for the allocation that weighs errors by it; None: one alpha.
    """
    check.numbers("energy", energy, 0)
    check.numbers("sizes", sizes, 0)
    check.numbers("repeats", repeats, 1)
    check.number("power", power, 0)
    if sensitivity is not None:
        check.numbers("sensitivity", sensitivity, above=0)
    energy = jnp.asarray(energy, jnp.float32)
    sizes, repeats = jnp.asarray(sizes, jnp.float32), jnp.asarray(repeats, jnp.float32)
    shape = jnp.ones_like(energy)
    if sensitivity is not None:
        per_energy = sensitivity * sizes / jnp.where(energy > 0, energy, 1.0)
        shape = jnp.sqrt(per_energy) / repeats
    sent = jnp.sum(shape * repeats * energy)
    budget = power * jnp.sum(repeats * sizes)
    return jnp.sqrt(shape * jnp.where(sent > 0, budget / sent, 0.0))


def root_mean_square(energy: jax.Array, sizes: jax.Array) -> jax.Array:
    """rms(w_i) [L] of layers of energy E_i [L] and d_i [L] weights; 0 where there is none."""
    return jnp.sqrt(energy / jnp.maximum(jnp.asarray(sizes, jnp.float32), 1.0))


def encode_layers(
    layers: Sequence[jax.Array],
    codes: Sequence[Code],
    power: jax.Array | float = 1.0,
    sensitivity: jax.Array | None = None,
    sizes: jax.Array | None = None,
) -> tuple[jax.Array, Side]:
    """All layers as one vector of real symbols.

    Args:
      layers: L arrays of weights, of any shapes.
      codes: one for each.
      power: P_real, the mean square of all symbols that are sent.
      sensitivity: as for ``amplitudes``.
      sizes: [L] d_i, how many weights of each layer are sent, where some are pruned: they are zero,
        and so are their symbols, which keep their places here. None: all.

    Returns:
      symbols [sum_i r_i d_i], and the side information.
    """
    energy = jnp.stack([jnp.square(w).sum() for w in layers])
    if sizes is None:
        sizes = jnp.asarray([w.size for w in layers], jnp.float32)
    repeats = jnp.stack([jnp.asarray(c.repeats, jnp.float32) for c in codes])
    rms = root_mean_square(energy, sizes)
    alpha = amplitudes(energy, sizes, repeats, power, sensitivity)
    parts = []
    for i, (w, code) in enumerate(zip(layers, codes, strict=True)):
        unit = w.reshape(-1) / jnp.where(rms[i] > 0, rms[i], 1.0)
        parts.append(alpha[i] * rms[i] * code.encode(unit).reshape(-1))
    return jnp.concatenate(parts), Side(alpha, rms)


def sent(masks: Sequence[jax.Array], codes: Sequence[Code]) -> jax.Array:
    """Which of the symbols of ``encode_layers`` are sent, [sum_i r_i d_i] bool.

    Args:
      masks: of the layers, bool arrays of their shapes: weights that are kept.
      codes: one for each.
    """
    parts = [
        (mask.reshape(-1, 1) & (jnp.arange(code.symbols) < code.repeats)[None]).reshape(-1)
        for mask, code in zip(masks, codes, strict=True)
    ]
    return jnp.concatenate(parts)


def decode_layers(
    received: jax.Array,
    side: Side,
    codes: Sequence[Code],
    shapes: Sequence[tuple[int, ...]],
    variance: jax.Array | float,
) -> list[jax.Array]:
    """The layers from received symbols [n] with noise variance sigma_real^2 each."""
    layers, start = [], 0
    for i, (code, shape) in enumerate(zip(codes, shapes, strict=True)):
        count = math.prod(shape) * code.symbols
        part = received[start : start + count].reshape(-1, code.symbols)
        scale = side.amplitude[i] * side.rms[i]
        scale = jnp.where(scale > 0, scale, 1.0)
        unit = code.decode(part / scale, variance / jnp.square(scale))
        layers.append((side.rms[i] * unit).reshape(shape))
        start += count
    return layers
