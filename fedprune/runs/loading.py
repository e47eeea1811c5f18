"""A trained model, read from a run directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedprune import build, data, mesh, paths, run, tree
from fedprune import config as cfg
from fedprune.rounds import State
from fedprune.runs import execution
from fedprune.runs.checkpoint import CheckpointError, Checkpoints, rebuild
from fedprune.runs.directory import LOCK, locked, read_config, read_json
from fedprune.runs.files import RunDirectoryError
from fedprune.runs.metrics import read_rows
from fedprune.types import Mask, Model, Params


class Loaded(NamedTuple):
    """One arm and seed of a run, as its newest checkpoint has it."""

    model: Model
    """the network; its ``apply(params, x)`` takes examples as ``x = (raw - shift) * scale``"""
    params: Params
    """the weights that the run evaluates; those that the mask prunes are zero, unless
    ``run.evaluate`` is "full" """
    mask: Mask
    """which weights are kept; None: nothing is pruned"""
    config: cfg.Config
    """the run's configuration with the arm's changes, and with this one seed"""
    state: State
    """everything that the next round would have started from; ``state.round`` rounds are done"""
    shape: tuple[int, ...]
    """of an example"""
    shift: jax.Array
    scale: jax.Array
    """[1, ..., 1, channels], from the training examples"""

    def logits(self, examples: jax.typing.ArrayLike) -> jax.Array:
        """The network's answers [n, classes] to examples [n, ...] as the dataset has them.

        Raises:
          ValueError: examples of another shape.
        """
        shape = np.shape(examples)
        if shape[1:] != self.shape:
            raise ValueError(
                f"examples: {list(shape)}, must be [n, {', '.join(map(str, self.shape))}]"
            )
        x = jnp.asarray(examples).astype(jnp.float32)
        return self.model.apply(self.params, (x - self.shift[None]) * self.scale[None])


def load(
    folder: str | os.PathLike,
    arm: str | None = None,
    seed: int | None = None,
    client: int | None = None,
    own: build.Own | None = None,
) -> Loaded:
    """Reads the model of one arm and seed from a run directory, which is not changed.

    The dataset is not needed. Damaged checkpoints are left out with a warning, as in resuming.

    Args:
      folder: a run directory that no process is using: a run that has ended or was interrupted, or
        a trial of a sweep.
      arm: name of the arm; may be left out where the run has only one.
      seed: its seed; may be left out where the arm has only one.
      client: for runs with personal models, the client whose model is wanted; without it, the
        global model.
      own: for runs with a network of the user's (``model.name=own``), that network, as
        ``build.Own(model)`` of the function ``model`` in the experiment's file.

    Raises:
      RunDirectoryError: no run directory, one without checkpoints, one that a process is using, one
        that another version of fedprune has begun, or one with another network than ``own``.
      ValueError: an arm, seed or client that the run does not have, or that has to be chosen.
      CheckpointError: no checkpoint is whole.
    """
    path = paths.local("DIR", os.fspath(folder))
    if not path.is_dir():
        raise RunDirectoryError(f"{path}: there is no such folder")
    if not (path / "config.json").exists():
        raise RunDirectoryError(f"{path}: is not a run directory (no config.json)")
    prefix = ""
    if not (path / "checkpoints").exists():
        path, prefix = _program_of_trial(path)
    with locked((path / LOCK).open(encoding="utf-8"), str(path)):
        label, program, index = _choose(path, prefix, arm, seed)
        config, about = _config(path, *label)
        checkpoints = Checkpoints(path / "checkpoints" / program)
        try:
            rounds, leaves = checkpoints.newest()
        finally:
            checkpoints.close()
    if not rounds:
        raise RunDirectoryError(f"{path}: {program} has no checkpoint yet")
    shape = tuple(about["shape"])
    network = build.model(config, _no_examples(shape, about["classes"]), own)
    if config.model.name == cfg.OWN:
        name, found = execution.network_of(program), execution.checksum(network, shape)
        if read_json(path / "run.json")["identity"].get(name, found) != found:
            raise RunDirectoryError(f"{path}: was begun with another {name}, than own")
    algorithm = build.algorithm(config, network, mesh.make(clients=1), own)
    key = jax.random.key(0)[None]
    like = {"state": run.start(lambda _: algorithm, network.init, (), key), "key": key}
    try:
        saved = rebuild({name: v[index : index + 1] for name, v in leaves.items()}, like)
    except CheckpointError as e:
        raise CheckpointError(f"{path}: {e}") from e
    state = jax.tree.map(lambda leaf: leaf[0], saved["state"])
    params, mask = state.params, state.mask
    if algorithm.model is not None:
        params, mask = algorithm.model(state), None
    elif config.run.evaluate == "pruned":
        params = tree.apply_mask(mask, params)
    personal = algorithm.personal
    if personal is not None and personal.own_model:
        params = _of_client(network, personal, params, state, client)
    elif client is not None:
        raise ValueError(f"client={client}: this run has no personal models")
    normalisation = (jnp.asarray(about[name], jnp.float32) for name in ("shift", "scale"))
    return Loaded(network, params, mask, config, state, shape, *normalisation)


def _choose(
    path: Path, prefix: str, arm: str | None, seed: int | None
) -> tuple[tuple[str, int], str, int]:
    """((arm, seed), program, index among the program's arms), from the first round's rows."""
    where: dict[tuple[str, int], tuple[str, int]] = {}
    counts: dict[str, int] = {}
    for row in read_rows(path / "metrics.jsonl"):
        label = (row["arm"], row["seed"])
        if label not in where:
            where[label] = (row["program"], counts.get(row["program"], 0))
            counts[row["program"]] = where[label][1] + 1
    names = [name.removeprefix(prefix) for name, _ in where if name.startswith(prefix)]
    arm = _one_of("arm", arm, list(dict.fromkeys(names)), path)
    seeds = [s for name, s in where if name == prefix + arm]
    label = (prefix + arm, _one_of("seed", seed, seeds, path))
    return label, *where[label]


def _one_of(what: str, given: Any, there: list[Any], path: Path) -> Any:
    """The one that is meant.

    Raises:
      ValueError: it is not there, or there are several and none was given.
    """
    if given is None and len(there) == 1:
        return there[0]
    if given not in there or isinstance(given, bool):
        if not there:
            raise RunDirectoryError(f"{path}: has no results yet")
        close = cfg.suggestion(given, there) if isinstance(given, str) else ""
        raise ValueError(f"{what}={given!r}: must be one of {there} of {path}{close}")
    return given


def _config(path: Path, arm: str, seed: int) -> tuple[cfg.Config, dict[str, Any]]:
    """The configuration of one arm and seed, and what its data look like."""
    values = read_config(path)
    values = values.get("config", values)  # of a program of several trials
    starts = read_json(path / "run.json")["starts"]
    about = starts[-1] if starts else {}
    if not {"arms", "data"} <= about.keys():
        raise RunDirectoryError(
            f"{path}: was begun by an older version of fedprune, which did not record what its"
            " model is made of; the same command goes on with the run and records it"
        )
    try:
        config = cfg.from_json(cfg.Config(), values)
    except cfg.ConfigError as e:
        raise RunDirectoryError(f"{path}: was begun by another version of fedprune: {e}") from e
    changes = cfg.with_tuples(config, about["arms"][arm]) | {"run.seed": seed, "run.seeds": 1}
    return cfg.override(config, changes), about["data"]


def _no_examples(shape: Sequence[int], classes: int) -> data.Dataset:
    """Data of which only the form is known."""
    x, y = np.zeros((0, *shape), np.float32), np.zeros(0, np.int32)
    return data.Dataset("", "", x, y, x, y, classes)


def _program_of_trial(trial: Path) -> tuple[Path, str]:
    """(the folder that has the checkpoints of a sweep's trial, what its arms are called there)."""
    prefix = f"{trial.resolve().name}/"
    for file in sorted(trial.resolve().parent.parent.glob("programs/*/config.json")):
        if any(name.startswith(prefix) for name in read_json(file)["arms"]):
            return file.parent, prefix
    raise RunDirectoryError(f"{trial}: has no checkpoints")


def _of_client(network: Model, own: Any, params: Params, state: State, client: int | None):
    """A client's model; the global one without a client, if the global part is a whole model."""
    if client is None:
        whole = jax.eval_shape(network.init, jax.random.key(0))
        if len(jax.tree.leaves(whole)) > len(jax.tree.leaves(params)):
            raise ValueError(
                f"client=None: must be 0 to {own.clients - 1}, since a part of each model stays at"
                " its client"
            )
        return params
    if isinstance(client, bool) or not isinstance(client, int | np.integer):
        raise ValueError(f"client={client!r}: must be an integer")
    if not 0 <= client < own.clients:
        raise ValueError(f"client={client}: must be 0 to {own.clients - 1}")
    return own.join(params, jax.tree.map(lambda leaf: leaf[client], state.personal))
