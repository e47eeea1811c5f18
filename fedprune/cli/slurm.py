"""Trials as an array of Slurm jobs, through submitit.

A job that Slurm preempts is requeued by Slurm, and one whose run ends with status 42 by itself;
either then resumes from its checkpoints. 90 seconds before a job's time is over, Slurm sends it
SIGUSR2, for which submitit asks; the run saves and ends with status 42.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from fedprune.cli import shell, trials
from fedprune.cli.grid import Trial
from fedprune.cli.monitor import RETRY
from fedprune.cli.trials import Sweep
from fedprune.runs import write_json

LONGEST_ARRAY = 1000
"""Slurm's MaxArraySize is 1001 unless it is set"""


PATIENCE = 60
"""seconds that a run has to save after SIGUSR2, before its job is requeued all the same"""


class Options(NamedTuple):
    """What a job asks for; None: the cluster's default."""

    partition: str | None = None
    minutes: int = 60
    cpus: int | None = None
    memory: float | None = None
    """GB"""
    gpus: int | None = None
    account: str | None = None
    qos: str | None = None
    sbatch: tuple[str, ...] = ()
    """further options, as NAME=VALUE"""
    jobs: int | None = None
    """most at a time"""
    restarts: int = 100
    """most requeues after exit status 42, also for lack of time; Slurm's own do not count"""


class Job:
    """What runs on the node: a trial, or what is left of it."""

    def __init__(self, folder: Path, name: str, restarts: int) -> None:
        self.folder, self.name, self.restarts = folder, name, restarts

    def __call__(self) -> None:
        sweep = trials.read(self.folder)
        trial = next(t for t in sweep.trials() if t.name == self.name)
        running: list[subprocess.Popen] = []
        stopped = []

        def time_is_nearly_over(*_: object) -> None:
            signal.alarm(PATIENCE)
            for process in running:  # Slurm has told it, too, unless only this process was meant
                process.send_signal(signal.SIGUSR2)

        def time_is_over(*_: object) -> NoReturn:
            raise TimeoutError

        signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
        signal.signal(signal.SIGALRM, time_is_over)
        signal.signal(signal.SIGUSR2, time_is_nearly_over)
        try:
            status = trials.run(sweep, trial, started=running.append)
        except TimeoutError:
            status = RETRY
        signal.alarm(0)
        if status == -signal.SIGUSR2:  # it came before the run listened, or during its report
            trials.record(sweep, trial, None)
            status = RETRY
        if stopped:
            # Slurm preempts the job and requeues it, or somebody has cancelled it: not our affair.
            trials.record(sweep, trial, None)
        elif status == RETRY:
            if self._counted(sweep):
                subprocess.run(["scontrol", "requeue", _own_id()], check=True, timeout=60)
                time.sleep(600)  # Slurm ends this process
            trials.record(sweep, trial, RETRY)
        if status:
            raise RuntimeError(f"{self.name}: exit status {status}")

    def _counted(self, sweep: Sweep) -> bool:
        """Counts one more requeue by this job itself; whether there may be one.

        SLURM_RESTART_COUNT has those of preempted jobs, too.
        """
        file = _place(sweep) / f"{_own_id()}_requeues.json"
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else 0
        if before < self.restarts:
            file.parent.mkdir(exist_ok=True)
            write_json(file, before + 1)
        return before < self.restarts


def _own_id() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def submit(sweep: Sweep, todo: Sequence[Trial], options: Options) -> dict[str, str]:
    """Submits trials; returns the job of each trial that was ever submitted, also in ``jobs.json``.

    Raises:
      RuntimeError: Slurm is not there, or refuses.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError

    executor = SlurmExecutor(_place(sweep))
    executor.update_parameters(**_parameters(sweep, options))
    ids = submitted(sweep)
    for part in parts(todo):
        try:
            with executor.batch():
                jobs = [
                    executor.submit(Job(sweep.folder, trial.name, options.restarts))
                    for trial in part
                ]
        except (FailedJobError, subprocess.CalledProcessError) as e:
            raise RuntimeError(f"sbatch: {e}") from e
        ids |= {trial.name: job.job_id for trial, job in zip(part, jobs, strict=True)}
        write_json(_place(sweep) / "jobs.json", ids)
    return ids


def parts(todo: Sequence[Trial]) -> list[Sequence[Trial]]:
    """Trials in as many arrays as it takes."""
    return [todo[i : i + LONGEST_ARRAY] for i in range(0, len(todo), LONGEST_ARRAY)]


def submitted(sweep: Sweep) -> dict[str, str]:
    """The last job of each trial."""
    file = _place(sweep) / "jobs.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def queued() -> set[str] | None:
    """The user's jobs that wait or run; None if Slurm does not answer.

    Raises:
      RuntimeError: there is no Slurm.
    """
    command = ["squeue", f"--user={os.getuid()}", "--noheader", "--array", "--format=%i"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError as e:
        raise RuntimeError("squeue was not found: --on=slurm needs Slurm on this machine") from e
    except subprocess.TimeoutExpired:
        return None
    return set(result.stdout.split()) if result.returncode == 0 else None


def script(sweep: Sweep, todo: Sequence[Trial], options: Options) -> str:
    """What is given to sbatch for one part of the trials."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = _place(sweep)
    command = (
        f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    )
    count: dict[str, Any] = {"map_count": len(todo)} if len(todo) > 1 else {}
    return _make_sbatch_string(command, folder, **_parameters(sweep, options), **count)


def _place(sweep: Sweep) -> Path:
    return sweep.folder / "slurm"


def _parameters(sweep: Sweep, options: Options) -> Mapping[str, Any]:
    more: dict[str, Any] = {"requeue": True}
    if options.memory is not None:
        more["mem"] = f"{round(1024 * options.memory)}M"
    for text in options.sbatch:
        name, equals, value = text.lstrip("-").partition("=")
        more[name] = value if equals else True
    found = {
        "job_name": sweep.folder.name,
        "time": options.minutes,
        "setup": [
            f"cd {shlex.quote(os.getcwd())}",
            *(f"export {name}={shlex.quote(v)}" for name, v in shell.variables().items()),
        ],
        "additional_parameters": more,
        "partition": options.partition,
        "cpus_per_task": options.cpus,
        "gpus_per_node": options.gpus,
        "account": options.account,
        "qos": options.qos,
        "array_parallelism": options.jobs,
    }
    return {name: value for name, value in found.items() if value is not None}
