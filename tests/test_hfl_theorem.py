"""What the experiment on Theorem 1 measures, at two given models, against NumPy."""

import jax
import numpy as np
import pytest
from problems import leaves
from test_fedavg import numpy_gradient

from experiments import hfl_theorem
from fedprune import config as cfg
from fedprune import data, models


def cross_entropy(w, x, y):
    hidden = np.maximum(x.reshape(len(x), -1) @ w["W1"] + w["b1"], 0)
    logits = hidden @ w["W2"] + w["b2"]
    logits = logits - logits.max(1, keepdims=True)
    return (np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]).mean()


@pytest.mark.slow
def test_measured_constants(monkeypatch):
    small = {"data.clients": 4, "edges.servers": 2, "model.name": "mlp", "model.mlp.hidden": (6,)}
    small |= {"local.batch": 5, "local.steps": 2}
    few = data.first(data.load("fashion_mnist_10k"), 120)
    network = models.mlp((6,))
    points = [network.init(jax.random.key(seed)) for seed in (1, 2)]
    monkeypatch.setattr(hfl_theorem, "models", lambda *args: points)

    def measure(ratio):
        changed = cfg.override(hfl_theorem.get_config(), {**small, "pruning.ratio": ratio})
        return hfl_theorem.measure(changed, few, 0)

    found = measure(0.0)
    split = data.iid(4)(few.y_train, few.y_test, 0)
    clients = data.federate(few, [split]).train
    x = (few.x_train.astype(np.float64) - np.asarray(clients.shift)) * np.asarray(clients.scale)
    squares, gradients, weights = [], [], []
    for point in points:
        first, second = point["Dense_0"], point["Dense_1"]
        w = {"W1": first["kernel"], "b1": first["bias"], "W2": second["kernel"]}
        w = {k: np.asarray(v, np.float64) for k, v in {**w, "b2": second["bias"]}.items()}
        g = numpy_gradient(w, x, few.y_train)
        vector = np.concatenate([v.ravel() for v in g.values()])
        squares.append((vector**2).sum())
        gradients.append(vector)
        weights.append(np.concatenate([v.ravel() for v in w.values()]))
        if point is points[0]:
            assert found.gap == pytest.approx(cross_entropy(w, x, few.y_train), rel=1e-5)
    assert found.left == pytest.approx(np.mean(squares) / vector.size, rel=1e-4)
    slope = np.linalg.norm(gradients[0] - gradients[1]) / np.linalg.norm(weights[0] - weights[1])
    assert found.constants.smoothness == pytest.approx(slope, rel=1e-4)
    # Batches of 5 of a device's 30 scatter around its own gradient.
    assert found.constants.gradient**2 > found.constants.noise**2 > 0
    # Nobody prunes: both devices of a server hold everything.
    assert found.holders == 2
    assert found.constants.pruning == 0
    pruned = measure(0.9)
    assert pruned.holders == 0
    kernels = [sum((v**2).sum() for v in leaves(p) if v.ndim == 2) for p in points]
    assert min(abs(pruned.square - k) for k in kernels) < 1e-3
    assert 0 < pruned.constants.pruning**2 < pruned.square / 0.9 * (1 + 1e-5)
