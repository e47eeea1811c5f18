"""Runs as settings, and their arms as the members of panels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from fedprune.report.page.collection import Run
from fedprune.report.page.plots import PER_PANEL
from fedprune.report.page.text import value_text
from fedprune.runs import Row

SEED = "run.seed"
"""Runs that differ in nothing else are seeds of one setting."""


class Setting(NamedTuple):
    """Runs that differ in their seeds only."""

    label: str
    config: dict[str, Any]
    rows: dict[str, list[Row]]
    """arm -> rows"""


class Member(NamedTuple):
    """An arm of a setting, as it is drawn in a panel."""

    label: str
    style: int | None
    """position in the panel; None: the reference"""
    arm: str
    rows: Sequence[Row]
    reference: Member | None = None
    """of its panel, from which its difference is drawn"""


class Panel(NamedTuple):
    title: str
    members: list[Member]


def grouped(runs: Sequence[Run]) -> list[Setting]:
    """Runs of equal configuration put together, where their seeds are not the same ones."""
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if _without_seed(run) == _without_seed(group[0]) and not any(
                _seeds(run) & _seeds(other) for other in group
            ):
                group.append(run)
                break
        else:
            groups.append([run])
    varied = [path for path in differing([g[0] for g in groups]) if path != SEED]
    settings = []
    for group in groups:
        rows: dict[str, list[Row]] = {}
        for run in group:
            for arm, mine in run.rows.items():
                rows.setdefault(arm, []).extend(mine)
        label = ", ".join(
            f"{p.split('.')[-1]} = {value_text(group[0].config.get(p))}" for p in varied
        )
        if not 0 < len(varied) <= 3:
            label = group[0].name
        settings.append(Setting(label, group[0].config, rows))
    names = [setting.label for setting in settings]
    if len(set(names)) == len(names):
        return settings
    pairs = zip(settings, groups, strict=True)
    return [s._replace(label=f"{group[0].name}: {s.label}") for s, group in pairs]


def _without_seed(run: Run) -> dict[str, Any]:
    return {path: value for path, value in run.config.items() if path != SEED}


def _seeds(run: Run) -> set[tuple[str, int]]:
    return {(arm, row["seed"]) for arm, rows in run.rows.items() for row in rows}


def differing(runs: Sequence[Run]) -> list[str]:
    """Paths of the fields in which runs differ, in their order."""
    paths = dict.fromkeys(path for run in runs for path in run.config)
    return [p for p in paths if any(r.config.get(p) != runs[0].config.get(p) for r in runs[1:])]


def panels_of(settings: Sequence[Setting]) -> list[Panel]:
    """A panel for each family of arms; of several settings, one for each arm that they share."""
    arms = list(dict.fromkeys(arm for setting in settings for arm in setting.rows))
    if len(settings) == 1:
        return _families(settings[0], "")
    if not any(sum(arm in s.rows for s in settings) > 1 for arm in arms):
        return [panel for s in settings for panel in _families(s, f"{s.label}: ")]
    panels = []
    for arm in arms:
        holders = [s for s in settings if arm in s.rows]
        for some in chunks(holders):
            members = [Member(s.label, i, arm, s.rows[arm]) for i, s in enumerate(some)]
            panels.append(Panel(arm, members))
    return panels


def chunks(values: Iterable[Any]) -> Iterator[list[Any]]:
    """As many as a panel takes at a time."""
    left = list(values)
    for first in range(0, len(left), PER_PANEL):
        yield left[first : first + PER_PANEL]


def _families(setting: Setting, prefix: str) -> list[Panel]:
    """Panels of one setting, each with the first arm of its own place as reference.

    A place is what an arm's name says beside the method: "full" and "-5dB" in
    "full/one-shot-90@-5dB". Arms of one place whose names differ in numbers only have a panel.
    """
    places: dict[str, list[str]] = {}
    for arm in setting.rows:
        places.setdefault(_place(arm), []).append(arm)
    if all(len(arms) == 1 for arms in places.values()):
        places = {"": list(setting.rows)} if setting.rows else {}
    return [
        panel for place, arms in places.items() for panel in _of_place(setting, prefix, place, arms)
    ]


def _place(arm: str) -> str:
    found = re.fullmatch(r"(?:([\w.+ -]+)/)?[^@]*(?:@([\w.+ -]+))?", arm)
    return ", ".join(filter(None, found.groups())) if found else ""


def _of_place(setting: Setting, prefix: str, place: str, arms: Sequence[str]) -> list[Panel]:
    first, *others = arms
    if not others:
        return [Panel(f"{prefix}{place}", [Member(first, 0, first, setting.rows[first])])]
    groups: dict[str, list[str]] = {}
    for arm in others:
        groups.setdefault(re.sub(r"[\d.]+", "", arm), []).append(arm)
    families = [family for family in groups.values() if len(family) > 1]
    families += [[arm for family in groups.values() if len(family) == 1 for arm in family]]
    if len(others) <= PER_PANEL:
        families = [others]
    reference = Member(first, None, first, setting.rows[first])
    panels = []
    for family in families:
        for some in chunks(family):
            title = prefix + (_common(some) if len(families) > 1 else place)
            members = [
                Member(arm, i, arm, setting.rows[arm], reference) for i, arm in enumerate(some)
            ]
            panels.append(Panel(title, [reference, *members]))
    return panels


def _common(names: Sequence[str]) -> str:
    """What names begin with, without a number or sign at its end."""
    first, last = min(names), max(names)
    same = next((i for i, c in enumerate(first) if last[i : i + 1] != c), len(first))
    return first[:same].rstrip(" -_/@,.0123456789")
