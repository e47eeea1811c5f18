"""The bridge from flax's layers to ours."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as linen
import jax
import jax.numpy as jnp
from jax import lax

from fedprune import nn
from fedprune.types import Key, Model, Params


def conv(features: int, kernel: Sequence[int], strides: int = 1, **options) -> linen.Conv:
    """A flax convolution that runs on ``nn.conv``."""
    return linen.Conv(
        features, tuple(kernel), strides, conv_general_dilated=_conv_general_dilated, **options
    )


class BatchNorm(linen.Module):
    """Batch normalisation of each channel, (x - mean) / sqrt(var + epsilon) * scale + bias.

    Mean and (biased) variance are over all axes but the last. With ``running``, the parameters
    "statistics/mean" and "statistics/var" follow them while training, m <- momentum m +
    (1 - momentum) mean, and take their place otherwise; a negative variance counts as zero. Without
    ``running``, every batch is normalised by its own, and there are no such parameters. Follows
    Ioffe and Szegedy, Batch Normalization, 2015.
    """

    running: bool = True
    momentum: float = 0.9
    epsilon: float = 1e-5

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1:]
        scale = self.param("scale", linen.initializers.ones, channels)
        bias = self.param("bias", linen.initializers.zeros, channels)
        axes = tuple(range(x.ndim - 1))
        mean, var = x.mean(axes), x.var(axes)
        if self.running:
            kept = _Running(self.momentum, name="statistics")(mean, var, train)
            mean, var = (mean, var) if train else kept
        factor = scale * lax.rsqrt(jnp.maximum(var, 0.0) + self.epsilon)
        # Ranks are made equal by hand: implicit promotion of ranks is an error in the tests.
        spread = (1,) * len(axes) + channels
        return (x - mean.reshape(spread)) * factor.reshape(spread) + bias.reshape(spread)


class _Running(linen.Module):
    """Running mean and variance as parameters, which ``train`` changes."""

    momentum: float

    @linen.compact
    def __call__(self, mean: jax.Array, var: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        initial = {"mean": linen.initializers.zeros, "var": linen.initializers.ones}
        old = {name: self.param(name, f, mean.shape) for name, f in initial.items()}
        if train:
            for name, value in (("mean", mean), ("var", var)):
                new = self.momentum * old[name] + (1.0 - self.momentum) * value
                self.put_variable("params", name, lax.stop_gradient(new))
        return old["mean"], old["var"]


def from_flax(module: linen.Module, example_shape: Sequence[int], running: bool = False) -> Model:
    """A flax module with parameters only as a ``Model``.

    Args:
      module: takes x [b, *example_shape], returns logits; has no collection but "params".
      example_shape: shape of one example.
      running: the module has running statistics, parameters below "statistics", and takes a second
        argument ``train``; with True it uses the batch's and changes the running ones, as
        ``BatchNorm`` does.
    """
    example = jnp.zeros((1, *example_shape), jnp.float32)

    def apply(params: Params, x: jax.Array) -> jax.Array:
        logits = module.apply({"params": params}, x)
        assert isinstance(logits, jax.Array)
        return logits

    def train(params: Params, x: jax.Array) -> tuple[jax.Array, Params]:
        logits, after = module.apply({"params": params}, x, True, mutable=["params"])
        assert isinstance(logits, jax.Array)
        return logits, after["params"]

    def init(key: Key) -> Params:
        return module.init(key, example)["params"]

    return Model(init, apply, train if running else None)


def _conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, window_strides, padding, *, lhs_dilation, rhs_dilation, **rest
) -> jax.Array:
    """What flax calls; ``nn.conv`` has no dilation and no groups, which flax passes as ones."""
    if {*lhs_dilation, *rhs_dilation, rest["feature_group_count"]} != {1}:
        raise ValueError("conv: dilated and grouped convolutions are not supported")
    return nn.conv(lhs, rhs, window_strides, padding)
