"""Sweeps: the grammar of grids, names, what is refused, idempotency, command lines, tables."""

import csv
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from experiments import latency_tables, ota_pruning, single
from fedprune import config as cfg
from fedprune.cli import (
    cloud,
    collect,
    experiments,
    grid,
    parse,
    places,
    program,
    progress,
    run,
    slurm,
    sweep,
    trials,
)
from fedprune.runs import RunDirectory, execution

ROOT = Path(__file__).parents[1]
CONFIG = single.get_config("tiny")
GRID = "uplink.snr_db=0,10 ratio=0.3,0.9 seed=0:2"


# Grids -----


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("uplink.snr_db=0,5,-2.5", {"uplink.snr_db": (0.0, 5.0, -2.5)}),
        ("ratio=1e-3 seed=0:3", {"pruning.ratio": (0.001,), "run.seed": (0, 1, 2)}),
        ("run.seed=7,0:2,12", {"run.seed": (7, 0, 1, 12)}),
        ("uplink.snr_db=-1:2", {"uplink.snr_db": (-1.0, 0.0, 1.0)}),
        ("hidden=[8],[8,16],4", {"model.mlp.hidden": ((8,), (8, 16), (4,))}),
        ("  uplink.link=ideal,over_the_air ", {"uplink.link": ("ideal", "over_the_air")}),
    ],
)
def test_grammar(text, found):
    parsed = grid.parse(text, CONFIG)
    assert parsed == found
    types = {path: type(value) for path, _, value in cfg.fields(CONFIG)}
    assert all(type(v) is types[path] for path, values in parsed.items() for v in values)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pruning.rate=0.5", "no such field (did you mean pruning.ratio?)"),
        ("snr=1", "snr: there is no such field (did you mean snr_db?)"),
        ("lr=1", "lr: is ambiguous, must be one of local.lr, server.lr"),
        ("variant=fast,tiny", "variant: cannot be swept, it is a label of the experiment"),
        ("ratio", "'ratio': must be FIELD=VALUE,VALUE,..."),
        ("ratio=", "pruning.ratio='': must be a number"),
        ("download=0:2", "data.download='0:2': must be true or false"),
        ("download=yes", "data.download='yes': must be true or false"),
        ("ratio=0.1,,0.2", "pruning.ratio='': must be a number"),
        ("ratio=high", "pruning.ratio='high': must be a number and at least 0 and at most 1"),
        ("seed=0.5", "run.seed='0.5': must be an integer"),
        ("seed=3:3", "run.seed=3:3: must be FIRST:END with FIRST < END"),
        ("seed=0:100000", "run.seed=0:100000: must be FIRST:END"),
        ("ratio=0.3,0.30", "--grid: ratio=0.3,0.30: a value is there twice"),
        ("ratio=0.3 pruning.ratio=0.4", "--grid: pruning.ratio is there twice"),
        ("seed=0:200 data.clients=1:100", "must have 1 to 10000 trials"),
        (" ", "must have 1 to 10000 trials"),
    ],
)
def test_bad_grids_are_one_line(text, says):
    with pytest.raises(cfg.ConfigError) as error:
        grid.parse(text, CONFIG)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_trials_are_all_combinations_with_names_of_their_own():
    found = grid.trials(grid.parse(GRID, CONFIG))
    wanted = list(itertools.product((0.0, 10.0), (0.3, 0.9), (0, 1)))
    assert [tuple(trial.values.values()) for trial in found] == wanted
    assert found[0].name == "uplink.snr_db=0,pruning.ratio=0.3,run.seed=0"
    assert len({trial.name for trial in found}) == 8
    extended = grid.trials(grid.parse(GRID.replace("0,10", "5,0,10,1e-7"), CONFIG))
    assert {t.name: t.values for t in found}.items() <= {t.name: t.values for t in extended}.items()


def test_names_are_fit_for_folders():
    values = {"data.dir": ("a/b", "a_b", "x" * 300, "x" * 301, "a b", ".."), "run.seed": (0,)}
    names = [trial.name for trial in grid.trials(values)]
    assert len(set(names)) == 6
    assert all(re.fullmatch(r"data[\w.=,+-]{1,170}", name) for name in names)
    close = [0.1, 0.1 + 1e-16, 0.10000001, 1 / 3, 0.333333]
    assert len({grid.written(value) for value in close}) == len(set(close))
    assert all(float(grid.written(value)) == value for value in close)


def test_arguments_are_read_as_the_same_values():
    """By the launcher's own parser, for a field of every kind."""
    values = {"uplink.snr_db": 1 / 3, "run.seed": 3, "model.mlp.hidden": (8,), "model.name": "mlp"}
    values |= {"model.cnn.filters": (4, 6), "local.lr": 1e-7}
    arguments = [grid.argument(path, value) for path, value in values.items()]
    given = parse.parse(["run", "--config=experiments/single.py:tiny", *arguments], run.define)
    found = {path: value for path, _, value in cfg.fields(given.config)}
    assert {path: found[path] for path in values} == values


