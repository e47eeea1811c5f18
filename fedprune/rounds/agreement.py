"""What must fit: the kinds of stages, and the numbers of clients that they were built for."""

from __future__ import annotations

import jax

from fedprune import check
from fedprune.types import (
    Air,
    Clients,
    Downlink,
    Participation,
    Personal,
    Pruner,
    Server,
    Uplink,
)


def kinds(
    uplink: Uplink,
    server: Server,
    participation: Participation,
    pruner: Pruner | None,
    downlink: Downlink | None = None,
    personal: Personal | None = None,
) -> None:
    """Refuses stages of another kind: an optax optimizer has the functions of a server, too.

    Raises:
      TypeError: a stage is of another kind.
    """
    check.kind("uplink", uplink, Uplink)
    check.kind("server", server, Server)
    check.kind("participation", participation, Participation)
    check.kind("pruner", pruner, Pruner, type(None))
    check.kind("downlink", downlink, Downlink, type(None))
    check.kind("personal", personal, Personal, type(None))


def population(clients: Clients, **known: int | None) -> None:
    """Compares what was built for a number of clients with the data's K; None is for any.

    A jitted program clamps an index beyond the end: a client that does not exist would be the last
    one once more.

    Raises:
      ValueError: a number that is not K.
    """
    count = clients.rows.shape[0]
    for name, number in {**known, "sizes": clients.size.shape[0]}.items():
        if number not in (None, count):
            raise ValueError(f"{name}: for {number} clients, but the data has {count}")


def agree(
    clients: Clients,
    participation: Participation,
    uplink: Uplink,
    ids: jax.Array,
    air: Air,
    **known: int | None,
) -> None:
    """Compares whatever carries K or S, where a round meets the data; shapes are static.

    Args:
      **known: K of what else a round has, by name.

    Raises:
      ValueError: a number of clients that is not the data's, or channels not of the cohort's size.
    """
    population(clients, participation=participation.clients, uplink=uplink.clients, **known)
    if ids.shape != (participation.size,):
        raise ValueError(f"participation: select gives {ids.shape}, but size={participation.size}")
    for leaf in jax.tree.leaves(air._replace(common=(), memory=None)):
        if leaf.shape[:1] != ids.shape:
            raise ValueError(f"uplink: prepare gives {leaf.shape} for {ids.shape[0]} clients")
