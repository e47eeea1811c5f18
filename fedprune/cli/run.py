"""``fedprune run``: runs an experiment, or goes on with it.

    fedprune run NAME[:VARIANT] --workdir=DIR
    fedprune run ./FILE.py[:VARIANT] --workdir=DIR

Any field can be set, as ``--config.uplink.snr_db=5``; ``--help_config`` prints them all. A bad
value is refused in one line, with exit status 2, before anything is written.

Running the same command again resumes what was interrupted. ``--fresh`` starts over instead, and
``--resume_from`` starts a run from the checkpoints of another one.

``--distributed`` runs it as one of several processes, which a cluster starts (Slurm, Open MPI,
Cloud TPU, Kubernetes), or which ``--coordinator=HOST:PORT --processes=N --process=I`` describes.
On SIGTERM, SIGUSR2 or Ctrl-C a run finishes its segment of rounds, saves, and exits with status 42.

``--log`` says where the numbers of every round go beside ``metrics.jsonl``: to TensorBoard, to
MLflow, or to a function of a file of your own.

With ``--profile``, one round of the first program is traced into the folder instead, and a table
says which stage took how long.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence

from absl import flags

from fedprune import config as cfg
from fedprune import meeting, paths
from fedprune.cli import experiments, log, monitor, once, parse, shell
from fedprune.cli.experiments import ExperimentError
from fedprune.cli.parse import UsageError

USAGE = "NAME[:VARIANT]|FILE.py[:VARIANT] [--workdir=DIR] [--config.FIELD=VALUE ...]"
ABOUT = """Runs an experiment, or goes on with what is in its directory. NAME is one of those that
ship (fedprune run lists them), FILE.py any file with get_config, arms and report. Exit status: 0;
1 for unusable data or directories; 2 for bad usage; 42 if the same command goes on."""


def define(values: flags.FlagValues) -> None:
    """The command's flags."""

    def string(name: str, about: str) -> None:
        flags.DEFINE_string(name, None, about, flag_values=values)

    def boolean(name: str, about: str) -> None:
        flags.DEFINE_bool(name, False, about, flag_values=values)

    string(
        "workdir", "run directory: metrics, checkpoints, figures; runs/NAME_VARIANT if not given"
    )
    boolean("help_config", "print every field of the experiment, or of the common configuration")
    boolean("fresh", "start over; what --workdir holds is moved to a numbered folder in it, old/")
    string("resume_from", "start a new run from the newest checkpoints of this run directory")
    boolean("profile", "trace one round of the first program into --workdir, and run nothing")
    boolean("distributed", "run as one of several processes")
    log.define(values)
    string("coordinator", "HOST:PORT of process 0; by default the cluster says it")
    for name, default, about in (
        ("processes", None, "their number; by default the cluster says it"),
        ("process", None, "which one this is; by default the cluster says it"),
        ("initialization_timeout", 300, "seconds to wait for the other processes at the start"),
        ("heartbeat_timeout", 60, "seconds after which a process counts as lost if not heard of"),
    ):
        flags.DEFINE_integer(name, default, about, flag_values=values)


def main(argv: Sequence[str]) -> int:
    """Returns the exit status.

    0; 2 for bad usage; 1 for unusable data or directories, a full disk, and processes that do not
    fit each other; 42 if the same command goes on: after SIGTERM, SIGUSR2 or Ctrl-C, or when
    another process is lost.
    """
    try:
        if parse.wants_help(argv):
            print(parse.help_text(argv, USAGE, ABOUT, define))
            return 0
        if len(argv) == 1:
            print(listing())
            return 0
        given = parse.parse(argv, define)
        if given.values.help_config:
            print(cfg.explain(given.config or cfg.Config()))
            return 0
        job = _job(given)
        _check_processes(given.values)
    except (UsageError, ExperimentError, cfg.ConfigError, paths.PathError) as e:
        return shell.refuse(e, 2)
    return _distributed(job, argv, given.values) if given.values.distributed else once.run(job)


