"""From configurations to stages: the only tables of names in the package.

Every function here takes a configuration whose traced fields may hold tracers, so the same code
builds one run and a program of many arms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedprune import (
    channel,
    data,
    link,
    local,
    mesh,
    models,
    processes,
    prune,
    resources,
    rounds,
    server,
    tree,
)
from fedprune import config as cfg
from fedprune.data.partition import Partitioner
from fedprune.rounds import hierarchical
from fedprune.types import Downlink, LocalUpdate, Model, Personal, Pruner, Server, Uplink

PARTITIONERS: dict[str, Callable[[cfg.Data, data.Dataset], Partitioner]] = {
    "iid": lambda d, _: data.iid(d.clients),
    "dirichlet": lambda d, _: data.dirichlet(d.clients, d.alpha),
    "label_k": lambda d, _: data.label_k(d.clients, d.classes_per_client),
    "shards": lambda d, _: data.shards(d.clients, d.shards_per_client),
    "group": lambda d, dataset: _by_group(d, dataset),
}
MODELS: dict[str, Callable[[cfg.Model, int, tuple[int, ...]], Model]] = {
    "mlp": lambda m, classes, shape: models.mlp(m.hidden, classes, shape),
    "cnn": lambda m, classes, shape: models.cnn(m.filters, m.kernel, m.hidden, classes, shape),
    "signal": lambda m, classes, shape: models.signal(
        m.filters, m.kernel, m.stem_kernel, m.stem_stride, m.hidden, classes, shape
    ),
    "resnet18": lambda m, classes, shape: models.resnet18(
        classes, shape, m.norm, m.groups, m.statistics, m.widths, m.stem
    ),
    "resnet34": lambda m, classes, shape: models.resnet34(
        classes, shape, m.norm, m.groups, m.statistics, m.widths, m.stem
    ),
    "vgg16": lambda m, classes, shape: models.small_vgg16(m.widths, m.hidden, classes, shape),
}
OPTIMIZERS: dict[str, Callable[[cfg.Local], optax.GradientTransformation]] = {
    "sgd": lambda c: optax.sgd(c.lr),
    "momentum": lambda c: optax.sgd(c.lr, c.momentum),
    "adam": lambda c: optax.adam(c.lr),
}
DECAYS: dict[str, Callable[[cfg.Local, int], local.Decay | None]] = {
    "constant": lambda c, rounds: None,
    "cosine": lambda c, rounds: local.decay.cosine(rounds, c.schedule_end),
    "exponential": lambda c, rounds: local.decay.exponential(rounds, c.schedule_end),
    "step": lambda c, rounds: local.decay.step(c.schedule_every, c.schedule_factor),
}
SERVERS: dict[str, Callable[[cfg.Server], Server]] = {
    "average": lambda s: server.average(s.lr),
    "momentum": lambda s: server.momentum(s.lr, s.momentum),
    "adam": lambda s: server.adam(s.lr, s.momentum, s.b2, s.epsilon),
}
SCHEDULES: dict[str, Callable[[cfg.Pruning], prune.Schedule]] = {
    "one_shot": lambda p: prune.one_shot(p.ratio, p.start),
    "iterative": lambda p: prune.iterative(p.ratio, p.start, p.every, p.steps),
    "linear": lambda p: prune.linear(p.ratio, p.start, p.every, p.steps),
    "cubic": lambda p: prune.cubic(p.ratio, p.start, p.every, p.steps),
}
STRUCTURES: dict[str, prune.Structure] = {
    **dict.fromkeys(("mlp", "cnn", "signal", "vgg16"), prune.chain),
    **dict.fromkeys(("resnet18", "resnet34"), prune.blocks),
}
PRUNABLE: dict[str, prune.Predicate] = {"all": prune.kernels, "dense": prune.named("Dense")}
IMPORTANCES: dict[str, local.Importance] = {"magnitude": local.magnitude, "change": local.change}
UPLINKS: dict[str, Callable[[cfg.Uplink, channel.Fading | None], Uplink]] = {
    "ideal": lambda u, faded: link.ideal(),
    "over_the_air": lambda u, faded: link.over_the_air(
        u.snr_db,
        u.normalisation,
        u.packing,
        faded,
        u.threshold,
        u.power,
        u.bandwidth,
        u.repeats,
    ),
    "orthogonal": lambda u, faded: link.orthogonal(
        u.snr_db,
        u.rate or None,
        u.value_bits,
        faded,
        u.threshold,
        u.power,
        u.bandwidth,
        u.bitstream,
    ),
    "analog": lambda u, faded: link.one_by_one(
        link.analog(
            u.snr_db,
            link.Protection(u.repeats, u.code, u.repeats),
            u.packing,
            u.fading,
            u.csi_error,
            u.power,
            u.bandwidth,
        )
    ),
}
CLOUDS: dict[str, Callable[[cfg.Edges], Uplink]] = {
    "ideal": lambda e: link.ideal(),
    "orthogonal": lambda e: link.orthogonal(
        e.cloud_snr_db,
        e.cloud_rate or None,
        e.cloud_value_bits,
        power=e.cloud_power,
        bandwidth=e.cloud_bandwidth,
    ),
}


def partitioner(d: cfg.Data, dataset: data.Dataset) -> Partitioner:
    """Who owns which examples of a dataset.

    Raises:
      ConfigError: groups are asked for that the dataset does not have, or cannot be divided so.
    """
    return PARTITIONERS[d.partition](d, dataset)


def _by_group(d: cfg.Data, dataset: data.Dataset) -> Partitioner:
    if dataset.group_train is None or dataset.group_test is None:
        raise cfg.ConfigError(f"data.partition='group': {dataset.name} has no natural groups")
    try:
        return data.by_group(dataset.group_train, dataset.group_test, d.clients)
    except ValueError as e:
        raise cfg.ConfigError(f"data.{e}") from e


def model(config: cfg.Config, dataset: data.Dataset) -> Model:
    """The network for a dataset's examples.

    Raises:
      ConfigError: if its layers do not fit the examples.
    """
    shape = dataset.x_train.shape[1:]
    try:
        built = MODELS[config.model.name](config.model, dataset.classes, shape)
        jax.eval_shape(built.init, jax.random.key(0))
    except ValueError as e:
        raise cfg.ConfigError(f"model.{config.model.name}: does not fit {shape} inputs: {e}") from e
    if config.model.compute == "float32":
        return built
    try:
        return models.compute_in(config.model.compute, built)
    except ValueError as e:
        raise cfg.ConfigError(f"model.compute={config.model.compute!r}: {e}") from e


def fading(c: cfg.Config) -> channel.Fading | None:
    """The uplink's; None for pure AWGN."""
    u = c.uplink
    if u.fading == "none":
        return None
    return channel.block_fading(
        antennas=u.antennas,
        rician=u.rician if u.fading == "rician" else 0.0,
        csi_error=u.csi_error,
        annulus=(u.nearest, u.farthest) if u.farthest else None,
        blocks=u.blocks,
        taps=(1.0,) * u.taps,
        correlation=u.correlation,
        clients=c.data.clients if u.correlation else None,
    )


