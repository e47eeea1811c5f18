"""Where numbers go beside the rows: what every writer keeps, however a run was interrupted."""

import json
import re
import struct
import sys
import threading
from pathlib import Path

import pytest
from absl import flags
from tensorboardX.proto.event_pb2 import Event, SessionLog
from test_loop import LABELS, Killed, files_up_to, program

from fedprune.cli import log as log_flag
from fedprune.cli import main, trials
from fedprune.runs import loop, tensorboard
from fedprune.runs.writers import About, Log, WriterError, numbers

ROW = {"program": "p", "arm": "a", "seed": 0, "round": 1}
OWN = """
import json
from fedprune.runs.writers import Writer

def writer(about):
    lines = (about.folder / "own.jsonl").open("w")  # begun anew: it is given all rounds again

    def write(arm, seed, rounds):
        for step, numbers in rounds.items():
            print(json.dumps([arm, seed, step, numbers]), file=lines, flush=True)

    return Writer(lambda arm, seed, done: 0, write, lambda ended: lines.close())
"""
KNOWS = """
import json
from fedprune.runs.writers import Writer

def appends(about):
    file = about.folder / "own.jsonl"
    there = map(json.loads, file.read_text().splitlines() if file.exists() else ())
    last = {(arm, seed): at for arm, seed, at, _ in there}

    def write(arm, seed, rounds):
        with file.open("a") as lines:
            for step, numbers in rounds.items():
                print(json.dumps([arm, seed, step, numbers]), file=lines)

    return Writer(lambda arm, seed, done: last.get((arm, seed), 0), write, lambda ended: None)
"""
History = dict[tuple[str, int], list[tuple[int, dict]]]
"""rounds and numbers of every arm and seed, as they were found"""


def events(file: Path) -> list[Event]:
    """The records of an event file: length, its sum, event, its sum."""
    whole, found = file.read_bytes(), []
    while whole:
        (size,) = struct.unpack("<Q", whole[:8])
        found.append(Event.FromString(whole[12 : 12 + size]))
        whole = whole[16 + size :]
    return found


def boards(folder: Path) -> History:
    """What TensorBoard shows: a start makes void what older files have from its round on."""
    found = {}
    for place in (folder / "tensorboard").glob("*/seed*"):
        rounds: dict[int, dict] = {}
        for event in (event for file in sorted(place.iterdir()) for event in events(file)):
            if event.session_log.status == SessionLog.START:
                rounds = {r: values for r, values in rounds.items() if r < event.step}
            for value in event.summary.value:
                assert value.tag not in rounds.setdefault(event.step, {})
                rounds[event.step][value.tag] = value.simple_value
        found[place.parent.name, int(place.name.removeprefix("seed"))] = list(rounds.items())
    return found


def lines(folder: Path) -> History:
    found: History = {}
    for line in (folder / "own.jsonl").read_text().splitlines():
        arm, seed, step, values = json.loads(line)
        found.setdefault((arm, seed), []).append((step, values))
    return found


def wanted(folder: Path) -> History:
    """The same from the rows."""
    found: History = {}
    for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        values = {k: v for k, v in row.items() if k not in ROW and isinstance(v, float | int)}
        found.setdefault((row["arm"], row["seed"]), []).append((row["round"], values))
    return found


def train(folder: Path, opened) -> None:
    about = About("id", "numpy", folder, {label.arm: {} for label in LABELS})
    loop.train([program()], folder, 12, 2, 2, out=Log([open(about) for open in opened]))


@pytest.fixture(params=["tensorboard", "begins anew", "knows"])
def kind(request, tmp_path):
    """What opens a writer, and what reads what it has written."""
    if request.param == "tensorboard":
        return log_flag.connect(log_flag.Choice()), boards
    (tmp_path / "own.py").write_text(OWN + KNOWS)
    name = {"begins anew": "writer", "knows": "appends"}[request.param]
    return log_flag.connect(log_flag.Choice((f"{tmp_path}/own.py:{name}",))), lines


@pytest.mark.parametrize("owner", [loop.MetricsFile, Log, loop.Checkpoints])
def test_no_round_is_missing_or_there_twice(kind, owner, tmp_path, monkeypatch):
    """Killed after every write of the rows, of the writer and of a checkpoint in turn."""
    opened, read = kind
    name, left = "save" if owner is loop.Checkpoints else "write", 0
    real = getattr(owner, name)

    def failing(self, *args):
        nonlocal left
        real(self, *args)
        left -= 1
        if left == 0:
            raise Killed

    monkeypatch.setattr(owner, name, failing)
    for left in (1, 2, 3, 4):  # noqa: B007
        try:
            train(tmp_path, opened)
        except Killed:
            continue
    left = 0
    train(tmp_path, opened)
    assert {len(found) for found in wanted(tmp_path).values()} == {12}
    same(read(tmp_path), wanted(tmp_path))
    train(tmp_path, opened)
    same(read(tmp_path), wanted(tmp_path))


