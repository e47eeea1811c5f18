"""Our own round on a workload, at the defaults for CPU: one client a chunk, one device a core."""

from __future__ import annotations

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

import fedprune as fp
from benchmarks.workloads import LEARNING_RATE, Workload, images, serve

MODELS = {
    "cnn": lambda: fp.models.cnn(filters=(32, 64), kernel=5, hidden=(128,)),
    "mlp": lambda: fp.models.mlp(hidden=(200,)),
}


def prepare(workload: Workload) -> tuple[Callable[[], None], dict]:
    """One call is one round of the whole algorithm, by ``run.program``."""
    x, y = images()
    dataset = fp.data.Dataset("synthetic", "random", x[..., None], y, x[:10, ..., None], y[:10], 10)
    split = fp.data.iid(workload.clients)(dataset.y_train, dataset.y_test, 0)
    train, test = fp.data.federate(dataset, split)
    model, layout = MODELS[workload.model](), fp.mesh.make()
    algorithm = fp.round.build(
        local=fp.local.sgd(
            model, optax.sgd(LEARNING_RATE), batch=workload.batch, steps=workload.steps
        ),
        uplink=fp.link.ideal(),
        server=fp.server.average(),
        participation=fp.server.full(workload.clients),
        layout=layout,
    )
    key = jax.random.key(0)[None]
    state = fp.run.start(lambda _: algorithm, model.init, (), key)
    arms = fp.run.Arms((), key, state, train.rows[None], train.size[None])
    program = fp.run.program(lambda _: algorithm, layout, rounds=1)

    def one_round() -> None:
        nonlocal arms
        state, _, _ = jax.block_until_ready(program(arms, train, test))
        arms = arms._replace(state=state)

    return one_round, {"version": jax.__version__, "devices": jnp.size(layout.mesh.devices)}


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    serve(prepare)
