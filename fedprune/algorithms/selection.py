"""Who takes part: by channel, by how long a client has waited, and by its last loss.

A deterministic mixture of three rules of the field: the best channels (fast and cheap rounds), the
largest age of information (everybody's examples are seen), and the largest loss (power of choice:
Cho, Wang, Joshi, Client Selection in Federated Learning, 2020). In every round the S clients with
the largest

  score_k = a log2(1 + |h_k|^2) + b age_k + c loss_k

are chosen, of equal scores the first. age_k is the number of rounds since client k's update last
counted, loss_k its mean training loss then; both are 0 at first, so unseen clients have the largest
age. Channels are those in which the chosen ones then send, so the uplink has to be one that can
tell them (``Uplink.survey``). Pilots and the reports of the losses are not billed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedprune.types import Participation


class Memory(NamedTuple):
    """What the server remembers of every client."""

    age: jax.Array
    """[K] int32, rounds since its update counted"""
    loss: jax.Array
    """[K] its last training loss"""


def by_channel_age_and_loss(
    clients: int, size: int, channel=1.0, age=1.0, loss=1.0
) -> Participation:
    """S = ``size`` of K = ``clients``; the three weights a, b and c may be traced."""

    def select(candidates):
        kept = candidates.state
        score = channel * jnp.log2(1.0 + candidates.gains)
        score += age * kept.age.astype(jnp.float32) + loss * kept.loss
        return lax.top_k(score, size)[1].astype(jnp.int32)

    def learn(kept, outcome):
        counted = outcome.counted
        old = kept.age[outcome.ids] + 1
        ages = (kept.age + 1).at[outcome.ids].set(jnp.where(counted, 0, old))
        losses = jnp.where(counted, outcome.losses, kept.loss[outcome.ids])
        return Memory(ages, kept.loss.at[outcome.ids].set(losses))

    def init():
        return Memory(jnp.zeros(clients, jnp.int32), jnp.zeros(clients, jnp.float32))

    def numbers(kept):
        return {"oldest": kept.age.max()}

    return Participation(size, select, clients, init, learn, gains=True, numbers=numbers)
