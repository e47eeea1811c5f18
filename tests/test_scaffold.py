"""SCAFFOLD against a plain loop, and what it keeps, sends and bills."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import federation, leaves, mlp
from test_fedavg import numpy_gradient
from test_feddst import named

import fedprune as fp
from fedprune import rng
from fedprune.algorithms import scaffold
from fedprune.types import Candidates

K, S, BATCH, STEPS, LR, ETA, ROUNDS, SEED = 6, 3, 6, 4, 0.2, 0.8, 5, 3
CLIENTS, MODEL = federation(K), mlp()
D = 64 * 16 + 16 + 16 * 10 + 10
SOME = fp.server.uniform(K, S)


def algorithm(rate=LR, devices=1, **changes):
    step = fp.server.average(ETA)
    given = scaffold.stages(MODEL, K, rate, BATCH, STEPS, step) | changes
    layout = fp.mesh.make(clients=devices)
    return fp.rounds.build(
        **{"uplink": fp.link.ideal(), "participation": SOME} | given, layout=layout
    )


def cohort(t):
    at = rng.stream(jax.random.key(SEED), "cohort", t)
    return np.asarray(SOME.select(Candidates(at, jnp.int32(t), CLIENTS.size)))


def plain_loop(mask=None):
    """(x, c, all c_k) after the rounds, in float64."""
    examples, labels = np.asarray(CLIENTS.examples, np.float64), np.asarray(CLIENTS.labels)
    x = named(MODEL.init(rng.stream(jax.random.key(SEED), "init")))
    x = {n: np.asarray(v, np.float64) for n, v in x.items()}
    m = {n: np.ones(v.shape) for n, v in x.items()} if mask is None else mask
    x = {n: v * m[n] for n, v in x.items()}
    c = {n: np.zeros_like(v) for n, v in x.items()}
    own = [dict(c) for _ in range(K)]
    for t in range(ROUNDS):
        moves, changes = [], []
        for k in cohort(t):
            key, y = rng.stream(jax.random.key(SEED), "local", t, int(k)), dict(x)
            for i in range(STEPS):
                at = rng.stream(key, "batch", i)
                draw = jax.random.randint(at, (BATCH,), 0, int(CLIENTS.size[k]))
                rows = np.asarray(CLIENTS.rows)[k, draw]
                g = numpy_gradient(y, examples[rows], labels[rows])
                y = {n: y[n] - LR * m[n] * (g[n] - own[k][n] + c[n]) for n in y}
            new = {n: m[n] * (own[k][n] - c[n] + (x[n] - y[n]) / (STEPS * LR)) for n in y}
            moves.append({n: y[n] - x[n] for n in y})
            changes.append({n: new[n] - own[k][n] for n in y})
            own[k] = new
        x = {n: x[n] + ETA * sum(d[n] for d in moves) / S for n in x}
        c = {n: c[n] + sum(d[n] for d in changes) / K for n in c}
    return x, c, own


def check(state, expected):
    x, c, own = expected
    for tree, wanted in ((state.params, x), (state.server[1], c)):
        for name, found in named(tree).items():
            np.testing.assert_allclose(found, wanted[name], atol=1e-5, err_msg=name)
    for name, found in named(state.personal).items():
        np.testing.assert_allclose(found, [v[name] for v in own], atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def expected():
    assert len({tuple(cohort(t)) for t in range(ROUNDS)}) > 1
    return plain_loop()


@pytest.mark.parametrize("devices", [1, 4])
def test_equals_a_plain_loop(expected, devices):
    """K is no multiple of four devices. The variates are not small beside the gradients."""
    state, info, metrics = fp.run.simulate(
        algorithm(devices=devices), MODEL, CLIENTS, CLIENTS, ROUNDS, seed=SEED
    )
    check(state, expected)
    assert max(np.abs(leaf).max() for leaf in leaves(state.server[1])) > 0.01
    assert info.cost.side_information.tolist() == [D + S * D] * ROUNDS
    assert metrics.accuracy.shape == ()  # of the global model


def test_a_traced_rate(expected):
    """Two arms under vmap, of which one is the arm alone."""
    rates, keys = jnp.array([0.05, LR]), jnp.stack([jax.random.key(SEED)] * 2)
    layout = fp.mesh.make(clients=1)
    state = fp.run.start(algorithm, MODEL.init, rates, keys)
    tables = [jnp.stack([v] * 2) for v in (CLIENTS.rows, CLIENTS.size)]
    program = fp.run.program(algorithm, layout, ROUNDS, arms_per_chunk=2)
    state, _, _ = program(fp.run.Arms(rates, keys, state, *tables), CLIENTS, CLIENTS)
    check(jax.tree.map(lambda v: v[1], state), expected)


def test_pruned_weights_neither_move_nor_have_variates():
    """One-shot pruning before the first round."""
    pruner = fp.prune.scheduled(fp.prune.one_shot(0.7, 0))
    state, _, _ = fp.run.simulate(
        algorithm(pruner=pruner), MODEL, CLIENTS, CLIENTS, ROUNDS, seed=SEED
    )
    mask = named(state.mask)
    assert 0.2 < mask["W1"].mean() < 0.5
    check(state, plain_loop(mask))


def test_the_servers_variate_is_the_mean_of_the_clients():
    """Also where a client's update is not finite: neither it nor its variate counts."""

    def bad(key, t, params, mask, client):
        trained = scaffold.train(MODEL, LR, BATCH, STEPS)(key, t, params, mask, client)
        broken = client.size == CLIENTS.size[1]
        return trained._replace(
            delta=jax.tree.map(lambda d: jnp.where(broken, jnp.nan, d), trained.delta)
        )

    assert (CLIENTS.size == CLIENTS.size[1]).sum() == 1
    state, info, _ = fp.run.simulate(
        algorithm(local=bad), MODEL, CLIENTS, CLIENTS, ROUNDS, seed=SEED
    )
    assert info.excluded.sum() == sum(1 in cohort(t) for t in range(ROUNDS)) > 0
    for c, own in zip(leaves(state.server[1]), leaves(state.personal), strict=True):
        np.testing.assert_allclose(c, own.mean(0), atol=1e-6)
        assert not own[1].any()
