"""Runs an experiment.

    python -m launch.main --config=experiments/ota_pruning.py:fast --workdir=DIR

Any field can be set, as ``--config.uplink.snr_db=5``; ``--help_config`` prints them all. A bad
value is refused in one line, with exit status 2, before anything is written.

Running the same command again resumes what was interrupted. ``--fresh`` starts over instead, and
``--resume_from`` starts a run from the checkpoints of another one.

``--distributed`` runs it as one of several processes, which a cluster starts (Slurm, Open MPI,
Cloud TPU, Kubernetes), or which ``--coordinator=HOST:PORT --processes=N --process=I`` describes.
On SIGTERM, SIGUSR2 or Ctrl-C a run finishes its segment of rounds, saves, and exits with status 42.

With ``--profile``, one round of the first program is traced into the folder instead, and a table
says which stage took how long.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from absl import flags
from jax.errors import JaxRuntimeError
from ml_collections import config_flags

from fedprune import backend, meeting, paths, processes
from fedprune import config as cfg
from launch import monitor, shell

if TYPE_CHECKING:
    from fedprune import experiment

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="experiment file and variant: experiments/NAME.py:VARIANT"
)
WORKDIR = flags.DEFINE_string("workdir", None, "run directory: metrics, checkpoints, figures")
PROFILE = flags.DEFINE_bool(
    "profile", False, "trace one round of the first program into --workdir, and run nothing"
)
FRESH = flags.DEFINE_bool(
    "fresh", False, "start over; what --workdir holds is moved to a numbered folder in it, old/"
)
RESUME_FROM = flags.DEFINE_string(
    "resume_from", None, "start a new run from the newest checkpoints of this run directory"
)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "run as one of several processes")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0; by default the cluster says it"
)
PROCESSES = flags.DEFINE_integer("processes", None, "their number; by default the cluster says it")
PROCESS = flags.DEFINE_integer("process", None, "which one this is; by default the cluster says it")
INITIALIZATION_TIMEOUT = flags.DEFINE_integer(
    "initialization_timeout", 300, "seconds to wait for the other processes at the start"
)
HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout", 60, "seconds after which a process that is not heard of counts as lost"
)
HELP = flags.DEFINE_bool(
    "help_config", False, "print every field of --config, or of the common configuration"
)


class UsageError(Exception):
    """A command line that cannot be used; the message is one line."""


class ReportError(Exception):
    """A report that the experiment cannot make of a run that is done; the message is one line."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit status.

    0; 2 for bad usage; 1 for unusable data or directories, a full disk, and processes that do not
    fit each other; 42 if the same command goes on: after SIGTERM, SIGUSR2 or Ctrl-C, or when
    another process is lost.
    """
    try:
        given = parse(argv)
        if HELP.value:
            print(cfg.explain(given or cfg.Config()))
            return 0
        config, workdir, source = _required(given)
        cfg.validate(config)
        _check_processes(config)
    except (UsageError, cfg.ConfigError, paths.PathError) as e:
        return refuse(e, 2)
    if not DISTRIBUTED.value:
        return _run(config, workdir, source)
    timeouts = INITIALIZATION_TIMEOUT.value, HEARTBEAT_TIMEOUT.value
    if not monitor.is_worker():
        return monitor.watch(argv, *timeouts)
    monitor.stay_with_monitor()
    run = {"workdir": str(workdir), **{path: value for path, _, value in cfg.fields(config)}}
    try:
        processes.connect(run, COORDINATOR.value, PROCESSES.value, PROCESS.value, *timeouts)
    except (processes.ProcessesError, meeting.AddressError) as e:
        return refuse(e, 2)
    except meeting.RefusedError as e:
        return refuse(e, 1)
    except meeting.MissingError as e:
        return refuse(Exception(f"{e}; the same command goes on"), monitor.RETRY)
    status = 1
    try:
        status = _run(config, workdir, source)
    except Exception as e:
        if isinstance(e, JaxRuntimeError):  # if a process is lost, JAX ends this one in this time
            time.sleep(HEARTBEAT_TIMEOUT.value + 5)
        logging.exception("error: process %d failed", processes.index())
    if processes.count() > 1:  # the others still work, and JAX would wait for them
        monitor.leave(status)
    return status


def _run(config: cfg.Config, workdir: Path, source: Path | None) -> int:
    """Runs the experiment on the devices of all processes; returns the exit status."""
    if config.mesh.devices % processes.count():
        return refuse(
            UsageError(
                f"mesh.devices={config.mesh.devices}: must be a multiple of the"
                f" {processes.count()} processes"
            ),
            2,
        )
    stop = threading.Event()

    def on_signal(number: int, _: object) -> None:
        stop.set()
        if number == signal.SIGINT:
            signal.signal(number, was[signal.SIGINT])  # a second Ctrl-C does not wait

    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as for jobs in the background
    numbers = monitor.STOP if ignored else (*monitor.STOP, signal.SIGINT)
    was = {number: signal.signal(number, on_signal) for number in numbers}
    backend.configure(config.mesh.devices // processes.count(), cache=not PROFILE.value)
    level = logging.INFO if processes.is_first() else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    quiet()
    backend.pin()

    from fedprune import checkpoint, data, experiment, loop, page, profile, writer

    with contextlib.ExitStack() as stack:

        def open_directory() -> writer.RunDirectory | None:
            if not processes.is_first():
                return None
            directory = writer.RunDirectory(
                workdir,
                cfg.to_json(config),
                fresh=FRESH.value,
                resume_from=source,
                free=cfg.FREE,
                places=cfg.PLACES,
            )
            stack.enter_context(directory)
            directory.record(backend.environment())
            return directory

        directory = None
        try:
            try:
                module = experiment_module(config)
                plan = processes.together(lambda: experiment.plan(config, module.arms(config)))
            except (UsageError, ValueError) as e:  # ConfigError is one; later it is no usage
                return refuse(e, 2)
            processes.require_same(lambda: _facts(plan))
            if PROFILE.value:
                if writer.foreign(workdir, profile.WRITES):
                    raise writer.RunDirectoryError(
                        f"workdir={workdir}: is neither empty nor a run directory"
                    )
                print(_profile(plan, workdir))
                return 0
            directory = processes.together(open_directory)
            try:
                rows = experiment.execute(plan, directory, stop.is_set)
            except loop.Stopped as e:
                processes.part()
                if directory:
                    directory.ended()
                logging.warning("%s; the same command goes on", e)
                return monitor.RETRY
            processes.part()
            for number, handler in was.items():
                signal.signal(number, handler)
            said = ""
            if directory:
                directory.ended()
                said = _reported(module, config, rows, directory.path)
                page.write([directory.path], directory.path / page.NAME)
                files = "report.md, report.html, summary.json, figures/, metrics.jsonl"
                said += f"\nResults in {directory.path}: {files}"
        except (
            data.DataError,
            writer.RunDirectoryError,
            checkpoint.CheckpointError,
            processes.ProcessesError,
            page.RunError,
            ReportError,
            OSError,
        ) as e:
            return refuse(e, 1)
    if said:
        print(said)
    return 0


def _reported(module: Any, config: cfg.Config, rows: list[Any], folder: Path) -> str:
    """The text of the experiment's report, which is written.

    Raises:
      ReportError: the experiment cannot make it. Then there is a summary without its tables.
    """
    try:
        return module.report(config, rows, folder)
    except OSError:
        raise
    except Exception as e:
        from fedprune import report

        at = traceback.extract_tb(e.__traceback__)[-1]
        arms = list(dict.fromkeys(row["arm"] for row in rows))
        name = config.experiment.rpartition(".")[2]
        report.write_summary(folder, name, cfg.to_json(config), rows, arms, {}, [])
        raise ReportError(
            f"{folder}: the run is done, but its report failed ({type(e).__name__}: {e}, in"
            f" {Path(at.filename).name}:{at.lineno}); metrics.jsonl and summary.json are there, and"
            " the same command makes the report again"
        ) from e


def quiet() -> None:
    """Keeps the libraries from printing what is no news, or what they raise as well."""
    for noisy in ("jax", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for raises in ("absl", "orbax"):  # Orbax logs with a traceback what it raises
        logging.getLogger(raises).setLevel(logging.CRITICAL)

    def unraisable(about: Any) -> None:
        # When one write has failed, Orbax does not wait for the others, whose ends go nowhere.
        if str(about.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(about)

    sys.unraisablehook = unraisable


def _check_processes(config: cfg.Config) -> None:
    """Whether the flags on several processes fit each other.

    Raises:
      UsageError: they do not.
    """
    given = {"coordinator": COORDINATOR, "processes": PROCESSES, "process": PROCESS}
    for name, flag in given.items():
        if flag.value is not None and not DISTRIBUTED.value:
            raise UsageError(f"--{name}={flag.value}: needs --distributed")
    if COORDINATOR.value is not None:
        missing = [name for name, flag in given.items() if flag.value is None]
        if missing:
            raise UsageError(f"--coordinator={COORDINATOR.value}: needs --{missing[0]}")
        try:
            meeting.address(COORDINATOR.value)
        except meeting.AddressError as e:
            raise UsageError(f"--coordinator={e}") from e
    count, at = PROCESSES.value, PROCESS.value
    if count is not None and count < 1:
        raise UsageError(f"--processes={count}: must be at least 1")
    if at is not None and not 0 <= at < (count or at + 1):
        raise UsageError(f"--process={at}: must be from 0 to --processes less 1")
    for name, timeout in (
        ("initialization_timeout", INITIALIZATION_TIMEOUT.value),
        ("heartbeat_timeout", HEARTBEAT_TIMEOUT.value),
    ):
        if timeout < 1:
            raise UsageError(f"--{name}={timeout}: must be at least 1 second")
    if DISTRIBUTED.value and PROFILE.value:
        raise UsageError("--profile: traces one process, without --distributed")


def _facts(plan: experiment.Plan) -> dict[str, Any]:
    """In what all processes must agree, by name."""
    import jax

    from fedprune import checkpoint

    about = backend.environment()
    arrays = [value for value in plan.dataset if hasattr(value, "dtype")]
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
        f"data {plan.dataset.name}": checkpoint.fingerprint(arrays),
    }


def parse(argv: Sequence[str]) -> cfg.Config | None:
    """The configuration that a command line asks for; None if it names none.

    Raises:
      UsageError: anything wrong with the command line.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of what is an error below
    given = next((a for a in argv if a.startswith("--config=")), None)
    try:
        rest = flags.FLAGS(list(argv))
        config = CONFIG.value
    except SystemExit as e:
        if any(re.fullmatch(r"--?(help(short|full|xml)?|h|\?)(=.*)?", a) for a in argv):
            raise
        raise UsageError(f"{given}: must return a Config, and exits with {e.code}") from e
    except Exception as e:  # absl and ml_collections raise many kinds
        raise UsageError(_explain(e, argv)) from e
    if rest[1:]:
        raise UsageError(f"{rest[1]}: flags only, as --name=value")
    if type(config).__name__ == "_ErrorConfig":  # the file itself could not be loaded
        raise UsageError(_explain(OSError(), argv))
    if not isinstance(config, cfg.Config) and given:
        raise UsageError(f"{given}: its get_config must return a fedprune Config, not {config!r}")
    return config


