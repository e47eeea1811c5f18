"""Sweeps on a real Slurm cluster of one node: an array, kill -9, preemption, time, status 42."""

import contextlib
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_cluster

ROOT = Path(__file__).parents[1]
ROUNDS = 60
LONG = 400
"""rounds that are not over before Slurm has decided to end the job"""
SMALL = [
    "--config=experiments/single.py:tiny",
    "--config.mesh.devices=1",
    f"--config.run.rounds={ROUNDS}",
]
JOBS = ["--on=slurm", "--cpus=1"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing()),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment of a cluster."""
    pytest.importorskip("submitit")
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def start(cluster, *args) -> subprocess.Popen:
    command = [sys.executable, "-m", "launch.sweep", *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=cluster, text=True, stdout=pipe, stderr=pipe)


def said(cluster, *command) -> str:
    return subprocess.run(
        command, env=cluster, capture_output=True, text=True, timeout=60
    ).stdout.strip()


@contextlib.contextmanager
def ending(process: subprocess.Popen):
    """Kills a process that a failing test leaves behind."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(ready, process: subprocess.Popen, seconds: float = 1200) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def start_now(cluster) -> None:
    """Requeued jobs wait two minutes unless they are told not to."""
    for line in said(cluster, "squeue", "--noheader", "--array", "--format=%i %r").splitlines():
        job, _, reason = line.partition(" ")
        if reason == "BeginTime":
            said(cluster, "scontrol", "update", f"JobId={job}", "StartTime=now")


def requeued(cluster, process: subprocess.Popen, trial: Path) -> tuple[int, int]:
    """Waits until the one job is requeued amid its rounds, lets it start again, and the sweep end.

    Returns the rounds that it had, and those after which it was resumed.
    """
    until(lambda: "BeginTime" in said(cluster, "squeue", "--format=%r"), process)
    before = rounds(trial)
    assert 0 < before < LONG
    start_now(cluster)
    out, error = process.communicate(timeout=1200)
    assert process.returncode == 0, error
    assert "1 of 1 trials" in out
    assert "failed" not in out
    assert starts(trial) == 2
    assert rounds(trial) == LONG
    log = (trial.parents[1] / "logs" / f"{trial.name}.log").read_text()
    (resumed,) = re.findall(r"resuming after round (\d+)", log)
    return before, int(resumed)


