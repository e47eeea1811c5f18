"""Which layers need protection, and how one finds out (P3, Figs. 10 and 11).

    python -m launch.main --config=experiments/airnet_sensitivity.py:fast --workdir=runs/sensitivity

Settings: ``fedprune/airnet/settings.py``. A net is pruned to b / 2, once with the noise of 5
dB in its training and once without. The first one's layers are repeated to fill b: evenly, or by
unequal protection with either sensitivity, without retraining.

b is 1.3e6 in ``paper``, so that the net of Fig. 10 has 0.65e6.

Fixed before any result was seen: paired by seed, 95 % Student intervals, AWGN; accuracies in
points.

  flatter  noise in training lowers the layers' largest eigenvalues: their mean log10 is lower
  hessian  Hessian-based above loss-based protection, mean over the SNRs
  even     at the lowest SNR, loss-based below even repetition
  uneven   Hessian-based above even repetition, mean over the SNRs
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedprune import airnet
from fedprune import report as rp
from fedprune.airnet import Case, Net
from fedprune.airnet import arms as arms
from fedprune.report import Rule
from fedprune.runs import Row

VARIANTS = ("fast", "full", "paper")

DB = 5.0
WAYS = ("even", "loss", "hessian")


def get_config(variant: str = "fast") -> airnet.AirNet:
    """The configuration of a variant."""
    many = (-5, 0, 5, 10, 15, 20)
    snrs = {"fast": (0, 5, 10), "full": many, "paper": many}
    config = airnet.setting(airnet.AirNet, "airnet_sensitivity", variant, snrs)
    if variant == airnet.VGG:
        config.uses = 1_300_000
    return config


def report(config: airnet.AirNet, rows: Sequence[Row], folder: Path) -> str:
    """Trains, delivers, and writes summary, tables and figure; returns the text to print."""
    lab = airnet.Lab(config, folder)
    noisy = Net("noise", DB, share=lab.share_of(config.uses / 2))
    airnet.pruned(lab, "pruned", [noisy, noisy._replace(name="no noise", low_db=airnet.SILENT)])
    found = {name: airnet.sensitivities(lab, name, "hessian", DB) for name in ("noise", "no noise")}
    repeats = {
        how: airnet.protect(lab, how, "noise", how, DB, config.uses, "repetition") for how in WAYS
    }
    shown = {how: Case("noise", repeats=how) for how in WAYS}
    lines = airnet.lines(lab, shown, config.snrs_db)
    mean = lambda a, b: np.mean([lines[a][s] - lines[b][s] for s in config.snrs_db], 0)
    logs = {name: np.log10(np.maximum(values, 1e-9)) for name, values in found.items()}
    body = [
        [layer, *(f"{found[n][:, i].mean():.3g}" for n in found),
         *(f"{repeats[how][:, i].mean():.1f}" for how in WAYS)]
        for i, layer in enumerate(lab.layers)
    ]  # fmt: skip
    header = ["layer", *(f"eigenvalue, {n}" for n in found), *(f"symbols, {how}" for how in WAYS)]
    heading = "Largest eigenvalue of each layer's Hessian and symbols a weight, means over seeds"
    low = min(config.snrs_db)
    rules = [
        Rule("flatter", "VII-F", "noise lowers eigenvalues: mean log10", 0.0,
             (logs["no noise"] - logs["noise"]).mean(1), "decades"),
        Rule("hessian", "VII-F", "Hessian-based above loss-based, mean", 0.0,
             mean("hessian", "loss")),
        Rule("even", "VII-F", f"{low:g} dB: loss-based below even", 0.0,
             lines["even"][low] - lines["loss"][low]),
        Rule("uneven", "VII-F", "Hessian-based above even, mean", 0.0, mean("hessian", "even")),
    ]  # fmt: skip
    return airnet.present(config, folder, lines, rules, {heading: rp.table(header, body)})
