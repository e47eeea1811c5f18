"""One federated round as one pure function, built from its stages.

global params ─ mask ─ broadcast ─► cohort of S clients
  ► local training     one client after another, or vmapped in chunks
  ► uplink.encode      accumulated over clients and devices
  ► uplink.finish      receiver noise, once; estimate of the mean update
  ► server.update      and the mask again where it is the server's
  ► pruner.revise, participation.learn      where they learn from what came
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedprune import bill, mesh, rng, tree
from fedprune.rounds import row
from fedprune.rounds.agreement import agree, kinds
from fedprune.rounds.stages import Masks, decided, initial, served
from fedprune.rounds.state import Round, RoundInfo, State, Stratum, Tally
from fedprune.rounds.training import Found, Given, Store, Trainer, strata_of, trainer
from fedprune.types import (
    Arrival,
    Candidates,
    Clients,
    Cohort,
    Cost,
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
    Server,
    Survey,
    Total,
    Uplink,
)


def build(
    *,
    local: LocalUpdate | tuple[Stratum, ...],
    uplink: Uplink,
    server: Server,
    participation: Participation,
    layout: mesh.Layout,
    pruner: Pruner | None = None,
    weighting: str = "examples",
    downlink: Downlink | None = None,
    personal: Personal | None = None,
    model: Callable[[State], Params] | None = None,
) -> Round:
    """Composes the stages into a round.

    A client whose update or loss is not finite, who has no examples, or whose channel is too weak
    to send, contributes nothing; if nobody contributes, or what was received is not finite, the
    model stays.

    Args:
      local: trains one client; or strata of clients that train smaller networks.
      uplink: carries the updates.
      server: applies the mean update.
      participation: picks the cohort.
      layout: devices, from ``mesh.make``.
      pruner: decides the masks; None trains the dense model.
      weighting: one of ``WEIGHTINGS``.
      downlink: what clients receive of the broadcast; None: the model itself, for nothing. A
        client's update is the change from what it received, and its cost is added to the uplink's.
      personal: what clients keep to themselves; all other stages then see the global part only,
        and ``local`` finds the rest in ``Client.personal``. A client keeps what it had if its
        update, loss or new personal part is not finite, and what is new if its update is lost.
      model: state -> the model that is evaluated, where that is not ``State.params``.

    Raises:
      ValueError: an unknown weighting, or a selection by channel over an uplink that cannot tell
        everybody's channel; when the round is traced, masks that do not fit each other, or names
        of numbers that are taken.
    """
    kinds(uplink, server, participation, pruner, downlink, personal)
    strata = strata_of(local)
    if participation.gains and uplink.survey is None:
        raise ValueError("participation: asks for channels, which this uplink cannot survey")
    cohort = trainer(
        None if strata else local, uplink, layout, weighting,
        downlink=downlink, pruner=pruner, findings=participation.learn is not None,
        strata=strata,
    )  # fmt: skip

    stages = _Stages(uplink, server, participation, layout, pruner, downlink, personal, cohort)
    return Round(
        lambda params: _initial(stages, params),
        lambda key, state, clients: _step(stages, key, state, clients),
        layout,
        personal,
        model,
    )


class _Stages(NamedTuple):
    """The stages of a round, which have been checked."""

    uplink: Uplink
    server: Server
    participation: Participation
    layout: mesh.Layout
    pruner: Pruner | None
    downlink: Downlink | None
    personal: Personal | None
    cohort: Trainer


def _initial(stages: _Stages, params: Params) -> State:
    """The state before the first round."""
    uplink, participation, personal = stages.uplink, stages.participation, stages.personal
    shared, own = (params, None) if personal is None else personal.split(params)
    state = initial(shared, stages.pruner, stages.server, uplink)
    if participation.init is not None:
        state = state._replace(participation=participation.init())
    memory = None if uplink.remember is None else uplink.remember(shared)

    def each(values: PyTree, clients: int) -> PyTree:
        return jax.tree.map(lambda v: jnp.broadcast_to(v, (clients, *v.shape)), values)

    if personal is not None:
        state = state._replace(personal=each(own, personal.clients))
    return state._replace(memory=each(memory, participation.clients))


class _Chosen(NamedTuple):
    """A round's cohort."""

    ids: jax.Array
    """[S] int32"""
    memory: PyTree
    """what the uplink keeps at the server"""
    probes: PyTree = None
    """leaves [S, ...], what those that go on have answered"""
    asked: tuple[int, int] | None = None
    """what is billed for probes: numbers in an answer, and how many answer"""


