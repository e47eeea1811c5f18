"""From configurations to stages: the only tables of names in the package.

Every function here takes a configuration whose traced fields may hold tracers, so the same code
builds one run and a program of many arms.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from fedprune import config as cfg
from fedprune import data, link, local, mesh, models, prune, server
from fedprune import round as rounds
from fedprune.data.partition import Partitioner
from fedprune.types import Model, Pruner, Uplink

PARTITIONERS: dict[str, Callable[[cfg.Data], Partitioner]] = {
    "iid": lambda d: data.iid(d.clients),
    "dirichlet": lambda d: data.dirichlet(d.clients, d.alpha),
}
MODELS: dict[str, Callable[[cfg.Model, int, tuple[int, ...]], Model]] = {
    "mlp": lambda m, classes, shape: models.mlp(m.hidden, classes, shape),
    "cnn": lambda m, classes, shape: models.cnn(m.filters, m.kernel, m.hidden, classes, shape),
}
OPTIMIZERS: dict[str, Callable[[cfg.Local], optax.GradientTransformation]] = {
    "sgd": lambda c: optax.sgd(c.lr),
    "momentum": lambda c: optax.sgd(c.lr, c.momentum),
    "adam": lambda c: optax.adam(c.lr),
}
SCHEDULES: dict[str, Callable[[cfg.Pruning], prune.Schedule]] = {
    "one_shot": lambda p: prune.one_shot(p.ratio, p.start),
    "iterative": lambda p: prune.iterative(p.ratio, p.start, p.every, p.steps),
    "linear": lambda p: prune.linear(p.ratio, p.start, p.every, p.steps),
    "cubic": lambda p: prune.cubic(p.ratio, p.start, p.every, p.steps),
}
UPLINKS: dict[str, Callable[[cfg.Uplink], Uplink]] = {
    "ideal": lambda u: link.ideal(),
    "over_the_air": lambda u: link.over_the_air(u.snr_db, u.normalisation, u.packing),
}


def model(config: cfg.Config, dataset: data.Dataset) -> Model:
    """The network for a dataset's examples.

    Raises:
      ConfigError: if its layers do not fit the examples.
    """
    shape = dataset.x_train.shape[1:]
    built = MODELS[config.model.name](config.model, dataset.classes, shape)
    try:
        jax.eval_shape(built.init, jax.random.key(0))
    except ValueError as e:
        raise cfg.ConfigError(f"model.{config.model.name}: does not fit {shape} inputs: {e}") from e
    return built


def pruner(p: cfg.Pruning) -> Pruner | None:
    """None where nothing is pruned."""
    if p.schedule == "none":
        return None
    return prune.scheduled(SCHEDULES[p.schedule](p), distribution=p.distribution, scope=p.scope)


def algorithm(config: cfg.Config, network: Model, layout: mesh.Layout) -> rounds.Round:
    """The federated round."""
    c = config
    return rounds.build(
        local=local.sgd(
            network,
            OPTIMIZERS[c.local.optimizer](c.local),
            batch=c.local.batch,
            steps=c.local.steps or None,
            epochs=c.local.epochs or None,
        ),
        uplink=UPLINKS[c.uplink.link](c.uplink),
        server=server.average(c.server.lr),
        participation=server.uniform(c.data.clients, c.cohort.size or c.data.clients),
        pruner=pruner(c.pruning),
        layout=layout,
    )


def layout(config: cfg.Mesh, arms: int) -> mesh.Layout:
    """Devices for a program of so many arms.

    Raises:
      ConfigError: if there are not enough devices.
    """
    devices = config.devices or jax.device_count()
    across = config.arms or (devices if arms >= devices else 1)
    try:
        return mesh.make(
            clients=max(1, devices // across),
            arms=across,
            reduction=config.reduction,
            lanes=config.lanes,
            chunk=config.clients_per_chunk,
        )
    except ValueError as e:
        raise cfg.ConfigError(f"mesh: {e}") from e
