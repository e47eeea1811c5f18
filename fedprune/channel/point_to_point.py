"""One transmitter, one receiver: a block of real symbols over AWGN or slow fading.

    y = h x + z,   z ~ CN(0, no),   mean |x|^2 = 1 over the block,   SNR = 1 / no

h is one complex gain for the whole block: 1, or CN(0, 1) (slow Rayleigh fading, h_true). The
receiver knows h_hat = h + e with e ~ CN(0, sigma_e^2), 0 for perfect channel knowledge, and
equalises by h_hat^* / |h_hat|^2. With e = 0 what it has is x + z / h: noise no / |h|^2, whose mean
over Rayleigh fading is infinite: draws of the *noise power* are summarised by medians. The accuracy
of what was delivered is bounded, and P3's measure of it is the mean over noise and fading.

Packing (``channel.packing``) says how many reals a symbol carries; the budget per real is then

    complex   P_real = 1/2, sigma_real^2 = no / 2    two reals a symbol
    real      P_real = 1,   sigma_real^2 = no / 2    one, and the receiver reads the in-phase part

Source: P3 section III-A, which prints the equaliser h^* / |h|: that does not give the result stated
beside it. It does not say how many reals a symbol carries.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedprune import check
from fedprune.channel import packing as packed
from fedprune.channel.awgn import from_db
from fedprune.channel.fading import Gains
from fedprune.types import Key

_POWER = {"complex": 0.5, "real": 1.0}


def real_power(packing: str) -> float:
    """P_real, the mean square of a real symbol at full budget.

    Raises:
      ValueError: an unknown packing.
    """
    if packing not in _POWER:
        raise ValueError(f"packing={packing!r} is not one of {tuple(_POWER)}")
    return _POWER[packing]


def real_noise(snr_db: jax.Array | float) -> jax.Array:
    """sigma_real^2, the noise variance of a real dimension before the equaliser, []."""
    check.numbers("snr_db", snr_db, above=-check.INFINITY, infinite=True)
    return 0.5 * from_db(-jnp.asarray(snr_db, jnp.float32))


def clear() -> Gains:
    """h = 1, known: AWGN alone."""
    one = jnp.complex64(1.0)
    return Gains(one, one)


def slow_rayleigh(key: Key, csi_error: jax.Array | float = 0.0) -> Gains:
    """h ~ CN(0, 1) of one block and what the receiver knows of it; ``vmap`` over keys for many.

    Args:
      csi_error: sigma_e^2, variance of the estimate's error.
    """
    check.number("csi_error", csi_error, 0)
    parts = jax.random.normal(key, (2, 2)) * jnp.sqrt(0.5)
    true, error = jax.lax.complex(parts[0], parts[1])
    if isinstance(csi_error, int | float) and csi_error == 0:
        return Gains(true, true)
    deviation = jnp.sqrt(jnp.asarray(csi_error, jnp.float32))
    return Gains(true, true + deviation.astype(jnp.complex64) * error)


def transmit(
    key: Key,
    symbols: jax.Array,
    snr_db: jax.Array | float,
    packing: str,
    gains: Gains,
    sent: jax.Array | None = None,
) -> jax.Array:
    """The block after channel and equaliser.

    An equaliser that is off by an angle mixes the two reals of a symbol (``channel.packing``). The
    law of the noise does not change with the angle, so it is drawn for each real after it.

    Args:
      key: of the noise.
      symbols: [n] real symbols of mean square P_real (the caller's normalisation; power is not
        touched here).
      snr_db: 1 / no in dB; may be traced.
      packing: "complex" or "real".
      gains: h and h_hat, [] each.
      sent: [n] bool, which of the reals are sent and so share symbols; the others are zero, and
        what is returned for them is noise alone. None: all.

    Returns:
      [n] real symbols, with noise variance ``noise_after(snr_db, gains)`` if the channel is known.

    Raises:
      ValueError: an unknown packing.
    """
    real_power(packing)
    signal = symbols
    if gains.known is not gains.true:  # else the equaliser undoes h
        pairs = packed.pairs(sent) if packing == "complex" else None
        signal = packed.rotate(gains.true / gains.known, symbols, packing, pairs)
    deviation = jnp.sqrt(noise_after(snr_db, gains))
    return signal + deviation * jax.random.normal(key, symbols.shape)


def noise_after(snr_db: jax.Array | float, gains: Gains) -> jax.Array:
    """Noise variance of a real symbol after the equaliser, as the receiver computes it, []."""
    return real_noise(snr_db) / jnp.square(jnp.abs(gains.known))


def weight_deviation(
    amplitude: jax.Array,
    repeats: jax.Array,
    snr_db: jax.Array | float,
    gain: jax.Array | float = 1.0,
) -> jax.Array:
    """Standard deviation of the noise on the weights of each layer, [L].

    sigma_real / (|h| alpha_i sqrt(r_i)) for weights that are sent r_i times with amplitude alpha_i
    and averaged. No gradient flows through alpha: training with injected noise must not learn to
    shrink the noise by way of the normalisation.

    Args:
      amplitude: [L] alpha_i, for the power budget of the packing.
      repeats: [L] r_i.
      gain: |h|.
    """
    check.numbers("repeats", repeats, 1)
    check.numbers("gain", gain, above=0)
    amplitude = jax.lax.stop_gradient(amplitude)
    return jnp.sqrt(real_noise(snr_db)) / (gain * amplitude * jnp.sqrt(jnp.asarray(repeats, "f4")))
