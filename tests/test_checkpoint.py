"""Checkpoints: what was saved comes back, and damage never does."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from fedprune.runs import checkpoint
from fedprune.runs.checkpoint import CheckpointError, Checkpoints, leaves_of, rebuild

ROOT = Path(__file__).parents[1]


def state_of(number: int) -> dict:
    """A state with the kinds of leaves that there are, different for every number."""
    rng = np.random.default_rng(number)
    return {
        "state": (
            {"w": rng.normal(size=(2, 30)).astype(np.float32), "mask": rng.random((2, 30)) < 0.5},
            np.full(2, number, np.int32),
            None,
            (),
            {"half": jax.numpy.asarray(rng.normal(size=(2, 3)), jax.numpy.bfloat16)},
        ),
        "key": jax.random.split(jax.random.key(number), 2),
    }


def bits(tree) -> list[tuple]:
    """Every leaf as type, shape and bytes."""
    data = jax.random.key_data
    is_key = lambda v: jax.dtypes.issubdtype(v.dtype, jax.dtypes.prng_key)
    arrays = [np.asarray(data(v) if is_key(v) else v) for v in jax.tree.leaves(tree)]
    return [(str(v.dtype), v.shape, v.tobytes()) for v in arrays]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def restored(folder: Path) -> tuple[int, list[tuple]]:
    """Round and bits of what is restored from a folder."""
    checkpoints = Checkpoints(folder)
    try:
        step, leaves = checkpoints.restore()
        return step, bits(rebuild(leaves, state_of(0))) if step else []
    finally:
        checkpoints.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The states of rounds 2, 4 and 6, of which the last two are kept."""
    folder = tmp_path_factory.mktemp("saved") / "program0"
    checkpoints = Checkpoints(folder)
    assert checkpoints.restore() == (0, {})
    for step in (2, 4, 6):
        checkpoints.save(step, state_of(step))
    checkpoints.close()
    assert {p.name for p in folder.iterdir()} == {"4", "6"}
    return folder


def test_what_was_saved_comes_back(saved, caplog):
    assert restored(saved) == (6, bits(state_of(6)))
    assert not caplog.records


def test_another_state_is_refused_with_the_leaf(saved):
    checkpoints = Checkpoints(saved)
    _, leaves = checkpoints.restore()
    checkpoints.close()
    params, *rest = state_of(0)["state"]
    wider = {"state": ({**params, "w": np.zeros((2, 31), np.float32)}, *rest), "key": leaves["key"]}
    with pytest.raises(CheckpointError, match=r"state\.0\.w is float32\[2, 30\], must be .*31\]"):
        rebuild(leaves, wider)
    more = {"state": ({**params, "b": params["w"]}, *rest), "key": leaves["key"]}
    for one, other in ((leaves, more), ({**leaves, "state.0.b": leaves["key"]}, state_of(0))):
        with pytest.raises(CheckpointError, match=r"state\.0\.b is in only one"):
            rebuild(one, other)


def flipped(place: int):
    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        bit = place * (8 * len(content) - 1) // 7
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)

    return damage


