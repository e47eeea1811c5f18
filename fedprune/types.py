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
    message: PyTree = None
    """what the server sends to all clients beside the model (``Server.message``); None: nothing"""
    probe: PyTree = None
    """what it found when it was asked before the cohort was decided (``Probe``); None: no probe"""

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
    report: Report | None = None
    """what it tells the server beside the update; None: nothing, in any round"""


class Report(NamedTuple):
    """Numbers that clients tell the server beside their updates; the server learns their mean."""

    values: PyTree
    """float arrays of the same shapes in every round"""
    asked: jax.Array | bool = True
    """[] bool, whether this round asks for it; the same for all clients, which are billed 32 bits a
    number in the rounds in which it is True"""


LocalUpdate = Callable[[Key, jax.Array, Params, Mask, Client], Trained]
"""Trains ONE client: (key, t, params, mask, client) -> trained. The round vmaps it.

``t`` [] int32 is the round, counted from 0. ``params`` is the model that the client received, zero
where ``mask``, which all clients of the round share, is False; so is delta.
"""


class Personal(NamedTuple):
    """What every client's training keeps from round to round: a part of its model, or a memory."""

    clients: int
    """K"""
    split: Callable[[Params], tuple[Params, PyTree]]
    """a whole model -> (the global part, which is sent; one client's personal part)"""
    join: Callable[[Params, PyTree], Params]
    """(global part, personal part) -> the client's model"""
    own_model: bool = True
    """whether clients have models of their own to evaluate; False: what is kept is a memory, and
    the model is the global one"""


class Before(NamedTuple):
    """What a stage of the server sees when a round begins."""

    key: Key
    """of this round and stage"""
    round: jax.Array
    """[] int32"""
    params: Params
    """the global model"""
    mask: Mask
    """in force until now; all True before the first round"""


class Outcome(NamedTuple):
    """What a round has brought, when its updates have arrived."""

    key: Key
    """of this round and stage"""
    round: jax.Array
    """[] int32"""
    params: Params
    """the global model: for ``Server.update`` before its step, for the others after it"""
    mask: Mask
    """that was in force; None: nothing is pruned"""
    update: Params
    """the received estimate of the mean update, zero if it was not finite or nobody was heard"""
    heard: jax.Array
    """[] bool, whether anybody's update arrived"""
    cost: Cost
    """of all directions"""
    clients: jax.Array | None = None
    """[] float32, how many clients' updates counted; None: with edge servers"""
    report: PyTree = None
    """mean of ``Trained.report`` over the clients that counted, weighted like updates; zero in
    rounds that ask for none. None: clients do not report"""
    asked: jax.Array | None = None
    """[] bool, whether clients reported in this round"""
    held: PyTree = None
    """of every weight the share of the clients that counted, weighted like updates, that hold it;
    only for pruners that take ``proposals``"""
    ids: jax.Array | None = None
    """[S] the cohort; only for ``Participation.learn``, as are the next two"""
    counted: jax.Array | None = None
    """[S] bool, whose update counted"""
    losses: jax.Array | None = None
    """[S] mean training loss of each; those that counted are billed 32 bits each"""


SCOPES = ("server", "client", "own")
"""What a round's mask, decided from the global model, applies to.

  server  the global model, before the broadcast and again after aggregation: pruned weights stay
          zero for good
  client  the model that clients receive; the server keeps its own dense
  own     only the evaluated model. The broadcast is dense, and every client decides a mask of its
          own while it trains (``Trained.held``)
"""


class Pruner(NamedTuple):
    """Decides the mask of each round."""

    init: Callable[[Params], PyTree]
    """params -> state"""
    update: Callable[[PyTree, Before], tuple[Mask, PyTree]]
    """(state, before) -> (mask, state), before the broadcast of each round"""
    scope: str = "server"
    """one of ``SCOPES``"""
    revise: Callable[[PyTree, Outcome], tuple[Mask, PyTree]] | None = None
    """(state, outcome) -> (mask, state), after the server's step: for pruners that learn from what
    was received. In scope "server" the new mask is applied to the new model at once, so weights
    outside the old mask stay only if the new one has them. None: the mask is decided before."""
    proposals: bool = False
    """whether clients may keep weights outside the mask that they received (``Trained.held``); the
    effective mask is then every weight, and ``revise``, which must be given, decides what stays"""
    numbers: Callable[[PyTree], dict[str, jax.Array]] | None = None
    """state -> named numbers for the round's row"""


