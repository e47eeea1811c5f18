"""Runs an experiment for every combination of some values.

    python -m launch.sweep --config=experiments/single.py:fast --workdir=DIR --on=local --jobs=2 \
        --grid='uplink.snr_db=0,10,20 pruning.ratio=0.3,0.9 seed=0:3'

``launch/grid.py`` has the grammar of ``--grid``, ``launch/trials.py`` what DIR holds. ``--on`` is
one of

  program           arms of one program where shapes allow, one process for all (default)
  local             processes on this machine, --jobs at a time, each with its share of the cores
  slurm             an array of jobs
  gke               xpk workloads
  gce               managed instance groups of Compute Engine
  queued_resources  Cloud TPU queued resources

``--dry_run`` prints what would be run, and starts and writes nothing. Trials that are finished are
skipped, so the same command does what is left. The grid of a directory may be extended by further
values of its fields, and not changed otherwise. At the end, or with ``--collect``, there is one
table of all trials and a figure.

If ``run.seed`` is swept, every trial has one seed.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import math
import operator
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TextIO

from absl import flags

from fedprune import backend, paths, report, writer
from fedprune import config as cfg
from launch import cloud, program, shell, slurm, trials
from launch import grid as grids
from launch import main as launcher
from launch.grid import SEED, Trial
from launch.monitor import RETRY
from launch.trials import State, Sweep

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PLACES = ("program", "local", "slurm", *cloud.TOOLS)
GRID = flags.DEFINE_string("grid", None, "fields and values: 'FIELD=VALUE,VALUE FIELD=FIRST:END'")
ON = flags.DEFINE_enum("on", "program", PLACES, "where trials run")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "print what would be run, and start nothing")
COLLECT = flags.DEFINE_bool("collect", False, "only collect what is finished in --workdir")
TRIAL = flags.DEFINE_string("trial", None, "run this one trial of the sweep in --workdir")
WAIT = flags.DEFINE_bool("wait", True, "slurm: wait for the jobs, and collect")
JOBS = flags.DEFINE_integer(
    "jobs", None, "trials at a time; local: 1 unless given; slurm: as many as start", lower_bound=1
)
RESTARTS = flags.DEFINE_integer(
    "max_restarts",
    100,
    "most restarts of a trial that asks for it or whose time is over; preemptions do not count",
    lower_bound=0,
)

# Slurm.
PARTITION = flags.DEFINE_string("partition", None, "slurm: partition")
TIME = flags.DEFINE_integer("time", 60, "slurm: minutes until a job is requeued", lower_bound=5)
CPUS = flags.DEFINE_integer("cpus", None, "slurm: cores of a job", lower_bound=1)
MEMORY = flags.DEFINE_float("memory", None, "slurm: GB of a job", lower_bound=0.01)
flags.register_validator(
    "memory",
    lambda value: value is None or math.isfinite(value),
    message="must be a number of GB, which nan and inf are not",
)
GPUS = flags.DEFINE_integer("gpus", None, "slurm: GPUs of a job", lower_bound=0)
ACCOUNT = flags.DEFINE_string("account", None, "slurm: account")
QOS = flags.DEFINE_string("qos", None, "slurm: quality of service")
SBATCH = flags.DEFINE_multi_string("sbatch", [], "slurm: another option, as constraint=a100")

# Clouds.
PROJECT = flags.DEFINE_string("project", None, "clouds: project")
ZONE = flags.DEFINE_string("zone", None, "clouds: zone")
CLUSTER = flags.DEFINE_string("cluster", None, "gke: cluster")
TPU_TYPE = flags.DEFINE_string("tpu_type", None, "gke, queued_resources: as v5litepod-8")
DOCKER_IMAGE = flags.DEFINE_string("docker_image", None, "gke: image with the checkout")
MACHINE_TYPE = flags.DEFINE_string("machine_type", None, "gce: as tpu7x-standard-4t")
IMAGE_FAMILY = flags.DEFINE_string("image_family", None, "gce: family of the boot image")
IMAGE_PROJECT = flags.DEFINE_string("image_project", None, "gce: project of the boot image")
RUNTIME_VERSION = flags.DEFINE_string("runtime_version", None, "queued_resources: TPU software")
CHECKOUT = flags.DEFINE_string("checkout", "/fedprune", "clouds: the checkout on the machines")
PYTHON = flags.DEFINE_string("python", "python", "clouds: the interpreter on the machines")
SPOT = flags.DEFINE_bool("spot", False, "clouds: machines that may be taken away")


def main(argv: Sequence[str]) -> int:
    """Returns the exit status.

    0: all trials are finished, or were started in a cloud; 1: some are not; 2: bad usage, of which
    nothing remains; 42: asked to stop.
    """
    try:
        given = launcher.parse(argv)
        _only_own_flags()
        if not launcher.WORKDIR.value:
            raise launcher.UsageError("--workdir is missing: give --workdir=DIR")
        folder = paths.local("--workdir", launcher.WORKDIR.value).absolute()
        if TRIAL.value is not None:
            return _one(trials.read(folder), TRIAL.value)
        if given is None:
            if GRID.value is not None:
                raise launcher.UsageError("--config is missing: give it together with --grid")
            sweep = trials.read(folder)
            config = _recorded(sweep, argv[0])
        else:
            sweep, config = _asked(folder, given, argv)
        module = launcher.experiment_module(config)
        grids.check(config, sweep.grid, module.arms)
        if COLLECT.value:
            return _collect(sweep, config)
        _check_place(sweep, config)
    except (launcher.UsageError, cfg.ConfigError, paths.PathError) as e:
        return launcher.refuse(e, 2)
    except (writer.RunDirectoryError, OSError) as e:
        return launcher.refuse(e, 1)
    if DRY_RUN.value:
        print(_dry_run(sweep, config, module))
        return 0
    return _run(sweep, config, module)


def _only_own_flags() -> None:
    """Refuses flags of single runs.

    Raises:
      UsageError: one is given.
    """
    for flag in flags.FLAGS.flags_by_module_dict()[launcher.__name__]:
        if flag.present and flag.name.partition(".")[0] not in ("config", "workdir"):
            raise launcher.UsageError(f"--{flag.name}: is for launch.main, not for sweeps")


def _asked(folder: Path, config: cfg.Config, argv: Sequence[str]) -> tuple[Sweep, cfg.Config]:
    """The sweep that a command line asks for, and its common configuration.

    Raises:
      UsageError, ConfigError: it cannot be.
      RunDirectoryError: the folder holds something else.
    """
    if not GRID.value:
        raise launcher.UsageError("--grid is missing: give --grid='FIELD=VALUE,VALUE ...'")
    arguments = [a for a in argv[1:] if a.lstrip("-").startswith("config")]
    for argument in arguments:
        if not argument.startswith("--config") or "=" not in argument:
            raise launcher.UsageError(f"{argument}: must be --config=... or --config.FIELD=...")
    grid = grids.parse(GRID.value, config)
    if SEED in grid:
        if "run.seeds" in grid:
            raise cfg.ConfigError("run.seeds: cannot be swept together with run.seed")
        config = cfg.override(config, {"run.seeds": 1})
        arguments.append(grids.argument("run.seeds", 1))
    sweep = Sweep(folder, tuple(arguments), cfg.to_json(config), grid)
    if (folder / "sweep.json").exists():
        _same_or_larger(trials.read(folder), sweep)
    elif folder.exists() and (
        not folder.is_dir() or {p.name for p in folder.iterdir()} - {writer.LOCK}
    ):
        raise writer.RunDirectoryError(f"workdir={folder}: is neither empty nor a sweep")
    return sweep, config


def _recorded(sweep: Sweep, program: str) -> cfg.Config:
    """The common configuration of a sweep that was read from its folder.

    Raises:
      UsageError: its file is not there any more.
      RunDirectoryError: its file has fields that it had not.
    """
    (given,) = (a for a in sweep.arguments if a.startswith("--config="))
    config = launcher.parse([program, given])
    assert config is not None
    values = {}
    for path, _, _ in cfg.fields(config):
        try:
            value = functools.reduce(operator.getitem, path.split("."), sweep.config)
        except KeyError:
            raise writer.RunDirectoryError(
                f"workdir={sweep.folder}: {given} has the field {path}, which it had not when the"
                " sweep was begun; take a new directory"
            ) from None
        values[path] = tuple(value) if isinstance(value, list) else value
    return cfg.override(config, values)


def _same_or_larger(old: Sweep, new: Sweep) -> None:
    """Whether a sweep has all that the folder's has.

    Raises:
      RunDirectoryError: it has not.
    """
    refused = f"workdir={old.folder}: belongs to another sweep"
    for _, text in writer.differences(old.config, json.loads(json.dumps(new.config))):
        raise writer.RunDirectoryError(f"{refused} ({text}); take a new directory")
    if list(old.grid) != list(new.grid):
        raise writer.RunDirectoryError(
            f"{refused} (its fields are {', '.join(old.grid)}); take a new directory"
        )
    for path, values in old.grid.items():
        for value in values:
            if value not in new.grid[path]:
                raise writer.RunDirectoryError(
                    f"{refused} ({path} had {grids.written(value)} there, too; a grid may only be"
                    " extended); take a new directory"
                )


def _check_place(sweep: Sweep, config: cfg.Config) -> None:
    """Whether the trials can run where they should.

    Raises:
      UsageError: something is missing for it.
    """
    place = ON.value
    if place == "program":
        program.batches(config, sweep.trials())
    if place == "slurm":
        try:
            importlib.import_module("submitit")
        except ImportError:
            raise launcher.UsageError(
                "--on=slurm: needs submitit: pip install -e '.[slurm]'"
            ) from None
        if not DRY_RUN.value:
            try:
                slurm.queued()
            except RuntimeError as e:
                raise launcher.UsageError(str(e)) from None
    if place in cloud.TOOLS:
        without = [f"--{name}" for name in cloud.missing(place, _cloud_options())]
        if without:
            raise launcher.UsageError(f"--on={place}: needs {', '.join(without)}")
        if not DRY_RUN.value and cloud.tool_missing(place):
            raise launcher.UsageError(
                f"--on={place}: {cloud.TOOLS[place]} was not found on this machine"
            )


def _slurm_options() -> slurm.Options:
    return slurm.Options(
        partition=PARTITION.value,
        minutes=TIME.value,
        cpus=CPUS.value,
        memory=MEMORY.value,
        gpus=GPUS.value,
        account=ACCOUNT.value,
        qos=QOS.value,
        sbatch=tuple(SBATCH.value),
        jobs=JOBS.value,
        restarts=RESTARTS.value,
    )


def _cloud_options() -> cloud.Options:
    names = [name for name in cloud.Options._fields if name in flags.FLAGS]
    values: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
    return cloud.Options(**values, restarts=RESTARTS.value)


def _unfinished(sweep: Sweep) -> list[Trial]:
    return [t for t in sweep.trials() if trials.state(sweep, t).word != "finished"]


def _dry_run(sweep: Sweep, config: cfg.Config, module) -> str:
    """What would be run, as lines for a shell where there are such."""
    todo, place = _unfinished(sweep), ON.value
    if not todo:
        return "# all trials are finished"
    if place == "local":
        return "\n".join(shlex.join(sweep.command(trial)) for trial in todo)
    if place == "slurm":
        options = _slurm_options()
        return "\n".join(slurm.script(sweep, part, options) for part in slurm.parts(todo))
    if place == "program":
        lines = []
        for batch in program.left(sweep, config, todo):
            _, arms = program.plan(module, config, batch)
            count = len(cfg.program_groups(config, arms))
            lines.append(f"# {len(batch)} trials as {len(arms)} arms; compiled programs: {count}")
            lines += [f"#   {arm.name}" for arm in arms]
        return "\n".join(lines)
    lines = []
    for trial in todo:
        before, commands = _cloud_commands(sweep, trial, place, _cloud_options())
        lines += [f"{shlex.join(command)} || true" for command in before]
        lines += map(shlex.join, commands)
    return "\n".join(lines)


# Running -----


def _run(sweep: Sweep, config: cfg.Config, module) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, _stop)
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
        with writer.locked(
            (sweep.folder / writer.LOCK).open("w", encoding="utf-8"), f"workdir={sweep.folder}"
        ):
            trials.write(sweep)
            todo = _unfinished(sweep)
            skipped = len(sweep.trials()) - len(todo)
            if skipped:
                print(f"{skipped} of {len(sweep.trials())} trials were finished before", flush=True)
            if todo:
                places: Mapping[str, Callable[[], bool]] = {
                    "program": lambda: _program(sweep, config, module, todo),
                    "local": lambda: _local(sweep, todo, JOBS.value or 1),
                    "slurm": lambda: _slurm(sweep, todo, _slurm_options()),
                }
                cloudy = lambda: _cloud(sweep, todo, ON.value, _cloud_options())
                ended = places.get(ON.value, cloudy)()
                if not ended:
                    return 0
            return _collect(sweep, config)
    except KeyboardInterrupt:
        print("stopped; the same command does what is left", file=sys.stderr)
        return RETRY
    except BrokenPipeError:  # nobody reads the progress any more
        raise
    except (writer.RunDirectoryError, RuntimeError, OSError) as e:
        return launcher.refuse(e, 1)


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _collect(sweep: Sweep, config: cfg.Config) -> int:
    """Collects, and names what is not finished; returns the exit status."""
    from launch import collect

    print(collect.collect(sweep, config))
    left, count = _unfinished(sweep), len(sweep.trials())
    if left:
        print(f"error: {len(left)} of {count} trials are not finished:", file=sys.stderr)
    for trial in left:
        print(f"  {trials.fault(sweep, trial)}", file=sys.stderr)
    return 1 if left else 0


# Each of these runs trials, and returns whether they have ended.


def _program(sweep: Sweep, config: cfg.Config, module, todo: Sequence[Trial]) -> bool:
    launcher.quiet()
    backend.configure(config.mesh.devices)
    backend.pin()
    program.run(sweep, module, config, todo)
    return True


def _local(sweep: Sweep, todo: Sequence[Trial], jobs: int) -> bool:
    """Processes, each on cores of its own; with fewer cores than jobs, they take turns. Where the
    system cannot bind a process to cores, each has its number of threads alone."""
    free, stopping = shares(backend.cores(), jobs), threading.Event()
    pins = hasattr(os, "sched_setaffinity")  # macOS has none
    running: set[subprocess.Popen] = set()

    def pin() -> None:
        if pins:
            os.sched_setaffinity(0, free.pop())  # of this thread, and so of the processes it starts

    def started(process: subprocess.Popen) -> None:
        running.add(process)
        if stopping.is_set():
            process.terminate()

    def one(trial: Trial) -> None:
        share = len(backend.cores()) if pins else max(1, len(backend.cores()) // jobs)
        limits = dict.fromkeys(THREADS, str(share))
        trials.run(sweep, trial, {**limits, **os.environ}, started)

    for trial in todo:
        trials.forget(sweep, trial)
    table = Table(sweep)
    pool = ThreadPoolExecutor(jobs, initializer=pin)
    try:
        left = {pool.submit(one, trial) for trial in todo}
        while left:
            done, left = wait(left, timeout=0.5)
            for future in done:
                future.result()
            table.show()
    finally:
        stopping.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):
            process.terminate()  # nothing, to one that has ended
        pool.shutdown()
        table.show()
    return True


def shares(cores: Sequence[int], jobs: int) -> list[list[int]]:
    """The cores of each of so many jobs: all different while there are enough."""
    parts = [cores[i * len(cores) // jobs : (i + 1) * len(cores) // jobs] for i in range(jobs)]
    return [list(part) or [cores[i % len(cores)]] for i, part in enumerate(parts)]


def _slurm(sweep: Sweep, todo: Sequence[Trial], options: slurm.Options) -> bool:
    """Submits what is not in the queue already, and waits."""
    ids, queued = slurm.submitted(sweep), slurm.queued()
    if queued is None:
        raise RuntimeError("squeue: Slurm does not answer")
    new = [trial for trial in todo if ids.get(trial.name) not in queued]
    for trial in new:
        trials.forget(sweep, trial)
    if new:
        ids = slurm.submit(sweep, new, options)
    print(f"Slurm: {len(new)} jobs submitted, {len(todo) - len(new)} in the queue before")
    if not WAIT.value:
        return False
    table, absent = Table(sweep), Counter[str]()
    try:
        while True:
            queued = slurm.queued()
            waiting = [t for t in todo if trials.state(sweep, t).word in ("waiting", "running")]
            table.show()
            if queued is not None:
                for name in (trial.name for trial in waiting):
                    absent[name] = 0 if ids[name] in queued else absent[name] + 1
            # Gone three times in a row: the notes of a job that has just ended may be late.
            if all(absent[trial.name] >= 3 for trial in waiting):
                return True
            time.sleep(1)
    except KeyboardInterrupt:
        print("the jobs go on; scancel ends them", file=sys.stderr)
        raise


def _cloud(sweep: Sweep, todo: Sequence[Trial], place: str, options: cloud.Options) -> bool:
    """Starts all trials, and does not wait: False.

    Raises:
      RuntimeError: some could not be started; there has been a line for each.
    """
    refused = False
    for trial in todo:
        before, commands = _cloud_commands(sweep, trial, place, options)
        for command in before:
            subprocess.run(command, capture_output=True)
        for command in commands:
            print(f"$ {shlex.join(command)}", flush=True)
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                refused = True
                said = (result.stderr or result.stdout).strip().splitlines() or ["nothing"]
                print(f"error: {trial.name}: {command[0]} said: {said[-1]}", file=sys.stderr)
                break
        else:
            trials.forget(sweep, trial)
    if refused:
        raise RuntimeError("some trials were not started; the same command tries them again")
    print("All are started; --collect makes a table of those that are finished")
    return False


def _cloud_commands(
    sweep: Sweep, trial: Trial, place: str, options: cloud.Options
) -> tuple[list[list[str]], list[list[str]]]:
    """What makes room for a trial, and may fail; what starts it."""
    failed = trials.state(sweep, trial).word == "failed"
    about = place, sweep, trial, options
    return cloud.leftovers(*about, failed), cloud.commands(*about)


def _one(sweep: Sweep, name: str) -> int:
    """Runs one trial of a recorded sweep, as machines of a cluster do."""
    found = {trial.name: trial for trial in sweep.trials()}
    if name not in found:
        raise launcher.UsageError(
            f"--trial={name}: there is no such trial{cfg.suggestion(name, found)}"
        )
    if trials.state(sweep, found[name]).word == "finished":
        return 0

    def pass_on(process: subprocess.Popen) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())

    status = trials.run(sweep, found[name], started=pass_on)
    if status:
        print(f"error: {trials.fault(sweep, found[name])}", file=sys.stderr)
    return status if status >= 0 else 128 - status


class Table:
    """Progress: a table in place on a terminal, else a line whenever a trial starts or ends."""

    def __init__(self, sweep: Sweep, stream: TextIO | None = None) -> None:
        self._sweep, self._stream = sweep, stream or sys.stdout
        self._states = {trial.name: trials.state(sweep, trial) for trial in sweep.trials()}
        self._height = 0

    def show(self) -> None:
        """Reads how far the trials are, and shows it."""
        before = dict(self._states)
        for trial in self._sweep.trials():
            if before[trial.name].word != "finished":
                self._states[trial.name] = trials.state(self._sweep, trial)
        if self._stream.isatty():
            text = self.text()
            # To the first line of the last table, and everything below it away.
            up = f"\x1b[{self._height}F\x1b[J" if self._height else ""
            print(up + text, file=self._stream, flush=True)
            self._height = text.count("\n") + 1
            return
        ended = sum(state.word in ("finished", "failed") for state in self._states.values())
        for name, state in self._states.items():
            if state.word != before[name].word:
                line = f"[{ended}/{len(before)}] {name}: {_words(state)}"
                print(line, file=self._stream, flush=True)

    def text(self) -> str:
        """Counts, and a line for each trial that runs or has failed."""
        counts = Counter(state.word for state in self._states.values())
        shown = {n: s for n, s in self._states.items() if s.word in ("running", "failed")}
        words = ("finished", "running", "waiting", "failed")
        lines = [f"{len(self._states)} trials: " + ", ".join(f"{counts[w]} {w}" for w in words)]
        if shown:
            body = [[name, _words(state)] for name, state in shown.items()]
            lines.append(report.table(["trial", "state"], body[-20:]))
        return "\n".join(lines)


def _words(state: State) -> str:
    parts = [state.word]
    if state.round:
        parts.append(f"round {state.round}")
    if state.accuracy is not None:
        parts.append(f"accuracy {state.accuracy:.3f}")
    if state.seconds is not None:
        parts.append(f"{state.seconds:.0f} s")
    return ", ".join(parts)


if __name__ == "__main__":
    shell.run(main)
