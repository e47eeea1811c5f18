"""Curves of arms beside those of a reference, in panels of a few curves each.

Arms of one study often end within a point of one another, while each of them moves by ten points
with the seed. So below every panel of curves are the differences from its reference, seed by seed,
with intervals of their own: what seeds have in common cancels there.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedprune.report.drawing import COLOURS, REFERENCE, label_rounds, save, styled
from fedprune.report.statistics import LEAST, NOT_NEGATIVE, PERCENT, band, curves, differences
from fedprune.runs import Row

MOST = 4
"""panels beside one another"""
SIZES = {1: 4.4, 2: 3.1, 3: 2.7, 4: 2.35}
"""panels beside one another -> width of each in inches"""
PANEL = "the arm that the panel is named after"


class Panel(NamedTuple):
    """A few arms in one pair of axes."""

    title: str
    arms: Mapping[str, str]
    """arm -> legend; the first is the reference, which is of the same setting as the others"""
    steps: Mapping[str, Sequence[float]] = {}
    """arm -> rounds to mark, those of its pruning steps; not drawn before the first test"""


class _Scale(NamedTuple):
    factor: float
    label: str
    unit: str
    within: tuple[float, float]


def beside(arms: Mapping[str, str], steps: Sequence[float] = ()) -> list[Panel]:
    """A panel for each arm but the first one, which is the reference of all.

    Args:
      arms: arm -> name.
      steps: rounds to mark in all panels.
    """
    first, *others = arms
    if not others:
        return [Panel("", dict(arms), {first: steps})]
    return [
        Panel(arms[arm], {first: arms[first], arm: PANEL}, {arm: steps} if len(steps) else {})
        for arm in others
    ]


def accuracy_figure(
    path: Path,
    rows: Sequence[Row],
    panels: Sequence[Panel],
    title: str = "",
    column: str = "test_accuracy",
) -> None:
    """Test accuracy against the round, and below it the differences from each panel's reference.

    Curves are means over seeds. The reference, black and dashed, has a band for its 95 % interval,
    and every difference has the interval of the differences paired by seed. Accuracies lie within
    0 to 100 %, and so do axes and intervals, which are cut there (``statistics.band``). All panels
    have equal axes. They hold the means after the first sixth of the rounds, and the intervals of
    differences in the second half; what is earlier may leave them. With one or two seeds there are
    no intervals, and the legend says so.

    Args:
      path: without suffix; a PNG and an SVG are written.
      rows: of the run.
      panels: what is drawn, up to four beside one another.
      title: above the figure.
      column: drawn in place of the accuracy, such as "test_loss".

    Raises:
      ValueError: there is no panel, or an arm in it without a value of the column.
    """
    from matplotlib.figure import Figure

    scale = _Scale(1.0, column.replace("_", " "), "", NOT_NEGATIVE)
    if column == "test_accuracy":
        scale = _Scale(100.0, "test accuracy (%)", "points", PERCENT)
    arms = list(dict.fromkeys(arm for panel in panels for arm in panel.arms))
    found = {arm: curves(rows, arm, column) for arm in arms}
    missing = [arm for arm, (rounds, _) in found.items() if not len(rounds)]
    if missing or not panels:
        what = f"arm {missing[0]!r}: no row has" if missing else "panels=[]: nothing to draw of"
        raise ValueError(f"{what} {column}")
    lines = math.ceil(len(panels) / MOST)
    columns = math.ceil(len(panels) / lines)
    compared = any(len(panel.arms) > 1 for panel in panels)
    heights = [1.75, 1.25] * lines if compared else [2.6] * lines
    with styled():
        size = (SIZES[columns] * columns, sum(heights) + 0.4 * lines + 0.8)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(heights), columns, squeeze=False,
                               gridspec_kw={"height_ratios": heights})  # fmt: skip
        upper = grid[:: 2 if compared else 1].ravel()
        lower = grid[1::2].ravel() if compared else upper
        for axes in [*upper[len(panels) :], *lower[len(panels) :]]:
            axes.set_axis_off()
        gaps = [
            _panel(SIZES[columns], panel, up, down, rows, found, scale, column)
            for panel, up, down in zip(panels, upper, lower, strict=False)
        ]
        _share(upper[: len(panels)], _limits(found, scale, compared), columns, scale.label)
        if compared:
            reference = _reference(panels)
            unit = f"\n({scale.unit})" if scale.unit else ""
            label = f"minus {reference}{unit}"
            _share(lower[: len(panels)], _gap_limits(gaps), columns, label)
        for axes in lower[max(0, len(panels) - columns) : len(panels)]:
            axes.set_xlabel("round")
        figure.suptitle(title, fontsize=10)
        _legend(figure, upper[: len(panels)], len(found[arms[0]][1]), columns)
        save(figure, path)


def _panel(
    width: float,
    panel: Panel,
    upper: Any,
    lower: Any,
    rows: Sequence[Row],
    found: Mapping[str, tuple[np.ndarray, np.ndarray]],
    scale: _Scale,
    column: str,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Draws a panel; returns the means and ends of its differences."""
    first, *others = panel.arms
    upper.set_title("\n".join(textwrap.wrap(panel.title, int(14 * width))), fontsize=9)
    gaps = []
    for i, (arm, label) in enumerate(panel.arms.items()):
        reference = others and not i
        style = REFERENCE if reference else {"color": COLOURS[max(0, i - 1) % len(COLOURS)]}
        rounds, values = found[arm]
        _curve(upper, rounds, band(scale.factor * values, scale.within), style, label, bands=not i)
        steps = [at for at in panel.steps.get(arm, ()) if rounds[0] <= at <= rounds[-1]]
        if len(steps):
            upper.plot(steps, [0.02 + 0.06 * max(0, i - 1)] * len(steps), "^", ms=4, clip_on=False,
                       color=style["color"], transform=upper.get_xaxis_transform())  # fmt: skip
        if i:
            at, apart = differences(rows, arm, first, column)
            if len(at):
                gaps.append(band(scale.factor * apart))
                _curve(lower, at, gaps[-1], style, None, bands=True)
    rounds = found[first][0]
    for axes in {upper, lower}:
        label_rounds(axes, rounds)
        axes.grid(alpha=0.25, lw=0.6)
    if others:
        lower.axhline(0, color="black", lw=0.9, ls=REFERENCE["ls"])
        upper.tick_params(labelbottom=False)
    return gaps


