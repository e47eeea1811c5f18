"""AirNet against digital delivery over SNR, at one bandwidth (P3, Figs. 4a, 4c, 5a and 5c).

    python -m launch.main --config=experiments/airnet_snr.py:fast --workdir=runs/airnet_snr

Schemes, baselines and settings are in ``experiments/airnet.py`` (``compare``). Nets are trained
without fading for each SNR of delivery, and delivered without and with fading (P3 trains others
for fading). Digital models at ``shares`` of the weights; the best that fits counts.

Fixed before any result was seen: accuracies in points, paired by seed, 95 % Student intervals. L
and H are the lowest and highest SNR, M is 5 dB.

  recovered    AirNet at H at most 1 point below the dense net on a perfect link
  digital      AirNet more than 10 points above the best digital baseline at M, AWGN
  cliff        under fading at M, AirNet more than 10 points above digital at its best fixed rate
  csit         under fading at M, digital with CSIT above AirNet
  expansion    SK + UEP above AirNet at L, AWGN
  low          SK + UEP gains more at L than at H, AWGN
  ensemble     the interpolation scheme above SK + UEP at L, AWGN
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import airnet
from experiments.airnet import Point, Rule
from experiments.airnet import arms as arms
from fedprune import report as rp
from fedprune.config import spec, to_json
from fedprune.writer import Row

MODERATE = 5.0


@dataclass
class AirNetSnr(airnet.AirNet):
    """The common fields, and the digital models."""

    shares: tuple[float, ...] = spec(
        (0.3, 0.15, 0.07, 0.03), "of the weights that digital models keep", above=0, high=1
    )
    widths: tuple[float, ...] = spec(
        (0.5, 0.25, 0.15), "of small dense digital models, beside the dense net", above=0, high=1
    )


def get_config(variant: str = "fast") -> AirNetSnr:
    """The configuration of a variant."""
    return airnet.setting(
        AirNetSnr, "airnet_snr", variant,
        {"fast": (0, 5, 15), "full": (-5, 0, 5, 10, 15, 20, 30), "paper": (0, 5, 10, 15, 25)},
    )  # fmt: skip


def report(config: AirNetSnr, rows: Sequence[Row], folder: Path) -> str:
    """Trains, delivers, and writes summary, tables and figures; returns the text to print."""
    lab = airnet.Lab(config, folder)
    points = [Point(snr, config.uses) for snr in config.snrs_db]
    span = (min(config.snrs_db), max(config.snrs_db))
    found = airnet.compare(lab, points, span, config.shares, config.widths)
    dense = lab.dense()
    whole = lab.clean(dense.params, dense.mask)
    low, high = points[0], points[-1]
    rules = [
        Rule("recovered", "VII-B", f"AirNet at {high.snr_db:g} dB at most 1 below dense", -1.0,
             found["plain", high, "none"] - whole),
        Rule("expansion", "VII-B", f"SK + UEP above AirNet at {low.snr_db:g} dB", 0.0,
             found["sk", low, "none"] - found["plain", low, "none"]),
        Rule("low", "VII-B", f"SK + UEP gains more at {low.snr_db:g} dB than at the highest", 0.0,
             found["sk", low, "none"] - found["plain", low, "none"]
             - found["sk", high, "none"] + found["plain", high, "none"]),
        Rule("ensemble", "VII-B", f"interpolation above SK + UEP at {low.snr_db:g} dB", 0.0,
             found["pair", low, "none"] - found["sk", low, "none"]),
    ]  # fmt: skip
    middle = Point(MODERATE, config.uses)
    if middle in points:
        best = {f: airnet.best_digital(found, middle, f) for f in ("none", "outage", "csit")}
        plain = {f: found["plain", middle, f] for f in ("none", "rayleigh")}
        rules += [
            Rule("digital", "VII-B", "AirNet more than 10 points above digital at 5 dB", 10.0,
                 plain["none"] - best["none"]),
            Rule("cliff", "VII-B", "fading, 5 dB: more than 10 above digital without CSIT", 10.0,
                 plain["rayleigh"] - best["outage"]),
            Rule("csit", "VII-B", "fading, 5 dB: digital with CSIT above AirNet", 0.0,
                 best["csit"] - plain["rayleigh"]),
        ]  # fmt: skip
    title = f"Dense net on a perfect link: {rp.interval(whole)} %"
    tables = airnet.comparison_tables(found, points, "SNR (dB)", lambda p: p.snr_db)
    tables = {title: " ", **tables}
    airnet.comparison_figures(folder / "figures", found, points, "SNR (dB)", lambda p: p.snr_db)
    judged = airnet.verdicts(rules)
    return rp.write_run(
        folder, "airnet_snr", to_json(config), [], [], tables, judged, "Claims of P3"
    )
