"""From configurations to stages, by the tables of kinds in ``config``.

Every function here takes a configuration whose traced fields may hold tracers, so the same code
builds one run and a program of many arms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

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
    tree,
)
from fedprune import config as cfg
from fedprune.data.partition import Partitioner
from fedprune.rounds import hierarchical
from fedprune.types import LocalUpdate, Model, Personal, Pruner, Uplink


def dataset(d: cfg.Data) -> data.Dataset:
    """The examples that a configuration asks for.

    Raises:
      DataError: a dataset that is missing or damaged, or of which the first examples that are taken
        lack a class.
    """
    found = data.load(d.name, d.dir or None, download=d.download, **d.options())
    if not d.examples:
        return found
    taken = data.first(found, d.examples)
    lost = np.setdiff1d(found.y_train, taken.y_train)
    if d.name in cfg.OWN_FILES and found.names is not None and len(lost):
        raise data.DataError(
            f"data.examples={d.examples}: the first {d.examples} training examples of {found.name}"
            f" have none of class {found.names[lost[0]]}; 0 takes all"
        )
    return taken


def partitioner(d: cfg.Data, dataset: data.Dataset) -> Partitioner:
    """Who owns which examples of a dataset.

    Raises:
      ConfigError: groups are asked for that the dataset does not have, or cannot be divided so.
    """
    return cfg.PARTITIONS[d.partition].build(d, dataset)


class Own(NamedTuple):
    """A network of the user's, for which ``model.name=own`` stands."""

    model: Callable[[cfg.Config, data.Dataset], Model]
    structure: prune.Structure | None = None
    """what can be pruned as a whole; None: only single weights can be pruned"""


def model(config: cfg.Config, dataset: data.Dataset, own: Own | None = None) -> Model:
    """The network for a dataset's examples.

    Args:
      config: names the network.
      dataset: has the examples.
      own: the user's network, if there is one.

    Raises:
      ConfigError: if its layers do not fit the examples, or the user's is named and there is none.
    """
    shape = dataset.x_train.shape[1:]
    try:
        if own is not None and config.model.name == cfg.OWN:
            built = own.model(config, dataset)
        else:
            network = cfg.NETWORKS[config.model.name]
            built = network.build(config.model.own(), dataset.classes, shape)
        jax.eval_shape(built.init, jax.random.key(0))
    except cfg.ConfigError:
        raise
    except ValueError as e:
        raise cfg.ConfigError(f"model.{config.model.name}: does not fit {shape} inputs: {e}") from e
    if config.model.compute == "float32":
        return built
    try:
        return models.compute_in(config.model.compute, built)
    except ValueError as e:
        raise cfg.ConfigError(f"model.compute={config.model.compute!r}: {e}") from e


def pruner(p: cfg.Pruning, structure: prune.Structure | None) -> Pruner | None:
    """None where the server decides no masks.

    Args:
      p: the fields.
      structure: which weights of the network belong together, for pruning of whole units; None:
        that is not known.

    Raises:
      ConfigError: whole units are to be pruned, and it is not known what they are.
    """
    schedule = cfg.SCHEDULES[p.schedule].build(p)
    return None if schedule is None else cfg.METHODS[p.granularity].build(p, schedule, structure)


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
            cfg.OPTIMIZERS[c.local.optimizer].build(c.local, lr),
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
            decay=cfg.DECAYS[c.local.schedule].build(c.local, c.run.rounds),
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
        allocated, prunable = p.schedule == "allocated", cfg.PRUNABLE[p.layers].build()
        schedule = cfg.SCHEDULES[p.schedule].build(p)
        if p.granularity == "neuron":
            select = prune.neurons(prunable, down=allocated, form=p.form)
        else:
            select = prune.selection(p.distribution, prunable, down=allocated)
        train = local.own_masks(
            shared(sgd(p.warm_up)),
            train,
            select,
            local.allocated if allocated else lambda t, _: schedule(t),
            cfg.IMPORTANCES[p.importance].build(),
            rewind=p.rewind,
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
    values = cfg.UPLINKS[u.link].build(c, network)
    if u.division == "all":
        return values
    exact = u.link != "over_the_air"
    largest = max(_server_sizes(c))
    least: Any = u.min_holders * c.data.clients / ((c.cohort.size or c.data.clients) * largest)
    if exact:  # whoever holds it counts, however few examples the client has
        least = jnp.where(u.min_holders <= 1, 1e-9, least)
    return link.holders(values, link.ideal() if exact else values, least)


def ofdma(c: cfg.Config, network: Model) -> Uplink:
    """Devices of a server stand equally far from one another, from the nearest to the farthest."""
    u, own, p = c.uplink, c.uplink.ofdma, c.pruning
    distance = np.concatenate(
        [np.linspace(u.nearest, u.farthest, n) for n in _server_sizes(c) if n]
    )
    shapes, kept = jax.eval_shape(network.init, jax.random.key(0)), None
    keeps = personal(c, network)
    if keeps is not None:
        shapes, kept = keeps.split(shapes)

    def weights(chosen: prune.Predicate, part: Any = shapes) -> int:
        counted = tree.match_path(chosen, part)
        return sum(jax.tree.leaves(jax.tree.map(lambda s, c: s.size if c else 0, part, counted)))

    prunable = weights(cfg.PRUNABLE[p.layers].build())
    pruned = p.schedule != "none"
    steps = {"simultaneous": c.local.steps, "tuned": 0}
    work = resources.personalized(
        weights(prune.kernels, kept),
        prunable,
        steps.get(c.personal.method, c.personal.steps),
        c.local.steps,
        own.cycles,
        own.value_bits,
        warm_steps=p.warm_up if pruned and own.bill_warm_up else 0,
        payload=own.payload if pruned else "values",
        fixed_weights=weights(prune.kernels) - prunable,
    )
    where = jnp.asarray(distance, jnp.float32)
    bands = edges(c) if own.bands == "server" else None
    return link.ofdma(
        work,
        lambda root, t, ids: channel.orthogonal_gains(root, t, ids, where[ids], u.antennas),
        threshold=own.time_limit,
        frequency=own.frequency,
        power=u.power,
        noise=own.noise,
        bandwidth=u.bandwidth,
        edge=None if bands is None else bands.of,
        edges=1 if bands is None else bands.servers,
        scheme=own.scheme,
        rho_max=own.rho_max,
        scaled=own.noise_of == "share",
    )


def algorithm(
    config: cfg.Config, network: Model, layout: mesh.Layout, own: Own | None = None
) -> rounds.Round:
    """The federated round, of a network that ``model`` has built."""
    c = config
    structure: prune.Structure | None = cfg.NETWORKS[c.model.name].structure
    if own is not None and c.model.name == cfg.OWN:
        structure = own.structure
    cohort, tiers = c.cohort.size or c.data.clients, edges(c)
    stages: dict[str, Any] = {
        "local": local_update(c, network),
        "uplink": uplink(c, network),
        "server": cfg.SERVERS[c.server.optimizer].build(c.server),
        "participation": cfg.SELECTIONS[c.cohort.selection].build(c, cohort),
        "pruner": pruner(c.pruning, structure),
        "weighting": c.cohort.weighting,
        "layout": layout,
    }
    if tiers is None:
        down = cfg.DOWNLINKS[c.downlink.link].build(c.downlink)
        stages |= {"downlink": down, "personal": personal(c, network)}
        return rounds.build(**stages)
    cloud = cfg.CLOUDS[c.edges.cloud].build(c.edges)
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
