"""Partial pruning and personalization of wireless federated learning (P4, Figs. 3-6).

    fedprune run personalization:fast --workdir=runs/personal

Ten clients with few labels each train a CNN whose convolutions are personal and whose fully
connected layers are global, P4 section V: in a round tau_v steps on the convolutions, one warm-up
step on the rest, a mask that keeps what it changed most, P4 (20), and tau_u steps on that, (22).
The server takes the mean over those that hold a weight, (26). Every client is tested with its own
model on test examples of its own labels. The arms:

  fixed-0 ... fixed-90   fixed pruning ratios over a perfect link, Fig. 3
  limit-15 ... limit-30  band and ratios allocated together within T_th = 15, 20, 25, 30 ms, Fig. 6;
                         limit-25 is what P4 proposes
  equal                  equal shares of the band and the pruning that they need in 25 ms, (47)
  personal-only          FedAlt without pruning, P4's reference [11]; equal shares
  pruning-only           no personal part, FC layers pruned within 25 ms, as P4's reference [15]
  fedsim                 personal-only, both parts at once (FedSim), Fig. 4
  head                   personal-only, with the last layer personal in place of the convolutions
  flat, fedprox          federated averaging, nothing pruned, and with a proximal term (mu = 0.1)
  tuned                  federated averaging, tested after the local steps (fine-tuning)
  ditto                  federated averaging, and a personal model pulled towards it

The other reading of "equal resource pruning", the optimal ratios at equal shares, learns what
limit-25 learns and takes longer; ``latency_tables`` has it, and Table I.

The setting is that of Table I in ``latency_tables`` (ten devices at 390 to 438 m, 25,168 global
weights in 20 MHz, 20 cycles a weight). FC layers of width 128 have more global weights (402,688
beside 32 and 64 filters) and are impossible in it: sent at once over 20 MHz without any path loss
they take 140 ms. So the band grows, and the cycles a weight shrink, by the factor by which there
are more global weights; all times but those of the personal part are then Table I's.

  fast       about 5 minutes on 2 cores (estimate): embedded Fashion-MNIST, 8 and 16 filters of 3x3,
             two labels a client, 20 rounds, tau = 5, batch 32, 3 seeds
  dirichlet  the same with Dirichlet(0.3) clients
  full       about 45 minutes (estimate): all of Fashion-MNIST, 32 and 64 filters, 60 rounds, tau =
             10, a test every fourth round
  paper      as ``full`` with P4's batch 128 and learning rate 0.001 read as plain SGD's, and 200
             rounds; resumable

P4 gives a learning rate of 0.001 and no optimizer, no numbers of steps and no number of labels. Two
labels a client mean that every label has two clients, so that there is somebody to learn from. Both
parts train by SGD with momentum 0.9 at 0.02: of 0.005, 0.01, 0.02 and 0.05 the best in ``fast``
with seed 0, for personal-only (97.6 %, and 16 % at 0.05) as for flat (68.7 %). ``full`` has 0.01:
with its network and steps, personal-only had 98 % after six rounds on the embedded images, seed 0,
and 40 % at 0.02. No other arm was tuned, which favours these two. FedAlt's 2 tau steps and FedSim's
tau steps of both parts take the same cycles in P4's count. Clients weigh the same in the mean.

Rules and thresholds were fixed before any run; the trials above and a run of three rounds that only
tested the code came after them, and changed learning rates, and the length and test interval of
``full``. Accuracy is the mean over clients of that on their own test examples, averaged over
the last three tests; differences are paired by seed, 95 % Student intervals; a claim held, or did
not, if the interval lies above, or below, its threshold.

  1. limit-25 at most 1 point below personal-only
  2. its latency at least 40 % lower, which follows from the setting: 25 ms of about 54
  3. it sends at least 40 % fewer weights ("about 50 %")
  4. limit-25 above pruning-only
  5. limit-25 above equal
  6. personal-only (FedAlt) above fedsim
  7. limit-30 above limit-15, and 0 % above 90 % fixed pruning
  8. personal-only above flat, in the mean and in the worst tenth of the clients

Beyond P4, by the same rule: personal-only above tuned, above ditto, and above head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fedprune import report as rp
from fedprune import resources
from fedprune.config import Arm, Config, ConfigError, spec, to_json
from fedprune.runs import Row
from fedprune.studies import latency
from fedprune.studies.personal import LAST, client_table, points

VARIANTS = ("fast", "dirichlet", "full", "paper")
CLASSES, PIXELS = 10, 28
TABLE_WEIGHTS = 25_168
"""Global weights of the setting that fits P4's Table I."""
PROPOSED = "limit-25"


