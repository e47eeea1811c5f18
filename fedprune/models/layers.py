"""The bridge from flax's layers to ours."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as linen
import jax
import jax.numpy as jnp

from fedprune import nn
from fedprune.types import Model, Params


def conv(features: int, kernel: Sequence[int], strides: int = 1, **options) -> linen.Conv:
    """A flax convolution that runs on ``nn.conv``."""
    return linen.Conv(
        features, tuple(kernel), strides, conv_general_dilated=_conv_general_dilated, **options
    )


def from_flax(module: linen.Module, example_shape: Sequence[int]) -> Model:
    """A flax module with parameters only (no mutable state) as a ``Model``.

    Args:
      module: takes x [b, *example_shape], returns logits.
      example_shape: shape of one example.
    """
    example = jnp.zeros((1, *example_shape), jnp.float32)

    def apply(params: Params, x: jax.Array) -> jax.Array:
        logits = module.apply({"params": params}, x)
        assert isinstance(logits, jax.Array)
        return logits

    return Model(lambda key: module.init(key, example)["params"], apply)


def _conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, window_strides, padding, *, lhs_dilation, rhs_dilation, **rest
) -> jax.Array:
    """What flax calls; ``nn.conv`` has no dilation and no groups, which flax passes as ones."""
    if {*lhs_dilation, *rhs_dilation, rest["feature_group_count"]} != {1}:
        raise ValueError("conv: dilated and grouped convolutions are not supported")
    return nn.conv(lhs, rhs, window_strides, padding)