def refused(module, config, text: str) -> str:
    with pytest.raises(cfg.ConfigError) as error:
        grid.check(config, grid.parse(text, config), module.arms)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_trial_is_validated():
    says = refused(single, CONFIG, "cohort.size=2,4,8 seed=0:2")
    assert says.startswith("cohort.size=8: must be at most data.clients=4 (trial cohort.size=8,")
    assert "run.rounds=4" in refused(single, CONFIG, "run.rounds=8,4")
    config = ota_pruning.get_config("fast")
    says = refused(ota_pruning, config, "pruning.every=3,6")
    assert says.startswith("pruning.start=4: the last pruning step falls in round 28")
    assert says.endswith("(trial pruning.every=6)")
    wide = grid.parse("ratios=[0.3],[0.3,0.9] uplink.snr_db=0,5", config)
    grid.check(config, wide, ota_pruning.arms)


def test_a_field_that_changes_nothing_is_refused():
    config = ota_pruning.get_config("fast")
    says = refused(ota_pruning, config, "uplink.snr_db=0,5 pruning.ratio=0.3,0.9")
    assert says.startswith("pruning.ratio: every arm of ota_pruning sets it itself")
    assert "has no arms" in refused(
        latency_tables, latency_tables.get_config(), "uplink.snr_db=0,5"
    )
    with pytest.raises(cfg.ConfigError, match=r"run.seed=1: must be 0"):
        cfg.validate_arms(cfg.override(latency_tables.get_config(), {"run.seed": 1}), [])


# The command line -----


def launch(*args, **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.sweep", *map(str, args)]
    where = {"cwd": ROOT, **kwargs}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **where)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--grid=cohort.size=2,8"], "error: cohort.size=8: must be at most data.clients=4"),
        (["--grid=seed=0:2", "--fresh"], "error: --fresh: is for single runs, not for sweeps"),
        (
            ["--grid=seed=0:2", "--on=gke", "--zone=z"],
            "error: --on=gke: needs --project, --cluster",
        ),
        (["--grid=seed=0:2", "--memory=nan"], "error: flag --memory=nan: must be a number of GB"),
    ],
)
def test_bad_usage_is_one_line_and_leaves_nothing(args, says, tmp_path):
    result = launch("--config=experiments/single.py:tiny", f"--workdir={tmp_path / 's'}", *args)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(says)
    assert not (tmp_path / "s").exists()


def test_a_file_in_place_of_the_folder(tmp_path):
    """One line that names it, as of a single run."""
    (tmp_path / "notes").write_text("precious")
    folder = tmp_path / "notes" / "s"
    result = launch("--config=experiments/single.py:tiny", f"--workdir={folder}", "--grid=seed=0:2")
    assert result.returncode == 1, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: [Errno 20] Not a directory: ")
    assert str(folder) in line
    assert (tmp_path / "notes").read_text() == "precious"


def test_dry_run_prints_what_would_be_run(tmp_path):
    given = ["--config=experiments/single.py:tiny", "--config.local.lr=0.2", "--on=local"]
    result = launch(*given, f"--grid={GRID}", f"--workdir={tmp_path / 's'}", "--dry_run")
    assert result.returncode == 0, result.stderr
    lines = [shlex.split(line) for line in result.stdout.splitlines()]
    assert len(lines) == 8
    assert lines[-1] == [
        *(sys.executable, "-m", "fedprune", "run", "single:tiny", given[1], "--config.run.seeds=1"),
        *("--config.uplink.snr_db=10.0", "--config.pruning.ratio=0.9", "--config.run.seed=1"),
        f"--workdir={tmp_path}/s/trials/uplink.snr_db=10,pruning.ratio=0.9,run.seed=1",
    ]
    assert not (tmp_path / "s").exists()


OWN = """
import dataclasses
from fedprune import report as rp
from fedprune.config import Arm, Config, spec, to_json

@dataclasses.dataclass
class Mine(Config):
    extra: int = spec(3, "mine", low=1)

def get_config(variant="small"):
    config = Mine(variant=variant)
    config.data.clients, config.model.name, config.model.mlp.hidden = 4, "mlp", (8,)
    config.local.steps, config.local.batch, config.run.rounds = 1, 8, 2
    return config

def arms(config):
    return [Arm(f"own{config.extra}", {})]

def report(config, rows, folder):
    names = [arm.name for arm in arms(config)]
    return rp.write_run(folder, "mine", to_json(config), rows, names, {}, [], "")
"""


