"""The command line: what it refuses, and that a killed run ends like an unbroken one."""

import contextlib
import importlib.metadata
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import ota_pruning, single
from fedprune import config as cfg
from fedprune.cli import once
from fedprune.runs import execution, read_rows

ROOT = Path(__file__).parents[1]
CONFIG = "--config=experiments/ota_pruning.py:fast"
SMALL = [
    "--config.data.clients=4",
    "--config.local.steps=1",
    "--config.local.batch=4",
    "--config.model.name=mlp",
    "--config.model.mlp.hidden=8,",
    "--config.pruning.start=1",
    "--config.pruning.every=1",
    "--config.pruning.steps=3",
    "--config.ratios=0.3,0.9",
    "--config.run.rounds=12",
    "--config.run.save_every=2",
    "--config.run.seeds=2",
    "--config.mesh.devices=1",
]


def command(*args) -> list[str]:
    return [sys.executable, "-m", "launch.main", *map(str, args)]


def launch(*args) -> subprocess.CompletedProcess:
    return subprocess.run(command(*args), cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            [CONFIG, "--config.uplnk.snr=5"],
            "--config.uplnk.snr=5: there is no such field (did you mean uplink.snr_db?)",
        ),
        ([CONFIG, "--config.participation=hlaf,"], "(did you mean half?)"),
        (
            [CONFIG, "--config.uplink.snr_db=loud"],
            "uplink.snr_db='loud': must be a number and at least -100",
        ),
        ([CONFIG, "--config.pruning.ratio=1.5"], "pruning.ratio=1.5: must be a number"),
        ([CONFIG, "--config.run.rounds=10"], "the last pruning step falls in round 16"),
        (
            ["--config=experiments/ota_pruning.py:huge"],
            "error: variant 'huge' of ota_pruning: must",
        ),
        (["--config=experiments/nothing.py:fast"], "there is no such experiment file"),
        (["--config=experiments/ota_prunning.py"], "(did you mean experiments/ota_pruning.py?)"),
        ([CONFIG, "--colour=red"], "Unknown command line flag 'colour'"),
        ([], "no experiment is named: give the name of one that ships, or a file of your own"),
        (["--config.seed=3"], "--config.seed=3: needs an experiment"),
        ([CONFIG, "single"], "single: one experiment at a time, which is --config=experiments/ota"),
        ([CONFIG, "--config.experiment=x"], "--config.experiment=x: cannot be set"),
        (["singel:tiny"], "singel:tiny: there is no such experiment (did you mean single?); must"),
        (["airnet"], "airnet: there is no such experiment"),
        ([CONFIG, "--resume_from="], "--resume_from='': must be a path of this machine"),
        ([CONFIG, "--config.data.dir=s3://sets"], "data.dir='s3://sets': must be a path of this"),
        ([CONFIG, "--config.mesh.devices=2", "--config.mesh.arms=3"], "mesh.arms=3: must divide"),
    ],
)
def test_bad_usage_is_one_line_and_leaves_nothing(args, says, tmp_path):
    workdir = tmp_path / "run"
    result = launch(*args, f"--workdir={workdir}")
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert says in lines[0]
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("raise RuntimeError('two\\nlines')", "cannot be loaded (RuntimeError: two lines)"),
        ("import sys; sys.exit(3)", "must return a Config, and exits with 3"),
        ("def get_config(): pass", "its get_config must return a fedprune Config, not None"),
    ],
)
def test_a_configuration_file_that_gives_none_is_named(content, says, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(content)
    result = launch(f"--config={file}", f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 2, result.stderr
    assert result.stderr == f"error: --config={file}: {says}\n"
    assert not (tmp_path / "run").exists()


def test_a_url_is_no_run_directory(tmp_path):
    args = command(CONFIG, "--workdir=gs://bucket/run")
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    args[3] = f"--config={ROOT}/experiments/ota_pruning.py:fast"
    result = subprocess.run(args, cwd=tmp_path, env=own, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: --workdir='gs://bucket/run': must be a path of this")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_saves(tmp_path):
    """As SIGTERM: the segment is finished, its state saved, and the status asks to go on."""
    asked = ["--config=experiments/single.py:tiny", "--config.run.rounds=100000"]
    listening = (  # as in a terminal; in the background, a shell has SIGINT ignored
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "runpy.run_module('launch.main', run_name='__main__', alter_sys=True)"
    )
    args = [*asked, "--config.run.save_every=100000", f"--workdir={tmp_path / 'run'}"]
    process = subprocess.Popen(
        [sys.executable, "-c", listening, *args], cwd=ROOT, stderr=subprocess.PIPE
    )
    while not lines(tmp_path / "run" / "metrics.jsonl") and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 42, said
    assert b"the same command goes on" in said.splitlines()[-1]
    (saved,) = (tmp_path / "run" / "checkpoints" / "program0").iterdir()
    assert int(saved.name) == lines(tmp_path / "run" / "metrics.jsonl")


def test_a_network_that_has_no_room_is_refused():
    """Before there is a directory: a plan touches no file of a run."""
    config = single.get_config("tiny")
    for hidden, says in (((999_999,) * 2, "GiB of memory"), ((60_000,) * 2, "fewer than 2^31")):
        changed = cfg.override(config, {"model.mlp.hidden": hidden})
        with pytest.raises(cfg.ConfigError, match=f"^model.name='mlp': .*{re.escape(says)}"):
            execution.plan(changed, single.arms(changed))


def test_missing_data_and_foreign_directories_are_refused(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "FEDPRUNE_DATA"}
    args = command(CONFIG, "--config.data.name=mnist", f"--workdir={tmp_path / 'run'}")
    result = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    assert "data.name='mnist' was not found: put train-images" in result.stderr
    assert not (tmp_path / "run").exists()

    (tmp_path / "thesis.tex").write_text("precious")
    result = launch(CONFIG, *SMALL, f"--workdir={tmp_path}")
    assert result.returncode == 1
    assert "is neither empty nor a run directory" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("inside", ["", "run"])
def test_a_file_in_place_of_the_directory(inside, tmp_path):
    (tmp_path / "notes").write_text("precious")
    result = launch(CONFIG, *SMALL, f"--workdir={tmp_path / 'notes' / inside}")
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: workdir={tmp_path / 'notes' / inside}: cannot be used (")
    assert "Traceback" not in result.stderr
    assert (tmp_path / "notes").read_text() == "precious"


@pytest.mark.slow
def test_a_disk_that_is_full_for_the_metrics(tmp_path):
    """Files cannot grow beyond 40 kB: one line that names the file, and what is there stays."""
    asked = command(CONFIG, *SMALL, "--config.run.save_every=12", f"--workdir={tmp_path / 'run'}")
    limited = ["bash", "-c", 'ulimit -f 40; exec "$@"', "bash", *asked]
    result = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: [Errno 27] File too large: ")
    assert last.endswith("/run/metrics.jsonl'")
    assert "Traceback" not in result.stderr
    result = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert lines(tmp_path / "run" / "metrics.jsonl") == 12 * 20


def test_a_report_that_fails_loses_nothing(unbroken, tmp_path):
    """One line says where it failed; there is a summary of the arms, and no report."""

    def report(config, rows, folder):
        raise TypeError("of all things")

    config = ota_pruning.get_config("fast")
    rows = list(read_rows(unbroken / "metrics.jsonl"))
    with pytest.raises(once.ReportError, match="TypeError: of all things, in test_launch"):
        once.reported(SimpleNamespace(report=report, file=Path(__file__)), config, rows, tmp_path)
    found, whole = (
        json.loads((folder / "summary.json").read_text())["arms"] for folder in (tmp_path, unbroken)
    )
    assert sorted(found, key=str) == sorted(whole, key=str)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    result = launch(CONFIG, *SMALL, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    return workdir


def run(args: list[str]) -> None:
    subprocess.run(args, cwd=ROOT, check=True, capture_output=True)


class Killer:
    """Starts a command and kills it with -9 at a random moment; counts what that hit."""

    def __init__(self) -> None:
        self.kills = self.saving = self.starting = 0
        self._random = random.Random(7)

    def run(self, args: list[str], workdir: Path) -> bool:
        """Whether the process ended before it was killed, which must be with status 0."""
        metrics, nowhere = workdir / "metrics.jsonl", subprocess.DEVNULL
        before = lines(metrics)
        process = subprocess.Popen(args, cwd=ROOT, stdout=nowhere, stderr=nowhere)
        if self._random.random() < 0.25:  # while it starts, and reads what is there
            wait = self._random.uniform(0, 4)
        else:
            while lines(metrics) <= before and process.poll() is None:
                time.sleep(0.002)
            wait = self._random.uniform(0, 1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert process.wait(wait) == 0
            return True
        process.kill()
        process.wait()
        self.kills += 1
        new = lines(metrics) > before  # else a save that shows is an earlier one
        self.saving += new and in_a_save(workdir)
        self.starting += not new
        return False


def in_a_save(workdir: Path) -> bool:
    """Whether a process was killed after the first file operation of a save and before the last."""
    steps = [list(program.iterdir()) for program in workdir.glob("checkpoints/*")]
    unfinished = any("orbax-checkpoint-tmp" in p.name for found in steps for p in found)
    return unfinished or any(sum(p.name.isdecimal() for p in found) > 2 for found in steps)


@pytest.mark.slow
def test_runs_killed_at_random_moments(tmp_path, capsys):
    """kill -9 of starts that go on where the last one was killed, until their run has ended; then
    it has the bytes of an unbroken one. FEDPRUNE_KILLS asks for more than 10, say 100."""
    wanted, killer, runs = int(os.environ.get("FEDPRUNE_KILLS", 10)), Killer(), 0
    asked = command(CONFIG, *SMALL, "--config.run.rounds=60", "--config.run.save_every=1")
    run([*asked, f"--workdir={tmp_path / '0'}"])
    while killer.kills < wanted:
        runs, killed = runs + 1, killer.kills
        workdir = tmp_path / str(runs)
        ended = False
        while killer.kills < wanted and not ended:
            ended = killer.run([*asked, f"--workdir={workdir}"], workdir)
        if not ended:
            run([*asked, f"--workdir={workdir}"])
        for name in ("summary.json", "metrics.jsonl", "report.md"):
            assert (workdir / name).read_bytes() == (tmp_path / "0" / name).read_bytes(), name
        starts = json.loads((workdir / "run.json").read_text())["starts"]
        unended = sum("ended" not in start for start in starts)
        assert unended <= killer.kills - killed  # some did not live to be recorded
        if unended:
            page = (workdir / "report.html").read_text()
            assert f"not counted: {unended} without an end" in page
    with capsys.disabled():
        print(
            f"\n{killer.kills} kills of {runs} runs, {killer.saving} in a save,"
            f" {killer.starting} before a new row"
        )
    assert killer.saving >= (wanted / 5 if wanted >= 50 else 1)


@pytest.mark.slow
def test_a_run_goes_on_on_another_number_of_devices(tmp_path):
    """Strict, clients spread over two devices; killed, and then on four: the unbroken bytes."""
    asked = ["--config=experiments/single.py:tiny", "--config.mesh.reduction=strict"]
    asked += ["--config.run.rounds=40", "--config.run.save_every=1"]
    two, four = (f"--config.mesh.devices={n}" for n in (2, 4))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(command(*asked, two, f"--workdir={whole}"))
    begun = subprocess.Popen(
        command(*asked, two, f"--workdir={broken}"), cwd=ROOT, stderr=subprocess.DEVNULL
    )
    while lines(broken / "metrics.jsonl") < 5 and begun.poll() is None:
        time.sleep(0.002)
    begun.kill()
    assert begun.wait() == -9
    result = launch(*asked, four, f"--workdir={broken}")
    assert result.returncode == 0, result.stderr
    moved = "resuming elsewhere: mesh.devices was 2, is 4; numbers may differ in their last bits"
    assert moved in result.stderr.splitlines()
    assert "program0: resuming after round" in result.stderr
    assert "devices: 1 for arms x 4 for clients" in result.stderr
    for name in ("metrics.jsonl", "report.md"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    starts = json.loads((broken / "run.json").read_text())["starts"]
    assert [start["devices"] for start in starts] == [{"cpu cpu": 2}, {"cpu cpu": 4}]


def test_run_directory(unbroken):
    """What a run leaves behind, and that it is refused to another configuration."""
    summary = json.loads((unbroken / "summary.json").read_text())
    assert set(summary) >= {"experiment", "variant", "arms", "tables", "claims"}
    assert len(summary["arms"]) == 10
    assert all(arm["seeds"] == 2 for arm in summary["arms"])
    assert len(list((unbroken / "figures").glob("*.png"))) == 1
    assert len(list((unbroken / "figures").glob("*.svg"))) == 1
    assert list((unbroken / "tensorboard").rglob("events*"))
    assert "1 start</dd>" in (unbroken / "report.html").read_text()
    before = (unbroken / "summary.json").read_bytes()
    result = launch(CONFIG, *SMALL, "--config.uplink.snr_db=3", f"--workdir={unbroken}")
    assert result.returncode == 1
    assert "uplink.snr_db was 10.0, is 3.0" in result.stderr
    assert (unbroken / "summary.json").read_bytes() == before


def test_the_record_of_a_run(unbroken):
    record = json.loads((unbroken / "run.json").read_text())
    first = record["starts"][0]
    assert first["python"] == sys.version.split()[0]
    assert first["devices"] == {"cpu cpu": 1}
    assert first["packages"]["jax"] == importlib.metadata.version("jax")
    described = ["git", "describe", "--always", "--dirty", "--tags"]
    code = subprocess.run(described, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert first["code"] == (code if (ROOT / ".git").exists() else "")


def test_a_damaged_checkpoint_costs_rounds_and_changes_nothing(unbroken, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(unbroken, workdir)
    newest = workdir / "checkpoints" / "program1" / "12" / "state" / "d"
    data = max(newest.iterdir(), key=lambda file: file.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    result = launch(CONFIG, *SMALL, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if "checkpoint" in line]
    assert len(said) == 1
    assert re.match("program1: the checkpoint of round 12: .*; taking that of round 10$", said[0])
    assert "Traceback" not in result.stderr
    for name in ("summary.json", "metrics.jsonl", "report.md"):
        assert (workdir / name).read_bytes() == (unbroken / name).read_bytes(), name


@pytest.mark.slow
def test_fresh_and_resumed_from_another_run(unbroken, tmp_path):
    """A copy of a run starts over, from the other run's checkpoints, and with two rounds more."""
    workdir = tmp_path / "run"
    shutil.copytree(unbroken, workdir)
    asked = [CONFIG, *SMALL, "--config.run.rounds=14", f"--workdir={workdir}"]
    result = launch(*asked, f"--resume_from={unbroken}", "--fresh")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    old = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    by_arm = lambda rows: sorted(rows, key=lambda r: (r["arm"], r["seed"], r["round"]))
    assert by_arm(r for r in rows if r["round"] <= 12) == by_arm(old)
    assert sum(r["round"] > 12 for r in rows) == len(old) / 12 * 2
    assert (workdir / "old" / "1" / "report.md").read_bytes() == (
        unbroken / "report.md"
    ).read_bytes()
    other = "--config.data.partition=shards"
    result = launch(*asked, f"--resume_from={unbroken}", "--fresh", other)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "data.partition was 'iid', is 'shards', but only these may differ: variant, " in line
    assert not (workdir / "old" / "2").exists()


def test_help_on_the_configuration():
    result = launch(CONFIG, "--help_config", "--config.uplink.snr_db=7")
    assert result.returncode == 0, result.stderr
    assert "\n  uplink.snr_db = 7.0 dB\n    signal-to-noise ratio: a client's " in result.stdout
    assert "\n  participation = ('full', 'half')\n" in result.stdout


def test_profile(tmp_path):
    """A table of stages and a trace, and no run."""
    result = launch(CONFIG, *SMALL, f"--workdir={tmp_path}", "--profile")
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^\| (\S.*?) +\| +([\d.]+) +\| +([\d.]+)% +\|$", result.stdout, re.M)
    stages = {name: float(share) for name, _, share in rows}
    assert {"local training", "uplink", "evaluation"} <= set(stages)
    assert 99 < sum(stages.values()) < 101
    assert list(tmp_path.rglob("*.trace.json.gz"))
    assert not (tmp_path / "metrics.jsonl").exists()
    (tmp_path / "thesis.tex").write_text("precious")
    result = launch(CONFIG, *SMALL, f"--workdir={tmp_path}", "--profile")
    assert result.returncode == 1
    assert "is neither empty nor a run directory" in result.stderr


def test_a_directory_in_use_is_refused(tmp_path):
    from fedprune.runs import RunDirectory, RunDirectoryError

    with (
        RunDirectory(tmp_path / "run", {"a": 1}),
        pytest.raises(RunDirectoryError, match="another process is using it"),
    ):
        RunDirectory(tmp_path / "run", {"a": 1})
    RunDirectory(tmp_path / "run", {"a": 1}).close()
