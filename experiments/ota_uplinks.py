"""What over-the-air aggregation saves beside digital uplinks, and what fading costs it (P0).

    fedprune run ota_uplinks:fast --workdir=runs/ota_uplinks

P0 section II claims that superposition "consolidates data transmission, significantly reducing the
need for bandwidth". Variant ``fast`` (about 5 minutes on 2 cores) measures it: embedded
Fashion-MNIST, 20 clients, all of them in all 24 rounds, Rayleigh fading, 10 dB, 1 MHz, 1 W, network
and optimizer as in ``ota_pruning:fast``; unpruned and iteratively pruned by 90 %.

  air       over the air, channel inversion, clients below |h|^2 = 0.1 stay silent (10 % of them)
  air-csi   the same with channel estimates of 10 % error variance
  digital   one client after another at capacity (known channels), 32 bits a weight; clients below
            |h|^2 = 0.1 stay silent as well
  digital-8 the same with 8 bits a weight, rounded at random without bias
  outage    at a fixed rate of 2 bits a use, lost in 26 % of the cases, 32 bits a weight

Fixed before any result was seen: the saving is the ratio of channel uses over the whole run, the
price the paired difference of final accuracies (3 seeds, 95 % Student interval). The claim "over
the air costs no more than 1 point of accuracy against error-free digital" holds if the interval
lies above -1, does not if it lies below.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedprune import report as rp
from fedprune.config import Arm, Config, ConfigError, to_json
from fedprune.runs import Row

VARIANTS = ("fast",)
UPLINKS: dict[str, dict[str, Any]] = {
    "air": {"uplink.over_the_air.normalisation": "common", "uplink.threshold": 0.1},
    "air-csi": {
        "uplink.over_the_air.normalisation": "common",
        "uplink.threshold": 0.1,
        "uplink.csi_error": 0.1,
    },
    "digital": {"uplink.link": "orthogonal", "uplink.threshold": 0.1},
    "digital-8": {
        "uplink.link": "orthogonal",
        "uplink.threshold": 0.1,
        "uplink.orthogonal.value_bits": 8,
    },
    "outage": {"uplink.link": "orthogonal", "uplink.orthogonal.rate": 2.0},
}
PRUNING = {"unpruned": 0.0, "90 % pruned": 0.9}


def get_config(variant: str = "fast") -> Config:
    """The configuration of a variant."""
    if variant != "fast":
        raise ConfigError(f"variant {variant!r} of ota_uplinks: must be fast")
    config = Config(experiment="ota_uplinks", variant=variant)
    config.pruning.schedule = "iterative"
    config.uplink.fading = "rayleigh"
    return config


def arms(config: Config) -> list[Arm]:
    """Every uplink without and with pruning."""
    return [
        Arm(f"{uplink}/{pruning}", {**fields, "pruning.ratio": ratio})
        for uplink, fields in UPLINKS.items()
        for pruning, ratio in PRUNING.items()
    ]


def report(config: Config, rows: Sequence[Row], folder: Path) -> str:
    """Writes summary, table and figure; returns the text to print."""
    summaries = {arm.name: rp.arm_summary(rows, arm.name) for arm in arms(config)}
    digital = {pruning: summaries[f"digital/{pruning}"]["channel_uses"] for pruning in PRUNING}
    body = [
        [
            *name.split("/"),
            str(rp.interval(100 * rp.final(rows, name, "test_accuracy"), rp.PERCENT)),
            f"{s['channel_uses']:.3g}",
            f"{digital[name.split('/')[1]] / s['channel_uses']:.1f}",
            f"{s['seconds']:.3g}",
            f"{s['energy']:.3g}",
        ]
        for name, s in summaries.items()
    ]
    header = ["uplink", "model", "accuracy (%)", "channel uses", "of digital", "seconds", "joules"]
    table = rp.table(header, body)
    verdicts = []
    for pruning in PRUNING:
        accuracy = [
            100 * rp.final(rows, f"{uplink}/{pruning}", "test_accuracy")
            for uplink in ("air", "digital")
        ]
        text = f"{pruning}: over the air at most 1 point below error-free digital"
        name, lost = f"air-price-{pruning}", accuracy[0] - accuracy[1]
        verdicts.append(rp.verdict(rp.Rule(name, "P0 II.2", text, -1.0, lost)))
    (folder / "figures").mkdir(exist_ok=True)
    shown = {name: name.replace("/", ", ") for name in summaries}
    rp.cost_figure(
        folder / "figures" / "uplinks", rows, shown, "channel_uses", "channel uses so far"
    )
    heading = (
        f"Final accuracy and what the whole run used, {rp.over_seeds(config.run.seeds)}\n"
        "(of digital: channel uses of the digital uplink over those of this one)"
    )
    tables = {heading: table}
    return rp.write_run(
        folder, "ota_uplinks", to_json(config), rows, list(shown), tables, verdicts, "Claims"
    )
