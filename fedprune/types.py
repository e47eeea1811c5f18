"""Words that every room uses: the contracts between the stages of a federated round.

Stages are NamedTuples of plain functions that close over their hyperparameters, which may be JAX
tracers. Shapes: K clients in the federation, S of them in a round's cohort, d weights in a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any
Params = PyTree
"""A model's weights: a pytree of float arrays."""
Mask = PyTree
"""Which weights are kept: booleans shaped like ``Params``, or None where nothing is pruned."""
Key = jax.Array
"""A typed JAX PRNG key."""


class Model(NamedTuple):
    """A network as two pure functions."""

    init: Callable[[Key], Params]
    """key -> params"""
    apply: Callable[[Params, jax.Array], jax.Array]
    """(params, x [b, ...]) -> logits [b, classes]"""
    train: Callable[[Params, jax.Array], tuple[jax.Array, Params]] | None = None
    """For networks with running statistics (batch normalisation): (params, x [b, ...]) ->
    (logits [b, classes], params in which the statistics have taken in this batch). Statistics are
    the leaves below a part "statistics" of their path. They are part of ``params``, so they are
    sent, averaged and billed as weights are, but no optimizer steps them (``tree.statistics_of``).
    Local training uses it in place of ``apply`` where it is given."""


class Client(NamedTuple):
    """What one client can see: its rows of the shared example arrays."""

    examples: jax.Array
    """[N, ...] raw examples of the whole federation, uint8 for images"""
    labels: jax.Array
    """[N] integer classes"""
    rows: jax.Array
    """[n_max] int32 indices into ``examples``; only the first ``size`` are this client's"""
    size: jax.Array
    """[] int32, D_k, the number of its examples"""
    shift: jax.Array
    scale: jax.Array
    """[1, ..., 1, channels], of an example's rank: x = (raw - shift) * scale"""
    classes: jax.Array | None = None
    """[C] int32, examples of each class; its shape says how many classes there are, also while a
    program is traced. None: that is not known"""
    ratio: jax.Array | None = None
    """[] share of its prunable weights that it was told to prune (``Air.ratio``)"""
    personal: PyTree = None
    """what it keeps to itself (``Personal``); None: nothing"""

    def take(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Examples at ``positions`` [b] of this client's rows: x [b, ...] float32, y [b] int32."""
        rows = self.rows[positions]
        raw = self.examples[rows].astype(jnp.float32)
        x = (raw - self.shift[None]) * self.scale[None]
        return x, self.labels[rows].astype(jnp.int32)

    def answers(self, logits: jax.Array) -> jax.Array:
        """The logits [b, outputs] of a network, which must have an output for every class.

        Raises:
          ValueError: it has not.
        """
        if self.classes is not None and not (
            logits.ndim == 2 and logits.shape[1] >= len(self.classes)
        ):
            raise ValueError(
                f"model: logits [batch, outputs] are {list(logits.shape)}, but the data have"
                f" {len(self.classes)} classes"
            )
        return logits


class Clients(NamedTuple):
    """All K clients: flat example arrays that every client shares, and one index table."""

    examples: jax.Array
    """[N, ...]"""
    labels: jax.Array
    """[N]"""
    rows: jax.Array
    """[K, n_max] int32, padded with zeros beyond each client's size"""
    size: jax.Array
    """[K] int32"""
    shift: jax.Array
    scale: jax.Array
    classes: jax.Array | None = None

    def client(self, k: jax.Array) -> Client:
        """Client k."""
        return Client(*self._replace(rows=self.rows[k], size=self.size[k]))


class Trained(NamedTuple):
    """What one client has after local training."""

    delta: Params
    """trained weights minus those that it received; zero where it keeps no weight"""
    loss: jax.Array
    """[] mean training loss over the local steps"""
    held: Mask = None
    """the weights that this client keeps, where clients decide that themselves; None: those that
    the round's mask keeps"""
    personal: PyTree = None
    """what the client keeps to itself from now on; it is never sent"""


LocalUpdate = Callable[[Key, jax.Array, Params, Mask, Client], Trained]
"""Trains ONE client: (key, t, params, mask, client) -> trained. The round vmaps it.

``t`` [] int32 is the round, counted from 0. ``params`` is the model that the client received, zero
where ``mask``, which all clients of the round share, is False; so is delta.
"""


class Personal(NamedTuple):
    """What every client keeps to itself from round to round."""

    clients: int
    """K"""
    split: Callable[[Params], tuple[Params, PyTree]]
    """a whole model -> (the global part, which is sent; one client's personal part)"""
    join: Callable[[Params, PyTree], Params]
    """(global part, personal part) -> the client's model"""


SCOPES = ("server", "client", "own")
"""What a round's mask, decided from the global model, applies to.

  server  the global model, before the broadcast and again after aggregation: pruned weights stay
          zero for good
  client  the model that clients receive; the server keeps its own dense
  own     only the evaluated model. The broadcast is dense, and every client decides a mask of its
          own while it trains (``Trained.held``)
"""


class Pruner(NamedTuple):
    """Decides the mask of each round from the global model."""

    init: Callable[[Params], PyTree]
    """params -> state"""
    update: Callable[[PyTree, Params, jax.Array], tuple[Mask, PyTree]]
    """(state, params, round [] int32) -> (mask, state)"""
    scope: str = "server"
    """one of ``SCOPES``"""


class Total(NamedTuple):
    """What an uplink accumulates over clients; merging is addition, and maximum."""

    sum: PyTree
    """leaves that add up, identity 0"""
    max: PyTree
    """leaves of which the largest counts, identity -inf"""


class Air(NamedTuple):
    """What a round's uplink knows of its cohort before anybody trains: its channels."""

    sends: jax.Array
    """[S] bool: who sends, and is billed"""
    active: jax.Array
    """[S] bool: whose update arrives; the others that send are lost (outage)"""
    state: PyTree
    """leaves [S, ...], one slice a client: whatever the uplink's ``encode`` needs"""
    ratio: jax.Array | None = None
    """[S] pruning ratios that were allocated with the channels; None: there is no allocation"""
    share: jax.Array | None = None
    """[S] shares of its server's band that were allocated to the clients; None, likewise"""


class Cost(NamedTuple):
    """What one round's uplink used."""

    channel_uses: jax.Array
    """[] float32, complex symbols; over the air all clients share them, else they add up"""
    side_information: jax.Array
    """[] int32, real scalars sent beside the symbols, both directions"""
    noise_variance: jax.Array
    """[] float32, receiver noise variance per received weight of the mean update"""
    seconds: jax.Array
    """[] float32, time on the air; with ``link.ofdma``, computing included"""
    energy: jax.Array
    """[] float32, joules that all clients together sent; with ``link.ofdma``, computing included"""


class Uplink(NamedTuple):
    """Clients to server, as a commutative accumulation over clients."""

    prepare: Callable[[Key, jax.Array, jax.Array], Air]
    """(root key of the run, round [] int32, cohort's ids [S]) -> the cohort's channels"""
    encode: Callable[[PyTree, Trained, Mask, jax.Array], Total]
    """(one client's slice of ``Air.state``, trained, mask, weight []) -> its contribution"""
    finish: Callable[[Key, Air, Total, Mask], tuple[Params, Cost]]
    """(key, the cohort's channels, total over it, mask) -> (estimate of the mean delta, cost)"""


class Downlink(NamedTuple):
    """Server to clients: one model, which every client receives over a channel of its own."""

    send: Callable[[Key, Params, Mask], Params]
    """(key of one client's channel, params, mask) -> the model as this client has it"""
    bill: Callable[[Params, Mask], Cost]
    """(params, mask) -> what one broadcast used; all clients hear it"""


Reception = Callable[[Key, jax.Array, Params, Mask], Params]
"""(key of the step, number of the step over all rounds [] int32, trained params, mask) -> params of
the network at which the step takes its loss: what a receiver would have."""


class Server(NamedTuple):
    """Applies the received mean update to the global model."""

    init: Callable[[Params], PyTree]
    """params -> state"""
    update: Callable[[PyTree, Params, Params], tuple[Params, PyTree]]
    """(state, params, received update) -> (params, state)"""


class Participation(NamedTuple):
    """Who takes part in a round."""

    size: int
    """S, the cohort's size"""
    select: Callable[[Key], jax.Array]
    """key -> [S] int32 client ids, without repetition"""
