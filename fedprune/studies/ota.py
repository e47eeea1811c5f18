"""P0's figures and claims, and the rules by which runs of ``ota_pruning`` judge them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from fedprune import report as rp
from fedprune.runs import Row

# P0 section IV, final accuracies in percent: as the text gives them, or as they follow from its
# gains over one-shot (82, 81, 72). The 52 is printed for 50P, which must be a slip for 90P.
PAPER = {
    ("full", "unpruned", 0.0): "90",
    ("full", "one-shot", 0.3): "86",
    ("full", "one-shot", 0.5): "81",
    ("full", "one-shot", 0.7): "74",
    ("full", "one-shot", 0.9): "59",
    ("full", "iterative", 0.3): "> 90",
    ("full", "iterative", 0.5): "about 90",
    ("full", "iterative", 0.7): "85",
    ("full", "iterative", 0.9): "82",
    ("half", "unpruned", 0.0): "80",
    ("half", "one-shot", 0.3): "73",
    ("half", "one-shot", 0.5): "70",
    ("half", "one-shot", 0.9): "52",
    ("half", "iterative", 0.3): "81",
    ("half", "iterative", 0.5): "78",
    ("half", "iterative", 0.9): "72",
}
OWN = "-own"
"""ends the name of a method whose masks every client computes by itself"""
PARTICIPATION = {"full": "full participation", "half": "half participation"}


class Condition(NamedTuple):
    """What distinguishes one arm."""

    who: str
    how: str
    ratio: float
    snr_db: float | None = None

    def name(self) -> str:
        """For example "full/iterative-90" or "full/unpruned@-5dB"."""
        ratio = f"-{100 * self.ratio:g}" if self.ratio else ""
        return f"{self.who}/{self.how}{ratio}" + (
            "" if self.snr_db is None else f"@{self.snr_db:g}dB"
        )


def stated(condition: Condition) -> str:
    """What P0 prints for it. P0's masks are the clients' own; the server's stand beside the same
    numbers."""
    key = (condition.who, condition.how.removesuffix(OWN), condition.ratio)
    return PAPER.get(key, "–")


def accuracy(rows: Sequence[Row], condition: Condition) -> np.ndarray:
    """Final accuracy of every seed in percent."""
    return 100 * rp.final(rows, condition.name(), "test_accuracy")


class Rule(NamedTuple):
    """A claim of P0: a weighted sum of what was measured on some arms exceeds a threshold."""

    id: str
    paper: str
    text: str
    above: float
    terms: dict[Condition, float]
    measure: Callable[[Sequence[Row], Condition], np.ndarray] = accuracy


def claims(run: Collection[Condition], rows: Sequence[Row]) -> list[rp.Verdict]:
    """P0's claims that concern arms of this run, each with its rule."""
    verdicts = []
    for rule in rules():
        if set(run).issuperset(rule.terms):
            parts = [f * rule.measure(rows, c) for c, f in rule.terms.items()]
            unit = "points" if rule.measure is not _rounds_needed else "rounds"
            values = np.sum(parts, axis=0)
            judged = rp.Rule(rule.id, f"P0 {rule.paper}", rule.text, rule.above, values, unit)
            verdicts.append(rp.verdict(judged))
    return verdicts


def rules() -> list[Rule]:
    """All rules: for the server's masks and both times of one-shot pruning, and for own masks."""
    dense = {who: Condition(who, "unpruned", 0.0) for who in PARTICIPATION}
    full, half = dense["full"], dense["half"]
    half_below = Rule(
        "half-below-full", "IV-A.2: 90 against 80", "unpruned: half participation below full",
        0.0, _minus(full, half),
    )  # fmt: skip
    server, *rest = _of_iterative("iterative", full)
    found = [server, *rest[:2], half_below, *rest[2:]]
    for how in ("one-shot", "one-shot-first"):
        found += _against("iterative", how, full)
    found += _of_iterative("iterative" + OWN, full)
    return found + _against("iterative" + OWN, "one-shot" + OWN, full)


def _minus(a: Condition, b: Condition) -> dict[Condition, float]:
    return {a: 1.0, b: -1.0}


def _less(a: dict[Condition, float], b: dict[Condition, float]) -> dict[Condition, float]:
    return a | {c: -f for c, f in b.items()}


