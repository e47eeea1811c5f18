"""``fedprune.load_run``: models from run directories."""

import json
import shutil

import jax
import numpy as np
import pytest

import fedprune as fp
from experiments import single
from fedprune import config as cfg
from fedprune.cli import sweep
from fedprune.runs import RunDirectory, RunDirectoryError, execution
from fedprune.runs.checkpoint import CheckpointError

ARMS = [
    cfg.Arm("small", {"model.mlp.hidden": (4,)}),
    cfg.Arm("large", {"model.mlp.hidden": (6,), "pruning.ratio": 0.8}),
    cfg.Arm("large, lightly", {"model.mlp.hidden": (6,), "pruning.ratio": 0.1}),
]

SMALL = {"data.examples": 200, "mesh.devices": 1, "run.rounds": 6, "run.every": 3, "run.seeds": 2}


def answers(found, examples):
    return np.asarray(found.logits(examples)).argmax(-1)


def write(folder, arms=ARMS, **changes):
    """A run directory of six rounds, as ``fedprune run`` makes it."""
    config = cfg.override(single.get_config("tiny"), {**SMALL, **changes})
    plan = execution.plan(config, arms)
    with RunDirectory(folder, cfg.to_json(config)) as directory:
        directory.record(execution.about(plan))
        execution.execute(plan, directory)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("runs") / "one")


def last(folder, arm, seed):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if (row["arm"], row["seed"]) == (arm, seed)][-1]


@pytest.mark.parametrize(("arm", "hidden"), [("small", 4), ("large", 6), ("large, lightly", 6)])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_model_that_the_run_has_evaluated(folder, arm, hidden, seed, dataset):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    found = fp.load_run(folder, arm, seed)
    row = last(folder, arm, seed)
    right = answers(found, dataset.x_test) == dataset.y_test
    assert np.mean(right) == pytest.approx(row["test_accuracy"], abs=1e-3)
    assert found.params["Dense_0"]["kernel"].shape == (784, hidden)
    assert sum(int(np.count_nonzero(mask)) for mask in jax.tree.leaves(found.mask)) == row["kept"]
    for w, kept in zip(jax.tree.leaves(found.params), jax.tree.leaves(found.mask), strict=True):
        assert not np.any(np.asarray(w)[~np.asarray(kept)])
    assert (found.config.run.seed, found.config.model.mlp.hidden) == (seed, (hidden,))
    assert int(found.state.round) == 6
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({}, ValueError, r"arm=None: must be one of \['small', 'large', 'large, lightly'\]"),
        ({"arm": "smal"}, ValueError, r"arm='smal': must be .* \(did you mean small\?\)"),
        ({"arm": "small"}, ValueError, r"seed=None: must be one of \[0, 1\]"),
        ({"arm": "small", "seed": 2}, ValueError, r"seed=2: must be one of \[0, 1\]"),
        (
            {"arm": "small", "seed": 0, "client": 0},
            ValueError,
            "client=0: this run has no personal",
        ),
    ],
)
def test_what_is_not_there(folder, given, error, says):
    with pytest.raises(error, match=says):
        fp.load_run(folder, **given)


def test_folders_that_are_no_run(folder, tmp_path):
    with pytest.raises(RunDirectoryError, match=r"ones: there is no such folder"):
        fp.load_run(folder.with_name("ones"))
    with pytest.raises(RunDirectoryError, match=r"is not a run directory \(no config.json\)"):
        fp.load_run(tmp_path)
    with (
        RunDirectory(folder, json.loads((folder / "config.json").read_text())),
        pytest.raises(RunDirectoryError, match="another process is using it"),
    ):
        fp.load_run(folder, "small", 0)


def test_a_run_of_another_version(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    values = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(values | {"compression": 3}))
    with pytest.raises(RunDirectoryError, match=r"another version of fedprune: compression"):
        fp.load_run(copy, "small", 0)
    (copy / "config.json").write_text(json.dumps(values))
    record = json.loads((copy / "run.json").read_text())
    del record["starts"][-1]["arms"]
    (copy / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunDirectoryError, match="did not record what its model is made of"):
        fp.load_run(copy, "small", 0)


