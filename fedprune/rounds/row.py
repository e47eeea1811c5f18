"""The row of a round: the one place where it is made; and what is billed beside the links."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedprune import bill, tree
from fedprune.rounds.stages import Masks
from fedprune.rounds.state import RoundInfo, Tally
from fedprune.types import (
    Cost,
    Count,
    Mask,
    Params,
    PyTree,
)


def info(
    masks: Masks,
    tally: Tally,
    params: Params,
    cost: Cost,
    ratio: jax.Array | None,
    share: jax.Array | None,
    rejected: jax.Array,
    numbers: dict[str, jax.Array],
) -> RoundInfo:
    """The row of a round: the one place where it is made.

    Args:
      tally: of the round, over all edge servers and edge rounds.
      params: the global model.
      ratio: allocated pruning ratios of any shape, or None.
      share: allocated shares of the band, likewise.
      rejected: received updates that were not applied.
      numbers: of the stages.
    """
    sent, density = kept_by_clients(masks.effective, tally, params)
    return RoundInfo(
        train_loss=tally.loss / tally.weight,
        clients=tally.clients.astype(jnp.int32),
        excluded=tally.excluded.astype(jnp.int32),
        kept=tree.count(masks.decided, params),
        sent=sent,
        density=density,
        ratio=jnp.float32(0.0) if ratio is None else jnp.mean(ratio),
        allocation=extremes(ratio, share),
        cost=cost,
        rejected=jnp.asarray(rejected, jnp.int32),
        numbers=numbers,
    )


def extremes(ratio: jax.Array | None, share: jax.Array | None) -> dict[str, jax.Array]:
    """``RoundInfo.allocation`` of allocated ratios and shares of any shape."""
    given = {name: v for name, v in (("ratio", ratio), ("share", share)) if v is not None}
    ends = {"low": jnp.min, "high": jnp.max}
    return {f"{name}_{end}": of(v) for name, v in given.items() for end, of in ends.items()}


def kept_by_clients(mask: Mask, tally: Tally, params: Params) -> tuple[Count, dict[str, jax.Array]]:
    """``RoundInfo.sent`` and ``RoundInfo.density``.

    Args:
      mask: the effective one; None: clients have the whole model, or masks of their own.
      tally: of the round.
      params: the global model.
    """
    pruned = mask is not None or tally.held is not None
    is_count = lambda leaf: isinstance(leaf, Count)
    if tally.held is None:
        each = mask if mask is not None else jax.tree.map(lambda p: p.size, params)
        number = tally.clients.astype(jnp.int32)
        held = jax.tree.map(lambda m: bill.times(jnp.sum(m), number), each)
    else:
        held = jax.tree.map(bill.carried, tally.held, is_leaf=is_count)
    found = jax.tree_util.tree_leaves_with_path(held, is_leaf=is_count)
    density = {
        tree.path_name(path): bill.approximate(count) / (tally.clients * p.size)
        for (path, count), p in zip(found, jax.tree.leaves(params), strict=True)
        if pruned and tree.is_kernel(tree.path_name(path), p)
    }
    return bill.add(*(count for _, count in found)), density


def numbers_of(*stages: dict[str, Any]) -> dict[str, jax.Array]:
    """The numbers of all stages in one mapping.

    Raises:
      ValueError: a name that two stages give, or that a row has already; an array.
    """
    taken = {*RoundInfo._fields, *Cost._fields, "program", "arm", "seed", "round"}
    together: dict[str, jax.Array] = {}
    for numbers in stages:
        for name, value in numbers.items():
            if name in taken or name.startswith("test_"):
                raise ValueError(f"numbers: {name!r} is a name that the round's row has already")
            if jnp.shape(value) != ():
                raise ValueError(f"numbers: {name!r} must be a scalar, not of {jnp.shape(value)}")
            taken.add(name)
            together[name] = value
    return together


def billed(cost: Cost, reals: jax.Array | int, times: jax.Array | int = 1) -> Cost:
    """``cost`` with so many numbers of 32 bits, sent so many times, as side information."""
    more = bill.times(reals, times)
    return cost._replace(side_information=bill.add(cost.side_information, more))


def size_of(values: PyTree) -> int:
    """How many numbers a pytree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(values))
