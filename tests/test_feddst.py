"""FedDST against a plain loop, as its authors' code has it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import cnn, federation, mlp
from test_fedavg import numpy_gradient

import fedprune as fp
from fedprune import rng
from fedprune.algorithms import feddst

K, BATCH, LR, ROUNDS, SEED, DENSITY = 5, 6, 0.2, 4, 3, 0.3
STEPS = {"before": 3, "after": 2}
NAMES = {"W1": ("Dense_0", "kernel"), "b1": ("Dense_0", "bias")}
NAMES |= {"W2": ("Dense_1", "kernel"), "b2": ("Dense_1", "bias")}
D = 64 * 16 + 16 + 16 * 10 + 10


def share(t):
    """Half of the weights in rounds 0 and 2, none in the others."""
    return jnp.where(t % 2 == 0, 0.5, 0.0)


def sgd(model, part):
    return fp.local.sgd(model, optax.sgd(LR), batch=BATCH, steps=STEPS[part])


def algorithm(density=DENSITY, uplink=None, layout=None):
    model = mlp()
    parts = sgd(model, "before"), sgd(model, "after")
    return fp.rounds.build(
        local=feddst.train(model, *parts, share, BATCH),
        pruner=feddst.pruner(density),
        uplink=uplink or fp.link.ideal(),
        participation=fp.server.full(K),
        server=feddst.holders(),
        layout=layout or fp.mesh.make(clients=1),
    )


def named(params):
    return {name: np.asarray(params[a][b]) for name, (a, b) in NAMES.items()}


def largest(scores, number, among):
    """The positions of the largest of some scores, those that come first if they are equal."""
    ranked = sorted(np.flatnonzero(among), key=lambda i: (-scores.flat[i], i))
    mask = np.zeros(scores.shape, bool)
    mask.flat[ranked[:number]] = True
    return mask


def plain_loop(clients, w, density=DENSITY):
    """(weights, mask) after every round, in float64."""
    sizes, examples = np.asarray(clients.size), np.asarray(clients.examples, np.float64)
    w = {name: np.asarray(v, np.float64) for name, v in w.items()}
    layers = ("W1", "W2")
    count = {n: round(density * w[n].size) for n in layers}
    everything = {n: np.ones(v.shape, bool) for n, v in w.items()}
    mask = everything | {n: largest(abs(w[n]), count[n], everything[n]) for n in layers}
    w = {n: np.where(mask[n], v, 0) for n, v in w.items()}
    found = []
    for t in range(ROUNDS):
        top, bottom = ({n: np.zeros_like(v) for n, v in w.items()} for _ in range(2))
        for k, size in enumerate(sizes):
            key = rng.stream(jax.random.key(SEED), "local", t, k)

            def gradient(now, at, k=k, size=size):
                rows = np.asarray(clients.rows)[k, jax.random.randint(at, (BATCH,), 0, size)]
                return numpy_gradient(now, examples[rows], np.asarray(clients.labels)[rows])

            def train(now, held, part, key=key, gradient=gradient):
                for i in range(STEPS[part]):
                    g = gradient(now, rng.stream(rng.stream(key, part), "batch", i))
                    now = {n: now[n] - LR * g[n] * held[n] for n in now}
                return now

            mine, held = train(w, mask, "before"), dict(mask)
            slope = gradient(mine, rng.stream(key, "growth"))
            for n in layers:
                go = round(float(share(t)) * count[n])
                held[n] = largest(abs(mine[n]), count[n] - go, mask[n])
                mine[n] = np.where(held[n], mine[n], 0)
                held[n] = held[n] | largest(abs(slope[n]), go, ~held[n])
            mine = train(mine, held, "after")
            for n in w:
                top[n] += size * mine[n] * held[n]
                bottom[n] += size * held[n]
        w = {n: np.where(bottom[n] > 0, top[n] / np.maximum(bottom[n], 1), 0) for n in w}
        mask = everything | {n: largest(abs(w[n]), count[n], bottom[n] > 0) for n in layers}
        w = {n: np.where(mask[n], v, 0) for n, v in w.items()}
        found.append((w, mask))
    return found


def check(state, expected):
    """Weights to 1e-5, and masks exactly."""
    w, mask = expected
    for name, found in named(state.mask).items():
        np.testing.assert_array_equal(found, mask[name], name)
    for name, found in named(state.params).items():
        np.testing.assert_allclose(found, w[name], atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def problem():
    clients = federation(K)
    initial = mlp().init(rng.stream(jax.random.key(SEED), "init"))
    return clients, plain_loop(clients, named(initial))


@pytest.mark.parametrize(
    ("uplink", "devices"),
    [
        (fp.link.ideal(), 1),
        (fp.link.ideal(), 4),
        (fp.link.over_the_air(10.0, "none"), 1),
        (fp.link.over_the_air(200.0, "common"), 1),
        (fp.link.orthogonal(10.0), 1),
    ],
    ids=["ideal", "ideal-4", "none", "common", "orthogonal"],
)
def test_equals_a_plain_loop(problem, uplink, devices):
    """Mask for mask: regrown weights, which start outside of the round's mask, arrive."""
    clients, expected = problem
    algo = algorithm(uplink=uplink, layout=fp.mesh.make(clients=devices))
    for rounds in (1, ROUNDS):
        state, info, _ = fp.run.simulate(algo, mlp(), clients, clients, rounds, seed=SEED)
        check(state, expected[rounds - 1])
    first, last = expected[0][1], expected[-1][1]
    assert (last["W1"] & ~first["W1"]).any(), "no weight has grown"
    held = round(DENSITY * 1024) + round(DENSITY * 160) + 26
    assert (info.kept == held).all()
    assert (info.sent == K * held).all()


