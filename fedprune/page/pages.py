"""What a page says: its tables and figures, and the template that they are put into."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from fedprune import __version__, config
from fedprune import report as rp
from fedprune.page import figures
from fedprune.page.figures import Axes, Line
from fedprune.page.runs import Collection, Run, collect, duration, flatten, rounds
from fedprune.writer import Row, write_text

NAME = "report.html"
MOST = 24
"""Panels of a figure that are drawn."""
SEED = "run.seed"
"""Runs that differ in nothing else are seeds of one setting."""
ACCURACY = "test_accuracy"
COSTS = {
    "seconds": "simulated seconds",
    "energy": "joules",
    "channel_uses": "channel uses",
}


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


class Panel(NamedTuple):
    title: str
    members: list[Member]


class Picture(NamedTuple):
    """Panels with one heading and caption; each panel is (address of its image, its text)."""

    heading: str
    caption: str
    panels: list[tuple[str, str]]


class Table(NamedTuple):
    header: Sequence[str]
    body: Sequence[Sequence[str]]
    words: int = 1
    """so many columns from the left hold words, the others numbers"""


def write(folders: Sequence[Path], out: Path) -> None:
    """Writes the page of one run, of the runs in one folder, or of several runs.

    Args:
      folders: run directories, or one folder of them.
      out: the file.

    Raises:
      RunError: a folder is missing, foreign or damaged; nothing is written.
    """
    write_text(out, render(collect(folders)))


def is_ours(file: Path) -> bool:
    """Whether a file is a page of this kind, which another one may replace."""
    return b'name="generator" content="fedprune' in file.read_bytes()[:2000]


def render(found: Collection) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedprune.page", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(_content(found))


def _content(found: Collection) -> dict[str, Any]:
    runs, single = found.runs, len(found.runs) == 1 and not found.sweep
    settings = _settings(runs)
    panels = _panels(settings)
    pictures = [*_swept(settings), *_against_round(panels), *_against_costs(panels)]
    return {
        "title": found.title,
        "kind": "Run" if single else "Sweep" if found.sweep else "Comparison",
        "version": __version__,
        "experiments": sorted({_experiment(run) for run in runs}),
        "found": found,
        "facts": _facts(runs, settings),
        "unfinished": [run.name for run in runs if not run.finished],
        "compared": None if single else _compared(runs),
        "changed": _changed(runs[0]) if single else None,
        "all_fields": [(run.name, _fields(run)) for run in runs],
        "claims": [(run.name, claim) for run in runs for claim in run.summary["claims"]],
        "verdict": lambda claim: rp.word(claim["held"], claim.get("seeds")),
        "results": _results(settings),
        "pictures": pictures,
        "sparsity": _sparsity(settings),
        "clients": _clients(settings),
        "allocation": _allocation(panels),
        "costs": _costs(settings),
        "times": [(run.name, _wall(run)) for run in runs],
        "own_tables": _own_tables(runs[0]) if single else [],
        "own_figures": _own_figures(runs[0].path) if single else [],
        "starts": _starts(runs),
        "without_record": [run.name for run in runs if not run.record["starts"]],
    }


# Settings and panels -----


def _settings(runs: Sequence[Run]) -> list[Setting]:
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
    varied = [path for path in _differing([g[0] for g in groups]) if path != SEED]
    settings = []
    for group in groups:
        rows: dict[str, list[Row]] = {}
        for run in group:
            for arm, mine in run.rows.items():
                rows.setdefault(arm, []).extend(mine)
        label = ", ".join(f"{p.split('.')[-1]} = {_value(group[0].config.get(p))}" for p in varied)
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


def _differing(runs: Sequence[Run]) -> list[str]:
    """Paths of the fields in which runs differ, in their order."""
    paths = dict.fromkeys(path for run in runs for path in run.config)
    return [p for p in paths if any(r.config.get(p) != runs[0].config.get(p) for r in runs[1:])]


def _panels(settings: Sequence[Setting]) -> list[Panel]:
    """A panel for each family of arms; of several settings, one for each arm that they share."""
    arms = list(dict.fromkeys(arm for setting in settings for arm in setting.rows))
    if len(settings) == 1:
        return _families(settings[0], "")
    if not any(sum(arm in s.rows for s in settings) > 1 for arm in arms):
        return [panel for s in settings for panel in _families(s, f"{s.label}: ")]
    panels = []
    for arm in arms:
        holders = [s for s in settings if arm in s.rows]
        for some in _chunks(holders):
            members = [Member(s.label, i, arm, s.rows[arm]) for i, s in enumerate(some)]
            panels.append(Panel(arm, members))
    return panels


def _chunks(values: Iterable[Any]) -> Iterator[list[Any]]:
    """As many as a panel takes at a time."""
    left = list(values)
    for first in range(0, len(left), figures.PER_PANEL):
        yield left[first : first + figures.PER_PANEL]


def _families(setting: Setting, prefix: str) -> list[Panel]:
    """Arms whose names differ in numbers only, a panel each with the first arm as reference."""
    first, *others = setting.rows or [""]
    if not setting.rows:
        return []
    groups: dict[str, list[str]] = {}
    for arm in others:
        groups.setdefault(re.sub(r"[\d.]+", "", arm), []).append(arm)
    families = [family for family in groups.values() if len(family) > 1]
    families += [[arm for family in groups.values() if len(family) == 1 for arm in family]]
    if len(others) <= figures.PER_PANEL:
        families = [others]
    reference = [Member(first, None if others else 0, first, setting.rows[first])]
    panels = []
    for family in families if others else [[]]:
        for some in list(_chunks(family)) or ([] if others else [[]]):
            title = prefix + (_common(some) if len(families) > 1 else "")
            members = [Member(arm, i, arm, setting.rows[arm]) for i, arm in enumerate(some)]
            panels.append(Panel(title, reference + members))
    return panels


def _common(names: Sequence[str]) -> str:
    """What names begin with, without a number or sign at its end."""
    first, last = min(names), max(names)
    same = next((i for i, c in enumerate(first) if last[i : i + 1] != c), len(first))
    return first[:same].rstrip(" -_/@,.0123456789")


# Figures -----


def _picture(
    heading: str, caption: str, drawn: Sequence[tuple[str, str, str]] | Iterator[Any]
) -> list[Picture]:
    """A picture of (title, what its image shows, SVG), or none if there is no panel."""
    made = list(drawn)
    if not made:
        return []
    if len(made) > MOST:
        caption += f" {len(made) - MOST} more panels are not drawn; the tables have their numbers."
    return [Picture(heading, caption, [(_address(svg), text) for _, text, svg in made[:MOST]])]


def _address(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _drawn(
    panels: Sequence[Panel], line: Callable[[Member], Line | None], axes: Axes
) -> Iterator[tuple[str, str, str]]:
    """The panels in which there is anything, all with the limits that hold all lines."""
    every = [(panel, [found for m in panel.members if (found := line(m))]) for panel in panels]
    # A reference alone would be a panel about nothing.
    every = [(p, ls) for p, ls in every if any(li.style is not None for li in ls)][: MOST + 1]
    if not every:
        return
    x = np.concatenate([li.x for _, ls in every for li in ls])
    above = x[x > 0]
    if axes.xlog and (not above.size or x.max() < 12 * above.min()):
        axes = axes._replace(xlog=False)
    if axes.xlog:
        axes = axes._replace(xlim=(above.min() / 1.1, x.max() * 1.1))
    elif x.max() > x.min():
        axes = axes._replace(xlim=(x.min(), x.max()))
    if axes.ylim is None:
        edges = [
            v for _, ls in every for li in ls for v in (li.low, li.high, li.y) if v is not None
        ]
        low, high = np.nanmin(np.concatenate(edges)), np.nanmax(np.concatenate(edges))
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes = axes._replace(ylim=(low - margin, high + margin))
    for panel, ls in every:
        text = f"{axes.ylabel} against {axes.xlabel}: " + ", ".join(li.label for li in ls)
        yield panel.title, text, figures.lines(panel.title, ls, axes)


def _curve(member: Member, column: str, scale: float = 1.0) -> Line | None:
    """A column against the round, mean and 95 % interval over seeds."""
    x, values = rp.curves(member.rows, member.arm, column)
    if not len(x):
        return None
    mean, half = rp.band(scale * values)
    return Line(member.label, member.style, x, mean, mean - half, mean + half)


BANDS = "Lines are means over the seeds, bands 95 % Student intervals; no band: one seed."


def _against_round(panels: Sequence[Panel]) -> list[Picture]:
    reference = any(m.style is None for panel in panels for m in panel.members)
    dashed = " The black dashed line is the first arm, for reference." if reference else ""
    clipped = " The axis holds all means after the first sixth of the rounds; bands may leave it."
    pictures = []
    for column, heading, label in (
        (ACCURACY, "Accuracy against round", "test accuracy (%)"),
        ("test_worst", "The worst tenth of the clients against round", "accuracy (%)"),
    ):
        axes = Axes("round", label, ylim=_limits(panels, column))

        def line(member: Member, column: str = column) -> Line | None:
            return _curve(member, column, 100.0)

        drawn = _drawn(panels, line, axes)
        pictures += _picture(heading, BANDS + dashed + clipped, drawn)
    return pictures


def _limits(panels: Sequence[Panel], column: str) -> tuple[float, float] | None:
    """Of percent, at tens: all means after the first sixth."""
    found = [_curve(m, column, 100.0) for panel in panels for m in panel.members]
    late = [line.y[len(line.y) // 6 :] for line in found if line is not None and line.y is not None]
    if not late:
        return None
    ends = np.concatenate(late)
    low, high = 10 * np.floor(np.nanmin(ends) / 10), 10 * np.floor(np.nanmax(ends) / 10) + 10
    return max(0.0, low), min(101.0, high)


def _against_costs(panels: Sequence[Panel]) -> list[Picture]:
    pictures = []
    for column, name in COSTS.items():

        def line(member: Member, column: str = column) -> Line | None:
            found = _curve(member, ACCURACY, 100.0)
            if found is None or not any(row.get(column) for row in member.rows):
                return None
            total = rp.spent(member.rows, member.arm, column, found.x)
            known = np.isfinite(total)  # what costs without end has no place on the axis
            y = None if found.y is None else found.y[known]
            return found._replace(x=total[known], y=y, low=found.low[known], high=found.high[known])

        axes = Axes(f"{name} so far", "test accuracy (%)", True, ylim=_limits(panels, ACCURACY))
        caption = f"The same accuracies against what all clients together had spent. {BANDS}"
        if column == "seconds":
            caption = f"The same accuracies against the time on the simulated clock. {BANDS}"
        pictures += _picture(f"Accuracy against {name}", caption, _drawn(panels, line, axes))
    return pictures


def _swept(settings: Sequence[Setting]) -> list[Picture]:
    """The final accuracy against each number in which three settings or more differ."""
    paths = dict.fromkeys(p for s in settings for p in s.config if p != SEED)
    varied = [p for p in paths if len({_value(s.config.get(p)) for s in settings}) > 1]
    pictures = []
    for path in varied:
        numbers = {s.config.get(path) for s in settings if _is_number(s.config.get(path))}
        if len(numbers) < 3:
            continue
        others = [p for p in varied if p != path]
        # title -> label -> number -> final accuracies of the seeds
        lines: dict[str, dict[str, dict[float, np.ndarray]]] = {}
        for s in settings:
            rest = ", ".join(f"{p.split('.')[-1]} = {_value(s.config.get(p))}" for p in others)
            for arm, rows in s.rows.items():
                found = rp.curves(rows, arm, ACCURACY)[1]
                if found.size and _is_number(s.config.get(path)):
                    title, label = (arm, rest) if others else ("", arm)
                    points = lines.setdefault(title, {}).setdefault(label, {})
                    points[s.config[path]] = 100 * found[:, -1]
        axes = Axes(path, "final test accuracy (%)", points=True)
        made = []
        for title, of in lines.items():
            for some in _chunks(of.items()):
                drawn = [_points(label, i, points) for i, (label, points) in enumerate(some)]
                text = f"{title} final accuracy against {path}: {', '.join(dict(some))}"
                made.append((title, text, figures.lines(title, drawn, axes)))
        caption = "After the last round of each arm: means and 95 % Student intervals over seeds."
        pictures += _picture(f"Final accuracy against {path}", caption, made)
    return pictures


def _points(label: str, style: int, points: dict[float, np.ndarray]) -> Line:
    x = sorted(points)
    mean, half = np.array([rp.interval(points[v]) for v in x]).T
    return Line(label, style, np.array(x), mean, mean - half, mean + half)


def _sparsity(settings: Sequence[Setting]) -> list[Picture]:
    """A panel for each arm in which anything is pruned."""

    def made() -> Iterator[tuple[str, str, str]]:
        for setting in settings:
            for arm, rows in setting.rows.items():
                of = [row for row in rows if row.get("density")]
                layers = list(of[0]["density"]) if of else []
                flat = [{**row, **row["density"]} for row in of]
                curves = [rp.curves(flat, arm, layer) for layer in layers]
                if not curves or min(len(x) for x, _ in curves) == 0:
                    continue
                percent = 100 * (1 - np.stack([values.mean(0) for _, values in curves]))
                if percent.max() < 0.05:
                    continue
                title = arm if len(settings) == 1 else f"{setting.label}: {arm}"
                names = [layer.removesuffix("/kernel") for layer in layers]
                last = zip(names, percent[:, -1], strict=True)
                text = "; ".join(f"{name} {value:.1f} %" for name, value in last)
                svg = figures.heat(title, names, curves[0][0], percent)
                yield title, f"{title}: sparsity after the last round: {text}", svg

    caption = (
        "Share of each layer's kernel that is pruned, mean over the seeds: light is 0 %, dark is"
        " 100 %, and the number is that of the last round. Where clients have masks of their own it"
        " is the mean over the clients that counted."
    )
    return _picture("Sparsity of each layer over the rounds", caption, made())


def _allocation(panels: Sequence[Panel]) -> list[Picture]:
    def has(member: Member, column: str) -> bool:
        return any(row.get(column) for row in member.rows)

    def ends(member: Member, name: str) -> Line | None:
        flat = [{**row, **row["allocation"]} for row in member.rows if row.get("allocation")]
        low, high = (rp.curves(flat, member.arm, f"{name}_{end}") for end in ("low", "high"))
        if not len(low[0]):
            return None
        bounds = (100 * values.mean(0) for _, values in (low, high))
        return Line(member.label, member.style, low[0], None, *bounds)

    def ratios(member: Member) -> Line | None:
        mean = _curve(member, "ratio", 100.0) if has(member, "ratio") else None
        if mean is None or mean.y is None:
            return None
        between = ends(member, "ratio")
        low, high = (mean.y, mean.y) if between is None else (between.low, between.high)
        return mean._replace(low=low, high=high)

    told = [m for panel in panels for m in panel.members if has(m, "allocation")]
    between = " Bands reach from the smallest to the largest ratio of a client." if told else ""
    caption = f"Share of its prunable weights that a client was told to prune, means.{between}"
    pictures = _picture(
        "Allocated pruning ratios", caption, _drawn(panels, ratios, Axes("round", "ratio (%)"))
    )
    pictures += _picture(
        "Allocated bandwidth",
        "The smallest and the largest share of the band that a client got, means over the seeds.",
        _drawn(panels, lambda m: ends(m, "share"), Axes("round", "share of the band (%)")),
    )
    pictures += _picture(
        "Latency of a round",
        f"Time on the simulated clock that a round took. {BANDS}",
        _drawn(
            panels,
            lambda m: _curve(m, "seconds", 1e3) if has(m, "seconds") else None,
            Axes("round", "ms a round"),
        ),
    )
    return pictures


# Tables -----


def _results(settings: Sequence[Setting]) -> Table:
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
            found = rp.curves(rows, arm, column)[1]
            digits = 1 if scale == 100 else 3 if name == "test loss" else 0
            values = scale * found[:, -1] if found.size else found
            whole = name == "weights kept" and values.size and np.ptp(values) == 0
            values = values[:1] if whole else values
            cells.append(_interval(values, digits) if values.size else "–")
        seeds = len({row["seed"] for row in rows})
        last = max(row["round"] for row in rows)
        excluded = sum(row.get("excluded") or 0 for row in rows)
        body.append([*_names(settings, setting, arm), str(seeds), str(last), *cells, str(excluded)])
    header = [*_heads(settings), "seeds", "rounds", *shown, "updates left out"]
    return Table(header, body, len(_heads(settings)))


def _costs(settings: Sequence[Setting]) -> Table:
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
            cells.append(_number(sum(told) / seeds) if told else "–")
        last = str(max(row["round"] for row in rows))
        body.append([*_names(settings, setting, arm), last, *cells])
    return Table([*_heads(settings), "rounds", *shown], body, len(_heads(settings)))


def _arms(settings: Sequence[Setting]) -> Iterator[tuple[Setting, str, list[Row]]]:
    for setting in settings:
        for arm, rows in setting.rows.items():
            yield setting, arm, rows


def _heads(settings: Sequence[Setting]) -> list[str]:
    return ["arm"] if len(settings) == 1 else ["setting", "arm"]


def _names(settings: Sequence[Setting], setting: Setting, arm: str) -> list[str]:
    return [arm] if len(settings) == 1 else [setting.label, arm]


def _clients(settings: Sequence[Setting]) -> dict[str, Any] | None:
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


def _changed(run: Run) -> list[tuple[str, str, str, str]]:
    """(field, value, default, meaning) of what differs from the common defaults."""
    defaults = dict(flatten(json.loads(json.dumps(config.to_json(config.Config())))))
    words = _words()
    names = ("experiment", "variant")
    return [
        (path, _value(value), _value(defaults.get(path)), words.get(path, ""))
        for path, value in run.config.items()
        if path not in names and (path not in defaults or value != defaults[path])
    ]


def _fields(run: Run) -> list[tuple[str, str, str]]:
    """(field, value, meaning) of all fields."""
    words = _words()
    return [(path, _value(value), words.get(path, "")) for path, value in run.config.items()]


def _words() -> dict[str, str]:
    """Meaning and unit of every common field."""
    found = {}
    for path, field, _ in config.fields(config.Config()):
        unit = field.metadata["unit"]
        found[path] = field.metadata["meaning"] + (f" ({unit})" if unit else "")
    return found


def _compared(runs: Sequence[Run]) -> Table:
    """The fields in which runs differ; runs are columns where there are more fields than runs."""
    paths = _differing(runs)
    cells = [[_value(run.config.get(path)) for path in paths] for run in runs]
    if len(paths) <= len(runs):
        body = [[run.name, *line] for run, line in zip(runs, cells, strict=True)]
        return Table(["run", *paths], body, len(paths) + 1)
    body = [[path, *line] for path, line in zip(paths, zip(*cells, strict=True), strict=True)]
    return Table(["field", *(run.name for run in runs)], body, len(runs) + 1)


def _starts(runs: Sequence[Run]) -> Table:
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


def _own_tables(run: Run) -> list[tuple[str, list[Table | str]]]:
    """The experiment's own tables: heading, and its Markdown tables and paragraphs in order."""
    return [(heading, list(_blocks(text))) for heading, text in run.summary["tables"].items()]


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


