"""The figures of several experiments; each is written as PNG and as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedprune.report.drawing import canvas, colour, label_decades, save, styled
from fedprune.report.statistics import curves, interval, spent
from fedprune.runs import Row


def accuracy_figure(
    path: Path,
    rows: Sequence[Row],
    arms: Mapping[str, str],
    title: str,
    ylim: tuple[float, float] | None,
    marks: Sequence[float] = (),
    column: str = "test_accuracy",
) -> None:
    """Test accuracy against the round: a line an arm, a band for its 95 % interval over seeds.

    An arm is drawn from the round at which it parts from the first one, so that arms which are
    still the same do not cover each other.

    Args:
      path: without suffix; a PNG and an SVG are written.
      rows: of the run.
      arms: arm name -> legend; the first is drawn dashed and black, as the reference.
      title: above the axes.
      ylim: of the accuracy in percent; the same for figures to be compared. None: what fits.
      marks: rounds to mark on the axis, for example those of pruning.
      column: drawn in place of the accuracy, such as "test_loss".
    """
    from matplotlib.ticker import MaxNLocator

    scale, ylabel = (100, "test accuracy (%)") if column == "test_accuracy" else (1, column)
    with styled():
        figure, axes = canvas(4.2, 3.5)
        colours = ["black", *colour("viridis", np.linspace(0.05, 0.85, len(arms) - 1))]
        reference = curves(rows, next(iter(arms)), column)[1]
        for i, (arm, label) in enumerate(arms.items()):
            rounds, values = curves(rows, arm, column)
            parted = np.flatnonzero((values != reference).any(0))
            first = 0 if i == 0 else max(0, (parted[0] if len(parted) else len(rounds)) - 1)
            bands = [interval(scale * seeds) for seeds in values.T[first:]]
            mean, half = np.array(bands).T
            drawn = rounds[first:]
            line: Any = {"color": colours[i], "label": label, "lw": 1.5, "ls": "-" if i else "--"}
            axes.plot(drawn, mean, **line, zorder=3 if i else 4)
            axes.fill_between(drawn, mean - half, mean + half, color=colours[i], alpha=0.10, lw=0)
        axes.set(xlabel="round", ylabel=ylabel.replace("_", " "), title=title, ylim=ylim)
        axes.set_xlim(rounds[0], rounds[-1])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        if scale == 100:
            axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.25, lw=0.6)
        if len(marks):
            axes.plot(marks, [0.015] * len(marks), "^", color="0.35", ms=5, clip_on=False,
                      transform=axes.get_xaxis_transform(), label="pruning step")  # fmt: skip
        figure.legend(frameon=False, loc="outside lower center", ncols=3, fontsize=8)
        save(figure, path)


def accuracy_limits(rows: Sequence[Row], arms: Sequence[str]) -> tuple[float, float]:
    """Limits in percent, at tens, that show all means after the first sixth of the rounds."""
    means = [100 * curves(rows, arm, "test_accuracy")[1].mean(0) for arm in arms]
    late = np.concatenate([mean[len(mean) // 6 :] for mean in means])
    return 10 * np.floor(late.min() / 10), 10 * np.floor(late.max() / 10) + 10


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
) -> None:
    """Means with 95 % intervals over seeds against a number.

    The lines are drawn a little beside each other, so that their intervals can be told apart.

    Args:
      path: without suffix; a PNG and an SVG are written.
      x: of the points.
      lines: legend -> the values of every seed at every x.
      xlabel: below the axes.
      ylabel: beside them.
    """
    with styled():
        figure, axes = canvas(4.2, 3.5)
        colours = colour("viridis", np.linspace(0.05, 0.85, len(lines)))
        shifts = 0.012 * np.ptp(x) * (np.arange(len(lines)) - (len(lines) - 1) / 2)
        for i, (label, values) in enumerate(lines.items()):
            mean, half = np.array([interval(v) for v in values]).T
            line: Any = {"color": colours[i], "marker": "osD^v*"[i % 6], "label": label}
            axes.errorbar(np.add(x, shifts[i]), mean, half, ms=4, capsize=2, **line)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.grid(alpha=0.25, lw=0.6)
        figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=8)
        save(figure, path)


def cost_figure(
    path: Path, rows: Sequence[Row], arms: Mapping[str, str], column: str, xlabel: str
) -> None:
    """Mean test accuracy against what was spent so far, on a logarithmic axis.

    Args:
      path: without suffix; a PNG and an SVG are written.
      rows: of the run.
      arms: arm name -> legend.
      column: of the cost of one round, such as "channel_uses".
      xlabel: below the axes.
    """
    with styled():
        figure, axes = canvas(4.6, 3.8)
        colours = colour("viridis", np.linspace(0.05, 0.85, -(-len(arms) // 2)))
        for i, (arm, label) in enumerate(arms.items()):
            rounds, values = curves(rows, arm, "test_accuracy")
            total = spent(rows, arm, column, rounds)
            mean, half = np.array([interval(100 * v) for v in values.T]).T
            line: Any = {"color": colours[i // 2], "ls": "-" if i % 2 == 0 else "--"}
            axes.plot(total, mean, label=label, lw=1.5, **line)
            axes.fill_between(
                total, mean - half, mean + half, color=line["color"], alpha=0.10, lw=0
            )
        axes.set(xlabel=xlabel, ylabel="test accuracy (%)", xscale="log", ylim=(20, 90))
        label_decades(axes)
        axes.grid(alpha=0.25, lw=0.6)
        figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=8)
        save(figure, path)


def tradeoff_figure(
    path: Path,
    points: Mapping[str, tuple[float, Sequence[float] | np.ndarray]],
    xlabel: str,
    ylabel: str,
) -> None:
    """One point for each arm: what it spent, and what it reached, with 95 % intervals.

    Args:
      path: without suffix; a PNG and an SVG are written.
      points: label -> (what was spent, above 0; results of the seeds).
      xlabel: below the axes, which are logarithmic.
      ylabel: beside them.
    """
    with styled():
        figure, axes = canvas(5.0, 3.6)
        colours = colour("viridis", np.linspace(0.0, 0.9, len(points)))
        spent = [x for x, _ in points.values()]
        for i, (label, (x, values)) in enumerate(points.items()):
            mean, half = interval(values)
            # Arms that spent the same would hide one another.
            shift = 1.0 + 0.05 * spent[:i].count(x)
            style: Any = {"fmt": "os^Dvp"[i % 6], "ms": 6, "capsize": 3, "lw": 1.2}
            axes.errorbar(x * shift, mean, half, label=label, color=colours[i], **style)
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
        label_decades(axes)
        axes.grid(alpha=0.25, lw=0.6)
        figure.legend(frameon=False, loc="outside right upper", fontsize=8)
        save(figure, path)
