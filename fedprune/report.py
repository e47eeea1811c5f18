"""From rows to tables, verdicts and figures: means and intervals over seeds, paired by seed."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedprune.writer import Row, write_bytes, write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVEL = 0.95
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "fedprune",  # with no date, equal runs write equal files
}


FEW = {1: "one seed", 2: "two seeds"}
"""seeds that are too few for a verdict to stand without saying so"""


class Interval(NamedTuple):
    """A mean over seeds and half the width of its 95 % Student interval (nan for one seed)."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self:.1f}"

    def __format__(self, spec: str) -> str:
        """Both numbers by one format, such as ".2f"; of one seed there is no interval."""
        spec = spec or ".1f"
        mean = format(self.mean, spec)
        return mean if math.isnan(self.half) else f"{mean} ± {self.half:{spec}}"


class Verdict(NamedTuple):
    """A claim of a paper beside what was found."""

    id: str
    paper: str
    """where the paper says it"""
    text: str
    """the claim and the rule by which it is judged, written before any result was seen"""
    held: bool | None
    """None: the interval leaves it open, or there is none, with one seed"""
    value: str
    seeds: int
    """of which the value is the mean"""


class Rule(NamedTuple):
    """A claim that holds where the mean of paired differences is above a threshold."""

    id: str
    paper: str
    text: str
    above: float
    values: np.ndarray
    """[seeds]"""
    unit: str = "points"


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean and 95 % interval of independent values (one per seed)."""
    mean, half = band(np.asarray(values, float))
    return Interval(float(mean), float(half))


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and half widths of 95 % intervals over the first axis, that of the seeds."""
    n = len(values)
    mean = values.mean(0)
    if n < 2:
        return mean, np.full_like(mean, np.nan)
    from scipy import stats  # as long to import as all else here

    t = stats.t.ppf(0.5 + LEVEL / 2, n - 1)
    return mean, t * values.std(0, ddof=1) / np.sqrt(n)