def test_an_experiment_of_the_users_own(tmp_path):
    """Swept from its folder, in programs and as processes, with its own arms; the sweep's folder
    alone is enough to go on. A file that is gone, has moved or has changed is said in a line."""
    file, folder = tmp_path / "mine.py", tmp_path / "s"
    file.write_text(OWN)
    own = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    asked = ["./mine.py", "--config.local.lr=0.2", "--config.extra=5", f"--workdir={folder}"]
    result = launch(*asked, "--grid=seed=0:2", "--dry_run", "--on=local", **own)
    assert result.returncode == 0, result.stderr
    assert shlex.split(result.stdout.splitlines()[0])[2:5] == ["fedprune", "run", f"{file}:small"]
    result = launch(*asked, "--grid=seed=0:1", "--on=local", **own)
    assert result.returncode == 0, result.stderr
    result = launch(*asked, "--grid=seed=0:2", **own)
    assert result.returncode == 0, result.stderr
    for seed in (0, 1):
        trial = folder / "trials" / f"run.seed={seed}"
        rows = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
        assert [(row["arm"], row["round"]) for row in rows] == [("own5", 1), ("own5", 2)]
        config = json.loads((trial / "config.json").read_text())
        assert (config["experiment"], config["extra"], config["local"]["lr"]) == ("mine", 5, 0.2)
        (begun,) = json.loads((trial / "run.json").read_text())["starts"]
        assert begun["experiment"]["file"] == str(file)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file.rename(elsewhere / "mine.py")
    result = launch(f"--workdir={folder}", "--collect", **own)
    assert result.returncode == 2
    assert result.stderr == (
        f"error: workdir={folder}: its experiment {file} is not there any more; name FILE.py"
        " beside --workdir\n"
    )
    result = launch("elsewhere/mine.py", f"--workdir={folder}", "--collect", **own)
    assert result.returncode == 0, result.stderr
    assert "2 of 2 trials" in result.stdout
    (elsewhere / "mine.py").rename(tmp_path / "other.py")
    result = launch("other.py", f"--workdir={folder}", "--collect", **own)
    assert "belongs to the experiment mine, not other" in result.stderr

    file.write_text(OWN.replace("    extra", "    new: int = spec(1, 'new')\n    extra"))
    result = launch(f"--workdir={folder}", "--dry_run")
    assert result.returncode == 2
    says = f"error: workdir={folder}: {file} has the field new, which it had not then\n"
    assert result.stderr == says


def test_a_sweep_of_version_0_1_goes_on(tmp_path):
    """Its experiment was a module and a file of the checkout."""
    config = plain(CONFIG) | {"experiment": "experiments.single"}
    about = {"arguments": ["--config=experiments/single.py:tiny", "--config.run.seeds=1"]}
    about |= {"grid": {"run.seed": [0, 1]}, "config": config}
    (tmp_path / "sweep.json").write_text(json.dumps(about))
    old = trials.read(tmp_path)
    assert old.arguments == ("single:tiny", "--config.run.seeds=1")
    result = launch(f"--workdir={tmp_path}", "--dry_run")
    assert result.returncode == 0, result.stderr
    assert "#   run.seed=1/run" in result.stdout


# Trials as processes, with a stand-in for the launcher -----

STAND_IN = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[-1].partition("=")[2])
seed = int(next(a for a in sys.argv if a.startswith("--config.run.seed=")).partition("=")[2])
folder.mkdir(parents=True, exist_ok=True)
with (folder / "starts").open("a") as f:
    cores = sorted(os.sched_getaffinity(0))
    print(json.dumps([cores, os.environ["OMP_NUM_THREADS"]]), file=f)
first = len((folder / "starts").read_text().splitlines()) == 1
if first and seed == 1:
    os.kill(os.getpid(), 9)
if first and seed == 2:
    print("error: something\\nthe last line\\n\\n", flush=True)
    sys.exit(1)
if first and seed == 3:
    sys.exit(42)
with (folder / "metrics.jsonl").open("w") as f:
    for r in (7, 8):
        row = {"arm": "run", "seed": seed, "round": r, "test_accuracy": 0.1 * seed}
        print(json.dumps(row), file=f)
