"""Segments, checkpoints and run directories, with a program that is a few lines of NumPy."""

import contextlib
import errno
import fcntl
import fnmatch
import json
import logging
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from experiments import ota_pruning
from fedprune import build, run
from fedprune import config as cfg
from fedprune.rounds import RoundInfo
from fedprune.runs import LOCK, RunDirectory, RunDirectoryError, checkpoint, checksum, loop
from fedprune.runs.checkpoint import CheckpointError
from fedprune.types import Cost

LABELS = [loop.Label("slow", 0), loop.Label("fast", 0)]
CONFIG = {"run": {"rounds": 12, "every": 2}, "local": {"lr": 0.1}, "model": {"hidden": [8]}}
FREE = ("run.*", "local.lr")
ENVIRONMENT = {"packages": {"jax": "1"}, "devices": {"cpu": 2}}


class Measured(NamedTuple):
    accuracy: np.ndarray


def program(labels=LABELS, rate=1.1, width=3) -> loop.Program:
    """x <- rate x + noise of the round, for each arm."""

    def start() -> run.Arms:
        none = np.zeros((len(labels), 0))
        key = jax.random.split(jax.random.key(3), len(labels))
        state = {"t": np.zeros(len(labels), np.int32), "x": np.zeros((len(labels), width))}
        return run.Arms((), key, state, none, none)

    def segment(rounds: int):
        def step(arms: run.Arms):
            t, x = np.asarray(arms.state["t"]), np.asarray(arms.state["x"])
            roots, losses = np.asarray(jax.random.key_data(arms.key)), []
            for _ in range(rounds):
                seeds = [[*root, n] for root, n in zip(roots, t, strict=True)]
                noise = [np.random.default_rng(seed).normal(size=width) for seed in seeds]
                t, x = t + np.int32(1), rate * x + np.stack(noise)
                losses.append(x.mean(1))
            loss = np.stack(losses, 1)
            cost = Cost(*[np.zeros_like(loss)] * len(Cost._fields))
            fields = dict.fromkeys(RoundInfo._fields, loss)
            infos = RoundInfo(**{**fields, "cost": cost, "numbers": {"own": loss}})
            return {"t": t, "x": x}, infos, Measured(x.mean(1))

        return step

    return loop.Program("program0", labels, start, segment, len(labels))


