"""Small-VGG16: the convolutions of VGG16 before a smaller classifier.

Stages of 3×3 convolutions with bias, each followed by ReLU, and a 2×2 max-pooling after each stage;
then dense layers. With 3 channels of 32×32 pixels and 10 classes that is

    13 convolutions 14,714,688 + dense layers 512, 512, 10: 530,442 = 15,245,130 parameters.

Source: Simonyan and Zisserman, Very Deep Convolutional Networks, 2015 (configuration D), with the
head of P3 section VII-A. There is no normalisation, so kernels start with He's variance.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as linen
import jax

from fedprune import nn
from fedprune.models import layers
from fedprune.models.adapters import from_linen
from fedprune.types import Model

VGG_DEPTHS = (2, 2, 3, 3, 3)
"""convolutions of each stage of VGG16"""
_init = linen.initializers.he_normal()


class _Vgg(linen.Module):
    stages: tuple[tuple[int, ...], ...]
    hidden: tuple[int, ...]
    classes: int

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for s, widths in enumerate(self.stages, 1):
            for i, width in enumerate(widths, 1):
                x = layers.conv(width, (3, 3), kernel_init=_init, name=f"conv{s}_{i}")(x)
                x = linen.relu(x)
            x = nn.max_pool(x, 2)
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden, 1):
            x = linen.relu(linen.Dense(width, kernel_init=_init, name=f"dense{i}")(x))
        return linen.Dense(self.classes, name="head")(x)


def vgg(
    stages: Sequence[Sequence[int]],
    hidden: Sequence[int] = (512, 512),
    classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
) -> Model:
    """A network like VGG with any widths, for example those that pruning left.

    Args:
      stages: filters of every convolution, stage by stage.
      hidden: widths of the hidden dense layers.
      classes: outputs.
      input_shape: of one example, [h, w, channels].

    Raises:
      ValueError: an input that is not [h, w, channels], or more stages than it can be halved.
    """
    if len(input_shape) != 3:
        raise ValueError(f"vgg: input_shape={tuple(input_shape)} is not (h, w, channels)")
    module = _Vgg(tuple(tuple(widths) for widths in stages), tuple(hidden), classes)
    return from_linen(module, input_shape)


def small_vgg16(
    widths: Sequence[int] = (64, 128, 256, 512),
    hidden: Sequence[int] = (512, 512),
    classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
) -> Model:
    """Small-VGG16; 15,245,130 parameters by default.

    Args:
      widths: filters of each stage, of which the last is repeated: four make VGG16's five stages.
      hidden: as for ``vgg``.
      classes: as for ``vgg``.
      input_shape: as for ``vgg``.

    Raises:
      ValueError: as ``vgg``, or more than four widths.
    """
    if not 1 <= len(widths) < len(VGG_DEPTHS):
        raise ValueError(f"widths={tuple(widths)} must be 1 to {len(VGG_DEPTHS) - 1} numbers")
    stages = [
        (width,) * depth for width, depth in zip((*widths, widths[-1]), VGG_DEPTHS, strict=False)
    ]
    return vgg(stages, hidden, classes, input_shape)
