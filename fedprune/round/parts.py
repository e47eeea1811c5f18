"""What flat and hierarchical rounds share: the state, the row, and the training of a cohort.

Device-agnostic: everything about devices is in ``mesh``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedprune import bill, check, mesh, rng, tree
from fedprune.types import (
    Air,
    Before,
    Clients,
    Cost,
    Count,
    Downlink,
    Key,
    LocalUpdate,
    Mask,
    Outcome,
    Params,
    Participation,
    Personal,
    Pruner,
    PyTree,
    Sender,
    Server,
    Total,
    Trained,
    Uplink,
)

WEIGHTINGS = ("examples", "plain")
"""How clients count in means: by their number of examples D_k, or all the same."""


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


class Setting(NamedTuple):
    """What all clients of a cohort find."""

    key: Key
    """root key of the run"""
    round: jax.Array
    """that local training is told"""
    number: jax.Array
    """in the addresses of its random numbers: the same, except with edge rounds"""
    models: Params
    """that are broadcast; with edge servers [G, ...]"""
    mask: Mask
    """of what is broadcast"""
    effective: Mask
    """of what may arrive"""
    clients: Clients
    ids: jax.Array
    """[S]"""
    air: Air
    message: PyTree = None
    probes: PyTree = None
    """leaves [S, ...]"""


class Store(NamedTuple):
    """What is kept of every client, leaves [K, ...] in blocks of clients on the devices."""

    personal: PyTree = None
    memory: PyTree = None


class Found(NamedTuple):
    """What came of each client of a cohort, [S]."""

    counted: jax.Array
    loss: jax.Array


Trainer = Callable[[Setting, Store], tuple[Total, Store, Found | None]]
"""-> (total over the cohort, whose sum is (what the uplink adds up, ``Tally``); what is kept of
every client from now on; what came of each, where somebody wants to know)"""


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


def masks(key: Key, pruner: Pruner | None, state: State) -> Masks:
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


def trainer(
    local: Any,
    uplink: Uplink,
    layout: mesh.Layout,
    weighting: str,
    edges: Edges | None = None,
    downlink: Downlink | None = None,
    pruner: Pruner | None = None,
    findings: bool = False,
    strata: tuple[Stratum, ...] = (),
) -> Trainer:
    """Trains a cohort and adds up what its clients send.

    With ``edges``, the models received have a leading axis [G], and so have all leaves of the
    total: every client trains its edge server's model and adds to that server's total.

    Args:
      local: trains one client; None: see ``strata``.
      findings: whether somebody wants to know what came of each client.
      strata: of clients that train smaller networks, in place of ``local``.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting={weighting!r} is not one of {WEIGHTINGS}")
    proposals = pruner is not None and pruner.proposals

    def contribution(train: LocalUpdate, of: Setting, position: jax.Array, row: Store):
        k = of.ids[position]
        each = of.air._replace(common=(), memory=None), of.probes
        here, probe = jax.tree.map(lambda leaf: leaf[position], each)
        client = of.clients.client(k)._replace(
            ratio=here.ratio, personal=row.personal, message=of.message, probe=probe
        )
        received = of.models
        if edges is not None:
            received = jax.tree.map(lambda m: m[edges.of[k]], of.models)
        if downlink is not None:
            key = rng.stream(of.key, "downlink", of.number, k)
            received = downlink.send(key, received, of.mask)
        key = rng.stream(of.key, "local", of.number, k)
        trained = train(key, of.round, received, of.mask, client)
        if not strata:
            _refuse_outside(trained.held, of.effective)
        if proposals and trained.held is None:  # no proposal: what it received, and not everything
            trained = trained._replace(held=of.mask)
        size = client.size.astype(jnp.float32)
        one, none = jnp.ones_like(size), jnp.zeros_like(size)
        weight = size if weighting == "examples" else one
        new, report = trained.personal, trained.report
        if (new is None) != (row.personal is None):
            why = "keeps personal parts" if row.personal is None else "gives no personal part back"
            raise ValueError(
                f"local: {why} (Trained.personal), which rounds with edge servers do not carry,"
                " and others where they are built with `personal`"
            )
        trained = trained._replace(personal=None, report=None)  # nothing of these is sent
        sent = uplink.encode(
            Sender(here.state, of.air.common, trained, of.effective, weight, row.memory)
        )
        told, asked = None, None
        if report is not None:
            # What nobody asked for is not sent: it neither arrives nor, if it is NaN, excludes.
            nothing = jax.tree.map(jnp.zeros_like, report.values)
            wanted = tree.where(jnp.asarray(report.asked), report.values, nothing)
            told, asked = tree.scale(weight, wanted), jnp.asarray(report.asked, jnp.float32)
        finite = tree.all_finite((trained.delta, sent.total, trained.loss, new, told))
        mine = Tally(
            weight=weight,
            loss=weight * trained.loss,
            clients=one,
            excluded=none,
            held=_counts(trained.held),
            votes=_votes(trained, weight) if proposals else None,
            report=told,
            asked=asked,
        )
        part = Total((sent.total.sum, mine), sent.total.max)
        takes_part = here.active & (client.size > 0)
        counted = takes_part & finite
        part = tree.where(counted, part, mesh.identity(part))
        signal, tally = part.sum
        excluded = jnp.where(takes_part & ~finite, one, none)
        part = Total((signal, tally._replace(excluded=excluded)), part.max)
        row = Store(
            tree.where(finite & (client.size > 0), new, row.personal),
            tree.where(counted, sent.memory, row.memory),
        )
        if edges is not None:
            part = _placed(part, edges.of[k], edges.servers)
        return part, row, Found(counted, trained.loss) if findings else ()

    def of_all(train: LocalUpdate, of: Setting, store: Store, size: int):
        def one(of: Setting, position: jax.Array, row: Store):
            return contribution(train, of, position, row)

        return mesh.collect(one, of, size, layout, store, of.ids)

    def cohort(of: Setting, store: Store) -> tuple[Total, Store, Found | None]:
        size = of.ids.shape[0]
        if local is not None:
            total, store, found = of_all(local, of, store, size)
            return total, store, found if findings else None
        if sum(s.size for s in strata) != size:
            raise ValueError(
                f"strata: of {[s.size for s in strata]} clients, but the cohort has {size}"
            )
        totals, each, first = [], [], 0
        for stratum in strata:
            chosen = slice(first, first + stratum.size)
            air = jax.tree.map(lambda v, c=chosen: v[c], of.air._replace(common=(), memory=None))
            air = air._replace(common=of.air.common, memory=of.air.memory)
            here = of._replace(
                ids=of.ids[chosen],
                air=air,
                probes=jax.tree.map(lambda v, c=chosen: v[c], of.probes),
            )
            total, store, found = of_all(_widened(stratum, of), here, store, stratum.size)
            totals.append(total)
            each.append(found)
            first += stratum.size
        total = totals[0]
        for other in totals[1:]:
            total = mesh.merge(total, other)
        found = jax.tree.map(lambda *v: jnp.concatenate(v), *each) if findings else None
        return total, store, found

    return cohort