DAMAGES = {
    **{f"bit at {place}/7": flipped(place) for place in range(8)},
    "cut in half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_harmless_or_found(saved, tmp_path, caplog, damage):
    """In every file of the newest checkpoint: its own state all the same, or the older one."""
    good = {step: bits(state_of(step)) for step in (4, 6)}
    found, names = 0, [name for name in files(saved) if name.startswith("6/")]
    for i, name in enumerate(names):
        folder = tmp_path / str(i) / "program0"
        shutil.copytree(saved, folder)
        DAMAGES[damage](folder / name)
        before = files(folder)
        caplog.clear()
        step, state = restored(folder)
        assert state == good[step], name
        says = [r.getMessage() for r in caplog.records if r.name == "fedprune.runs.checkpoint"]
        if step == 6:
            assert not says
            assert files(folder) == before
            continue
        found += 1
        (line,) = says
        assert line.startswith("program0: the checkpoint of round 6: ")
        assert line.endswith("; taking that of round 4")
        assert "\n" not in line
        aside = files(tmp_path / str(i) / "program0.damaged" / "1")
        assert aside == {k: v for k, v in before.items() if k.startswith("6/")}
    assert len(names) > 5
    assert found > 2


def test_a_leaf_that_orbax_reads_gladly(saved, tmp_path, caplog):
    """Files that are whole, but hold another number than the one that was saved."""
    folder = tmp_path / "program0"
    shutil.copytree(saved, folder)
    other = state_of(6)
    other["state"][0]["w"][1, 7] += 1e-6
    forged = tmp_path / "forged"
    checkpoints = Checkpoints(forged)
    checkpoints.save(6, other)
    checkpoints.close()
    shutil.rmtree(folder / "6" / "state")
    shutil.copytree(forged / "6" / "state", folder / "6" / "state")
    assert restored(folder) == (4, bits(state_of(4)))
    assert "round 6: state.0.w is damaged; taking that of round 4" in caplog.text


def test_without_a_whole_state_nothing_is_touched(saved, tmp_path):
    folder = tmp_path / "program0"
    shutil.copytree(saved, folder)
    for step in ("4", "6"):
        data = max((folder / step / "state" / "d").iterdir(), key=lambda p: p.stat().st_size)
        flipped(1)(data)
        flipped(2)(data)
    before = files(tmp_path)
    with pytest.raises(CheckpointError) as error:
        restored(folder)
    message = str(error.value)
    assert "\n" not in message
    assert "no checkpoint is whole: the checkpoint of round 6: " in message
    assert "; the checkpoint of round 4: " in message
    assert files(tmp_path) == before


def test_saving_goes_on_after_damage(saved, tmp_path):
    """The round that was damaged is saved again, and the damaged one is kept aside."""
    folder = tmp_path / "program0"
    shutil.copytree(saved, folder)
    for state in (6, 60):  # the second time, what was saved again is damaged
        flipped(1)(folder / "6" / "checksums" / "metadata")
        checkpoints = Checkpoints(folder)
        assert checkpoints.restore()[0] == 4
        checkpoints.save(6, state_of(state))
        checkpoints.close()
        assert restored(folder) == (6, bits(state_of(state)))
    damaged = tmp_path / "program0.damaged"
    assert {str(p.relative_to(damaged)) for p in damaged.glob("*/*")} == {"1/6", "2/6"}


FULL_DISK = """
    import resource, sys
    import numpy as np
    from pathlib import Path
    from fedprune.runs.checkpoint import CheckpointError, Checkpoints

    checkpoints = Checkpoints(Path(sys.argv[1]))
    for step in map(int, sys.argv[2:]):
        checkpoints.save(step, {"w": np.ones(1000)})
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    for step in (10, 12):
        try:
            checkpoints.save(step, {"w": np.ones(1000)})
        except CheckpointError as e:
            print(step, e, flush=True)
    try:
        checkpoints.close()
    except CheckpointError as e:
        print("close", e, flush=True)
"""


def script(text: str, *args) -> list[str]:
    """What a Python script prints, line by line."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(text), *map(str, args)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_a_save_that_fails_is_one_line_at_most_one_save_later(saved, tmp_path):
    """No file may grow beyond 100 bytes, as on a full disk: an error, and the older states load."""
    folder = tmp_path / "program0"
    shutil.copytree(saved, folder)
    reason = f"{folder}: a checkpoint was not written: [Errno 27] File too large"
    first, *rest = script(FULL_DISK, folder)
    assert first == f"10 {reason}"  # the first save is waited for
    assert rest in ([f"12 {reason}"], [f"12 {reason}", f"close {reason}"])
    assert restored(folder) == (6, bits(state_of(6)))
    first, *rest = script(FULL_DISK, folder, 8)
    assert first == f"12 {reason}"
    assert rest in ([], [f"close {reason}"])
    checkpoints = Checkpoints(folder)
    assert checkpoints.restore()[0] == 8
    checkpoints.close()


KILLED_SAVES = """
    import os, signal, sys
    import numpy as np
    from pathlib import Path
    from fedprune.runs.checkpoint import Checkpoints

    def save(folder, last):
        "Saves a third state, and dies when it has touched so many files."
        checkpoints = Checkpoints(folder)
        touched = [0]
        def count(event, args):
            if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
                touched[0] += 1
                if touched[0] == last:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        checkpoints.save(3, {"w": np.full(1000, 3.0, np.float32)})
        checkpoints.close()

    for last in map(int, sys.argv[2:]):
        child = os.fork()
        if not child:
            save(Path(sys.argv[1]) / str(last) / "program0", last)
            os._exit(0)
        print(last, os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
"""


def test_killed_while_saving(tmp_path):
    """kill -9 at points spread over a save, from its first file to the removal of what is too old:
    the state before it or the one saved, never less."""
    marks = range(1, 70, 3)
    states = {step: {"w": np.full(1000, step, np.float32)} for step in (1, 2, 3)}
    checkpoints = Checkpoints(tmp_path / "saved" / "program0")
    for step in (1, 2):
        checkpoints.save(step, states[step])
    checkpoints.close()
    for mark in marks:
        shutil.copytree(tmp_path / "saved", tmp_path / str(mark))
    signals = [tuple(map(int, line.split())) for line in script(KILLED_SAVES, tmp_path, *marks)]
    assert [mark for mark, _ in signals] == list(marks)
    newest = {}
    for mark, signal in signals:
        checkpoints = Checkpoints(tmp_path / str(mark) / "program0")
        step, leaves = checkpoints.restore()
        np.testing.assert_array_equal(leaves["w"], states[step]["w"])
        if signal == 0:
            assert step == 3
        checkpoints.save(4, states[1])  # whatever was left behind is not in the way
        checkpoints.close()
        newest[mark] = step, signal
    assert {signal for _, signal in newest.values()} == {0, 9}
    assert sum(signal == 9 for _, signal in newest.values()) >= 8
    assert {step for step, signal in newest.values() if signal == 9} == {2, 3}, newest


@pytest.mark.parametrize("name", ["a[1]", "[!a] *?", "ä\n日", "x" * 200])
def test_a_folder_of_any_name(name, tmp_path):
    """Beside folders that its name would match as a pattern."""
    (tmp_path / "a1" / "program0" / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    folder = tmp_path / name / "program0"
    checkpoints = Checkpoints(folder)
    checkpoints.save(2, state_of(2))
    checkpoints.save(4, state_of(4))
    checkpoints.close()
    assert restored(folder) == (4, bits(state_of(4)))


def test_the_first_save_is_read_back(tmp_path, monkeypatch):
    """A place that keeps nothing of what is written, as Orbax's glob in a folder with brackets."""
    monkeypatch.setattr(checkpoint._Folder, "glob", lambda self, pattern: iter(()))
    checkpoints = Checkpoints(tmp_path / "program0")
    with pytest.raises(
        CheckpointError, match=r"program0: the first checkpoint cannot be read back"
    ):
        checkpoints.save(2, state_of(2))
    checkpoints.close()


def test_what_is_read_back_is_compared(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "program0")
    other = leaves_of(state_of(3))
    monkeypatch.setattr(checkpoints, "_read", lambda rounds_done, fits: other)
    with pytest.raises(
        CheckpointError, match=r"program0: the first checkpoint is not what was saved"
    ):
        checkpoints.save(2, state_of(2))
    checkpoints.close()


def test_the_rows_that_are_read_back_are_compared(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "program0")
    monkeypatch.setattr(checkpoints, "_read", lambda done, fits: fits(done, ["0" * 16]))
    with pytest.raises(CheckpointError, match="its checksums of rows are not those that were"):
        checkpoints.save(2, state_of(2), ["1" * 16])
    checkpoints.close()
