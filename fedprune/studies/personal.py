"""How clients with models of their own fare: tables of their accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fedprune import report as rp
from fedprune.runs import Row

LAST = 3
"""Tests over which the final accuracy is averaged."""


def points(
    rows: Sequence[Row], arm: str, column: str = "test_mean", rounds: int = LAST
) -> np.ndarray:
    """A share in percent over the last evaluated rounds, [seeds]."""
    return 100 * rp.curves(rows, arm, column)[1][:, -rounds:].mean(1)


def client_table(rows: Sequence[Row], names: Sequence[str], rounds: int = LAST) -> str:
    """Accuracy of the clients over the last rounds, and how many of them have which at the end."""
    limits = (0, 10, 12, 14, 16, 18, 19, 20)  # of the histogram's 20 bins
    body = []
    for name in names:
        last = max(row["round"] for row in rows if row["arm"] == name)
        counts = np.sum(
            [r["test_histogram"] for r in rows if (r["arm"], r["round"]) == (name, last)], 0
        )
        body.append([
            name,
            *(
                str(rp.interval(points(rows, name, f"test_{column}", rounds), rp.PERCENT))
                for column in ("mean", "worst", "accuracy")
            ),
            f"{rp.interval(rp.final(rows, name, 'test_loss'), rp.NOT_NEGATIVE):.3f}",
            *(str(counts[a:b].sum()) for a, b in pairwise(limits)),
        ])  # fmt: skip
    header = ["arm", "mean of clients (%)", "worst tenth (%)", "pooled (%)", "loss"]
    return rp.table([*header, "< 50", *(f"{5 * low}-" for low in limits[1:-1])], body)