def train(folder: Path, rounds=12, **changed) -> str:
    """Two rounds a segment, a checkpoint every second segment; the text of the metrics."""
    loop.train([program(**changed)], folder, rounds, 2, 2)
    return (folder / "metrics.jsonl").read_text()


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def damage(step: Path) -> None:
    file = step / "checksums" / "metadata"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A finished run with checkpoints of rounds 8 and 12."""
    folder = tmp_path_factory.mktemp("run") / "unbroken"
    with RunDirectory(folder, CONFIG) as directory:
        directory.record(ENVIRONMENT)
        train(folder)
    assert {p.name for p in (folder / "checkpoints" / "program0").iterdir()} == {"8", "12"}
    return folder


def test_the_rows_are_those_of_a_loop_by_hand(unbroken):
    rows = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    roots = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(3), 2)))
    for arm, root in zip(("slow", "fast"), roots, strict=True):
        x, found = np.zeros(3), [r for r in rows if r["arm"] == arm]
        for t, row in enumerate(found):
            x = 1.1 * x + np.random.default_rng([*root, t]).normal(size=3)
            assert (row["round"], row["train_loss"]) == (t + 1, x.mean())
            assert row.get("test_accuracy") == (x.mean() if t % 2 else None)
        assert len(found) == 12


class Killed(BaseException):
    """Not an error that anything in the package catches."""


@pytest.mark.parametrize("where", ["write", "save", "restore"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_stopped_anywhere(unbroken, tmp_path, monkeypatch, where, after):
    """At every metrics row, save and restore in turn, just before it or just after it."""
    owner = loop.MetricsFile if where == "write" else loop.Checkpoints
    real, left = getattr(owner, where), [0]

    def failing(self, *args):
        left[0] -= 1
        if left[0] == 0 and not after:
            raise Killed
        result = real(self, *args)
        if left[0] == 0:
            raise Killed
        return result

    monkeypatch.setattr(owner, where, failing)
    stops = 0
    for count in (1, 2, 3):  # each start comes further than the one before
        left[0] = count
        try:
            train(tmp_path)
        except Killed:
            stops += 1
    left[0] = 0
    assert train(tmp_path) == (unbroken / "metrics.jsonl").read_text()
    assert stops >= (1 if where == "restore" else 2)


def test_asked_to_stop(unbroken, tmp_path):
    """The state is saved after the round in which that was, and the next start goes on there."""
    answers = iter([False, False, False, True])
    with pytest.raises(loop.Stopped, match="program0 was stopped after round 6 of 12"):
        loop.train([program()], tmp_path, 12, 2, 2, lambda: next(answers))
    assert {p.name for p in (tmp_path / "checkpoints" / "program0").iterdir()} == {"4", "6"}
    with pytest.raises(loop.Stopped, match="after round 6"):
        loop.train([program()], tmp_path, 12, 2, 2, lambda: True)
    assert train(tmp_path) == (unbroken / "metrics.jsonl").read_text()


def test_damage_costs_rounds_and_changes_nothing(unbroken, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    damage(folder / "checkpoints" / "program0" / "12")
    with caplog.at_level(logging.INFO):
        assert train(folder) == (unbroken / "metrics.jsonl").read_text()
    assert "round 12: its list of checksums is damaged; taking that of round 8" in caplog.text
    assert "program0: resuming after round 8" in caplog.text
    assert (folder / "checkpoints" / "program0.damaged" / "1" / "12").exists()


def test_what_cannot_go_on_is_left_as_it_is(unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)

    def refused(says: str, **changed):
        before = files(folder)
        with pytest.raises((CheckpointError, RunDirectoryError), match=says) as error:
            train(folder, **changed)
        assert "\n" not in str(error.value)
        assert files(folder) == before

    refused(r"program0: its checkpoint is of round 12, beyond run\.rounds=10", rounds=10)
    refused(
        r"metrics\.jsonl: must have .* of program0, .* for the arms slow, other",
        labels=[LABELS[0], loop.Label("other", 0)],
    )
    refused(r"state\.x is float64\[2, 3\], must be float64\[2, 4\]", width=4, rounds=14)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join([*lines[:5], lines[5][:20], *lines[6:]]))
    refused(
        r"metrics\.jsonl: line 6 is damaged; the row of program0, arm fast, seed 0, round 3, is not"
    )
    for step in ("8", "12"):
        damage(folder / "checkpoints" / "program0" / step)
    refused("no checkpoint is whole: the checkpoint of round 12: .*; the checkpoint of round 8: ")


def test_no_flipped_bit_in_the_rows_goes_unnoticed(unbroken, tmp_path):
    """A row is the one that was written, or it is known that there is damage."""
    content = (unbroken / "metrics.jsonl").read_bytes()
    metrics, rng, noticed = loop.MetricsFile(tmp_path), np.random.default_rng(0), 0
    rows = [json.loads(line) for line in content.splitlines()]
    sums = [checksum(row) for row in rows]
    assert loop._misfit(program(), 12, rows, sums) is None
    for bit in rng.integers(8 * len(content), size=500):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "metrics.jsonl").write_bytes(flipped)
        found = [row for row in metrics.readable()[0] if row["program"] == "program0"]
        noticed += loop._misfit(program(), 12, found, sums) is not None
        assert found == rows or loop._misfit(program(), 12, found, sums)
    assert noticed > 450


@pytest.mark.parametrize("by", ["number", "line", "removed", "program"])
def test_a_damaged_row_is_named_and_computed_again(unbroken, tmp_path, caplog, by):
    """Of round 11, which the checkpoint of round 8 does without."""
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    content = (folder / "metrics.jsonl").read_text()
    lines = content.splitlines(keepends=True)
    line = lines[21]
    loss = f'"train_loss": {json.loads(line)["train_loss"]}'
    lines[21] = {
        "number": line.replace(loss, '"train_loss": 0.25'),
        "line": line[:20] + "\n",
        "removed": "",
        "program": line.replace("program0", "program1"),
    }[by]
    damaged = "".join(lines)
    assert damaged != content
    (folder / "metrics.jsonl").write_text(damaged)
    assert train(folder) == content
    assert "the row of program0, arm fast, seed 0, round 11, is" in caplog.text
    assert "taking that of round 8" in caplog.text
    assert (folder / "metrics.damaged" / "1" / "metrics.jsonl").read_text() == damaged

    whole = lines[4]  # of round 3, which both checkpoints need
    lines[4] = whole.replace('"seconds": 0.0', '"seconds": 0.5')
    assert lines[4] != whole
    (folder / "metrics.jsonl").write_text("".join(lines))
    before = files(folder)
    with pytest.raises(CheckpointError, match="arm slow, seed 0, round 3, is damaged"):
        train(folder)
    assert files(folder) == before


def test_rows_stay_in_the_order_of_the_programs(tmp_path):
    """Also where the first program has to go back after the second one has begun."""
    programs = [program(), program()._replace(name="program1")]
    loop.train(programs, tmp_path, 12, 2, 2)
    content = (tmp_path / "metrics.jsonl").read_bytes()
    damage(tmp_path / "checkpoints" / "program0" / "12")
    loop.train(programs, tmp_path, 12, 2, 2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == content


def test_checkpoints_of_before_have_no_checksums_of_rows(unbroken, tmp_path, monkeypatch):
    def old(leaves_and_rows):
        return real(leaves_and_rows[0] if isinstance(leaves_and_rows, list) else leaves_and_rows)

    real = checkpoint._of_json
    json_save = checkpoint.ocp.args.JsonSave
    monkeypatch.setattr(
        checkpoint.ocp.args,
        "JsonSave",
        lambda value: json_save({k: v for k, v in value.items() if k != "rows"}),
    )
    monkeypatch.setattr(checkpoint, "_of_json", old)
    monkeypatch.setattr(checkpoint.Checkpoints, "_read_back", lambda *_: None)
    loop.train([program()], tmp_path, 8, 2, 2)
    monkeypatch.undo()
    assert train(tmp_path) == (unbroken / "metrics.jsonl").read_text()


# Run directories -----


def test_a_run_directory_knows_its_starts(tmp_path, caplog):
    for version, devices in (("1", 2), ("1", 2), ("2", 4)):
        with RunDirectory(tmp_path / "run", CONFIG) as directory:
            directory.record({"packages": {"jax": version}, "devices": {"cpu": devices}})
            if version == "1":
                directory.ended()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(record["id"]) == 32
    assert record["resumed_from"] is None
    assert [s["packages"]["jax"] for s in record["starts"]] == ["1", "1", "2"]
    assert all(s["at"].endswith("Z") for s in record["starts"])
    assert [s.get("ended", "") >= s["at"] for s in record["starts"]] == [True, True, False]
    says = [r.getMessage() for r in caplog.records]
    assert [line.split(";")[0] for line in says] == [
        "resuming elsewhere: devices.cpu was 2, is 4",
        "resuming elsewhere: packages.jax was '1', is '2'",
    ]


def test_a_run_goes_on_in_another_place(tmp_path, caplog):
    """With a warning, once, and the directory's configuration is then the new one."""
    places, environment = ("mesh.devices",), {"devices": {"cpu": 2}}
    two = {"mesh": {"devices": 2, "lanes": 8}, "seed": 0}
    four = {**two, "mesh": {"devices": 4, "lanes": 8}}
    for config in (two, four, four):
        with RunDirectory(tmp_path / "run", config, places=places) as directory:
            directory.record(environment)
        assert json.loads((tmp_path / "run" / "config.json").read_text()) == config
    assert [r.getMessage() for r in caplog.records] == [
        "resuming elsewhere: mesh.devices was 2, is 4; numbers may differ in their last bits"
    ]
    for other in ({**two, "seed": 1}, {**two, "mesh": {"devices": 2, "lanes": 4}}):
        with pytest.raises(RunDirectoryError, match="belongs to another configuration"):
            RunDirectory(tmp_path / "run", other, places=places)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == four


