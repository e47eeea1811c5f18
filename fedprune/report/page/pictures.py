"""The figures of a page: rows of small panels with equal axes."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedprune.report import statistics
from fedprune.report.page import plots
from fedprune.report.page.plots import Axes, Line
from fedprune.report.page.settings import SEED, Member, Panel, Setting, chunks
from fedprune.report.page.text import is_number, value_text

MOST = 24
"""Panels of a figure that are drawn."""
ACCURACY = "test_accuracy"
COSTS = {
    "seconds": "simulated seconds",
    "energy": "joules",
    "channel_uses": "channel uses",
}
BANDS = "Lines are means over the seeds, bands 95 % Student intervals; no band: one or two seeds."


class Picture(NamedTuple):
    """Panels with one heading and caption; each panel is (address of its image, its text)."""

    heading: str
    caption: str
    panels: list[tuple[str, str]]


def against_round(panels: Sequence[Panel]) -> list[Picture]:
    reference = any(m.style is None for panel in panels for m in panel.members)
    dashed = (
        " The black dashed line is the reference, the first arm of its setting; beside it no other"
        " arm has its band."
    ) * reference
    clipped = (
        " The axis shows all means after the first sixth of the rounds; an interval that is wider"
        " is cut off at its edge."
    )
    pictures = []
    for column, heading, label in (
        (ACCURACY, "Accuracy against round", "test accuracy (%)"),
        ("test_worst", "The worst tenth of the clients against round", "accuracy (%)"),
    ):
        axes = Axes("round", label, ylim=_limits(panels, column), one_band=True)

        def line(member: Member, column: str = column) -> Line | None:
            return _curve(member, column, 100.0, statistics.PERCENT)

        drawn = _drawn(panels, line, axes)
        pictures += _picture(heading, BANDS + dashed + clipped, drawn)
        if column == ACCURACY:
            pictures += _against_reference(panels)
    return pictures


def _against_reference(panels: Sequence[Panel]) -> list[Picture]:
    """What arms have above the reference of their panel, seed by seed."""

    def line(member: Member) -> Line | None:
        other = member.reference
        if other is None:
            return None
        rows = [*member.rows, *other.rows]
        x, values = statistics.differences(rows, member.arm, other.arm, ACCURACY)
        if not len(x):
            return None
        return Line(member.label, member.style, x, *statistics.band(100 * values))

    found = [li for panel in panels for m in panel.members if (li := line(m)) is not None]
    late = [li.y[len(li.y) // 6 :] for li in found if li.y is not None]
    late += [end[len(end) // 2 :] for li in found for end in (li.low, li.high)]
    axes = Axes("round", "points above the reference", ylim=_ends(late), zero=True)
    caption = (
        "Differences from the reference of each panel, paired by seed: what seeds have in common"
        f" cancels. {BANDS}"
    )
    return _picture("Accuracy beside the reference", caption, _drawn(panels, line, axes))


def _ends(values: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """The smallest and the largest number, and zero, with some room."""
    every = np.concatenate([np.zeros(1), *values])
    every = every[np.isfinite(every)]
    room = 0.06 * np.ptp(every) or 1.0
    return float(every.min() - room), float(every.max() + room)


def _limits(panels: Sequence[Panel], column: str) -> tuple[float, float] | None:
    """Of percent, at tens: all means after the first sixth."""
    found = [
        _curve(m, column, 100.0, statistics.PERCENT) for panel in panels for m in panel.members
    ]
    late = [line.y[len(line.y) // 6 :] for line in found if line is not None and line.y is not None]
    if not late:
        return None
    ends = np.concatenate(late)
    low, high = 10 * np.floor(np.nanmin(ends) / 10), 10 * np.floor(np.nanmax(ends) / 10) + 10
    return max(0.0, low), min(100.0, high)


def against_costs(panels: Sequence[Panel]) -> list[Picture]:
    pictures = []
    for column, name in COSTS.items():

        def line(member: Member, column: str = column) -> Line | None:
            found = _curve(member, ACCURACY, 100.0, statistics.PERCENT)
            if found is None or not any(row.get(column) for row in member.rows):
                return None
            total = statistics.spent(member.rows, member.arm, column, found.x)
            known = np.isfinite(total)  # what costs without end has no place on the axis
            y = None if found.y is None else found.y[known]
            return found._replace(x=total[known], y=y, low=found.low[known], high=found.high[known])

        limits = _limits(panels, ACCURACY)
        axes = Axes(f"{name} so far", "test accuracy (%)", True, ylim=limits, one_band=True)
        caption = f"The same accuracies against what all clients together had spent. {BANDS}"
        if column == "seconds":
            caption = f"The same accuracies against the time on the simulated clock. {BANDS}"
        pictures += _picture(f"Accuracy against {name}", caption, _drawn(panels, line, axes))
    return pictures


def swept(settings: Sequence[Setting]) -> list[Picture]:
    """The final accuracy against each number in which three settings or more differ."""
    paths = dict.fromkeys(p for s in settings for p in s.config if p != SEED)
    varied = [p for p in paths if len({value_text(s.config.get(p)) for s in settings}) > 1]
    pictures = []
    for path in varied:
        numbers = {s.config.get(path) for s in settings if is_number(s.config.get(path))}
        if len(numbers) < 3:
            continue
        others = [p for p in varied if p != path]
        # title -> label -> number -> final accuracies of the seeds
        lines: dict[str, dict[str, dict[float, np.ndarray]]] = {}
        for s in settings:
            rest = ", ".join(f"{p.split('.')[-1]} = {value_text(s.config.get(p))}" for p in others)
            for arm, rows in s.rows.items():
                found = statistics.curves(rows, arm, ACCURACY)[1]
                if found.size and is_number(s.config.get(path)):
                    title, label = (arm, rest) if others else ("", arm)
                    points = lines.setdefault(title, {}).setdefault(label, {})
                    points[s.config[path]] = 100 * found[:, -1]
        axes = Axes(path, "final test accuracy (%)", points=True)
        made = []
        for title, of in lines.items():
            for some in chunks(of.items()):
                drawn = [_points(label, i, points) for i, (label, points) in enumerate(some)]
                text = f"{title} final accuracy against {path}: {', '.join(dict(some))}"
                made.append((title, text, plots.lines(title, drawn, axes)))
        caption = (
            "After the last round of each arm: means, 95 % Student intervals of 3 seeds or more."
        )
        pictures += _picture(f"Final accuracy against {path}", caption, made)
    return pictures


def _points(label: str, style: int, points: dict[float, np.ndarray]) -> Line:
    x = sorted(points)
    drawn = np.array([statistics.interval(points[v], statistics.PERCENT) for v in x]).T
    return Line(label, style, np.array(x), *drawn)


def sparsity(settings: Sequence[Setting]) -> list[Picture]:
    """A panel for each arm in which anything is pruned."""

    def made() -> Iterator[tuple[str, str, str]]:
        for setting in settings:
            for arm, rows in setting.rows.items():
                of = [row for row in rows if row.get("density")]
                layers = list(of[0]["density"]) if of else []
                flat = [{**row, **row["density"]} for row in of]
                curves = [statistics.curves(flat, arm, layer) for layer in layers]
                if not curves or min(len(x) for x, _ in curves) == 0:
                    continue
                percent = 100 * (1 - np.stack([values.mean(0) for _, values in curves]))
                if percent.max() < 0.05:
                    continue
                title = arm if len(settings) == 1 else f"{setting.label}: {arm}"
                names = [layer.removesuffix("/kernel") for layer in layers]
                last = zip(names, percent[:, -1], strict=True)
                text = "; ".join(f"{name} {value:.1f} %" for name, value in last)
                svg = plots.heat(title, names, curves[0][0], percent)
                yield title, f"{title}: sparsity after the last round: {text}", svg

    caption = (
        "Share of each layer's kernel that is pruned, mean over the seeds: light is 0 %, dark is"
        " 100 %, and the number is that of the last round. Where clients have masks of their own it"
        " is the mean over the clients that counted."
    )
    return _picture("Sparsity of each layer over the rounds", caption, made())


def allocation(panels: Sequence[Panel]) -> list[Picture]:
    def has(member: Member, column: str) -> bool:
        return any(row.get(column) for row in member.rows)

    def ends(member: Member, name: str) -> Line | None:
        flat = [{**row, **row["allocation"]} for row in member.rows if row.get("allocation")]
        low, high = (
            statistics.curves(flat, member.arm, f"{name}_{end}") for end in ("low", "high")
        )
        if not len(low[0]):
            return None
        bounds = (100 * values.mean(0) for _, values in (low, high))
        return Line(member.label, member.style, low[0], None, *bounds)

    def ratios(member: Member) -> Line | None:
        told = has(member, "ratio")
        mean = _curve(member, "ratio", 100.0, statistics.PERCENT) if told else None
        if mean is None or mean.y is None:
            return None
        between = ends(member, "ratio")
        low, high = (mean.y, mean.y) if between is None else (between.low, between.high)
        return mean._replace(low=low, high=high)

    told = [m for panel in panels for m in panel.members if has(m, "allocation")]
    between = " Bands reach from the smallest to the largest ratio of a client." if told else ""
    caption = f"Share of its prunable weights that a client was told to prune, means.{between}"
    pictures = _picture(
        "Allocated pruning ratios", caption, _drawn(panels, ratios, Axes("round", "ratio (%)"))
    )
    pictures += _picture(
        "Allocated bandwidth",
        "The smallest and the largest share of the band that a client got, means over the seeds.",
        _drawn(panels, lambda m: ends(m, "share"), Axes("round", "share of the band (%)")),
    )
    pictures += _picture(
        "Latency of a round",
        f"Time on the simulated clock that a round took. {BANDS}",
        _drawn(
            panels,
            lambda m: (
                _curve(m, "seconds", 1e3, statistics.NOT_NEGATIVE) if has(m, "seconds") else None
            ),
            Axes("round", "ms a round"),
        ),
    )
    return pictures


def _picture(
    heading: str, caption: str, drawn: Sequence[tuple[str, str, str]] | Iterator[Any]
) -> list[Picture]:
    """A picture of (title, what its image shows, SVG), or none if there is no panel."""
    made = list(drawn)
    if not made:
        return []
    if len(made) > MOST:
        caption += f" {len(made) - MOST} more panels are not drawn; the tables have their numbers."
    return [Picture(heading, caption, [(address(svg), text) for _, text, svg in made[:MOST]])]


def address(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _drawn(
    panels: Sequence[Panel], line: Callable[[Member], Line | None], axes: Axes
) -> Iterator[tuple[str, str, str]]:
    """The panels in which there is anything, all with the limits that hold all lines."""
    every = [(panel, [found for m in panel.members if (found := line(m))]) for panel in panels]
    # A reference alone would be a panel about nothing.
    every = [(p, ls) for p, ls in every if any(li.style is not None for li in ls)][: MOST + 1]
    if not every:
        return
    x = np.concatenate([li.x for _, ls in every for li in ls])
    above = x[x > 0]
    if axes.xlog and (not above.size or x.max() < 12 * above.min()):
        axes = axes._replace(xlog=False)
    if axes.xlog:
        axes = axes._replace(xlim=(above.min() / 1.1, x.max() * 1.1))
    elif x.max() > x.min():
        axes = axes._replace(xlim=(x.min(), x.max()))
    if axes.ylim is None:
        edges = [
            v for _, ls in every for li in ls for v in (li.low, li.high, li.y) if v is not None
        ]
        low, high = np.nanmin(np.concatenate(edges)), np.nanmax(np.concatenate(edges))
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes = axes._replace(ylim=(low - margin, high + margin))
    for panel, ls in every:
        text = f"{axes.ylabel} against {axes.xlabel}: " + ", ".join(li.label for li in ls)
        yield panel.title, text, plots.lines(panel.title, ls, axes)


def _curve(member: Member, column: str, scale: float, within: statistics.Range) -> Line | None:
    """A column against the round, mean and 95 % interval over seeds."""
    x, values = statistics.curves(member.rows, member.arm, column)
    if not len(x):
        return None
    return Line(member.label, member.style, x, *statistics.band(scale * values, within))
