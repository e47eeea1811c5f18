"""What masks of the clients' own cost and gain under superposition (P0).

    python -m launch.main --config=experiments/ota_masks.py:fast --workdir=runs/ota_masks

P0 says that the devices prune, and superposes their updates. Where their masks differ, the server
hears only sum_k m_k g_k, and nobody knows who kept which weight. Variants, about 4 minutes each on
2 cores: ``fast`` (IID) and ``noniid`` (Dirichlet 0.3), on the embedded Fashion-MNIST images with 20
clients, 24 rounds, network, uplink and iterative schedule of ``ota_pruning:fast``, 90 % pruned.

  unpruned      no masks
  common        one mask for all: the server's, which prunes the global model
  received      one mask for all: of the model received, which the server keeps dense
  own           clients take 1 step, decide a mask of their own, and take 4 steps with it; the sum
                is divided by all clients ("deltas over N")
  own-counted   the same, divided by the holders of each weight: a second superposition carries the
                masks, counts below half a client are taken for none
  own-exact     as own-counted over a perfect link: what counting would give without noise

The first five use 10 dB referred to the receiver. All train 5 steps of 32 examples a round, warm-up
included. What is evaluated is the model that would be deployed: pruned to 90 % by magnitude. For
``own`` and its variants the server's dense model is evaluated as well ("dense"), in a run of its
own that differs in nothing else.

Fixed before any result was seen: accuracies are those of round 24 over seeds 0, 1, 2, differences
are paired by seed, and a claim "held" if its 95 % Student interval lies above the threshold:

  1. own masks lose against one common mask (common above own, by more than 1 point)
  2. counting the holders pays (own-counted above own), in the pruned model
  3. the same in the server's dense model
  4. with counts, own masks reach the common mask (within 1 point)
  5. noise in the counts costs nothing (own-counted within 1 point of own-exact)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedprune import report as rp
from fedprune.config import Arm, Config, ConfigError, to_json
from fedprune.writer import Row

OWN: dict[str, Any] = {"pruning.scope": "own", "pruning.warm_up": 1, "local.steps": 4}
COUNTED = {**OWN, "uplink.division": "holders"}
EXACT = {**COUNTED, "uplink.link": "ideal"}
DENSE = {"run.evaluate": "dense"}
ARMS: dict[str, dict[str, Any]] = {
    "unpruned": {"pruning.ratio": 0.0},
    "common": {},
    "received": {"pruning.scope": "client"},
    "own": OWN,
    "own-counted": COUNTED,
    "own-exact": EXACT,
    "own, dense": {**OWN, **DENSE},
    "own-counted, dense": {**COUNTED, **DENSE},
    "own-exact, dense": {**EXACT, **DENSE},
}
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
]


def get_config(variant: str = "fast") -> Config:
    """The configuration of a variant."""
    config = Config(experiment="experiments.ota_masks", variant=variant)
    config.pruning.schedule, config.pruning.ratio = "iterative", 0.9
    if variant == "noniid":
        config.data.partition, config.data.alpha = "dirichlet", 0.3
    elif variant != "fast":
        raise ConfigError(f"variant {variant!r} of ota_masks: must be one of fast, noniid")
    return config


def arms(config: Config) -> list[Arm]:
    """Every way to mask."""
    return [Arm(name, fields) for name, fields in ARMS.items()]


def report(config: Config, rows: Sequence[Row], folder: Path) -> str:
    """Writes summary, table and figure; returns the text to print."""
    body = []
    for name in ARMS:
        s = rp.arm_summary(rows, name)
        body.append(
            [
                name,
                str(rp.interval(100 * rp.final(rows, name, "test_accuracy"))),
                f"{s['channel_uses']:.3g}",
                f"{s['side_information']:.3g}",
                f"{s['seconds']:.3g}",
                f"{s['joules']:.3g}",
            ]
        )
    header = ["masks", "accuracy (%)", "channel uses", "side information", "seconds", "joules"]
    verdicts = []
    for identity, text, one, other, above in CLAIMS:
        accuracy = [100 * rp.final(rows, name, "test_accuracy") for name in (one, other)]
        held, found = rp.judge(accuracy[0] - accuracy[1], above)
        verdicts.append(rp.Verdict(identity, "P0 II-III", text, held, f"{found} points"))
    (folder / "figures").mkdir(exist_ok=True)
    points = {
        name: (
            rp.arm_summary(rows, name)["channel_uses"],
            100 * rp.final(rows, name, "test_accuracy"),
        )
        for name in ARMS
        if "exact" not in name
    }
    ylabel = "final test accuracy (%)"
    rp.tradeoff_figure(folder / "figures" / "masks", points, "channel uses of the run", ylabel)
    tables = {
        "Final accuracy and what the whole run used, means over seeds": rp.table(header, body)
    }
    return rp.write_run(
        folder, "ota_masks", to_json(config), rows, list(ARMS), tables, verdicts, "Claims"
    )
