"""Does personalization by motor load help the diagnosis of bearings? (P4 on real signals.)

    fedprune run bearing_personal:fast \\
        --workdir=runs/bearing_personal --config.data.dir=FOLDER

Data, clients, network and optimizer are those of ``experiments/bearing.py``: 20 clients, 5
simulated machines at each of 4 motor loads, which change the vibration. Links are perfect and
nothing is pruned: the question is only what should be personal. Every client is tested with its own
model on test windows of its own load. The arms:

  flat   federated averaging
  conv   convolutions personal, dense layers global, FedAlt: P4's choice
  head   last dense layer personal, the rest global, FedAlt
  tuned  federated averaging, tested after the local steps (fine-tuning)
  ditto  federated averaging, and a personal model pulled towards it

Variant ``fast`` (about 8 minutes on 2 cores, an estimate): 60 rounds of 5 steps of 32 windows, in
conv, head and ditto 5 more steps for the personal part; 5 seeds.

Fixed before any run: accuracy is the mean over clients of the accuracy on their own test windows,
averaged over the last 5 rounds; paired by seed, 95 % Student intervals. Each of conv, head, tuned
and ditto is held to be above flat, in the mean and in the worst tenth of the clients, if its
interval lies above 0, and not if it lies below.
"""

from collections.abc import Sequence
from pathlib import Path

from fedprune import report as rp
from fedprune.config import Arm, Config, ConfigError, to_json
from fedprune.runs import Row
from fedprune.studies.bearing import LAST, setting
from fedprune.studies.personal import client_table, points

VARIANTS = ("fast",)
LAYERS = {"conv": ("Conv",), "head": ("Dense_1",)}


def get_config(variant: str = "fast") -> Config:
    """The configuration of a variant."""
    if variant != "fast":
        raise ConfigError(f"variant {variant!r} of bearing_personal: must be fast")
    config = Config(experiment="bearing_personal", variant=variant)
    setting(config)
    config.personal.lr, config.personal.steps = config.local.lr, config.local.steps
    config.uplink.link, config.run.test = "ideal", "clients"
    return config


def arms(config: Config) -> list[Arm]:
    """A program for each arm."""
    parts = [
        Arm(name, {"personal.method": "alternating", "personal.layers": layers})
        for name, layers in LAYERS.items()
    ]
    copies = [Arm(name, {"personal.method": name}) for name in ("tuned", "ditto")]
    return [Arm("flat", {}), *parts, *copies]


def report(config: Config, rows: Sequence[Row], folder: Path) -> str:
    """Writes summary, table and figure; returns the text to print."""
    names = [arm.name for arm in arms(config)]

    verdicts = []
    for arm in names[1:]:
        for column, who in (("mean", "mean of the clients"), ("worst", "worst tenth")):
            own, flat = (points(rows, name, f"test_{column}", LAST) for name in (arm, "flat"))
            text = f"{arm} above flat, {who}"
            verdicts.append(rp.verdict(rp.Rule(f"{arm}-{column}", "–", text, 0.0, own - flat)))
    heading = (
        f"Accuracy, {rp.over_seeds(config.run.seeds)}; then clients of all seeds by their"
        " accuracy (%) in the last round"
    )
    (folder / "figures").mkdir(exist_ok=True)
    shown = rp.beside(dict(zip(names, names, strict=True)))
    rp.accuracy_figure(folder / "figures" / "accuracy", rows, shown, "Bearings, by load")
    return rp.write_run(
        folder, "bearing_personal", to_json(config), rows, names,
        {heading: client_table(rows, names, LAST)}, verdicts, "Does it help?",
    )  # fmt: skip
