"""P2's importance of weights (2) beside what it stands for, (1): an oracle for tests.

(1) is the squared change of the loss when a weight is removed, one evaluation of the loss for every
weight. (2) is how far some steps of training move the weight.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import federation
from scipy import stats
from test_local import LINEAR, LR, SHAPE, own_loss
from test_local import D as LINEAR_WEIGHTS

import fedprune as fp
from fedprune import data, local

NETWORK = fp.models.mlp(hidden=(8,), input_shape=(7, 7, 1))
SEEDS = range(6)  # fixed before this was run


def removal(loss, weights):
    """P2 (1) by its definition: [d], from a loop that zeroes every weight of a vector in turn."""
    whole, found = loss(weights), np.zeros(len(weights))
    for j in range(len(weights)):
        without = weights.copy()
        without[j] = 0.0
        found[j] = (whole - loss(without)) ** 2
    return found


@pytest.mark.parametrize("start", [np.linspace(-1, 1, LINEAR_WEIGHTS), np.tile([1.0, -1.0], 3)])
def test_linear_loss_by_hand(start):
    """F = xbar w + b: removing w_j changes it by w_j xbar_j, one full step moves w_j by LR xbar_j.

    So (1) is (|w_j| times (2) / LR)^2, and (2), which lacks |w_j|, ranks as (1) does if all |w_j|
    are the same.
    """
    client = federation(3, shape=SHAPE).client(1)
    params = {"kernel": jnp.asarray(start, jnp.float32)[:, None], "bias": jnp.ones(1)}
    step = local.sgd(LINEAR, optax.sgd(LR), batch=1000, epochs=1, loss=own_loss)
    moved = step(jax.random.key(0), jnp.int32(0), params, None, client).delta
    found = local.change(params, jax.tree.map(jnp.add, params, moved))["kernel"][:, 0]
    rows = np.asarray(client.rows)[: int(client.size)]
    mean = np.asarray(client.examples, np.float64)[rows].reshape(len(rows), -1).mean(0)
    np.testing.assert_allclose(found, LR * np.abs(mean), rtol=1e-5)
    exact = removal(lambda w: mean @ w + 1.0, start)
    np.testing.assert_allclose(exact, (np.abs(start) * found / LR) ** 2, rtol=1e-4)
    same = list(np.argsort(exact)) == list(np.argsort(found))
    assert same == bool(np.ptp(np.abs(start)) == 0)


@functools.cache
def training(steps):
    train = local.sgd(NETWORK, optax.sgd(0.2), batch=16, steps=steps)
    return jax.jit(lambda key, params, client: train(key, jnp.int32(0), params, None, client))


def agreement(seed, trained, warm_up):
    """Rank correlation with (1) of: (2); |w| times (2); |w|. For an MLP on 7x7 Fashion-MNIST."""
    pixels = data.load("fashion_mnist_10k")
    draw = np.random.default_rng(seed).permutation(len(pixels.y_train))[:200]
    x = pixels.x_train[draw].reshape(-1, 7, 4, 7, 4, 1).mean((2, 4)) / 255.0
    y = pixels.y_train[draw]
    clients = federation(1, shape=(7, 7, 1))
    client = clients.client(0)._replace(
        examples=jnp.asarray(x, jnp.float32), labels=jnp.asarray(y, jnp.int32),
        rows=jnp.arange(200, dtype=jnp.int32), size=jnp.int32(200),
    )  # fmt: skip

    def after(params, steps):
        if steps == 0:
            return params
        key = jax.random.key(100 * seed + steps)
        return jax.tree.map(jnp.add, params, training(steps)(key, params, client).delta)

    received = after(NETWORK.init(jax.random.key(seed)), trained)
    score = local.change(received, after(received, warm_up))
    layers = [{k: np.asarray(v, np.float64) for k, v in received[n].items()}
              for n in ("Dense_0", "Dense_1")]  # fmt: skip
    cut = layers[0]["kernel"].size

    def loss(weights):
        """Cross-entropy of the two kernels, in NumPy."""
        first, second = weights[:cut].reshape(49, 8), weights[cut:].reshape(8, 10)
        hidden = np.maximum(x.reshape(200, 49) @ first + layers[0]["bias"], 0)
        logits = hidden @ second + layers[1]["bias"]
        largest = logits.max(1)
        total = largest + np.log(np.exp(logits - largest[:, None]).sum(1))
        return (total - logits[np.arange(200), y]).mean()

    def flat(tree):
        return np.concatenate([np.asarray(tree[n]["kernel"]).ravel() for n in tree])

    weights, change = flat(received).astype(np.float64), flat(score)
    exact = removal(loss, weights)
    return [stats.spearmanr(exact, v)[0] for v in (change, np.abs(weights) * change, abs(weights))]


@pytest.mark.parametrize(("trained", "warm_up"), [(0, 1), (100, 1), (100, 5)])
def test_ranks_of_a_network(trained, warm_up):
    """(2) ranks better than chance, and times |w|, the first order of (1), better than by itself.

    Rules written before the numbers: 95 % Student intervals over seeds. The numbers are in
    docs/results/hfl.md.
    """
    found = np.array([agreement(seed, trained, warm_up) for seed in SEEDS])
    half = stats.t.ppf(0.975, len(found) - 1) / np.sqrt(len(found))
    better = found[:, 1] - found[:, 0]
    assert found[:, 0].mean() > half * found[:, 0].std(ddof=1)
    assert better.mean() > half * better.std(ddof=1)
