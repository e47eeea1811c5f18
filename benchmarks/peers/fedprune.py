"""Our own rounds on a workload, at the defaults for CPU, as many a call as there are in a turn.

Arguments: workload, then settings as ``name=value``: ``devices`` and ``compute`` (of
``backend.configure`` and ``models``) and the fields of ``mesh.Layout``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import flax.linen as linen
import jax
import numpy as np
import optax

import fedprune as fp
from benchmarks.worker import serve
from benchmarks.workloads import CLASSES, LEARNING_RATE, Workload, images
from fedprune.models import layers
from fedprune.types import Model


class CifarCnn(linen.Module):
    """The two 3×3 convolutions and two dense layers of pfl-research's CIFAR10 benchmark."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (32, 64):
            x = linen.relu(layers.conv(width, (3, 3), padding="VALID")(x))
        x = fp.nn.max_pool(x, 2).reshape(x.shape[0], -1)
        return linen.Dense(CLASSES)(linen.relu(linen.Dense(128)(x)))


MODELS: dict[str, Callable[[], Model]] = {
    "cnn": lambda: fp.models.cnn(filters=(32, 64), kernel=5, hidden=(128,)),
    "cifar_cnn": lambda: fp.models.from_flax(CifarCnn(), (32, 32, 3)),
    "mlp": lambda: fp.models.mlp(hidden=(200,)),
    "logistic": lambda: fp.models.mlp(hidden=()),
    "resnet18": fp.models.resnet18,
}


def settings(arguments: list[str]) -> tuple[int, dict]:
    """Number of devices (0: the default) and fields of the layout from ``name=value``."""
    values = dict(argument.split("=") for argument in arguments)
    devices = int(values.pop("devices", 0))
    return devices, {k: v if k == "reduction" else int(v) for k, v in values.items()}


def federation(w: Workload) -> fp.data.Federation:
    """The workload's images; user k owns a run of ``w.examples``, as with the other frameworks."""
    x, y = images(w)
    dataset = fp.data.Dataset("synthetic", "random", x, y, x[:10], y[:10], CLASSES)
    rows = [np.arange(k * w.examples, (k + 1) * w.examples) for k in range(w.population)]
    return fp.data.federate(dataset, fp.data.Partition(rows, [np.arange(1)] * w.population))


def algorithm(w: Workload, layout: fp.mesh.Layout, **stages) -> fp.round.Round:
    """Federated averaging; ``stages`` replace or add to those of ``round.build``."""
    length = {"epochs": 1} if w.epoch else {"steps": w.steps}
    defaults = {
        "local": fp.local.sgd(
            MODELS[w.model](), optax.sgd(LEARNING_RATE), batch=w.batch, **length
        ),
        "uplink": fp.link.ideal(),
        "server": fp.server.average(),
        "participation": fp.server.uniform(w.population, w.cohort),
        "layout": layout,
    }
    return fp.round.build(**{**defaults, **stages})


def prepare(w: Workload) -> tuple[Callable[[], None], dict]:
    """One call is one turn of the whole algorithm, by ``run.program``."""
    devices, fields = settings(sys.argv[2:])
    layout = fp.mesh.make(**fields)
    train, test = federation(w)
    one = algorithm(w, layout)
    key = jax.random.key(0)[None]
    state = fp.run.start(lambda _: one, MODELS[w.model]().init, (), key)
    arms = fp.run.Arms((), key, state, train.rows[None], train.size[None])
    program = fp.run.program(lambda _: one, layout, rounds=w.rounds)

    def turn() -> None:
        nonlocal arms
        state, _, _ = jax.block_until_ready(program(arms, train, test))
        arms = arms._replace(state=state)

    count = layout.mesh.size
    facts = {"versions": {"jax": jax.__version__}, "setting": f"{count} devices"}
    return turn, facts


if __name__ == "__main__":
    fp.backend.configure(settings(sys.argv[2:])[0], cache=False)
    serve(prepare)