@pytest.mark.parametrize(
    ("old", "says"),
    [
        ({"uplink": {"time_limit": 0.03, "link": "ofdma"}}, r"has uplink\.time_limit\)"),
        ({"uplink": {"link": "ofdma"}}, r"has no uplink\.ofdma\.time_limit\)"),
    ],
)
def test_directories_of_a_version_with_other_fields_are_refused(old, says, tmp_path):
    """In one line that says why, to go on in them as to go on from them."""
    new = {"uplink": {"link": "ofdma", "ofdma": {"time_limit": 0.03}}}
    RunDirectory(tmp_path / "old", old).close()
    before = {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir() if p.is_file()}
    (tmp_path / "old" / "checkpoints").mkdir()
    (tmp_path / "old" / "metrics.jsonl").write_text("")
    for where in ({"path": tmp_path / "old"},
                  {"path": tmp_path / "new", "resume_from": tmp_path / "old"}):  # fmt: skip
        with pytest.raises(RunDirectoryError, match=f"another version .*{says}") as error:
            RunDirectory(**where, config=new)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()
    after = {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir() if p.name in before}
    assert after == before


def start(folder: Path) -> str:
    """A run directory as the launcher makes and ends it; the text of the metrics."""
    with RunDirectory(folder, CONFIG) as directory:
        directory.record(ENVIRONMENT)
        text = train(folder)
        directory.ended()
    return text


