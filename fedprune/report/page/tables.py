"""The tables of a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedprune import config
from fedprune.report import statistics
from fedprune.report.page.collection import Run
from fedprune.report.page.pictures import ACCURACY
from fedprune.report.page.settings import Setting, differing
from fedprune.report.page.text import interval, number, value_text
from fedprune.runs import Row, flat


class Table(NamedTuple):
    header: Sequence[str]
    body: Sequence[Sequence[str]]
    words: int = 1
    """so many columns from the left hold words, the others numbers"""


def results(settings: Sequence[Setting]) -> Table:
    shown = {
        "accuracy (%)": (ACCURACY, 100.0),
        "mean of clients (%)": ("test_mean", 100.0),
        "worst tenth (%)": ("test_worst", 100.0),
        "test loss": ("test_loss", 1.0),
        "weights kept": ("kept", 1.0),
    }
    there = {name for s in settings for rows in s.rows.values() for row in rows for name in row}
    shown = {name: of for name, of in shown.items() if of[0] in there}
    body = []
    for setting, arm, rows in _arms(settings):
        cells = []
        for name, (column, scale) in shown.items():
            found = statistics.curves(rows, arm, column)[1]
            digits = 1 if scale == 100 else 3 if name == "test loss" else 0
            within = statistics.PERCENT if scale == 100 else statistics.NOT_NEGATIVE
            values = scale * found[:, -1] if found.size else found
            whole = name == "weights kept" and values.size and np.ptp(values) == 0
            values = values[:1] if whole else values
            cells.append(interval(values, digits, within) if values.size else "–")
        seeds = len({row["seed"] for row in rows})
        last = max(row["round"] for row in rows)
        excluded = sum(row.get("excluded") or 0 for row in rows)
        body.append([*_names(settings, setting, arm), str(seeds), str(last), *cells, str(excluded)])
    header = [*_heads(settings), "seeds", "rounds", *shown, "updates left out"]
    return Table(header, body, len(_heads(settings)))


def costs(settings: Sequence[Setting]) -> Table:
    shown = {
        "weights sent": "sent",
        "channel uses": "channel_uses",
        "side information": "side_information",
        "joules": "energy",
        "simulated seconds": "seconds",
    }
    body = []
    for setting, arm, rows in _arms(settings):
        seeds = len({row["seed"] for row in rows})
        cells = []
        for column in shown.values():
            told = [row[column] for row in rows if row.get(column) is not None]
            cells.append(number(sum(told) / seeds) if told else "–")
        last = str(max(row["round"] for row in rows))
        body.append([*_names(settings, setting, arm), last, *cells])
    return Table([*_heads(settings), "rounds", *shown], body, len(_heads(settings)))


def clients(settings: Sequence[Setting]) -> dict[str, Any] | None:
    """How many clients have which accuracy at the end, all seeds together."""
    body = []
    for setting, arm, rows in _arms(settings):
        last: dict[int, list[int]] = {}  # seed -> of its last test
        for row in sorted(rows, key=lambda row: row["round"]):
            if isinstance(row.get("test_histogram"), list):
                last[row["seed"]] = row["test_histogram"]
        if last and len({len(counts) for counts in last.values()}) == 1:
            counts = np.sum(list(last.values()), 0)
            share = counts / max(1, counts.sum())
            cells = list(zip(counts.tolist(), share.tolist(), strict=True))
            body.append((", ".join(_names(settings, setting, arm)), cells))
    if not body:
        return None
    bins = max(len(cells) for _, cells in body)
    return {"bins": [f"{100 * i / bins:g}–" for i in range(bins)], "body": body}


def changed(run: Run) -> list[tuple[str, str, str, str]]:
    """(field, value, default, meaning) of what differs from the common defaults."""
    defaults = dict(flat(json.loads(json.dumps(config.to_json(config.Config()))), "."))
    words = _words()
    names = ("experiment", "variant")
    return [
        (path, value_text(value), value_text(defaults.get(path)), words.get(path, ""))
        for path, value in run.config.items()
        if path not in names and (path not in defaults or value != defaults[path])
    ]


def fields(run: Run) -> list[tuple[str, str, str]]:
    """(field, value, meaning) of all fields."""
    words = _words()
    return [(path, value_text(value), words.get(path, "")) for path, value in run.config.items()]


def compared(runs: Sequence[Run]) -> Table:
    """The fields in which runs differ; runs are columns where there are more fields than runs."""
    paths = differing(runs)
    cells = [[value_text(run.config.get(path)) for path in paths] for run in runs]
    if len(paths) <= len(runs):
        body = [[run.name, *line] for run, line in zip(runs, cells, strict=True)]
        return Table(["run", *paths], body, len(paths) + 1)
    body = [[path, *line] for path, line in zip(paths, zip(*cells, strict=True), strict=True)]
    return Table(["field", *(run.name for run in runs)], body, len(runs) + 1)


def starts(runs: Sequence[Run]) -> Table:
    body = []
    for run in runs:
        for start in run.record["starts"]:
            packages = ", ".join(f"{k} {v}" for k, v in start.get("packages", {}).items())
            devices = ", ".join(f"{v} × {k}" for k, v in start.get("devices", {}).items())
            told = [str(start.get(name) or "–") for name in ("code", "python", "platform")]
            ended = str(start.get("ended", "no end recorded"))
            body.append([run.name, str(start["at"]), ended, *told, devices, packages])
    header = ["run", "start", "end", "commit", "Python", "platform", "devices", "packages"]
    return Table(header, body, len(header))


def own_tables(run: Run) -> list[tuple[str, list[Table | str]]]:
    """The experiment's own tables: heading, and its Markdown tables and paragraphs in order."""
    return [(heading, list(_blocks(text))) for heading, text in run.summary["tables"].items()]


def _arms(settings: Sequence[Setting]) -> Iterator[tuple[Setting, str, list[Row]]]:
    for setting in settings:
        for arm, rows in setting.rows.items():
            yield setting, arm, rows


def _heads(settings: Sequence[Setting]) -> list[str]:
    return ["arm"] if len(settings) == 1 else ["setting", "arm"]


def _names(settings: Sequence[Setting], setting: Setting, arm: str) -> list[str]:
    return [arm] if len(settings) == 1 else [setting.label, arm]


def _words() -> dict[str, str]:
    """Meaning and unit of every common field."""
    found = {}
    for path, field, _ in config.fields(config.Config()):
        unit = field.metadata["unit"]
        found[path] = field.metadata["meaning"] + (f" ({unit})" if unit else "")
    return found


def _blocks(text: str) -> Iterator[Table | str]:
    lines = text.splitlines()
    while lines:
        table = lines[0].startswith("|")
        count = next(
            (i for i, line in enumerate(lines) if line.startswith("|") != table), len(lines)
        )
        block, lines = lines[:count], lines[count:]
        if table and len(block) >= 2:
            cells = [[c.strip() for c in line.strip().strip("|").split("|")] for line in block]
            yield Table(cells[0], cells[2:])
        elif any(block):
            yield "\n".join(block)
