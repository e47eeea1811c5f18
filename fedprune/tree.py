"""Small operations on pytrees of weights and masks."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedprune.types import Mask, Params, PyTree


def apply_mask(mask: Mask, values: PyTree) -> PyTree:
    """``values`` where the mask is True, zero elsewhere; unchanged if the mask is None.

    A selection and not a product, because NaN times zero is NaN.
    """
    if mask is None:
        return values
    return jax.tree.map(lambda m, v: jnp.where(m, v, jnp.zeros((), v.dtype)), mask, values)


def conjunction(first: Mask, second: Mask) -> Mask:
    """What both masks keep; None keeps everything."""
    if first is None or second is None:
        return second if first is None else first
    return jax.tree.map(jnp.logical_and, first, second)


def count(mask: Mask, like: Params) -> jax.Array:
    """How many weights the mask keeps, [] int32; all of ``like`` if the mask is None."""
    if mask is None:
        return jnp.int32(sum(v.size for v in jax.tree.leaves(like)))
    return _sum(jnp.sum(m, dtype=jnp.int32) for m in jax.tree.leaves(mask))


def square_sum(values: PyTree) -> jax.Array:
    """Sum of squares over all leaves, []."""
    return total(jax.tree.map(jnp.square, values))


def total(values: PyTree) -> jax.Array:
    """Sum over all leaves, []."""
    return _sum(jnp.sum(v) for v in jax.tree.leaves(values))


def scale(factor: jax.Array, values: PyTree) -> PyTree:
    """factor [] times every leaf."""
    return jax.tree.map(lambda v: factor * v, values)


def mean(total: PyTree, weight: jax.Array) -> PyTree:
    """total / weight, weight []; zero where the weight is zero."""
    return jax.tree.map(lambda v: jnp.where(weight > 0, v / weight, 0.0), total)


def all_finite(values: PyTree) -> jax.Array:
    """Whether no leaf holds a NaN or an infinity, [] bool."""
    return reduce(
        operator.and_, (jnp.isfinite(v).all() for v in jax.tree.leaves(values)), jnp.bool_(True)
    )


def where(condition: jax.Array, yes: PyTree, no: PyTree) -> PyTree:
    """Leafwise ``jnp.where`` with one scalar condition."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def match_path(predicate: Callable[[str, Any], bool], params: Params) -> PyTree:
    """``predicate("layer/kernel", leaf)`` for every leaf: a pytree of Python booleans."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: bool(predicate(path_name(path), leaf)), params
    )


def within(*parts: str) -> Callable[[str, Any], bool]:
    """A predicate for ``match_path``: whether a leaf's path contains any of some names."""
    return lambda path, leaf: any(part in path for part in parts)


_NORMS = {"scale", "scales", "offset", "offsets", "gamma", "beta"}
_STATISTICS = {"statistics", "mean", "var", "variance", "average"}
_BESIDE_KERNELS = {"bias", "biases"} | _NORMS | _STATISTICS
"""words in the names of what stands beside kernels, in flax (linen and nnx), Haiku and PyTorch"""


def is_kernel(path: str, leaf: Any) -> bool:
    """Whether a leaf is a weight matrix or filter: no bias, no norm's scale or statistics.

    Names decide, since biases and scales of scanned, stacked or multi-head layers have several axes
    too: none of "b" and ``_BESIDE_KERNELS``, such as "bias" or "in_proj_bias", is a kernel.
    Of other names, all arrays of two or more axes are.

    Args:
      path: such as "layer/kernel"; of nnx, "layer/kernel/value".
      leaf: an array or its shape.
    """
    *_, name = path.removesuffix("/value").lower().split("/")
    words = name.rstrip("0123456789").strip("_").split("_")
    return leaf.ndim >= 2 and words != ["b"] and _BESIDE_KERNELS.isdisjoint(words)


def kernels(params: Params) -> PyTree:
    """``is_kernel`` of every leaf: a pytree of Python booleans."""
    return match_path(is_kernel, params)


def kernel_leaves(values: PyTree) -> list:
    """The leaves of weights, or of their mask, that are kernels."""
    return jax.tree.leaves(split(kernels(values), values)[1])


def split(chosen: PyTree, values: PyTree) -> tuple[PyTree, PyTree]:
    """(the leaves that are not chosen, those that are), each with None in place of the others.

    None holds no leaf: functions of pytrees see only what is there, under the same paths.

    Args:
      chosen: Python booleans shaped like ``values``, for example from ``match_path``.
      values: any pytree.
    """
    rest = jax.tree.map(lambda c, v: None if c else v, chosen, values)
    return rest, jax.tree.map(lambda c, v: v if c else None, chosen, values)


def join(first: PyTree, second: PyTree) -> PyTree:
    """The leaves of ``first`` and, where it has None, those of ``second``: undoes ``split``."""
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=_missing)


def like(part: PyTree, whole: PyTree) -> PyTree:
    """The leaves of ``whole`` where ``part`` has leaves, None where it has None."""
    return jax.tree.map(lambda p, w: None if p is None else w, part, whole, is_leaf=_missing)


def statistics_of(source: Params, params: Params) -> Params:
    """``params``, with the running statistics of ``source`` in place of its own.

    Statistics are the leaves below a part "statistics" of their path, such as
    "BatchNorm_0/statistics/mean".
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, s, p: s if "statistics" in path_name(path).split("/") else p, source, params
    )


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's path as "layer/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def vary(values: PyTree, axes: frozenset[str] | set[str]) -> PyTree:
    """Marks arrays inside ``shard_map`` as varying over mesh axes (those that are missing).

    Gradients with respect to a value that does *not* vary are summed over devices, silently; so
    everything that a client trains on is marked first. A no-op outside ``shard_map``.
    """

    def promote(x: jax.Array) -> jax.Array:
        missing = tuple(sorted(frozenset(axes) - _varying(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(promote, values)


def match(values: PyTree) -> PyTree:
    """Marks all leaves as varying over the union of the axes over which any of them varies."""
    axes: frozenset[str] = frozenset().union(*map(_varying, jax.tree.leaves(values)))
    return vary(values, axes)


def _varying(x: jax.Array) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying


def _sum(terms) -> jax.Array:
    return reduce(operator.add, terms)


def _missing(leaf: Any) -> bool:
    return leaf is None