@pytest.fixture
def disk(tmp_path):
    """Gives a disk of so many kB a folder; what changes its size is returned with it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", *options, "tmpfs", folder])
        if done.returncode:
            pytest.skip("a small disk can only be mounted with root's rights")

    mount("size=64m")
    yield folder, lambda size: mount(f"remount,size={size}")
    subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def files_up_to(limit: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


full = pytest.mark.filterwarnings(  # Orbax does not wait for its other writes when one has failed
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@full
@pytest.mark.parametrize("size", [4, 8, 12, 16, 20, 48, 80, 112])
def test_a_full_disk_is_an_error_and_costs_nothing_else(unbroken, disk, size):
    """Too small for the configuration, the record, the metrics, the checkpoints."""
    folder, resize = disk
    resize(f"{size}k")
    with pytest.raises((OSError, CheckpointError), match=r"No space left|RESOURCE_EXHAUSTED") as e:
        start(folder / "run")
    assert str(folder) in str(e.value)
    assert not list(folder.glob("run/.*.tmp"))
    resize("64m")
    assert start(folder / "run") == (unbroken / "metrics.jsonl").read_text()


@pytest.mark.parametrize("how", ["workdir", "resume_from"])
def test_a_run_goes_on_with_its_own_data_only(unbroken, tmp_path, how):
    """Whoever says nothing of them, as older versions did, goes on."""
    one, other = {"data": "a", "network": "b"}, {"data": "c"}
    with RunDirectory(tmp_path / "run", CONFIG, identity=one) as directory:
        directory.record({})
    source = shutil.copytree(unbroken, tmp_path / "source")
    record = json.loads((source / "run.json").read_text())
    (source / "run.json").write_text(json.dumps({**record, "identity": one}))
    where = {"path": tmp_path / "run"}
    if how == "resume_from":
        where = {"path": tmp_path / "new", "resume_from": source}
    with pytest.raises(RunDirectoryError, match=f"{how}=.*: was begun with another data; put"):
        RunDirectory(**where, config=CONFIG, identity=other)
    assert not (tmp_path / "new").exists()
    for identity in ({}, {"data": "a"}):
        RunDirectory(**where, config=CONFIG, identity=identity).close()


@pytest.mark.parametrize(
    ("limit", "file"),
    [(100, "config.json"), (180, "run.json"), (1000, "metrics.jsonl")],
)
def test_a_file_that_cannot_grow_is_named(unbroken, tmp_path, limit, file):
    """The first that is longer than so many bytes, as where a quota is used up."""
    folder = tmp_path / "run"
    with files_up_to(limit), pytest.raises((OSError, CheckpointError), match="too large") as e:
        start(folder)
    assert f"{folder}/{file}" in str(e.value)
    assert start(folder) == (unbroken / "metrics.jsonl").read_text()


def test_other_arithmetic_is_refused(tmp_path):
    """By name; where an older version recorded none, the run goes on."""
    run = tmp_path / "run"
    places = ("mesh",)
    for config, found in (({"mesh": 2}, {}), ({"mesh": 2}, {"arithmetic": {"JAX_X": 1}})):
        with RunDirectory(run, config, places=places) as directory:
            directory.record(found)
    before = files(run)
    with (
        RunDirectory(run, {"mesh": 4}, places=places) as directory,
        pytest.raises(RunDirectoryError, match=r"other arithmetic \(JAX_X was 1, is None\); set"),
    ):
        directory.record({"arithmetic": {}})
    assert files(run) == before


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EWOULDBLOCK])
def test_a_file_system_without_locks_is_warned_of(error, tmp_path, monkeypatch, caplog):
    def flock(file, kind):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    if error == errno.EWOULDBLOCK:
        with pytest.raises(RunDirectoryError, match="another process is using it"):
            RunDirectory(tmp_path / "run", {})
        return
    RunDirectory(tmp_path / "run", {}).close()
    assert "its file system has no locks" in caplog.text


def test_fresh_moves_everything_aside(unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    before = {name: content for name, content in files(folder).items() if name != LOCK}
    other = {**CONFIG, "model": {"hidden": [16]}}
    with pytest.raises(RunDirectoryError, match=r"model\.hidden was \[8\], is \[16\].*--fresh"):
        RunDirectory(folder, other)
    for number in ("1", "2"):
        with RunDirectory(folder, other, fresh=True) as directory:
            directory.record(ENVIRONMENT)
        assert set(files(folder / "old" / number)) >= {"config.json", "run.json"}
    assert files(folder / "old" / "1") == before
    assert {p.name for p in folder.iterdir()} == {LOCK, "old", "config.json", "run.json"}
    assert json.loads((folder / "config.json").read_text()) == other
    new = json.loads((folder / "run.json").read_text())["id"]
    assert new not in (folder / "old" / "1" / "run.json").read_text()
    assert train(folder) == (unbroken / "metrics.jsonl").read_text()


def test_fresh_refuses_what_is_no_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunDirectoryError, match="neither empty nor a run directory"):
        RunDirectory(tmp_path, CONFIG, fresh=True)
    assert files(tmp_path) == {"thesis.tex": b"precious"}


def test_killed_while_a_directory_was_made(unbroken, tmp_path, monkeypatch):
    """Before its configuration is there, it counts as empty; what was copied is set aside."""
    folder = tmp_path / "run"

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("fedprune.runs.directory.write_json", killed)
        with pytest.raises(Killed):
            RunDirectory(folder, CONFIG, resume_from=unbroken)
    assert (folder / "checkpoints").exists()
    RunDirectory(folder, CONFIG).close()
    assert {p.name for p in folder.iterdir()} == {LOCK, "old", "config.json", "run.json"}


def test_a_run_without_its_configuration_is_left_as_it_is(unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    (folder / "config.json").unlink()
    before = files(folder)
    with pytest.raises(RunDirectoryError, match=r"holds a run, but no config\.json"):
        RunDirectory(folder, CONFIG)
    assert files(folder) == before
    RunDirectory(folder, CONFIG, fresh=True).close()
    assert (folder / "old" / "1" / "checkpoints" / "program0" / "12").exists()


def test_resume_from_another_run(unbroken, tmp_path):
    """16 rounds of which 12 are another run's: the rows of 16 unbroken rounds."""
    longer = {**CONFIG, "run": {"rounds": 16, "every": 2}}
    before, folder = files(unbroken), tmp_path / "run"
    for _ in range(2):  # the second start resumes
        with RunDirectory(folder, longer, resume_from=unbroken, free=FREE):
            found = train(folder, rounds=16)
    assert found == train(tmp_path / "whole", rounds=16)
    assert files(unbroken) == before
    origin = json.loads((folder / "run.json").read_text())["resumed_from"]
    assert origin["path"] == str(unbroken)
    assert origin["id"] == json.loads((unbroken / "run.json").read_text())["id"]