def _required(config: cfg.Config | None) -> tuple[cfg.Config, Path, Path | None]:
    """The configuration, the run directory, and the one to resume from.

    Raises:
      UsageError: one of the first two is missing.
      PathError: a directory cannot be one.
    """
    if config is None:
        raise UsageError("--config is missing: give --config=experiments/NAME.py:VARIANT")
    if not WORKDIR.value:
        raise UsageError("--workdir is missing: give --workdir=DIR")
    source = RESUME_FROM.value
    return (
        config,
        paths.local("--workdir", WORKDIR.value),
        None if source is None else paths.local("--resume_from", source),
    )


def _explain(error: Exception, argv: Sequence[str]) -> str:
    """One line for what absl or ml_collections raised."""
    given = next((a for a in argv if a.startswith("--config=")), "--config")
    text = str(error)
    refused = re.search(r"ConfigError: (.*)", text)  # the file's own, inside a printed traceback
    if refused:
        return refused[1]
    file = given.removeprefix("--config=").partition(":")[0]
    missing = "Error loading config file" in text or isinstance(error, OSError)
    if missing and not Path(file).is_file():
        others = map(str, Path(file).parent.glob("*.py"))
        return f"{given}: there is no such experiment file{cfg.suggestion(file, others)}"
    changes = [a for a in argv if a.startswith("--config.")]
    if changes and given == "--config":
        return "--config is missing: give --config=experiments/NAME.py:VARIANT"
    known = {path: field for path, field, _ in cfg.fields(named(given))} if changes else {}
    for change in changes:
        path, _, value = change.removeprefix("--config.").partition("=")
        if path not in known:
            return f"{change}: there is no such field{cfg.suggestion(path, known)}"
        if f"--config.{path}={value}" in text:
            return f"{path}={value!r}: must be {cfg.describe(known[path])}"
    if isinstance(error, flags.Error | cfg.ConfigError):
        return text
    return f"{given}: cannot be loaded ({type(error).__name__}: {text})"


def experiment_module(config: cfg.Config) -> ModuleType:
    """The module of a configuration's experiment.

    Raises:
      UsageError: there is none.
    """
    try:
        return importlib.import_module(config.experiment)
    except ImportError as e:
        raise UsageError(
            f"experiment={config.experiment!r}: cannot be imported ({e}); a file outside of the"
            " checkout needs its folder on PYTHONPATH"
        ) from e


def named(given: str) -> cfg.Config:
    """What ``--config=FILE:VARIANT`` names; the common fields if the file is no module of ours."""
    file, _, variant = given.removeprefix("--config=").partition(":")
    try:
        module = importlib.import_module(".".join(Path(file).with_suffix("").parts))
    except ImportError:
        return cfg.Config()
    return module.get_config(*[variant] if variant else [])


def _profile(plan, folder: Path) -> str:
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


def refuse(error: Exception, status: int) -> int:
    """Says in one line what is wrong; returns the exit status."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    shell.run(main)