@dataclass
class Personalization(Config):
    """The common fields, and what is compared."""

    ratios: tuple[float, ...] = spec((0.0, 0.5, 0.9), "fixed pruning ratios", low=0, below=1)
    limits_ms: tuple[float, ...] = spec(
        (15.0, 20.0, 25.0, 30.0), "T_th compared", above=0, high=1e9, unit="ms"
    )
    mu: float = spec(0.1, "proximal term of FedProx", above=0, high=1e6)


def get_config(variant: str = "fast") -> Personalization:
    """The configuration of a variant."""
    if variant not in VARIANTS:
        raise ConfigError(
            f"variant {variant!r} of personalization: must be one of {', '.join(VARIANTS)}"
        )
    config = Personalization(experiment="personalization", variant=variant)
    config.data.clients, config.data.partition = 10, "label_k"
    config.data.classes_per_client, config.cohort.weighting = 2, "plain"
    config.model.cnn.hidden, steps = (128,), 5
    config.run.rounds, config.run.test, config.run.evaluate = 20, "clients", "dense"
    config.personal.method, config.personal.layers = "alternating", ("Conv",)
    config.local.lr = config.personal.lr = 0.02
    if variant == "dirichlet":
        config.data.partition, config.data.alpha = "dirichlet", 0.3
    elif variant in ("full", "paper"):
        config.data.name, config.model.cnn.filters, steps = "fashion_mnist", (32, 64), 10
        config.ratios = (0.0, 0.3, 0.5, 0.7, 0.9)
        config.run.rounds, config.run.every, config.run.save_every = 60, 4, 1
        config.local.lr = config.personal.lr = 0.01
        if variant == "paper":
            config.local.optimizer, config.local.batch = "sgd", 128
            config.local.lr = config.personal.lr = 0.001
            config.run.rounds = 200
    config.local.steps = config.personal.steps = steps
    p, u, own = config.pruning, config.uplink, config.uplink.ofdma
    p.schedule, p.scope, p.layers = "allocated", "own", "dense"
    p.importance, p.warm_up, p.rewind = "change", 1, True
    more = global_weights(config) / TABLE_WEIGHTS
    u.link, u.division, u.fading, u.antennas = "ofdma", "holders", "rayleigh", 256
    u.nearest, u.farthest = 389.5, 437.6
    u.power, own.noise, own.frequency, own.value_bits = 0.631, 1e-14, 3e9, 32
    u.bandwidth, own.cycles = 20e6 * more, 20.0 / more
    own.time_limit, own.rho_max = 0.025, 0.95
    return config


def global_weights(config: Config) -> int:
    """N_u, the fully connected weights behind the CNN's convolutions; biases do not count."""
    side = PIXELS // 2 ** len(config.model.cnn.filters)
    widths = (side * side * config.model.cnn.filters[-1], *config.model.cnn.hidden, CLASSES)
    return sum(a * b for a, b in pairwise(widths))


