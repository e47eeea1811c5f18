"""Nets trained for one SNR and delivered at others (P3, Fig. 6).

    python -m launch.main --config=experiments/airnet_mismatch.py:fast --workdir=runs/mismatch

Settings: ``fedprune/airnet/settings.py``. Nets are trained at 0, 5 and 10 dB and without
noise, pruned to b, and delivered over AWGN at every SNR of ``snrs_db``.

``paper`` is for Fig. 6a, ``paper_resnet`` for Fig. 6b.

Fixed before any result was seen: accuracies in points, paired by seed, 95 % Student intervals.

  matched   the net of an SNR at most 1 point below the best of the others there, mean over 0, 5,
            10 dB
  collapse  at 0 dB, the net trained without noise more than 10 points below the one trained there
  graceful  the net for 10 dB loses less than 10 points at 5 dB, beside 10 dB
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedprune import airnet
from fedprune.airnet import Case, Net
from fedprune.airnet import arms as arms
from fedprune.report import Rule
from fedprune.runs import Row

VARIANTS = ("fast", "full", "paper", "paper_resnet")

TRAINED = {"0 dB": 0.0, "5 dB": 5.0, "10 dB": 10.0, "no noise": airnet.SILENT}


def get_config(variant: str = "fast") -> airnet.AirNet:
    """The configuration of a variant."""
    many = (0, 5, 10, 15, 20, 25, 30, 35)
    snrs = {
        "fast": (0, 5, 10, 20),
        "full": (-5, 0, 5, 10, 15, 20, 30),
        airnet.VGG: many,
        airnet.RESNET: many,
    }
    return airnet.setting(airnet.AirNet, "airnet_mismatch", variant, snrs)


def report(config: airnet.AirNet, rows: Sequence[Row], folder: Path) -> str:
    """Trains, delivers, and writes summary, table and figure; returns the text to print."""
    lab = airnet.Lab(config, folder)
    nets = [Net(name, db, share=lab.share_of(config.uses)) for name, db in TRAINED.items()]
    airnet.pruned(lab, "pruned", nets)
    snrs = sorted({*config.snrs_db, 0.0, 5.0, 10.0})
    lines = airnet.lines(lab, {f"training: {name}": Case(name) for name in TRAINED}, snrs)
    at = lambda name, snr: lines[f"training: {name}"][snr]
    known = {name: db for name, db in TRAINED.items() if db < airnet.SILENT}
    margins = [
        at(name, db) - airnet.best_mean([at(other, db) for other in TRAINED if other != name])
        for name, db in known.items()
    ]
    rules = [
        Rule("matched", "VII-C", "trained at the SNR of delivery: at most 1 point below the best of"
             " the others, mean", -1.0, np.mean(margins, 0)),
        Rule("collapse", "VII-C", "0 dB: no noise in training costs more than 10 points", 10.0,
             at("0 dB", 0.0) - at("no noise", 0.0)),
        Rule("graceful", "VII-C", "trained at 10 dB: less than 10 points lost at 5 dB", -10.0,
             at("10 dB", 5.0) - at("10 dB", 10.0)),
    ]  # fmt: skip
    return airnet.present(config, folder, lines, rules)
