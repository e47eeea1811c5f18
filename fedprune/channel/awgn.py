"""Additive white Gaussian noise, and how real weights are packed into complex symbols.

SNR = P / no, with P the power budget per complex symbol and no the noise variance per *complex*
symbol (half of it per real dimension). Two packings:

  complex  two weights per symbol, in phase and in quadrature: each real gets power P/2 and noise
           no/2, so its noise-to-signal ratio is 1/SNR, and d weights need ceil(d/2) symbols
  real     one weight per symbol, in phase, with the whole power P against noise no/2: half the
           noise-to-signal ratio (+3 dB) for d symbols
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fedprune import check, tree
from fedprune.types import Key, Mask, Params

PACKINGS = ("complex", "real")


def noise_to_signal(snr_db: jax.Array | float, packing: str) -> jax.Array:
    """Noise variance per real dimension over its power budget, s^2."""
    check.numbers("snr_db", snr_db, above=-check.INFINITY, infinite=True)
    return 10.0 ** (-jnp.asarray(snr_db, jnp.float32) / 10.0) / (
        1.0 if packing == "complex" else 2.0
    )


def channel_uses(reals: jax.Array, packing: str) -> jax.Array:
    """Complex symbols for a number of real values, [] int32."""
    return (reals + 1) // 2 if packing == "complex" else reals


def noise(key: Key, like: Params, mask: Mask) -> Params:
    """Standard normal noise on the weights that were sent, zero elsewhere."""
    flat, unravel = ravel_pytree(like)
    return tree.apply_mask(mask, unravel(jax.random.normal(key, flat.shape, flat.dtype)))


def rotate(factor: jax.Array, signal: Params, packing: str) -> Params:
    """The receiver's view of a client's symbols after multiplication by a complex factor.

    With complex packing, weight i and weight i + d/2 of the flattened signal share a symbol, and a
    factor that is not real mixes them. With real packing only the in-phase part is read.
    """
    if packing == "real":
        return jax.tree.map(lambda v: factor.real * v, signal)
    flat, unravel = ravel_pytree(signal)
    half = (flat.size + 1) // 2
    pairs = jnp.pad(flat, (0, 2 * half - flat.size)).reshape(2, half)
    symbols = factor.astype(jnp.complex64) * jax.lax.complex(pairs[0], pairs[1])
    received = jnp.concatenate([symbols.real, symbols.imag])
    return unravel(received[: flat.size])