def arms(config: Personalization) -> list[Arm]:
    """Fixed ratios share a program, and so do time limits, and flat and fedprox."""
    unpruned: dict[str, Any] = {"pruning.schedule": "none", "uplink.ofdma.scheme": "unpruned"}
    flat = {"personal.method": "none", "personal.layers": ()}
    fixed = {
        "pruning.schedule": "one_shot",
        "pruning.start": 0,
        "uplink.link": "ideal",
        "uplink.fading": "none",
        "uplink.antennas": 1,
        "uplink.nearest": 0.0,
        "uplink.farthest": 0.0,
    }
    return [
        *(Arm(fixed_name(r), {**fixed, "pruning.ratio": r}) for r in config.ratios),
        *(Arm(f"limit-{ms:g}", {"uplink.ofdma.time_limit": ms / 1e3}) for ms in config.limits_ms),
        Arm("equal", {"uplink.ofdma.scheme": "equal"}),
        Arm("personal-only", unpruned),
        Arm("pruning-only", flat),
        Arm("fedsim", {**unpruned, "personal.method": "simultaneous"}),
        Arm("head", {**unpruned, "personal.layers": ("head/Dense_1",)}),
        Arm("flat", {**unpruned, **flat, "local.prox": 0.0}),
        Arm("fedprox", {**unpruned, **flat, "local.prox": config.mu}),
        Arm("tuned", {**unpruned, **flat, "personal.method": "tuned"}),
        Arm("ditto", {**unpruned, **flat, "personal.method": "ditto"}),
    ]


def fixed_name(ratio: float) -> str:
    """An arm's name, for example "fixed-90"."""
    return f"fixed-{100 * ratio:g}"


# Results -----