def test_resume_from_takes_the_newest_that_is_good(unbroken, tmp_path):
    source, folder = tmp_path / "source", tmp_path / "run"
    shutil.copytree(unbroken, source)
    damage(source / "checkpoints" / "program0" / "12")
    before = files(source)
    faster = {**CONFIG, "local": {"lr": 0.2}}
    with RunDirectory(folder, faster, resume_from=source, free=FREE):
        rows = train(folder, rate=1.3).splitlines()
    old = (unbroken / "metrics.jsonl").read_text().splitlines()
    assert [a == b for a, b in zip(rows, old, strict=True)] == [True] * 16 + [False] * 8
    assert files(source) == before


def test_resume_from_is_refused_by_name(unbroken, tmp_path):
    folder = tmp_path / "run"

    def refused(says: str, config=CONFIG, source=unbroken):
        with pytest.raises(RunDirectoryError, match=says) as error:
            RunDirectory(folder, config, resume_from=source, free=FREE)
        assert "\n" not in str(error.value)

    wider = {**CONFIG, "model": {"hidden": [16]}}
    refused(r"model\.hidden was \[8\], is \[16\], but only these may differ: run\.\*, l", wider)
    refused("is not a run directory with checkpoints", source=tmp_path)
    with RunDirectory(unbroken, CONFIG):
        refused("resume_from=.*: another process is using it")
    assert not folder.exists()
    RunDirectory(folder, CONFIG).close()
    refused("holds a run that was not begun with resume_from=")
    with pytest.raises(RunDirectoryError, match="must be another directory than workdir="):
        RunDirectory(unbroken, CONFIG, fresh=True, resume_from=unbroken)


