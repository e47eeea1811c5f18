"""Run directories as they lie there, finished or not, checked before anything is made of them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedprune.runs import Row, RunDirectoryError, flat, read_rows

CONFIG, METRICS = "config.json", "metrics.jsonl"
TRIALS = "trials"
"""folder of the runs in a sweep's"""


class RunError(Exception):
    """A folder that is no run, or is damaged; the message is one line that names it."""


class Run(NamedTuple):
    """What a run directory holds."""

    name: str
    """of its folder"""
    path: Path
    config: dict[str, Any]
    """dotted path -> value"""
    rows: dict[str, list[Row]]
    """arm -> its rows, in the order of the file"""
    summary: dict[str, Any]
    """``summary.json``, with at least "tables" and "claims"; both empty for an unfinished run"""
    finished: bool
    """whether there is a ``summary.json``"""
    record: dict[str, Any]
    """``run.json``, with at least "starts"; empty for a run of an older version"""


class Collection(NamedTuple):
    """The runs of a page."""

    title: str
    runs: list[Run]
    sweep: bool
    """whether they are the subfolders of one folder"""
    left_out: list[str]
    """subfolders of a sweep that are no runs"""


def collect(folders: Sequence[Path]) -> Collection:
    """The run that one folder holds, the runs in its subfolders, or those of several folders.

    A folder "trials" in a folder that is no run holds the runs in place of it, as in a sweep's.

    Raises:
      RunError: a folder is missing, given twice, no run and no folder of runs, or damaged.
    """
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"{folder}: there is no such folder")
    if len(folders) == 1 and not (folders[0] / CONFIG).exists():
        folder = folders[0]
        place = folder / TRIALS if (folder / TRIALS).is_dir() else folder
        inside = sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))
        paths = [p for p in inside if (p / CONFIG).exists()]
        if not paths:
            raise RunError(f"{folder}: holds neither a run (no {CONFIG}) nor folders of runs")
        left_out = [p.name for p in inside if p not in paths]
        return Collection(folder.resolve().name, [read(p) for p in paths], True, left_out)
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise RunError(f"{folder}: is given more than once, and would be compared with itself")
    runs = [read(folder) for folder in folders]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        runs = [run._replace(name=str(run.path)) for run in runs]
    return Collection(" and ".join(run.name for run in runs), runs, False, [])


def read(folder: Path) -> Run:
    """One run.

    Raises:
      RunError: no run directory, or a file of it is damaged.
    """
    if not (folder / CONFIG).exists():
        raise RunError(f"{folder}: is not a run directory (no {CONFIG})")
    config = dict(flat(_json(folder / CONFIG), "."))
    rows: dict[str, list[Row]] = {}
    for row in _rows(folder / METRICS):
        rows.setdefault(row["arm"], []).append(row)
    finished = (folder / "summary.json").exists()
    summary = _json(folder / "summary.json") if finished else {}
    summary = {"tables": {}, "claims": [], **summary}
    _require(
        _is_mapping(summary["tables"], str) and _all(summary["claims"], _is_claim),
        folder / "summary.json",
        "its tables or claims are not what fedprune writes",
    )
    record = _json(folder / "run.json") if (folder / "run.json").exists() else {}
    record = {"starts": [], **record}
    starts = _all(record["starts"], _is_start)
    _require(starts, folder / "run.json", "its starts are not what fedprune writes")
    return Run(folder.resolve().name, folder, config, rows, summary, finished, record)


def columns(run: Run) -> set[str]:
    """What the run's rows say, of any arm."""
    return {name for rows in run.rows.values() for row in rows for name in row}


def rounds(run: Run) -> int:
    """The last round of any arm, counted from 1; 0 without rows."""
    return max((row["round"] for rows in run.rows.values() for row in rows), default=0)


def duration(run: Run) -> tuple[float, int]:
    """(wall time in s of all starts that came to an end, number of those that did not)."""
    spans = [(_time(s["at"]), _time(s["ended"])) for s in run.record["starts"] if "ended" in s]
    seconds = sum((end - begin).total_seconds() for begin, end in spans)
    return seconds, len(run.record["starts"]) - len(spans)


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise RunError(f"{path}: cannot be read ({' '.join(str(e).split())})") from e
    _require(isinstance(found, dict), path, "is not a JSON object")
    return found


def _rows(path: Path) -> Iterator[Row]:
    try:
        for number, row in enumerate(read_rows(path), 1):
            _require(_is_row(row), path, f"line {number} is no row of fedprune")
            yield row
    except RunDirectoryError as e:
        raise RunError(str(e)) from e
    except OSError as e:
        raise RunError(f"{path}: cannot be read ({e})") from e


def _is_row(row: Any) -> bool:
    words, whole = ("program", "arm"), ("seed", "round")
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(name), str) for name in words)
        and all(type(row.get(name)) is int for name in whole)
        and all(_is_value(value) for name, value in row.items() if name not in words)
    )


def _is_value(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_number(v) for v in value.values())
    return _all(value, _is_number) if isinstance(value, list) else _is_number(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_claim(claim: Any) -> bool:
    words = ("id", "paper", "text", "value")
    return (
        isinstance(claim, dict)
        and all(isinstance(claim.get(name), str) for name in words)
        and claim.get("held", 0) in (True, False, None)
    )


def _is_start(start: Any) -> bool:
    try:
        times = [_time(start[name]) for name in ("at", "ended") if name == "at" or name in start]
    except (KeyError, TypeError, ValueError):
        return False
    return bool(times) and all(isinstance(start.get(n, {}), dict) for n in ("packages", "devices"))


def _is_mapping(value: Any, kind: type) -> bool:
    return isinstance(value, dict) and all(isinstance(v, kind) for v in value.values())


def _all(values: Any, right: Any) -> bool:
    return isinstance(values, list) and all(map(right, values))


def _require(condition: bool, path: Path, text: str) -> None:
    if not condition:
        raise RunError(f"{path}: {text}")