def rounds(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def starts(folder: Path) -> int:
    return len(json.loads((folder / "run.json").read_text())["starts"])


def process_of(folder: Path) -> int:
    """The process that runs a trial."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_bytes().decode().split("\0")
            if "fedprune" in words and f"--workdir={folder}" in words:
                return int(place.name)
    raise AssertionError(f"nobody runs {folder}")


def test_an_array_with_a_killed_trial(cluster, tmp_path):
    """The others finish, and a rerun does only the missing one, which ends as if unbroken."""
    folder = tmp_path / "sweep"
    asked = [*SMALL, "--grid=uplink.snr_db=0,10 seed=0:2", f"--workdir={folder}", *JOBS]
    script = start(cluster, *asked, "--dry_run").communicate()[0]
    (tmp_path / "script.sh").write_text(script)
    checked = subprocess.run(
        ["sbatch", "--test-only", tmp_path / "script.sh"], env=cluster, capture_output=True
    )
    assert checked.returncode == 0, checked.stderr

    names = [f"uplink.snr_db={snr},run.seed={seed}" for snr in (0, 10) for seed in (0, 1)]
    first, *others = [folder / "trials" / name for name in names]
    with ending(start(cluster, *asked)) as process:
        until(lambda: rounds(first) > 2, process)
        os.kill(process_of(first), signal.SIGKILL)
        out, error = process.communicate(timeout=1200)
    assert process.returncode == 1, error
    assert "Slurm: 4 jobs submitted" in out
    (line,) = [line.strip() for line in error.splitlines() if "killed by" in line]
    assert line.startswith(f"{names[0]}: killed by SIGKILL; {folder}/logs/{names[0]}.log ends with")
    assert "3 of 4 trials" in out
    (submitted,) = (folder / "slurm").glob("*_submission.sh")
    assert submitted.read_text() == script.removesuffix("\n")

    with ending(start(cluster, *asked)) as process:
        out, error = process.communicate(timeout=1200)
    assert process.returncode == 0, error
    assert "3 of 4 trials were finished before" in out
    assert "Slurm: 1 jobs submitted" in out
    assert [starts(trial) for trial in (first, *others)] == [2, 1, 1, 1]
    rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))
    assert len(rows) == 4 * ROUNDS
    assert {row["trial"] for row in rows} == set(names)
    assert (folder / "figures" / "accuracy.png").exists()

    alone = tmp_path / "alone"
    command = [sys.executable, "-m", "launch.main", *SMALL, "--config.run.seeds=1"]
    command += ["--config.uplink.snr_db=0.0", "--config.run.seed=0", f"--workdir={alone}"]
    subprocess.run(command, cwd=ROOT, env=cluster, check=True, capture_output=True)
    assert (alone / "metrics.jsonl").read_bytes() == (first / "metrics.jsonl").read_bytes()


def test_a_preempted_trial_resumes(cluster, tmp_path):
    """A job of a partition that goes first takes all the node; then Slurm requeues ours."""
    folder = tmp_path / "sweep"
    asked = [*SMALL, f"--config.run.rounds={LONG}", "--grid=uplink.snr_db=5", *JOBS]
    asked += [f"--workdir={folder}"]
    trial = folder / "trials" / "uplink.snr_db=5"
    with ending(start(cluster, *asked, f"--partition={slurm_cluster.LOW}")) as process:
        saved = trial / "checkpoints" / "program0"  # with temporary folders beside whole ones
        until(lambda: any(p.name.isdecimal() for p in saved.glob("*")), process)
        said(cluster, "sbatch", f"--partition={slurm_cluster.HIGH}", "--exclusive",
             "--output=/dev/null", "--wrap=true")  # fmt: skip
        before, resumed = requeued(cluster, process, trial)
    assert 0 < resumed <= before


def test_a_trial_whose_time_is_nearly_over_resumes(cluster, tmp_path):
    """SIGUSR2 for the job's step, as ``sbatch --signal=USR2@90`` has it sent."""
    folder = tmp_path / "sweep"
    asked = [*SMALL, f"--config.run.rounds={LONG}", "--grid=uplink.snr_db=3", *JOBS]
    asked += [f"--workdir={folder}"]
    trial = folder / "trials" / "uplink.snr_db=3"
    with ending(start(cluster, *asked)) as process:
        until(lambda: rounds(trial) > 2, process)
        (job,) = json.loads((folder / "slurm" / "jobs.json").read_text()).values()
        said(cluster, "scancel", "--signal=USR2", job)
        before, resumed = requeued(cluster, process, trial)
    assert resumed == before  # nothing is computed again


def test_a_trial_that_asks_for_it_is_requeued(cluster, tmp_path):
    """Exit status 42, at the first start."""
    again = tmp_path / "again.py"
    again.write_text(
        "import os\n"
        "from experiments import single\n"
        "from experiments.single import arms, report\n"
        "def get_config(variant='tiny'):\n"
        "    if os.environ.get('SLURM_JOB_ID') and not os.environ.get('SLURM_RESTART_COUNT'):\n"
        "        os._exit(42)\n"  # sys.exit would be refused, as a file that cannot be used
        "    return single.get_config(variant)\n"
    )
    folder = tmp_path / "sweep"
    asked = [f"--config={again}", "--config.mesh.devices=1", "--grid=seed=3", *JOBS]
    with ending(start(cluster, *asked, f"--workdir={folder}")) as process:
        until(lambda: "BeginTime" in said(cluster, "squeue", "--format=%r"), process)
        assert not (folder / "trials" / "run.seed=3").exists()
        start_now(cluster)
        error = process.communicate(timeout=1200)[1]
    assert process.returncode == 0, error
    log = (folder / "logs" / "run.seed=3.log").read_text()
    assert len(re.findall(r"^\$ .* -m fedprune run", log, re.M)) == 2
    assert rounds(folder / "trials" / "run.seed=3") == 8


def test_one_job_of_two_processes(cluster, tmp_path):
    """P0's experiment in strict mode finds, byte for byte, what one process with two devices finds.

    With FEDPRUNE_P0=fast it is the variant ``fast`` as it is, else one with a small network.
    """
    whole = os.environ.get("FEDPRUNE_P0") == "fast"
    command = [sys.executable, "-m", "launch.main", "--config=experiments/ota_pruning.py:fast"]
    command += ["--config.mesh.devices=2", "--config.mesh.reduction=strict"]
    if not whole:
        command += [
            "--config.model.name=mlp",
            "--config.model.mlp.hidden=8,",
            "--config.run.seeds=1",
        ]
        command += ["--config.local.steps=1", "--config.local.batch=4", "--config.ratios=0.9,"]
    together, alone = (tmp_path / name for name in ("together", "alone"))
    step = ["srun", "--ntasks=2", "--cpus-per-task=1", "--mpi=none", "--kill-on-bad-exit=1"]
    for prefix, more in ((step, [f"--workdir={together}", "--distributed"]),
                         ([], [f"--workdir={alone}"])):  # fmt: skip
        ended = subprocess.run(
            [*prefix, *command, *more], cwd=ROOT, env=cluster, capture_output=True, text=True,
            timeout=None if whole else 600,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
    (begun,) = json.loads((together / "run.json").read_text())["starts"]
    assert begun["processes"] == 2
    for name in ("summary.json", "metrics.jsonl", "report.md"):
        assert (together / name).read_bytes() == (alone / name).read_bytes(), name
