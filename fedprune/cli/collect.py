"""From the trials of a sweep to one table and its figure."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedprune import config as cfg
from fedprune import report
from fedprune.cli.grid import SEED, Trial, label, written
from fedprune.cli.trials import Sweep, state
from fedprune.runs import MetricsFile, Row, flat, write_bytes, write_text


def collect(sweep: Sweep, config: cfg.Config) -> str:
    """Writes ``results.csv``, ``results.parquet`` and ``figures/`` of the trials that are finished.

    The table has one line for each trial, arm, seed and round: the fields that are swept, each in a
    column, and every number of ``metrics.jsonl``. Columns of tests are empty in rounds without one.

    Args:
      sweep: whose trials.
      config: its common configuration, for the units of the fields.

    Returns:
      Final accuracies as a table, and what was written.
    """
    finished = [t for t in sweep.trials() if state(sweep, t).word == "finished"]
    rows = [row for trial in finished for row in _tidy(sweep, trial)]
    if not rows:
        return "No trial is finished yet, so there is nothing to collect."
    written_to = _write_table(sweep, rows)
    figures = _figures(sweep, config, rows)
    combinations = dict.fromkeys((row["combination"], row["arm"]) for row in rows)
    body = []
    for combination, arm in combinations:
        final = _final(rows, combination, arm)
        found = report.interval(100 * final, report.PERCENT)
        body.append([combination, arm, str(len(final)), str(found)])
    header = ["trials", "arm", "seeds", "final test accuracy (%)"]
    of = f"{len(finished)} of {len(sweep.trials())} trials"
    return "\n".join([report.table(header, body), "", f"{of} in {written_to}; {figures}"])


def _tidy(sweep: Sweep, trial: Trial) -> list[Row]:
    """A trial's rows with its values; "combination" has those beside the seed, in words."""
    others = {path: value for path, value in trial.values.items() if path != SEED}
    values = {k: written(v) if isinstance(v, tuple) else v for k, v in others.items()}
    about = {"trial": trial.name, "combination": label(others) or "all", **values}
    return [
        about | {k: v for k, v in flat(row) if k != "program" and not isinstance(v, list)}
        for row in MetricsFile(sweep.run_directory(trial)).rows()
    ]


def _write_table(sweep: Sweep, rows: Sequence[Row]) -> str:
    """Returns the names of the files, and why one was not written."""
    columns = [c for c in dict.fromkeys(c for row in rows for c in row) if c != "combination"]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, extrasaction="ignore")
    table.writerow({column: _cell(column) for column in columns})
    table.writerows({column: _cell(value) for column, value in row.items()} for row in rows)
    write_text(sweep.folder / "results.csv", text.getvalue())
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return f"{sweep.folder}/results.csv (no results.parquet: pip install pyarrow)"
    arrays: dict[str, Any] = {c: [row.get(c) for row in rows] for c in columns}
    packed = io.BytesIO()
    parquet.write_table(pyarrow.table(arrays), packed)
    write_bytes(sweep.folder / "results.parquet", packed.getvalue())
    return f"{sweep.folder}/results.csv and results.parquet"


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula, with an apostrophe before it."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value


def _final(rows: Sequence[Row], combination: str, arm: str) -> np.ndarray:
    """Final test accuracy of every seed, [seeds]."""
    return report.final(
        [row for row in rows if row["combination"] == combination], arm, "test_accuracy"
    )


def _figures(sweep: Sweep, config: cfg.Config, rows: Sequence[Row]) -> str:
    """A figure for each arm; returns their names.

    Final accuracy against the numeric field with the most values, a line for each combination of
    the others; accuracy against the round where no field is numeric.
    """
    place = sweep.folder / "figures"
    place.mkdir(exist_ok=True)
    fields = {path: field for path, field, _ in cfg.fields(config)}
    numeric = [
        path
        for path, values in sweep.grid.items()
        if path != SEED and len(values) > 1 and isinstance(values[0], int | float)
    ]
    axis = max(numeric, key=lambda path: len(sweep.grid[path]), default=None)
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    names = []
    for arm in arms:
        ending = "" if len(arms) == 1 else "_" + re.sub(r"[^\w.-]", "_", arm)
        path = place / f"accuracy{ending}"
        mine = [row for row in rows if row["arm"] == arm]
        if axis is None:
            _against_round(path, mine, "" if len(arms) == 1 else arm)
        else:
            unit = fields[axis].metadata["unit"]
            others = [p for p in sweep.grid if p not in (SEED, axis)]
            _against_field(path, mine, axis, others, f"{axis} ({unit})" if unit else axis)
        names.append(f"{path}.png")
    return ", ".join(names)


def _against_field(
    path: Path, rows: Sequence[Row], axis: str, others: Sequence[str], xlabel: str
) -> None:
    x = sorted({row[axis] for row in rows})
    lines: dict[str, dict[float, list[float]]] = {}
    for row in _last_tests(rows):
        name = label({other: row[other] for other in others}) or "accuracy"
        points = lines.setdefault(name, {})
        points.setdefault(row[axis], []).append(100 * row["test_accuracy"])
    values = {
        name: [np.array(points.get(at, [np.nan])) for at in x] for name, points in lines.items()
    }
    report.line_figure(path, x, values, xlabel, "final test accuracy (%)", report.PERCENT)


def _against_round(path: Path, rows: Sequence[Row], title: str) -> None:
    """Of the seeds that all combinations have."""
    seeds: dict[str, set[int]] = {}
    for row in rows:
        seeds.setdefault(row["combination"], set()).add(row["seed"])
    common = set.intersection(*seeds.values())
    shown = [row | {"arm": row["combination"]} for row in rows if row["seed"] in common]
    report.accuracy_figure(path, shown, report.beside({name: name for name in seeds}), title)


def _last_tests(rows: Sequence[Row]) -> list[Row]:
    """The last row with a test of each trial and seed."""
    last = {(r["trial"], r["seed"]): r for r in rows if r.get("test_accuracy") is not None}
    return list(last.values())