def cost_table(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Latency, pruning and what was spent on the air, of the arms with a channel."""
    body = []
    for name in names:
        summary = rp.arm_summary(rows, name)
        if summary["seconds"] > 0:
            body.append([
                name,
                str(rp.interval(1e3 * _mean(rows, name, "seconds"), rp.NOT_NEGATIVE)),
                str(rp.interval(100 * _mean(rows, name, "ratio"), rp.PERCENT)),
                f"{summary['channel_uses']:.3g}",
                f"{summary['energy']:.3g}",
            ])  # fmt: skip
    return rp.table(["arm", "ms a round", "mean ratio (%)", "channel uses", "joules"], body)


def width_table(config: Config) -> str:
    """Table I's setting with FC layers of width 8 and, as P4 states, of width 128, in 20 MHz."""
    preset, body = latency.PRESETS["personalized"], []
    for weights in (TABLE_WEIGHTS, 402_688):
        work = resources.personalized(latency.CONV, weights, 10.0, 10.0, 20.0, 32.0, 1.0)
        found = latency.simulate(preset._replace(work=work), config.run.seeds, 200)
        took = [
            str(rp.interval(found.milliseconds[scheme].mean(1), rp.NOT_NEGATIVE))
            for scheme in latency.SCHEMES
        ]
        ratio = rp.interval(100 * found.ratio.mean((1, 2)), rp.PERCENT)
        body.append([f"{weights:,}", *took, str(ratio)])
    body.append(["Table I", "25", "38", "38", "55", "–"])
    return rp.table(["global weights", *latency.SCHEMES.values(), "mean ratio (%)"], body)


def _mean(rows: Sequence[Row], arm: str, column: str) -> np.ndarray:
    """Over all rounds, [seeds]."""
    return rp.curves(rows, arm, column)[1].mean(1)


def claims(rows: Sequence[Row], names: Sequence[str]) -> list[rp.Verdict]:
    """P4's claims on arms of this run, and ours, each with its rule."""

    def above(a: str, b: str, column: str = "test_mean"):
        return {a, b}, lambda: points(rows, a, column) - points(rows, b, column)

    def saved():
        return 100 * (
            1 - _mean(rows, PROPOSED, "seconds") / _mean(rows, "personal-only", "seconds")
        )

    pair = {PROPOSED, "personal-only"}
    rules = [
        ("near-personal-only", "P4 V-B.1", f"{PROPOSED} at most 1 point below personal-only", -1.0,
         *above(PROPOSED, "personal-only"), "points"),
        ("half-latency", "P4 abstract", "its latency is at least 40 % lower", 40.0, pair, saved,
         "%"),
        ("half-weights", "P4 V-B.1", "it sends at least 40 % fewer weights", 40.0, {PROPOSED},
         lambda: 100 * _mean(rows, PROPOSED, "ratio"), "%"),
        ("above-pruning-only", "P4 V-B.1", f"{PROPOSED} above pruning-only", 0.0,
         *above(PROPOSED, "pruning-only"), "points"),
        ("above-equal", "P4 V-B.1", f"{PROPOSED} above equal", 0.0,
         *above(PROPOSED, "equal"), "points"),
        ("fedalt-fedsim", "P4 V-A", "FedAlt (personal-only) above FedSim", 0.0,
         *above("personal-only", "fedsim"), "points"),
        ("limit", "P4 V-B.2", "limit-30 above limit-15", 0.0, *above("limit-30", "limit-15"),
         "points"),
        ("ratio", "P4 V-A", "0 % above 90 % fixed pruning", 0.0,
         *above(fixed_name(0.0), fixed_name(0.9)), "points"),
        ("above-flat", "P4 I", "personal-only above flat", 0.0,
         *above("personal-only", "flat"), "points"),
        ("worst-above-flat", "–", "the same in the worst tenth of the clients", 0.0,
         *above("personal-only", "flat", "test_worst"), "points"),
        *((f"above-{other}", "–", f"personal-only above {other}", 0.0,
           *above("personal-only", other), "points") for other in ("tuned", "ditto", "head")),
    ]  # fmt: skip
    return [
        rp.verdict(rp.Rule(identity, paper, text, threshold, values(), unit))
        for identity, paper, text, threshold, needed, values, unit in rules
        if needed <= set(names)
    ]


def report(config: Personalization, rows: Sequence[Row], folder: Path) -> str:
    """Writes summary, tables and figures; returns the text to print."""
    names = [arm.name for arm in arms(config)]
    heading = (
        f"Last {LAST} tests in {config.run.rounds} rounds, {rp.over_seeds(config.run.seeds)};"
        " then clients of all seeds by their accuracy (%) in the last round"
    )
    tables = {
        heading: client_table(rows, names),
        "What the arms with a channel take": cost_table(rows, names),
        "Latency of a round in 20 MHz, ms: both widths, T_th 25 ms": width_table(config),
    }
    (folder / "figures").mkdir(exist_ok=True)
    dense = "personal-only"
    fixed = [fixed_name(ratio) for ratio in config.ratios]
    limits = [f"limit-{ms:g}" for ms in config.limits_ms]
    for name, title, shown in (
        ("fixed", "Fixed pruning ratios (Fig. 3)", fixed),
        ("updates", "What is trained when (Fig. 4)", [dense, "fedsim", "head", "tuned", "ditto"]),
        ("schemes", "Schemes (Fig. 5)", [dense, PROPOSED, "equal", "pruning-only", "flat"]),
        ("limits", "Latency thresholds (Fig. 6)", [dense, *limits]),
    ):
        present = {arm: arm for arm in shown if arm in names}
        rp.accuracy_figure(folder / "figures" / name, rows, rp.beside(present), title)
    for file, x, shown, label in (
        ("loss_fixed", [100 * ratio for ratio in config.ratios], fixed, "pruned (%)"),
        ("loss_limits", config.limits_ms, limits, "latency threshold (ms)"),
    ):
        losses = {"test loss": [rp.final(rows, arm, "test_loss") for arm in shown]}
        path, ylabel = folder / "figures" / file, "test loss (nats)"
        rp.line_figure(path, x, losses, label, ylabel, rp.NOT_NEGATIVE)
    return rp.write_run(
        folder, "personalization", to_json(config), rows, names, tables, claims(rows, names),
        "Claims",
    )  # fmt: skip
