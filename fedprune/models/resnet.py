"""ResNet18 and ResNet-34 (He et al., Deep Residual Learning for Image Recognition, 2016).

A stem, four stages of basic blocks with 64, 128, 256 and 512 filters (two blocks each in ResNet18;
3, 4, 6 and 3 in ResNet-34), the mean over all positions, and one dense layer. Stages two to four
start with a stride of 2. The stem is a 3×3 convolution (``small``), or the original's 7×7 of stride
2 and 3×3 max-pooling of stride 2 (``large``). A basic block with input x is

    relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)),

both convolutions 3×3, the shortcut a 1×1 convolution with norm where the shape changes and x itself
elsewhere. Convolutions have no bias. ResNet18 with 10 classes, 3 channels and the small stem has

    kernels 11,164,352 + norm scales and biases 9,600 + biases of the dense layer 10 = 11,173,962

parameters, and ResNet-34 with 200 classes and the large one 21,387,272.

Norms, for activations [b, h, w, c]:

* ``group``: over positions and groups of channels of one example (Wu and He, Group Normalization,
  2018). No example sees another, and clients differ in nothing but weights.
* ``batch``: over batch and positions, for each channel (Ioffe and Szegedy, 2015). Its policy for
  the evaluation is ``statistics``:

  - ``exchanged``: running means and variances, 9,600 further numbers in ResNet18, are leaves of the
    params below "statistics". Local training moves them by m <- 0.9 m + 0.1 (mean of the batch),
    and the server adds the mean of the clients' changes; so they are sent and billed, and suffer
    noise, as weights do. They are never pruned by themselves (one dimension), and no optimizer
    steps them. The mean of the clients' variances lacks the variance between clients' means. Noise
    may make a received variance negative: it counts as zero.
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
import jax.numpy as jnp

from fedprune import nn
from fedprune.models import layers
from fedprune.models.adapters import from_linen
from fedprune.types import Model

NORMS = ("group", "batch")
STATISTICS = ("exchanged", "batch")
STEMS = ("small", "large")

_conv = partial(layers.conv, use_bias=False, kernel_init=linen.initializers.he_normal())


Norm = Callable[[str, jax.Array, bool], jax.Array]
"""(name, x, train) -> x normalised, by a submodule of that name of the module that calls it"""


def _group(groups: int, name: str, x: jax.Array, train: bool) -> jax.Array:
    return linen.GroupNorm(groups, name=name)(x)


def _batch(running: bool, name: str, x: jax.Array, train: bool) -> jax.Array:
    return layers.BatchNorm(running, name=name)(x, train)


class _Block(linen.Module):
    features: int
    inner: int
    stride: int
    norm: Norm

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = _conv(self.inner, (3, 3), self.stride, padding=1, name="conv1")(x)
        y = linen.relu(self.norm("norm1", y, train))
        y = _conv(self.features, (3, 3), padding=1, name="conv2")(y)
        y = self.norm("norm2", y, train)
        if self.stride > 1 or x.shape[-1] != self.features:
            x = _conv(self.features, (1, 1), self.stride, padding=0, name="shortcut")(x)
            x = self.norm("shortcut_norm", x, train)
        return linen.relu(y + x)


class _ResNet(linen.Module):
    widths: tuple[int, ...]
    inner: tuple[tuple[int, ...], ...]
    stem: str
    classes: int
    norm: Norm

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.stem == "large":
            x = _conv(self.widths[0], (7, 7), 2, padding=3, name="stem")(x)
            x = linen.relu(self.norm("stem_norm", x, train))
            # Zeros around what is never negative do not change a maximum.
            x = nn.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2)
        else:
            x = _conv(self.widths[0], (3, 3), padding=1, name="stem")(x)
            x = linen.relu(self.norm("stem_norm", x, train))
        for i, (width, blocks) in enumerate(zip(self.widths, self.inner, strict=True)):
            for j, inner in enumerate(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                name = f"stage{i + 1}_block{j + 1}"
                x = _Block(width, inner, stride, self.norm, name=name)(x, train)
        return linen.Dense(self.classes, name="head")(x.mean((1, 2)))


def resnet18(
    classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    norm: str = "group",
    groups: int = 32,
    statistics: str = "exchanged",
    widths: Sequence[int] = (64, 128, 256, 512),
    stem: str = "small",
) -> Model:
    """ResNet18 for small images; 11,173,962 parameters by default.

    Arguments and errors are those of ``resnet``.
    """
    inner = [(width, width) for width in widths]
    return resnet(inner, classes, input_shape, norm, groups, statistics, widths, stem)


def resnet34(
    classes: int = 200,
    input_shape: Sequence[int] = (64, 64, 3),
    norm: str = "group",
    groups: int = 32,
    statistics: str = "exchanged",
    widths: Sequence[int] = (64, 128, 256, 512),
    stem: str = "large",
) -> Model:
    """ResNet-34; 21,387,272 parameters by default (P3 section VII-A, with Tiny ImageNet).

    P3 enlarges the images to 224×224 pixels before the network; here they keep their 64×64.
    Arguments and errors are those of ``resnet``, with at most four widths.
    """
    inner = [(width,) * depth for width, depth in zip(widths, (3, 4, 6, 3), strict=False)]
    return resnet(inner, classes, input_shape, norm, groups, statistics, widths, stem)


def resnet(
    inner: Sequence[Sequence[int]],
    classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    norm: str = "group",
    groups: int = 32,
    statistics: str = "exchanged",
    widths: Sequence[int] = (64, 128, 256, 512),
    stem: str = "small",
) -> Model:
    """A ResNet of basic blocks.

    Args:
      inner: filters of every block's first convolution, stage by stage; only there may pruning
        leave other widths than the stage's.
      classes: outputs.
      input_shape: of one example, [h, w, channels].
      norm: "group" or "batch".
      groups: groups of channels (group norm only).
      statistics: "exchanged" or "batch", the policy of batch norm (see the module's docstring).
      widths: filters of each stage.
      stem: "small" or "large".

    Raises:
      ValueError: an unknown norm, policy or stem, an input that is not [h, w, channels], a number
        of stages that differs from that of the widths, or widths that ``groups`` does not divide.
    """
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} is not one of {', '.join(NORMS)}")
    if statistics not in STATISTICS:
        raise ValueError(f"statistics={statistics!r} is not one of {', '.join(STATISTICS)}")
    if stem not in STEMS:
        raise ValueError(f"stem={stem!r} is not one of {', '.join(STEMS)}")
    if len(input_shape) != 3:
        raise ValueError(f"resnet: input_shape={tuple(input_shape)} is not (h, w, channels)")
    normed = [*widths, *(width for blocks in inner for width in blocks)]
    if not widths or (norm == "group" and any(width % groups for width in normed)):
        raise ValueError(f"widths={tuple(widths)} must be multiples of groups={groups}")
    if len(inner) != len(widths):
        raise ValueError(f"inner: {len(inner)} stages, but widths={tuple(widths)}")
    running = norm == "batch" and statistics == "exchanged"
    normalise = partial(_group, groups) if norm == "group" else partial(_batch, running)
    of_blocks = tuple(tuple(blocks) for blocks in inner)
    module = _ResNet(tuple(widths), of_blocks, stem, classes, normalise)
    return from_linen(module, input_shape, running)