"""


def plain(config) -> dict:
    return json.loads(json.dumps(cfg.to_json(config)))


@pytest.fixture
def standing(tmp_path, monkeypatch):
    """A sweep over five seeds whose trials are processes of the stand-in."""
    arguments = ("single:tiny", "--config.run.seeds=1")
    made = trials.Sweep(tmp_path / "s", arguments, plain(CONFIG), {"run.seed": tuple(range(5))})
    real = trials.Sweep.command
    file = tmp_path / "stand_in.py"
    file.write_text(STAND_IN)
    stand_in = lambda self, trial: [sys.executable, str(file), *real(self, trial)[4:]]
    monkeypatch.setattr(trials.Sweep, "command", stand_in)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    trials.write(made)
    return made


def starts(made) -> list[int]:
    files = [made.run_directory(trial) / "starts" for trial in made.trials()]
    return [len(f.read_text().splitlines()) if f.exists() else 0 for f in files]


def unfinished(made) -> list:
    return [t for t in made.trials() if trials.state(made, t).word != "finished"]


def test_a_rerun_does_only_what_is_missing(standing, capsys):
    """One trial is killed, one fails, one asks to be continued; the others finish."""
    assert trials.read(standing.folder) == standing
    places.locally(standing, standing.trials(), 2)
    said = capsys.readouterr().out
    assert starts(standing) == [1] * 5
    left = unfinished(standing)
    assert [trial.values["run.seed"] for trial in left] == [1, 2, 3]
    log = lambda trial: f"{standing.folder}/logs/{trial.name}.log ends with: "
    faults = [trials.fault(standing, trial) for trial in left]
    assert faults[0] == f"run.seed=1: killed by SIGKILL; {log(left[0])}nothing"
    assert faults[1] == f"run.seed=2: exit status 1; {log(left[1])}the last line"
    assert faults[2].startswith(f"run.seed=3: was stopped before its end; {log(left[2])}")
    assert re.search(r"^\[\d/5\] run.seed=4: finished, round 8, accuracy 0.400, \d+ s$", said, re.M)
    assert re.search(r"^\[\d/5\] run.seed=1: failed, \d+ s$", said, re.M)

    places.locally(standing, left, 2)
    assert starts(standing) == [1, 2, 2, 2, 1]
    assert unfinished(standing) == []
    rows = list(csv.DictReader(io.StringIO(table(standing, "results.csv"))))
    assert [(row["trial"], row["round"], row["test_accuracy"]) for row in rows] == [
        (f"run.seed={seed}", r, str(0.1 * seed)) for seed in range(5) for r in "78"
    ]


def table(made, name: str) -> str:
    collect.collect(made, CONFIG)
    return (made.folder / name).read_text()


def test_processes_share_out_the_cores(standing):
    places.locally(standing, standing.trials(), 2)
    cores = sorted(os.sched_getaffinity(0))
    seen = set()
    for trial in standing.trials():
        own, threads = json.loads((standing.run_directory(trial) / "starts").read_text())
        assert set(own) <= set(cores)
        assert threads == str(len(own)) == str(max(1, len(own)))
        seen.add(tuple(own))
    if len(cores) > 1:
        assert len(seen) == 2
        assert not set.intersection(*map(set, seen))
    assert sorted(os.sched_getaffinity(0)) == cores  # our own are as before


@pytest.mark.parametrize(("count", "jobs"), [(8, 3), (2, 2), (2, 5), (7, 1)])
def test_shares_of_cores(count, jobs):
    found = places.shares(range(10, 10 + count), jobs)
    assert len(found) == jobs
    used = [core for part in found for core in part]
    assert set(used) == set(range(10, 10 + count))
    assert len(used) == max(count, jobs)
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_an_interrupt_stops_what_runs(standing, monkeypatch):
    waiting = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)"]
    monkeypatch.setattr(trials.Sweep, "command", lambda self, trial: waiting)

    class Interrupted(progress.Table):
        def show(self):
            if trials.fault(standing, standing.trials()[0]).endswith("ends with: here"):
                raise KeyboardInterrupt

    monkeypatch.setattr(places, "Table", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        places.locally(standing, standing.trials(), 1)
    first, *others = standing.trials()
    assert f"killed by {signal.SIGTERM.name}" in trials.fault(standing, first)
    assert all(trials.state(standing, trial).word == "waiting" for trial in others)


def test_the_table_on_a_terminal(standing):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    shown = progress.Table(standing, stream)
    one, two, three = standing.trials()[:3]
    trials.record(standing, one, 0, 3.2)
    trials.record(standing, two, None)
    trials.record(standing, three, 1, 2.0)
    shown.show()
    text = stream.getvalue()
    assert text.splitlines()[0] == "5 trials: 1 finished, 1 running, 2 waiting, 1 failed"
    assert "run.seed=0" not in text
    assert re.search(r"run.seed=2 +\| failed, 2 s", text)
    shown.show()
    again = stream.getvalue().removeprefix(text)
    assert again == f"\x1b[{text.count(chr(10))}F\x1b[J{text}"


# Slurm jobs, without Slurm -----

JOB = """
import shlex, sys
from pathlib import Path
from fedprune.cli import slurm, trials
run, patience, restarts = sys.argv[2:]
trials.Sweep.command = lambda self, trial: ["bash", "-c", run]
slurm.PATIENCE = int(patience)
slurm.Job(Path(sys.argv[1]), "run.seed=0", int(restarts))()
"""
SAVES = "trap 'exit 42' USR2; echo here; while :; do sleep 0.05; done"
TOO_SLOW = "trap '' USR2; echo here; sleep 10"
DEAF = "echo here; exec sleep 60"


def job(folder, run: str, restarts: int = 100, patience: int = 60) -> tuple[int, str, str]:
    """Runs trial 0 as a job until its time is nearly over; exit status, what it asked of Slurm, and
    what is said of the trial."""
    made = trials.Sweep(folder, (), {}, {"run.seed": (0,)})
    trials.write(made)
    (trial,) = made.trials()
    asked = folder / "asked"
    asked.write_text("")
    scontrol = folder / "scontrol"  # a stand-in that ends the job, as Slurm does
    scontrol.write_text(f'#!/bin/bash\necho "$@" >> {asked}; kill -9 $PPID\n')
    scontrol.chmod(0o755)
    found = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    command = [sys.executable, "-c", JOB, str(folder), run, str(patience), str(restarts)]
    # Slurm has started it before: preempted jobs do not count.
    process = subprocess.Popen(command, cwd=ROOT, env={**found, "SLURM_RESTART_COUNT": "200"})
    log = made.log(trial)
    log.unlink(missing_ok=True)
    try:
        while not log.exists() or "\nhere" not in log.read_text():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR2)
        status = process.wait(120)
    finally:
        process.kill()
    return status, asked.read_text(), trials.fault(made, trial)


@pytest.mark.parametrize(
    ("run", "patience"), [(SAVES, 60), (TOO_SLOW, 1), (DEAF, 60)], ids=["saves", "slow", "deaf"]
)
def test_a_job_whose_time_is_nearly_over_is_requeued(run, patience, tmp_path):
    """Once, when the run has saved, and at the latest when its time to do so is over."""
    status, asked, says = job(tmp_path, run, patience=patience)
    assert (status, asked) == (-signal.SIGKILL, "requeue 7\n")
    assert says.startswith("run.seed=0: was stopped before its end;")


def test_a_job_gives_up_after_so_many_requeues(tmp_path):
    """Its own: those by Slurm do not count. What is said of the trial is why."""
    for _ in range(2):
        assert job(tmp_path, SAVES, restarts=2)[:2] == (-signal.SIGKILL, "requeue 7\n")
    status, asked, says = job(tmp_path, SAVES, restarts=2)
    assert (status, asked) == (1, "")
    assert says.startswith("run.seed=0: exit status 42;")


# What a folder holds -----


def asked(folder, text: str, config=CONFIG) -> trials.Sweep:
    return trials.Sweep(folder, (), cfg.to_json(config), grid.parse(text, config))


def test_a_grid_may_be_extended_and_not_changed(tmp_path):
    trials.write(asked(tmp_path, "hidden=[8],[8,16] seed=0:2"))
    old = trials.read(tmp_path)
    sweep._same_or_larger(old, asked(tmp_path, "hidden=[8],[8,16] seed=0:2"))
    sweep._same_or_larger(old, asked(tmp_path, "hidden=[4],[8],[8,16] seed=0:9"))
    other = cfg.override(CONFIG, {"local.lr": 0.3})
    for new, says in (
        (asked(tmp_path, "hidden=[8] seed=0:2"), r"model.mlp.hidden had 8\+16 there, too"),
        (asked(tmp_path, "hidden=[8],[8,16] seed=1:3"), "run.seed had 0 there, too"),
        (asked(tmp_path, "hidden=[8],[8,16]"), "its fields are model.mlp.hidden, run.seed"),
        (asked(tmp_path, "hidden=[8],[8,16] seed=0:2", other), "local.lr was 0.1, is 0.3"),
    ):
        with pytest.raises(Exception, match=f"belongs to another sweep .*{says}") as error:
            sweep._same_or_larger(old, new)
        assert "\n" not in str(error.value)


def filled(folder, text: str, skip=()) -> trials.Sweep:
    """A sweep with made-up rows: accuracy 0.01 snr + ratio + 0.01 seed + 0.001 round."""
    made = asked(folder, text)
    trials.write(made)
    for trial in made.trials():
        if trial.name in skip:
            continue
        snr, ratio, seed = (
            trial.values.get(p, 0) for p in ("uplink.snr_db", "pruning.ratio", "run.seed")
        )
        with RunDirectory(made.run_directory(trial), {}) as directory:
            rows = [
                {"program": "program0", "arm": "run", "seed": seed, "round": r, "kept": 7}
                | {"train_loss": None if r == 2 else 0.5, "test_histogram": [1, 2]}
                | (
                    {"test_accuracy": 0.01 * snr + ratio + 0.01 * seed + 0.001 * r}
                    if r != 1
                    else {}
                )
                for r in (1, 2, 3)
            ]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (directory.path / "metrics.jsonl").write_text(lines)
        trials.record(made, trial, 0, 1.0)
    return made


def test_one_tidy_table(tmp_path):
    made = filled(tmp_path / "s", GRID, skip=["uplink.snr_db=10,pruning.ratio=0.9,run.seed=1"])
    text = collect.collect(made, CONFIG)
    rows = list(csv.DictReader(io.StringIO((made.folder / "results.csv").read_text())))
    assert len(rows) == 7 * 3
    assert list(rows[0]) == [
        *("trial", "uplink.snr_db", "pruning.ratio", "arm", "seed", "round", "kept"),
        *("train_loss", "test_accuracy"),
    ]
    for row in rows:
        where = [float(row[c]) for c in ("uplink.snr_db", "pruning.ratio", "seed", "round")]
        if row["round"] == "1":
            assert row["test_accuracy"] == ""
        else:
            expected = np.dot(where, [0.01, 1, 0.01, 0.001])
            assert float(row["test_accuracy"]) == pytest.approx(expected)
        assert (row["train_loss"] == "") == (row["round"] == "2")
    assert "7 of 8 trials" in text
    assert re.search(r"uplink.snr_db=10, pruning.ratio=0.3 +\| run +\| 2 +\| 40.8 +\|", text)
    assert (made.folder / "figures" / "accuracy.png").stat().st_size > 10_000

    parquet = pytest.importorskip("pyarrow.parquet")
    again = parquet.read_table(made.folder / "results.parquet").to_pylist()
    plain = [{k: "" if v is None else str(v) for k, v in row.items()} for row in again]
    assert plain == rows


def test_numbers_in_a_mapping_have_columns_of_their_own(tmp_path):
    made = filled(tmp_path / "s", "seed=0:2")
    for trial in made.trials():
        file = made.run_directory(trial) / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows = [row | {"density": {"a/kernel": 0.25, "b/kernel": 1.0}} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = list(csv.DictReader(io.StringIO(table(made, "results.csv"))))
    assert rows
    for row in rows:
        assert (row["density/a/kernel"], row["density/b/kernel"]) == ("0.25", "1.0")
        assert "density" not in row


def test_without_pyarrow_there_is_still_the_csv(tmp_path, monkeypatch):
    made = filled(tmp_path / "s", "uplink.link=ideal,over_the_air seed=0:2")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "results.csv (no results.parquet: pip install pyarrow)" in collect.collect(made, CONFIG)
    assert not (made.folder / "results.parquet").exists()
    assert len((made.folder / "results.csv").read_text().splitlines()) == 1 + 2 * 2 * 3
    assert (made.folder / "figures" / "accuracy.png").exists()


# Arms of one program -----


def experiment(module) -> experiments.Experiment:
    return experiments.Experiment("single", "tiny", Path(single.__file__), "", module)


def test_trials_as_arms_of_one_program(tmp_path, dataset):
    """A trial has the rows that it has alone, up to roundings, and only shapes make programs."""
    text = "uplink.snr_db=0,10 seed=2,4"
    config = cfg.override(CONFIG, {"run.rounds": 5, "mesh.devices": 1})
    made = asked(tmp_path / "s", text, config)
    (batch,) = program.batches(config, made.trials())
    shared, arms = program.plan(experiment(single), config, batch)
    assert len(arms) == 4
    assert len(cfg.program_groups(shared, arms)) == 1
    wider = asked(tmp_path / "s", f"{text} hidden=[8],[4]", config)
    assert len(cfg.program_groups(*program.plan(experiment(single), config, wider.trials()))) == 2
    trials.write(made)
    program.run(made, experiment(single), config, made.trials())
    assert unfinished(made) == []

    trial = made.trials()[-1]
    assert trial.values == {"uplink.snr_db": 10.0, "run.seed": 4}
    alone = cfg.override(config, trial.values)
    with RunDirectory(tmp_path / "alone", cfg.to_json(alone)) as directory:
        wanted = execution.execute(execution.plan(alone, single.arms(alone)), directory)
    folder = made.run_directory(trial)
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for a, b in zip(found, wanted, strict=True):
        same = ("arm", "seed", "round", "kept", "channel_uses", "participants", "excluded")
        assert {k: a[k] for k in same if k in b} == {k: b[k] for k in same if k in b}
    assert found[0]["train_loss"] == pytest.approx(wanted[0]["train_loss"], rel=1e-5)
    assert json.loads((folder / "config.json").read_text())["run"]["seed"] == 4
    assert (folder / "report.md").exists()
    assert "1 start</dd>" in (folder / "report.html").read_text()
    (begun,) = json.loads((folder / "run.json").read_text())["starts"]
    assert begun["at"] <= begun["ended"]


def test_a_plan_that_cannot_be_made_leaves_the_others_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDPRUNE_DATA", raising=False)
    config = cfg.override(CONFIG, {"run.rounds": 5, "mesh.devices": 1})
    made = asked(tmp_path / "s", "data.name=mnist,fashion_mnist_10k", config)
    trials.write(made)
    program.run(made, experiment(single), config, made.trials())
    (left,) = unfinished(made)
    assert left.values == {"data.name": "mnist"}
    says = trials.fault(made, left)
    assert says.startswith("data.name=mnist: exit status 1; ")
    assert "ends with: error: data.name='mnist' was not found" in says
    assert not made.run_directory(left).exists()


@pytest.mark.slow
def test_errors_of_any_kind_leave_the_others_alone(tmp_path, monkeypatch):
    """One batch lacks memory, and one trial of the other one its report: the rest finishes, and the
    next start trains the first batch and writes that report."""
    config = cfg.override(CONFIG, {"run.rounds": 5, "mesh.devices": 1})
    made = asked(tmp_path / "s", "run.rounds=5,6 seed=0,1", config)
    trials.write(made)
    execute, written = execution.execute, []

    def lacks_memory(plan, directory, out):
        if plan.config.run.rounds == 6:
            raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\n" + "allocated\n" * 500)
        return execute(plan, directory, out=out)

    def report(config, rows, folder):
        written.append((config.run.rounds, config.run.seed))
        if written == [(5, 0), (5, 1)]:
            _ = {}["a row"]
        return single.report(config, rows, folder)

    module = experiment(types.SimpleNamespace(arms=single.arms, report=report))
    monkeypatch.setattr(execution, "execute", lacks_memory)
    program.run(made, module, config, made.trials())
    assert written == [(5, 0), (5, 1)]
    left = unfinished(made)
    assert [tuple(trial.values.values()) for trial in left] == [(5, 1), (6, 0), (6, 1)]
    says = [trials.fault(made, trial).partition("ends with: ")[2] for trial in left]
    assert says[0] == "error: KeyError: 'a row'"
    assert says[1].startswith("error: JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocated")
    assert len(says[1]) < 600
    assert "Traceback (most recent call last)" in made.log(left[0]).read_text()

    # What was begun stays together when the grid grows.
    wider = asked(tmp_path / "s", "run.rounds=6,5 seed=2,1,0", config)
    found = program.left(wider, config, unfinished(wider))
    values = [[tuple(trial.values.values()) for trial in batch] for batch in found]
    assert sorted(values[:2]) == [[(5, 0), (5, 1)], [(6, 0), (6, 1)]]
    assert values[2:] == [[(6, 2)], [(5, 2)]]

    def saved() -> dict:
        places = (made.folder / "programs").glob("*/checkpoints/*/*")
        return {place: place.stat().st_mtime_ns for place in places}

    before = saved()
    monkeypatch.setattr(execution, "execute", execute)
    program.run(made, module, config, left)
    assert unfinished(made) == []
    assert sorted(written[2:]) == [(5, 1), (6, 0), (6, 1)]
    assert before.items() <= saved().items()  # not trained again
    assert len(list((made.folder / "programs").iterdir())) == 2
    for trial in made.trials():
        found = (made.run_directory(trial) / "metrics.jsonl").read_text().splitlines()
        assert len(found) == trial.values["run.rounds"]


def test_what_a_process_has_only_once_makes_batches():
    config = ota_pruning.get_config("fast")
    made = asked(Path("/nowhere"), "run.rounds=24,30 ratios=[0.3],[0.9] uplink.snr_db=0,5", config)
    found = program.batches(config, made.trials())
    assert [len(batch) for batch in found] == [4, 4]
    shared, arms = program.plan(ota_pruning, config, found[1])
    assert shared.run.rounds == 30
    # Full and half participation, whatever the ratios of the arms are.
    assert len(cfg.program_groups(shared, arms)) == 2
    assert len({arm.name for arm in arms}) == len(arms) == 4 * 6
    with pytest.raises(cfg.ConfigError, match=r"mesh.devices: cannot be swept in one process"):
        program.batches(config, asked(Path("/nowhere"), "mesh.devices=1,2", config).trials())


# Command lines for other machines -----

CLOUD = cloud.Options(
    *("my-project", "us-east5-b", "my-cluster", "v5litepod-8", "image:1", "tpu7x-standard-4t"),
    *("a-family", "an-image-project", "v2-alpha-tpuv5-lite"),
    spot=True,
)
TRIAL = grid.Trial("a=0.3,b=8+16", {})


def lines(place: str, folder="/mnt/It's/My sweep", restarts=100) -> list[list[str]]:
    made = trials.Sweep(Path(folder), (), {}, {})
    found = cloud.commands(place, made, TRIAL, CLOUD._replace(restarts=restarts))
    assert [shlex.split(shlex.join(line)) for line in found] == found
    return found


def value(command: list[str], flag: str) -> str:
    (found,) = [word for word in command if word.startswith(f"--{flag}=")]
    return found.partition("=")[2]


def test_workloads_of_gke():
    (command,) = lines("gke")
    assert command[:3] == ["xpk", "workload", "create"]
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", value(command, "workload"))
    assert value(command, "restart-on-exit-codes") == "42"
    inner = [
        "python",
        "-m",
        "fedprune",
        "sweep",
        "--workdir=/mnt/It's/My sweep",
        f"--trial={TRIAL.name}",
    ]
    assert shlex.split(value(command, "command")) == ["cd", "/fedprune", "&&", "exec", *inner]
    assert lines("gke") == [command]
    assert value(lines("gke", "/mnt/other")[0], "workload") != value(command, "workload")


@pytest.mark.parametrize("restarts", [100, 1, 0])
@pytest.mark.parametrize("place", ["gce", "queued_resources"])
def test_startup_scripts(place, restarts, tmp_path):
    """As bash understands them, with stand-ins for the programs: again while the status is 42, for
    the third time at most, and not more often than may be."""
    command = lines(place, restarts=restarts)[0]
    _, _, script = value(command, "metadata").partition("startup-script=")
    for name, text in {
        "python": f'echo "$@" >> {tmp_path}/said; exit $((42 * ($(wc -l < {tmp_path}/said) < 3)))',
        "gcloud": f'echo gcloud "$@" >> {tmp_path}/said',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    script = script.replace("cd /fedprune", f"cd {tmp_path}")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", script], env=environment, check=True, timeout=60)
    said = (tmp_path / "said").read_text().splitlines()
    own = f"-m fedprune sweep --workdir=/mnt/It's/My sweep --trial={TRIAL.name}"
    assert said[:-1] == [own] * min(3, 1 + restarts)
    assert said[-1].startswith("gcloud compute ")
    assert " delete sw-my-sweep-" in said[-1]


GCLOUD = """
kind=$2 verb=$3 name=$4
[ $kind != instance-groups ] || { verb=$4; name=$5; }
echo $kind $verb >> said
case "$kind $verb" in
  "instance-templates create") [ ! -e template-$name ] && touch template-$name ;;
  "instance-templates delete") [ ! -e group-$name ] && rm template-$name ;;
  "instance-groups create") [ ! -e full -a ! -e group-$name ] && touch group-$name ;;