def strata_of(local: Any) -> tuple[Stratum, ...]:
    """The strata, where ``local`` is not one training for all.

    Raises:
      TypeError: it is neither.
    """
    if isinstance(local, tuple) and local and all(isinstance(s, Stratum) for s in local):
        return local
    check.function("local", local)
    return ()


def _refuse_outside(held: Mask, effective: Mask) -> None:
    """Refuses masks of clients' own where all clients share one."""
    if held is not None and effective is not None:
        raise ValueError(
            "local: gives masks of clients' own (Trained.held), which may keep weights outside the"
            " mask that all clients share; take a pruner of scope 'own', one that takes proposals,"
            " or none"
        )


def _widened(stratum: Stratum, of: Setting) -> LocalUpdate:
    """A stratum's training as one of the global model; the rest of it is not held nor moved.

    What its clients hold is a part of the mask that all share, as long as they have none of their
    own."""

    def update(key: Key, t: jax.Array, params: Params, mask: Mask, client) -> Trained:
        small = stratum.narrow(params)
        small_mask = None if mask is None else stratum.narrow(mask)
        trained = stratum.local(key, t, small, small_mask, client)
        held = trained.held
        _refuse_outside(held, of.effective)
        if held is None:
            held = small_mask
        if held is None:
            held = jax.tree.map(lambda v: jnp.ones(v.shape, bool), small)
        nothing = jax.tree.map(jnp.zeros_like, params)
        nowhere = jax.tree.map(lambda v: jnp.zeros(v.shape, bool), params)
        return trained._replace(
            delta=stratum.widen(trained.delta, nothing), held=stratum.widen(held, nowhere)
        )

    return update


def _votes(trained: Trained, weight: jax.Array) -> PyTree:
    return jax.tree.map(lambda m: jnp.where(m, weight, 0.0), trained.held)


def _placed(part: Total, edge: jax.Array, count: int) -> Total:
    """A contribution in its edge server's row of totals [G, ...], the identity in the others."""

    def rows(mine: jax.Array, other: jax.Array) -> jax.Array:
        here = (jnp.arange(count) == edge).reshape((count,) + (1,) * mine.ndim)
        return jnp.where(here, mine[None], other[None])

    return jax.tree.map(rows, part, mesh.identity(part))


# The row of a round -----


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


def _counts(mask: Mask) -> PyTree:
    """How many weights a mask keeps of each array, ``Count``; None of None."""
    return jax.tree.map(lambda m: bill.count(jnp.sum(m, dtype=jnp.int32)), mask)


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


# What must fit -----


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
