"""Diagnosis of bearings from vibration, learned over the air and pruned: an industrial example.

    fedprune run bearing:fast --workdir=runs/bearing_fast \\
        --config.data.dir=FOLDER

FOLDER holds ``cwru_12k_de_1024.npz`` (see ``fedprune/data/bearing.py``): real vibration of motor
bearings in 16 states at 4 loads, cut into 7,349 windows of 1024 samples. Test windows are the last
fifth of every recording.

Clients are load × machine: the data tell four motor loads apart, and the windows of each are
divided at random over 5 machines, which are simulated, since the data come from one test rig.
Clients are mildly unlike: the load changes the vibration, and only machines at load 0 have ever
seen a bearing without a fault.

Variant ``fast`` (about 5 minutes on 2 cores): 20 clients × 5 steps × batch 32, 60 rounds, a
1-D CNN of 47,264 weights, 10 dB over the air with the SNR referred to the receiver, as in
``ota_pruning``. P0 names no optimizer; here it is SGD with momentum 0.9 at learning rate 0.05, with
which the unpruned network exceeds 95 %. In trials of the unpruned network alone, over rates from
0.02 to 0.2, lower ones were slow and higher ones unsteady.

What is compared, fixed before any pruned arm was run:

* {unpruned, one-shot, iterative} × {50, 90 %}, seeds 0 to 4, full participation. Every arm trains
  for the same number of rounds; arms of one seed share partition, initial weights and batches, so
  differences are paired by seed.
* Iterative pruning takes 5 steps, at the starts of rounds 20, 25, 30, 35 and 40 (counted from 0).
  One-shot pruning takes place at the round of the last step, so that both have the same number of
  rounds to recover at the final sparsity.
* Masks are global magnitude masks of the server, on kernels, not on biases.
* Accuracy moves by points from one round to the next even at the end, so that of an arm and seed is
  the mean over the last 5 rounds.
* P0 has no such data. Its claims about differences are the expectations here, with the same rules
  as in ``ota_pruning``: a claim "held" if the 95 % Student interval of the paired differences lies
  above its threshold, "did not hold" if it lies below, and is "open" otherwise. "About" allows 1
  point.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedprune import build, data
from fedprune import report as rp
from fedprune.config import Arm, Config, ConfigError, spec, to_json
from fedprune.runs import Row
from fedprune.studies.bearing import LAST, setting

VARIANTS = ("fast",)
METHODS = {"one-shot": "One-shot pruning", "iterative": "Iterative pruning"}


@dataclass
class Bearing(Config):
    """The common fields, and what is compared."""

    ratios: tuple[float, ...] = spec((0.5, 0.9), "pruning ratios", above=0, below=1)


def get_config(variant: str = "fast") -> Bearing:
    """The configuration of a variant."""
    if variant != "fast":
        raise ConfigError(f"variant {variant!r} of bearing: must be fast")
    config = Bearing(experiment="bearing", variant=variant)
    setting(config)
    config.pruning.schedule = "iterative"
    config.pruning.start, config.pruning.every = 20, 5
    return config


def arms(config: Bearing) -> list[Arm]:
    """One program: an unpruned arm, and two for each ratio."""
    once = {"pruning.start": _pruned_at(config, "one-shot")[0], "pruning.steps": 1}
    pruned = [
        Arm(name(how, r), {"pruning.ratio": r, **(once if how == "one-shot" else {})})
        for how in METHODS
        for r in config.ratios
    ]
    return [Arm("unpruned", {"pruning.ratio": 0.0}), *pruned]


def name(how: str, ratio: float) -> str:
    """An arm's name, for example "iterative-90"."""
    return f"{how}-{100 * ratio:g}"


def _pruned_at(config: Bearing, how: str) -> list[int]:
    """Rounds at whose start a method prunes."""
    p = config.pruning
    steps = [p.start + p.every * i for i in range(p.steps)]
    return steps if how == "iterative" else steps[-1:]