def _own_figures(folder: Path) -> list[tuple[str, str]]:
    """(name, address) of the figures that the experiment drew."""
    found = sorted((folder / "figures").glob("*.svg"))
    return [
        (path.stem.replace("_", " "), _address(path.read_text(encoding="utf-8"))) for path in found
    ]


def _facts(runs: Sequence[Run], settings: Sequence[Setting]) -> list[tuple[str, str]]:
    """The first lines of a page."""
    arms = len({arm for run in runs for arm in run.rows})
    seeds = sorted({len({r["seed"] for r in rows}) for s in settings for rows in s.rows.values()})
    wanted = [run.config.get("run.rounds") for run in runs]
    done = [rounds(run) for run in runs]
    claims = [claim["held"] for run in runs for claim in run.summary["claims"]]
    facts = [("runs", str(len(runs)))] if len(runs) > 1 else []
    facts += [("arms", str(arms)), ("seeds", _range(seeds)), ("rounds", _range(sorted(set(done))))]
    if any(isinstance(w, int) and w != d for w, d in zip(wanted, done, strict=True)) and any(done):
        facts.append(("rounds configured", _range(sorted({w for w in wanted if w is not None}))))
    if claims:
        counts = [(held, claims.count(held)) for held in (True, False, None)]
        words = {True: "held", False: "did not hold", None: "open"}
        facts.append(("claims", ", ".join(f"{n} {words[held]}" for held, n in counts if n)))
    if len(runs) == 1:
        facts.append(("wall time", _wall(runs[0])))
        facts.append(("run id", str(runs[0].record.get("id", "not recorded"))))
        origin = runs[0].record.get("resumed_from")
        if isinstance(origin, dict):
            facts.append(("resumed from", f"{origin.get('path')} ({origin.get('id')})"))
    return facts


def _wall(run: Run) -> str:
    """How long a run took, in words."""
    seconds, open_ends = duration(run)
    starts = len(run.record["starts"])
    if open_ends == starts:
        return "not recorded" if not starts else "no start has come to its end"
    text = f"{seconds:,.0f} s in {starts - open_ends} start{'s' if starts - open_ends > 1 else ''}"
    return f"{text}; not counted: {open_ends} without an end" if open_ends else text


def _experiment(run: Run) -> str:
    name = str(run.config.get("experiment", "")).removeprefix("experiments.")
    return f"{name}:{run.config.get('variant', '')}"


def _range(values: Sequence[Any]) -> str:
    if not values:
        return "none"
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _interval(values: np.ndarray, digits: int) -> str:
    mean, half = rp.interval(values)
    text = f"{mean:,.{digits}f}"
    return text if np.isnan(half) else f"{text} ± {half:,.{digits}f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value(value: Any) -> str:
    """A field's value in words."""
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None else str(value) or "empty"
