"""Over-the-air federated learning with one-shot and iterative magnitude pruning (P0, section IV).

    fedprune run ota_pruning:fast --workdir=runs/ota_pruning_fast

Variants, with their time on 2 cores:

  fast     3 minutes. The embedded 10,000 Fashion-MNIST images, 20 clients × 5 steps × batch 32,
           24 rounds, {full, half participation} × {unpruned, one-shot, iterative} ×
           {30, 50, 70, 90 %}
  fashion  about 40 minutes. All of Fashion-MNIST, 100 clients, 48 rounds; one-shot pruning at the
           first *and* at the last step of the iterative schedule; client masks at 90 %
  noniid   4 minutes. ``fast`` with clients of unequal sizes and classes, Dirichlet(0.3)
  snr      3 minutes. ``fast`` in full participation, unpruned and at 90 %, at -10, -5, ..., 20 dB
  paper    for an accelerator: weeks on 2 cores. P0's own setting: ResNet18 of 11,173,962 weights
           on CIFAR-10, 100 clients of IID data, all or 50 of them in a round, batch 64, learning
           rate 0.001, 1000 rounds, 10 dB, 3 seeds; masks of the server, and masks that every
           client computes by itself, as P0 has it ("both IMP and OSP are performed at each PIU").
           A small part of it that starts on any machine:
           ``--config.data.clients=4 --config.local.steps=2 --config.run.rounds=4
           --config.pruning.start=0 --config.pruning.every=1 --config.pruning.steps=2``

How ``paper`` reads what P0 leaves open:

  optimizer      Adam. 0.001 is its usual rate; with it plain SGD hardly moves
  learning rate  0.001 in every round: P0 names no decay
  local steps    8 a round, one pass over a client's 500 images
  rounds         P0's "1000 epochs", until which PIUs and server communicate
  norm           group norm, of 32 groups. P0 does not say what becomes of batch norm's running
                 statistics in a federation; ``--config.model.resnet.norm=batch`` averages them
  augmentation   none, P0 names none. Without it ResNet18 stays below what it is known for
  weight decay   none
  pruning steps  five, at rounds 200, 300, ..., 600, by equal shares of what is left
  one-shot       at the round of the last step, see below
  ranking        global, over all kernels, by magnitude; weights that stay are not rewound
  own masks      clients take one step, rank the weights they then have, and take the other 7 steps
                 with their mask, with an optimizer that starts anew; a mask is computed afresh in
                 every round from the server's dense model. The sum of the updates is divided by
                 the number of clients, since nobody knows who held which weight
  masks at all   P0 sends models of 10 % of the weights, which masks that differ would not
                 give: 50 of them leave 99.5 % of the weights in the sum. So the server's common
                 masks are the other arms
  evaluation     of the global model with the mask of the round's start
  participation  50 PIUs are drawn anew in every round
  noise          no fading, and 10 dB referred to the receiver: the power of the received sum over
                 that of the noise. P0 does not say what its SNR refers to; the other readings,
                 ``--config.uplink.over_the_air.normalisation=common`` and ``device``, have noise
                 that is smaller by orders of magnitude

The network is a CNN of 26,698 weights (8 and 16 filters of 3×3, 32 hidden units); the uplink is
over the air at 10 dB with the SNR referred to the receiver. P0 names no optimizer, so ours is
stated: SGD with momentum 0.9 at learning rate 0.1, with which the unpruned network passes 80 %
(``fast``), and at 0.15 in ``fashion``, with which it passes 85 %. Both were chosen on the unpruned
network with seed 0.

What is compared, fixed before any result was seen:

* Every arm trains for the same number of rounds, with seeds 0, 1, 2. Arms of one seed share
  partition, initial weights, batches and cohorts, so differences are paired by seed.
* Iterative pruning takes 5 steps: in ``fast`` at the starts of rounds 4, 7, 10, 13 and 16
  (counted from 0), in ``fashion`` at 8, 14, 20, 26 and 32. One-shot pruning ("one-shot") takes
  place at the round of the *last* step: both arms then have the same number of rounds to recover
  at the final sparsity, and one-shot has trained longest before it, as P0 section III asks ("after
  a comprehensive training process"). "one-shot-first" prunes at the first step instead: it has the
  most rounds to recover, and the least training before.
* Masks are global magnitude masks of the server, on kernels (not on the 66 biases). "client"
  repeats iterative pruning with masks of the model that the clients receive, while the server
  keeps it dense: all of them find the same one. In "one-shot-own" and "iterative-own" every client
  computes a mask of its own from what a first step has made of the model.
* A claim "held" if the 95 % Student interval of the paired differences over seeds lies above its
  threshold, "did not hold" if it lies below, and is "open" otherwise. "About" and "at least" allow
  1 point. With 3 seeds the intervals are wide: expect small effects to stay open.
* An arm has converged if the mean accuracy of the last tenth of its rounds differs by less than 0.5
  points from that of the tenth before.

P0 itself uses ResNet18 on CIFAR-10, 100 clients and 1000 rounds; its accuracies are printed beside
ours, but only the claims about differences can carry over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedprune import report as rp
from fedprune.config import Arm, Config, ConfigError, spec, to_json
from fedprune.runs import Row
from fedprune.studies.ota import OWN, PARTICIPATION, Condition, accuracy, claims, stated

VARIANTS = ("fast", "fashion", "noniid", "snr", "paper")
METHODS = {
    "one-shot": "One-shot pruning",
    "one-shot-first": "Early one-shot pruning",
    "iterative": "Iterative pruning",
    "client": "Iterative pruning, client masks",
    "one-shot-own": "One-shot pruning, own masks",
    "iterative-own": "Iterative pruning, own masks",
}


@dataclass
class OtaPruning(Config):
    """The common fields, and what is compared."""

    participation: tuple[str, ...] = spec(
        ("full", "half"), "cohorts compared", choices=tuple(PARTICIPATION)
    )
    methods: tuple[str, ...] = spec(
        ("one-shot", "iterative"), "methods compared with no pruning", choices=tuple(METHODS)
    )
    ratios: tuple[float, ...] = spec((0.3, 0.5, 0.7, 0.9), "pruning ratios", above=0, below=1)
    client_ratios: tuple[float, ...] = spec(
        (0.9,), "ratios of client masks and own masks", above=0, below=1
    )
    snrs_db: tuple[float, ...] = spec(
        (), "SNRs compared; none: uplink.snr_db", low=-100, high=200, unit="dB"
    )


def get_config(variant: str = "fast") -> OtaPruning:
    """The configuration of a variant."""
    config = OtaPruning(experiment="ota_pruning", variant=variant)
    config.pruning.schedule = "iterative"
    if variant == "fashion":
        config.data.name, config.data.clients = "fashion_mnist", 100
        config.local.lr = 0.15
        config.methods = ("one-shot", "one-shot-first", "iterative", "client")
        config.pruning.start, config.pruning.every = 8, 6
        config.run.rounds, config.run.every, config.run.save_every = 48, 2, 1
    elif variant == "noniid":
        config.data.partition, config.data.alpha = "dirichlet", 0.3
    elif variant == "snr":
        config.participation, config.ratios = ("full",), (0.9,)
        config.snrs_db = tuple(map(float, range(-10, 21, 5)))
    elif variant == "paper":
        config.data.name, config.data.clients, config.model.name = "cifar10", 100, "resnet18"
        config.local.optimizer, config.local.lr = "adam", 1e-3
        config.local.steps, config.local.batch = 8, 64
        config.pruning.start, config.pruning.every = 200, 100
        config.run.rounds, config.run.every, config.run.save_every = 1000, 10, 2
        config.methods = ("one-shot", "iterative", "one-shot-own", "iterative-own")
        config.client_ratios = config.ratios
    elif variant != "fast":
        raise ConfigError(
            f"variant {variant!r} of ota_pruning: must be one of fast, fashion, noniid, snr, paper"
        )
    return config


def conditions(config: OtaPruning) -> list[Condition]:
    """All arms, in the order of the tables."""
    pruned = [
        (how, ratio)
        for how in config.methods
        for ratio in (config.client_ratios if _at_clients(how) else config.ratios)
    ]
    return [
        Condition(who, how, ratio, snr_db)
        for who in config.participation
        for snr_db in (config.snrs_db or (None,))
        for how, ratio in [("unpruned", 0.0), *pruned]
    ]


def _at_clients(how: str) -> bool:
    return how == "client" or how.endswith(OWN)


def arms(config: OtaPruning) -> list[Arm]:
    """Arms of one participation and scope share a program.

    Raises:
      ConfigError: own masks, and no step is left after the warm-up.
    """
    own: dict[str, Any] = {
        "pruning.scope": "own",
        "local.steps": config.local.steps - config.pruning.warm_up,
    }
    if any(how.endswith(OWN) for how in config.methods) and own["local.steps"] < 1:
        raise ConfigError(
            f"local.steps={config.local.steps}: must be above"
            f" pruning.warm_up={config.pruning.warm_up}"
        )
    cohort = {"full": 0, "half": max(1, config.data.clients // 2)}
    found = []
    for c in conditions(config):
        overrides: dict[str, Any] = {"cohort.size": cohort[c.who], "pruning.ratio": c.ratio}
        if c.how.startswith("one-shot"):
            overrides |= {"pruning.start": _pruned_at(config, c.how)[0], "pruning.steps": 1}
        if c.how == "client":
            overrides["pruning.scope"] = "client"
        if c.how.endswith(OWN):
            overrides |= own
        if c.snr_db is not None:
            overrides["uplink.snr_db"] = c.snr_db
        found.append(Arm(c.name(), overrides))
    return found


def _pruned_at(config: OtaPruning, how: str) -> list[int]:
    """Rounds at whose start a method prunes."""
    p = config.pruning
    steps = [p.start + p.every * i for i in range(p.steps)]
    once = {"one-shot": steps[-1:], "one-shot-first": steps[:1]}
    return once.get(how.removesuffix(OWN), steps)


# Results -----


def report(config: OtaPruning, rows: Sequence[Row], folder: Path) -> str:
    """Writes summary, tables and figures; returns the text to print."""
    accuracy = f"Final test accuracy in percent, {rp.over_seeds(config.run.seeds)}"
    tables = {
        accuracy: _snr_table(config, rows) if config.snrs_db else _table(config, rows),
        "Convergence": _convergence(config, rows),
    }
    verdicts = [] if config.snrs_db else claims(conditions(config), rows)
    (folder / "figures").mkdir(exist_ok=True)
    (_snr_figure if config.snrs_db else _figures)(config, rows, folder / "figures")
    names = [arm.name for arm in arms(config)]
    return rp.write_run(
        folder, "ota_pruning", to_json(config), rows, names, tables, verdicts, "Claims of P0"
    )


def _table(config: OtaPruning, rows: Sequence[Row]) -> str:
    """P0's numbers beside ours."""

    def cells(who: str, how: str, ratio: float) -> list[str]:
        condition = Condition(who, how, ratio)
        if how != "unpruned" and condition not in conditions(config):
            return ["", ""]
        ours = str(rp.interval(accuracy(rows, condition), rp.PERCENT))
        return [stated(condition), ours]

    body = []
    for who in config.participation:
        body.append([who, "unpruned", *(len(config.methods) * cells(who, "unpruned", 0.0))])
        body += [
            [who, f"{100 * r:g} %", *(c for how in config.methods for c in cells(who, how, r))]
            for r in config.ratios
        ]
    header = [text for how in config.methods for text in (f"{how}: P0", "ours")]
    return rp.table(["participation", "pruned", *header], body)


