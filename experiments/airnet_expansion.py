"""Spirals of different gamma, and repetition (P3, Fig. 9).

    python -m launch.main --config=experiments/airnet_expansion.py:fast --workdir=runs/expansion

Settings: ``fedprune/airnet/settings.py``. One net, pruned to b / 2 and trained at 5 dB, is sent
with two symbols a weight: repeated, or as spirals of gamma 0.5, 1, 2 and 4, or of the best gamma
for the SNR of each layer's symbols.

b is 1.3e6 in ``paper``.

Fixed before any result was seen: accuracies in points, paired by seed, 95 % Student intervals,
AWGN.

  spiral     gamma 1 above repetition, mean over the SNRs from 10 dB
  threshold  at 0 dB, gamma 4 below repetition
  stretch    at the highest SNR, gamma 4 above gamma 0.5
  best       the best gamma above repetition, mean over all SNRs
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedprune import airnet
from fedprune.airnet import Case, Net
from fedprune.airnet import arms as arms
from fedprune.report import Rule
from fedprune.runs import Row

VARIANTS = ("fast", "full", "paper")

GAMMAS = (0.5, 1.0, 2.0, 4.0)


def get_config(variant: str = "fast") -> airnet.AirNet:
    """The configuration of a variant."""
    few, many = (0, 5, 10, 15, 20), (-5, 0, 5, 10, 15, 20, 25, 30)
    snrs = {"fast": few, "full": many, "paper": many}
    config = airnet.setting(airnet.AirNet, "airnet_expansion", variant, snrs)
    if variant == airnet.VGG:
        config.uses = 1_300_000
    return config


def report(config: airnet.AirNet, rows: Sequence[Row], folder: Path) -> str:
    """Trains, delivers, and writes summary, table and figure; returns the text to print."""
    lab = airnet.Lab(config, folder)
    airnet.pruned(lab, "pruned", [Net("half", 5.0, share=lab.share_of(config.uses / 2))])
    lab.expansions["twice"] = np.full((lab.seeds, len(lab.layers)), 2, np.int32)
    spiral = Case("half", family="spiral", repeats="twice")
    shown = {
        "repetition": spiral._replace(family="repetition"),
        **{f"gamma {g:g}": spiral._replace(gamma=g) for g in GAMMAS},
        "best gamma": spiral,
    }
    snrs = sorted({*config.snrs_db, 0.0})
    lines = airnet.lines(lab, shown, snrs)

    def gain(a: str, b: str, lowest: float) -> np.ndarray:
        return np.mean([lines[a][s] - lines[b][s] for s in snrs if s >= lowest], 0)

    high = snrs[-1]
    rules = [
        Rule("spiral", "VII-E", "gamma 1 above repetition, from 10 dB", 0.0,
             gain("gamma 1", "repetition", 10)),
        Rule("threshold", "VII-E", "0 dB: gamma 4 below repetition", 0.0,
             lines["repetition"][0.0] - lines["gamma 4"][0.0]),
        Rule("stretch", "VII-E", f"{high:g} dB: gamma 4 above gamma 0.5", 0.0,
             lines["gamma 4"][high] - lines["gamma 0.5"][high]),
        Rule("best", "VII-E", "the best gamma above repetition, mean", 0.0,
             gain("best gamma", "repetition", -100)),
    ]  # fmt: skip
    return airnet.present(config, folder, lines, rules)
