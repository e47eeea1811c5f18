"""Of rows the curves, costs and final values of an arm; means and intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedprune.runs import Row

LEVEL = 0.95


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
        "energy": sum(_cost(row, "energy") for row in mine) / seeds,
        "excluded_updates": sum(row["excluded"] for row in mine),
    }
