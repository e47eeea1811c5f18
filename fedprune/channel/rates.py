"""What an ideal digital code would deliver: rates in bits per complex symbol, linear SNR S.

    capacity           log2(1 + S)
    outage             P(log2(1 + |h|^2 S) < R) = 1 - exp(-(2^R - 1) / S)        slow Rayleigh
    ergodic_capacity   E log2(1 + |h|^2 S) = e^(1/S) E1(1/S) / ln 2

A model of A(bits) accuracy, sent in b symbols:

    fixed_rate         exp(-(2^R - 1) / S) A(b R)         receiver knows h; an outage counts as zero
    adaptive_rate      E_h A(b log2(1 + |h|^2 S))         transmitter knows h too

Source: P3 section VII-A, its two separation-based baselines.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fedprune import check

Curve = Callable[[jax.Array], jax.Array]
"""bits -> accuracy, elementwise"""


def capacity(snr: jax.Array | float) -> jax.Array:
    """Bits per symbol over AWGN."""
    check.numbers("snr", snr, 0)
    return jnp.log1p(jnp.asarray(snr, jnp.float32)) / jnp.log(2.0)


def outage(rate: jax.Array | float, snr: jax.Array | float) -> jax.Array:
    """Probability that slow Rayleigh fading does not carry ``rate``."""
    check.numbers("snr", snr, above=0)
    return -jnp.expm1(-_needed(rate) / snr)


def ergodic_capacity(snr: jax.Array | float) -> jax.Array:
    """Mean capacity over Rayleigh fading, for S > 0."""
    check.numbers("snr", snr, above=0)
    x = 1.0 / jnp.asarray(snr, jnp.float32)
    near = jnp.minimum(x, 20.0)
    exact = jnp.exp(near) * jax.scipy.special.exp1(near)
    far = jnp.maximum(x, 20.0)
    # Continued fraction of e^x E1(x): relative error below 1e-7 from x = 20.
    fraction = far
    for k in range(12, 0, -1):
        fraction = far + k / (1.0 + k / fraction)
    return jnp.where(x < 20.0, exact, 1.0 / fraction) / jnp.log(2.0)


def step_curve(bits: ArrayLike, accuracies: ArrayLike) -> Curve:
    """Accuracy of the largest of some measured models that fits, 0 where none does.

    Args:
      bits: [m] increasing sizes.
      accuracies: [m] as shares or in percent

    Raises:
      ValueError: sizes that do not increase, or not as many accuracies; accuracies that are none.
    """
    check.numbers("bits", bits, 0)
    check.numbers("accuracies", accuracies, 0, 100)
    sizes, levels = np.asarray(bits, np.float32), np.asarray(accuracies, np.float32)
    if sizes.ndim != 1 or sizes.shape != levels.shape or not (np.diff(sizes) > 0).all():
        raise ValueError("bits must increase, with one accuracy for each")
    known = jnp.asarray(np.concatenate([np.zeros(1, np.float32), levels]))
    return lambda size: known[jnp.searchsorted(jnp.asarray(sizes), size, side="right")]


def fixed_rate(
    rate: jax.Array | float, snr: jax.Array | float, symbols: jax.Array | float, curve: Curve
) -> jax.Array:
    """Mean accuracy over slow Rayleigh fading at a fixed rate R, with b = ``symbols``."""
    check.numbers("snr", snr, above=0)
    check.numbers("symbols", symbols, 0)
    rate = jnp.asarray(rate, jnp.float32)
    return jnp.exp(-_needed(rate) / snr) * curve(symbols * rate)


def adaptive_rate(
    snr: jax.Array | float, symbols: jax.Array | float, curve: Curve, points: int = 4096
) -> jax.Array:
    """Mean accuracy where the transmitter always sends at capacity.

    By the midpoint rule over the ``points`` quantiles of |h|^2, which holds for steps too: each of
    them is misplaced by at most 1 / (2 points) of probability.
    """
    check.whole("points", points, 1)
    check.numbers("snr", snr, 0)
    check.numbers("symbols", symbols, 0)
    quantiles = (np.arange(points) + 0.5) / points
    gains = jnp.asarray(-np.log1p(-quantiles), jnp.float32)
    return curve(symbols * capacity(gains * snr)).mean()


def _needed(rate: jax.Array | float) -> jax.Array:
    """2^R - 1, the SNR that the rate needs."""
    check.numbers("rate", rate, above=0)
    return jnp.expm1(jnp.asarray(rate, jnp.float32) * jnp.log(2.0))
