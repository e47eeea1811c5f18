"""AirNet against digital delivery over SNR, at one bandwidth (P3, Figs. 4a, 4c, 5a and 5c).

    python -m launch.main --config=experiments/airnet_snr.py:fast --workdir=runs/airnet_snr

Settings are in ``fedprune/airnet/settings.py``, schemes and baselines in ``comparison.py`` there.
Nets are trained for each SNR of delivery, without fading, and delivered without and with it;
``paper`` (Figs. 4a and 4c) and ``paper_resnet`` (Figs. 5a and 5c) train others for fading, as P3
does. Digital models at ``shares`` of the weights; the best that fits counts.

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
from pathlib import Path

from fedprune import airnet
from fedprune import report as rp
from fedprune.airnet import Point
from fedprune.airnet import arms as arms
from fedprune.config import to_json
from fedprune.report import Rule
from fedprune.runs import Row

VARIANTS = ("fast", "full", "paper", "paper_resnet")

MODERATE = 5.0


SNRS_DB = {
    "fast": (0, 5, 15),
    "full": (-5, 0, 5, 10, 15, 20, 30),
    airnet.VGG: (0, 5, 10, 15, 20, 25, 30, 35),
    airnet.RESNET: (0, 5, 10, 15, 20, 25, 30),
}


def get_config(variant: str = "fast") -> airnet.Comparison:
    """The configuration of a variant."""
    return airnet.setting(airnet.Comparison, "airnet_snr", variant, SNRS_DB)


def report(config: airnet.Comparison, rows: Sequence[Row], folder: Path) -> str:
    """Trains, delivers, and writes summary, tables and figures; returns the text to print."""
    lab = airnet.Lab(config, folder)
    points = [Point(snr, config.uses) for snr in config.snrs_db]
    span = (min(config.snrs_db), max(config.snrs_db))
    found = airnet.compare(lab, config, points, span)
    dense = airnet.dense(lab)
    whole = airnet.clean(lab, dense.params, dense.mask)
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
    title = f"Dense net on a perfect link: {rp.interval(whole, rp.PERCENT)} %"
    tables = airnet.comparison_tables(found, points, "SNR (dB)", lambda p: p.snr_db)
    tables = {title: " ", **tables}
    airnet.comparison_figures(folder / "figures", found, points, "SNR (dB)", lambda p: p.snr_db)
    judged = airnet.verdicts(rules)
    return rp.write_run(
        folder, "airnet_snr", to_json(config), [], [], tables, judged, "Claims of P3"
    )
