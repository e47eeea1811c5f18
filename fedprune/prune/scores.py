"""Importance of weights: a score maps params to numbers of the same shapes, small ones go first."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedprune.types import Params, PyTree

Score = Callable[[Params], PyTree]


def magnitude(params: Params) -> PyTree:
    """|w|, magnitude pruning (P0 section III)."""
    return jax.tree.map(jnp.abs, params)
