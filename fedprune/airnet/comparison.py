"""P3's three schemes beside digital delivery, over SNR or bandwidth (Figs. 4 and 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedprune import report as rp
from fedprune.airnet.delivery import Case, deliver
from fedprune.airnet.digital import DIGITAL, digital, digital_accuracies
from fedprune.airnet.lab import Kept, Lab, Net
from fedprune.airnet.protection import protect
from fedprune.airnet.settings import Comparison
from fedprune.airnet.training import pair, pruned, train


class Point(NamedTuple):
    """Where schemes are compared."""

    snr_db: float
    uses: int

    def __str__(self) -> str:
        return f"{self.snr_db:g}dB-{self.uses}"


SCHEMES = {
    "plain": "AirNet",
    "sk": "AirNet + SK + UEP",
    "pair": "AirNet + I + SK + UEP",
}
FADINGS = ("none", "rayleigh")
Found = dict[tuple[str, Point, str], np.ndarray]
"""(scheme, point, fading) -> accuracy in percent of every seed"""
Nearest = dict[int, Point]
"""bandwidth -> the point in the middle of the range of a pair, from whose net it starts"""


def compare(
    lab: Lab, config: Comparison, points: Sequence[Point], span: tuple[float, float]
) -> Found:
    """P3's three schemes and the digital baselines at some points.

    A net is trained for each point by itself, and delivered with and without fading; or one net
    without and one for fading, where the configuration says ``fading_nets="own"``. SK and UEP are
    spirals with Hessian-based unequal protection of a net pruned to half the symbols, retrained
    under the noise that is left; plain nets have as many steps of training. The interpolation
    scheme has one pair a bandwidth, from the pruned net for the middle of its range.

    Args:
      lab: of the configuration.
      config: shares of the weights that digital models keep, widths of small dense ones, and which
        nets are delivered under fading.
      points: where.
      span: SNR_min and SNR_max of the pairs.
    """
    middle = np.mean(span)
    nearest = {
        b: min((p for p in points if p.uses == b), key=lambda p: abs(p.snr_db - middle))
        for b in {p.uses for p in points}
    }
    own = config.fading_nets == "own"
    for fading in FADINGS if own else FADINGS[:1]:
        _train(lab, points, span, nearest, fading)
    cases: dict[tuple[str, Point, str], Case] = {}
    for fading in FADINGS:
        cases |= _cases(points, span, nearest, fading, _mark(fading) if own else "")
    delivered = deliver(lab, list(cases.values()))
    found: Found = {where: delivered[case] for where, case in cases.items()}
    curves = digital(lab, config.shares, config.widths)
    for p in points:
        for method in DIGITAL:
            for fading in ("none", "outage", "csit"):
                accuracy = digital_accuracies(curves, method, p.snr_db, p.uses, fading)
                found[method, p, fading] = accuracy
    return found


def _mark(fading: str) -> str:
    """What the names of nets and stages for fading end with."""
    return "" if fading == "none" else "-fading"


def _train(
    lab: Lab, points: Sequence[Point], span: tuple[float, float], nearest: Nearest, fading: str
) -> None:
    """All nets for one kind of channel."""
    mark = _mark(fading)

    def net(name: str, point: Point, uses: float) -> Net:
        return Net(f"{name}-{point}{mark}", point.snr_db, share=lab.share_of(uses), fading=fading)

    whole, half = ([net(n, p, p.uses / k) for p in points] for n, k in (("whole", 1), ("half", 2)))
    pruned(lab, f"pruned{mark}", [*whole, *half])
    for p, h in zip(points, half, strict=True):
        protect(lab, h.name, h.name, "hessian", p.snr_db, p.uses)
    start: dict[str, Kept] = {}
    repeats: dict[str, np.ndarray] = {}
    nets: list[Net] = []
    for p, w, h in zip(points, whole, half, strict=True):
        plain, sk = f"plain-{p}{mark}", f"sk-{p}{mark}"
        nets += [w._replace(name=plain), h._replace(name=sk)]
        start |= {plain: lab.nets[w.name], sk: lab.nets[h.name]}
        repeats[sk] = lab.expansions[h.name]
    train(lab, f"expanded{mark}", nets, start, repeats)
    pairs = {f"pair-{b}{mark}": f"half-{p}{mark}" for b, p in nearest.items()}
    pair(
        lab,
        f"pairs{mark}",
        [Net(name, *span, fading=fading) for name in pairs],
        {name: lab.nets[first] for name, first in pairs.items()},
        [0.5] * len(pairs),
        {name: lab.expansions[first] for name, first in pairs.items()},
    )


def _cases(
    points: Sequence[Point], span: tuple[float, float], nearest: Nearest, fading: str, mark: str
) -> dict[tuple[str, Point, str], Case]:
    """Deliveries of the three schemes over one kind of channel."""
    cases = {}
    for p in points:
        half, near = f"half-{p}{mark}", f"half-{nearest[p.uses]}{mark}"
        cases["plain", p, fading] = Case(f"plain-{p}{mark}", p.snr_db, fading)
        cases["sk", p, fading] = Case(f"sk-{p}{mark}", p.snr_db, fading, "spiral", half)
        cases["pair", p, fading] = Case(
            f"pair-{p.uses}{mark}", p.snr_db, fading, "spiral", near, span=(*span, 0.5)
        )
    return cases


def best_digital(found: Found, point: Point, fading: str) -> np.ndarray:
    """Accuracies [seeds] of the digital baseline whose mean over seeds is the best.

    One baseline for all seeds: a choice for each seed by itself would compare AirNet, which has no
    choice, with the best of several draws.
    """
    return best_mean([found[method, point, fading] for method in DIGITAL])


def best_mean(values: Sequence[np.ndarray]) -> np.ndarray:
    """The one [seeds] of several with the largest mean."""
    return max(values, key=np.mean)


def comparison_tables(
    found: Found, points: Sequence[Point], label: str, of: Callable[[Point], float]
) -> dict[str, str]:
    """A table without fading and one with, a line a point."""
    tables = {}
    for fading, title in (("none", "AWGN"), ("rayleigh", "Slow fading")):
        columns = [(SCHEMES[s], s, fading) for s in SCHEMES]
        if fading == "none":
            columns += [(DIGITAL[m], m, "none") for m in DIGITAL]
        else:
            columns += [(f"{DIGITAL[m]}, fixed rate", m, "outage") for m in DIGITAL]
            columns += [(f"{DIGITAL[m]}, CSIT", m, "csit") for m in DIGITAL]
        body = [
            [f"{of(p):g}", *(str(rp.interval(found[s, p, f], rp.PERCENT)) for _, s, f in columns)]
            for p in points
        ]
        seeds = len(found["plain", points[0], fading])
        heading = f"{title}: test accuracy in percent, {rp.over_seeds(seeds)}"
        tables[heading] = rp.table([label, *(name for name, _, _ in columns)], body)
    return tables


def comparison_figures(
    folder: Path, found: Found, points: Sequence[Point], label: str, of: Callable[[Point], float]
) -> None:
    """Accuracy against SNR or bandwidth, without and with fading."""
    folder.mkdir(exist_ok=True)
    x = [of(p) for p in points]
    for fading, kinds in (("none", ["none"]), ("rayleigh", ["outage", "csit"])):
        lines = {SCHEMES[s]: [found[s, p, fading] for p in points] for s in SCHEMES}
        names = {"none": "digital", "outage": "digital, fixed rate", "csit": "digital, CSIT"}
        lines |= {names[f]: [best_digital(found, p, f) for p in points] for f in kinds}
        name = "awgn" if fading == "none" else "fading"
        rp.line_figure(folder / name, x, lines, label, "test accuracy (%)", rp.PERCENT)