def _choose(
    stages: _Stages, key: Key, state: State, clients: Clients, broadcast: Params, mask: Mask
) -> _Chosen:
    uplink, participation = stages.uplink, stages.participation
    t, memory, gains = state.round, state.uplink, None
    if participation.gains:
        assert uplink.survey is not None
        gains, memory = uplink.survey(Survey(key, t, participation.clients, memory))
    candidates = Candidates(
        rng.stream(key, "cohort", t), t, clients.size, gains, state.participation
    )
    ids = participation.select(candidates)
    if participation.probe is None:
        return _Chosen(ids, memory)
    probe = participation.probe

    def ask(shared, position: jax.Array, nothing: PyTree):
        params, mask, clients, ids = shared
        k = ids[position]
        found = probe.ask(rng.stream(key, "probe", t, k), t, params, mask, clients.client(k))
        return Total((), ()), nothing, found

    shared = (broadcast, mask, clients, ids)
    _, _, answers = mesh.collect(ask, shared, probe.size, stages.layout)
    going = probe.decide(candidates, ids, answers)
    one = jax.tree.map(lambda v: v[going], answers)
    return _Chosen(ids[going], memory, one, (row.size_of(answers) // probe.size, probe.size))


def _step(stages: _Stages, key: Key, state: State, clients: Clients) -> tuple[State, RoundInfo]:
    uplink, server, pruner = stages.uplink, stages.server, stages.pruner
    participation, personal, t = stages.participation, stages.personal, state.round
    masks = decided(key, pruner, state)
    broadcast = tree.apply_mask(masks.shared, state.params)
    if pruner is not None and pruner.scope == "server":
        # What this round prunes is zero at the server too, for whoever brings it back.
        state = state._replace(params=broadcast)
    chosen = _choose(stages, key, state, clients, broadcast, masks.shared)
    ids = chosen.ids
    air = uplink.prepare(Cohort(key, t, ids, masks.effective, memory=chosen.memory))
    agree(clients, participation, uplink, ids, air, personal=personal and personal.clients)
    if air.memory is None:
        air = air._replace(memory=chosen.memory)
    message = None if server.message is None else server.message(state.server)
    given = Given(
        key, t, t, broadcast, masks.shared, masks.effective, clients, ids, air, message,
        chosen.probes,
    )  # fmt: skip
    total, store, found = stages.cohort(given, Store(state.personal, state.memory))
    arrived, tally = total.sum
    received = uplink.finish(
        Arrival(rng.stream(key, "uplink", t), air, Total(arrived, total.max), masks.effective)
    )
    cost = _bill(stages, received.cost, given, chosen, tally)
    outcome = _outcome(key, state, masks.decided, received.update, cost, tally)
    params, server_state, after = served(server, state, outcome)
    masks, params = _revised(key, pruner, masks, after)
    selection = _learned(key, participation, state, ids, found, after)
    numbers = row.numbers_of(
        received.numbers,
        {} if server.numbers is None else server.numbers(server_state),
        {} if pruner is None or pruner.numbers is None else pruner.numbers(masks.state),
        {} if participation.numbers is None else participation.numbers(selection),
    )
    rejected = outcome.heard & ~after.heard
    info = row.info(masks, tally, params, cost, air.ratio, air.share, rejected, numbers)
    kept = air.memory if received.memory is None else received.memory
    return State(
        t + 1, params, masks.decided, masks.state, server_state,
        store.personal, store.memory, kept, selection,
    ), info  # fmt: skip


def _bill(stages: _Stages, cost: Cost, given: Given, chosen: _Chosen, tally: Tally) -> Cost:
    """The uplink's cost with that of all else that was sent."""
    if stages.downlink is not None:
        cost = bill.both(cost, stages.downlink.bill(given.models, given.mask, False))
    if given.message is not None:
        cost = row.billed(cost, row.size_of(given.message))
    if chosen.asked is not None:
        cost = row.billed(cost, *chosen.asked)
    if tally.report is not None:
        assert tally.asked is not None
        cost = row.billed(cost, row.size_of(tally.report), tally.asked.astype(jnp.int32))
    if tally.votes is not None and not stages.uplink.masks:
        words = -(-row.size_of(tally.votes) // 32)
        cost = row.billed(cost, words, tally.clients.astype(jnp.int32))
    if stages.participation.learn is not None:  # from the losses
        cost = row.billed(cost, 1, tally.clients.astype(jnp.int32))
    return cost


def _outcome(
    key: Key, state: State, mask: Mask, update: Params, cost: Cost, tally: Tally
) -> Outcome:
    """What the round has brought, as the server sees it before its step."""
    heard = tally.clients > 0
    return Outcome(
        key=rng.stream(key, "server", state.round),
        round=state.round,
        params=state.params,
        mask=mask,
        update=update,
        heard=heard,
        cost=cost,
        clients=tally.clients,
        report=None if tally.report is None else tree.mean(tally.report, tally.weight),
        asked=None if tally.asked is None else tally.asked > 0,
        held=None if tally.votes is None else tree.mean(tally.votes, tally.weight),
    )


def _revised(
    key: Key, pruner: Pruner | None, masks: Masks, outcome: Outcome
) -> tuple[Masks, Params]:
    """The masks after a round, and the model with them."""
    if pruner is None:
        return masks, outcome.params
    if pruner.revise is not None:
        own = rng.stream(key, "revise", outcome.round)
        mask, state = pruner.revise(masks.state, outcome._replace(key=own))
        masks = masks._replace(decided=mask, state=state)
    if pruner.scope == "server":
        return masks, tree.apply_mask(masks.decided, outcome.params)
    return masks, outcome.params


def _learned(
    key: Key,
    participation: Participation,
    state: State,
    ids: jax.Array,
    found: Found | None,
    outcome: Outcome,
) -> PyTree:
    """The selection's state after a round."""
    if participation.learn is None:
        return state.participation
    assert found is not None
    own = rng.stream(key, "learn", outcome.round)
    told = outcome._replace(key=own, ids=ids, counted=found.counted, losses=found.loss)
    return participation.learn(state.participation, told)
