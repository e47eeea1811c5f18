"""What a page says, and the template that it is put into."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from fedprune import __version__
from fedprune.report import claims
from fedprune.report.page import pictures, tables
from fedprune.report.page.collection import Collection, Run, collect, duration, rounds
from fedprune.report.page.settings import Setting, differing, grouped, panels_of
from fedprune.report.page.text import span
from fedprune.runs import write_text

NAME = "report.html"


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
        loader=jinja2.PackageLoader("fedprune.report.page", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(_content(found))


def _content(found: Collection) -> dict[str, Any]:
    runs, single = found.runs, len(found.runs) == 1 and not found.sweep
    settings = grouped(runs)
    panels = panels_of(settings)
    over = pictures.against_round(panels), pictures.against_costs(panels)
    return {
        "title": found.title,
        "kind": "Run" if single else "Sweep" if found.sweep else "Comparison",
        "version": __version__,
        "experiments": sorted({_experiment(run) for run in runs}),
        "found": found,
        "facts": _facts(runs, settings),
        "unfinished": [run.name for run in runs if not run.finished],
        "compared": None if single else tables.compared(runs),
        "equal": [] if single else _equal(runs),
        "changed": tables.changed(runs[0]) if single else None,
        "all_fields": [(run.name, tables.fields(run)) for run in runs],
        "claims": [(run.name, claim) for run in runs for claim in run.summary["claims"]],
        "verdict": lambda claim: claims.word(claim["held"], claim.get("seeds")),
        "results": tables.results(settings),
        "pictures": [*pictures.swept(settings), *over[0], *over[1]],
        "sparsity": pictures.sparsity(settings),
        "clients": tables.clients(settings),
        "allocation": pictures.allocation(panels),
        "costs": tables.costs(settings),
        "times": [(run.name, _wall(run)) for run in runs],
        "own_tables": tables.own_tables(runs[0]) if single else [],
        "own_figures": _own_figures(runs[0].path) if single else [],
        "starts": tables.starts(runs),
        "without_record": [run.name for run in runs if not run.record["starts"]],
    }


def _equal(runs: Sequence[Run]) -> list[str]:
    """What is said of runs that agree in more than a reader expects, a sentence each."""
    said = []
    if len(runs) > 1 and not differing(runs):
        said.append("All runs have the same configuration.")
    groups: list[list[Run]] = []
    for run in runs:
        same = next((g for g in groups if run.rows and g[0].rows == run.rows), None)
        if same is None:
            groups.append([run])
        else:
            same.append(run)
    for group in groups:
        if len(group) > 1:
            names = ", ".join(run.name for run in group)
            said.append(f"Equal in every row, so that their curves lie on one another: {names}.")
    return said


def _own_figures(folder: Path) -> list[tuple[str, str]]:
    """(name, address) of the figures that the experiment drew."""
    found = sorted((folder / "figures").glob("*.svg"))
    return [
        (path.stem.replace("_", " "), pictures.address(path.read_text(encoding="utf-8")))
        for path in found
    ]


def _facts(runs: Sequence[Run], settings: Sequence[Setting]) -> list[tuple[str, str]]:
    """The first lines of a page."""
    arms = len({arm for run in runs for arm in run.rows})
    seeds = sorted({len({r["seed"] for r in rows}) for s in settings for rows in s.rows.values()})
    wanted = [run.config.get("run.rounds") for run in runs]
    done = [rounds(run) for run in runs]
    claims = [claim["held"] for run in runs for claim in run.summary["claims"]]
    facts = [("runs", str(len(runs)))] if len(runs) > 1 else []
    facts += [("arms", str(arms)), ("seeds", span(seeds)), ("rounds", span(sorted(set(done))))]
    if any(isinstance(w, int) and w != d for w, d in zip(wanted, done, strict=True)) and any(done):
        facts.append(("rounds configured", span(sorted({w for w in wanted if w is not None}))))
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
