"""Networks for small images."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as linen
import jax

from fedprune import nn
from fedprune.models.adapters import from_linen
from fedprune.types import Model


class _Mlp(linen.Module):
    hidden: tuple[int, ...]
    classes: int

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = linen.relu(linen.Dense(width)(x))
        return linen.Dense(self.classes)(x)


class _Block(linen.Module):
    """ReLU of the maximum over 2×2 of a convolution with bias.

    The maximum comes first, since it commutes with the other two, which then work on a quarter.
    """

    features: int
    kernel: int

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", linen.initializers.lecun_normal(), shape)
        bias = self.param("bias", linen.initializers.zeros, shape[-1:])
        x = nn.max_pool(nn.conv(x, kernel), 2)
        return linen.relu(x + bias.reshape(1, 1, 1, -1))


class _Cnn(linen.Module):
    filters: tuple[int, ...]
    kernel: int
    hidden: tuple[int, ...]
    classes: int

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, width in enumerate(self.filters):
            x = _Block(width, self.kernel, name=f"Conv_{i}")(x)
        return _Mlp(self.hidden, self.classes, name="head")(x)


def mlp(
    hidden: Sequence[int] = (200,),
    classes: int = 10,
    input_shape: Sequence[int] = (28, 28, 1),
) -> Model:
    """Dense layers with ReLU between them; the defaults have 159,010 parameters."""
    return from_linen(_Mlp(tuple(hidden), classes), input_shape)


def cnn(
    filters: Sequence[int] = (8, 16),
    kernel: int = 3,
    hidden: Sequence[int] = (32,),
    classes: int = 10,
    input_shape: Sequence[int] = (28, 28, 1),
) -> Model:
    """Blocks of convolution ("SAME"), ReLU and 2×2 max-pooling, then dense layers.

    ``filters=(32, 64), kernel=5, hidden=(128,)`` is the network of P4 section V.

    Raises:
      ValueError: examples that are not [height, width, channels], or more blocks than they can be
        halved.
    """
    if len(input_shape) != 3:
        raise ValueError(f"cnn: examples must be images, not of shape {tuple(input_shape)}")
    return from_linen(_Cnn(tuple(filters), kernel, tuple(hidden), classes), input_shape)
