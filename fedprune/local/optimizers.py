"""What stands before a local optimizer: clipping and weight decay."""

from __future__ import annotations

import jax
import optax

from fedprune import check
from fedprune.tree import kernels


def adjusted(
    optimizer: optax.GradientTransformation,
    weight_decay: jax.Array | float | None = None,
    clip: jax.Array | float | None = None,
) -> optax.GradientTransformation:
    """``optimizer`` on g', where g is the client's gradient, proximal term included:

        g' = g min(1, clip / |g|) + weight_decay w    (the second term on kernels only)

    So weight decay is part of the gradient (an L2 penalty), is not clipped, and leaves biases,
    scales of norms and running statistics alone. A pruned weight is zero and stays so.

    Args:
      optimizer: any optax transformation.
      weight_decay: factor on the kernels (``tree.is_kernel``); may be traced. None: none.
      clip: largest Euclidean norm of the whole gradient; may be traced, inf is no limit. None: no
        clipping.
    """
    check.kind("optimizer", optimizer, optax.GradientTransformation, optax.MultiSteps)
    before = []
    if clip is not None:
        check.number("clip", clip, above=0, infinite=True)
        before.append(optax.clip_by_global_norm(clip))
    if weight_decay is not None:
        check.number("weight_decay", weight_decay, 0)
        before.append(optax.add_decayed_weights(weight_decay, mask=kernels))
    return optax.chain(*before, optimizer) if before else optimizer
