"""Watches over one process of several: a reason in words for whatever ends it.

JAX ends a process whose peers do not join, or are lost, by SIGABRT and a page of text; Python
cannot catch that. So with ``--distributed`` the process that was started is a monitor of the one
that computes. It passes on SIGTERM and SIGUSR2, and what is printed; it holds back what JAX's C++
parts say before they abort, and says in one line what happened.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from fedprune.cli import shell

RETRY = 42
"""exit status: the same command goes on (what xpk takes for an invitation to restart)"""
STOP = (signal.SIGTERM, signal.SIGUSR2)
"""on which a run saves and ends with ``RETRY``; the second is Slurm's when time is nearly over"""
_WORKER = "FEDPRUNE_WORKER"
_NATIVE = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ ")
"""how a message of JAX's C++ parts begins"""
_LAST = re.compile(r"F\d{4} |E\d{4} .*coordination")
"""how the ones begin after which they abort; they have many lines"""


def is_worker() -> bool:
    """Whether this process has a monitor."""
    return _WORKER in os.environ


def stay_with_monitor() -> None:
    """Ends this process when its monitor is gone, be it by SIGKILL."""

    def wait() -> None:
        try:
            while os.read(0, 1):
                pass
        finally:  # a monitor that cannot be heard counts as gone
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def leave(status: int) -> NoReturn:
    """Ends this process without the farewell for which JAX would wait."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def watch(argv: Sequence[str], initialization_timeout: int, heartbeat_timeout: int) -> int:
    """Runs a command line of ``fedprune run`` in a process of its own; returns the exit status."""
    worker = subprocess.Popen(
        shell.command("run", *argv[1:]),
        env={**os.environ, **shell.variables(), _WORKER: "1"},
        stdin=subprocess.PIPE,  # closed when this process ends, however it ends
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    for number in STOP:
        signal.signal(number, lambda number, _: worker.send_signal(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to both
    assert worker.stderr is not None
    native: list[str] = []
    last = False
    for line in worker.stderr:
        last = last or bool(_LAST.match(line))
        if last or _NATIVE.match(line):
            native.append(line)
        else:
            print(line, end="", file=sys.stderr, flush=True)
    status = worker.wait()
    if status >= 0:
        if status not in (0, RETRY):
            sys.stderr.writelines(native)
        return status
    reason = explain("".join(native), -status, initialization_timeout, heartbeat_timeout)
    print(f"error: {reason}; the same command goes on from the newest checkpoint", file=sys.stderr)
    return RETRY


def explain(native: str, number: int, initialization_timeout: int, heartbeat_timeout: int) -> str:
    """Why a process was ended by a signal, from what JAX's C++ parts said before (JAX 0.10)."""
    silent = re.search(r"stopped sending heartbeats\):((?:\s+\d+)+)\s", native)
    if silent:
        who = " and ".join(silent[1].split())
        return f"process {who} was lost: nothing was heard of it for {heartbeat_timeout} s"
    if "RegisterTask" in native:
        return f"not all processes had come after {initialization_timeout} s"
    status = re.search(r"absl::Status: (\w+): (.*)", native)
    if status and status[1] == "UNAVAILABLE":
        return "process 0 was lost: the connection to it broke"
    said = status[2] if status else " ".join(native.split())
    return f"ended by {signal.Signals(number).name}" + (f": {said[:300]}" if said else "")