def test_bill(problem):
    """By hand: what any weight may use, and one bit a weight for the masks that are counted."""
    clients, _ = problem
    held = round(DENSITY * 1024) + round(DENSITY * 160) + 26
    words = -(-D // 32)

    def bill(uplink):
        algo = algorithm(uplink=uplink)
        cost = fp.run.simulate(algo, mlp(), clients, clients, 2, seed=SEED)[1].cost
        return cost.channel_uses.tolist(), cost.side_information.tolist()

    assert bill(fp.link.ideal()) == ([0] * 2, [K * words] * 2)
    air = fp.link.over_the_air(10.0, "common")
    assert bill(air) == ([D // 2] * 2, [K * words + K + 1] * 2)
    uses = K * (32 * held + D)  # at one bit a use; the masks are in the bits that are sent
    assert bill(fp.link.orthogonal(0.0)) == ([uses] * 2, [0] * 2)
    two = fp.link.holders(fp.link.orthogonal(0.0), fp.link.ideal(), 0.5 / K)
    assert bill(two) == ([uses] * 2, [0] * 2)


def test_traced_densities(problem):
    """Two arms under vmap, of which one is the arm alone."""
    clients, expected = problem
    density = jnp.array([0.6, DENSITY])
    keys = jnp.stack([jax.random.key(SEED)] * 2)
    layout = fp.mesh.make(clients=1)
    state = fp.run.start(algorithm, mlp().init, density, keys)
    tables = [jnp.stack([v] * 2) for v in (clients.rows, clients.size)]
    program = fp.run.program(algorithm, layout, ROUNDS, arms_per_chunk=2)
    state, info, _ = program(fp.run.Arms(density, keys, state, *tables), clients, clients)
    for kept, s in zip(info.kept, (0.6, DENSITY), strict=True):
        np.testing.assert_array_equal(kept, round(s * 1024) + round(s * 160) + 26)
    check(jax.tree.map(lambda v: v[1], state), expected[-1])


def test_what_does_not_fit_is_refused():
    model = cnn()._replace(train=lambda params, x: (x, params))
    with pytest.raises(ValueError, match="running statistics"):
        feddst.train(model, sgd(model, "before"), sgd(model, "after"), share, BATCH)
