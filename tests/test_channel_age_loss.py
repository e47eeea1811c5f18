"""The selection by channel, age and loss against a plain loop, over fading channels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import federation, mlp
from test_fedavg import numpy_gradient
from test_feddst import named

import fedprune as fp
from fedprune import channel, link, rng
from fedprune.algorithms import channel_age_loss
from fedprune.types import Trained

K, S, BATCH, STEPS, LR, ROUNDS, SEED = 7, 3, 6, 2, 0.2, 6, 3
CLIENTS, MODEL = federation(K), mlp()
WEIGHTS = {"channel": 0.7, "age": 0.4, "loss": 1.3, "unknown": 2.0}
THRESHOLD = 0.9


def algorithm(hyper=None, devices=1, uplink=None, train=None, **weights):
    given = WEIGHTS | weights | (hyper or {})
    air = link.over_the_air(300.0, "common", fading=channel.block_fading(), threshold=THRESHOLD)
    return fp.rounds.build(
        local=train or fp.local.sgd(MODEL, optax.sgd(LR), BATCH, STEPS),
        uplink=air if uplink is None else uplink,
        server=fp.server.average(),
        participation=channel_age_loss.participation(K, S, **given),
        layout=fp.mesh.make(clients=devices),
    )


def gain(t, k):
    """|h|^2 of Rayleigh fading."""
    at = rng.stream(jax.random.key(SEED), "fading", t, k)
    real, imaginary = np.asarray(jax.random.normal(at, (2, 1)), np.float64) * np.sqrt(0.5)
    return float(real[0] ** 2 + imaginary[0] ** 2)


def entropy(w, x, y):
    """Mean cross-entropy of the network of ``numpy_gradient``."""
    h = np.maximum(x.reshape(len(x), -1) @ w["W1"] + w["b1"], 0)
    z = h @ w["W2"] + w["b2"]
    top = z.max(1)
    return float((np.log(np.exp(z - top[:, None]).sum(1)) + top - z[np.arange(len(y)), y]).mean())


def plain_loop():
    """(cohorts, how many of each sent, ages after each round, last losses, model)."""
    examples, labels = np.asarray(CLIENTS.examples, np.float64), np.asarray(CLIENTS.labels)
    w = named(MODEL.init(rng.stream(jax.random.key(SEED), "init")))
    w = {n: np.asarray(v, np.float64) for n, v in w.items()}
    age, last, found, sent, ages = [0] * K, [WEIGHTS["unknown"]] * K, [], [], []
    for t in range(ROUNDS):
        score = {
            k: WEIGHTS["channel"] * gain(t, k) + WEIGHTS["age"] * age[k] + WEIGHTS["loss"] * last[k]
            for k in range(K)
        }
        chosen = sorted(score, key=lambda k: (-score[k], k))[:S]
        total, weight, heard = {n: np.zeros_like(v) for n, v in w.items()}, 0, 0
        for k in range(K):
            age[k] = 0 if k in chosen else age[k] + 1
        for k in chosen:
            if gain(t, k) < THRESHOLD:
                continue
            now, losses, size = dict(w), [], int(CLIENTS.size[k])
            key = rng.stream(jax.random.key(SEED), "local", t, k)
            for i in range(STEPS):
                draw = jax.random.randint(rng.stream(key, "batch", i), (BATCH,), 0, size)
                rows = np.asarray(CLIENTS.rows)[k, draw]
                losses.append(entropy(now, examples[rows], labels[rows]))
                g = numpy_gradient(now, examples[rows], labels[rows])
                now = {n: now[n] - LR * g[n] for n in now}
            last[k] = float(np.mean(losses))
            total = {n: total[n] + size * (now[n] - w[n]) for n in w}
            weight, heard = weight + size, heard + 1
        w = {n: w[n] + total[n] / weight for n in w}
        found.append(chosen)
        sent.append(heard)
        ages.append(list(age))
    return found, sent, ages, last, w


@pytest.fixture(scope="module")
def expected():
    return plain_loop()


def check(state, infos, expected):
    _, sent, ages, last, w = expected
    np.testing.assert_array_equal(infos.clients, sent)
    np.testing.assert_array_equal(state.participation.age, ages[-1])
    np.testing.assert_array_equal(infos.numbers["age_most"], np.max(ages, 1))
    np.testing.assert_allclose(infos.numbers["age_mean"], np.mean(ages, 1), rtol=1e-6)
    np.testing.assert_allclose(state.participation.loss, last, atol=1e-5)
    for name, found in named(state.params).items():
        np.testing.assert_allclose(found, w[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("devices", [1, 4])
def test_equals_a_plain_loop(expected, devices):
    """Cohorts change, everybody is chosen once, and some that are chosen fade too deep to send."""
    cohorts, sent, *_ = expected
    assert {k for chosen in cohorts for k in chosen} == set(range(K))
    assert min(sent) < S
    state, infos, _ = fp.run.simulate(
        algorithm(devices=devices), MODEL, CLIENTS, CLIENTS, ROUNDS, seed=SEED
    )
    check(state, infos, expected)
    # The link's p_k and the scale back, and a loss of everybody who counts.
    np.testing.assert_array_equal(infos.cost.side_information, 2 * np.array(sent) + 1)


def test_traced_weights(expected):
    hyper = {name: jnp.array([0.0, v]) for name, v in WEIGHTS.items()}
    keys, layout = jnp.stack([jax.random.key(SEED)] * 2), fp.mesh.make(clients=1)
    state = fp.run.start(algorithm, MODEL.init, hyper, keys)
    tables = [jnp.stack([v] * 2) for v in (CLIENTS.rows, CLIENTS.size)]
    program = fp.run.program(algorithm, layout, ROUNDS, arms_per_chunk=2)
    found = program(fp.run.Arms(hyper, keys, state, *tables), CLIENTS, CLIENTS)[:2]
    state, infos = jax.tree.map(lambda v: v[1], found)
    check(state, infos, expected)


def still(key, t, params, mask, client):
    return Trained(jax.tree.map(jnp.zeros_like, params), jnp.float32(1.0))


def test_each_part_alone():
    """Age goes around; the channel takes the strongest of every round; equal scores the first."""

    def ages(**weights):
        none = dict.fromkeys(WEIGHTS, 0.0)
        algo = algorithm(none | weights, train=still)
        state, _, _ = fp.run.simulate(algo, MODEL, CLIENTS, CLIENTS, 2, seed=SEED)
        return state.participation.age.tolist()

    assert ages(age=1.0) == [1, 1, 1, 0, 0, 0, 2]
    assert ages() == ages(loss=1.0) == [0, 0, 0, 2, 2, 2, 2]
    strongest = [sorted(range(K), key=lambda k, t=t: -gain(t, k))[:S] for t in range(2)]
    wanted = [0 if k in strongest[1] else 1 if k in strongest[0] else 2 for k in range(K)]
    assert ages(channel=1.0) == wanted


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="cannot survey"):
        algorithm(uplink=link.ideal())
    for size in (0, K + 1):
        with pytest.raises(ValueError, match=f"cohort size={size}"):
            channel_age_loss.participation(K, size)
