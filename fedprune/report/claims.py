"""Claims of papers, judged by differences that are paired by seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedprune.report.statistics import ANY, LEAST, Interval, Range, interval
from fedprune.report.tables import table

FEW = {1: "1 seed", 2: "2 seeds"}
"""Seeds that are too few for an interval, and so for a verdict."""


class Verdict(NamedTuple):
    """A claim of a paper beside what was found."""

    id: str
    paper: str
    """where the paper says it"""
    text: str
    """the claim and the rule by which it is judged, written before any result was seen"""
    held: bool | None
    """None: the interval leaves it open, or there is none, with one or two seeds"""
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
    within: Range = ANY
    """in which the mean can lie: ``PERCENT`` where the values are shares and no differences"""


def judge(
    difference: Sequence[float] | np.ndarray, above: float, within: Range = ANY
) -> tuple[bool | None, Interval]:
    """Is the mean of paired differences above a threshold?

    None where the interval contains it, and where there is none, for fewer than 3 seeds.
    """
    found = interval(difference, within)
    if found.low > above:
        return True, found
    if found.high < above:
        return False, found
    return None, found


def verdict(rule: Rule, value: str = "{:.1f} {unit}") -> Verdict:
    """A rule beside what was found; ``value`` is the format of its interval and unit."""
    held, found = judge(rule.values, rule.above, rule.within)
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
    if seeds < LEAST:
        return FEW[1] if seeds == 1 else f"mean over {FEW[seeds]}"
    return f"mean ± 95 % interval over {seeds} seeds"


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    return table(
        ["claim", "verdict", "found", "paper"],
        [[v.text, word(v.held, v.seeds), v.value, v.paper] for v in verdicts],
    )
