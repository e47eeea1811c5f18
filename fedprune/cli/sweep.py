"""``fedprune sweep``: runs an experiment for every combination of some values.

    fedprune sweep single:fast --workdir=DIR --on=local --jobs=2 \
        --grid='uplink.snr_db=0,10,20 pruning.ratio=0.3,0.9 seed=0:3'

``grid`` has the grammar of ``--grid``, ``trials`` what DIR holds. ``--on`` is one of

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

import importlib.util
import json
import logging
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import flags

from fedprune import config as cfg
from fedprune import paths, runs
from fedprune.cli import (
    cloud,
    experiments,
    log,
    parse,
    places,
    program,
    screen,
    shell,
    slurm,
    sweep_flags,
    trials,
)
from fedprune.cli import grid as grids
from fedprune.cli.experiments import Experiment, ExperimentError
from fedprune.cli.grid import SEED, Trial
from fedprune.cli.monitor import RETRY
from fedprune.cli.parse import UsageError
from fedprune.cli.trials import Sweep
from fedprune.runs.writers import WriterError

USAGE = "NAME[:VARIANT]|FILE.py[:VARIANT] --workdir=DIR --grid='FIELD=VALUE,VALUE ...' [--on=...]"
ABOUT = """Runs an experiment for every combination of some values, and collects one table. The
same command does what is left; then --workdir alone is enough. Exit status: 0: all trials are
finished, or were started in a cloud; 1: some are not; 2: bad usage; 42: asked to stop."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit status.

    0: all trials are finished, or were started in a cloud; 1: some are not; 2: bad usage, of which
    nothing remains; 42: asked to stop.
    """
    try:
        if parse.wants_help(argv) or len(argv) == 1:
            print(parse.help_text(argv, USAGE, ABOUT, sweep_flags.define))
            return 0
        sweep_flags.refuse_those_of_runs(argv)
        given = parse.parse(argv, sweep_flags.define)
        values = given.values
        if not values.workdir:
            raise UsageError("--workdir is missing: give --workdir=DIR")
        folder = paths.local("--workdir", values.workdir).absolute()
        if values.trial is not None:
            return _one(trials.read(folder), values.trial)
        if given.experiment is None and values.grid is not None:
            raise UsageError(f"no experiment is named beside --grid: {parse.EXAMPLE}")
        if values.grid is None and not given.changes:
            sweep, experiment, config = _recorded(folder, given.experiment)
        else:
            sweep, experiment, config = _asked(folder, given)
        sweep = sweep._replace(writers=_writers(sweep, values))
        grids.check(config, sweep.grid, experiment.arms)
        if values.collect:
            return _collect(sweep, config)
        _check_place(sweep, config, values)
    except (UsageError, ExperimentError, cfg.ConfigError, paths.PathError) as e:
        return shell.refuse(e, 2)
    except (runs.RunDirectoryError, OSError) as e:
        return shell.refuse(e, 1)
    if values.dry_run:
        print(_dry_run(sweep, experiment, config, values))
        return 0
    return _run(sweep, experiment, config, values)


def _asked(folder: Path, given: parse.Given) -> tuple[Sweep, Experiment, cfg.Config]:
    """The sweep that a command line asks for, its experiment and common configuration.

    Raises:
      UsageError, ConfigError: it cannot be.
      RunDirectoryError: the folder holds something else.
    """
    experiment, config = given.experiment, given.config
    assert experiment is not None
    assert config is not None
    if not given.values.grid:
        raise UsageError("--grid is missing: give --grid='FIELD=VALUE,VALUE ...'")
    arguments = [experiment.given(), *given.changes]
    grid = grids.parse(given.values.grid, config)
    if SEED in grid:
        if "run.seeds" in grid:
            raise cfg.ConfigError("run.seeds: cannot be swept together with run.seed")
        config = cfg.override(config, {"run.seeds": 1})
        arguments.append(grids.argument("run.seeds", 1))
    sweep = Sweep(folder, tuple(arguments), cfg.to_json(config), grid, experiment.origin())
    if (folder / "sweep.json").exists():
        _same_or_larger(trials.read(folder), sweep)
    elif folder.exists() and (
        not folder.is_dir() or {p.name for p in folder.iterdir()} - {runs.LOCK}
    ):
        raise runs.RunDirectoryError(f"workdir={folder}: is neither empty nor a sweep")
    return sweep, experiment, config


def _writers(sweep: Sweep, values: flags.FlagValues) -> log.Choice:
    """Where the numbers go: as the flags say, or where there are none, as before.

    Raises:
      UsageError: they cannot go there.
    """
    if values["log"].present or values["mlflow_uri"].present:
        choice = log.chosen(values)
    elif (sweep.folder / "sweep.json").exists():
        choice = trials.read(sweep.folder).writers
    else:
        choice = log.Choice()
    if "mlflow" in choice.names and values.on in cloud.TOOLS and not choice.mlflow_uri:
        raise UsageError(
            f"--on={values.on}: --log=mlflow needs --mlflow_uri: the machines there have not this"
            " one's environment"
        )
    return choice


def _recorded(folder: Path, moved: Experiment | None) -> tuple[Sweep, Experiment, cfg.Config]:
    """The sweep that a folder holds, its experiment and common configuration.

    Args:
      folder: of the sweep.
      moved: the experiment, where the file is in another place than it was.

    Raises:
      ExperimentError: the experiment's file is not there any more, or has other fields.
      RunDirectoryError: the folder holds no sweep.
    """
    try:
        sweep = trials.read(folder)
    except runs.RunDirectoryError:
        if moved is None or (folder / "sweep.json").exists():
            raise
        raise UsageError("--grid is missing: give --grid='FIELD=VALUE,VALUE ...'") from None
    said, origin = f"workdir={folder}", moved.origin() if moved else sweep.origin
    found = experiments.recorded(origin, sweep.config, said, "name FILE.py beside --workdir")
    experiment, config = experiments.load(found, f"{said}: {found}")
    if experiment.name != sweep.config["experiment"]:
        raise UsageError(
            f"{said}: belongs to the experiment {sweep.config['experiment']}, not {experiment.name}"
        )
    values = experiments.restored(config, sweep.config, f"{said}: {experiment.file}")
    arguments = (experiment.given(), *sweep.arguments[1:])
    return sweep._replace(arguments=arguments, origin=experiment.origin()), experiment, values


def _same_or_larger(old: Sweep, new: Sweep) -> None:
    """Whether a sweep has all that the folder's has.

    Raises:
      RunDirectoryError: it has not.
    """
    refused = f"workdir={old.folder}: belongs to another sweep"
    for _, text in runs.differences(old.config, json.loads(json.dumps(new.config))):
        raise runs.RunDirectoryError(f"{refused} ({text}); take a new directory")
    if list(old.grid) != list(new.grid):
        raise runs.RunDirectoryError(
            f"{refused} (its fields are {', '.join(old.grid)}); take a new directory"
        )
    for path, values in old.grid.items():
        for value in values:
            if value not in new.grid[path]:
                raise runs.RunDirectoryError(
                    f"{refused} ({path} had {grids.written(value)} there, too; a grid may only be"
                    " extended); take a new directory"
                )


def _check_place(sweep: Sweep, config: cfg.Config, values: flags.FlagValues) -> None:
    """Whether the trials can run where they should.

    Raises:
      UsageError: something is missing for it.
    """
    place = values.on
    if place == "program":
        program.batches(config, sweep.trials())
    if place == "slurm":
        if importlib.util.find_spec("submitit") is None:
            raise UsageError("--on=slurm: needs submitit: pip install submitit")
        if not values.dry_run:
            try:
                slurm.queued()
            except RuntimeError as e:
                raise UsageError(str(e)) from None
    if place in cloud.TOOLS:
        without = [f"--{name}" for name in cloud.missing(place, sweep_flags.of_clouds(values))]
        if without:
            raise UsageError(f"--on={place}: needs {', '.join(without)}")
        if not values.dry_run and cloud.tool_missing(place):
            raise UsageError(f"--on={place}: {cloud.TOOLS[place]} was not found on this machine")


def _unfinished(sweep: Sweep) -> list[Trial]:
    return [t for t in sweep.trials() if trials.state(sweep, t).word != "finished"]


def _dry_run(
    sweep: Sweep, experiment: Experiment, config: cfg.Config, values: flags.FlagValues
) -> str:
    """What would be run, as lines for a shell where there are such."""
    todo, place = _unfinished(sweep), values.on
    if not todo:
        return "# all trials are finished"
    if place == "local":
        return "\n".join(shlex.join(sweep.command(trial)) for trial in todo)
    if place == "slurm":
        options = sweep_flags.of_slurm(values)
        return "\n".join(slurm.script(sweep, part, options) for part in slurm.parts(todo))
    if place == "program":
        lines = []
        for batch in program.left(sweep, config, todo):
            _, arms = program.plan(experiment, config, batch)
            count = len(cfg.program_groups(config, arms))
            lines.append(f"# {len(batch)} trials as {len(arms)} arms; compiled programs: {count}")
            lines += [f"#   {arm.name}" for arm in arms]
        return "\n".join(lines)
    lines = []
    for trial in todo:
        before, commands = places.cloud_commands(sweep, trial, place, sweep_flags.of_clouds(values))
        lines += [f"{shlex.join(command)} || true" for command in before]
        lines += map(shlex.join, commands)
    return "\n".join(lines)


# Running -----


def _run(sweep: Sweep, experiment: Experiment, config: cfg.Config, values: flags.FlagValues) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, _stop)
    try:
        opens = log.connect(sweep.writers)  # here first, since it may make the store
        sweep.folder.mkdir(parents=True, exist_ok=True)
        with runs.locked(
            (sweep.folder / runs.LOCK).open("w", encoding="utf-8"), f"workdir={sweep.folder}"
        ):
            _warn_of_another_file(sweep)
            trials.write(sweep)
            todo = _unfinished(sweep)
            skipped = len(sweep.trials()) - len(todo)
            if skipped:
                print(f"{skipped} of {len(sweep.trials())} trials were finished before", flush=True)
            if todo:
                on: Mapping[str, Callable[[], bool]] = {
                    "program": lambda: places.in_one_program(
                        sweep, experiment, config, todo, opens
                    ),
                    "local": lambda: places.locally(sweep, todo, values.jobs or 1),
                    "slurm": lambda: places.on_slurm(
                        sweep, todo, sweep_flags.of_slurm(values), waits=values.wait
                    ),
                }
                cloudy = lambda: places.in_cloud(
                    sweep, todo, values.on, sweep_flags.of_clouds(values)
                )
                ended = on.get(values.on, cloudy)()
                if not ended:
                    return 0
            return _collect(sweep, config)
    except KeyboardInterrupt:
        print("stopped; the same command does what is left", file=sys.stderr)
        return RETRY
    except BrokenPipeError:  # nobody reads the progress any more
        raise
    except (runs.RunDirectoryError, WriterError, RuntimeError, OSError) as e:
        return shell.refuse(e, 1)


def _warn_of_another_file(sweep: Sweep) -> None:
    """Says if the experiment's file is not as it was when the trials before were started."""
    if not (sweep.folder / "sweep.json").exists():
        return
    before, now = trials.read(sweep.folder).origin, sweep.origin
    if before and now and before["sha256"] != now["sha256"]:
        logging.warning(
            "%s has changed since the sweep was last started", now["file"] or now["name"]
        )


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _collect(sweep: Sweep, config: cfg.Config) -> int:
    """Collects, and names what is not finished; returns the exit status."""
    from fedprune.cli import collect

    screen.say(collect.collect(sweep, config))
    left, count = _unfinished(sweep), len(sweep.trials())
    if left:
        print(f"error: {len(left)} of {count} trials are not finished:", file=sys.stderr)
    for trial in left:
        print(f"  {trials.fault(sweep, trial)}", file=sys.stderr)
    return 1 if left else 0


def _one(sweep: Sweep, name: str) -> int:
    """Runs one trial of a recorded sweep, as machines of a cluster do."""
    found = {trial.name: trial for trial in sweep.trials()}
    if name not in found:
        raise UsageError(f"--trial={name}: there is no such trial{cfg.suggestion(name, found)}")
    if trials.state(sweep, found[name]).word == "finished":
        return 0

    def pass_on(process: subprocess.Popen) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())

    status = trials.run(sweep, found[name], started=pass_on)
    if status:
        print(f"error: {trials.fault(sweep, found[name])}", file=sys.stderr)
    return status if status >= 0 else 128 - status
