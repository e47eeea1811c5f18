"""Our own rounds on a workload, at the defaults for CPU, as many a call as there are in a turn.

Arguments: workload, then settings as ``name=value``, which ``benchmarks.options`` compares: see
``Settings``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as linen
import jax
import numpy as np
import optax

import fedprune as fp
from benchmarks.worker import serve
from benchmarks.workloads import CLASSES, LEARNING_RATE, Workload, images
from fedprune.models import layers
from fedprune.types import LocalUpdate, Model


class CifarCnn(linen.Module):
    """The two 3×3 convolutions and two dense layers of pfl-research's CIFAR10 benchmark."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.relu(layers.conv(32, (3, 3), padding="VALID")(x))
        x = fp.nn.max_pool(layers.conv(64, (3, 3), padding="VALID")(x), 2)
        x = linen.relu(x).reshape(x.shape[0], -1)
        return linen.Dense(CLASSES)(linen.relu(linen.Dense(128)(x)))


MODELS: dict[str, Callable[[], Model]] = {
    "cnn": lambda: fp.models.cnn(filters=(32, 64), kernel=5, hidden=(128,)),
    "cifar_cnn": lambda: fp.models.from_linen(CifarCnn(), (32, 32, 3)),
    "mlp": lambda: fp.models.mlp(hidden=(200,)),
    "logistic": lambda: fp.models.mlp(hidden=()),
    "resnet18": fp.models.resnet18,
}


class Settings(NamedTuple):
    """What may differ from the defaults."""

    devices: int = 0
    """virtual CPU devices; 0: the default"""
    chunk: int = 1
    """clients trained together, by vmap"""
    reduction: str = "fast"
    compute: str = "float32"
    """type of activations and products"""
    donate: int = 0
    """1: the state's buffers are given away to the program"""
    rounds: int = 0
    """rounds in a call; 0: all of a turn"""
    microbatch: int = 0
    """examples whose gradients are computed at once; 0: the default"""


def settings() -> Settings:
    """From the command line."""
    given = dict(argument.split("=") for argument in sys.argv[2:])
    types = {k: type(v) for k, v in Settings()._asdict().items()}
    return Settings(**{k: types[k](v) for k, v in given.items()})


def federation(w: Workload) -> fp.data.Federation:
    """The workload's images; user k owns a run of ``w.examples``, as with the other frameworks."""
    x, y = images(w)
    dataset = fp.data.Dataset("synthetic", "random", x, y, x[:10], y[:10], CLASSES)
    rows = [np.arange(k * w.examples, (k + 1) * w.examples) for k in range(w.population)]
    return fp.data.federate(dataset, fp.data.Partition(rows, [np.arange(1)] * w.population))


def local(w: Workload, model: Model, microbatch: int = 0) -> LocalUpdate:
    """Plain SGD."""
    length = {"epochs": 1} if w.epoch else {"steps": w.steps}
    return fp.local.sgd(
        model, optax.sgd(LEARNING_RATE), batch=w.batch, microbatch=microbatch, **length
    )


def algorithm(w: Workload, layout: fp.mesh.Layout, **stages) -> fp.rounds.Round:
    """Federated averaging; ``stages`` replace or add to those of ``rounds.build``."""
    defaults = {
        "local": local(w, MODELS[w.model]()),
        "uplink": fp.link.ideal(),
        "server": fp.server.average(),
        "participation": fp.server.uniform(w.population, w.cohort),
        "layout": layout,
    }
    return fp.rounds.build(**{**defaults, **stages})


def prepare(w: Workload) -> tuple[Callable[[], None], dict]:
    """One turn, by default one call of ``run.program``."""
    chosen = settings()
    layout = fp.mesh.make(chunk=chosen.chunk, reduction=chosen.reduction)
    train, test = jax.device_put(federation(w), layout.replicated())
    model = MODELS[w.model]()
    if chosen.compute != "float32":
        model = fp.models.compute_in(chosen.compute, model)
    one = algorithm(w, layout, local=local(w, model, chosen.microbatch))
    key = jax.random.key(0)[None]
    state = fp.run.start(lambda _: one, model.init, (), key)
    arms = fp.run.Arms((), key, state, train.rows[None], train.size[None])
    rounds = chosen.rounds or w.rounds
    program = fp.run.program(lambda _: one, layout, rounds, donate=bool(chosen.donate))

    def turn() -> None:
        nonlocal arms
        for _ in range(w.rounds // rounds):
            state, _, _ = program(arms, train, test)
            arms = arms._replace(state=state)
        jax.block_until_ready(arms.state)

    changed = {k: v for k, v in chosen._asdict().items() if v != getattr(Settings(), k)}
    words = [f"{layout.mesh.size} devices", *(f"{k} {v}" for k, v in changed.items())]
    return turn, {"versions": {"jax": jax.__version__}, "setting": ", ".join(words)}


if __name__ == "__main__":
    fp.backend.configure(settings().devices, cache=False)
    serve(prepare)