def test_free_fields_keep_the_shapes_of_the_state(dataset):
    """Every other choice, and numbers one larger, of every field that is said to be free."""
    start = ota_pruning.get_config("fast")

    def shapes(config: cfg.Config):
        network = build.model(config, dataset)
        algorithm = build.algorithm(config, network, build.layout(config.mesh, 1))
        return jax.eval_shape(lambda key: algorithm.init(network.init(key)), jax.random.key(0))

    def others(field, value):
        if field.metadata["choices"]:
            return [choice for choice in field.metadata["choices"] if choice != value]
        return [value + 1] if isinstance(value, int | float) else []

    wanted, tried = shapes(start), set()
    for path, field, value in cfg.fields(start):
        decides = path.split(".")[0] in (
            "local",
            "cohort",
            "uplink",
            "downlink",
            "pruning",
            "server",
        )
        free = any(fnmatch.fnmatchcase(path, pattern) for pattern in cfg.resumable(start))
        for other in others(field, value) if free and decides else ():
            config = cfg.override(start, {path: other})
            try:
                cfg.validate(config)
            except cfg.ConfigError:  # with other fields only
                continue
            assert shapes(config) == wanted, path
            tried.add(path)
    assert len(tried) > 30
    for path, other in {"model.cnn.hidden": (33,), "server.optimizer": "adam"}.items():
        assert shapes(cfg.override(start, {path: other})) != wanted
        assert not any(fnmatch.fnmatchcase(path, p) for p in cfg.resumable(start))
