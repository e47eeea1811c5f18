"""The figures of several experiments; each is written as PNG and as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedprune.report.drawing import (
    MARKERS,
    canvas,
    colour,
    keep_within,
    label_decades,
    line_styles,
    save,
    styled,
)
from fedprune.report.statistics import ANY, LEAST, PERCENT, Range, band, curves, interval, spent
from fedprune.runs import Row


def partition_figure(path: Path, counts: np.ndarray, names: Sequence[str], title: str) -> None:
    """How many examples of each class every client holds, as stacked bars.

    Args:
      path: without suffix; a PNG and an SVG are written.
      counts: [K, classes] examples.
      names: of the classes.
      title: above the axes.
    """
    from matplotlib.ticker import MaxNLocator

    clients, classes = counts.shape
    left = np.cumsum(counts, 1) - counts
    with styled():
        size = (5.6, min(9.0, 1.2 + 0.16 * max(clients, classes)))
        figure, axes = canvas(*size)
        colours = colour("turbo", np.linspace(0.03, 0.97, classes))
        for c, name in enumerate(names):
            axes.barh(np.arange(clients), counts[:, c], 0.85, left[:, c], color=colours[c],
                      label=name, lw=0)  # fmt: skip
        axes.set(xlabel="training examples", ylabel="client", title=title)
        axes.set_ylim(clients - 0.4, -0.6)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        figure.legend(frameon=False, loc="outside right upper", fontsize=7, title="class")
        save(figure, path)


def line_figure(
    path: Path,
    x: Sequence[float],
    lines: Mapping[str, Sequence[np.ndarray]],
    xlabel: str,
    ylabel: str,
    within: Range = ANY,
) -> None:
    """Means with 95 % intervals over seeds against a number.

    The lines are drawn a little beside each other, so that their intervals can be told apart. There
    are no intervals at points of fewer than 3 seeds.

    Args:
      path: without suffix; a PNG and an SVG are written.
      x: of the points.
      lines: legend -> the values of every seed at every x.
      xlabel: below the axes.
      ylabel: beside them.
      within: in which the means can lie; intervals are cut to it.
    """
    with styled():
        figure, axes = canvas(4.4, 3.5)
        shifts = 0.012 * np.ptp(x) * (np.arange(len(lines)) - (len(lines) - 1) / 2)
        styles = line_styles(list(lines))
        for i, (label, values) in enumerate(lines.items()):
            found = np.array([interval(v, within) for v in values]).T
            line: Any = {**styles[i], "marker": MARKERS[i % len(MARKERS)], "label": label}
            axes.errorbar(np.add(x, shifts[i]), found[0], _bars(*found), ms=4, capsize=2, **line)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        keep_within(axes, within)
        axes.grid(alpha=0.25, lw=0.6)
        seeds = {len(v) for values in lines.values() for v in values}
        _legend(figure, "outside lower center", seeds, ncols=2)
        save(figure, path)


def cost_figure(
    path: Path, rows: Sequence[Row], arms: Mapping[str, str], column: str, xlabel: str
) -> None:
    """Mean test accuracy against what was spent so far, on a logarithmic axis.

    The 95 % interval over seeds is drawn at the end of each line. The axis holds the means after
    the first sixth of the rounds, and no accuracy beyond 0 to 100 %.

    Args:
      path: without suffix; a PNG and an SVG are written.
      rows: of the run.
      arms: arm name -> legend; those whose legends agree up to a comma have one colour.
      column: of the cost of one round, such as "channel_uses".
      xlabel: below the axes.
    """
    with styled():
        figure, axes = canvas(5.0, 4.2)
        styles = line_styles(list(arms.values()))
        late, seeds = [], set()
        for style, (arm, label) in zip(styles, arms.items(), strict=True):
            rounds, values = curves(rows, arm, "test_accuracy")
            total = spent(rows, arm, column, rounds)
            mean, low, high = band(100 * values, PERCENT)
            axes.plot(total, mean, label=label, lw=1.4, **style)
            end = _bars(mean[-1:], low[-1:], high[-1:])
            axes.errorbar(
                total[-1:], mean[-1:], end, color=style["color"], fmt="o", ms=3, capsize=2
            )
            late += [mean[len(mean) // 6 :], low[-1:], high[-1:]]
            seeds.add(len(values))
        every = np.concatenate(late)
        axes.set(xlabel=xlabel, ylabel="test accuracy (%)", xscale="log")
        axes.set_ylim(np.nanmin(every) - 2, np.nanmax(every) + 2)
        keep_within(axes, PERCENT)
        label_decades(axes)
        axes.grid(alpha=0.25, lw=0.6)
        _legend(figure, "outside lower center", seeds, ncols=2)
        save(figure, path)


def tradeoff_figure(
    path: Path,
    points: Mapping[str, tuple[float, Sequence[float] | np.ndarray]],
    xlabel: str,
    ylabel: str,
    within: Range = ANY,
) -> None:
    """One point for each arm: what it spent, and what it reached, with 95 % intervals.

    Args:
      path: without suffix; a PNG and an SVG are written.
      points: label -> (what was spent, above 0; results of the seeds).
      xlabel: below the axes, which are logarithmic.
      ylabel: beside them.
      within: in which the means can lie; intervals are cut to it.
    """
    with styled():
        figure, axes = canvas(5.6, 3.6)
        spent = [x for x, _ in points.values()]
        styles = line_styles(list(points))
        for i, (label, (x, values)) in enumerate(points.items()):
            found = np.array([interval(values, within)]).T
            # Arms that spent the same would hide one another.
            shift = 1.0 + 0.05 * spent[:i].count(x)
            style: Any = {"fmt": MARKERS[i % len(MARKERS)], "ms": 6, "capsize": 3, "lw": 1.2}
            style |= {"color": styles[i]["color"], "label": label}
            axes.errorbar([x * shift], found[0], _bars(*found), **style)
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
        keep_within(axes, within)
        label_decades(axes)
        axes.grid(alpha=0.25, lw=0.6)
        _legend(figure, "outside right upper", {len(values) for _, values in points.values()})
        save(figure, path)


def _bars(mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray | None:
    """What ``errorbar`` draws below and above the means; None where no point has an interval."""
    bars = np.stack([mean - low, high - mean])
    return None if np.isnan(bars).all() else bars


def _legend(figure: Any, place: str, seeds: set[int], **options: Any) -> None:
    """Beside the axes, with the number of the seeds, and what is drawn of them."""
    few, many = min(seeds), max(seeds)
    count = f"{few} to {many} seeds" if few < many else f"{few} seed{'s' if few > 1 else ''}"
    what = "means, 95 % intervals" if many >= LEAST else "no intervals"
    figure.legend(frameon=False, loc=place, fontsize=8, title=f"{what}, {count}",
                  title_fontsize=8, **options)  # fmt: skip
