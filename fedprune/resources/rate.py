"""Rates of an OFDMA uplink, in which every device has a share of the band to itself.

    R_n = b_n r_n,   r_n = B log2(1 + g_n p_n / sigma^2)                   P2 (10), P4 (9)

b_n is the device's share of the band of B Hz, g_n its power gain, p_n its power in W and sigma^2
the noise power in W. Both papers keep sigma^2 the same whatever the share, as if a device received
the noise of the whole band, and R is linear in b. Physically the noise shrinks with the share while
the power does not: R_n = b_n B log2(1 + g_n p_n / (b_n sigma^2)) with sigma^2 = N0 B. That rate is
larger, by a factor that grows as the share shrinks. The allocation needs the linear one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedprune import check


def full_rate(
    gain: jax.Array,
    power: jax.Array | float,
    noise: jax.Array | float,
    bandwidth: jax.Array | float,
) -> jax.Array:
    """r_n: bits a second over the whole band; arguments in the gains' shape or scalar."""
    check.numbers("gain", gain, 0)
    check.numbers("power", power, 0)
    check.numbers("noise", noise, above=0)
    check.numbers("bandwidth", bandwidth, above=0)
    return bandwidth * _log2_1p(gain * power / noise)


def rate(
    share: jax.Array,
    gain: jax.Array,
    power: jax.Array | float,
    noise: jax.Array | float,
    bandwidth: jax.Array | float,
    scaled: bool = False,
) -> jax.Array:
    """R_n in bits a second; 0 where the share is 0.

    Args:
      share: b_n in [0, 1].
      gain: g_n, of the same shape.
      power: p_n in W.
      noise: sigma^2, the noise power over the whole band in W.
      bandwidth: B in Hz.
      scaled: whether a device gets the noise of its own share only, b_n sigma^2.
    """
    check.numbers("share", share, 0, 1)
    if not scaled:
        return share * full_rate(gain, power, noise, bandwidth)
    heard = jnp.where(share > 0, share, 1.0)
    return share * full_rate(gain, power, heard * noise, bandwidth)


def watts(power_dbm: float) -> float:
    """Power in W of a power in dBm."""
    check.number("power_dbm", power_dbm)
    return 10.0 ** ((power_dbm - 30.0) / 10.0)


def _log2_1p(snr: jax.Array) -> jax.Array:
    """log2(1 + x), exact for small x too."""
    return jnp.log1p(snr) / jnp.log(2.0)