def _curve(
    axes: Any,
    rounds: np.ndarray,
    drawn: tuple[np.ndarray, np.ndarray, np.ndarray],
    style: Mapping[str, Any],
    label: str | None,
    bands: bool,
) -> None:
    mean, low, high = drawn
    dot = {"marker": "o", "ms": 3} if len(rounds) == 1 else {}
    axes.plot(rounds, mean, label=label, lw=1.4, **dot, **style)
    if bands:
        axes.fill_between(rounds, low, high, color=style["color"], alpha=0.16, lw=0)


def _share(axes: Any, limits: tuple[float, float], columns: int, label: str) -> None:
    """Equal limits; labels at the left ones only."""
    from matplotlib.ticker import MaxNLocator

    for i, each in enumerate(axes):
        each.set_ylim(*limits)
        each.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        if i % columns:
            each.tick_params(labelleft=False)
        else:
            each.set_ylabel(label)


def _limits(
    found: Mapping[str, tuple[np.ndarray, np.ndarray]], scale: _Scale, compared: bool
) -> tuple[float, float]:
    """Of the curves: of all means after the first sixth of the rounds, with some room.

    Of arms without a reference, whose intervals are not below, of the intervals as well.
    """
    drawn = [band(scale.factor * values, scale.within) for _, values in found.values()]
    shown = [each for of in drawn for each in (of[:1] if compared else of)]
    low, high = _ends([each[len(each) // 6 :] for each in shown])
    return max(low, scale.within[0]), min(high, scale.within[1])


def _gap_limits(
    gaps: Sequence[Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]],
) -> tuple[float, float]:
    every = [drawn for panel in gaps for drawn in panel]
    means = [mean[len(mean) // 6 :] for mean, _, _ in every]
    ends = [end[len(end) // 2 :] for _, *both in every for end in both]
    return _ends([np.zeros(1), *means, *ends])


def _ends(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """The smallest and the largest, with some room beyond them."""
    every = np.concatenate(values)
    every = every[np.isfinite(every)]
    if not every.size:
        return 0.0, 1.0
    low, high = float(every.min()), float(every.max())
    room = 0.06 * (high - low) or max(0.05 * abs(high), 1e-3)
    return low - room, high + room


def _reference(panels: Sequence[Panel]) -> str:
    """How the references are called, where all of them have one name that fits beside an axis."""
    names = {next(iter(panel.arms.values())) for panel in panels}
    name = names.pop()
    return "reference" if names or len(name) > 14 else name


def _legend(figure: Any, axes: Any, seeds: int, columns: int) -> None:
    """One for all panels, with what bands are of."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: dict[str, Any] = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if any(line.get_marker() == "^" for each in axes for line in each.lines):
        handles["pruning step"] = Line2D([], [], marker="^", ls="", color="0.35", ms=5)
    count = f"{seeds} seed{'s' if seeds > 1 else ''}"
    if seeds >= LEAST:
        handles[f"95 % interval, {count}"] = Patch(color="0.5", alpha=0.25, lw=0)
    else:
        handles[f"{count}: no intervals"] = Line2D([], [], ls="")
    figure.legend(handles.values(), handles.keys(), frameon=False, loc="outside lower center",
                  ncols=min(len(handles), 2 * columns), fontsize=8)  # fmt: skip
