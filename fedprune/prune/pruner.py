"""Pruners: a score × a distribution over layers × a schedule × a scope."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import tree
from fedprune.prune.schedule import Schedule
from fedprune.prune.scores import Score, magnitude
from fedprune.prune.threshold import top_k
from fedprune.types import SCOPES, Mask, Params, Pruner, PyTree

Predicate = Callable[[str, Any], bool]


def kernels(path: str, leaf: Any) -> bool:
    """The default of what is prunable: weight matrices and filters, no biases or norm scales."""
    return leaf.ndim >= 2


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
      score: importance of every weight; the smallest go first, of equal ones the last by index.
      distribution: "global" ranks all prunable weights together; "layer" prunes the same share of
        every prunable leaf.
      scope: one of ``types.SCOPES``. In "server" masks are nested (a pruned weight never returns).
        In "client" and "own" each round's mask is computed afresh on the global model, which the
        server keeps dense; weights may return.
      prunable: (path "layer/kernel", leaf) -> bool.

    Raises:
      ValueError: an unknown distribution or scope, or no prunable weight.
    """
    if distribution not in ("global", "layer"):
        raise ValueError(f"distribution={distribution!r} is neither 'global' nor 'layer'")
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r} is not one of {SCOPES}")
    nested = scope == "server"

    def groups(values: Params, chosen: list[bool]) -> list[list[jax.Array]]:
        """The prunable leaves, ranked together or each by itself."""
        leaves = [v for v, c in zip(jax.tree.leaves(values), chosen, strict=True) if c]
        return [leaves] if distribution == "global" else [[leaf] for leaf in leaves]

    def chosen_of(params: Params) -> list[bool]:
        chosen = jax.tree.leaves(tree.match_path(prunable, params))
        if not any(chosen):
            raise ValueError("prunable: no weight of the model is prunable")
        return chosen

    def sizes(params: Params, chosen: list[bool]) -> list[int]:
        return [sum(v.size for v in group) for group in groups(params, chosen)]

    def init(params: Params) -> PrunerState:
        mask = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
        return PrunerState(mask, jnp.array(sizes(params, chosen_of(params)), jnp.int32))

    def update(state: PrunerState, params: Params, t: jax.Array) -> tuple[Mask, PrunerState]:
        chosen = chosen_of(params)
        d = jnp.array(sizes(params, chosen), jnp.float32)
        keep = jnp.round(d * (1.0 - schedule(t))).astype(jnp.int32)
        if nested:
            keep = jnp.minimum(keep, state.kept)
        scores = groups(score(params), chosen)
        alive = groups(state.mask, chosen) if nested else [None] * len(scores)

        def select() -> Mask:
            kept = [top_k(*args) for args in zip(scores, keep, alive, strict=True)]
            return _replace(state.mask, chosen, [m for group in kept for m in group])

        if not nested:
            return select(), state
        mask = lax.cond((keep < state.kept).any(), select, lambda: state.mask)
        return mask, PrunerState(mask, keep)

    return Pruner(init, update, scope)


def selection(
    schedule: Schedule, distribution: str = "global", prunable: Predicate = kernels
) -> Callable[[PyTree, jax.Array], Mask]:
    """(scores shaped like the params, round) -> the mask that keeps the largest of them.

    For clients that decide masks of their own (``local.own_masks``). Arguments as for
    ``scheduled``.
    """
    pruner = scheduled(schedule, lambda scores: scores, distribution, "own", prunable)

    def select(scores: PyTree, t: jax.Array) -> Mask:
        return pruner.update(pruner.init(scores), scores, t)[0]

    return select


def _replace(mask: Mask, chosen: list[bool], kept: list[jax.Array]) -> Mask:
    leaves, treedef = jax.tree.flatten(mask)
    new = iter(kept)
    kept_or_new = [next(new) if c else m for m, c in zip(leaves, chosen, strict=True)]
    return jax.tree.unflatten(treedef, kept_or_new)
