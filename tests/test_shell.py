"""What programs of the launcher do with their streams and exit status, in fresh processes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedprune import report
from fedprune.cli import screen

ROOT = Path(__file__).parents[1]


def start(main: str, **options) -> subprocess.Popen:
    script = (
        f"import signal, sys, time; from fedprune.cli import shell; shell.run(lambda argv: {main})"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", script]
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, **options)


@pytest.mark.parametrize("lines", [1, 100_000], ids=["at the end", "while it prints"])
def test_a_reader_that_has_gone_ends_a_program_silently(lines):
    process = start(f"sys.stdin.read() or [print('x') for _ in range({lines})] and 0", stdin=-1)
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
    process.stderr.close()


def test_ctrl_c_is_one_line():
    listen = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = start(f"({listen}, print('ready', flush=True), time.sleep(60))")
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert said == b"stopped; the same command goes on from what is saved\n"
    assert process.returncode == 130


def test_what_a_terminal_cannot_show_is_an_escape():
    said, errors = start(
        "print('a \\u2265 b') or 3", env={"PYTHONIOENCODING": "latin-1"}
    ).communicate()
    assert (said, errors) == (b"a \\u2265 b\n", b"")


@pytest.mark.parametrize("columns", [50, 80, 120])
def test_texts_fit_the_terminal(columns):
    """No word is lost, in the order of the cells; what fits stays as it is."""
    header = ["claim", "verdict", "found", ""]
    body = [
        [
            "half: one-shot needs more rounds at 90 % than at 70 %",
            "open (1 seed)",
            "0.0 rounds",
            "",
        ],
        ["short", "held", "", "P0 IV-B.2: more stable curves at 70P, 90P"],
    ]
    table = report.table(header, body)
    prose = "Converged: " + ", ".join(f"full/iterative-{ratio} (+8.6)" for ratio in range(30, 40))
    found = screen.fitted(f"{prose}\n\n{table}\n  indented", columns)
    lines = found.splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[-1] == "  indented"
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    assert " ".join(lines[: start - 1]) == prose
    rows = [line[1:-1].split("|") for line in lines[start:-1] if not line.startswith("|-")]
    words = [" ".join(" ".join(column).split()) for column in zip(*rows, strict=True)]
    wanted = [" ".join(" ".join(column).split()) for column in zip(header, *body, strict=True)]
    assert words == wanted
    assert screen.fitted(table, max(map(len, table.splitlines()))) == table