def test_a_damaged_state_is_left_out_and_stays(folder, tmp_path, caplog):
    copy = shutil.copytree(folder, tmp_path / "copy")
    steps = sorted((copy / "checkpoints" / "program0").iterdir(), key=lambda p: int(p.name))
    for step in reversed(steps):
        file = step / "checksums" / "metadata"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        if step != steps[0]:
            assert int(fp.load_run(copy, "small", 0).state.round) == int(steps[0].name)
            assert f"the checkpoint of round {step.name}" in caplog.text
            assert step.exists()
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        fp.load_run(copy, "small", 0)


@pytest.mark.parametrize(("method", "layers"), [("alternating", ("Dense_1",)), ("ditto", ())])
def test_personal_models(tmp_path, dataset, method, layers):
    """The clients' own accuracies, pooled, are those of their models on their examples."""
    changes = {
        "personal.method": method,
        "personal.layers": layers,
        "run.test": "clients",
        "run.seeds": 1,
        "data.clients": 3,
        "cohort.size": 3,
    }
    folder = write(tmp_path / "own", [cfg.Arm("own", {})], **changes)
    config = fp.load_run(folder, client=0).config
    split = fp.data.iid(3)(dataset.y_train[: SMALL["data.examples"]], dataset.y_test, 0)
    right = 0
    for client, rows in enumerate(split.test):
        found = answers(fp.load_run(folder, client=client), dataset.x_test[rows])
        right += int(np.sum(found == dataset.y_test[rows]))
    assert config.data.partition == "iid"
    total = sum(len(rows) for rows in split.test)
    assert right / total == pytest.approx(last(folder, "own", 0)["test_accuracy"], abs=2 / total)
    with pytest.raises(ValueError, match="client=3: must be 0 to 2"):
        fp.load_run(folder, client=3)
    if method == "ditto":
        assert fp.load_run(folder).params["Dense_1"]["kernel"].shape == (8, 10)
    else:
        with pytest.raises(ValueError, match="client=None: must be 0 to 2"):
            fp.load_run(folder)


def test_a_trial_of_a_sweep_in_one_program(tmp_path, dataset, capsys):
    folder = tmp_path / "sweep"
    arguments = ["sweep", "single:tiny", f"--workdir={folder}", "--on=program"]
    arguments += [f"--config.{name}={value}" for name, value in SMALL.items()]
    arguments += ["--config.run.seeds=1", "--grid=local.lr=0.05,0.2"]
    assert sweep.main(arguments) == 0
    trials = sorted((folder / "trials").iterdir())
    assert len(trials) == 2
    for trial in trials:
        found = fp.load_run(trial)
        right = answers(found, dataset.x_test) == dataset.y_test
        assert np.mean(right) == pytest.approx(last(trial, "run", 0)["test_accuracy"], abs=1e-3)
    rates = {fp.load_run(trial).config.local.lr for trial in trials}
    assert rates == {0.05, 0.2}


def test_a_network_of_the_users(tmp_path, dataset):
    """It is given again, since a run directory has no code; another one is refused."""

    def own(hidden, activation=fp.models.mlp):
        return fp.build.Own(lambda config, found: activation((hidden,), found.classes))

    def other(hidden, classes):
        model = fp.models.mlp(hidden, classes)
        return model._replace(apply=lambda params, x: 2 * model.apply(params, x))

    config = cfg.override(single.get_config("tiny"), {**SMALL, "run.seeds": 1, "model.name": "own"})
    plan = execution.plan(config, single.arms(config), own(4))
    with RunDirectory(tmp_path, cfg.to_json(config), identity=plan.identity) as directory:
        directory.record(execution.about(plan))
        execution.execute(plan, directory)
    found = fp.load_run(tmp_path, own=own(4))
    right = answers(found, dataset.x_test) == dataset.y_test
    row = last(tmp_path, single.ARM, 0)
    assert np.mean(right) == pytest.approx(row["test_accuracy"], abs=1e-3)
    with pytest.raises(RunDirectoryError, match="was begun with another network of program0"):
        fp.load_run(tmp_path, own=own(4, other))
    with pytest.raises(cfg.ConfigError, match="no function model"):
        fp.load_run(tmp_path)
