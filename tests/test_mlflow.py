"""Runs in a real store of MLflow, an SQLite file. MLflow has an environment of its own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # which would go over the network
pytest.importorskip("mlflow")
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient
from test_loop import LABELS, Killed, program

from fedprune.runs import loop, mlflow
from fedprune.runs.writers import About, Log, WriterError

ROOT = Path(__file__).parents[1]
pytestmark = [
    # MLflow leaves its connections to be collected.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A store without runs, which takes MLflow seconds to make."""
    file = tmp_path_factory.mktemp("store") / "empty.db"
    mlflow.connect(f"sqlite:///{file}")
    return file.read_bytes()


@pytest.fixture
def uri(empty, tmp_path):
    (tmp_path / "store.db").write_bytes(empty)
    return f"sqlite:///{tmp_path}/store.db"


def train(folder: Path, uri: str) -> None:
    # More parameters than MLflow takes at once.
    arms = {label.arm: {f"p{i}": i for i in range(150)} for label in LABELS}
    about = About("the id", "numpy:tiny", folder, arms)
    loop.train([program()], folder, 12, 2, 2, out=Log([mlflow.connect(uri)(about)]))


def stored(uri: str, experiment: str) -> list:
    """The runs of an experiment, the deleted ones too."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id], run_view_type=ViewType.ALL))


def history(uri: str, run) -> dict[int, dict[str, float]]:
    """All that was ever logged of a run, in the order of the steps; nothing is there twice."""
    client, rounds = MlflowClient(uri), {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            assert name not in rounds.setdefault(metric.step, {}), (name, metric.step)
            rounds[metric.step][name] = metric.value
    return rounds


def rows(folder: Path, arm: str, seed: int) -> dict[int, dict[str, float]]:
    """The same from the rows of a run."""
    found = {}
    for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        if (row["arm"], row["seed"]) == (arm, seed):
            numbers = {k: v for k, v in row.items() if k not in ("program", "arm", "seed")}
            for name, value in [*numbers.items()]:
                if isinstance(value, dict):
                    del numbers[name]
                    numbers |= {f"{name}/{k}": v for k, v in value.items()}
            found[row["round"]] = {k: v for k, v in numbers.items() if isinstance(v, int | float)}
    return found


@pytest.mark.parametrize("when", ["rows", "numbers", "some of the numbers", "checkpoint"])
def test_no_round_is_missing_or_there_twice(when, uri, tmp_path, monkeypatch):
    """Killed after rows, after numbers, between those of two arms, and after a checkpoint."""
    owner, name = {
        "rows": (loop.MetricsFile, "write"),
        "numbers": (Log, "write"),
        "some of the numbers": (MlflowClient, "log_batch"),
        "checkpoint": (loop.Checkpoints, "save"),
    }[when]
    real, left = getattr(owner, name), 0

    def failing(self, *args, **named):
        nonlocal left
        real(self, *args, **named)
        left -= 1
        if left == 0:
            raise Killed

    monkeypatch.setattr(owner, name, failing)
    stops = 0
    for left in (1, 3, 5, 7):  # noqa: B007
        try:
            train(tmp_path / "run", uri)
        except Killed:
            stops += 1
    assert stops >= 1
    left = 0
    for _ in range(2):  # the second one has nothing to do
        train(tmp_path / "run", uri)
        runs = stored(uri, "numpy:tiny")
        assert {run.data.tags["fedprune.arm"] for run in runs} == {"slow", "fast"}
        assert len(runs) == 2
        for run in runs:
            tags = run.data.tags
            assert (tags["fedprune.run"], tags["fedprune.seed"]) == ("the id", "0")
            assert run.data.params == {**{f"p{i}": str(i) for i in range(150)}, "seed": "0"}
            assert run.info.status == "FINISHED"
            found = history(uri, run)
            assert found == rows(tmp_path / "run", tags["fedprune.arm"], 0)
            assert sorted(found) == list(range(1, 13))


def test_a_round_of_many_numbers(uri, tmp_path):
    """More than MLflow takes at once, beside others."""
    about = About("id", "x", tmp_path, {"a": {}})
    writer = mlflow.connect(uri)(about)
    assert writer.begin("a", 0, 0) == 0
    rounds = {r: {f"n{i}": i + r for i in range(n)} for r, n in ((1, 600), (2, 600), (3, 2500))}
    writer.write("a", 0, rounds)
    (run,) = stored(uri, "x")
    assert history(uri, run) == {r: {**values, "round": r} for r, values in rounds.items()}
    assert mlflow.connect(uri)(about).begin("a", 0, 3) == 3
    writer.close("stopped")
    assert stored(uri, "x")[0].info.status == "KILLED"


def test_a_store_that_is_lost_stops_the_run_in_one_line(uri, tmp_path, monkeypatch):
    """And the next start goes on where the store is."""
    with monkeypatch.context() as lost:
        calls, real = [], MlflowClient.log_batch

        def failing(self, *args, **named):
            calls.append(args)
            if len(calls) > 6:
                raise OSError("the server\nis gone")
            return real(self, *args, **named)

        lost.setattr(MlflowClient, "log_batch", failing)
        with pytest.raises(WriterError, match=r"sqlite:.* failed \(the server is gone\)"):
            train(tmp_path / "run", uri)
    train(tmp_path / "run", uri)
    for run in stored(uri, "numpy:tiny"):
        assert history(uri, run) == rows(tmp_path / "run", run.data.tags["fedprune.arm"], 0)


def fedprune(*words: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "fedprune", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_of_the_command_line(uri, tmp_path):
    """A run, and a sweep as one program, whose trials have the runs that they would have alone."""
    small = ("single:tiny", "--config.run.rounds=5", "--config.mesh.devices=1")
    workdir = f"--workdir={tmp_path}/run"
    refused = fedprune("run", *small, workdir, "--log=mlflow")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --log=mlflow: must know the store: give --mlflow_uri=")
    said = fedprune("run", *small, workdir, "--log=tensorboard,mlflow", MLFLOW_TRACKING_URI=uri)
    assert said.returncode == 0, said.stderr
    assert (tmp_path / "run" / "tensorboard").is_dir()
    (run,) = stored(uri, "single:tiny")
    assert history(uri, run) == rows(tmp_path / "run", "run", 0)
    assert (
        run.data.tags["fedprune.run"]
        == json.loads((tmp_path / "run" / "run.json").read_text())["id"]
    )
    assert (run.data.params["run.rounds"], run.data.params["seed"]) == ("5", "0")

    sweep = ("sweep", *small, f"--workdir={tmp_path}/s", "--grid=uplink.snr_db=0,20")
    said = fedprune(*sweep, "--log=mlflow", f"--mlflow_uri={uri}")
    assert said.returncode == 0, said.stderr
    runs = [run for run in stored(uri, "single:tiny") if "/s/" in run.data.tags["fedprune.folder"]]
    trials = {run.data.params["uplink.snr_db"]: run for run in runs}
    assert set(trials) == {"0.0", "20.0"}
    for value, run in trials.items():
        (folder,) = tmp_path.glob(f"s/trials/uplink.snr_db={float(value):g}*")
        assert history(uri, run) == rows(folder, "run", 0)
        assert run.data.tags["fedprune.folder"] == str(folder)


def test_a_store_that_does_not_answer_is_refused_before_anything_is_written(tmp_path):
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        (tmp_path / "text.db").write_text("no database " * 100)
        for uri in (
            f"http://127.0.0.1:{taken.getsockname()[1]}",
            f"sqlite:///{tmp_path}/text.db",
            "nothing://x",
        ):
            with pytest.raises(WriterError, match=f"^log mlflow: {uri} does not answer ") as error:
                mlflow.connect(uri)
            assert "\n" not in str(error.value)
    said = fedprune(
        *("run", "single:tiny", f"--workdir={tmp_path}/run", "--log=mlflow"),
        f"--mlflow_uri=sqlite:///{tmp_path}/text.db",
    )
    assert said.returncode == 1
    assert said.stderr.splitlines()[-1].startswith("error: log mlflow: sqlite:")
    assert not (tmp_path / "run").exists()
