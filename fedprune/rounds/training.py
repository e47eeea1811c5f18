"""The training of a cohort: what its clients find, send and keep.

Device-agnostic: everything about devices is in ``mesh``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedprune import bill, check, mesh, rng, tree
from fedprune.rounds.state import Edges, Stratum, Tally
from fedprune.types import (
    Air,
    Clients,
    Downlink,
    Key,
    LocalUpdate,
    Mask,
    Params,
    Pruner,
    PyTree,
    Report,
    Sender,
    Total,
    Trained,
    Uplink,
)

WEIGHTINGS = ("examples", "plain")
"""How clients count in means: by their number of examples D_k, or all the same."""


class Given(NamedTuple):
    """What all clients of a cohort are given."""

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


Trainer = Callable[[Given, Store], tuple[Total, Store, Found | None]]
"""-> (total over the cohort, whose sum is (what the uplink adds up, ``Tally``); what is kept of
every client from now on; what came of each, where somebody wants to know)"""


class _Stages(NamedTuple):
    """What a cohort's training needs to know of its round."""

    uplink: Uplink
    weighting: str
    edges: Edges | None
    downlink: Downlink | None
    proposals: bool
    """whether clients may keep weights outside the mask that they received"""
    widened: bool
    """whether clients train smaller networks, and so have masks of their own"""
    findings: bool


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
    stages = _Stages(uplink, weighting, edges, downlink, proposals, bool(strata), findings)

    def of_all(train: LocalUpdate, of: Given, store: Store, size: int):
        def one(of: Given, position: jax.Array, row: Store):
            return _contribution(stages, train, of, position, row)

        return mesh.collect(one, of, size, layout, store, of.ids)

    def cohort(of: Given, store: Store) -> tuple[Total, Store, Found | None]:
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


def _contribution(
    stages: _Stages, train: LocalUpdate, of: Given, position: jax.Array, row: Store
) -> tuple[Total, Store, Any]:
    """What one client adds to the total, what is kept of it, and what came of it."""
    edges = stages.edges
    k = of.ids[position]
    each = of.air._replace(common=(), memory=None), of.probes
    here, probe = jax.tree.map(lambda leaf: leaf[position], each)
    client = of.clients.client(k)._replace(
        ratio=here.ratio, personal=row.personal, message=of.message, probe=probe
    )
    received = of.models
    if edges is not None:
        received = jax.tree.map(lambda m: m[edges.of[k]], of.models)
    if stages.downlink is not None:
        key = rng.stream(of.key, "downlink", of.number, k)
        received = stages.downlink.send(key, received, of.mask)
    key = rng.stream(of.key, "local", of.number, k)
    trained = train(key, of.round, received, of.mask, client)
    if not stages.widened:
        _refuse_outside(trained.held, of.effective)
    _refuse_personal(trained.personal, row.personal)
    if stages.proposals and trained.held is None:  # no proposal: what it received, not everything
        trained = trained._replace(held=of.mask)
    size = client.size.astype(jnp.float32)
    one, none = jnp.ones_like(size), jnp.zeros_like(size)
    weight = size if stages.weighting == "examples" else one
    new, report = trained.personal, trained.report
    trained = trained._replace(personal=None, report=None)  # nothing of these is sent
    sent = stages.uplink.encode(
        Sender(here.state, of.air.common, trained, of.effective, weight, row.memory)
    )
    told, asked = _told(report, weight)
    finite = tree.all_finite((trained.delta, sent.total, trained.loss, new, told))
    mine = Tally(
        weight=weight,
        loss=weight * trained.loss,
        clients=one,
        excluded=none,
        held=_counts(trained.held),
        votes=_votes(trained, weight) if stages.proposals else None,
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
    return part, row, Found(counted, trained.loss) if stages.findings else ()


def _told(report: Report | None, weight: jax.Array) -> tuple[PyTree, jax.Array | None]:
    """What a client adds to the sum of reports, and to the number of those that were asked.

    What nobody asked for is not sent: it neither arrives nor, if it is NaN, excludes.
    """
    if report is None:
        return None, None
    nothing = jax.tree.map(jnp.zeros_like, report.values)
    wanted = tree.where(jnp.asarray(report.asked), report.values, nothing)
    return tree.scale(weight, wanted), jnp.asarray(report.asked, jnp.float32)


def _refuse_personal(new: PyTree, old: PyTree) -> None:
    """Refuses training that keeps what the round does not carry, or gives nothing back."""
    if (new is None) != (old is None):
        why = "keeps personal parts" if old is None else "gives no personal part back"
        raise ValueError(
            f"local: {why} (Trained.personal), which rounds with edge servers do not carry,"
            " and others where they are built with `personal`"
        )


def _placed(part: Total, edge: jax.Array, count: int) -> Total:
    """A contribution in its edge server's row of totals [G, ...], the identity in the others."""

    def rows(mine: jax.Array, other: jax.Array) -> jax.Array:
        here = (jnp.arange(count) == edge).reshape((count,) + (1,) * mine.ndim)
        return jnp.where(here, mine[None], other[None])

    return jax.tree.map(rows, part, mesh.identity(part))


def _votes(trained: Trained, weight: jax.Array) -> PyTree:
    return jax.tree.map(lambda m: jnp.where(m, weight, 0.0), trained.held)


def _counts(mask: Mask) -> PyTree:
    """How many weights a mask keeps of each array, ``Count``; None of None."""
    return jax.tree.map(lambda m: bill.count(jnp.sum(m, dtype=jnp.int32)), mask)


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


def _widened(stratum: Stratum, of: Given) -> LocalUpdate:
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
