"""Runs of several processes: equal to those of one, and what becomes of them when one is lost."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fedprune import meeting
from fedprune.cli import monitor

ROOT = Path(__file__).parents[1]
ROUNDS, ARMS = 200, 3
COMMAND = [
    *(sys.executable, "-m", "launch.main"),
    "--config=experiments/ota_pruning.py:fast",
    "--config.data.clients=4",
    "--config.local.steps=1",
    "--config.local.batch=4",
    "--config.model.name=mlp",
    "--config.model.mlp.hidden=8,",
    "--config.participation=('full',)",
    "--config.pruning.start=1",
    "--config.pruning.every=1",
    "--config.pruning.steps=3",
    "--config.ratios=0.9,",
    f"--config.run.rounds={ROUNDS}",
    "--config.run.save_every=10",
    "--config.run.seeds=1",
    "--config.mesh.devices=4",
    "--config.mesh.arms=1",
    "--config.mesh.reduction=strict",
]
TIMEOUT = 15
"""seconds, of the heartbeat"""
RESULTS = ("summary.json", "metrics.jsonl", "report.md")


STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def no_process_stays():
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.communicate()


def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(*args, cwd: Path = ROOT) -> subprocess.Popen:
    return popen([*COMMAND, *map(str, args)], cwd)


def popen(command: list[str], cwd: Path = ROOT, **more: str) -> subprocess.Popen:
    """``more`` is added to the environment."""
    out, env = subprocess.PIPE, {**os.environ, **more}
    STARTED.append(subprocess.Popen(command, cwd=cwd, env=env, stdout=out, stderr=out, text=True))
    return STARTED[-1]


def start_one_of(count: int, index: int, at: int, *args, cwd: Path = ROOT) -> subprocess.Popen:
    return start(
        "--distributed",
        f"--coordinator=127.0.0.1:{at}",
        f"--processes={count}",
        f"--process={index}",
        "--initialization_timeout=120",
        f"--heartbeat_timeout={TIMEOUT}",
        *args,
        cwd=cwd,
    )


def start_two(workdir: Path, *args) -> list[subprocess.Popen]:
    at = port()
    return [start_one_of(2, i, at, f"--workdir={workdir}", *args) for i in (0, 1)]


def ended(process: subprocess.Popen, within: float = 300) -> tuple[int, list[str]]:
    """Exit status and the lines on stderr that are no news of rounds."""
    text = process.communicate(timeout=within)[1]
    return process.returncode, [line for line in text.splitlines() if "round" not in line]


def error_of(process: subprocess.Popen, within: float = 300) -> tuple[int, str]:
    """Exit status and the one line that says why; there is no text of JAX's beside it."""
    status, said = ended(process, within)
    assert not [line for line in said if "Traceback" in line or "***" in line], said
    (line,) = [line for line in said if line.startswith("error: ")]
    return status, line


def wait_for_rows(workdir: Path, count: int, processes: list[subprocess.Popen]) -> None:
    file = workdir / "metrics.jsonl"
    while not file.exists() or len(file.read_text().splitlines()) < count:
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.01)


