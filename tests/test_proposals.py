"""Weights outside of the round's mask arrive, or the round refuses when it is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import federation, leaves, mlp

import fedprune as fp
from fedprune.types import Pruner, Report, Trained

K = 4
CLIENTS = federation(K)
D = 64 * 16 + 16 + 16 * 10 + 10
UPLINKS = {
    "ideal": fp.link.ideal(),
    "holders": fp.link.holders(fp.link.ideal(), fp.link.ideal(), 1e-6),
    "air": fp.link.over_the_air(10.0, "none"),
    "common": fp.link.over_the_air(200.0, "common"),
    "orthogonal": fp.link.orthogonal(10.0),
}


def everywhere(key, t, params, mask, client):
    """Trains every weight by one, and holds it."""
    ones = jax.tree.map(jnp.ones_like, params)
    held = jax.tree.map(lambda v: jnp.ones(v.shape, bool), params)
    return Trained(ones, jnp.float32(0.0), held=held)


def within(key, t, params, mask, client):
    """Trains what the mask keeps by one, and says nothing of masks."""
    return Trained(fp.tree.apply_mask(mask, jax.tree.map(jnp.ones_like, params)), jnp.float32(0.0))


def proposing(scope):
    """Broadcasts a tenth, and keeps from then on what anybody holds."""
    first = fp.prune.scheduled(fp.prune.one_shot(0.9, 0), scope=scope)

    def revise(state, outcome):
        return jax.tree.map(lambda c: c > 0, outcome.held), state

    return Pruner(first.init, first.update, scope, revise, proposals=True)


def trained(pruner, uplink, local=everywhere):
    algorithm = fp.rounds.build(
        local=local,
        uplink=uplink,
        server=fp.server.average(),
        participation=fp.server.full(K),
        layout=fp.mesh.make(clients=1),
        pruner=pruner,
    )
    state, info, _ = fp.run.simulate(algorithm, mlp(), CLIENTS, CLIENTS, 1)
    return state, info, mlp().init(fp.rng.stream(jax.random.key(0), "init"))


@pytest.mark.parametrize("name", UPLINKS)
@pytest.mark.parametrize("scope", ["server", "client"])
def test_proposed_weights_arrive(scope, name):
    state, info, initial = trained(proposing(scope), UPLINKS[name])
    sent = fp.prune.scheduled(fp.prune.one_shot(0.9, 0))
    mask = sent.update(sent.init(initial), fp.types.Before(None, jnp.int32(0), initial, None))[0]
    start = fp.tree.apply_mask(mask, initial) if scope == "server" else initial
    for found, first in zip(leaves(state.params), leaves(start), strict=True):
        np.testing.assert_allclose(found, first + 1, atol=1e-5)
    assert all(leaf.all() for leaf in leaves(state.mask))
    assert info.sent == [K * D]


@pytest.mark.parametrize("name", UPLINKS)
def test_own_masks_arrive(name):
    pruner = fp.prune.scheduled(fp.prune.one_shot(0.9, 0), scope="own")
    state, _, initial = trained(pruner, UPLINKS[name])
    for found, first in zip(leaves(state.params), leaves(initial), strict=True):
        np.testing.assert_allclose(found, first + 1, atol=1e-5)


@pytest.mark.parametrize("name", UPLINKS)
@pytest.mark.parametrize("scope", ["server", "client"])
def test_others_are_refused(scope, name):
    pruner = fp.prune.scheduled(fp.prune.one_shot(0.9, 0), scope=scope)
    with pytest.raises(ValueError, match="outside the mask that all clients share"):
        trained(pruner, UPLINKS[name])


def test_who_proposes_nothing_holds_what_it_received():
    """And not everything: neither for the votes, nor for the row, nor in a digital bill."""
    state, info, _ = trained(proposing("server"), fp.link.orthogonal(0.0), within)
    kept = 26 + round(0.1 * (D - 26))
    assert sum(leaf.sum() for leaf in leaves(state.mask)) == kept
    assert info.sent == [K * kept]
    assert info.cost.channel_uses == [K * (32 * kept + D)]


@pytest.mark.parametrize("value", [3.0, np.nan])
def test_reports_arrive_only_when_asked(value):
    """What nobody asked for is not billed, not learned, and excludes nobody."""

    def local(key, t, params, mask, client):
        return within(key, t, params, mask, client)._replace(
            report=Report(jnp.float32(value), t == 1)
        )

    def revise(state, outcome):
        return outcome.mask, outcome.report

    keep = lambda state, before: (before.mask, state)
    pruner = Pruner(lambda params: jnp.float32(7.0), keep, revise=revise)
    state, info, _ = trained(pruner, fp.link.ideal(), local)
    assert state.pruner == 0.0
    assert (int(info.clients[0]), int(info.excluded[0])) == (K, 0)
    assert info.cost.side_information == [0]