def test_a_writer_that_comes_late_gets_what_was_before(kind, tmp_path):
    """As where a run goes on with another --log, also after its end."""
    opened, read = kind
    answers = iter([False, False, True])
    with pytest.raises(loop.Stopped):
        loop.train([program()], tmp_path, 12, 2, 2, lambda: next(answers))
    answers = iter([False, False, True])
    log = Log([open(About("id", "", tmp_path, {})) for open in opened])
    with pytest.raises(loop.Stopped):
        loop.train([program()], tmp_path, 12, 2, 2, lambda: next(answers), log)
    loop.train([program()], tmp_path, 12, 2, 2)  # without it
    train(tmp_path, opened)
    same(read(tmp_path), wanted(tmp_path))


def same(found: History, rows: History) -> None:
    """TensorBoard has float32."""
    assert {label: [r for r, _ in rounds] for label, rounds in found.items()} == {
        label: [r for r, _ in rounds] for label, rounds in rows.items()
    }
    for label, rounds in rows.items():
        for (_, a), (_, b) in zip(found[label], rounds, strict=True):
            assert a == pytest.approx(b, rel=1e-6)


def test_tensorboard_is_written_when_the_call_returns(tmp_path):
    """What does not fit is an error of that call, and no thread is left that could wait for it."""
    values, threads = {f"n{i}": i for i in range(20)}, threading.active_count()
    writer = tensorboard.open(About("id", "", tmp_path, {}))
    with files_up_to(400), pytest.raises(OSError, match="tensorboard/a/seed0/events"):
        writer.write("a", 0, {1: values})
    tensorboard.open(About("id", "", tmp_path, {})).write("a", 0, {1: values})
    file = max(tmp_path.rglob("events*"), key=lambda file: file.stat().st_mtime_ns)
    tags = [(v.tag, v.simple_value, e.step) for e in events(file) for v in e.summary.value]
    assert tags == [(f"n{i}", i, 1) for i in range(20)]
    assert threading.active_count() == threads


def test_numbers_of_a_row():
    """Neither names nor what is not finite, and one of each entry of a mapping."""
    density = {"a/kernel": 0.5, "b/kernel": float("nan")}
    row = {**ROW, "kept": 3, "lost": None, "test_histogram": [1, 2], "density": density}
    assert numbers(row) == {"kept": 3, "density/a/kernel": 0.5}


# The flag -----


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--log=tensorbord"], r"'tensorbord' must be one of .* \(did you mean tensorboard"),
        (["--log="], "'' must be one of"),
        (["--log=none,tensorboard"], "'none' must be one of"),
        (["--log=tensorboard,tensorboard"], "names tensorboard twice"),
        (["--log=./nothing.py"], "there is no such file ./nothing.py"),
        (["--log=broken.py"], r"broken.py: cannot be loaded \(ZeroDivisionError: division"),
        (["--log=broken.py:f"], r"cannot be loaded"),
        (["--log=empty.py"], r"empty.py: must have a function writer"),
        (["--mlflow_uri=sqlite:///x.db"], "--mlflow_uri=sqlite:///x.db: needs --log=mlflow"),
        (["--log=mlflow"], r"needs the extra mlflow: pip install 'fedprune\[mlflow\]'"),
    ],
)
def test_refused_before_anything_is_written(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text("1 / 0")
    Path("empty.py").write_text("")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    before = set(tmp_path.iterdir())
    for command in (["run"], ["sweep", "--grid=seed=0:2"]):
        assert main.main(["fedprune", *command, "single:tiny", "--workdir=r", *words]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {words[0].partition('=')[0]}=")
        assert said.count("\n") == 1
        assert re.search(says, said)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ("return 3", "must return a fedprune Writer, not 3"),
        ("1 / 0", r"own.py:writer failed \(ZeroDivisionError: division by zero, in own.py:4\)"),
        (
            "return Writer(lambda *a: 0, lambda *a: 1 / 0, print)",
            r"failed \(ZeroDivisionError: division by zero, in own.py:4\)",
        ),
    ],
)
def test_a_fault_of_a_users_writer_is_one_line(made, says, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(f"from fedprune.runs.writers import Writer\n\ndef writer(about):\n    {made}\n")
    with pytest.raises(WriterError, match=says) as error:
        train(tmp_path / "run", log_flag.connect(log_flag.Choice((f"{file}:writer",))))
    assert "\n" not in str(error.value)


def test_trials_are_given_the_flags(tmp_path, monkeypatch):
    """And they are recorded, for machines that read the folder."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    values = flags.FlagValues()
    log_flag.define(values)
    values(["x", "--log=tensorboard,own.py"])
    choice = log_flag.chosen(values)
    grid = {"run.seed": (0, 1)}
    config = {"experiment": "single"}
    sweep = trials.Sweep(tmp_path, ("single:tiny",), config, grid, None, choice)
    trials.write(sweep)
    for found in (sweep, trials.read(tmp_path)):
        flag = found.command(found.trials()[0])[-1]
        assert flag == f"--log=tensorboard,{tmp_path}/own.py:writer"
        assert found.writers == choice
    assert trials.Sweep(tmp_path, (), {}, grid).command(sweep.trials()[0])[-1].startswith("--work")