def results(workdir: Path) -> dict[str, bytes]:
    return {name: (workdir / name).read_bytes() for name in RESULTS}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict[str, bytes]:
    """What one process with four devices finds."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    status, said = ended(start(f"--workdir={workdir}"))
    assert status == 0, said
    return results(workdir)


def copy_of_the_code(folder: Path) -> Path:
    for room in ("fedprune", "experiments", "launch"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def refused(at: int) -> str:
    """What process 0, for which this waits, says to one that knows nothing of its run."""
    with pytest.raises(meeting.RefusedError) as error:
        meeting.join(("127.0.0.1", at), {}, 1, 120)
    return str(error.value)


@pytest.mark.slow
def test_two_processes_find_what_one_does(unbroken, tmp_path):
    """2 processes x 2 devices, whose second directory is never made, and 1 x 4: the same bytes.

    Whoever else comes is refused, while they wait for each other and while they run.
    """
    at, here, there = port(), *(copy_of_the_code(tmp_path / name) for name in ("here", "there"))
    first = start_one_of(2, 0, at, "--workdir=run", cwd=here)
    refused(at)
    strangers = {
        "processes differ: run.seed is 0 on process 0, 7 on": (1, "run", "--config.run.seed=7"),
        "processes differ: workdir is 'run' on process 0, 'it' on process 1": (1, "it"),
        f"coordinator 127.0.0.1:{at}: the port is in use": (0, "run"),
    }
    came = [
        start_one_of(2, index, at, f"--workdir={workdir}", *args, cwd=there)
        for index, workdir, *args in strangers.values()
    ]
    for says, (index, *_), process in zip(strangers, strangers.values(), came, strict=True):
        status, line = error_of(process)
        assert status == (1 if index else 2)
        assert says in line
    pair = [first, start_one_of(2, 1, at, "--workdir=run", cwd=there)]
    wait_for_rows(here / "run", 1, pair)
    assert "processes differ: processes is 2 on process 0, None on process 1" in refused(at)
    (status, said), other = map(ended, pair)
    assert (status, other) == (0, (0, []))
    assert sum(line.startswith("refused a process from 127.0.0.1: ") for line in said) == 4
    assert results(here / "run") == unbroken
    assert sorted(p.name for p in there.iterdir()) == ["experiments", "fedprune", "launch"]
    (begun,) = json.loads((here / "run" / "run.json").read_text())["starts"]
    assert begun["processes"] == 2
    assert begun["devices"] == {"cpu cpu": 4}


@pytest.mark.slow
def test_stopped_and_killed_in_every_way(unbroken, tmp_path):
    """SIGTERM, SIGUSR2, kill -9 and SIGSTOP with one process and with two; the next start goes on
    each time, and the results are those of an unbroken run."""
    workdir = tmp_path / "run"
    here = f"--workdir={workdir}"

    def rounds() -> int:
        return len((workdir / "metrics.jsonl").read_text().splitlines()) // ARMS

    def saved() -> int:
        steps = (workdir / "checkpoints" / "program0").iterdir()
        return max(int(p.name) for p in steps if p.name.isdigit())

    alone = start(here)
    wait_for_rows(workdir, 30 * ARMS, [alone])
    alone.send_signal(signal.SIGTERM)
    status, said = ended(alone)
    assert status == 42, said
    (begun,) = json.loads((workdir / "run.json").read_text())["starts"]
    assert begun["at"] <= begun["ended"]
    assert 30 <= saved() == rounds() < ROUNDS

    pair = start_two(workdir)
    wait_for_rows(workdir, (rounds() + 20) * ARMS, pair)
    pair[1].kill()
    lost = f"error: process 1 was lost: nothing was heard of it for {TIMEOUT} s; the same command"
    assert error_of(pair[0]) == (42, f"{lost} goes on from the newest checkpoint")

    pair = start_two(workdir)
    wait_for_rows(workdir, (saved() + 20) * ARMS, pair)
    pair[0].kill()
    status, line = error_of(pair[1])
    assert status == 42
    assert line.startswith("error: process 0 was lost: ")

    pair = start_two(workdir)
    wait_for_rows(workdir, (saved() + 20) * ARMS, pair)
    (worker,) = Path(f"/proc/{pair[1].pid}/task/{pair[1].pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGSTOP)
    try:
        status, line = error_of(pair[0])
    finally:
        os.kill(int(worker), signal.SIGKILL)
    assert (status, line[: len(lost)]) == (42, lost)

    pair = start_two(workdir)
    wait_for_rows(workdir, (saved() + 20) * ARMS, pair)
    pair[1].send_signal(signal.SIGTERM)
    assert [ended(process)[0] for process in pair] == [42, 42]
    assert saved() == rounds() < ROUNDS

    alone = start(here)
    wait_for_rows(workdir, (rounds() + 10) * ARMS, [alone])
    alone.send_signal(signal.SIGUSR2)
    assert ended(alone)[0] == 42
    assert saved() == rounds() < ROUNDS

    status, said = ended(start(here))
    assert status == 0, said
    assert results(workdir) == unbroken


@pytest.mark.slow
def test_processes_of_different_code_refuse(tmp_path):
    """Both in the same words, before there is a directory."""
    copy = copy_of_the_code(tmp_path / "copy")
    with (copy / "fedprune" / "server" / "aggregation.py").open("a") as file:
        file.write("# another version\n")
    at, workdir = port(), tmp_path / "run"
    pair = [
        start_one_of(2, 0, at, f"--workdir={workdir}"),
        start_one_of(2, 1, at, f"--workdir={workdir}", cwd=copy),
    ]
    (status, line), other = map(error_of, pair)
    assert status == 1
    assert "processes differ: source is '" in line
    assert other == (status, line)
    assert not workdir.exists()


@pytest.mark.slow
def test_a_process_that_does_not_come(tmp_path):
    """Each of two with nobody there, and one of two beside one that expects three."""
    at, args = port(), [f"--workdir={tmp_path / 'run'}", "--initialization_timeout=10"]
    alone = start_one_of(2, 1, port(), *args)
    pair = [start_one_of(2, 0, at, *args), start_one_of(3, 2, at, *args)]
    missing = "error: not all processes had come after 10 s: "
    status, line = error_of(alone)
    assert status == 42
    assert line.startswith(f"{missing}process 0 at 127.0.0.1:")
    assert error_of(pair[0]) == (42, f"{missing}1 missing; the same command goes on")
    status, line = error_of(pair[1])
    assert status == 1
    assert "processes differ: processes is 2 on process 0, 3 on process 2" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("native", "says"),
    [
        ("UNAVAILABLE: Failed to send RPC to coordination service.", "process 0 was lost: "),
        ("ABORTED: 1 unexpectedly tried to connect with a", "ended by SIGABRT: 1 unexpectedly"),
    ],
)
def test_reasons(native, says):
    """JAX asks process 0 for errors by PollForError, which is named whatever the error is."""
    begin = "F1128 04:55:18.400090 11908 client.h:80] Terminating process. absl::Status: "
    rpc = "\n\nRPC: /xla.coordination.CoordinationService/PollForError\n"
    assert monitor.explain(begin + native + rpc, signal.SIGABRT, 9, 9).startswith(says)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--process=1"], "--process=1: needs --distributed"),
        (["--distributed", "--coordinator=a:1"], "--coordinator=a:1: needs --processes"),
        (
            ["--distributed", "--coordinator=a:b", "--processes=2", "--process=1"],
            "--coordinator=a:b: must be HOST:PORT with a port from 1 to 65535",
        ),
        (["--distributed", "--processes=2", "--process=2"], "--process=2: must be from 0 to"),
        (["--distributed", "--heartbeat_timeout=0"], "--heartbeat_timeout=0: must be at least 1"),
        (["--distributed"], "the other processes were not found: "),
    ],
)
def test_flags(args, says, tmp_path):
    status, line = error_of(start(f"--workdir={tmp_path / 'run'}", *args))
    assert status == 2
    assert says in line
    assert not (tmp_path / "run").exists()


AGREE = """
    import os, sys
    import jax, jax.numpy as jnp, numpy as np
    from fedprune import mesh, processes, run
    from fedprune.runs import checkpoint, loop

    index = int(sys.argv[1])
    by_hand = (sys.argv[2], 2, index) if sys.argv[2] else (None, None, None)
    processes.connect({}, *by_hand, 60, 60)

    files = "/proc/self/fd/"  # one of those listed is closed at once
    open_files = {os.path.realpath(files + fd).rpartition("/")[2] for fd in os.listdir(files)}
    table = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}")]
    listens = [row[1] for row in table if row[3] == "0A" and f"socket:[{row[9]}]" in open_files]
    assert len(listens) == (2 if index == 0 else 0), listens
    assert all(address.partition(":")[0].endswith("0100007F") for address in listens), listens
    jax.config.update("jax_num_cpu_devices", 2)

    assert processes.gather(lambda: {"index": index}) == [{"index": 0}, {"index": 1}]
    assert processes.together(lambda: {index}) == {index}

    layout = mesh.make(clients=2, arms=2)
    odd = np.array([[-0.0, np.nan, 1.5], [-np.inf, 5e-324, 2.0]], np.float64)
    odd.view(np.uint64)[0, 1] |= 99  # a NaN with a payload
    leaves = {"odd": odd, "half": jnp.asarray(odd, jnp.bfloat16), "mask": odd > 1}
    bits = lambda tree: [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
    zeros = {name: np.zeros_like(leaf) for name, leaf in leaves.items()}
    mine = leaves if index == 0 else zeros
    assert bits(processes.broadcast(mine)) == bits(leaves)

    keys = jax.random.split(jax.random.key(7), 4)
    numbers = np.arange(24, dtype=np.float32).reshape(4, 6)
    both = jax.NamedSharding(layout.mesh, mesh.spec(2))
    there = mesh.put({"n": numbers, "k": keys}, {"n": both, "k": layout.per_arm()})
    assert {shard.data.shape for shard in there["n"].addressable_shards} == {(2, 3)}
    again = mesh.put(there, {"n": layout.replicated(), "k": layout.replicated()})
    for found in (there, again):
        assert bits(mesh.to_host(found["n"])) == bits(numbers)
        drawn = jax.jit(jax.vmap(jax.random.bits))(found["k"])
        assert bits(mesh.to_host(drawn)) == bits(jax.vmap(jax.random.bits)(keys))

    def failing():
        if index == 1:
            raise KeyError("what is not there")

    def segment(rounds):
        program = jax.jit(lambda x: x + index)  # another one on each process
        return mesh.Compiled(None, lambda arms: program.lower(arms.state["x"]))

    zero = np.zeros((1, 3))
    start = lambda: run.Arms((), keys[:1], {"x": zero}, zero, zero)
    programs = [loop.Program("program0", [loop.Label("a", 0)], start, segment, 1)]
    try:
        if sys.argv[3] == "failing":
            processes.gather(failing)
        else:
            loop.train(programs, None, 2, 1, 1)
    except (KeyError, processes.ProcessesError) as e:
        print(type(e).__name__, e)
    assert processes.count() == 1 and len(mesh.make().mesh.devices.flat) == 2
"""


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("failing", ["ProcessesError process 1: 'what", "KeyError 'what is not there'"]),
        ("differing", ["ProcessesError processes differ: program0 as compiled is"] * 2),
    ],
)
def test_what_processes_agree_on(how, says):
    """The first two are told of each other by hand, the others by what Slurm sets."""
    python = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(AGREE)]
    at, slurm = str(port()), how == "differing"
    address = "" if slurm else f"127.0.0.1:{at}"
    told = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    told["JAX_COORDINATOR_PORT"] = at
    pair = [
        popen(
            [*python, str(i), address, how],
            **({**told, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} if slurm else {}),
        )
        for i in (0, 1)
    ]
    for process, expected in zip(pair, says, strict=True):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert out.splitlines()[-1].startswith(expected), out
