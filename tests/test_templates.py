"""The templates of launch/, with stand-ins for the programs of clusters: what they would start."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from fedprune.cli import parse, run

LAUNCH = Path(__file__).parents[1] / "launch"
ASKED = ["single:tiny", "--workdir=/mnt/It's/a run", "--config.run.rounds=9"]
PLACE = {"PROJECT": "p", "ZONE": "z", "CLUSTER": "c", "TPU_TYPE": "v5litepod-16", "IMAGE": "i:1"}


@pytest.fixture
def template(tmp_path, monkeypatch):
    """Calls a template; its exit status, and the words that each stand-in was given. The first two
    times, the one that starts a run exits with 42."""
    said = tmp_path / "said"
    for name in ("srun", "scontrol", "xpk", "gcloud"):
        again = 'echo x >> starts; exit $((42 * ($(grep -c "^" starts) < 3)))'
        asks = again if name in ("srun", "gcloud") else ""
        note = f"printf '%s\\0' {name} \"$@\" >> said; echo >> said"
        (tmp_path / name).write_text(f"#!/bin/bash\ncd {tmp_path}\n{note}\n{asks}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "7")

    def call(name: str, *words: str, **variables: str) -> tuple[int, list[list[str]]]:
        done = subprocess.run(
            [LAUNCH / name, *words],
            env={**os.environ, **variables}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        lines = said.read_text().split("\0\n") if said.exists() else []
        return done.returncode, [line.split("\0") for line in lines if line]

    return call


def asks_for(words: list[str]) -> None:
    """Whether a command line is the run that was asked for, as one of several processes."""
    at = words.index("-m")
    assert words[at : at + 3] == ["-m", "fedprune", "run"]
    given = parse.parse(words[at + 2 :], run.define)
    assert given.experiment.given() == "single:tiny"
    assert (given.values.workdir, given.config.run.rounds) == ("/mnt/It's/a run", 9)
    assert given.values.distributed


def test_a_job_of_slurm_queues_itself_again(template):
    """As long as the run asks for it, and else ends with its status."""
    for count in (1, 2, 3):
        status, said = template("slurm.sh", *ASKED)
        started = [words for words in said if words[0] == "srun"]
        assert len(started) == count
        asks_for(started[-1])
        if count < 3:
            assert (status, said[-1]) == (42, ["scontrol", "requeue", "7"])
    assert (status, said[-1][0]) == (0, "srun")


def test_a_workload_of_gke(template):
    status, ((*words,),) = template("gke.sh", "name", *ASKED, **PLACE)
    assert status == 0
    assert words[:3] == ["xpk", "workload", "create"]
    assert "--restart-on-exit-codes=42" in words
    (inner,) = [word.partition("=")[2] for word in words if word.startswith("--command=")]
    asks_for(shlex.split(inner))


def test_a_slice_of_tpus(template):
    """Again while the status is 42, and not more often than it may be."""
    status, said = template("tpu.sh", "name", *ASKED, **PLACE, RESTARTS="1")
    assert (status, len(said)) == (42, 2)
    status, said = template("tpu.sh", "name", *ASKED, **PLACE)
    assert (status, len(said)) == (0, 3)
    (inner,) = [word.partition("=")[2] for word in said[-1] if word.startswith("--command=")]
    asks_for(shlex.split(inner))


@pytest.mark.parametrize("name", ["gke.sh", "tpu.sh"])
def test_what_is_missing_is_said(name, template):
    assert template(name, "name", *ASKED, **{**PLACE, "ZONE": ""}) == (1, [])
    assert template(name, **PLACE) == (1, [])