def listing() -> str:
    """The experiments that ship, with the first line of their text and their variants."""
    lines = ["Experiments that ship with fedprune: fedprune run NAME[:VARIANT]", ""]
    for name, summary, variants in experiments.shipped():
        lines += parse.wrapped(f"{name}: {', '.join(variants)}", before="  ", after="      ")
        lines += parse.wrapped(summary, before="      ")
    end = (
        "fedprune run NAME --help has the whole text of one, fedprune run ./FILE.py runs your own."
    )
    return "\n".join([*lines, "", *parse.wrapped(end)])


def _job(given: parse.Given) -> once.Job:
    """What is asked for, checked with every arm.

    Raises:
      UsageError: no experiment is named.
      PathError: a directory cannot be one.
      ConfigError, ExperimentError: a value or the file is refused.
    """
    experiment, config, values = given.experiment, given.config, given.values
    if experiment is None or config is None:
        raise UsageError(f"no experiment is named: {parse.EXAMPLE}; fedprune run lists the former")
    workdir = values.workdir
    if workdir is None:
        parts = [part for part in (config.experiment, config.variant) if part]
        workdir = f"runs/{re.sub(r'[^0-9a-zA-Z_.-]', '_', '_'.join(parts))}"
    choice, source = log.chosen(values), values.resume_from
    folders = (
        paths.local("--workdir", workdir),
        None if source is None else paths.local("--resume_from", source),
    )
    cfg.validate(config)
    arms = experiment.arms(config)
    changed = [change.removeprefix("--config.").partition("=")[0] for change in given.changes]
    cfg.validate_arms(config, arms, changed)
    return once.Job(experiment, config, arms, *folders, values.fresh, values.profile, choice)


def _check_processes(values: flags.FlagValues) -> None:
    """Whether the flags on several processes fit each other.

    Raises:
      UsageError: they do not.
    """
    names = ("coordinator", "processes", "process")
    for name in names:
        if values[name].value is not None and not values.distributed:
            raise UsageError(f"--{name}={values[name].value}: needs --distributed")
    if values.coordinator is not None:
        missing = [name for name in names if values[name].value is None]
        if missing:
            raise UsageError(f"--coordinator={values.coordinator}: needs --{missing[0]}")
        try:
            meeting.address(values.coordinator)
        except meeting.AddressError as e:
            raise UsageError(f"--coordinator={e}") from e
    count, at = values.processes, values.process
    if count is not None and count < 1:
        raise UsageError(f"--processes={count}: must be at least 1")
    if at is not None and not 0 <= at < (count or at + 1):
        raise UsageError(f"--process={at}: must be from 0 to --processes less 1")
    for name in ("initialization_timeout", "heartbeat_timeout"):
        seconds: int = getattr(values, name)
        if seconds < 1:
            raise UsageError(f"--{name}={seconds}: must be at least 1 second")
    if values.distributed and values.profile:
        raise UsageError("--profile: traces one process, without --distributed")


def _distributed(job: once.Job, argv: Sequence[str], values: flags.FlagValues) -> int:
    """Runs it as one of several processes; returns the exit status."""
    timeouts = values.initialization_timeout, values.heartbeat_timeout
    if not monitor.is_worker():
        return monitor.watch(argv, *timeouts)
    monitor.stay_with_monitor()

    from jax.errors import JaxRuntimeError

    from fedprune import processes

    fields = {path: value for path, _, value in cfg.fields(job.config)}
    about = {"workdir": str(job.workdir), "experiment file": job.experiment.sha256, **fields}
    try:
        processes.connect(about, values.coordinator, values.processes, values.process, *timeouts)
    except (processes.ProcessesError, meeting.AddressError) as e:
        return shell.refuse(e, 2)
    except meeting.RefusedError as e:
        return shell.refuse(e, 1)
    except meeting.MissingError as e:
        return shell.refuse(f"{e}; the same command goes on", monitor.RETRY)
    status = 1
    try:
        status = once.run(job)
    except Exception as e:
        if isinstance(e, JaxRuntimeError):  # if a process is lost, JAX ends this one in this time
            time.sleep(values.heartbeat_timeout + 5)
        logging.exception("error: process %d failed", processes.index())
    if processes.count() > 1:  # the others still work, and JAX would wait for them
        monitor.leave(status)
    return status
