"""The laboratory: a configuration, its data and network, and the nets that were trained in it.

Nets are kept in the run's folder, a file for each stage, so that an interrupted run goes on after
the last stage that was finished.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedprune import build, data, link, local, mesh, rng
from fedprune import config as cfg
from fedprune.airnet.settings import SILENT, AirNet
from fedprune.config import ConfigError
from fedprune.types import Model

log = logging.getLogger(__name__)


class Net(NamedTuple):
    """What a net is trained for; nets of one stage share a program."""

    name: str
    low_db: float = SILENT
    """SNR of the noise in training; up to ``high_db`` by the sandwich rule"""
    high_db: float | None = None
    """None: ``low_db``"""
    share: float = 1.0
    """of the weights that are kept"""
    distil: float = 1.0
    """weight of the teacher"""
    quiet: float = 0.0
    """share of the steps before noise sets in: pruning separate from noise"""
    fading: str = "none"
    """of the channel in training, the same for all nets of a stage"""


class Kept(NamedTuple):
    """Nets of one name, for every seed: leaves [seeds, ...]."""

    params: Any
    mask: Any


class Lab:
    """What all stages and deliveries of one configuration share."""

    def __init__(self, config: AirNet, folder: Path) -> None:
        self.config = c = config
        self.folder = folder / "nets"
        self.folder.mkdir(parents=True, exist_ok=True)
        dataset = build.dataset(c.data)
        self.model = _network(c, dataset)
        self.layout = build.layout(c.mesh, 1000)  # as many nets as there are devices, or more
        self.seeds = c.run.seeds
        split = data.iid(1)
        parts = [split(dataset.y_train, dataset.y_test, s) for s in range(self.seeds)]
        self.train_set, test = data.federate(dataset, parts)
        every = max(1, test.labels.shape[0] // c.test_images)
        self.test = test._replace(examples=test.examples[::every], labels=test.labels[::every])
        self.structure = cfg.NETWORKS[c.model.name].structure
        self.shapes = jax.eval_shape(self.model.init, jax.random.key(0))
        self.weights = sum(leaf.size for leaf in jax.tree.leaves(self.shapes))
        self.layers = link.layer_names(self.shapes)
        self.nets: dict[str, Kept] = {}
        self.expansions: dict[str, np.ndarray] = {}
        """name -> symbols a weight [seeds, L]"""
        self.programs: dict[tuple[str, int, str], mesh.Compiled] = {}
        self.sensing: dict[str, Callable] = {}
        self.keys = jnp.stack([jax.random.key(seed) for seed in range(self.seeds)])
        self._began = time.monotonic()

    def log(self, what: str) -> None:
        """A line of progress."""
        log.info("%6.0f s: %s", time.monotonic() - self._began, what)

    def column(self, values: Sequence[float]) -> jax.Array:
        """A number for each net, [nets times seeds]."""
        return jnp.repeat(jnp.asarray(values, jnp.float32), self.seeds)

    def ones(self) -> np.ndarray:
        """Every weight once, as an expansion [seeds, L]."""
        return np.ones((self.seeds, len(self.layers)), np.int32)

    def untrained(self) -> Kept:
        """Initial weights of every seed, all of them kept."""
        init = jax.jit(jax.vmap(lambda key: self.model.init(rng.stream(key, "init"))))
        params = init(self.keys)
        return Kept(params, jax.tree.map(lambda p: jnp.ones(p.shape, bool), params))

    def reals(self, uses: float) -> int:
        """Real symbols in so many channel uses."""
        return int(uses * (2 if self.config.downlink.analog.packing == "complex" else 1))

    def share_of(self, uses: float) -> float:
        """Of the weights, such that they fit into so many channel uses."""
        return min(1.0, self.reals(uses) / self.weights)

    def keep(self, stage: str, names: Sequence[str], ended: Kept) -> None:
        """Adds the nets of a stage, one after another in ``ended``, and writes them to its file."""
        ended = jax.tree.map(np.asarray, ended)
        self.log(f"{stage}: {len(names)} nets for {self.seeds} seeds trained")
        part = self.folder / f".{stage}.npz"
        np.savez(part, *jax.tree.leaves(ended))
        part.replace(self.folder / f"{stage}.npz")
        self._split(names, ended)

    def load(self, stage: str, names: Sequence[str]) -> bool:
        """Adds the nets of a stage from its file, if it is there."""
        file = self.folder / f"{stage}.npz"
        if not file.exists():
            return False
        with np.load(file) as saved:
            leaves = [saved[name] for name in saved.files]
        paired = len(leaves) > 2 * len(jax.tree.leaves(self.shapes))
        whole = jax.tree.structure(
            Kept(*map(local.pair, [self.shapes] * 2) if paired else [self.shapes] * 2)
        )
        self._split(names, jax.tree.unflatten(whole, leaves))
        return True

    def _split(self, names: Sequence[str], ended: Kept) -> None:
        for i, name in enumerate(names):
            mine = slice(i * self.seeds, (i + 1) * self.seeds)
            self.nets[name] = jax.tree.map(lambda v, mine=mine: v[mine], ended)


def joined(values: Sequence[Any]) -> Any:
    """Pytrees [seeds, ...] one after another."""
    return jax.tree.map(lambda *v: jnp.concatenate([jnp.asarray(a) for a in v]), *values)


def stacked(values: Sequence[Any]) -> Any:
    """Pytrees [...] along a new first axis."""
    return jax.tree.map(lambda *v: jnp.stack([jnp.asarray(a) for a in v]), *values)


def _network(c: AirNet, dataset: data.Dataset) -> Model:
    """The network, which sees resized images if the configuration says so."""
    if not c.resize:
        return build.model(c, dataset)
    crop = c.crop or c.resize
    if crop > c.resize:
        raise ConfigError(f"crop={c.crop}: must be at most resize={c.resize}")
    channels = dataset.x_train.shape[-1]
    seen = dataset._replace(x_train=np.empty((1, crop, crop, channels), dataset.x_train.dtype))
    return resized(build.model(c, seen), c.resize, crop)


def resized(model: Model, resize: int, crop: int) -> Model:
    """A network that is given images of any size: they are resized, and cropped to their centre."""

    def view(x: jax.Array) -> jax.Array:
        large = jax.image.resize(x, (x.shape[0], resize, resize, x.shape[-1]), "bilinear")
        low = (resize - crop) // 2
        return large[:, low : low + crop, low : low + crop]

    train = model.train
    return Model(
        model.init,
        lambda params, x: model.apply(params, view(x)),
        None if train is None else lambda params, x: train(params, view(x)),
    )