def downlink(d: cfg.Downlink) -> Downlink | None:
    """None for a perfect one."""
    if d.link == "ideal":
        return None
    protection = link.Protection(d.repeats, d.code, d.repeats, d.gamma or None)
    return link.analog(d.snr_db, protection, d.packing, d.fading, d.csi_error, d.power, d.bandwidth)


def pruner(p: cfg.Pruning, structure: prune.Structure) -> Pruner | None:
    """None where the server decides no masks.

    Args:
      p: the fields.
      structure: which weights of the network belong together, for pruning of whole units.
    """
    if p.schedule in ("none", "allocated") or p.granularity == "neuron":
        return None
    if p.granularity == "unit":
        return prune.structured(SCHEDULES[p.schedule](p), structure, p.distribution, p.scope)
    return prune.scheduled(
        SCHEDULES[p.schedule](p),
        distribution=p.distribution,
        scope=p.scope,
        prunable=PRUNABLE[p.layers],
    )


def personal(c: cfg.Config, network: Model) -> Personal | None:
    """What clients keep to themselves; None: nothing.

    Raises:
      ConfigError: layers that the network does not have, or that leave nothing to share.
    """
    if c.personal.method == "none":
        return None
    if c.personal.method in ("ditto", "tuned"):
        return local.copies(c.data.clients)
    try:
        for layers in (*((part,) for part in c.personal.layers), c.personal.layers):
            found = local.parts(tree.within(*layers), c.data.clients)
            jax.eval_shape(lambda key, of=found: of.split(network.init(key)), jax.random.key(0))
    except ValueError as e:
        raise cfg.ConfigError(f"personal.layers={layers!r}: {e}") from e
    return found