def _snr_table(config: OtaPruning, rows: Sequence[Row]) -> str:
    """Accuracy against the SNR."""

    def cell(condition: Condition) -> str:
        return str(rp.interval(accuracy(rows, condition), rp.PERCENT))

    shown = [c for c in conditions(config) if c.snr_db == config.snrs_db[0]]
    body = [[f"{snr:g}", *(cell(c._replace(snr_db=snr)) for c in shown)] for snr in config.snrs_db]
    return rp.table(["SNR (dB)", *(c._replace(snr_db=None).name() for c in shown)], body)


def _convergence(config: OtaPruning, rows: Sequence[Row]) -> str:
    """Which arms still move at the end."""
    moves = {c.name(): rp.late_change(rows, c.name()) for c in conditions(config)}
    told = {name: 100 * move for name, move in moves.items() if move is not None}
    if not told:
        return "There are too few tests to say which arms have converged."
    moving = {name: move for name, move in told.items() if abs(move) >= 0.5}
    text = "Converged (last tenth of the rounds within 0.5 points of the tenth before): "
    text += f"{len(told) - len(moving)} of {len(told)} arms"
    if moving:
        text += "; not: " + ", ".join(f"{name} ({move:+.1f})" for name, move in moving.items())
    return text


def _figures(config: OtaPruning, rows: Sequence[Row], folder: Path) -> None:
    """Accuracy against the round (P0's Figs. 3-6), a panel for each participation and ratio.

    The unpruned network of the same participation is the reference of a panel.
    """
    panels = []
    for who in config.participation:
        dense = Condition(who, "unpruned", 0.0).name()
        for ratio in dict.fromkeys((*config.ratios, *config.client_ratios)):
            pruned = [c for c in conditions(config) if (c.who, c.ratio) == (who, ratio)]
            arms = {c.name(): METHODS[c.how].lower() for c in pruned}
            steps = {c.name(): _pruned_at(config, c.how) for c in pruned}
            if pruned:
                title = f"{100 * ratio:g} % pruned, {PARTICIPATION[who]}"
                panels.append(rp.Panel(title, {dense: "unpruned", **arms}, steps))
    rp.accuracy_figure(folder / "accuracy", rows, panels)


def _snr_figure(config: OtaPruning, rows: Sequence[Row], folder: Path) -> None:
    lines: dict[str, list[np.ndarray]] = {}
    ylabel = "final test accuracy (%)"
    for c in conditions(config):
        label = "unpruned" if c.how == "unpruned" else f"{METHODS[c.how]}, {100 * c.ratio:g} %"
        lines.setdefault(label, []).append(accuracy(rows, c))
    rp.line_figure(folder / "snr", config.snrs_db, lines, "SNR (dB)", ylabel, rp.PERCENT)
