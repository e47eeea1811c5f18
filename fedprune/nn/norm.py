"""Batch normalisation as one function."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    moments: tuple[jax.Array, jax.Array] | None = None,
    epsilon: float = 1e-5,
) -> jax.Array:
    """Every channel normalised, (x - mean) / sqrt(var + epsilon) * scale + bias.

    Without ``moments`` a batch is normalised by its own mean and biased variance, in the evaluation
    too: nothing is kept from batch to batch, so nothing but ``scale`` and ``bias`` is sent. That is
    the static batch normalisation of HeteroFL (Diao et al., 2021). Follows Ioffe and Szegedy,
    Batch Normalization, 2015.

    Args:
      x: [b, ..., channels].
      scale: [channels].
      bias: [channels].
      moments: (mean, variance), each [channels], to take in place of the batch's; a negative
        variance counts as zero.
      epsilon: is added to the variance.

    Returns:
      [b, ..., channels].
    """
    axes = tuple(range(x.ndim - 1))
    mean, var = (x.mean(axes), x.var(axes)) if moments is None else moments
    factor = scale * lax.rsqrt(jnp.maximum(var, 0.0) + epsilon)
    # Ranks are made equal by hand: implicit promotion of ranks is an error in the tests.
    spread = (1,) * len(axes) + x.shape[-1:]
    return (x - mean.reshape(spread)) * factor.reshape(spread) + bias.reshape(spread)