class Count(NamedTuple):
    """An integer that may be larger than 32 bits hold: 65536 high + low; see ``fedprune.bill``."""

    high: jax.Array
    """float32, whole numbers, or infinity"""
    low: jax.Array
    """int32, at least 0"""

    def __int__(self) -> int:
        return int(self.high) * 65536 + int(self.low)

    def __float__(self) -> float:
        return float(self.high) * 65536.0 + float(self.low)

    def __format__(self, spec: str) -> str:
        return format(float(self), spec) if spec else str(int(self))


class Total(NamedTuple):
    """What an uplink accumulates over clients; merging is addition, and maximum."""

    sum: PyTree
    """leaves that add up, identity 0"""
    max: PyTree
    """leaves of which the largest counts, identity -inf"""


class Cohort(NamedTuple):
    """What an uplink sees of a round's cohort before anybody trains."""

    key: Key
    """root key of the run"""
    round: jax.Array
    """[] int32; with edge servers, the number of the edge round"""
    ids: jax.Array
    """[S] int32, the clients"""
    mask: Mask = None
    """the effective mask: the weights of which an update may arrive, the same for all clients;
    None: every weight. It is the mask that the clients receive, and every weight as soon as they
    decide masks of their own, since the server does not know which weights these keep."""
    server: jax.Array | None = None
    """[S] int32, which edge server hears each client; None: one server hears all"""
    servers: int = 1
    """how many edge servers there are"""
    memory: PyTree = None
    """what the uplink keeps at the server"""


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
    common: PyTree = ()
    """what ``encode`` needs that is the same for all clients, and so is made once a round"""
    memory: PyTree = None
    """what the uplink keeps at the server from now on; ``finish`` may change it again"""


class Sender(NamedTuple):
    """One client at the moment when it sends."""

    state: PyTree
    """its slice of ``Air.state``"""
    common: PyTree
    """``Air.common``"""
    trained: Trained
    mask: Mask
    """the effective mask, ``Cohort.mask``"""
    weight: jax.Array
    """[], how much it counts in the mean"""
    memory: PyTree = None
    """what the uplink keeps of this client"""


class Sent(NamedTuple):
    """What one client has sent."""

    total: Total
    """its contribution"""
    memory: PyTree = None
    """what the uplink keeps of this client from now on; not kept if the client's update is not
    finite or its channel too weak to send"""


class Arrival(NamedTuple):
    """What a server has when its cohort has sent."""

    key: Key
    """of the receiver's noise"""
    air: Air
    total: Total
    """over those clients whose update arrives"""
    mask: Mask
    """the effective mask"""


class Received(NamedTuple):
    """What a server makes of what arrived."""

    update: Params
    """the estimate of the mean delta"""
    cost: Cost
    memory: PyTree = None
    """what the uplink keeps at the server; None: that of ``Air.memory``"""
    numbers: dict[str, jax.Array] = {}  # noqa: RUF012
    """named numbers for the round's row"""


class Cost(NamedTuple):
    """What one round's links used."""

    channel_uses: Count
    """complex symbols; over the air all clients share them, else they add up"""
    side_information: Count
    """real scalars sent beside the symbols, both directions"""
    noise_variance: jax.Array
    """[] float32, receiver noise variance per received weight of the mean update"""
    seconds: jax.Array
    """[] float32, time on the air; with ``link.ofdma``, computing included"""
    energy: jax.Array
    """[] float32, joules that all clients together sent; with ``link.ofdma``, computing included"""


