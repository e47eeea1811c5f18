"""Pruners: a score × a distribution over layers × a schedule × a scope."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import check, tree
from fedprune.prune.schedule import Schedule, checked, sparsity_of
from fedprune.prune.scores import Score, magnitude
from fedprune.prune.threshold import top_k
from fedprune.types import SCOPES, Before, Mask, Params, Pruner, PyTree

Predicate = Callable[[str, Any], bool]


def kernels(path: str, leaf: Any) -> bool:
    """The default of what is prunable: weight matrices and filters, no biases or norm scales."""
    return tree.is_kernel(path, leaf)


def named(part: str) -> Predicate:
    """Kernels of layers whose path contains ``part``: "Dense" are the fully connected ones (P2)."""
    inside = tree.within(part)
    return lambda path, leaf: kernels(path, leaf) and inside(path, leaf)


class PrunerState(NamedTuple):
    mask: Mask
    """bools shaped like the params; True where nothing was pruned"""
    kept: jax.Array
    """[layers or 1] int32, prunable weights kept"""


def scheduled(
    schedule: Schedule,
    score: Score = magnitude,
    distribution: str = "global",
    scope: str = "server",
    prunable: Predicate = kernels,
) -> Pruner:
    """Prunes the lowest scores as a schedule says.

    Of d prunable weights, exactly keep = round(d (1 - s)) stay (rounding half to even). The
    schedule is evaluated in float32, so where d (1 - s) lies within about 3e-7 d of a half the
    count may be one off the real-valued formula.

    Args:
      schedule: round -> sparsity s.
      score: importance of every weight. By value: NaN goes first, then the smallest, negative ones
        before 0; of equal ones the last by index.
      distribution: "global" ranks all prunable weights together; "layer" prunes the same share of
        every prunable leaf.
      scope: one of ``types.SCOPES``. In "server" masks are nested (a pruned weight never returns).
        In "client" and "own" each round's mask is computed afresh on the global model, which the
        server keeps dense; weights may return.
      prunable: (path "layer/kernel", leaf) -> bool.

    Raises:
      ValueError: an unknown distribution or scope, or no prunable weight.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r} is not one of {SCOPES}")
    checked(schedule)
    check.function("score", score)
    nested = scope == "server"
    sizes, select = _ranking(distribution, prunable)

    def init(params: Params) -> PrunerState:
        mask = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
        return PrunerState(mask, jnp.array(sizes(params), jnp.int32))

    def update(state: PrunerState, before: Before) -> tuple[Mask, PrunerState]:
        params = before.params
        d = jnp.array(sizes(params), jnp.float32)
        keep = jnp.round(d * (1.0 - sparsity_of(schedule, before.round))).astype(jnp.int32)
        if not nested:
            return select(score(params), keep), state
        keep = jnp.minimum(keep, state.kept)
        mask = lax.cond(
            (keep < state.kept).any(),
            lambda: select(score(params), keep, state.mask),
            lambda: state.mask,
        )
        return mask, PrunerState(mask, keep)

    return Pruner(init, update, scope)


def selection(
    distribution: str = "global", prunable: Predicate = kernels, down: bool = False
) -> Callable[[PyTree, jax.Array], Mask]:
    """(scores shaped like the params, sparsity s) -> the mask that keeps the largest of them.

    For clients that decide masks of their own (``local.own_masks``).

    Args:
      distribution: as for ``scheduled``.
      prunable: as for ``scheduled``.
      down: keep floor(d (1 - s)) weights and not the nearest number, so that the latency for which
        s was computed is not exceeded (P2 (5)).

    Raises:
      ValueError: an unknown distribution.
    """
    sizes, select = _ranking(distribution, prunable)
    whole = jnp.floor if down else jnp.round

    def mask(scores: PyTree, sparsity: jax.Array) -> Mask:
        check.number("sparsity", sparsity, 0, 1)
        d = jnp.array(sizes(scores), jnp.float32)
        return select(scores, whole(d * (1.0 - sparsity)).astype(jnp.int32))

    return mask


def by_layer(
    scores: PyTree, keep: PyTree, alive: Mask = None, prunable: Predicate = kernels
) -> Mask:
    """The mask that keeps the largest scores of every prunable leaf, and the other leaves whole.

    Args:
      scores: non-negative, shaped like the params.
      keep: [] int32 for every leaf, how many stay; at most the number alive.
      alive: who may stay; None: everybody.
      prunable: as for ``scheduled``.

    Raises:
      ValueError: no weight is prunable.
    """
    chosen = tree.match_path(prunable, scores)
    if not any(jax.tree.leaves(chosen)):
        raise ValueError("prunable: no weight of the model is prunable")
    if alive is None:
        alive = jax.tree.map(lambda v: jnp.ones(v.shape, bool), scores)

    def one(ranked: bool, v: jax.Array, k: jax.Array, m: jax.Array) -> jax.Array:
        return top_k(v, k, m) if ranked else jnp.ones(v.shape, bool)

    return tree.match(jax.tree.map(one, chosen, scores, keep, alive))


def _ranking(distribution: str, prunable: Predicate):
    """(values -> sizes of the groups that are ranked together, (scores, keep, alive) -> mask)."""
    if distribution not in ("global", "layer"):
        raise ValueError(f"distribution={distribution!r} is neither 'global' nor 'layer'")

    check.function("prunable", prunable)

    def chosen_of(values: PyTree) -> list[bool]:
        chosen = jax.tree.leaves(tree.match_path(prunable, values))
        if not any(chosen):
            raise ValueError("prunable: no weight of the model is prunable")
        return chosen

    def groups(values: PyTree) -> list[list[jax.Array]]:
        leaves = jax.tree.leaves(values)
        leaves = [v for v, c in zip(leaves, chosen_of(values), strict=True) if c]
        return [leaves] if distribution == "global" else [[leaf] for leaf in leaves]

    def sizes(values: PyTree) -> list[int]:
        return [sum(v.size for v in group) for group in groups(values)]

    def select(scores: PyTree, keep: jax.Array, alive: Mask = None) -> Mask:
        ranked = groups(scores)
        among = [None] * len(ranked) if alive is None else groups(alive)
        kept = [top_k(*args) for args in zip(ranked, keep, among, strict=True)]
        new = iter([mask for group in kept for mask in group])
        leaves, treedef = jax.tree.flatten(scores)
        masks = [
            next(new) if c else jnp.ones(leaf.shape, bool)
            for leaf, c in zip(leaves, chosen_of(scores), strict=True)
        ]
        return jax.tree.unflatten(treedef, tree.match(masks))

    return sizes, select
