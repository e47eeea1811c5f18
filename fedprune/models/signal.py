"""A network for windows of a signal."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as linen
import jax

from fedprune import nn
from fedprune.models import layers
from fedprune.models.adapters import from_linen
from fedprune.types import Model


class _Signal(linen.Module):
    filters: tuple[int, ...]
    kernel: int
    stem_kernel: int
    stem_stride: int
    hidden: tuple[int, ...]
    classes: int

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, width in enumerate(self.filters):
            kernel, stride = (self.kernel, 1) if i else (self.stem_kernel, self.stem_stride)
            x = layers.conv(width, (kernel,), stride)(x)
            x = nn.max_pool(linen.relu(x), 2)
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = linen.relu(linen.Dense(width)(x))
        return linen.Dense(self.classes)(x)


def signal(
    filters: Sequence[int] = (16, 32, 64),
    kernel: int = 5,
    stem_kernel: int = 64,
    stem_stride: int = 8,
    hidden: Sequence[int] = (32,),
    classes: int = 16,
    input_shape: Sequence[int] = (1024, 1),
) -> Model:
    """A 1-D CNN whose first kernels are wide, as filters of raw vibration should be.

    Blocks of convolution ("SAME"), ReLU and max-pooling by 2, the first with ``stem_kernel`` taps
    and stride ``stem_stride``, the others with ``kernel`` taps; then dense layers. The defaults
    have 47,264 parameters. The wide first layer: Zhang et al. (2017), "A new deep learning model
    for fault diagnosis with good anti-noise and domain adaptation ability".

    Raises:
      ValueError: examples that are not [samples, channels], or more blocks than they can be halved.
    """
    if len(input_shape) != 2:
        raise ValueError(f"signal: examples must be [samples, channels], not {tuple(input_shape)}")
    net = _Signal(tuple(filters), kernel, stem_kernel, stem_stride, tuple(hidden), classes)
    return from_linen(net, input_shape)
