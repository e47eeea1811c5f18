"""What the stages at the server do in every round, flat or with edge servers."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedprune import check, rng, tree
from fedprune.rounds.state import State
from fedprune.types import (
    Before,
    Key,
    Mask,
    Outcome,
    Params,
    Pruner,
    PyTree,
    Server,
    Uplink,
)


def initial(
    params: Params, pruner: Pruner | None, server: Server, uplink: Uplink | None = None
) -> State:
    """The state before the first round."""
    state = State(jnp.int32(0), params, None, None, server.init(params))
    if pruner is not None:
        mask = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
        state = state._replace(mask=mask, pruner=pruner.init(params))
    if uplink is not None and uplink.init is not None:
        state = state._replace(uplink=uplink.init(params))
    return state


class Masks(NamedTuple):
    """The masks of one round."""

    decided: Mask
    """the round's mask"""
    shared: Mask
    """that of what is broadcast: the decided one; None in scope "own"."""
    effective: Mask
    """of what may arrive: the shared one, or None, every weight, where clients keep others"""
    state: PyTree
    """the pruner's"""


def decided(key: Key, pruner: Pruner | None, state: State) -> Masks:
    """What the pruner decides before the broadcast.

    Raises:
      ValueError: a pruner takes proposals and does not revise its mask.
    """
    if pruner is None:
        return Masks(None, None, None, None)
    if pruner.proposals and (pruner.revise is None or pruner.scope == "own"):
        raise ValueError(
            f"pruner: proposals=True with scope={pruner.scope!r} needs revise, and a scope of"
            " 'server' or 'client'"
        )
    before = Before(rng.stream(key, "pruner", state.round), state.round, state.params, state.mask)
    mask, after = pruner.update(state.pruner, before)
    shared = None if pruner.scope == "own" else mask
    return Masks(mask, shared, None if pruner.proposals else shared, after)


def served(server: Server, state: State, outcome: Outcome) -> tuple[Params, PyTree, Outcome]:
    """The server's step: params, its state, and the outcome as all others see it.

    Both stay as they are unless somebody was heard and what was received, and the model that it
    leads to, are finite; ``Outcome.heard`` says so, and the update is zero then.

    Raises:
      ValueError: the server returns other shapes, types or structures than it was given.
    """
    params, after = server.update(state.server, outcome)
    check.same_shapes("server: params", params, state.params)
    check.same_shapes("server: state", after, state.server)
    heard = outcome.heard & tree.all_finite((outcome.update, params))
    params, after = tree.where(heard, (params, after), (state.params, state.server))
    nothing = jax.tree.map(jnp.zeros_like, outcome.update)
    update = tree.where(heard, outcome.update, nothing)
    return params, after, outcome._replace(params=params, update=update, heard=heard)
