"""AirNet against digital delivery over the bandwidth, at 5 dB (P3, Figs. 4b, 4d, 5b and 5d).

    python -m launch.main --config=experiments/airnet_bandwidth.py:fast --workdir=runs/bandwidth

Settings are in ``fedprune/airnet/settings.py``, schemes and baselines in ``comparison.py`` there.

``paper`` is for Figs. 4b and 4d, ``paper_resnet`` for Figs. 5b and 5d, whose bandwidths P3 does not
state in words.

Fixed before any result was seen: accuracies in points, paired by seed, 95 % Student intervals.

  digital    at every bandwidth AirNet above the best digital baseline, AWGN
  expansion  SK + UEP above AirNet, mean over the bandwidths, AWGN
  recovered  SK + UEP at the largest bandwidth at most 1 point below the dense net, AWGN
  not-plain  AirNet at the largest bandwidth more than 1 point below the dense net, AWGN
  csit       under fading, digital with CSIT above AirNet, mean over the bandwidths
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedprune import airnet
from fedprune import report as rp
from fedprune.airnet import Point
from fedprune.airnet import arms as arms
from fedprune.config import spec, to_json
from fedprune.report import Rule
from fedprune.runs import Row

VARIANTS = ("fast", "full", "paper", "paper_resnet")

SPAN = (0.0, 20.0)
BANDWIDTHS = {
    "fast": (1000, 2000, 5000),
    "full": (500, 1000, 2000, 4000, 7000),
    airnet.VGG: (300_000, 650_000, 1_200_000, 2_500_000, 4_000_000, 8_000_000),
    airnet.RESNET: (1_500_000, 3_000_000, 4_500_000, 9_000_000),
}


@dataclass
class AirNetBandwidth(airnet.Comparison):
    """The common fields, bandwidths and other shares of digital models."""

    bandwidths: tuple[int, ...] = spec(
        (1000,), "values of b", low=1, high=1_000_000_000, unit="complex channel uses"
    )
    shares: tuple[float, ...] = spec(
        (0.5, 0.25, 0.1, 0.04), "of the weights that digital models keep", above=0, high=1
    )


def get_config(variant: str = "fast") -> AirNetBandwidth:
    """The configuration of a variant."""
    snrs = dict.fromkeys(BANDWIDTHS, (5.0,))
    config = airnet.setting(AirNetBandwidth, "airnet_bandwidth", variant, snrs)
    config.bandwidths = BANDWIDTHS[variant]
    return config


def report(config: AirNetBandwidth, rows: Sequence[Row], folder: Path) -> str:
    """Trains, delivers, and writes summary, tables and figures; returns the text to print."""
    lab = airnet.Lab(config, folder)
    points = [Point(config.snrs_db[0], b) for b in config.bandwidths]
    found = airnet.compare(lab, config, points, SPAN)
    dense = airnet.dense(lab)
    whole = airnet.clean(lab, dense.params, dense.mask)
    mean = lambda differences: np.mean(differences, 0)
    last = points[-1]
    rules = [
        *(Rule(f"digital-{p.uses}", "VII-B", f"b = {p.uses}: AirNet above digital", 0.0,
               found["plain", p, "none"] - airnet.best_digital(found, p, "none")) for p in points),
        Rule("expansion", "VII-B", "SK + UEP above AirNet, mean over bandwidths", 0.0,
             mean([found["sk", p, "none"] - found["plain", p, "none"] for p in points])),
        Rule("recovered", "VII-B", f"b = {last.uses}: SK + UEP at most 1 point below dense", -1.0,
             found["sk", last, "none"] - whole),
        Rule("not-plain", "VII-B", f"b = {last.uses}: AirNet more than 1 point below dense", 1.0,
             whole - found["plain", last, "none"]),
        Rule("csit", "VII-B", "fading: digital with CSIT above AirNet, mean over bandwidths", 0.0,
             mean([airnet.best_digital(found, p, "csit") - found["plain", p, "rayleigh"]
                   for p in points])),
    ]  # fmt: skip
    title = f"Dense net on a perfect link: {rp.interval(whole, rp.PERCENT)} %"
    tables = airnet.comparison_tables(found, points, "channel uses", lambda p: p.uses)
    tables = {title: " ", **tables}
    airnet.comparison_figures(folder / "figures", found, points, "channel uses", lambda p: p.uses)
    return rp.write_run(
        folder, "airnet_bandwidth", to_json(config), [], [], tables, airnet.verdicts(rules),
        "Claims of P3",
    )  # fmt: skip
