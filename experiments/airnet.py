"""What all AirNet experiments share: nets trained for a noisy link, delivered over it and measured.

P3 delivers one model over one link. Here a net is trained as a federation of one client with a
perfect uplink (``round.build``), with noise in its weights as the link would put it there
(``link.injection``), and sent through the link (``link.analog``) as often as there are draws.

How a net comes about, every stage with ``run.rounds`` rounds of ``local.steps`` steps:

  1. dense    trained without noise; the starting point of all others, and the teacher
  2. pruned   structured pruning in ``pruning.steps`` steps, each followed by fine-tuning with
              noise and distillation
  3. expanded the pruned net trained on, under the noise that its expansion leaves
  4. pair     two boundary networks from one pruned net, for a range of SNRs

Stages 1 to 3 are one compiled program: SNR, budget, distillation and symbols a weight are traced,
and masks keep shapes. Nets are kept in the run's folder; an interrupted run goes on after the last
stage that was finished.

Settings in common. ``fast``: embedded Fashion-MNIST, a CNN of three convolutions (8, 16, 32
filters of 3×3, 32 hidden units, 15,466 weights, 0.52 million multiplications an image), 12 × 100
steps of batch 32 a stage, momentum 0.9 at learning rate 0.02 that falls to a tenth by a cosine,
divided by 1 + t^2 where a teacher of temperature t = 2 adds its part to the loss, 3 seeds; b is
2,000 complex channel uses of two reals each, a quarter of the weights. Of 0.01, 0.02, 0.03 and 0.1
this learning rate had the best mean accuracy of nets delivered at the 0, 5 and 10 dB that they were
trained for (``airnet_mismatch:fast``, seed 0). ``full``: all of Fashion-
MNIST, 12 × 1,000 steps a stage. ``paper``: Small-VGG16 on CIFAR-10, b = 1.2e6, 12 × 1,950 steps of
batch 128 at learning rate 0.01, one seed, for an accelerator. P3 leaves open: packing (here two
reals a symbol, so that the SNR of a real is that of the link), how filters of different layers are
ranked (by their rank in their layer, so that layers lose equal shares: by mean |w|, all together,
one of the 32 hidden units was left, and 30 % accuracy), how often and how much is pruned (equal
shares of what is left), the noise of the loss-based sensitivity (the channel's). Biases are sent
without error, in the digital baselines too.

Accuracies are means over draws of the channel, noise and h, for each seed, of AirNet and of digital
delivery alike (P3 section VII); intervals are Student's over seeds, of paired differences.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fedprune import (
    build,
    channel,
    coding,
    data,
    link,
    local,
    mesh,
    payload,
    prune,
    rng,
    run,
    server,
    tree,
)
from fedprune import report as rp
from fedprune import round as rounds
from fedprune.config import Arm, Config, ConfigError, spec, to_json
from fedprune.payload import tensors
from fedprune.types import Pruner

log = logging.getLogger(__name__)

SILENT = 200.0
"""SNR in dB that stands for no noise"""
TEMPERATURE = 2.0
LARGEST = {"repetition": 8, "spiral": 4}
"""symbols a weight, at most"""
Accuracies = Mapping[Any, np.ndarray]
"""case -> accuracy in percent of every seed"""


@dataclass
class AirNet(Config):
    """The common fields, and those of delivery."""

    snrs_db: tuple[float, ...] = spec((), "SNRs of delivery", low=-30, high=100, unit="dB")
    uses: int = spec(2000, "bandwidth b", low=1, high=1_000_000_000, unit="complex channel uses")
    draws: int = spec(4, "draws of the noise for each accuracy", low=1, high=1_000_000)
    fading_draws: int = spec(96, "draws of h for each accuracy under fading", low=1, high=1_000_000)
    test_images: int = spec(1000, "test images of each draw", low=1, high=100_000_000)
    curvature_images: int = spec(128, "training images of a sensitivity", low=1, high=100_000_000)
    products: int = spec(12, "Hessian products of a sensitivity", low=2, high=1_000_000)


C = TypeVar("C", bound=AirNet)


def setting(
    kind: type[C], experiment: str, variant: str, snrs_db: Mapping[str, Sequence[float]]
) -> C:
    """The configuration of a variant.

    Args:
      kind: of the configuration.
      experiment: name of the file.
      variant: one of the keys of ``snrs_db``.
      snrs_db: SNRs of delivery of each variant.

    Raises:
      ConfigError: an unknown variant.
    """
    if variant not in snrs_db:
        allowed = ", ".join(snrs_db)
        raise ConfigError(f"variant {variant!r} of {experiment}: must be one of {allowed}")
    c = kind(experiment=f"experiments.{experiment}", variant=variant)
    c.snrs_db = tuple(map(float, snrs_db[variant]))
    c.data.clients, c.uplink.link = 1, "ideal"
    c.model.filters, c.model.hidden = (8, 16, 32), (32,)
    c.local.lr, c.local.steps = 0.02, 100
    c.local.schedule, c.local.schedule_end = "cosine", 0.1
    c.pruning.schedule, c.pruning.granularity = "iterative", "unit"
    c.pruning.start, c.pruning.every, c.pruning.steps = 0, 2, 4
    c.pruning.distribution = "layer"
    c.run.rounds = c.run.every = 12
    if variant == "full":
        c.data.name, c.local.steps, c.test_images = "fashion_mnist", 1000, 10_000
    elif variant == "paper":
        c.data.name, c.model.name, c.model.hidden = "cifar10", "vgg16", (512, 512)
        c.local.lr, c.local.batch, c.local.steps = 0.01, 128, 1950
        c.pruning.steps, c.run.seeds = 5, 1
        c.uses, c.test_images = 1_200_000, 10_000
    return c


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


class Case(NamedTuple):
    """A delivery of one net."""

    net: str
    snr_db: float = 0.0
    fading: str = "none"
    family: str = "repetition"
    repeats: str = ""
    """name of the expansion (``Lab.expansions``); "": every weight once"""
    gamma: float | None = None
    span: tuple[float, float, float] | None = None
    """of a pair: SNR_min, SNR_max and bend"""


class Kept(NamedTuple):
    """Nets of one name, for every seed: leaves [seeds, ...]."""

    params: Any
    mask: Any


class Lab:
    """Trains and delivers nets of one configuration; keeps them in a folder."""

    def __init__(self, config: AirNet, folder: Path) -> None:
        self.config = c = config
        self.folder = folder / "nets"
        self.folder.mkdir(parents=True, exist_ok=True)
        dataset = data.load(c.data.name, c.data.dir or None, download=c.data.download == "yes")
        self.model = build.model(c, dataset)
        self.layout = build.layout(c.mesh, 1000)  # as many nets as there are devices, or more
        self.seeds = c.run.seeds
        split = data.iid(1)
        parts = [split(dataset.y_train, dataset.y_test, s) for s in range(self.seeds)]
        self.train_set, test = data.federate(dataset, parts)
        every = max(1, test.labels.shape[0] // c.test_images)
        self.test = test._replace(examples=test.examples[::every], labels=test.labels[::every])
        self.structure = build.STRUCTURES[c.model.name]
        self.shapes = jax.eval_shape(self.model.init, jax.random.key(0))
        self.weights = sum(leaf.size for leaf in jax.tree.leaves(self.shapes))
        self.layers = link.layer_names(self.shapes)
        self._began = time.monotonic()
        self.nets: dict[str, Kept] = {}
        self.expansions: dict[str, np.ndarray] = {}
        """name -> symbols a weight [seeds, L]"""
        self._programs: dict[str, mesh.Compiled] = {}
        self._sensing: dict[str, Callable] = {}
        self.keys = jnp.stack([jax.random.key(seed) for seed in range(self.seeds)])

    def _log(self, what: str) -> None:
        log.info("%6.0f s: %s", time.monotonic() - self._began, what)

    # Training -----

    def dense(self) -> Kept:
        """Stage 1: the net "dense"."""
        if "dense" not in self.nets:
            init = jax.jit(jax.vmap(lambda key: self.model.init(rng.stream(key, "init"))))
            params = init(self.keys)
            mask = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
            start = Kept(params, mask)
            self.train("dense", [Net("dense", distil=0.0)], {"dense": start}, teacher=start)
        return self.nets["dense"]

    def pruned(self, stage: str, nets: Sequence[Net], single: bool = False) -> None:
        """Stage 2: nets pruned from the dense one; ``single`` prunes weights and not units."""
        dense = self.dense()
        self.train(stage, nets, {net.name: dense for net in nets}, single=single)

    def train(
        self,
        stage: str,
        nets: Sequence[Net],
        start: Mapping[str, Kept],
        repeats: Mapping[str, np.ndarray] | None = None,
        teacher: Kept | None = None,
        single: bool = False,
    ) -> None:
        """Trains nets of the program of stages 1 to 3, for all seeds.

        Args:
          stage: name of the file that keeps them.
          nets: what for.
          start: their names -> the nets from which they start; their masks stay in force.
          repeats: their names -> symbols a weight [seeds, L] in the noise of training.
          teacher: of all; None: the dense net.
          single: single weights are pruned, not units.
        """
        if self._load(stage, [net.name for net in nets]):
            return
        c, teacher = self.config, teacher or self.dense()
        steps = c.run.rounds * c.local.steps
        ones = np.ones((self.seeds, len(self.layers)), np.int32)
        column = lambda values: jnp.repeat(jnp.asarray(values, jnp.float32), self.seeds)
        hyper = {
            "low": column([n.low_db for n in nets]),
            "high": column([n.low_db if n.high_db is None else n.high_db for n in nets]),
            "ratio": column([1.0 - n.share for n in nets]),
            "distil": column([n.distil for n in nets]),
            "quiet": column([n.quiet * steps for n in nets]),
            "repeats": _joined([(repeats or {}).get(n.name, ones) for n in nets]),
            "teacher": _joined([teacher.params] * len(nets)),
        }
        kept = [start[net.name] for net in nets]
        ended = self._run(hyper, _joined(kept), "weight" if single else "unit")
        self._keep(stage, [net.name for net in nets], ended)

    def pair(
        self, stage: str, nets: Sequence[Net], start: Mapping[str, Kept], bends: Sequence[float],
        repeats: Mapping[str, np.ndarray] | None = None,
    ) -> None:  # fmt: skip
        """Stage 4: pairs of boundary networks, each for its net's range of SNRs."""
        if self._load(stage, [net.name for net in nets]):
            return
        ones = np.ones((self.seeds, len(self.layers)), np.int32)
        column = lambda values: jnp.repeat(jnp.asarray(values, jnp.float32), self.seeds)
        hyper = {
            "low": column([n.low_db for n in nets]),
            "high": column([n.high_db for n in nets]),
            "bend": column(bends),
            "ratio": column([0.0] * len(nets)),
            "distil": column([n.distil for n in nets]),
            "quiet": column([0.0] * len(nets)),
            "repeats": _joined([(repeats or {}).get(n.name, ones) for n in nets]),
            "teacher": _joined([self.dense().params] * len(nets)),
        }
        ended = self._run(hyper, _joined([start[net.name] for net in nets]), "pair")
        self._keep(stage, [net.name for net in nets], ended)

    def _run(self, hyper: dict, start: Kept, kind: str) -> Kept:
        """Runs a stage; everything has a leading axis [nets times seeds]."""
        c = self.config
        states = Kept(*map(local.pair, start)) if kind == "pair" else start
        algorithm = lambda values: self._round(values, kind)

        def state(hyper, start: Kept) -> rounds.State:
            made = algorithm(hyper).init(start.params)
            # The masks that a net starts with stay in force: they are the pruner's state.
            of_pruner = made.pruner if kind == "weight" else start.mask
            return made._replace(mask=start.mask, pruner=of_pruner)

        count = hyper["low"].shape[0]
        repeated = lambda v: jnp.concatenate([v] * (count // self.seeds))
        rows, size = repeated(self.train_set.rows), repeated(self.train_set.size)
        began = jax.jit(jax.vmap(state))(hyper, states)
        arms = run.Arms(hyper, repeated(self.keys), began, rows, size)
        if kind not in self._programs:
            self._programs[kind] = run.program(algorithm, self.layout, c.run.rounds)
        devices = self.layout.arm_devices
        padded = run.pad(arms, -(-count // devices) * devices)
        ended, _, _ = self._programs[kind](padded, self.train_set, self.test)
        ended = run.head(ended, count)
        return Kept(ended.params, ended.mask)

    def _round(self, values: Mapping[str, Any], kind: str) -> rounds.Round:
        c = self.config
        sandwich = local.sandwich(values["low"], values["high"])

        def snr_db(key, number):
            loud = number.astype(jnp.float32) >= values["quiet"]
            return jnp.where(loud, sandwich(key, number), SILENT)

        if kind == "pair":
            of = local.interpolated(values["low"], values["high"], values["bend"])
        else:
            of = lambda params, snr: params
        noise = link.injection(snr_db, values["repeats"], c.downlink.packing, of=of)

        def receive(key, number, params, mask):
            return noise(key, number, params, mask["low"] if kind == "pair" else mask)

        # The teacher's part makes the loss, and so its gradient, larger by this factor.
        lr = c.local.lr / (1.0 + TEMPERATURE**2 * values["distil"])
        schedule = prune.iterative(
            values["ratio"], c.pruning.start, c.pruning.every, c.pruning.steps
        )
        pruner = {
            "unit": lambda: prune.structured(schedule, self.structure, c.pruning.distribution),
            "weight": lambda: prune.scheduled(schedule, distribution=c.pruning.distribution),
            "pair": lambda: _fixed(),
        }[kind]()
        return rounds.build(
            local=local.sgd(
                self.model,
                local.adjusted(
                    build.OPTIMIZERS[c.local.optimizer](dataclasses.replace(c.local, lr=lr)),
                    clip=c.local.clip or None,
                ),
                batch=c.local.batch,
                steps=c.local.steps,
                decay=build.DECAYS[c.local.schedule](c.local, c.run.rounds),
                reception=receive,
                distillation=local.distillation(
                    self.model, values["teacher"], TEMPERATURE, values["distil"]
                ),
            ),
            uplink=link.ideal(),
            server=server.average(),
            participation=server.full(1),
            pruner=pruner,
            layout=self.layout,
        )

    def _keep(self, stage: str, names: Sequence[str], ended: Kept) -> None:
        ended = jax.tree.map(np.asarray, ended)
        self._log(f"{stage}: {len(names)} nets for {self.seeds} seeds trained")
        part = self.folder / f".{stage}.npz"
        np.savez(part, *jax.tree.leaves(ended))
        part.replace(self.folder / f"{stage}.npz")
        self._split(names, ended)

    def _load(self, stage: str, names: Sequence[str]) -> bool:
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

    # Delivery -----

    def deliver(self, cases: Sequence[Case]) -> dict[Case, np.ndarray]:
        """Accuracies of every case in percent, [seeds]: means over draws of the channel."""
        groups: dict[tuple, list[Case]] = {}
        for case in cases:
            static = (case.fading, case.family, case.gamma is None, case.span is None)
            groups.setdefault(static, []).append(case)
        found: dict[Case, np.ndarray] = {}
        for (fading, family, best, single), group in groups.items():
            values = self._delivered(group, fading, family, best, single)
            per_seed = 100 * values.mean(1).reshape(len(group), self.seeds)
            found |= dict(zip(group, per_seed, strict=True))
            self._log(f"{len(group)} cases delivered ({family}, fading {fading})")
        return found

    def _delivered(
        self, cases: list[Case], fading: str, family: str, best: bool, single: bool
    ) -> np.ndarray:
        c = self.config
        ones = np.ones((self.seeds, len(self.layers)), np.int32)
        column = lambda values: jnp.repeat(jnp.asarray(values, jnp.float32), self.seeds)
        span = [case.span or (0.0, 1.0, 0.5) for case in cases]
        hyper = {
            "snr": column([case.snr_db for case in cases]),
            "gamma": column([case.gamma or 0.0 for case in cases]),
            "repeats": _joined([self.expansions.get(case.repeats, ones) for case in cases]),
            "span": jnp.repeat(jnp.asarray(span, jnp.float32), self.seeds, 0),
        }
        nets = _joined([self.nets[case.net] for case in cases])

        def receive(values):
            gamma = None if best else values["gamma"]
            protection = link.Protection(values["repeats"], family, LARGEST[family], gamma)
            down = link.analog(values["snr"], protection, c.downlink.packing, fading)

            def at_receiver(key, params, mask):
                if not single:
                    params = local.interpolated(*values["span"])(params, values["snr"])
                    mask = mask["low"]
                return down.send(key, params, mask)

            return at_receiver

        draws = c.draws if fading == "none" else c.fading_draws
        evaluate = run.delivery(self.model, self.layout, receive, draws)
        keys = jnp.concatenate([self.keys] * len(cases))
        return np.asarray(evaluate(hyper, keys, nets.params, nets.mask, self.test))

    def lines(
        self, shown: Mapping[str, Case], snrs_db: Sequence[float]
    ) -> dict[str, dict[float, np.ndarray]]:
        """Accuracies of every seed against SNR: name -> SNR -> [seeds].

        Args:
          shown: name -> the case, at any SNR; "{:g}" in the name of its net stands for the SNR.
          snrs_db: SNRs.
        """
        cases = {
            (name, snr): case._replace(net=case.net.format(snr), snr_db=snr)
            for name, case in shown.items()
            for snr in snrs_db
        }
        found = self.deliver(list(cases.values()))
        return {name: {snr: found[cases[name, snr]] for snr in snrs_db} for name in shown}

    def clean(self, params: Any, mask: Any) -> np.ndarray:
        """Accuracies in percent [n] of models [n, ...] without any channel."""
        plain = lambda values: lambda key, params, mask: params
        evaluate = run.delivery(self.model, self.layout, plain, 1)
        count = jax.tree.leaves(params)[0].shape[0]
        keys = jnp.stack([jax.random.key(0)] * count)
        return 100 * np.asarray(evaluate((), keys, params, mask, self.test))[:, 0]

    def share_of(self, uses: float) -> float:
        """Of the weights, such that they fit into so many channel uses."""
        return min(1.0, self.reals(uses) / self.weights)

    def reals(self, uses: float) -> int:
        """Real symbols in so many channel uses."""
        return int(uses * (2 if self.config.downlink.packing == "complex" else 1))

    # Protection -----

    def sensitivities(self, name: str, how: str, snr_db: float) -> np.ndarray:
        """Of every layer of a net, [seeds, L]: by "hessian" (``coding``) or by "loss"."""
        if how not in self._sensing:
            self._sensing[how] = jax.jit(self._sensitivity(how))
        return np.asarray(self._sensing[how](self.keys, self.nets[name], jnp.float32(snr_db)))

    def _sensitivity(self, how: str) -> Callable:
        c, train = self.config, self.train_set
        some = slice(None, None, max(1, len(train.labels) // c.curvature_images))
        x = (train.examples[some].astype(jnp.float32) - train.shift[None]) * train.scale[None]
        y = train.labels[some].astype(jnp.int32)

        def of_net(net: tuple[jax.Array, Kept], snr_db: jax.Array) -> jax.Array:
            key, (params, mask) = net

            def losses(layers: list[jax.Array]) -> jax.Array:
                new = iter(layers)
                whole = jax.tree.map(lambda v: next(new) if v.ndim >= 2 else v, params)
                logits = self.model.apply(tree.apply_mask(mask, whole), x)
                return local.cross_entropy(logits, y)

            layers = [v for v in jax.tree.leaves(params) if v.ndim >= 2]
            if how == "hessian":
                found, _ = coding.hessian_sensitivity(
                    key, lambda v: losses(v).mean(), layers, "la", "lanczos", products=c.products
                )
            else:
                sent = link.deviations(params, mask, 1, snr_db, c.downlink.packing)
                found = coding.loss_sensitivity(key, losses, layers, list(sent), 4)
            return jnp.stack(found)

        return lambda keys, nets, snr_db: jax.lax.map(lambda net: of_net(net, snr_db), (keys, nets))

    def protect(
        self, label: str, name: str, how: str, snr_db: float, uses: float, family: str = "spiral"
    ) -> np.ndarray:
        """Symbols a weight by unequal protection (P3 Algorithm 2) or "even", as ``expansions``."""
        growth, largest = {"repetition": "add", "spiral": "double"}[family], LARGEST[family]
        net = self.nets[name]
        leaves = [
            (np.asarray(v), np.asarray(m))
            for v, m in zip(jax.tree.leaves(net.params), jax.tree.leaves(net.mask), strict=True)
            if v.ndim >= 3
        ]
        reals = self.reals(uses)
        found = []
        values = None if how == "even" else self.sensitivities(name, how, snr_db)
        for seed in range(self.seeds):
            sizes = np.array([m[seed].sum() for _, m in leaves])
            energy = np.array([np.square(v[seed] * m[seed]).sum() for v, m in leaves])
            if values is None:
                times = max(1, reals // int(sizes.sum()))
                if growth == "double":
                    times = 1 << (times.bit_length() - 1)
                repeats = np.full(len(sizes), min(times, largest))
            else:
                repeats = coding.expansions(values[seed], energy, sizes, reals, growth, largest)
            found.append(repeats)
        self._log(f"{label}: protection by {how}")
        self.expansions[label] = np.stack(found).astype(np.int32)
        return self.expansions[label]

    # Digital baselines -----

    def digital(
        self, shares: Sequence[float], widths: Sequence[float]
    ) -> list[dict[str, tuple[np.ndarray, np.ndarray]]]:
        """Bits and accuracies of models as bitstreams, for each seed.

        Nets are pruned weight by weight to ``shares``, fine-tuned with the teacher and without
        noise, then quantised and entropy-coded ("entropy", as DeepCABAC does), or refined bit plane
        by bit plane ("refined", the idea of SuRP). Small dense nets ("small") have ``widths`` of
        the units of every layer and learn from their first step on, with the teacher and as many
        steps as dense training and pruning take; they are quantised and coded without a mask.
        Accuracies are of what a decoder returns; the receiver knows shapes and has the biases.

        Returns:
          For each seed: method -> (increasing sizes in bits, the best accuracy that fits in each).
        """
        sparse = [Net(f"sparse-{share:g}", share=share) for share in shares]
        self.pruned("digital", sparse, single=True)
        small = [Net(f"small-{width:g}") for width in widths]
        start = {f"small-{width:g}": self._narrow(width) for width in widths}
        for stage in ("small-first", "small"):
            self.train(stage, small, start)
            start = {net.name: self.nets[net.name] for net in small}
        entries: list[tuple[int, str, int, Any]] = []
        for seed in range(self.seeds):
            for net, of_net in [(n, streams) for n in sparse] + [(n, small_streams) for n in small]:
                one = jax.tree.map(lambda v, s=seed: np.asarray(v[s]), self.nets[net.name])
                entries += [(seed, *entry) for entry in of_net(*one)]
        self._log(f"{len(entries)} digital models coded")
        stacked = _stacked([params for *_, params in entries])
        everything = jax.tree.map(lambda p: jnp.ones(p.shape, bool), stacked)
        accuracies = self.clean(stacked, everything)
        found = []
        for seed in range(self.seeds):
            curves = {}
            for method in DIGITAL:
                points = sorted(
                    (bits, a)
                    for (s, m, bits, _), a in zip(entries, accuracies, strict=True)
                    if (s, m) == (seed, method)
                )
                sizes, first = np.unique([bits for bits, _ in points], return_index=True)
                best = np.maximum.accumulate([a for _, a in points])
                last = np.append(first[1:], len(points)) - 1
                curves[method] = (sizes, best[last])
            found.append(curves)
        return found

    def _narrow(self, width: float) -> Kept:
        """Untrained nets with a share of the units of each layer.

        Their kernels have the variance that their own, smaller, number of inputs asks for.
        """
        units = self.structure(self.shapes)
        kept = [jnp.arange(u.size) < max(1, round(width * u.size)) for u in units]
        mask = prune.mask_of(units, kept, self.shapes)

        def init(key: jax.Array) -> Kept:
            params = self.model.init(rng.stream(key, "init"))
            scaled = lambda p, m: p * jnp.sqrt(m.shape[-2] / m.any((*range(m.ndim - 2), -1)).sum())
            wide = jax.tree.map(lambda p, m: scaled(p, m) if p.ndim >= 2 else p, params, mask)
            return Kept(tree.apply_mask(mask, wide), mask)

        return jax.jit(jax.vmap(init))(self.keys)


def streams(params: Any, mask: Any) -> list[tuple[str, int, Any]]:
    """(method, bits, decoded params) of a sparse model's kernels in every rate considered."""
    leaves, treedef = jax.tree.flatten(params)
    masks = jax.tree.leaves(mask)
    found = [("entropy", *_coded(params, mask, bits, small=False)) for bits in (4, 8)]
    kernels = [np.where(m, v, 0) for v, m in zip(leaves, masks, strict=True) if v.ndim >= 2]
    flat = np.concatenate([k.reshape(-1) for k in kernels])
    lengths = np.array([k.size for k in kernels])
    chunks = payload.refine(flat, lengths, 8)
    for passes in range(2, len(chunks) + 1):
        weights = payload.restore(chunks[:passes], lengths)
        parts = iter(np.split(weights, np.cumsum(lengths)[:-1]))
        decoded = [next(parts).reshape(v.shape) if v.ndim >= 2 else v for v in leaves]
        size = 8 * sum(map(len, chunks[:passes]))
        found.append(("refined", size, jax.tree.unflatten(treedef, decoded)))
    return found


def small_streams(params: Any, mask: Any) -> list[tuple[str, int, Any]]:
    """(method, bits, decoded params) of a model of fewer units: what is left of its kernels."""
    return [("small", *_coded(params, mask, bits, small=True)) for bits in (4, 8)]


def _coded(params: Any, mask: Any, bits: int, small: bool) -> tuple[int, Any]:
    """(bits, decoded params) of entropy-coded kernels: with their masks, or, if ``small``, without
    them and without the units that they leave out."""
    leaves, treedef = jax.tree.flatten(params)
    size, decoded = 0, []
    for v, m in zip(leaves, jax.tree.leaves(mask), strict=True):
        if v.ndim < 2:
            decoded.append(v)
            continue
        axes = range(v.ndim)
        whole: Any = ...
        left = np.ix_(*(m.any(tuple(a for a in axes if a != b)) for b in axes)) if small else whole
        kept = v[left]
        code, scale = tensors.encode(kept, None if small else m, "entropy", bits)
        size += 8 * len(code) + 32
        back = np.zeros_like(v)
        back[left], _ = tensors.decode(code, kept.shape, v.dtype, not small, "entropy", bits, scale)
        decoded.append(back)
    return size, jax.tree.unflatten(treedef, decoded)


def digital_accuracies(
    curves: Sequence[Mapping[str, tuple[np.ndarray, np.ndarray]]],
    method: str,
    snr_db: float,
    uses: float,
    fading: str = "none",
) -> np.ndarray:
    """Accuracies in percent of every seed: at capacity (AWGN and "csit"), or at the best fixed rate
    without channel knowledge at the transmitter ("outage")."""
    snr = 10 ** (snr_db / 10)
    found = []
    for seed in curves:
        sizes, accuracies = seed[method]
        curve = channel.step_curve(sizes, accuracies)
        if fading == "none":
            value = curve(uses * channel.capacity(snr))
        elif fading == "csit":
            value = channel.adaptive_rate(snr, uses, curve)
        else:
            rates = jnp.asarray(np.nextafter(sizes.astype(np.float32) / uses, np.inf), jnp.float32)
            value = channel.fixed_rate(rates * 1.000001, snr, uses, curve).max()
        found.append(float(value))
    return np.array(found)


class Point(NamedTuple):
    """Where schemes are compared."""

    snr_db: float
    uses: int

    def __str__(self) -> str:
        return f"{self.snr_db:g}dB-{self.uses}"


SCHEMES = {
    "plain": "AirNet",
    "sk": "AirNet + SK + UEP",
    "pair": "AirNet + I + SK + UEP",
}
DIGITAL = {
    "entropy": "pruned, 4 or 8 bits, entropy-coded",
    "refined": "successive refinement",
    "small": "small dense, 4 or 8 bits",
}
Found = dict[tuple[str, Point, str], np.ndarray]
"""(scheme, point, fading) -> accuracy in percent of every seed"""


def compare(
    lab: Lab,
    points: Sequence[Point],
    span: tuple[float, float],
    shares: Sequence[float],
    widths: Sequence[float],
) -> Found:
    """P3's three schemes and the digital baselines at some points (Figs. 4 and 5).

    A net is trained for each point by itself without fading, and delivered with and without. SK and
    UEP are spirals with Hessian-based unequal protection of a net pruned to half the symbols,
    retrained under the noise that is left; plain nets have as many steps of training. The
    interpolation scheme has one pair a bandwidth, from the pruned net for the middle of its range.

    Args:
      lab: with the configuration.
      points: where.
      span: SNR_min and SNR_max of the pairs.
      shares: of the weights that digital models keep.
      widths: of small dense digital models, beside the dense net.
    """
    whole = [Net(f"whole-{p}", p.snr_db, share=lab.share_of(p.uses)) for p in points]
    half = [Net(f"half-{p}", p.snr_db, share=lab.share_of(p.uses / 2)) for p in points]
    lab.pruned("pruned", [*whole, *half])
    for p in points:
        lab.protect(f"half-{p}", f"half-{p}", "hessian", p.snr_db, p.uses)
    start: dict[str, Kept] = {}
    repeats: dict[str, np.ndarray] = {}
    nets: list[Net] = []
    for p, w, h in zip(points, whole, half, strict=True):
        nets += [w._replace(name=f"plain-{p}"), h._replace(name=f"sk-{p}")]
        start |= {f"plain-{p}": lab.nets[w.name], f"sk-{p}": lab.nets[h.name]}
        repeats[f"sk-{p}"] = lab.expansions[h.name]
    lab.train("expanded", nets, start, repeats)
    middle = np.mean(span)
    nearest = {
        b: min((p for p in points if p.uses == b), key=lambda p: abs(p.snr_db - middle))
        for b in {p.uses for p in points}
    }
    pairs = [Net(f"pair-{b}", *span) for b in nearest]
    lab.pair(
        "pairs",
        pairs,
        {f"pair-{b}": lab.nets[f"half-{p}"] for b, p in nearest.items()},
        [0.5] * len(pairs),
        {f"pair-{b}": lab.expansions[f"half-{p}"] for b, p in nearest.items()},
    )
    cases = {}
    for p in points:
        for fading in ("none", "rayleigh"):
            cases["plain", p, fading] = Case(f"plain-{p}", p.snr_db, fading)
            cases["sk", p, fading] = Case(f"sk-{p}", p.snr_db, fading, "spiral", f"half-{p}")
            near = f"half-{nearest[p.uses]}"
            cases["pair", p, fading] = Case(
                f"pair-{p.uses}", p.snr_db, fading, "spiral", near, span=(*span, 0.5)
            )
    delivered = lab.deliver(list(cases.values()))
    found: Found = {where: delivered[case] for where, case in cases.items()}
    curves = lab.digital(shares, widths)
    for p in points:
        for method in DIGITAL:
            for fading in ("none", "outage", "csit"):
                accuracy = digital_accuracies(curves, method, p.snr_db, p.uses, fading)
                found[method, p, fading] = accuracy
    return found


def best_digital(found: Found, point: Point, fading: str) -> np.ndarray:
    """Accuracies [seeds] of the digital baseline whose mean over seeds is the best.

    One baseline for all seeds: a choice for each seed by itself would compare AirNet, which has no
    choice, with the best of several draws.
    """
    return best_mean([found[method, point, fading] for method in DIGITAL])


def best_mean(values: Sequence[np.ndarray]) -> np.ndarray:
    """The one [seeds] of several with the largest mean."""
    return max(values, key=np.mean)


def comparison_tables(
    found: Found, points: Sequence[Point], label: str, of: Callable[[Point], float]
) -> dict[str, str]:
    """A table without fading and one with, a line a point."""
    tables = {}
    for fading, title in (("none", "AWGN"), ("rayleigh", "Slow fading")):
        columns = [(SCHEMES[s], s, fading) for s in SCHEMES]
        if fading == "none":
            columns += [(DIGITAL[m], m, "none") for m in DIGITAL]
        else:
            columns += [(f"{DIGITAL[m]}, fixed rate", m, "outage") for m in DIGITAL]
            columns += [(f"{DIGITAL[m]}, CSIT", m, "csit") for m in DIGITAL]
        body = [
            [f"{of(p):g}", *(str(rp.interval(found[s, p, f])) for _, s, f in columns)]
            for p in points
        ]
        heading = f"{title}: test accuracy in percent, mean ± 95 % interval over seeds"
        tables[heading] = rp.table([label, *(name for name, _, _ in columns)], body)
    return tables


def comparison_figures(
    folder: Path, found: Found, points: Sequence[Point], label: str, of: Callable[[Point], float]
) -> None:
    """Accuracy against SNR or bandwidth, without and with fading."""
    folder.mkdir(exist_ok=True)
    x = [of(p) for p in points]
    for fading, digital in (("none", ["none"]), ("rayleigh", ["outage", "csit"])):
        lines = {SCHEMES[s]: [found[s, p, fading] for p in points] for s in SCHEMES}
        names = {"none": "digital", "outage": "digital, fixed rate", "csit": "digital, CSIT"}
        lines |= {names[f]: [best_digital(found, p, f) for p in points] for f in digital}
        name = "awgn" if fading == "none" else "fading"
        rp.line_figure(folder / name, x, lines, label, "test accuracy (%)")


class Rule(NamedTuple):
    """A claim of P3, judged by paired differences."""

    id: str
    paper: str
    text: str
    above: float
    values: np.ndarray
    unit: str = "points"


def verdicts(rules: Sequence[Rule]) -> list[rp.Verdict]:
    """Every rule beside what was found."""
    return [
        rp.Verdict(r.id, f"P3 {r.paper}", r.text, held, f"{found} {r.unit}")
        for r in rules
        for held, found in [rp.judge(r.values, r.above)]
    ]


def arms(config: AirNet) -> list[Arm]:
    """None: nets depend on one another, and an experiment's ``report`` trains them."""
    return []


def present(
    config: AirNet,
    folder: Path,
    lines: Mapping[str, Mapping[float, np.ndarray]],
    rules: Sequence[Rule],
    more: Mapping[str, str] | None = None,
) -> str:
    """Writes summary, tables and figure of accuracies against SNR; returns the text to print."""
    snrs = list(next(iter(lines.values())))
    body = [[f"{snr:g}", *(str(rp.interval(v[snr])) for v in lines.values())] for snr in snrs]
    heading = f"Test accuracy in percent, mean ± 95 % interval over {config.run.seeds} seeds"
    tables = {heading: rp.table(["SNR (dB)", *lines], body), **(more or {})}
    (folder / "figures").mkdir(exist_ok=True)
    drawn = {name: list(values.values()) for name, values in lines.items()}
    rp.line_figure(folder / "figures" / "snr", snrs, drawn, "SNR (dB)", "test accuracy (%)")
    name = config.experiment.split(".")[-1]
    judged = verdicts(rules)
    return rp.write_run(folder, name, to_json(config), [], [], tables, judged, "Claims of P3")


def _fixed() -> Pruner:
    """A pruner whose state is its mask, once and for all."""
    return Pruner(lambda params: (), lambda mask, before: (mask, mask))


def _joined(values: Sequence[Any]) -> Any:
    """Pytrees [seeds, ...] one after another."""
    return jax.tree.map(lambda *v: jnp.concatenate([jnp.asarray(a) for a in v]), *values)


def _stacked(values: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *v: jnp.stack([jnp.asarray(a) for a in v]), *values)
