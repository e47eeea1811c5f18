"""One federation, as its configuration says: the base for sweeps, and for runs of your own.

    fedprune run single:fast --workdir=runs/single
    fedprune sweep single:fast \\
        --grid='uplink.snr_db=0,10,20 pruning.ratio=0.3,0.9 seed=0:3' --workdir=runs/sweep

Variants:

  fast  the embedded 10,000 Fashion-MNIST images, 20 clients × 5 steps × batch 32, 24 rounds,
        iterative pruning of 90 % over the air at 10 dB, 3 seeds: a small CNN
  tiny  the same with an MLP of 8 hidden units, 4 clients × 2 steps × batch 16, 8 rounds, one seed:
        seconds, to try something out

There is one arm, and there are no claims.
"""

from collections.abc import Sequence
from pathlib import Path

from fedprune import report as rp
from fedprune.config import Arm, Config, ConfigError, to_json
from fedprune.runs import Row

VARIANTS = ("fast", "tiny")
ARM = "run"
SUMS = {
    "kept_weights": "weights kept",
    "channel_uses": "channel uses of the run",
    "side_information": "side information",
    "seconds": "simulated seconds",
    "energy": "joules",
    "excluded_updates": "updates left out, all seeds",
}
"""numbers of ``arm_summary`` -> what they are called"""


def get_config(variant: str = "fast") -> Config:
    """The configuration of a variant."""
    config = Config(experiment="single", variant=variant)
    config.pruning.schedule = "iterative"
    if variant == "tiny":
        config.data.clients, config.model.name, config.model.mlp.hidden = 4, "mlp", (8,)
        config.local.steps, config.local.batch = 2, 16
        config.pruning.start, config.pruning.every, config.pruning.steps = 2, 1, 3
        config.run.rounds, config.run.seeds = 8, 1
    elif variant != "fast":
        raise ConfigError(f"variant {variant!r} of single: must be one of fast, tiny")
    return config


def arms(config: Config) -> list[Arm]:
    """The configuration itself."""
    return [Arm(ARM, {})]


def report(config: Config, rows: Sequence[Row], folder: Path) -> str:
    """Writes summary, table and figure; returns the text to print."""
    (folder / "figures").mkdir(exist_ok=True)
    rp.accuracy_figure(folder / "figures" / "accuracy", rows, rp.beside({ARM: "accuracy"}))
    found = rp.arm_summary(rows, ARM)
    accuracy = rp.interval(100 * rp.final(rows, ARM, "test_accuracy"), rp.PERCENT)
    loss = rp.interval(rp.final(rows, ARM, "test_loss"), rp.NOT_NEGATIVE)
    body = [
        ["final test accuracy (%)", str(accuracy)],
        ["final test loss (nats)", f"{loss:.3f}"],
        *([text, f"{found[name]:,g}"] for name, text in SUMS.items()),
    ]
    heading = f"The whole run of {found['rounds']} rounds, {rp.over_seeds(found['seeds'])}"
    tables = {heading: rp.table(["what", "value"], body)}
    return rp.write_run(folder, "single", to_json(config), rows, [ARM], tables, [], "")
