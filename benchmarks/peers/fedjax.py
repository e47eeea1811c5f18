"""FedJAX: its federated averaging and its sampler, clients one after another ("jit" backend).

FedJAX 0.0.17 is older than the JAX that it runs on; the one name that it misses is put back. Max
pooling is a maximum over a reshaped axis: haiku's own has a slow gradient on CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

if not hasattr(jax, "tree_map"):
    jax.tree_map = jax.tree_util.tree_map

from importlib.metadata import version

import fedjax
import haiku as hk
import numpy as np
from fedjax.algorithms import fed_avg
from fedjax.core import for_each_client

from benchmarks.worker import serve
from benchmarks.workloads import CLASSES, LEARNING_RATE, Workload, images


def pool(x: jax.Array) -> jax.Array:
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


def cnn(x: jax.Array) -> jax.Array:
    for width in (32, 64):
        x = pool(jax.nn.relu(hk.Conv2D(width, 5)(x)))
    return hk.Linear(CLASSES)(jax.nn.relu(hk.Linear(128)(hk.Flatten()(x))))


def cifar_cnn(x: jax.Array) -> jax.Array:
    for width in (32, 64):
        x = jax.nn.relu(hk.Conv2D(width, 3, padding="VALID")(x))
    return hk.Linear(CLASSES)(jax.nn.relu(hk.Linear(128)(hk.Flatten()(pool(x)))))


def mlp(x: jax.Array) -> jax.Array:
    return hk.Linear(CLASSES)(jax.nn.relu(hk.Linear(200)(hk.Flatten()(x))))


def logistic(x: jax.Array) -> jax.Array:
    return hk.Linear(CLASSES)(hk.Flatten()(x))


def resnet18(x: jax.Array) -> jax.Array:
    def conv(width: int, kernel: int, stride: int, x: jax.Array) -> jax.Array:
        x = hk.Conv2D(width, kernel, stride, with_bias=False)(x)
        return hk.GroupNorm(32)(x)

    x = jax.nn.relu(conv(64, 3, 1, x))
    for width in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if width > 64 and block == 0 else 1
            y = conv(width, 3, 1, jax.nn.relu(conv(width, 3, stride, x)))
            x = jax.nn.relu(y + (conv(width, 1, stride, x) if stride > 1 else x))
    return hk.Linear(CLASSES)(x.mean((1, 2)))


NETWORKS = {f.__name__: f for f in (cnn, cifar_cnn, mlp, logistic, resnet18)}


def prepare(w: Workload) -> tuple[Callable[[], None], dict]:
    x, y = images(w)
    x, y = x.astype(np.float32) / 255, y.astype(np.int32)
    model = fedjax.create_model_from_haiku(
        transformed_forward_pass=hk.transform(lambda batch: NETWORKS[w.model](batch["x"])),
        sample_batch={"x": x[:1], "y": y[:1]},
        train_loss=lambda b, out: fedjax.metrics.unreduced_cross_entropy_loss(b["y"], out),
        eval_metrics={"accuracy": fedjax.metrics.Accuracy()},
    )
    parts = [slice(k * w.examples, (k + 1) * w.examples) for k in range(w.population)]
    data = fedjax.InMemoryFederatedData(
        {f"{k:06d}".encode(): {"x": x[part], "y": y[part]} for k, part in enumerate(parts)}
    )
    for_each_client.set_for_each_client_backend("jit")
    algorithm = fed_avg.federated_averaging(
        fedjax.model_grad(model),
        fedjax.optimizers.sgd(LEARNING_RATE),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(
            batch_size=w.batch, num_epochs=None, num_steps=w.steps, seed=0
        ),
    )
    sampler = fedjax.client_samplers.UniformGetClientSampler(data, w.cohort, seed=0)
    state = algorithm.init(model.init(jax.random.key(0)))

    def turn() -> None:
        nonlocal state
        for _ in range(w.rounds):
            state, _ = algorithm.apply(state, sampler.sample())
        jax.block_until_ready(state.params)

    versions = {name: version(name) for name in ("fedjax", "jax", "dm-haiku")}
    return turn, {"versions": versions, "setting": "jit backend, reshaped pooling"}


if __name__ == "__main__":
    serve(prepare)
