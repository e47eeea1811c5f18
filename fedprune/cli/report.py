"""``fedprune report``: the page of a run, of a sweep, or of several runs beside one another.

    fedprune report DIR               # of a run, or of a folder whose subfolders are runs
    fedprune report DIR DIR ... --out=FILE
    fedprune report DIR --remake      # of a run that is done: its tables and figures first

Without ``--out`` the page lies in DIR. It needs nothing but a browser, and is made of what the
directories hold, without the experiment. Folders that are missing, no runs or damaged are named in
one line, with exit status 2, and nothing is written.

``--remake`` calls the experiment's ``report`` on the rows of a run, as its end did: after that
function has been changed. The experiment is found where the run was started from;
``--experiment=FILE`` says where it is now.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from fedprune import config as cfg
from fedprune import paths
from fedprune.cli import experiments, once, parse, screen, shell
from fedprune.cli.experiments import ExperimentError
from fedprune.cli.parse import UsageError

USAGE = "DIR [DIR ... --out=FILE] [--remake] [--experiment=FILE.py]"
ABOUT = """Writes report.html of runs, from what their directories hold. A folder whose subfolders
are runs, as a sweep, is one page of them all."""


def define(values: flags.FlagValues) -> None:
    """The command's flags."""
    out = "file to write; without it, report.html in DIR"
    flags.DEFINE_string("out", None, out, flag_values=values)
    remake = "first make tables, figures and summary.json again, by the experiment's report"
    flags.DEFINE_bool("remake", False, remake, flag_values=values)
    where = "where the run's experiment is now; comes with --remake"
    flags.DEFINE_string("experiment", None, where, flag_values=values)


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 0, or 2 with one line on the standard error stream."""
    if parse.wants_help(argv):
        print(parse.help_text(argv[:1], USAGE, ABOUT, define))
        return 0
    known = flags.FlagValues()
    define(known)
    try:
        folders = [paths.local("DIR", folder) for folder in known(list(argv))[1:]]
        out = _out(folders, known)
        if known.experiment is not None and not known.remake:
            raise UsageError(f"--experiment={known.experiment}: needs --remake")
        if known.remake:
            screen.say(remade(folders[0], known.experiment))
        from fedprune.report import page

        if out.exists() and not page.is_ours(out):
            raise UsageError(f"{out}: is there already, and no report of fedprune")
        try:
            page.write(folders, out)
        except page.RunError as e:
            raise UsageError(str(e)) from e
    except (flags.Error, UsageError, ExperimentError, cfg.ConfigError) as e:
        return shell.refuse(e, 2)
    except (paths.PathError, once.ReportError, OSError) as e:
        return shell.refuse(e, 2)
    print(out)
    return 0


def _out(folders: Sequence[Path], known: flags.FlagValues) -> Path:
    """The file that is to be written.

    Raises:
      UsageError: the folders and flags do not fit each other.
    """
    if not folders:
        raise UsageError("give at least one run directory, or a folder of run directories")
    if len(folders) > 1 and known.out is None:
        raise UsageError(f"--out is missing: give --out=FILE for {len(folders)} folders")
    if len(folders) > 1 and known.remake:
        raise UsageError(f"--remake: must come with one run directory, not with {len(folders)}")
    return folders[0] / "report.html" if known.out is None else paths.local("--out", known.out)


def remade(folder: Path, moved: str | None) -> str:
    """The text of the report of a run that is done, which its experiment writes again.

    Args:
      folder: the run's.
      moved: the experiment's file, where that is not in its place any more.

    Raises:
      UsageError: it is no run, or not done.
      ExperimentError: the experiment is not there, or has other fields than the run.
      ReportError: the experiment cannot make it.
    """
    values, record = (_json(folder / name) for name in ("config.json", "run.json"))
    origin = (record["starts"] or [{}])[-1].get("experiment")
    if moved is None:
        given = experiments.recorded(origin, values, str(folder), "give --experiment=FILE")
        said = f"{folder}: {given}"
    else:
        said = f"--experiment={moved}"
        variant = f":{values['variant']}" if values.get("variant") else ""
        given = f"{experiments.find(moved, said)[0]}{variant}"
    experiment, found = experiments.load(given, said)
    config = experiments.restored(found, values, f"{folder}: {experiment.file}")
    arms = experiment.arms(config)

    from fedprune import backend, runs

    once.quiet()
    backend.configure(config.mesh.devices)
    backend.pin()
    try:
        rows = runs.MetricsFile(folder).rows()
        left = _unfinished(rows, config, arms)
        if left:
            raise UsageError(f"{folder}: {left}; fedprune run goes on with it")
        with runs.locked((folder / runs.LOCK).open("w", encoding="utf-8"), f"{folder}"):
            return once.reported(experiment, config, rows, folder)
    except runs.RunDirectoryError as e:
        raise UsageError(str(e)) from e


def _json(file: Path) -> Any:
    """What a file of a run directory holds.

    Raises:
      UsageError: the folder is none.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UsageError(f"{file.parent}: is no run directory ({file.name}: {e})") from e


def _unfinished(rows: Sequence[Any], config: cfg.Config, arms: Sequence[cfg.Arm]) -> str:
    """What a run lacks, or nothing."""
    last: dict[tuple[str, int], int] = {}
    for row in rows:
        last[row["arm"], row["seed"]] = row["round"]
    for arm in arms:
        first = arm.overrides.get("run.seed", config.run.seed)
        for seed in range(first, first + config.run.seeds):
            done = last.get((arm.name, seed), 0)
            if done < config.run.rounds:
                return f"is not done: {arm.name} has {done} of {config.run.rounds} rounds"
    return ""