def local_update(c: cfg.Config, network: Model) -> LocalUpdate:
    """Training of one client."""
    p, method = c.pruning, c.personal.method

    def optimizer(lr: Any) -> optax.GradientTransformation:
        return local.adjusted(
            OPTIMIZERS[c.local.optimizer](dataclasses.replace(c.local, lr=lr)),
            weight_decay=_unless_zero(c.local.weight_decay),
            clip=_unless_zero(c.local.clip),
        )

    def sgd(steps: int, epochs: int = 0, by=None, prox: Any = c.local.prox) -> local.Make:
        return lambda model: local.sgd(
            model,
            by or optimizer(c.local.lr),
            batch=c.local.batch,
            microbatch=c.local.microbatch,
            steps=steps or None,
            epochs=epochs or None,
            prox=_unless_zero(prox),
            decay=DECAYS[c.local.schedule](c.local, c.run.rounds),
        )

    def shared(train: local.Make) -> LocalUpdate:
        in_parts = method in ("alternating", "simultaneous")
        return local.frozen(network, train) if in_parts else train(network)

    own = optimizer(c.personal.lr)
    if method == "simultaneous":
        rates = {True: own, False: optimizer(c.local.lr)}
        is_own = tree.within(*c.personal.layers)
        both = optax.partition(rates, lambda params: tree.match_path(is_own, params))
        train = local.simultaneous(sgd(c.local.steps, c.local.epochs, both)(network))
    else:
        train = shared(sgd(c.local.steps, c.local.epochs))
    if p.schedule != "none" and p.scope == "own":
        allocated = p.schedule == "allocated"
        if p.granularity == "neuron":
            select = prune.neurons(PRUNABLE[p.layers], down=allocated, form=p.form)
        else:
            select = prune.selection(p.distribution, PRUNABLE[p.layers], down=allocated)
        train = local.own_masks(
            shared(sgd(p.warm_up)),
            train,
            select,
            local.allocated if allocated else lambda t, _: SCHEDULES[p.schedule](p)(t),
            IMPORTANCES[p.importance],
            rewind=p.rewind == "yes",
        )
    if method == "alternating":
        return local.alternating(network, sgd(c.personal.steps, 0, own, 0), train)
    if method == "ditto":
        own = optax.chain(optax.add_decayed_weights(c.personal.pull), own)
        return local.ditto(network, sgd(c.personal.steps, 0, own, 0), train)
    return local.tuned(train) if method == "tuned" else train


def edges(c: cfg.Config) -> rounds.Edges | None:
    """Which edge server each client belongs to, in the order of the clients; None if flat."""
    if not c.edges.servers:
        return None
    sizes = _server_sizes(c)
    return rounds.Edges(jnp.asarray(np.repeat(np.arange(len(sizes)), sizes)), len(sizes))


def _server_sizes(c: cfg.Config) -> list[int]:
    """Clients of each server, the one server's if there are no edge servers."""
    if c.edges.sizes:
        return list(c.edges.sizes)
    parts = np.array_split(np.arange(c.data.clients), max(1, c.edges.servers))
    return [len(part) for part in parts]


