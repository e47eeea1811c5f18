"""Unequal error protection: which layers get more symbols.

A layer i of d_i weights with energy E_i = ||w_i||^2 takes r_i d_i symbols. Starting from r_i = 1,
the layer with the largest s_i / (r_i E_i) is expanded next, by one symbol a weight (repetition) or
to twice as many (spirals). Printed, the loop keeps the expansion that crosses the budget b. Here an
expansion that does not fit blocks its layer, and the next best is tried until all are blocked: the
budget is never exceeded, and no layer's next expansion would fit.

Source: P3 Algorithm 2, with the energy divided out once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fedprune import check

GROWTHS = ("add", "double")


def expansions(
    sensitivity: ArrayLike,
    energy: ArrayLike,
    sizes: ArrayLike,
    budget: int,
    growth: str = "add",
    largest: int | None = None,
) -> np.ndarray:
    """Symbols a weight, r [L] int64, for every layer. On the host, since they decide shapes.

    Args:
      sensitivity: [L] s_i, finite and at least 0.
      energy: [L] E_i; a layer without energy has nothing to protect and comes last.
      sizes: [L] d_i, at least 1.
      budget: b, real symbols.
      growth: "add" for repetition, "double" for spirals.
      largest: symbols a weight, at most; None: no limit but the budget.

    Raises:
      ValueError: an unknown growth, values out of range, or sum d_i > b: not even once each.
    """
    if growth not in GROWTHS:
        raise ValueError(f"growth={growth!r} is not one of {GROWTHS}")
    check.whole("budget", budget, 1)
    if largest is not None:
        check.whole("largest", largest, 1)
    check.numbers("sensitivity", sensitivity, 0)
    check.numbers("energy", energy, 0)
    check.wholes("sizes", sizes, 1)
    s, e = np.asarray(sensitivity, np.float64), np.asarray(energy, np.float64)
    d = np.asarray(sizes, np.int64)
    if not (s.shape == e.shape == d.shape and s.ndim == 1):
        raise ValueError(f"shapes {s.shape}, {e.shape}, {d.shape} must be equal and of one axis")
    used = int(d.sum())
    if used > budget:
        raise ValueError(f"budget={budget} symbols for {used} weights")
    repeats = np.ones_like(d)
    score = np.divide(s, e, out=np.zeros_like(s), where=e > 0)
    blocked = np.zeros(d.shape, bool)
    while not blocked.all():
        best = int(np.argmax(np.where(blocked, -1.0, score / repeats)))
        grown = int(repeats[best]) * 2 if growth == "double" else int(repeats[best]) + 1
        extra = (grown - int(repeats[best])) * int(d[best])
        if used + extra > budget or (largest is not None and grown > largest):
            blocked[best] = True
        else:
            repeats[best], used = grown, used + extra
    return repeats
