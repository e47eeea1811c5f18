"""The folder of a sweep, and one trial of it as a process.

sweep.json              grid, common arguments and configuration, names of the trials
trials/NAME/            the run directory of a trial
logs/NAME.log           what its processes printed
logs/NAME.json          how the last of them ended; its status is null while it runs
results.csv, .parquet   one table of all trials
figures/
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedprune.cli import grid as grids
from fedprune.cli import shell
from fedprune.cli.grid import Grid, Trial
from fedprune.cli.log import Choice
from fedprune.cli.monitor import RETRY
from fedprune.runs import RunDirectoryError, relabelled, write_json

PROMPT = "$ "
"""before the command, in a log"""
LONGEST = 500
"""characters of an error that a log ends with; JAX's may have many pages"""


class Sweep(NamedTuple):
    """What is swept, and where."""

    folder: Path
    """absolute"""
    arguments: tuple[str, ...]
    """of ``fedprune run``, for all trials: the experiment, --config.FIELD=..."""
    config: dict[str, Any]
    """the common configuration, as plain values"""
    grid: Grid
    origin: dict[str, Any] | None = None
    """``Experiment.origin``"""
    writers: Choice = Choice()
    """where the numbers of all trials go"""

    def trials(self) -> list[Trial]:
        return grids.trials(self.grid)

    def run_directory(self, trial: Trial) -> Path:
        return self.folder / "trials" / trial.name

    def log(self, trial: Trial) -> Path:
        return self.folder / "logs" / f"{trial.name}.log"

    def command(self, trial: Trial) -> list[str]:
        """The command that runs, or resumes, a trial."""
        changes = [grids.argument(path, value) for path, value in trial.values.items()]
        workdir = f"--workdir={self.run_directory(trial)}"
        return shell.command("run", *self.arguments, *changes, workdir, *self.writers.arguments())


class State(NamedTuple):
    """How far a trial is."""

    word: str
    """waiting, running, finished or failed"""
    seconds: float | None = None
    """that its last process took"""
    round: int = 0
    """of the last row"""
    accuracy: float | None = None
    """of the last row that has one"""


def write(sweep: Sweep) -> None:
    """Records a sweep in its folder, which is made."""
    sweep.folder.mkdir(parents=True, exist_ok=True)
    about = {
        "experiment": sweep.origin,
        "arguments": sweep.arguments,
        "writers": sweep.writers._asdict(),
        "grid": sweep.grid,
        "config": sweep.config,
        "trials": {trial.name: trial.values for trial in sweep.trials()},
    }
    write_json(sweep.folder / "sweep.json", about)


def read(folder: Path) -> Sweep:
    """The sweep that a folder holds.

    Raises:
      RunDirectoryError: it holds none.
    """
    try:
        about = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise RunDirectoryError(f"workdir={folder}: holds no sweep ({e})") from e
    plain = lambda value: tuple(value) if isinstance(value, list) else value
    grid = {path: tuple(map(plain, values)) for path, values in about["grid"].items()}
    config = relabelled(about["config"])
    first, *changes = about["arguments"] or [""]
    # Up to version 0.1 the first one was --config=FILE, of a checkout.
    given = re.sub(r"^--config=(experiments/(\w+)\.py(?=:|$))?", r"\2", first)
    arguments = tuple(word for word in (given, *changes) if word)
    asked = about.get("writers")
    writers = Choice(tuple(asked["names"]), asked["mlflow_uri"]) if asked else Choice()
    return Sweep(folder.absolute(), arguments, config, grid, about.get("experiment"), writers)


# One trial -----


def run(
    sweep: Sweep,
    trial: Trial,
    environment: Mapping[str, str] | None = None,
    started: Callable[[subprocess.Popen], None] = lambda process: None,
) -> int:
    """Runs a trial as a process of its own, until it ends; returns its exit status.

    Args:
      sweep: which the trial belongs to.
      trial: of it.
      environment: of the process; None: this one's. The package's place is added.
      started: called with the process.
    """
    log, began = sweep.log(trial), time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    record(sweep, trial, None)
    command = sweep.command(trial)
    with log.open("ab") as file:
        file.write(f"{PROMPT}{shlex.join(command)}\n".encode())
        file.flush()
        found = {**(os.environ if environment is None else environment), **shell.variables()}
        # In a session of its own, so that only we pass on an interrupt from the terminal.
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=found, start_new_session=True
        )
        started(process)
        status = process.wait()
    if status != RETRY:
        record(sweep, trial, status, time.monotonic() - began)
    return status


def record(sweep: Sweep, trial: Trial, status: int | None, seconds: float | None = None) -> None:
    """Notes how a trial ended; None: it has not ended."""
    file = _outcome(sweep, trial)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"status": status, "seconds": seconds})


def failed(sweep: Sweep, trial: Trial, error: Exception) -> None:
    """Notes that a trial without a process of its own could not be finished, and why.

    The log's last line says it; before it there is the traceback of an error that is none of ours.
    """
    record(sweep, trial, 1)
    said = " ".join(str(error).split())
    with sweep.log(trial).open("a", encoding="utf-8") as file:
        if not type(error).__module__.startswith("fedprune."):
            traceback.print_exception(error, file=file)
            said = f"{type(error).__name__}: {said}"
        print(f"error: {said[:LONGEST]}", file=file)


def forget(sweep: Sweep, trial: Trial) -> None:
    """Drops what is noted of a trial's last process: the trial is waiting again."""
    _outcome(sweep, trial).unlink(missing_ok=True)


def _outcome(sweep: Sweep, trial: Trial) -> Path:
    return sweep.folder / "logs" / f"{trial.name}.json"


def state(sweep: Sweep, trial: Trial) -> State:
    """How far a trial is, from its files."""
    try:
        outcome = json.loads(_outcome(sweep, trial).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return State("waiting")
    words = {None: "running", 0: "finished"}
    last, accuracy = _last_rows(sweep.run_directory(trial) / "metrics.jsonl")
    word = words.get(outcome["status"], "failed")
    return State(word, outcome["seconds"], last, accuracy)


def _last_rows(metrics: Path) -> tuple[int, float | None]:
    """The round of the last row, and the accuracy of the last one that has it."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - 100_000))
            lines = file.read().decode().splitlines()
    except FileNotFoundError:
        return 0, None
    last = 0
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:  # cut off at either end
            continue
        last = last or row["round"]
        if row.get("test_accuracy") is not None:
            return last, row["test_accuracy"]
    return last, None


def fault(sweep: Sweep, trial: Trial) -> str:
    """One line on a trial that is not finished: what became of it, and where its log ends."""
    try:
        status = json.loads(_outcome(sweep, trial).read_text(encoding="utf-8"))["status"]
    except FileNotFoundError:
        return f"{trial.name}: was not started"
    what = "was stopped before its end"
    if status is not None:
        what = f"exit status {status}"
        if status < 0:
            what = f"killed by {signal.Signals(-status).name}"
    log = sweep.log(trial)
    lines = log.read_text(errors="replace", encoding="utf-8").split("\n") if log.exists() else []
    said = [line.strip() for line in lines if line.strip() and not line.startswith(PROMPT)]
    return f"{trial.name}: {what}; {log} ends with: {said[-1] if said else 'nothing'}"
