"""Arithmetic of a network in bfloat16, with weights that stay float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedprune.types import Model, Params


def compute_in(dtype: jax.typing.DTypeLike, model: Model) -> Model:
    """``model``, with activations and products in another type.

    Weights are rounded to ``dtype`` where the network uses them, and examples too; logits are
    float32 again. Gradients pass through the rounding unchanged, so training steps the float32
    weights (mixed precision; Micikevicius et al., 2018, without loss scaling: bfloat16 has the
    range of float32).

    Args:
      dtype: such as "bfloat16".
      model: a network without running statistics.

    Raises:
      ValueError: a network with running statistics, which would be averaged in ``dtype``.
    """
    if model.train is not None:
        raise ValueError("compute: networks with running statistics compute in float32 only")

    def apply(params: Params, x: jax.Array) -> jax.Array:
        rounded = jax.tree.map(lambda p: p.astype(dtype), params)
        return model.apply(rounded, x.astype(dtype)).astype(jnp.float32)

    return Model(model.init, apply)
