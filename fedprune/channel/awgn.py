"""Additive white Gaussian noise on symbols that carry weights.

SNR = P / no, with P the power budget per complex symbol and no the noise variance per *complex*
symbol (half of it per real dimension). With packing "complex" (``channel.packing``) each real gets
power P/2 and noise no/2, so its noise-to-signal ratio is 1/SNR; with "real" the whole power P
against noise no/2: half the noise-to-signal ratio (+3 dB) for twice the symbols.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedprune import check, rng, tree
from fedprune.types import Key, Mask, Params


def from_db(decibel: jax.Array | float) -> jax.Array:
    """10^(x/10), float32."""
    return 10.0 ** (jnp.asarray(decibel, jnp.float32) / 10.0)


def noise_to_signal(snr_db: jax.Array | float, packing: str) -> jax.Array:
    """Noise variance per real dimension over its power budget, s^2."""
    check.numbers("snr_db", snr_db, above=-check.INFINITY, infinite=True)
    return from_db(-jnp.asarray(snr_db, jnp.float32)) / (1.0 if packing == "complex" else 2.0)


def noise(key: Key, like: Params, mask: Mask) -> Params:
    """Standard normal noise on the weights that were sent, zero elsewhere.

    The address of an array's noise is the array's path, so no array has to know of the others.
    """

    def one(path, leaf: jax.Array) -> jax.Array:
        return jax.random.normal(rng.stream(key, tree.path_name(path)), leaf.shape, leaf.dtype)

    return tree.apply_mask(mask, jax.tree_util.tree_map_with_path(one, like))
