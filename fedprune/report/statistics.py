"""Of rows the curves, costs and final values of an arm; means and intervals over seeds.

Differences between arms are paired by seed: what seeds have in common cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedprune.runs import Row

LEVEL = 0.95
LEAST = 3
"""Seeds of which an interval is made. Of two it is 12.7 standard errors wide to either side, which
says nothing of the mean, and of one there is none."""
Range = tuple[float, float]
"""The smallest and the largest value that a mean can have."""
ANY: Range = (-math.inf, math.inf)
PERCENT: Range = (0.0, 100.0)
NOT_NEGATIVE: Range = (0.0, math.inf)


class Interval(NamedTuple):
    """A mean over seeds and the ends of its 95 % Student interval; nan for fewer than 3 seeds.

    As text it is "80.1 ± 1.2", or "97.0 (91.3 to 100.0)" where an end was cut, and the mean alone
    where there are no ends. A mean that is nan is "–".
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self:.1f}"

    def __format__(self, spec: str) -> str:
        """All numbers by one format, such as ".2f"."""
        spec = f"z{spec or '.1f'}"  # no -0.0
        if math.isnan(self.mean):
            return "–"
        mean = format(self.mean, spec)
        if math.isnan(self.low):
            return mean
        above, below = self.high - self.mean, self.mean - self.low
        if math.isclose(above, below, rel_tol=1e-6, abs_tol=1e-12):
            return f"{mean} ± {above:{spec}}"
        return f"{mean} ({self.low:{spec}} to {self.high:{spec}})"


def interval(values: Sequence[float] | np.ndarray, within: Range = ANY) -> Interval:
    """Mean and 95 % interval of independent values (one per seed); ``within`` as in ``band``."""
    return Interval(*map(float, band(np.asarray(values, float), within)))


def band(values: np.ndarray, within: Range = ANY) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, lower and upper ends of 95 % intervals over the first axis, that of the seeds.

    Args:
      values: [seeds, ...].
      within: the range in which a mean can lie, such as ``PERCENT`` for accuracies. Intervals are
        cut to it. They hold the true mean as often as before, since that is never in what is cut.

    Returns:
      Three arrays [...]; the ends are nan for fewer than 3 seeds.
    """
    n = len(values)
    mean = values.mean(0)
    if n < LEAST:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    from scipy import stats  # as long to import as all else here

    half = stats.t.ppf(0.5 + LEVEL / 2, n - 1) * values.std(0, ddof=1) / np.sqrt(n)
    return mean, np.maximum(mean - half, within[0]), np.minimum(mean + half, within[1])


def curves(rows: Sequence[Row], arm: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """An arm's (rounds [n], values [seeds, n]) wherever the column was recorded."""
    return _aligned(_points(rows, arm, column))


def differences(
    rows: Sequence[Row], arm: str, reference: str, column: str
) -> tuple[np.ndarray, np.ndarray]:
    """(rounds [n], values [seeds, n]) of an arm minus those of another one, seed by seed.

    Only the seeds and rounds that both of them have are in it; [0] and [0] where there are none.
    """
    mine, other = (_points(rows, name, column) for name in (arm, reference))
    both = {
        r: {s: v - other[r][s] for s, v in of.items() if s in other[r]}
        for r, of in mine.items()
        if r in other
    }
    return _aligned({r: of for r, of in both.items() if of})


Points = dict[int, dict[int, float]]
"""round -> seed -> value"""


def _points(rows: Sequence[Row], arm: str, column: str) -> Points:
    points: Points = {}
    for row in rows:
        if row["arm"] == arm and row.get(column) is not None:
            points.setdefault(row["round"], {})[row["seed"]] = row[column]
    return points


def _aligned(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """Of the seeds that the last round has; nan where one of them lacks an earlier round."""
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


def late_change(rows: Sequence[Row], arm: str, column: str = "test_accuracy") -> float | None:
    """Mean of a column over the last tenth of the rounds minus that over the tenth before.

    None where no test falls into the tenth before.
    """
    rounds, values = curves(rows, arm, column)
    if not len(rounds):
        return None
    mean, tenth = values.mean(0), rounds[-1] / 10
    late = rounds > rounds[-1] - tenth
    before = ~late & (rounds > rounds[-1] - 2 * tenth)
    return float(mean[late].mean() - mean[before].mean()) if before.any() else None


def arm_summary(rows: Sequence[Row], arm: str) -> dict[str, Any]:
    """What ``summary.json`` says of an arm. A cost may be infinite; "inf" in JSON.

    "accuracy_ci95" is half the width of the interval before it is cut to what accuracies can be;
    None for fewer than 3 seeds. A mean is None where there is no number to take it of.
    """
    accuracy = interval(final(rows, arm, "test_accuracy"))
    mine = [row for row in rows if row["arm"] == arm]
    seeds = len({row["seed"] for row in mine})
    last = max(row["round"] for row in mine)
    return {
        "name": arm,
        "seeds": seeds,
        "rounds": last,
        "accuracy_mean": _known(accuracy.mean),
        "accuracy_ci95": _known(accuracy.high - accuracy.mean),
        "loss_mean": _known(interval(final(rows, arm, "test_loss")).mean),
        "kept_weights": _known(interval(final(rows, arm, "kept")).mean),
        "channel_uses": sum(_cost(row, "channel_uses") for row in mine) / seeds,
        "side_information": sum(_cost(row, "side_information") for row in mine) / seeds,
        "seconds": sum(_cost(row, "seconds") for row in mine) / seeds,
        "energy": sum(_cost(row, "energy") for row in mine) / seeds,
        "excluded_updates": sum(row["excluded"] for row in mine),
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
