"""Trials as arms of one program, where their shapes allow it; else one program after another.

The arms of every trial become arms of one plan, with the trial's values among their overrides, so
``execution.plan`` finds out which of them share a program. Afterwards each trial has a run
directory with its own rows and report, as if it had run alone; checkpoints are in ``programs/``.
A batch that was begun is gone on with as it is, also if some of its trials are finished or the grid
has been extended.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

from fedprune import config as cfg
from fedprune.cli import log, trials
from fedprune.cli.experiments import Experiment
from fedprune.cli.grid import Trial
from fedprune.cli.trials import Sweep
from fedprune.runs import MetricsFile, Row, RunDirectory
from fedprune.runs.writers import Log, Open


def batches(config: cfg.Config, todo: Sequence[Trial]) -> list[list[Trial]]:
    """Trials that can be in one plan: they agree in what all arms of an experiment share.

    Raises:
      ConfigError: they differ in the number of devices, of which a process has one.
    """
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in todo:
        own = {path: value for path, value in trial.values.items() if path in cfg.WHOLE}
        groups.setdefault(tuple(sorted(own.items())), []).append(trial)
    if any("mesh.devices" in trial.values for trial in todo):
        raise cfg.ConfigError("mesh.devices: cannot be swept in one process; take --on=local")
    return list(groups.values())


def left(sweep: Sweep, config: cfg.Config, todo: Sequence[Trial]) -> list[list[Trial]]:
    """The batches that have to run for some trials: those that were begun, then new ones.

    Raises:
      ConfigError: as ``batches``.
    """
    known, names = {trial.name: trial for trial in sweep.trials()}, {trial.name for trial in todo}
    begun = []
    for file in sorted((sweep.folder / "programs").glob("*/config.json")):
        arms = json.loads(file.read_text(encoding="utf-8"))["arms"]
        batch = list(dict.fromkeys(name.partition("/")[0] for name in arms))
        if not names.isdisjoint(batch):
            begun.append([known[name] for name in batch])
            names.difference_update(batch)
    return begun + batches(config, [trial for trial in todo if trial.name in names])


def plan(experiment: Experiment, config: cfg.Config, batch: Sequence[Trial]):
    """(configuration, arms) of the plan of a batch; an arm is named TRIAL/ARM."""
    common = {path for path, _, _ in cfg.fields(cfg.Config())} - cfg.WHOLE
    arms = [
        cfg.Arm(
            f"{trial.name}/{arm.name}",
            {**{p: v for p, v in trial.values.items() if p in common}, **arm.overrides},
        )
        for trial in batch
        for arm in experiment.arms(cfg.override(config, trial.values))
    ]
    whole = {path: value for path, value in batch[0].values.items() if path in cfg.WHOLE}
    return cfg.override(config, whole), arms


def run(
    sweep: Sweep,
    experiment: Experiment,
    config: cfg.Config,
    todo: Sequence[Trial],
    opens: Sequence[Open] = (),
) -> None:
    """Runs trials to their end, resuming what was interrupted. Whatever goes wrong in a batch (data
    that are missing, too little memory) is noted for its trials, and what does in a report for its
    one; the others go on."""
    names = {trial.name for trial in todo}
    for batch in left(sweep, config, todo):
        mine = [trial for trial in batch if trial.name in names]
        try:
            _run_batch(sweep, experiment, config, batch, mine, opens)
        except Exception as e:
            for trial in mine:
                trials.failed(sweep, trial, e)


def _run_batch(
    sweep: Sweep,
    experiment: Experiment,
    config: cfg.Config,
    batch: Sequence[Trial],
    todo: Sequence[Trial],
    opens: Sequence[Open],
) -> None:
    """Runs a batch, and writes the results of those trials of it that are not finished."""
    from fedprune import backend
    from fedprune.runs import execution

    began = time.monotonic()
    shared, arms = plan(experiment, config, batch)
    ready = execution.plan(shared, arms, experiment.own())
    for trial in todo:
        trials.record(sweep, trial, None)
        with _directory(sweep, config, trial) as own:
            own.record({**backend.environment(), "experiment": sweep.origin})
    about = {"config": cfg.to_json(shared), "arms": {a.name: dict(a.overrides) for a in arms}}
    names = hashlib.sha256("\n".join(trial.name for trial in batch).encode()).hexdigest()
    with RunDirectory(
        sweep.folder / "programs" / names[:8], about, identity=ready.identity
    ) as directory:
        directory.record({**backend.environment(), **execution.about(ready)})
        out = _log(sweep, experiment, config, batch, opens)
        rows = execution.execute(ready, directory, out=out)
    for trial in todo:
        mine = [
            row | {"arm": row["arm"].removeprefix(f"{trial.name}/")}
            for row in rows
            if row["arm"].startswith(f"{trial.name}/")
        ]
        try:
            with _directory(sweep, config, trial) as own:
                _write(own, experiment, cfg.override(config, trial.values), mine)
        except Exception as e:
            trials.failed(sweep, trial, e)
        else:
            trials.record(sweep, trial, 0, time.monotonic() - began)


def _log(
    sweep: Sweep,
    experiment: Experiment,
    config: cfg.Config,
    batch: Sequence[Trial],
    opens: Sequence[Open],
) -> Log:
    """Writers of a batch: each trial has those that it would have in a run of its own."""
    abouts = {}
    for trial in batch if opens else ():
        changed = cfg.override(config, trial.values)
        arms = {arm.name: arm.overrides for arm in experiment.arms(changed)}
        with _directory(sweep, config, trial) as own:
            abouts[trial.name] = log.about(own, changed, arms)
    made = ({name: opened(about) for name, about in abouts.items()} for opened in opens)
    return Log([log.shared(writers) for writers in made])


def _directory(sweep: Sweep, config: cfg.Config, trial: Trial) -> RunDirectory:
    changed = cfg.override(config, trial.values)
    return RunDirectory(sweep.run_directory(trial), cfg.to_json(changed))


def _write(
    directory: RunDirectory, experiment: Experiment, config: cfg.Config, rows: Sequence[Row]
) -> None:
    """What a run of its own leaves at its end."""
    from fedprune.report import page

    metrics = MetricsFile(directory.path)
    metrics.keep(lambda row: False)
    metrics.write(rows)
    experiment.report(config, rows, directory.path)
    directory.ended()
    page.write([directory.path], directory.path / page.NAME)
