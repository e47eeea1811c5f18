"""PruneFL against a plain loop that adds weights one by one, as the paper does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import cnn, federation, mlp
from test_fedavg import numpy_gradient
from test_feddst import check, largest, named

import fedprune as fp
from fedprune import rng
from fedprune.algorithms import prunefl

K, BATCH, STEPS, LR, ROUNDS, SEED = 5, 6, 3, 0.2, 4, 3
DENSITY, REST, SHARE = 0.4, 100.0, 0.5
SECONDS = {"W1": 1.0, "W2": 3.0}
LAYERS = ("W1", "W2")
D = 64 * 16 + 16 + 16 * 10 + 10


def asked(t):
    """Rounds 0 and 2."""
    return t % 2 == 0


def seconds(params):
    return {
        layer: dict.fromkeys(leaves, 3.0 if layer == "Dense_1" else 1.0)
        for layer, leaves in params.items()
    }


def algorithm(density=DENSITY, share=SHARE, uplink=None, layout=None):
    model = mlp()
    sgd = fp.local.sgd(model, optax.sgd(LR), batch=BATCH, steps=STEPS)
    return fp.rounds.build(
        local=prunefl.train(model, sgd, asked, BATCH),
        pruner=prunefl.pruner(density, seconds, REST, share),
        uplink=uplink or fp.link.ideal(),
        participation=fp.server.full(K),
        server=fp.server.average(),
        layout=layout or fp.mesh.make(clients=1),
    )


def picked(gain, stays):
    """Algorithm 2 of the paper: the weights in order of gain a second, while that pays."""
    mask = {n: m.copy() for n, m in stays.items()}
    won = sum(g[mask[n]].sum() for n, g in gain.items())
    taken = REST + sum(SECONDS[n] * mask[n].sum() for n in LAYERS)
    rates = [
        (gain[n].flat[i] / SECONDS[n], n, i) for n in LAYERS for i in np.flatnonzero(~stays[n])
    ]
    for rate, n, i in sorted(rates, key=lambda r: -r[0]):
        if rate <= won / taken:
            break
        mask[n].flat[i] = True
        won, taken = won + gain[n].flat[i], taken + SECONDS[n]
    return mask


def plain_loop(clients, w):
    """(weights, mask) after every round, in float64."""
    sizes, examples = np.asarray(clients.size), np.asarray(clients.examples, np.float64)
    w = {name: np.asarray(v, np.float64) for name, v in w.items()}
    mask = {n: np.ones(v.shape, bool) for n, v in w.items()}
    mask |= {n: largest(abs(w[n]), round(DENSITY * w[n].size), mask[n]) for n in LAYERS}
    w = {n: np.where(mask[n], v, 0) for n, v in w.items()}
    found = []
    for t in range(ROUNDS):
        mean, gain = ({n: np.zeros_like(v) for n, v in w.items()} for _ in range(2))
        for k, size in enumerate(sizes):
            key = rng.stream(jax.random.key(SEED), "local", t, k)

            def gradient(now, at, k=k, size=size):
                rows = np.asarray(clients.rows)[k, jax.random.randint(at, (BATCH,), 0, size)]
                return numpy_gradient(now, examples[rows], np.asarray(clients.labels)[rows])

            mine, slope = w, gradient(w, rng.stream(key, "report"))
            for i in range(STEPS):
                g = gradient(mine, rng.stream(key, "batch", i))
                mine = {n: mine[n] - LR * g[n] * mask[n] for n in w}
            for n in w:
                mean[n] += size / sizes.sum() * mine[n]
                gain[n] += size / sizes.sum() * slope[n] ** 2
        w = mean
        if t % 2 == 0:
            stays = dict(mask)
            for n in LAYERS:
                number = mask[n].sum() - int(SHARE * mask[n].sum())
                stays[n] = largest(abs(w[n]), number, mask[n])
            mask = picked(gain, stays)
            w = {n: np.where(mask[n], v, 0) for n, v in w.items()}
        found.append((w, mask))
    return found


@pytest.fixture(scope="module")
def problem():
    clients = federation(K)
    initial = mlp().init(rng.stream(jax.random.key(SEED), "init"))
    return clients, plain_loop(clients, named(initial))


@pytest.mark.parametrize(
    ("uplink", "devices"),
    [(fp.link.ideal(), 1), (fp.link.ideal(), 4), (fp.link.over_the_air(10.0, "none"), 1)],
    ids=["ideal", "ideal-4", "none"],
)
def test_equals_a_plain_loop(problem, uplink, devices):
    clients, expected = problem
    algo = algorithm(uplink=uplink, layout=fp.mesh.make(clients=devices))
    for rounds in (1, ROUNDS):
        state, _, _ = fp.run.simulate(algo, mlp(), clients, clients, rounds, seed=SEED)
        check(state, expected[rounds - 1])
    masks = [mask["W1"] for _, mask in expected]
    assert (masks[1] == masks[0]).all(), "the mask changes only in rounds that ask"
    assert (masks[2] & ~masks[1]).any(), "no weight has returned"
    assert (masks[1] & ~masks[2]).any(), "no weight has gone"


def test_bill(problem):
    """By hand: symbols of the kept weights, and d numbers of every client in rounds that ask."""
    clients, expected = problem
    air = fp.link.over_the_air(10.0, "common")
    algo = algorithm(uplink=air)
    info = fp.run.simulate(algo, mlp(), clients, clients, ROUNDS, seed=SEED)[1]
    first = round(DENSITY * 1024) + round(DENSITY * 160) + 26
    assert info.kept[0] != first, "a round's row has the mask that it decided last"
    assert info.cost.channel_uses[0] == -(-first // 2)
    np.testing.assert_array_equal(info.cost.channel_uses[1:], -(-info.kept[:-1] // 2))
    np.testing.assert_array_equal(
        info.cost.side_information, K + 1 + K * D * np.array([1, 0, 1, 0])
    )
    ideal = fp.run.simulate(algorithm(), mlp(), clients, clients, ROUNDS, seed=SEED)[1]
    kept = [sum(m.sum() for m in mask.values()) for _, mask in expected]
    np.testing.assert_array_equal(ideal.kept, kept)


def test_traced_numbers(problem):
    """Three arms under vmap, of which one is the arm alone."""
    clients, expected = problem
    numbers = jnp.array([0.9, DENSITY, 0.2]), jnp.array([SHARE, SHARE, 1.0])
    keys = jnp.stack([jax.random.key(SEED)] * 3)
    build = lambda numbers: algorithm(*numbers)
    state = fp.run.start(build, mlp().init, numbers, keys)
    tables = [jnp.stack([v] * 3) for v in (clients.rows, clients.size)]
    program = fp.run.program(build, fp.mesh.make(clients=1), ROUNDS, arms_per_chunk=3)
    state, info, _ = program(fp.run.Arms(numbers, keys, state, *tables), clients, clients)
    check(jax.tree.map(lambda v: v[1], state), expected[-1])
    assert len(set(np.asarray(info.kept)[:, -1].tolist())) == 3


def test_what_does_not_fit_is_refused():
    model = cnn()._replace(train=lambda params, x: (x, params))
    with pytest.raises(ValueError, match="running statistics"):
        prunefl.train(model, fp.local.sgd(model, optax.sgd(LR), 2, 1), asked, BATCH)
