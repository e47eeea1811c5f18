"""Server optimizers against NumPy loops of FedAvgM and FedAdam, through whole rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import federation, outcome

import fedprune as fp
from fedprune import config as cfg
from fedprune.types import Model, Trained

CLIENTS, ROUNDS, LR, D = 5, 4, 0.3, 3
START = np.array([0.5, -1.0, 2.0], np.float32)

MODEL = Model(
    lambda key: {"w": jnp.asarray(START), "norm": {"statistics": {"mean": jnp.ones(2)}}},
    lambda params, x: jnp.zeros((x.shape[0], 10)),
)


def target(size):
    """Where a client of ``size`` examples pulls the weights; works for NumPy and JAX."""
    return size * 0.1 - 1.0


def local(key, t, params, mask, client):
    """Half of the way to the client's target, and 0.25 on the statistics."""
    pull = target(client.size.astype(jnp.float32))
    delta = {
        "w": 0.5 * (pull - params["w"]),
        "norm": {
            "statistics": {"mean": 0.25 * jnp.ones_like(params["norm"]["statistics"]["mean"])}
        },
    }
    return Trained(delta, jnp.float32(0.0) * pull)


def numpy_rounds(sizes, step):
    """The rounds in float64; ``step(w, mean update, n)`` is the server's in its n-th step."""
    w = START.astype(np.float64)
    share = sizes / sizes.sum()
    for n in range(1, ROUNDS + 1):
        deltas = [0.5 * (target(float(size)) - w) for size in sizes]
        w = step(w, sum(p * delta for p, delta in zip(share, deltas, strict=True)), n)
    return w


def fedavgm(momentum):
    v = np.zeros(D)

    def step(w, delta, n):
        v[:] = momentum * v + delta
        return w + LR * v

    return step


def fedadam(b1, b2, epsilon):
    m, v = np.zeros(D), np.zeros(D)

    def step(w, delta, n):
        m[:] = b1 * m + (1 - b1) * delta
        v[:] = b2 * v + (1 - b2) * delta**2
        return w + LR * (m / (1 - b1**n)) / (np.sqrt(v / (1 - b2**n)) + epsilon)

    return step


def run(server, devices=2):
    clients = federation(CLIENTS)
    algorithm = fp.rounds.build(
        local=local,
        uplink=fp.link.ideal(),
        participation=fp.server.full(CLIENTS),
        server=server,
        layout=fp.mesh.make(clients=devices),
    )
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        state, _, _ = fp.run.simulate(algorithm, MODEL, clients, clients, ROUNDS)
    return state.params, np.asarray(clients.size, np.float64)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_momentum_is_fedavgm(devices):
    params, sizes = run(fp.server.momentum(LR, 0.8), devices)
    np.testing.assert_allclose(params["w"], numpy_rounds(sizes, fedavgm(0.8)), rtol=1e-5)


@pytest.mark.parametrize("devices", [1, 4])
def test_adam_is_fedadam(devices):
    params, sizes = run(fp.server.adam(LR, 0.7, 0.95, 1e-2), devices)
    np.testing.assert_allclose(
        params["w"], numpy_rounds(sizes, fedadam(0.7, 0.95, 1e-2)), rtol=1e-5
    )


@pytest.mark.parametrize("name", ["average", "momentum", "adam"])
def test_statistics_take_the_mean_update_as_it_is(name):
    """Whatever the optimizer and its learning rate: 1 + 4 × 0.25."""
    config = cfg.Server(optimizer=name, lr=LR)
    params, _ = run(cfg.SERVERS[name].build(config))
    np.testing.assert_allclose(params["norm"]["statistics"]["mean"], 2.0, rtol=1e-6)


def test_servers_of_the_configuration():
    """Each name with the configuration's numbers, which may be traced."""
    fields = {path: field for path, field, _ in cfg.fields(cfg.Config())}
    assert set(fields["server.optimizer"].metadata["choices"]) == set(cfg.SERVERS)
    momenta = jnp.array([0.0, 0.6, 0.9])
    sizes = np.asarray(federation(CLIENTS).size, np.float64)
    share = sizes / sizes.sum()

    def final(name, momentum):
        asked = cfg.Server(lr=LR)
        asked.momentum.beta = asked.adam.b1 = momentum
        asked.adam.b2, asked.adam.epsilon = 0.95, 1e-2
        server = cfg.SERVERS[name].build(asked)
        w = jnp.asarray(START)
        state = server.init(w)
        for _ in range(ROUNDS):
            pulls = jnp.asarray(share @ target(sizes), jnp.float32)
            w, state = server.update(state, outcome(w, 0.5 * (pulls - w)))
        return w

    with jax.numpy_dtype_promotion("standard"):
        found = {
            name: jax.vmap(lambda momentum, name=name: final(name, momentum))(momenta)
            for name in cfg.SERVERS
        }
    for i, momentum in enumerate(np.asarray(momenta, np.float64)):
        expected = {
            "average": fedavgm(0.0),
            "momentum": fedavgm(momentum),
            "adam": fedadam(momentum, 0.95, 1e-2),
        }
        for name, step in expected.items():
            np.testing.assert_allclose(found[name][i], numpy_rounds(sizes, step), rtol=1e-4)


def test_pruned_weights_stay_zero_under_a_server_with_momentum():
    clients = federation(CLIENTS)
    model = fp.models.mlp(hidden=(8,), input_shape=(8, 8, 1))
    algorithm = fp.rounds.build(
        local=fp.local.sgd(model, optax.sgd(0.1), batch=4, steps=2),
        uplink=fp.link.ideal(),
        pruner=fp.prune.scheduled(fp.prune.one_shot(0.5, 2)),
        participation=fp.server.full(CLIENTS),
        server=fp.server.momentum(0.5, 0.9),
        layout=fp.mesh.make(clients=2),
    )
    state, info, _ = fp.run.simulate(algorithm, model, clients, clients, 4)
    assert info.kept[-1] < info.kept[0]
    for w, m in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.mask), strict=True):
        assert not np.asarray(w)[~np.asarray(m)].any()
