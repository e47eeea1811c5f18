"""One run of an experiment, in this process: from a checked configuration to its directory."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedprune import config as cfg
from fedprune.cli import log, monitor, screen, shell
from fedprune.cli.experiments import Experiment, ExperimentError, where

if TYPE_CHECKING:
    from fedprune import runs
    from fedprune.runs import execution
    from fedprune.runs.writers import Log, Open


class Job(NamedTuple):
    """What a command line asks for, once it has been checked."""

    experiment: Experiment
    config: cfg.Config
    arms: Sequence[cfg.Arm]
    workdir: Path
    source: Path | None
    """the run directory to start from"""
    fresh: bool
    profile: bool
    log: log.Choice


class PlanError(Exception):
    """A configuration that is refused before anything is written; the message is one line."""


class ReportError(Exception):
    """A report that the experiment cannot make of a run that is done; the message is one line."""


def run(job: Job) -> int:
    """Runs it on the devices of all processes; returns the exit status."""
    from fedprune import backend, processes

    devices, count = job.config.mesh.devices, processes.count()
    if devices % count:
        return shell.refuse(
            f"mesh.devices={devices}: must be a multiple of the {count} processes", 2
        )
    stop = threading.Event()
    before = _listen(stop)
    backend.configure(devices // count, cache=not job.profile)
    level = logging.INFO if processes.is_first() else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    quiet()
    backend.pin()

    from fedprune import data, runs
    from fedprune.report import page
    from fedprune.runs import checkpoint, loop, writers  # Orbax sets up logging, if nobody has

    try:
        said = _run(job, stop, before)
    except PlanError as e:
        return shell.refuse(e, 2)
    except loop.Stopped as e:
        logging.warning("%s; the same command goes on", e)
        return monitor.RETRY
    except (
        data.DataError,
        runs.RunDirectoryError,
        checkpoint.CheckpointError,
        writers.WriterError,
        processes.ProcessesError,
        page.RunError,
        ReportError,
        OSError,
    ) as e:
        return shell.refuse(e, 1)
    if said:
        screen.say(said)
    return 0


def _listen(stop: threading.Event) -> Mapping[signal.Signals, Any]:
    """Lets signals ask for an end after the segment; returns who took them before."""

    def on_signal(number: int, _: object) -> None:
        stop.set()
        if number == signal.SIGINT:
            # Not by print: the signal may have come in the middle of one.
            os.write(2, b"\nstopping after this segment of rounds; Ctrl-C again does not wait\n")
            signal.signal(number, before[signal.SIGINT])  # a second Ctrl-C does not wait

    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as for jobs in the background
    numbers = monitor.STOP if ignored else (*monitor.STOP, signal.SIGINT)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    return before


def _run(job: Job, stop: threading.Event, before: Mapping[signal.Signals, Any]) -> str:
    """Runs it, or traces a round of it; returns what is to be printed, process 0's alone.

    Raises:
      PlanError: the plan is refused. And all that ``run`` reports.
    """
    from fedprune import processes, profile, runs
    from fedprune.report import page
    from fedprune.runs import execution, loop

    with contextlib.ExitStack() as stack:
        try:
            plan = processes.together(
                lambda: execution.plan(job.config, job.arms, job.experiment.own())
            )
        except (ValueError, ExperimentError) as e:  # of the configuration; later it is none
            raise PlanError(e) from e
        processes.require_same(lambda: _facts(plan))
        if job.profile:
            if runs.foreign(job.workdir, profile.WRITES):
                raise runs.RunDirectoryError(
                    f"workdir={job.workdir}: is neither empty nor a run directory"
                )
            return _profile(plan, job.workdir)
        opens = processes.together(lambda: log.connect(job.log) if processes.is_first() else [])
        directory = processes.together(lambda: _open(job, plan, stack))
        out = processes.together(lambda: _log(job, directory, opens))
        try:
            rows = execution.execute(plan, directory, stop.is_set, out)
        except loop.Stopped:
            processes.part()
            if directory:
                directory.ended()
            raise
        processes.part()
        for number, handler in before.items():
            signal.signal(number, handler)
        if not directory:
            return ""
        directory.ended()
        said = reported(job.experiment, job.config, rows, directory.path)
        page.write([directory.path], directory.path / page.NAME)
        files = "report.md, report.html, summary.json, figures/, metrics.jsonl"
        return f"{said}\nResults in {directory.path}:\n  {files}"


def _open(job: Job, plan: execution.Plan, stack: contextlib.ExitStack) -> runs.RunDirectory | None:
    """The run directory, with this start in its record; None on all processes but the first."""
    from fedprune import backend, processes, runs
    from fedprune.runs import execution

    if not processes.is_first():
        return None
    directory = runs.RunDirectory(
        job.workdir,
        cfg.to_json(job.config),
        fresh=job.fresh,
        resume_from=job.source,
        free=cfg.resumable(job.config),
        places=cfg.PLACES,
        identity=plan.identity,
    )
    stack.enter_context(directory)
    origin = {"experiment": job.experiment.origin()}
    directory.record({**backend.environment(), **origin, **execution.about(plan)})
    return directory


def _log(job: Job, directory: runs.RunDirectory | None, opens: Sequence[Open]) -> Log:
    from fedprune.runs.writers import Log

    if not directory:
        return Log()
    about = log.about(directory, job.config, {arm.name: arm.overrides for arm in job.arms})
    return Log([opened(about) for opened in opens])


def reported(
    experiment: Experiment, config: cfg.Config, rows: Sequence[dict[str, Any]], folder: Path
) -> str:
    """The text of the experiment's report, which is written.

    Raises:
      ReportError: the experiment cannot make it. Then there is a summary without its tables.
    """
    try:
        return experiment.report(config, rows, folder)
    except OSError:
        raise
    except Exception as e:
        from fedprune import report

        arms = list(dict.fromkeys(row["arm"] for row in rows))
        values = cfg.to_json(config)
        report.write_summary(folder, config.experiment, values, rows, arms, {}, [])
        said = where(e, experiment.file)
        raise ReportError(
            f"{folder}: the run is done, but its report failed ({said}); metrics.jsonl and"
            " summary.json are there, and the same command makes the report again"
        ) from e


def quiet() -> None:
    """Keeps the libraries from printing what is no news, or what they raise as well."""
    for noisy in ("jax", "matplotlib", "mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for raises in ("absl", "orbax"):  # Orbax logs with a traceback what it raises
        logging.getLogger(raises).setLevel(logging.CRITICAL)

    def unraisable(about: Any) -> None:
        # When one write has failed, Orbax does not wait for the others, whose ends go nowhere.
        if str(about.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(about)

    sys.unraisablehook = unraisable


def _facts(plan: execution.Plan) -> dict[str, Any]:
    """In what all processes must agree, by name."""
    import jax

    from fedprune import backend

    about = backend.environment()
    return {
        **{path: value for path, _, value in cfg.fields(plan.config)},
        **{f"arms of {program.name}": list(program.labels) for program in plan.programs},
        "processes": about["processes"],
        "source": about["source"],
        **about["packages"],
        **about["arithmetic"],
        "devices of a process": jax.local_device_count(),
        # Every process computes what all of them share; it must come to the same bits.
        "processor": about["processor"] if jax.default_backend() == "cpu" else "",
        **{f"{name} ({plan.dataset.name})": value for name, value in plan.identity.items()},
    }


def _profile(plan: execution.Plan, folder: Path) -> str:
    """Traces one round (and its evaluation) of a plan's first program; a table of time by stage."""
    import jax

    from fedprune import profile, report, run

    program = plan.programs[0]
    segment, arms = program.segment(1), run.pad(program.start(), program.padded)
    jax.block_until_ready(segment(arms))
    profile.measure(lambda: segment(arms), folder)
    text = segment.lower(arms).compile().as_text()
    seconds = profile.by_stage(folder, text)
    total = sum(seconds.values())
    body = [[name, f"{1e3 * s:.2f}", f"{s / total:.1%}"] for name, s in seconds.items()]
    title = f"One round of {len(program.labels)} runs and its evaluation, all devices together:"
    table = report.table(["stage", "ms", "share"], body)
    return f"{title}\n\n{table}\n\nTrace for TensorBoard or Perfetto in {folder}"
