"""Does protecting the downlink pay? Federated training over a noisy broadcast.

    fedprune run downlink:fast --workdir=runs/downlink

Every round the server broadcasts the model as analog symbols (P3's link); each client receives it
with noise of its own, trains, and sends back the change. The uplink is perfect, so that only the
downlink matters. Variant ``fast`` (about 4 minutes on 2 cores): embedded Fashion-MNIST, 20
clients, 24 rounds of 5 steps, network and optimizer as in ``ota_pruning:fast``, 0 dB, two weights
a symbol.

  ideal          perfect broadcast, for nothing
  uncoded        one symbol a weight
  repetition-2   each weight twice; repetition-4: four times
  spiral-2       Shannon-Kotel'nikov spirals of two symbols a weight; spiral-4: of four
  pruned-4       filters and neurons pruned to a quarter of the weights by round 13, each weight
                 four times
  pruned-ideal   the same with a perfect broadcast

Fixed before any result was seen: final accuracies in points, paired by seed, 3 seeds, 95 % Student
intervals.

  noise       uncoded more than 1 point below ideal
  repetition  repetition-4 above uncoded (protection pays, for four times the channel uses)
  spiral      spiral-2 above repetition-2 (equal channel uses)
  pruned      pruned-4 above uncoded (fewer weights, each better protected; channel uses are
              listed)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedprune import report as rp
from fedprune.config import Arm, Config, ConfigError, to_json
from fedprune.runs import Row

VARIANTS = ("fast", "full")
ANALOG = {"downlink.link": "analog"}
PRUNED = {"pruning.schedule": "iterative", "pruning.granularity": "unit", "pruning.ratio": 0.75}
CODES: dict[str, dict[str, Any]] = {
    "ideal": {},
    "uncoded": ANALOG,
    **{f"repetition-{n}": {**ANALOG, "downlink.analog.repeats": n} for n in (2, 4)},
    **{
        f"spiral-{n}": {**ANALOG, "downlink.analog.repeats": n, "downlink.analog.code": "spiral"}
        for n in (2, 4)
    },
    "pruned-4": {**ANALOG, **PRUNED, "downlink.analog.repeats": 4},
    "pruned-ideal": PRUNED,
}


def get_config(variant: str = "fast") -> Config:
    """The configuration of a variant."""
    if variant not in ("fast", "full"):
        raise ConfigError(f"variant {variant!r} of downlink: must be one of fast, full")
    config = Config(experiment="downlink", variant=variant)
    config.uplink.link, config.downlink.analog.snr_db = "ideal", 0.0
    config.pruning.start, config.pruning.every, config.pruning.steps = 4, 2, 5
    if variant == "full":
        config.data.name, config.data.clients, config.run.rounds = "fashion_mnist", 100, 48
        config.local.lr, config.pruning.start, config.pruning.every = 0.15, 8, 4
    return config


def arms(config: Config) -> list[Arm]:
    """Every code."""
    return [Arm(name, fields) for name, fields in CODES.items()]


def report(config: Config, rows: Sequence[Row], folder: Path) -> str:
    """Writes summary, table and figure; returns the text to print."""
    summaries = {name: rp.arm_summary(rows, name) for name in CODES}
    accuracy = {name: 100 * rp.final(rows, name, "test_accuracy") for name in CODES}
    body = [
        [
            name,
            str(rp.interval(accuracy[name], rp.PERCENT)),
            f"{s['channel_uses']:.3g}",
            f"{s['side_information']:.0f}",
            f"{s['kept_weights']:.0f}",
        ]
        for name, s in summaries.items()
    ]
    header = ["downlink", "accuracy (%)", "channel uses", "side information", "weights at the end"]
    rules = [
        rp.Rule("noise", "P3 VII", "uncoded more than 1 point below ideal", 1.0,
                accuracy["ideal"] - accuracy["uncoded"]),
        rp.Rule("repetition", "P3 V", "repetition-4 above uncoded", 0.0,
                accuracy["repetition-4"] - accuracy["uncoded"]),
        rp.Rule("spiral", "P3 V", "spiral-2 above repetition-2", 0.0,
                accuracy["spiral-2"] - accuracy["repetition-2"]),
        rp.Rule("pruned", "P3 V", "pruned-4 above uncoded", 0.0,
                accuracy["pruned-4"] - accuracy["uncoded"]),
    ]  # fmt: skip
    (folder / "figures").mkdir(exist_ok=True)
    shown = rp.beside({name: name for name in CODES})
    rp.accuracy_figure(folder / "figures" / "downlink", rows, shown, "Downlinks at 0 dB")
    heading = f"Final accuracy and channel uses of the run, {rp.over_seeds(config.run.seeds)}"
    tables = {heading: rp.table(header, body)}
    return rp.write_run(
        folder, "downlink", to_json(config), rows, list(CODES), tables,
        [rp.verdict(rule) for rule in rules], "Claims after P3",
    )  # fmt: skip