def report(config: Bearing, rows: Sequence[Row], folder: Path) -> str:
    """Writes summary, tables and figures; returns the text to print."""
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    names = [arm.name for arm in arms(config)]
    panels = []
    for ratio in config.ratios:
        shown = {name(how, ratio): title.lower() for how, title in METHODS.items()}
        steps = {name(how, ratio): _pruned_at(config, how) for how in METHODS}
        arms_of = {"unpruned": "unpruned", **shown}
        panels.append(rp.Panel(f"{100 * ratio:g} % pruned", arms_of, steps))
    rp.accuracy_figure(figures / "accuracy", rows, panels)
    _partition_figure(config, figures / "partition")
    heading = (
        f"Test accuracy of the last {LAST} rounds in percent, {rp.over_seeds(config.run.seeds)}"
    )
    tables = {heading: accuracy_table(config, rows)}
    expected = "P0's claims, as expectations for these data"
    return rp.write_run(
        folder, "bearing", to_json(config), rows, names, tables, claims(config, rows), expected
    )


def accuracy_table(config: Bearing, rows: Sequence[Row]) -> str:
    """Accuracy, what it loses against the unpruned network, and what is left of the network."""
    dense = _points(rows, "unpruned")
    body = []
    for arm in (arm.name for arm in arms(config)):
        kept = rp.final(rows, arm, "kept").mean()
        loss = str(rp.interval(dense - _points(rows, arm))) if arm != "unpruned" else "–"
        body.append([arm, str(rp.interval(_points(rows, arm), rp.PERCENT)), loss, f"{kept:,.0f}"])
    return rp.table(["arm", "accuracy", "loss, paired", "weights kept"], body)


def claims(config: Bearing, rows: Sequence[Row]) -> list[rp.Verdict]:
    """What was expected, each with its rule."""

    def loss(how: str, ratio: float) -> np.ndarray:
        return _points(rows, "unpruned") - _points(rows, name(how, ratio))

    def gain(ratio: float) -> np.ndarray:
        return loss("one-shot", ratio) - loss("iterative", ratio)

    if not {0.5, 0.9} <= set(config.ratios):
        return []
    rules = [
        ("oneshot-90-loses", "P0 IV-A.1", "one-shot at 90 % loses more than 5 points", 5.0,
         loss("one-shot", 0.9)),
        ("iterative-50-par", "P0 IV-B.1", "iterative 50 % about unpruned (within 1 point)", -1.0,
         -loss("iterative", 0.5)),
        ("iterative-above-oneshot-90", "P0 IV-B.1", "iterative above one-shot at 90 %", 0.0,
         gain(0.9)),
        ("gap-widens", "P0 IV-B", "gain of iterative over one-shot larger at 90 % than at 50 %",
         0.0, gain(0.9) - gain(0.5)),
    ]  # fmt: skip
    learns = rp.Rule("unpruned-learns", "–", "unpruned above 90 %", 90.0,
                     _points(rows, "unpruned"), "%", rp.PERCENT)  # fmt: skip
    return [rp.verdict(learns)] + [
        rp.verdict(rp.Rule(id, paper, text, above, difference))
        for id, paper, text, above, difference in rules
    ]


def _points(rows: Sequence[Row], arm: str) -> np.ndarray:
    """Accuracy of every seed in percent, over the last rounds."""
    return 100 * rp.curves(rows, arm, "test_accuracy")[1][:, -LAST:].mean(1)


def _partition_figure(config: Bearing, path: Path) -> None:
    dataset = build.dataset(config.data)
    split = build.partitioner(config.data, dataset)(dataset.y_train, dataset.y_test, 0)
    counts = data.class_counts(split.train, dataset.y_train, dataset.classes)
    assert dataset.names is not None
    names = [str(name) for name in dataset.names[: dataset.classes]]
    title = f"{config.data.clients} clients, seed 0"
    rp.partition_figure(path, counts, names, title)
