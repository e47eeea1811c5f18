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

ROOT = Path(__file__).parents[1]
ROUNDS, ARMS = 200, 3
COMMAND = [
    *(sys.executable, "-m", "launch.main"),
    "--config=experiments/ota_pruning.py:fast",
    "--config.data.clients=4",
    "--config.local.steps=1",
    "--config.local.batch=4",
    "--config.model.name=mlp",
    "--config.model.hidden=8,",
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


def popen(command: list[str], cwd: Path = ROOT) -> subprocess.Popen:
    out = subprocess.PIPE
    STARTED.append(subprocess.Popen(command, cwd=cwd, stdout=out, stderr=out, text=True))
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


@pytest.mark.slow
def test_two_processes_find_what_one_does(unbroken, tmp_path):
    """2 processes x 2 devices, whose second directory is never made, and 1 x 4: the same bytes."""
    at, first = port(), tmp_path / "run"
    pair = [
        start_one_of(2, i, at, f"--workdir={tmp_path / name}")
        for i, name in enumerate(("run", "other"))
    ]
    assert [ended(process)[0] for process in pair] == [0, 0]
    assert results(first) == unbroken
    assert not (tmp_path / "other").exists()
    (begun,) = json.loads((first / "run.json").read_text())["starts"]
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
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--config.run.seeds=2"], "processes differ: run.seeds is 1 on process 0, 2 on process 1"),
        (["--config.uplink.snr_db=3"], "uplink.snr_db is 10.0 on process 0, 3.0 on process 1"),
        (["code"], "processes differ: source is '"),
    ],
)
def test_processes_that_differ_refuse(args, says, tmp_path):
    """Both in the same words, before there is a directory."""
    cwd = ROOT
    if args == ["code"]:
        args, cwd = [], tmp_path / "copy"
        for room in ("fedprune", "experiments", "launch"):
            shutil.copytree(ROOT / room, cwd / room)
        with (cwd / "fedprune" / "server" / "aggregation.py").open("a") as file:
            file.write("# another version\n")
    at, workdir = port(), tmp_path / "run"
    pair = [
        start_one_of(2, 0, at, f"--workdir={workdir}"),
        start_one_of(2, 1, at, f"--workdir={workdir}", *args, cwd=cwd),
    ]
    (status, line), other = map(error_of, pair)
    assert status == 1
    assert says in line
    assert other == (status, line)
    assert not workdir.exists()


@pytest.mark.slow
def test_a_process_that_does_not_come(tmp_path):
    """Process 1 of 2 with nobody there, and beside a process that expects three."""
    missing = "not all processes had come after 10 s"
    args = [f"--workdir={tmp_path / 'run'}", "--initialization_timeout=10"]
    for index in (0, 1):
        status, line = error_of(start_one_of(2, index, port(), *args))
        assert status == 42
        assert missing in line
    at = port()
    pair = [start_one_of(2, 0, at, *args), start_one_of(3, 2, at, *args)]
    for process in pair:
        status, line = error_of(process)
        assert status == 42
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--process=1"], "--process=1: needs --distributed"),
        (["--distributed", "--coordinator=a:1"], "--coordinator=a:1: needs --processes"),
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
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from fedprune import checkpoint, loop, mesh, processes, run

    index = int(sys.argv[1])
    processes.connect(sys.argv[2], 2, index, 60, 60)
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
    script, address = textwrap.dedent(AGREE), f"127.0.0.1:{port()}"
    python = [sys.executable, "-W", "ignore", "-c", script]
    pair = [popen([*python, str(i), address, how]) for i in (0, 1)]
    for process, expected in zip(pair, says, strict=True):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert out.splitlines()[-1].startswith(expected), out