def _of_iterative(name: str, full: Condition) -> list[Rule]:
    """Of an iterative method by itself, and beside the unpruned network in full participation."""
    imp = {r: Condition("full", name, r) for r in (0.3, 0.5, 0.9)}
    return [
        Rule(f"{name}-30-at-least-unpruned", "IV-B.1: 30P surpasses unpruned",
             f"full: {name} 30 % at least unpruned (within 1 point)",
             -1.0, _minus(imp[0.3], full)),
        Rule(f"{name}-30-surpasses-unpruned", "IV-B.1: 30P surpasses unpruned",
             f"full: {name} 30 % above unpruned", 0.0, _minus(imp[0.3], full)),
        Rule(f"{name}-50-par", "IV-B.1: 50P almost at par",
             f"full: {name} 50 % about unpruned (within 1 point)",
             -1.0, _minus(imp[0.5], full)),
        Rule(f"half-below-full-90{name.removeprefix('iterative')}", "IV-B.2: 82 against 72",
             f"{name} 90 %: half participation below full",
             0.0, _minus(imp[0.9], Condition("half", name, 0.9))),
    ]  # fmt: skip


def _against(name: str, how: str, full: Condition) -> list[Rule]:
    """Of an iterative method beside a one-shot one."""
    keys = [(w, r) for w in PARTICIPATION for r in (0.3, 0.5, 0.7, 0.9)]
    imp = {(w, r): Condition(w, name, r) for w, r in keys}
    osp = {(w, r): Condition(w, how, r) for w, r in keys}
    gain = {key: _minus(imp[key], osp[key]) for key in keys}
    return [
        Rule(f"{how}-90-loses", "IV-A.1: 90 to 59",
             f"full: {how} at 90 % loses more than 5 points against unpruned",
             5.0, _minus(full, osp["full", 0.9])),
        Rule(f"iterative-above-{how}-70", "IV-B.1: 74 to 85",
             f"full: {name} above {how} at 70 %", 0.0, gain["full", 0.7]),
        Rule(f"iterative-above-{how}-90", "IV-B.1: gain of 23",
             f"full: {name} above {how} at 90 %", 0.0, gain["full", 0.9]),
        Rule(f"{how}-gap-widens", "IV-B: 70P +11, 90P +23",
             f"full: gain of {name} over {how} larger at 90 % than at 30 %",
             0.0, _less(gain["full", 0.9], gain["full", 0.3])),
        Rule(f"half-iterative-above-{how}-90", "IV-B.2: gain of 20",
             f"half: {name} above {how} at 90 %", 0.0, gain["half", 0.9]),
        Rule(f"{how}-gain-larger-in-full", "VI: particularly with full participation",
             f"gain over {how} at 90 % larger in full than in half participation",
             0.0, _less(gain["full", 0.9], gain["half", 0.9])),
        Rule(f"half-{how}-90-slower", "IV-A.2: notably slow convergence",
             f"half: {how} needs more rounds at 90 % than at 70 % to come within 2 points of"
             " its end", 0.0, _minus(osp["half", 0.9], osp["half", 0.7]), _rounds_needed),
        Rule(f"half-iterative-steadier-than-{how}-90", "IV-B.2: more stable curves at 70P, 90P",
             f"half: at 90 %, {name} fluctuates less than {how} after the last pruning step",
             0.0, _minus(osp["half", 0.9], imp["half", 0.9]), _fluctuation),
    ]  # fmt: skip


def _rounds_needed(rows: Sequence[Row], condition: Condition) -> np.ndarray:
    """First round of every seed from which accuracy stays within 2 points of its final value."""
    rounds, values = rp.curves(rows, condition.name(), "test_accuracy")
    far = np.abs(values - values[:, -1:]) > 0.02
    last = np.where(far.any(1), values.shape[1] - 1 - far[:, ::-1].argmax(1), -1)
    return rounds[np.minimum(last + 1, len(rounds) - 1)].astype(float)


def _fluctuation(rows: Sequence[Row], condition: Condition) -> np.ndarray:
    """Standard deviation in points, for every seed, of accuracy over the last third of the run."""
    _, values = rp.curves(rows, condition.name(), "test_accuracy")
    return 100 * values[:, -(values.shape[1] // 3) :].std(1, ddof=1)
