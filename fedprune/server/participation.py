"""Who takes part in a round."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import check
from fedprune.types import Candidates, Participation


def full(clients: int) -> Participation:
    """All clients, every round.

    Raises:
      ValueError: no clients.
    """
    check.whole("clients", clients, 1)
    return Participation(clients, lambda _: jnp.arange(clients, dtype=jnp.int32), clients)


def uniform(clients: int, size: int) -> Participation:
    """``size`` of the clients, drawn anew every round, uniformly and without replacement.

    They are those with the smallest of K random numbers of 29 bits, as if these were sorted.

    Raises:
      ValueError: unless 1 <= size <= clients.
    """
    check.whole("clients", clients, 1)
    check.whole("size", size, 1, clients)
    if size == clients:
        return full(clients)

    def select(candidates: Candidates) -> jax.Array:
        # The numbers that jax.random.permutation sorts, up to 1625 clients. As positive floats,
        # none of them denormal, they keep their order, and of floats XLA's CPU backend finds the
        # first without sorting.
        numbers = jax.random.bits(jax.random.split(candidates.key)[1], (clients,))
        floats = lax.bitcast_convert_type((numbers >> 3) + jnp.uint32(2**29), jnp.float32)
        return lax.top_k(-floats, size)[1]

    return Participation(size, select, clients)
