"""From a configuration and its arms to rows of results: what every experiment file calls.

Arms that differ only in traced fields share one compiled program; the others get programs of their
own. Every arm runs with several seeds; a seed decides the partition of the data, the initial
weights, batches, cohorts and noise, so arms of equal seed are paired.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedprune import backend, build, data, mesh, processes, run
from fedprune import config as cfg
from fedprune.runs import Row, RunDirectory, checkpoint, loop
from fedprune.runs.checkpoint import CheckpointError
from fedprune.runs.writers import Log
from fedprune.types import Model

log = logging.getLogger(__name__)


class Plan(NamedTuple):
    """An experiment that has been checked and is ready to run."""

    config: cfg.Config
    arms: Sequence[cfg.Arm]
    dataset: data.Dataset
    programs: list[loop.Program]
    checkpoints: int
    """bytes of one checkpoint of every program"""
    identity: dict[str, str]
    """name -> checksum of the data, and of networks of the user's, for ``RunDirectory``"""


def plan(config: cfg.Config, arms: Sequence[cfg.Arm], own: build.Own | None = None) -> Plan:
    """Checks the configuration with every arm, loads the data and lays out the programs.

    Touches no file of the run.

    Args:
      config: the experiment's.
      arms: the experiment's.
      own: the user's network, for ``model.name=own``.

    Raises:
      ConfigError: a value, or an arm's value, that is not allowed.
      DataError: a dataset that is missing or damaged.
    """
    cfg.validate_arms(config, arms)
    dataset = build.dataset(config.data)
    groups = cfg.program_groups(config, arms)
    configs = [cfg.override(config, dict(static)) for static in groups]
    for wanted in {dataclasses.astuple(c.data): c.data for c in configs}.values():
        partition = build.partitioner(wanted, dataset)(dataset.y_train, dataset.y_test, 0)
        table = data.summary(partition, dataset.y_train, dataset.y_test)
        log.info("partition %s of seed 0:\n%s", wanted.partition, table)
    programs = [
        _program(f"program{i}", changed, group, dataset, own)
        for i, (changed, group) in enumerate(zip(configs, groups.values(), strict=True))
    ]
    arrays = [value for value in dataset if hasattr(value, "dtype")]
    identity = {"content of the data": checkpoint.fingerprint(arrays)}
    for made, changed in zip(programs, configs, strict=True):
        if changed.model.name == cfg.OWN:
            identity[network_of(made.program.name)] = checksum(
                made.network, dataset.x_train.shape[1:]
            )
    size = sum(made.checkpoint for made in programs)
    return Plan(config, arms, dataset, [made.program for made in programs], size, identity)


def about(plan: Plan) -> dict[str, Any]:
    """What a run directory records of a plan, beside its configuration: ``load`` needs it."""
    dataset = plan.dataset
    shift, scale = (v.tolist() for v in data.normalisation(dataset))
    shape = list(dataset.x_train.shape[1:])
    return {
        "arms": {arm.name: dict(arm.overrides) for arm in plan.arms},
        "data": {"shape": shape, "classes": dataset.classes, "shift": shift, "scale": scale},
    }


def execute(
    plan: Plan,
    directory: RunDirectory | None,
    stop: Callable[[], bool] = lambda: False,
    out: Log | None = None,
) -> list[Row]:
    """Runs a plan to its end in a run directory, resuming what is there; returns all its rows.

    Args:
      plan: what to run.
      directory: process 0's; None on the others, which get no rows.
      stop: asked between segments, see ``loop.train``.
      out: writers of the rows, likewise; None: they are in ``metrics.jsonl`` alone.

    Raises:
      Stopped: ``stop`` said so, and the state is saved.
      CheckpointError: what is there cannot be continued, a checkpoint cannot be written, or the
        disk has no room for one of every program.
      WriterError: a writer has failed.
    """
    folder, c = None if directory is None else directory.path, plan.config.run
    processes.together(lambda: _check_disk(folder, plan.checkpoints))
    return loop.train(plan.programs, folder, c.rounds, c.every, c.save_every, stop, out)


class _Made(NamedTuple):
    """A program, its network, and the bytes of a checkpoint of it."""

    program: loop.Program
    network: Model
    checkpoint: int


def network_of(program: str) -> str:
    """What an identity calls the network of a program."""
    return f"network of {program}, as JAX {jax.__version__} has it"


def checksum(network: Model, shape: Sequence[int]) -> str:
    """SHA-256 of what a network computes of examples of a shape, as the compiler is given it."""
    params = jax.eval_shape(network.init, jax.random.key(0))
    examples = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    text = jax.jit(network.train or network.apply).lower(params, examples).as_text()
    return hashlib.sha256(text.encode()).hexdigest()


