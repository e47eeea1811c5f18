"""What per-client masks cost and gain under superposition (P0).

    fedprune run ota_masks:fast --workdir=runs/ota_masks

P0 says that the devices prune, and superposes their updates. Where their masks differ, the server
hears only sum_k m_k g_k, and nobody knows who kept which weight. Variants, about 4 minutes each on
2 cores: ``fast`` (IID) and ``noniid`` (Dirichlet 0.3), on the embedded Fashion-MNIST images with 20
clients, 24 rounds, network, uplink and iterative schedule of ``ota_pruning:fast``, 90 % pruned.

  unpruned        no masks
  unpruned-split  no masks; the optimizer is restarted after the first step, as it is in ``own``
  common          one mask for all: the server's, which prunes the global model
  received        one mask for all: of the model received, which the server keeps dense
  own             clients take 1 step, decide a mask of their own, and take the other steps with it;
                  the sum is divided by all clients ("deltas over N")
  own-counted     the same, divided by the holders of each weight: a second superposition carries
                  the masks, counts below half a client are taken for none
  own-counted-6   the same with counts below 6 clients taken for none: about three deviations of
                  the counts' noise at 10 dB and 90 %, see ``link.holders``
  own-exact       as own-counted over a perfect link: what counting would give without noise

All but the last use 10 dB referred to the receiver. All train as many steps a round, warm-up
included. What is evaluated is the global model with the mask of the last round's start, 90 % pruned
by magnitude. For ``own`` and its variants the server's dense model is evaluated as well ("dense"),
in a run of its own that differs in nothing else.

Accuracies are those of round 24 over seeds 0, 1, 2, differences are paired by seed, and a claim
"held" if its 95 % Student interval lies above the threshold. Claims 1 to 5 were fixed before any
result was seen, 6 (and the arms unpruned-split and own-counted-6) after a first run of the others:

  1. own masks lose against one common mask (common above own, by more than 1 point)
  2. counting the holders pays (own-counted above own), in the pruned model
  3. the same in the server's dense model
  4. with counts, own masks reach the common mask (within 1 point)
  5. noise in the counts costs nothing (own-counted within 1 point of own-exact)
  6. a threshold above the noise pays (own-counted-6 above own-counted)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedprune import report as rp
from fedprune.config import Arm, Config, ConfigError, to_json
from fedprune.runs import Row

VARIANTS = ("fast", "noniid")
CLAIMS = [
    ("common-above-own", "common more than 1 point above own", "common", "own", 1.0),
    ("counting-pays", "own-counted above own", "own-counted", "own", 0.0),
    (
        "counting-pays-dense",
        "own-counted above own, dense models",
        "own-counted, dense",
        "own, dense",
        0.0,
    ),
    (
        "counted-near-common",
        "own-counted at most 1 point below common",
        "own-counted",
        "common",
        -1.0,
    ),
    (
        "noise-costs-nothing",
        "own-counted at most 1 point below own-exact",
        "own-counted",
        "own-exact",
        -1.0,
    ),
    ("threshold-pays", "own-counted-6 above own-counted", "own-counted-6", "own-counted", 0.0),
]


def get_config(variant: str = "fast") -> Config:
    """The configuration of a variant."""
    config = Config(experiment="ota_masks", variant=variant)
    config.pruning.schedule, config.pruning.ratio = "iterative", 0.9
    if variant == "noniid":
        config.data.partition, config.data.alpha = "dirichlet", 0.3
    elif variant != "fast":
        raise ConfigError(f"variant {variant!r} of ota_masks: must be one of fast, noniid")
    return config


def arms(config: Config) -> list[Arm]:
    """Every way to mask.

    Raises:
      ConfigError: no step is left after the warm-up.
    """
    steps = config.local.steps - config.pruning.warm_up
    if steps < 1:
        raise ConfigError(
            f"local.steps={config.local.steps}: must be above"
            f" pruning.warm_up={config.pruning.warm_up}"
        )
    own: dict[str, Any] = {"pruning.scope": "own", "local.steps": steps}
    counted = {**own, "uplink.division": "holders"}
    exact = {**counted, "uplink.link": "ideal"}
    dense = {"run.evaluate": "dense"}
    found: dict[str, dict[str, Any]] = {
        "unpruned": {"pruning.ratio": 0.0},
        "unpruned-split": {**own, "pruning.ratio": 0.0},
        "common": {},
        "received": {"pruning.scope": "client"},
        "own": own,
        "own-counted": counted,
        "own-counted-6": {**counted, "uplink.min_holders": 6.0},
        "own-exact": exact,
        "own, dense": {**own, **dense},
        "own-counted, dense": {**counted, **dense},
        "own-exact, dense": {**exact, **dense},
    }
    return [Arm(name, fields) for name, fields in found.items()]


def report(config: Config, rows: Sequence[Row], folder: Path) -> str:
    """Writes summary, table and figure; returns the text to print."""
    body = []
    names = [arm.name for arm in arms(config)]
    for name in names:
        s = rp.arm_summary(rows, name)
        body.append(
            [
                name,
                str(rp.interval(100 * rp.final(rows, name, "test_accuracy"), rp.PERCENT)),
                f"{s['channel_uses']:.3g}",
                f"{s['side_information']:.3g}",
                f"{s['seconds']:.3g}",
                f"{s['energy']:.3g}",
            ]
        )
    header = ["masks", "accuracy (%)", "channel uses", "side information", "seconds", "joules"]
    verdicts = []
    for identity, text, one, other, above in CLAIMS:
        accuracy = [100 * rp.final(rows, name, "test_accuracy") for name in (one, other)]
        rule = rp.Rule(identity, "P0 II-III", text, above, accuracy[0] - accuracy[1])
        verdicts.append(rp.verdict(rule))
    (folder / "figures").mkdir(exist_ok=True)
    points = {
        name: (
            rp.arm_summary(rows, name)["channel_uses"],
            100 * rp.final(rows, name, "test_accuracy"),
        )
        for name in names
        if "exact" not in name
    }
    ylabel = "final test accuracy (%)"
    path, xlabel = folder / "figures" / "masks", "channel uses of the run"
    rp.tradeoff_figure(path, points, xlabel, ylabel, rp.PERCENT)
    seeds = rp.over_seeds(config.run.seeds)
    tables = {f"Final accuracy and what the whole run used, {seeds}": rp.table(header, body)}
    return rp.write_run(
        folder, "ota_masks", to_json(config), rows, names, tables, verdicts, "Claims"
    )
