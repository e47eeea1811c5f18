"""A selection by channel, age and loss: who is heard well, was long not asked, and fits badly.

Ours, from three known parts: the channel as in opportunistic scheduling (Knopp, Humblet, 1995), the
age as in Yang et al., Age-Based Scheduling Policy for Federated Learning in Mobile Edge Networks,
2020, and the loss as in Cho et al., Towards Understanding Biased Client Selection in Federated
Learning, 2022. In round t the cohort are the S clients of largest score

  channel |h_k(t)|^2 + age A_k(t) + loss F_k,         of equal scores those with the smaller number,

  A_k  rounds since k was last chosen: A_k <- 0 where k is chosen, else A_k + 1; at first 0
  F_k  k's mean training loss when its update last counted; ``unknown`` before

Nothing is drawn at random but what the link draws.

Billed beside the link: the losses, a number of 32 bits from every client whose update counts. The
channels of all K clients come from pilots, which are not billed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedprune.types import Participation

Number = jax.Array | float


class Memory(NamedTuple):
    """What the server remembers of all clients, [K] each."""

    age: jax.Array
    """int32"""
    loss: jax.Array
    """float32"""


def participation(
    clients: int,
    size: int,
    channel: Number = 1.0,
    age: Number = 1.0,
    loss: Number = 1.0,
    unknown: Number = 0.0,
) -> Participation:
    """``size`` of the clients; the numbers are those above, and may be traced.

    Raises:
      ValueError: unless 1 <= size <= clients.
    """
    if not 1 <= size <= clients:
        raise ValueError(f"cohort size={size} is not between 1 and the {clients} clients")

    def init() -> Memory:
        return Memory(jnp.zeros(clients, jnp.int32), jnp.full(clients, unknown, jnp.float32))

    def select(candidates) -> jax.Array:
        known: Memory = candidates.state
        score = channel * candidates.gains + loss * known.loss
        return lax.top_k(score + age * known.age.astype(jnp.float32), size)[1]

    def learn(known: Memory, outcome) -> Memory:
        ids = outcome.ids
        new = jnp.where(outcome.counted, outcome.losses, known.loss[ids])
        return Memory((known.age + 1).at[ids].set(0), known.loss.at[ids].set(new))

    def numbers(known: Memory) -> dict[str, jax.Array]:
        return {"age_mean": jnp.mean(known.age.astype(jnp.float32)), "age_most": known.age.max()}

    return Participation(size, select, clients, init, learn, gains=True, numbers=numbers)
