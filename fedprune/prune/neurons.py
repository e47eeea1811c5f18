"""Structured pruning of fully connected layers: whole neurons, P2 (3)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedprune import check, tree
from fedprune.prune.pruner import Predicate, kernels
from fedprune.prune.threshold import top_k
from fedprune.types import Mask, PyTree

FORMS = ("derived", "printed")


def neurons(
    prunable: Predicate = kernels, down: bool = False, form: str = "derived"
) -> Callable[[PyTree, jax.Array], Mask]:
    """(scores shaped like the params, sparsity s) -> the mask that keeps the best neurons.

    The structured counterpart of ``prune.selection``. For L layers of kernels [n_l, n_{l+1}] in a
    chain, every column of neurons but the outputs keeps ceil(kappa n_l) of its neurons, so that
    layer l keeps

        ceil(kappa n_l) ceil(kappa n_{l+1}) weights,   the last one  ceil(kappa n_L) n_{L+1}    (3)

    A neuron scores the sum over the weights that come and go, and takes them and its bias with it.
    The first neurons are the inputs of the first layer, such as the features of a convolution.

    P2 calls kappa a pruning ratio rho in (3), though it is the share that is kept, and says that
    the size falls as 1 / kappa, though it falls as 1 / kappa^2. To agree with (6), whose rho is the
    share that is pruned, kappa = sqrt(1 - s). As outputs are never pruned, the sum over layers is
    larger than (6) by (kappa - kappa^2) n_L n_{L+1} weights, beside the rounding.

    Args:
      prunable: (path "layer/kernel", leaf) -> bool; the layers, in the order of the params.
      down: floor in place of ceil, for a latency that is not to be exceeded.
      form: "derived", or "printed" for kappa = s, as (3) has it, outputs included.

    Returns:
      A function whose products kappa n are computed in float32: within about 3e-7 n of an integer
      the count may be one off.

    Raises:
      ValueError: an unknown form; kernels that are not matrices, or do not form a chain.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r} is not one of {FORMS}")
    check.function("prunable", prunable)
    whole = jnp.floor if down else jnp.ceil

    def mask(scores: PyTree, sparsity: jax.Array) -> Mask:
        check.number("sparsity", sparsity, 0, 1)
        chosen = jax.tree.leaves(tree.match_path(prunable, scores))
        named_leaves, treedef = jax.tree_util.tree_flatten_with_path(scores)
        paths = [tree.path_name(path) for path, _ in named_leaves]
        leaves = [leaf for _, leaf in named_leaves]
        layers = [i for i, c in enumerate(chosen) if c]
        widths = _chain([(paths[i], leaves[i]) for i in layers])
        share = sparsity if form == "printed" else jnp.sqrt(1.0 - sparsity)
        kept = []
        for n, width in enumerate(widths):
            if n == len(layers) and form == "derived":
                kept.append(jnp.ones(width, bool))
                continue
            coming = [leaves[i].sum(0) for i in layers[n - 1 : n]]
            going = [leaves[i].sum(1) for i in layers[n : n + 1]]
            kept.append(top_k(sum(coming + going), whole(width * share).astype(jnp.int32)))
        masks = [jnp.ones(leaf.shape, bool) for leaf in leaves]
        for n, i in enumerate(layers):
            masks[i] = kept[n][:, None] & kept[n + 1][None, :]
            bias = paths[i].removesuffix("kernel") + "bias"
            if bias in paths:
                masks[paths.index(bias)] = kept[n + 1]
        return jax.tree.unflatten(treedef, tree.match(masks))

    return mask


def _chain(layers: Sequence[tuple[str, Any]]) -> list[int]:
    """Neurons before, between and after the layers."""
    if not layers:
        raise ValueError("prunable: no weight of the model is prunable")
    for path, kernel in layers:
        if kernel.ndim != 2:
            raise ValueError(f"prunable: {path} {kernel.shape} is not of a fully connected layer")
    for (path, kernel), (after, following) in itertools.pairwise(layers):
        if kernel.shape[1] != following.shape[0]:
            raise ValueError(
                f"prunable: {path} {kernel.shape} does not lead to {after} {following.shape}"
            )
    return [layers[0][1].shape[0], *(kernel.shape[1] for _, kernel in layers)]
