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

import jax
import jax.numpy as jnp

from fedprune import bill, mesh, rng, tree
from fedprune.round import parts
from fedprune.round.parts import Found, Round, RoundInfo, Setting, State, Store, Stratum
from fedprune.types import (
    Arrival,
    Candidates,
    Clients,
    Cohort,
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
    parts.kinds(uplink, server, participation, pruner, downlink, personal)
    strata = parts.strata_of(local)
    if participation.gains and uplink.survey is None:
        raise ValueError("participation: asks for channels, which this uplink cannot survey")
    learns = participation.learn is not None
    cohort = parts.trainer(
        None if strata else local, uplink, layout, weighting,
        downlink=downlink, pruner=pruner, findings=learns, strata=strata,
    )  # fmt: skip

    def init(params: Params) -> State:
        shared, own = (params, None) if personal is None else personal.split(params)
        state = parts.initial(shared, pruner, server, uplink)
        if participation.init is not None:
            state = state._replace(participation=participation.init())
        memory = None if uplink.remember is None else uplink.remember(shared)

        def each(values: PyTree, clients: int) -> PyTree:
            return jax.tree.map(lambda v: jnp.broadcast_to(v, (clients, *v.shape)), values)

        if personal is not None:
            state = state._replace(personal=each(own, personal.clients))
        return state._replace(memory=each(memory, participation.clients))

    def chosen(key: Key, state: State, clients: Clients, broadcast: Params, mask: Mask):
        """(cohort's ids, what probes answered, memory of the uplink, bill of the probes)."""
        t, memory, gains = state.round, state.uplink, None
        if participation.gains:
            assert uplink.survey is not None
            gains, memory = uplink.survey(Survey(key, t, participation.clients, memory))
        candidates = Candidates(
            rng.stream(key, "cohort", t), t, clients.size, gains, state.participation
        )
        ids = participation.select(candidates)
        if participation.probe is None:
            return ids, None, memory, None
        probe = participation.probe

        def ask(shared, position: jax.Array, row: PyTree):
            params, mask, clients, ids = shared
            k = ids[position]
            found = probe.ask(rng.stream(key, "probe", t, k), t, params, mask, clients.client(k))
            return Total((), ()), row, found

        shared = (broadcast, mask, clients, ids)
        _, _, answers = mesh.collect(ask, shared, probe.size, layout)
        going = probe.decide(candidates, ids, answers)
        one = jax.tree.map(lambda v: v[going], answers)
        return ids[going], one, memory, (parts.size_of(answers) // probe.size, probe.size)

    def step(key: Key, state: State, clients: Clients) -> tuple[State, RoundInfo]:
        t = state.round
        masks = parts.masks(key, pruner, state)
        broadcast = tree.apply_mask(masks.shared, state.params)
        if pruner is not None and pruner.scope == "server":
            # What this round prunes is zero at the server too, for whoever brings it back.
            state = state._replace(params=broadcast)
        ids, probes, memory, asked = chosen(key, state, clients, broadcast, masks.shared)
        air = uplink.prepare(Cohort(key, t, ids, masks.effective, memory=memory))
        parts.agree(
            clients, participation, uplink, ids, air, personal=personal and personal.clients
        )
        if air.memory is None:
            air = air._replace(memory=memory)
        message = None if server.message is None else server.message(state.server)
        setting = Setting(
            key, t, t, broadcast, masks.shared, masks.effective, clients, ids, air, message, probes
        )
        total, store, found = cohort(setting, Store(state.personal, state.memory))
        arrived, tally = total.sum
        received = uplink.finish(
            Arrival(rng.stream(key, "uplink", t), air, Total(arrived, total.max), masks.effective)
        )
        cost = received.cost
        if downlink is not None:
            cost = bill.both(cost, downlink.bill(broadcast, masks.shared, False))
        if message is not None:
            cost = parts.billed(cost, parts.size_of(message))
        if asked is not None:
            cost = parts.billed(cost, *asked)
        if tally.report is not None:
            cost = parts.billed(cost, parts.size_of(tally.report), tally.asked.astype(jnp.int32))
        if tally.votes is not None and not uplink.masks:
            words = -(-parts.size_of(tally.votes) // 32)
            cost = parts.billed(cost, words, tally.clients.astype(jnp.int32))
        if learns:  # from the losses
            cost = parts.billed(cost, 1, tally.clients.astype(jnp.int32))
        heard = tally.clients > 0
        outcome = Outcome(
            key=rng.stream(key, "server", t),
            round=t,
            params=state.params,
            mask=masks.decided,
            update=received.update,
            heard=heard,
            cost=cost,
            clients=tally.clients,
            report=None if tally.report is None else tree.mean(tally.report, tally.weight),
            asked=None if tally.asked is None else tally.asked > 0,
            held=None if tally.votes is None else tree.mean(tally.votes, tally.weight),
        )
        params, server_state, after = parts.served(server, state, outcome)
        masks, params = _revised(key, pruner, masks, after)
        selection = _learned(key, participation, state, ids, found, after)
        numbers = parts.numbers_of(
            received.numbers,
            {} if server.numbers is None else server.numbers(server_state),
            {} if pruner is None or pruner.numbers is None else pruner.numbers(masks.state),
            {} if participation.numbers is None else participation.numbers(selection),
        )
        rejected = heard & ~after.heard
        row = parts.info(masks, tally, params, cost, air.ratio, air.share, rejected, numbers)
        kept = air.memory if received.memory is None else received.memory
        return State(
            t + 1, params, masks.decided, masks.state, server_state,
            store.personal, store.memory, kept, selection,
        ), row  # fmt: skip

    return Round(init, step, layout, personal, model)


def _revised(
    key: Key, pruner: Pruner | None, masks: parts.Masks, outcome: Outcome
) -> tuple[parts.Masks, Params]:
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
