"""ResNet18 for small images (He et al., Deep Residual Learning for Image Recognition, 2016).

A 3×3 stem without max-pooling, four stages of two basic blocks with 64, 128, 256 and 512 filters,
the mean over all positions, and one dense layer. Stages two to four start with a stride of 2. A
basic block with input x is

    relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)),

both convolutions 3×3, the shortcut a 1×1 convolution with norm where the shape changes and x itself
elsewhere. Convolutions have no bias. With 10 classes and 3 channels that is

    kernels 11,164,352 + norm scales and biases 9,600 + biases of the dense layer 10 = 11,173,962.

Norms, for activations [b, h, w, c]:

* ``group``: over positions and groups of channels of one example (Wu and He, Group Normalization,
  2018). No example sees another, and clients differ in nothing but weights.
* ``batch``: over batch and positions, for each channel (Ioffe and Szegedy, 2015). Its policy for
  the evaluation is ``statistics``:

  - ``exchanged``: running means and variances, 9,600 further numbers, are leaves of the params
    below "statistics". Local training moves them by m <- 0.9 m + 0.1 (mean of the batch), and the
    server adds the mean of the clients' changes; so they are sent and billed, and suffer noise,
    as weights do. They are never pruned (one dimension), and no optimizer steps them. The mean of
    the clients' variances lacks the variance between clients' means. Noise may make a received
    variance negative: it counts as zero.
  - ``batch``: nothing is kept or sent; every batch is normalised by its own mean and variance, in
    the evaluation too. The logits of an example then depend on the batch around it: accuracy
    depends on the evaluation's batch size and order, profits from test examples that are seen
    together, and a batch that is filled up with copies is distorted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as linen
import jax

from fedprune.models import layers
from fedprune.types import Model

NORMS = ("group", "batch")
STATISTICS = ("exchanged", "batch")

_conv = partial(layers.conv, use_bias=False, kernel_init=linen.initializers.he_normal())


Norm = Callable[[str, jax.Array, bool], jax.Array]
"""(name, x, train) -> x normalised, by a submodule of that name of the module that calls it"""


def _group(groups: int, name: str, x: jax.Array, train: bool) -> jax.Array:
    return linen.GroupNorm(groups, name=name)(x)


def _batch(running: bool, name: str, x: jax.Array, train: bool) -> jax.Array:
    return layers.BatchNorm(running, name=name)(x, train)


class _Block(linen.Module):
    features: int
    stride: int
    norm: Norm

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = _conv(self.features, (3, 3), self.stride, padding=1, name="conv1")(x)
        y = linen.relu(self.norm("norm1", y, train))
        y = _conv(self.features, (3, 3), padding=1, name="conv2")(y)
        y = self.norm("norm2", y, train)
        if self.stride > 1 or x.shape[-1] != self.features:
            x = _conv(self.features, (1, 1), self.stride, padding=0, name="shortcut")(x)
            x = self.norm("shortcut_norm", x, train)
        return linen.relu(y + x)


class _ResNet(linen.Module):
    widths: tuple[int, ...]
    classes: int
    norm: Norm

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = _conv(self.widths[0], (3, 3), padding=1, name="stem")(x)
        x = linen.relu(self.norm("stem_norm", x, train))
        for i, width in enumerate(self.widths):
            for j in range(2):
                stride = 2 if i > 0 and j == 0 else 1
                x = _Block(width, stride, self.norm, name=f"stage{i + 1}_block{j + 1}")(x, train)
        return linen.Dense(self.classes, name="head")(x.mean((1, 2)))


def resnet18(
    classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    norm: str = "group",
    groups: int = 32,
    statistics: str = "exchanged",
    widths: Sequence[int] = (64, 128, 256, 512),
) -> Model:
    """ResNet18 for small images; 11,173,962 parameters by default.

    Args:
      classes: outputs.
      input_shape: of one example, [h, w, channels].
      norm: "group" or "batch".
      groups: groups of channels (group norm only).
      statistics: "exchanged" or "batch", the policy of batch norm (see the module's docstring).
      widths: filters of each stage.

    Raises:
      ValueError: an unknown norm or policy, an input that is not [h, w, channels], or widths that
        ``groups`` does not divide.
    """
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} is not one of {', '.join(NORMS)}")
    if statistics not in STATISTICS:
        raise ValueError(f"statistics={statistics!r} is not one of {', '.join(STATISTICS)}")
    if len(input_shape) != 3:
        raise ValueError(f"resnet18: input_shape={tuple(input_shape)} is not (h, w, channels)")
    if not widths or (norm == "group" and any(width % groups for width in widths)):
        raise ValueError(f"widths={tuple(widths)} must be multiples of groups={groups}")
    running = norm == "batch" and statistics == "exchanged"
    normalise = partial(_group, groups) if norm == "group" else partial(_batch, running)
    module = _ResNet(tuple(widths), classes, normalise)
    return layers.from_flax(module, input_shape, running)