def _program(
    name: str,
    config: cfg.Config,
    arms: Sequence[cfg.Arm],
    dataset: data.Dataset,
    own: build.Own | None,
) -> _Made:
    first = {arm.name: arm.overrides.get("run.seed", config.run.seed) for arm in arms}
    labels = [
        loop.Label(arm.name, first[arm.name] + i) for arm in arms for i in range(config.run.seeds)
    ]
    network = build.model(config, dataset, own)
    _check_weights(config, network, len(labels))
    layout = build.layout(config.mesh, len(labels))
    hyper, by_client = _hyper(config, arms), config.run.test == "clients"

    def algorithm(values: dict[str, jax.Array]):
        return build.algorithm(cfg.override(config, values), network, layout, own)

    # Stages that do not fit each other are refused before there is a directory.
    padded = -(-len(labels) // layout.arm_devices) * layout.arm_devices
    size = run.footprint(algorithm({}), network.init, padded)
    _check_footprint(name, config, size, layout)

    @functools.cache
    def federation() -> data.Federation:
        split = build.partitioner(config.data, dataset)
        by_seed = {
            seed: split(dataset.y_train, dataset.y_test, seed)
            for seed in sorted({label.seed for label in labels})
        }
        return data.federate(dataset, [by_seed[label.seed] for label in labels])

    def start() -> run.Arms:
        train, test = federation()
        key = jnp.stack([jax.random.key(label.seed) for label in labels])
        state = run.start(algorithm, network.init, hyper, key)
        tests = (test.rows, test.size) if by_client else None
        return run.Arms(hyper, key, state, train.rows, train.size, tests)

    def segment(rounds: int) -> mesh.Compiled:
        per_chunk = config.mesh.arms_per_chunk or None
        pruned = config.run.evaluate == "pruned"
        evaluate: run.Evaluate
        if by_client:
            parts = build.personal(config, network)
            clients = config.data.clients
            evaluate = run.client_evaluation(network, layout, clients, parts, pruned=pruned)
        else:
            evaluate = run.evaluation(network, layout, pruned=pruned)
        compiled = run.program(algorithm, layout, rounds, evaluate, per_chunk)
        train, test = mesh.put(federation(), layout.replicated())
        return mesh.Compiled(
            lambda arms: compiled(arms, train, test), lambda arms: compiled.lower(arms, train, test)
        )

    log.info(
        "%s: runs (arms times seeds): %d; devices: %d for arms x %d for clients",
        *(name, len(labels), layout.arm_devices, layout.client_devices),
    )
    return _Made(loop.Program(name, labels, start, segment, padded), network, size.checkpoint)


def _bytes(number: float) -> str:
    """A number of bytes as people read it."""
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:,.3g} GiB" if number < 1000 else f"{number:,.0f} GiB"


def _check_weights(config: cfg.Config, network: Model, runs: int) -> None:
    """Whether a program's weights have room; training takes some times as much.

    Raises:
      ConfigError: they have not, or are more than can be counted.
    """
    leaves = jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0)))
    weights, room = sum(leaf.size for leaf in leaves), backend.memory()
    needed = runs * sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    named = f"model.name={config.model.name!r}: must be a network"
    if needed > room:
        raise cfg.ConfigError(
            f"{named} that fits into the {_bytes(room)} of memory; the {weights:,} weights of"
            f" {runs} runs alone have {_bytes(needed)}"
        )
    if weights >= 2**31:
        raise cfg.ConfigError(f"{named} of fewer than 2^31 weights, not of {weights:,}")


def _check_footprint(
    name: str, config: cfg.Config, size: run.Footprint, layout: mesh.Layout
) -> None:
    """Says what is kept of clients, and whether all that runs hold between rounds has room.

    Raises:
      ConfigError: it has not.
    """
    room, everywhere, k = backend.memory(), size.device * layout.mesh.size, config.data.clients
    if size.store:
        log.info(
            "%s: %s are kept of %d clients; with all else %s on each device, %s in a checkpoint",
            *(name, _bytes(size.store), k, _bytes(size.device), _bytes(size.checkpoint)),
        )
    if everywhere > room:
        field = f"data.clients={k}" if size.store else f"model.name={config.model.name!r}"
        raise cfg.ConfigError(
            f"{field}: what runs hold between rounds must fit into the {_bytes(room)} of memory,"
            f" but has {_bytes(everywhere)}, of which {_bytes(size.store)} are kept of clients"
        )


def _check_disk(folder: Path | None, checkpoints: int) -> None:
    """Whether there is room for a first checkpoint of every program; None: this is not the process
    that writes.

    Raises:
      CheckpointError: there is not.
    """
    if folder is None or (folder / "checkpoints").exists():
        return
    free = shutil.disk_usage(folder).free
    if checkpoints > free:
        raise CheckpointError(
            f"{folder}: has {_bytes(free)} of room, but a checkpoint of all runs has"
            f" {_bytes(checkpoints)}"
        )


def _hyper(config: cfg.Config, arms: Sequence[cfg.Arm]) -> dict[str, jax.Array]:
    """The traced fields in which the arms differ, each [A] for arms times seeds."""
    traced = cfg.traced_paths(config)
    types = {path: f.type for path, f, _ in cfg.fields(config)}
    differing = sorted({path for arm in arms for path in arm.overrides if path in traced})
    differing = [path for path in differing if path != "run.seed"]  # it is in the arms' keys
    defaults = {path: value for path, _, value in cfg.fields(config)}
    columns = {
        path: [
            arm.overrides.get(path, defaults[path]) for arm in arms for _ in range(config.run.seeds)
        ]
        for path in differing
    }
    return {
        path: jnp.asarray(column, jnp.float32 if types[path] is float else jnp.int32)
        for path, column in columns.items()
    }