def curves(rows: Sequence[Row], arm: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """An arm's (rounds [n], values [seeds, n]) wherever the column was recorded."""
    points: dict[int, dict[int, float]] = {}
    for row in rows:
        if row["arm"] == arm and row.get(column) is not None:
            points.setdefault(row["round"], {})[row["seed"]] = row[column]
    rounds = sorted(points)
    seeds = sorted(points[rounds[-1]]) if rounds else []
    values = [[points[r].get(seed, np.nan) for r in rounds] for seed in seeds]
    return np.array(rounds), np.array(values)


def final(rows: Sequence[Row], arm: str, column: str) -> np.ndarray:
    """An arm's last recorded value of a column for every seed, [seeds]; nan if there is none."""
    rounds, values = curves(rows, arm, column)
    if not len(rounds):
        return np.full(len({row["seed"] for row in rows if row["arm"] == arm}), np.nan)
    return values[:, -1]


def spent(rows: Sequence[Row], arm: str, column: str, rounds: np.ndarray) -> np.ndarray:
    """What an arm spent of a cost up to the given rounds, [n]; mean over seeds."""
    mine = [row for row in rows if row["arm"] == arm]
    each: dict[int, float] = {}
    for row in mine:
        each[row["round"]] = each.get(row["round"], 0.0) + _cost(row, column)
    every = sorted(each)
    seeds = len({row["seed"] for row in mine})
    total = np.concatenate([[0.0], np.cumsum([each[at] for at in every]) / seeds])
    return total[np.searchsorted(every, rounds, side="right")]


def _cost(row: Row, column: str) -> float:
    """A cost of a round; infinite where the row has null, as over a link without capacity."""
    return math.inf if row[column] is None else row[column]


def late_change(rows: Sequence[Row], arm: str, column: str = "test_accuracy") -> float:
    """Mean of a column over the last tenth of the rounds minus that over the tenth before."""
    rounds, values = curves(rows, arm, column)
    mean, tenth = values.mean(0), rounds[-1] / 10
    late = rounds > rounds[-1] - tenth
    before = ~late & (rounds > rounds[-1] - 2 * tenth)
    return float(mean[late].mean() - mean[before].mean()) if before.any() else float("nan")


def judge(difference: Sequence[float] | np.ndarray, above: float) -> tuple[bool | None, Interval]:
    """Is the mean of paired differences above a threshold? None where the interval contains it."""
    found = interval(difference)
    if found.mean - found.half > above:
        return True, found
    if found.mean + found.half < above:
        return False, found
    return None, found


def verdict(rule: Rule, value: str = "{:.1f} {unit}") -> Verdict:
    """A rule beside what was found; ``value`` is the format of its interval and unit."""
    held, found = judge(rule.values, rule.above)
    shown = value.format(found, unit=rule.unit)
    return Verdict(rule.id, rule.paper, rule.text, held, shown, len(rule.values))


def word(held: bool | None, seeds: int | None) -> str:
    """A verdict in words, which name the seeds where they are few; None: their number is unknown.

    The runs of older versions do not have it.
    """
    said = {True: "held", False: "did not hold", None: "open"}[held]
    return f"{said} ({FEW[seeds]})" if seeds in FEW else said


def over_seeds(seeds: int) -> str:
    """What the numbers of a table are, for its heading."""
    return FEW[1] if seeds == 1 else f"mean ± 95 % interval over {seeds} seeds"


def arm_summary(rows: Sequence[Row], arm: str) -> dict[str, Any]:
    """What ``summary.json`` says of an arm. A cost may be infinite; "inf" in JSON."""
    accuracy = interval(final(rows, arm, "test_accuracy"))
    mine = [row for row in rows if row["arm"] == arm]
    seeds = len({row["seed"] for row in mine})
    last = max(row["round"] for row in mine)
    return {
        "name": arm,
        "seeds": seeds,
        "rounds": last,
        "accuracy_mean": accuracy.mean,
        "accuracy_ci95": accuracy.half,
        "loss_mean": interval(final(rows, arm, "test_loss")).mean,
        "kept_weights": interval(final(rows, arm, "kept")).mean,
        "channel_uses": sum(_cost(row, "channel_uses") for row in mine) / seeds,
        "side_information": sum(_cost(row, "side_information") for row in mine) / seeds,
        "seconds": sum(_cost(row, "seconds") for row in mine) / seeds,
        "joules": sum(_cost(row, "energy") for row in mine) / seeds,
        "excluded_updates": sum(row["excluded"] for row in mine),
    }


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned so that it reads as plain text too."""
    lines = [[str(cell) for cell in line] for line in (header, *body)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([text[0], rule, *text[1:]])


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    return table(
        ["claim", "verdict", "found", "paper"],
        [[v.text, word(v.held, v.seeds), v.value, v.paper] for v in verdicts],
    )


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Figures that are made inside look as ours do."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def canvas(width: float, height: float, panels: int = 1) -> tuple[Figure, Any]:
    """A figure and its panels beside one another, without any backend: it can be saved only."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, panels)


def colour(name: str, where: Any) -> Any:
    """Of a map of colours, at numbers from 0 to 1."""
    import matplotlib

    return matplotlib.colormaps[name](where)


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


def write_run(
    folder: Path,
    experiment: str,
    config: Mapping[str, Any],
    rows: Sequence[Row],
    arms: Sequence[str],
    tables: Mapping[str, str],
    verdicts: Sequence[Verdict],
    claims: str,
) -> str:
    """Writes ``summary.json`` and ``report.md``.

    Args:
      folder: the run directory.
      experiment: its name.
      config: the configuration as plain nested values.
      rows: of the run.
      arms: names of all arms.
      tables: heading -> table; the report shows them in this order.
      verdicts: of the claims; may be empty.
      claims: heading of the claims.

    Returns:
      The text of the report.
    """
    write_summary(folder, experiment, config, rows, arms, tables, verdicts)
    judged = verdict_table(verdicts) if verdicts else ""
    sections = [*tables.items(), (claims, judged)]
    text = "\n\n".join(f"{heading}\n\n{body}" for heading, body in sections if body) + "\n"
    write_text(folder / "report.md", text)
    return text


def write_summary(
    folder: Path,
    experiment: str,
    config: Mapping[str, Any],
    rows: Sequence[Row],
    arms: Sequence[str],
    tables: Mapping[str, str],
    verdicts: Sequence[Verdict],
) -> None:
    """Writes ``summary.json``; the arguments are those of ``write_run``."""
    write_json(
        folder / "summary.json",
        {
            "experiment": experiment,
            "variant": config["variant"],
            "config": config,
            "arms": [arm_summary(rows, arm) for arm in arms],
            "tables": dict(tables),
            "claims": [v._asdict() for v in verdicts],
        },
    )


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


def label_decades(axes: Any) -> None:
    """Labels on a logarithmic axis that do not overlap, whatever its range is."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()

    def name(x: float, _: int) -> str:
        return f"{x:g}" if 1e-3 <= x < 1e4 else f"{x:.0e}".replace("e+0", "e").replace("e-0", "e-")

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 60 * low else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(name))
    axes.xaxis.set_minor_formatter(NullFormatter())


def save(figure: Any, path: Path) -> None:
    """As PNG and as SVG, with nothing in them that differs between equal runs."""
    about: dict[str, Any] = {".png": {"dpi": 200}, ".svg": {"metadata": {"Date": None}}}
    for ending, options in about.items():
        drawn = io.BytesIO()
        figure.savefig(drawn, format=ending[1:], **options)
        write_bytes(path.with_suffix(ending), drawn.getvalue())