esac
"""
XPK = """
echo $1 $2 >> said
case "$1 $2" in
  "workload create") [ ! -e ${3#--workload=} ] && touch ${3#--workload=} ;;
  "workload delete") rm ${3#--workload=} ;;
esac
"""


@pytest.fixture
def clouds(tmp_path, monkeypatch):
    """A sweep of one trial, and what starts it in a cloud with stand-ins for gcloud and xpk; they
    refuse what is there already, and to delete templates of a group."""
    for name, text in {"gcloud": GCLOUD, "xpk": XPK}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\ncd {tmp_path}\n{text}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    made = trials.Sweep(tmp_path / "s", (), {}, {"run.seed": (0,)})
    trials.write(made)

    def start(place: str) -> list[str]:
        """Its calls."""
        (tmp_path / "said").unlink(missing_ok=True)
        places.in_cloud(made, made.trials(), place, CLOUD)
        return (tmp_path / "said").read_text().splitlines()

    return made, start


def test_a_failed_trial_starts_again_on_compute_engine(clouds, tmp_path):
    made, start = clouds
    (tmp_path / "full").touch()
    with pytest.raises(RuntimeError, match="some trials were not started"):
        start("gce")
    (tmp_path / "full").unlink()
    start("gce")
    (group,) = tmp_path.glob("group-*")
    with pytest.raises(RuntimeError):  # it runs
        start("gce")
    assert group.exists()
    trials.record(made, made.trials()[0], 1)
    group.unlink()  # as the machine does at its end
    start("gce")
    assert group.exists()
    assert trials.state(made, made.trials()[0]).word == "waiting"


def test_a_failed_trial_starts_again_on_gke(clouds):
    made, start = clouds
    assert start("gke") == ["workload create"]
    with pytest.raises(RuntimeError):  # it runs
        start("gke")
    trials.record(made, made.trials()[0], 1)
    assert start("gke") == ["workload delete", "workload create"]
    with pytest.raises(RuntimeError):  # it runs again
        start("gke")


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
@pytest.mark.parametrize("place", ["gce", "queued_resources"])
def test_gcloud_takes_our_lines(place, tmp_path):
    """Its own parser refuses nothing but a flag that there is not; nothing is started."""
    environment = {**os.environ, "CLOUDSDK_CONFIG": str(tmp_path)}
    made = trials.Sweep(Path("/mnt/sweep"), (), {}, {})
    for command in [*cloud.leftovers(place, made, TRIAL, CLOUD, True), *lines(place)]:
        result = subprocess.run(
            [*command, "--bogus-flag"], env=environment, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 2
        said = result.stderr.strip().splitlines()[0]
        assert said.strip().endswith("unrecognized arguments: --bogus-flag"), result.stderr


@pytest.mark.skipif(shutil.which("xpk") is None, reason="xpk is not installed")
def test_xpk_takes_our_lines():
    made = trials.Sweep(Path("/mnt/sweep"), (), {}, {})
    for command in [*cloud.leftovers("gke", made, TRIAL, CLOUD, True), *lines("gke")]:
        tried = [*command, "--dry-run", "--skip-validation"]
        result = subprocess.run(tried, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stdout + result.stderr
    assert TRIAL.name in result.stdout


def test_the_script_for_sbatch():
    pytest.importorskip("submitit")
    made = trials.Sweep(Path("/mnt/My sweep"), ("--config=x",), {}, {"run.seed": tuple(range(3))})
    options = slurm.Options("debug", 30, 2, 1.5, None, "a", None, ("constraint=a100", "hold"), 2)
    text = slurm.script(made, made.trials(), options)
    told = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.M))
    assert (
        told.items()
        >= {
            "array": "0-2%2",
            "partition": "debug",
            "time": "30",
            "cpus-per-task": "2",
            "mem": "1536M",
            "account": "a",
            "constraint": "a100",
            "hold": "",
            "requeue": "",
            "open-mode": "append",
            "job-name": "'My sweep'",
        }.items()
    )
    assert f"cd {ROOT}" in text.splitlines()
    assert "array" not in slurm.script(made, made.trials()[:1], options)


def test_as_many_arrays_as_it_takes():
    many = grid.trials({"run.seed": tuple(range(2500))})
    parts = slurm.parts(many)
    assert [len(part) for part in parts] == [1000, 1000, 500]
    assert [trial for part in parts for trial in part] == many


@pytest.mark.parametrize(
    ("value", "cell"),
    [("=1+1", "'=1+1"), ("@a", "'@a"), ("+a", "'+a"), ("-a", "'-a"), (-1.5, -1.5), ("a=b", "a=b")],
)
def test_no_cell_of_a_table_is_a_formula(value, cell):
    assert collect._cell(value) == cell