def uplink(c: cfg.Config, network: Model) -> Uplink:
    """How the updates of a cohort reach the server, or the edge servers."""
    u = c.uplink
    values = _ofdma(c, network) if u.link == "ofdma" else UPLINKS[u.link](u, fading(c))
    if u.division == "all":
        return values
    exact = u.link != "over_the_air"
    largest = max(_server_sizes(c))
    least: Any = u.min_holders * c.data.clients / ((c.cohort.size or c.data.clients) * largest)
    if exact:  # whoever holds it counts, however few examples the client has
        least = jnp.where(u.min_holders <= 1, 1e-9, least)
    return link.holders(values, link.ideal() if exact else values, least)


def _ofdma(c: cfg.Config, network: Model) -> Uplink:
    """Devices of a server stand equally far from one another, from the nearest to the farthest."""
    u, p = c.uplink, c.pruning
    distance = np.concatenate(
        [np.linspace(u.nearest, u.farthest, n) for n in _server_sizes(c) if n]
    )
    shapes, own = jax.eval_shape(network.init, jax.random.key(0)), None
    keeps = personal(c, network)
    if keeps is not None:
        shapes, own = keeps.split(shapes)

    def weights(chosen: prune.Predicate, part: Any = shapes) -> int:
        counted = tree.match_path(chosen, part)
        return sum(jax.tree.leaves(jax.tree.map(lambda s, c: s.size if c else 0, part, counted)))

    prunable = weights(PRUNABLE[p.layers])
    pruned = p.schedule != "none"
    steps = {"simultaneous": c.local.steps, "tuned": 0}
    work = resources.personalized(
        weights(prune.kernels, own),
        prunable,
        steps.get(c.personal.method, c.personal.steps),
        c.local.steps,
        u.cycles,
        u.value_bits,
        warm_steps=p.warm_up if pruned and u.bill_warm_up == "yes" else 0,
        payload=u.payload if pruned else "values",
        fixed_weights=weights(prune.kernels) - prunable,
    )
    where = jnp.asarray(distance, jnp.float32)
    bands = edges(c) if u.bands == "server" else None
    return link.ofdma(
        work,
        lambda root, t, ids: channel.orthogonal_gains(root, t, ids, where[ids], u.antennas),
        threshold=u.time_limit,
        frequency=u.frequency,
        power=u.power,
        noise=u.noise,
        bandwidth=u.bandwidth,
        edge=None if bands is None else bands.of,
        edges=1 if bands is None else bands.servers,
        scheme=u.scheme,
        rho_max=u.rho_max,
        scaled=u.noise_of == "share",
    )


def algorithm(config: cfg.Config, network: Model, layout: mesh.Layout) -> rounds.Round:
    """The federated round."""
    c = config
    cohort, tiers = c.cohort.size or c.data.clients, edges(c)
    stages: dict[str, Any] = {
        "local": local_update(c, network),
        "uplink": uplink(c, network),
        "server": SERVERS[c.server.optimizer](c.server),
        "participation": server.uniform(c.data.clients, cohort),
        "pruner": pruner(c.pruning, STRUCTURES[c.model.name]),
        "weighting": c.cohort.weighting,
        "layout": layout,
    }
    if tiers is None:
        stages |= {"downlink": downlink(c.downlink), "personal": personal(c, network)}
        return rounds.build(**stages)
    cloud = CLOUDS[c.edges.cloud](c.edges)
    return hierarchical.build(**stages, cloud=cloud, edges=tiers, edge_rounds=c.edges.rounds)


def _unless_zero(value: jax.Array | float) -> jax.Array | float | None:
    """None for the number 0, which leaves a term out of the program; tracers stay."""
    return None if isinstance(value, int | float) and value == 0 else value


def layout(config: cfg.Mesh, arms: int) -> mesh.Layout:
    """Devices for a program of so many arms.

    Raises:
      ConfigError: if there are not enough devices.
    """
    devices = config.devices or len(processes.devices())
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
