"""Training for a range of SNRs: which SNR a step is for, and networks that follow it.

    sandwich       steps take SNR_min, SNR_max and a uniform draw from between, in turns
    interpolated   w = alpha w_low + (1 - alpha) w_high, alpha(SNR) from 1 at SNR_min to 0 at
                   SNR_max: two boundary networks are stored, and trained in turns and together.
                   The gradient reaches them as alpha : 1 - alpha.

With x = (SNR - SNR_min) / (SNR_max - SNR_min) in dB, clipped to [0, 1], 1 - alpha is a quadratic
Bezier curve from (0, 0) to (1, 1) with its control point at (bend, 1 - bend): x itself at 1/2,
convex above and concave below.

Source: P3 section VI; (6) for bend = 1/2.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedprune import check
from fedprune.types import Key, Params

Number = jax.Array | float


def sandwich(low_db: Number, high_db: Number) -> Callable[[Key, jax.Array], jax.Array]:
    """(key, number of the step) -> SNR in dB; one SNR where low and high are equal.

    Args:
      low_db: SNR_min; may be traced.
      high_db: SNR_max.
    """
    check.number("low_db", low_db)
    check.number("high_db", high_db)

    def snr_db(key: Key, number: jax.Array) -> jax.Array:
        low, high = jnp.asarray(low_db, jnp.float32), jnp.asarray(high_db, jnp.float32)
        between = low + (high - low) * jax.random.uniform(key)
        turn = number % 3
        return jnp.where(turn == 0, low, jnp.where(turn == 1, high, between))

    return snr_db


def share_of_high(snr_db: Number, low_db: Number, high_db: Number, bend: Number = 0.5) -> jax.Array:
    """1 - alpha, the share of the network for high SNR, [].

    Args:
      snr_db: that the network is for.
      low_db: SNR_min.
      high_db: SNR_max, above SNR_min.
      bend: 0 < bend < 1, 1/2 is linear.
    """
    check.numbers("snr_db", snr_db)
    _bounds(low_db, high_db, bend)
    low, high = jnp.asarray(low_db, jnp.float32), jnp.asarray(high_db, jnp.float32)
    b = jnp.asarray(bend, jnp.float32)
    x = jnp.clip((snr_db - low) / (high - low), 0.0, 1.0)
    u = x / jnp.where(x > 0, b + jnp.sqrt(b * b + (1.0 - 2.0 * b) * x), 1.0)
    return 2.0 * u * (1.0 - u) * (1.0 - b) + u * u


def pair(params: Params) -> Params:
    """Boundary networks that both start from ``params``; a mask is paired alike."""
    return {"low": params, "high": params}


def interpolated(
    low_db: Number, high_db: Number, bend: Number = 0.5
) -> Callable[[Params, jax.Array], Params]:
    """(pair of params, SNR) -> the network for this SNR."""
    _bounds(low_db, high_db, bend)

    def network(params: Params, snr_db: jax.Array) -> Params:
        share = share_of_high(snr_db, low_db, high_db, bend)
        mix = lambda a, b: (1.0 - share) * a + share * b
        return jax.tree.map(mix, params["low"], params["high"])

    return network


def _bounds(low_db: Number, high_db: Number, bend: Number) -> None:
    check.number("low_db", low_db)
    check.number("high_db", high_db)
    if not isinstance(low_db, jax.core.Tracer):
        check.number("high_db", high_db, above=float(low_db))
    check.number("bend", bend, above=0, below=1)