class Uplink(NamedTuple):
    """Clients to server, as a commutative accumulation over clients."""

    prepare: Callable[[Cohort], Air]
    """the cohort -> its channels"""
    encode: Callable[[Sender], Sent]
    """one client -> its contribution"""
    finish: Callable[[Arrival], Received]
    """what arrived -> estimate of the mean delta, and cost"""
    init: Callable[[Params], PyTree] | None = None
    """params -> what the uplink keeps at the server before the first round; None: nothing"""
    remember: Callable[[Params], PyTree] | None = None
    """params -> what it keeps of one client before the first round, such as the error that
    compression left; None: nothing"""
    survey: Callable[[Survey], tuple[jax.Array, PyTree]] | None = None
    """-> (power gains [K] of all clients in the coming round, memory), for cohorts that are chosen
    by channel; the channels of the cohort are then those that were surveyed"""
    masks: bool = False
    """whether its own bill has per-client masks (``Trained.held``) in it. False: where the
    pruner takes proposals, and so is told who holds what, the round bills every client that counts
    one bit a weight, in numbers of 32 bits rounded up, as side information"""
    clients: int | None = None
    """K, where it looks up anything of its own by a client's id; None: nothing, so any K will do"""


class Survey(NamedTuple):
    """What an uplink needs to know to tell everybody's channel."""

    key: Key
    """root key of the run"""
    round: jax.Array
    """[] int32"""
    clients: int
    """K"""
    memory: PyTree = None
    """what the uplink keeps at the server"""


class Downlink(NamedTuple):
    """Server to clients: one model, which every client receives over a channel of its own."""

    send: Callable[[Key, Params, Mask], Params]
    """(key of one client's channel, params, mask) -> the model as this client has it"""
    bill: Callable[[Params, Mask, bool], Cost]
    """(params, mask, whether the receiver knows the mask already) -> what one broadcast used; all
    clients hear it"""


Reception = Callable[[Key, jax.Array, Params, Mask], Params]
"""(key of the step, number of the step over all rounds [] int32, trained params, mask) -> params of
the network at which the step takes its loss: what a receiver would have."""


class Server(NamedTuple):
    """Applies what was received to the global model."""

    init: Callable[[Params], PyTree]
    """params -> state"""
    update: Callable[[PyTree, Outcome], tuple[Params, PyTree]]
    """(state, outcome) -> (params, state); not called for a round in which nobody was heard"""
    message: Callable[[PyTree], PyTree] | None = None
    """state -> what all clients get beside the model (``Client.message``), billed 32 bits a number
    once a round; None: nothing"""
    numbers: Callable[[PyTree], dict[str, jax.Array]] | None = None
    """state -> named numbers for the round's row"""


class Candidates(NamedTuple):
    """What a selection sees of all K clients before it chooses."""

    key: Key
    """of this round"""
    round: jax.Array
    """[] int32"""
    sizes: jax.Array
    """[K] int32, D_k"""
    gains: jax.Array | None = None
    """[K] power gains |h_k|^2 in this round; only for selections that ask for them"""
    state: PyTree = None
    """the selection's own"""


class Probe(NamedTuple):
    """A phase before the cohort is decided: more clients are asked, some of them go on."""

    size: int
    """how many clients ``Participation.select`` chooses, and are asked"""
    ask: Callable[[Key, jax.Array, Params, Mask, Client], PyTree]
    """(key, round, params, mask, client) -> its answer, arrays that are billed 32 bits a number;
    the client finds it again as ``Client.probe`` if it goes on"""
    decide: Callable[[Candidates, jax.Array, PyTree], jax.Array]
    """(candidates, ids [size], answers [size, ...]) -> [S] positions in ids that go on"""


class Participation(NamedTuple):
    """Who takes part in a round."""

    size: int
    """S, the cohort's size"""
    select: Callable[[Candidates], jax.Array]
    """-> [S] int32 client ids in 0..clients-1 (``Probe.size`` with a probe), without repetition"""
    clients: int
    """K, of whom it picks"""
    init: Callable[[], PyTree] | None = None
    """-> state before the first round; None: none"""
    learn: Callable[[PyTree, Outcome], PyTree] | None = None
    """(state, outcome) -> state: what came of those that were chosen"""
    gains: bool = False
    """whether ``Candidates.gains`` is wanted, of an uplink that can tell (``Uplink.survey``)"""
    probe: Probe | None = None
    numbers: Callable[[PyTree], dict[str, jax.Array]] | None = None
    """state -> named numbers for the round's row"""
