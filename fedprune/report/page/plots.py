"""Panels of a page: small figures of equal size, as SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedprune.report.drawing import COLOURS, DASHES, MARKERS, REFERENCE, STYLE, label_decades

PER_PANEL = len(COLOURS)
PLAIN = STYLE | {"font.size": 8.5, "text.parse_math": False}
"""Names are drawn as they are."""
WIDTH, PLOT_HEIGHT, LINE = 3.9, 2.55, 0.17
"""Inches: of a panel, of its axes with title and labels, of one line of the legend."""


class Line(NamedTuple):
    """One line with its band; all arrays [n]."""

    label: str
    style: int | None
    """position in the panel, which decides colour and dashes; None: the reference"""
    x: np.ndarray
    y: np.ndarray | None
    """None: only the band, with its edges drawn"""
    low: np.ndarray
    high: np.ndarray


class Axes(NamedTuple):
    """What panels of one figure share."""

    xlabel: str
    ylabel: str
    xlog: bool = False
    xlim: tuple[float, float] | None = None
    ylim: tuple[float, float] | None = None
    points: bool = False
    """markers and error bars in place of lines with bands"""
    one_band: bool = False
    """only the reference has its band, where a panel has a reference: those of many would hide
    the lines"""
    zero: bool = False
    """a dashed line at zero, where the reference is"""


def lines(title: str, drawn: Sequence[Line], axes: Axes) -> str:
    """A panel of lines, as the text of an SVG file."""
    rows = -(-len(drawn) // 2) if all(len(line.label) <= 24 for line in drawn) else len(drawn)
    legend = LINE * rows + 0.08
    height = PLOT_HEIGHT + legend
    with matplotlib.rc_context(PLAIN):
        figure = Figure(figsize=(WIDTH, height))
        box = (0.165, (legend + 0.46) / height, 0.805, (PLOT_HEIGHT - 0.78) / height)
        plot = figure.add_axes(box)
        if axes.points:
            drawn = _apart(drawn)
        sole = axes.one_band and any(line.style is None for line in drawn)
        for line in drawn:
            banded = not sole or line.style is None
            _draw(plot, line._replace(label=_short(line.label)), axes, banded)
        plot.set(xlabel=axes.xlabel, ylabel=axes.ylabel, ylim=axes.ylim)
        plot.set_title(_short(title), fontsize=9, loc="left")
        plot.yaxis.set_label_coords(-0.155, 0.5)
        if axes.xlog:
            plot.set_xscale("log")
        if axes.xlim is not None:
            plot.set_xlim(*axes.xlim)
        if axes.xlog:
            label_decades(plot)
        elif axes.xlabel == "round":
            plot.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            plot.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
        if axes.zero:
            plot.axhline(0, lw=0.9, **REFERENCE)
        plot.grid(alpha=0.3, lw=0.5)
        figure.legend(
            frameon=False, loc="lower left", bbox_to_anchor=(0.02, 0.0), fontsize=7.5,
            borderpad=0.2, ncols=1 if rows == len(drawn) else 2, handlelength=2.6,
            labelspacing=0.25,
        )  # fmt: skip
        return _svg(figure)


def _apart(drawn: Sequence[Line]) -> list[Line]:
    """Points a little beside each other, so that their intervals can be told apart."""
    span = np.ptp(np.concatenate([line.x for line in drawn]))
    middle = (len(drawn) - 1) / 2
    return [li._replace(x=li.x + 0.012 * span * (i - middle)) for i, li in enumerate(drawn)]


def _draw(plot: Any, line: Line, axes: Axes, banded: bool) -> None:
    style = dict(REFERENCE)
    if line.style is not None:
        i = line.style
        style = {"color": COLOURS[i % PER_PANEL], "ls": DASHES[i % len(DASHES)], "zorder": 3}
    if axes.points and line.y is not None:
        bars = np.stack([line.y - line.low, line.high - line.y])
        style |= {
            "marker": MARKERS[(line.style or 0) % len(MARKERS)],
            "ms": 4,
            "capsize": 2.5,
            "lw": 1.2,
        }
        plot.errorbar(line.x, line.y, bars, label=line.label, **style)
        return
    if line.y is None:
        plot.plot(line.x, line.low, lw=0.9, **style)
        plot.plot(line.x, line.high, lw=0.9, label=line.label, **style)
    else:
        plot.plot(line.x, line.y, lw=1.5, label=line.label, **style)
    if banded:
        plot.fill_between(line.x, line.low, line.high, color=style["color"], alpha=0.13, lw=0)


def heat(title: str, names: Sequence[str], rounds: np.ndarray, percent: np.ndarray) -> str:
    """A panel with a stripe for each name, dark where ``percent`` [names, rounds] is high.

    The last value stands beside its stripe.
    """
    names = [name if len(name) <= 26 else f"…{name[-25:]}" for name in names]
    left = 0.15 + 0.072 * max(map(len, names))
    height = 0.75 + 0.2 * len(names)
    with matplotlib.rc_context(PLAIN):
        figure = Figure(figsize=(WIDTH, height))
        box = (left / WIDTH, 0.45 / height, (WIDTH - left - 0.5) / WIDTH, 0.2 * len(names) / height)
        plot = figure.add_axes(box)
        ends = (rounds[0] - 0.5, rounds[-1] + 0.5, len(names) - 0.5, -0.5)
        plot.imshow(percent, cmap="Blues", vmin=-12, vmax=100, aspect="auto", extent=ends,
                    interpolation="nearest")  # fmt: skip
        plot.set_yticks(range(len(names)), names, fontsize=7.5)
        plot.set_yticks(np.arange(1, len(names)) - 0.5, minor=True)
        plot.grid(which="minor", axis="y", color="white", lw=1.5)
        plot.tick_params(which="both", left=False)
        plot.spines[:].set_visible(False)
        plot.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        plot.set_xlabel("round", labelpad=1)
        figure.text(0.02, 1 - 0.16 / height, _short(title), fontsize=9, va="center")
        for i, value in enumerate(percent[:, -1]):
            plot.annotate(
                f"{value:.1f} %", (1.02, i), xycoords=("axes fraction", "data"), va="center",
                fontsize=7.5,
            )  # fmt: skip
        return _svg(figure)


def _short(name: str) -> str:
    """A name as far as there is room; a legend leaves out what begins with a line below."""
    name = f" {name}" if name.startswith("_") else name
    return name if len(name) <= 46 else f"{name[:45]}…"


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
