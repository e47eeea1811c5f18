"""What rounds hand on, and what they report."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from fedprune import mesh
from fedprune.types import (
    Clients,
    Cost,
    Count,
    Key,
    LocalUpdate,
    Mask,
    Params,
    Personal,
    PyTree,
)


class State(NamedTuple):
    """Everything that one round hands to the next."""

    round: jax.Array
    """[] int32, the number of rounds done"""
    params: Params
    """the global model; where clients have personal parts, its global part"""
    mask: Mask
    """the mask of the last round, or None"""
    pruner: PyTree
    server: PyTree
    personal: PyTree = None
    """what local training keeps of every client (``Personal``), leaves [K, ...]; in blocks of
    clients on the devices"""
    memory: PyTree = None
    """what the uplink keeps of every client (``Uplink.remember``), likewise"""
    uplink: PyTree = None
    """what the uplink keeps at the server (``Uplink.init``)"""
    participation: PyTree = None
    """what the selection keeps (``Participation.init``)"""


STORED = ("personal", "memory")
"""the fields of ``State`` with a leading axis [K] behind that of the arms: one store"""


class RoundInfo(NamedTuple):
    """What one round reports: scalars, and mappings from names to scalars."""

    train_loss: jax.Array
    """mean local loss over the clients that counted, weighted like updates; NaN if nobody did"""
    clients: jax.Array
    """int32, clients whose update counted"""
    excluded: jax.Array
    """int32, clients left out because their update or loss was NaN or infinite"""
    kept: jax.Array
    """int32, weights that the mask keeps"""
    sent: Count
    """weights of the updates that counted, added up over the clients; pruned ones do not count"""
    density: dict[str, jax.Array]
    """path -> share of its weights that the mean of these clients kept, for each kernel
    (``tree.is_kernel``); empty where nothing is pruned, NaN if no client counted"""
    ratio: jax.Array
    """mean of the pruning ratios that were allocated to the clients; 0 if there is no allocation"""
    allocation: dict[str, jax.Array]
    """smallest and largest of what was allocated: ``ratio_low``, ``ratio_high`` and, of the band,
    ``share_low``, ``share_high``; empty if there is no allocation"""
    cost: Cost
    rejected: jax.Array
    """int32, received updates that were not finite, and so were not applied"""
    numbers: dict[str, jax.Array]
    """numbers that stages add to the row under names of their own"""


class Round(NamedTuple):
    """A federated algorithm."""

    init: Callable[[Params], State]
    """params -> state"""
    step: Callable[[Key, State, Clients], tuple[State, RoundInfo]]
    """(root key of the run, state, clients) -> (state, info); runs inside ``mesh.spread``"""
    layout: mesh.Layout
    personal: Personal | None = None
    """what clients keep to themselves"""
    model: Callable[[State], Params] | None = None
    """state -> the model that is evaluated; None: ``State.params``, with the mask if so wished"""


class Edges(NamedTuple):
    """Which of G models each client receives and updates: its edge server's."""

    of: jax.Array
    """[K] int32 in 0..servers-1"""
    servers: int
    """G"""


class Stratum(NamedTuple):
    """Clients of one capacity, who train a smaller network than the global one.

    Every stratum has a static number of clients in a cohort and a training of its own, so that a
    small client costs what a small network costs.
    """

    size: int
    """clients of the cohort, in its order: the first stratum has the first ones"""
    local: LocalUpdate
    """trains one of them, on what ``narrow`` gives"""
    narrow: Callable[[Params], Params]
    """the global model, or a mask, -> the client's part of it, smaller arrays"""
    widen: Callable[[Params, Params], Params]
    """(a small array pytree, zeros shaped like the global model) -> these, with it in its places"""


class Tally(NamedTuple):
    """What a round itself counts beside the uplink."""

    weight: jax.Array
    loss: jax.Array
    """weighted sum"""
    clients: jax.Array
    excluded: jax.Array
    """all [], float32"""
    held: PyTree
    """``Count`` of the weights that clients keep of each array, where they decide that themselves;
    else None"""
    votes: PyTree
    """of every weight the weight of the clients that hold it, for pruners that take proposals"""
    report: PyTree
    """weighted sum of what clients report"""
    asked: jax.Array | None
    """[] float32, clients that were asked to report"""
