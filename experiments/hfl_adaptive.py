"""Hierarchical federated learning with pruning that fits the channels (P2, Figs. 3-5).

    fedprune run hfl_adaptive:fast --workdir=runs/hfl_adaptive

Network, federation and training of ``hfl_pruning``. In every edge round each edge server learns its
devices' channels and divides its 20 MHz and their pruning ratios such that all are in time: T_th is
25, 30, 35 or 40 ms. The compared arms, at 30 ms where nothing else is said:

  optimal-25 ... optimal-40   band and pruning allocated together, P2 section V
  equal        equal shares of the band, and the pruning that they need: the literal reading of P2's
               "equal resource pruning". (The other reading, equal shares with the pruning of the
               optimal allocation, learns what optimal learns, weight for weight, and differs in its
               latency only; ``latency_tables`` has it)
  unpruned     equal shares, nothing pruned
  flat         no edge servers: 25 devices share the band of a far base station, the whole model is
               pruned, and one gradient a round is averaged over all devices, as P2 says of its
               reference [10]; T_th is 350 ms
  flat-steps   no edge servers either, but local steps, masks and means over holders as in optimal:
               tells what the hierarchy gives from what the local steps give
  non-iid      optimal, with Dirichlet(0.3) clients

The setting is near ``interior`` of ``latency_tables``: slow processors (100 cycles a weight and
step) at 46 to 57 m, so that pruning ratios lie inside their limits, at most 95 %. (P2 has neither
distances nor cycles; with those that fit its Table III the optimum gives some devices everything
and prunes others altogether, which says little about learning.) The flat baseline stands at 583 to
767 m. The warm-up step is billed, but not in ``paper``, since P2 (9) has no term for it. Variants
as in ``hfl_pruning``.

Fixed before any result was seen: accuracies after the last round, paired by seed, 95 % Student
intervals, thresholds as written.

  1. optimal at 30 ms at most 1 point below unpruned
  2. its latency at most 60 % of unpruned ("about half"); this follows from the setting: 30 ms of 52
     with 10 steps, of 45 with the 5 steps of ``fast``
  3. optimal above flat, after as many rounds of communication (flat takes fewer gradient steps)
  4. 40 ms above 25 ms in accuracy
  5. IID above non-IID
  6. optimal above equal
  7. the loss at 25 ms above that at 40 ms
  8. 25 ms needs more rounds than 40 ms to come within 2 points of the lower of their final
     accuracies
  9. optimal sends at most 60 % of the weights of unpruned ("about 50 % communication cost")
  10. optimal above flat-steps: the hierarchy by itself
Of these, 7 to 10 and flat-steps were added before the first run of ``full``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedprune import allocation, channel, resources
from fedprune import report as rp
from fedprune.config import Arm, Config, ConfigError, spec, to_json
from fedprune.runs import Row
from fedprune.studies.hfl import setting
from fedprune.studies.latency import CONV, DENSE

VARIANTS = ("fast", "full", "mnist", "cifar10", "paper")
BEST = "optimal-30"
"""the arm that the claims compare with others"""


@dataclass
class HflAdaptive(Config):
    """The common fields, and the thresholds that are compared."""

    limits_ms: tuple[float, ...] = spec(
        (25.0, 30.0, 35.0, 40.0), "T_th compared", above=0, high=1e9, unit="ms"
    )


def get_config(variant: str = "fast") -> HflAdaptive:
    """The configuration of a variant."""
    config = HflAdaptive(experiment="hfl_adaptive", variant=variant)
    setting(config, variant)
    config.mesh.arms = 1  # three seeds do not divide among an even number of devices
    config.pruning.schedule = "allocated"
    u, own = config.uplink, config.uplink.ofdma
    u.link, u.fading, u.antennas = "ofdma", "rayleigh", 64
    u.nearest, u.farthest = 45.6, 57.0
    u.power, u.bandwidth, own.noise, own.frequency = 0.631, 20e6, 1e-14, 3e9
    own.cycles, own.value_bits, own.time_limit, own.rho_max = 100.0, 64, 0.03, 0.95
    own.bill_warm_up = variant != "paper"
    return config


def arms(config: HflAdaptive) -> list[Arm]:
    """What is compared; the thresholds share a program.

    Raises:
      ConfigError: no threshold.
    """
    if not config.limits_ms:
        raise ConfigError("limits_ms=(): must have at least one number")
    far: dict[str, Any] = {
        "edges.servers": 1,
        "uplink.nearest": 582.7,
        "uplink.farthest": 766.7,
        "uplink.antennas": 83,
        "uplink.ofdma.time_limit": 0.35,
    }
    gradients = {"pruning.layers": "all", "local.steps": 1, "uplink.division": "all"}
    others: dict[str, dict[str, Any]] = {
        "equal": {"uplink.ofdma.scheme": "equal"},
        "unpruned": {"uplink.ofdma.scheme": "unpruned", "pruning.schedule": "none"},
        "flat": {**far, **gradients},
        "flat-steps": far,
        "non-iid": {"data.partition": "dirichlet", "data.alpha": 0.3},
    }
    limits = {f"optimal-{ms:g}": {"uplink.ofdma.time_limit": ms / 1e3} for ms in config.limits_ms}
    return [Arm(name, fields) for name, fields in {**limits, **others}.items()]


def report(config: HflAdaptive, rows: Sequence[Row], folder: Path) -> str:
    """Writes summary, table and figures; returns the text to print."""
    names = [arm.name for arm in arms(config)]
    edge_rounds = config.edges.rounds

    def mean(name: str, column: str) -> np.ndarray:
        return rp.curves(rows, name, column)[1].mean(1)

    def accuracy(name: str) -> np.ndarray:
        return 100 * rp.final(rows, name, "test_accuracy")

    def sent(name: str) -> np.ndarray:
        """Percent of the weights of the unpruned network that a device sends; kernels only."""
        prunable = CONV + DENSE if name == "flat" else DENSE
        return 100 * (1 - mean(name, "ratio") * prunable / (CONV + DENSE))

    def rounds_to(name: str, level: np.ndarray) -> np.ndarray:
        rounds, values = rp.curves(rows, name, "test_accuracy")
        there = 100 * values >= level[:, None]
        return np.where(there.any(1), rounds[there.argmax(1)], rounds[-1] + 1)

    body = [
        [
            name,
            str(rp.interval(accuracy(name), rp.PERCENT)),
            f"{rp.interval(rp.final(rows, name, 'test_loss'), rp.NOT_NEGATIVE):.3f}",
            str(rp.interval(1e3 * mean(name, "seconds") / edge_rounds, rp.NOT_NEGATIVE)),
            f"{100 * mean(name, 'ratio').mean():.1f}",
            f"{sent(name).mean():.1f}",
            f"{rp.arm_summary(rows, name)['channel_uses']:.3g}",
            f"{rp.arm_summary(rows, name)['energy']:.3g}",
        ]
        for name in names
    ]
    header = [
        "arm", "accuracy (%)", "loss", "ms an edge round", "mean ratio (%)", "weights sent (%)",
        "channel uses", "joules",
    ]  # fmt: skip
    heading = f"After {config.run.rounds} cloud rounds, {rp.over_seeds(config.run.seeds)}"
    low, high = (f"optimal-{ms:g}" for ms in (min(config.limits_ms), max(config.limits_ms)))
    rules = []
    if BEST in names:
        level = np.minimum(accuracy(low), accuracy(high)) - 2
        saved = 100 * (1 - mean(BEST, "seconds") / mean("unpruned", "seconds"))
        rules = [
            ("near-unpruned", "VI-B.2", "optimal at 30 ms at most 1 point below unpruned", -1.0,
             accuracy(BEST) - accuracy("unpruned"), "points"),
            ("half-latency", "VI-B.2", "its latency is at least 40 % lower", 40.0, saved, "%"),
            ("above-flat", "VI-B.2", "optimal above flat", 0.0,
             accuracy(BEST) - accuracy("flat"), "points"),
            ("limit", "VI-B.1", f"{high} above {low}", 0.0,
             accuracy(high) - accuracy(low), "points"),
            ("iid", "VI-B.2", "IID above non-IID", 0.0,
             accuracy(BEST) - accuracy("non-iid"), "points"),
            ("above-equal", "VI-B.2", "optimal above equal", 0.0,
             accuracy(BEST) - accuracy("equal"), "points"),
            ("limit-loss", "VI-B.1", f"the loss of {low} above that of {high}", 0.0,
             rp.final(rows, low, "test_loss") - rp.final(rows, high, "test_loss"), "nats"),
            ("limit-rounds", "VI-B.1", f"{low} needs more rounds than {high}", 0.0,
             rounds_to(low, level) - rounds_to(high, level), "rounds"),
            ("communication", "abstract", "optimal sends at least 40 % fewer weights", 40.0,
             100 - sent(BEST), "%"),
            ("hierarchy", "VI-B.2", "optimal above flat-steps", 0.0,
             accuracy(BEST) - accuracy("flat-steps"), "points"),
        ]  # fmt: skip
    verdicts = [
        rp.verdict(rp.Rule(identity, f"P2 {where}", text, above, values, unit))
        for identity, where, text, above, values, unit in rules
    ]
    _figures(config, rows, folder, names)
    return rp.write_run(
        folder, "hfl_adaptive", to_json(config), rows, names, {heading: rp.table(header, body)},
        verdicts, "Claims of P2",
    )  # fmt: skip


def _figures(config: HflAdaptive, rows: Sequence[Row], folder: Path, names: Sequence[str]) -> None:
    (folder / "figures").mkdir(exist_ok=True)
    limits = {name: name for name in names if name.startswith("optimal")}
    schemes = {name: name for name in names if name == BEST or name not in limits}
    for name, title, shown in (
        ("limits", "Latency thresholds", limits),
        ("schemes", "Schemes", schemes),
    ):
        path = folder / "figures" / name
        rp.accuracy_figure(path, rows, rp.beside(shown), title)
        losses = path.with_name(f"{name}_loss")
        rp.accuracy_figure(losses, rows, rp.beside(shown), title, "test_loss")
    ratio_figure(folder / "figures" / "ratios", config)
    for column, label in (
        ("seconds", "simulated seconds"),
        ("channel_uses", "channel uses so far"),
    ):
        shown = dict(zip(names, names, strict=True))
        rp.cost_figure(folder / "figures" / column, rows, shown, column, label)


def ratio_figure(path: Path, config: HflAdaptive, rounds: int = 50) -> None:
    """Mean pruning ratio of each device of an edge server, nearest to farthest (P2 Fig. 3 (c)).

    Of P2's network on 28×28 images, over the channels of ``rounds`` rounds of every seed.
    """
    u, own = config.uplink, config.uplink.ofdma
    ids = jnp.arange(config.data.clients // config.edges.servers)
    distance = jnp.linspace(u.nearest, u.farthest, ids.size)
    steps, warm = config.local.steps, config.pruning.warm_up
    work = resources.hierarchical(CONV, DENSE, steps, own.cycles, own.value_bits, warm_steps=warm)

    def ratios(limit: jax.Array, seed: jax.Array, t: jax.Array) -> jax.Array:
        gain = channel.orthogonal_gains(jax.random.key(seed), t, ids, distance, u.antennas)
        rate = resources.full_rate(gain, u.power, own.noise, u.bandwidth)
        problem = allocation.problem(work, own.frequency, rate, limit)
        return allocation.optimal(problem, own.rho_max).ratio

    every = jax.vmap(jax.vmap(ratios, (None, None, 0)), (None, 0, None))
    seeds, ts = jnp.arange(config.run.seeds), jnp.arange(rounds)
    lines = {}
    for ms in config.limits_ms:
        found = 100 * np.asarray(jax.jit(every)(jnp.float32(ms / 1e3), seeds, ts)).mean(1)
        lines[f"{ms:g} ms"] = list(found.T)
    xlabel, ylabel = "distance of the device (m)", "pruning ratio (%)"
    rp.line_figure(path, distance.tolist(), lines, xlabel, ylabel, rp.PERCENT)
