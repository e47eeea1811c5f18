"""Who takes part in a round."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedprune.types import Key, Participation


def full(clients: int) -> Participation:
    """All clients, every round."""
    return Participation(clients, lambda key: jnp.arange(clients, dtype=jnp.int32))


def uniform(clients: int, size: int) -> Participation:
    """``size`` of the clients, drawn anew every round, uniformly and without replacement.

    Raises:
      ValueError: unless 1 <= size <= clients.
    """
    if not 1 <= size <= clients:
        raise ValueError(f"cohort size={size} is not between 1 and the {clients} clients")
    if size == clients:
        return full(clients)

    def select(key: Key) -> jax.Array:
        return jax.random.permutation(key, clients)[:size].astype(jnp.int32)

    return Participation(size, select)
