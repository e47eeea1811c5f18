"""Layers of flax linen that our networks share, and networks of others may use."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as linen
import jax
from jax import lax

from fedprune import nn


def conv(features: int, kernel: Sequence[int], strides: int = 1, **options) -> linen.Conv:
    """A flax convolution that runs on ``nn.conv``."""
    return linen.Conv(
        features, tuple(kernel), strides, conv_general_dilated=_conv_general_dilated, **options
    )


class BatchNorm(linen.Module):
    """Batch normalisation of each channel, as ``nn.batch_norm`` has it; x is [b, ..., channels].

    With ``running``, the parameters "statistics/mean" and "statistics/var" follow the batches' mean
    and (biased) variance while training, m <- momentum m + (1 - momentum) mean, and take their
    place otherwise. They are sent and averaged as weights are (``types.Model.train``), and a module
    that has them is given to ``from_linen`` with ``running=True``. Without ``running``, every batch
    is normalised by its own, and there are no such parameters.
    """

    running: bool = True
    momentum: float = 0.9
    epsilon: float = 1e-5

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        channels = x.shape[-1:]
        scale = self.param("scale", linen.initializers.ones, channels)
        bias = self.param("bias", linen.initializers.zeros, channels)
        moments = None
        if self.running:
            axes = tuple(range(x.ndim - 1))
            here = x.mean(axes), x.var(axes)
            kept = _Running(self.momentum, name="statistics")(*here, train)
            moments = here if train else kept
        return nn.batch_norm(x, scale, bias, moments, self.epsilon)


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


def _conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, window_strides, padding, *, lhs_dilation, rhs_dilation, **rest
) -> jax.Array:
    """What flax calls; ``nn.conv`` has no dilation and no groups, which flax passes as ones."""
    if {*lhs_dilation, *rhs_dilation, rest["feature_group_count"]} != {1}:
        raise ValueError("conv: dilated and grouped convolutions are not supported")
    return nn.conv(lhs, rhs, window_strides, padding)
