"""Watches over one process of several: a reason in words for whatever ends it.

JAX ends a process whose peers do not join, or are lost, by SIGABRT and pages of text; Python cannot
catch that. So with ``--distributed`` the process that was started is a monitor of the one that
computes. It passes on SIGTERM, and what is printed; it holds back the text of JAX's C++ parts, and
says in one line what happened.
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

RETRY = 42
"""exit status: the same command goes on (what xpk takes for an invitation to restart)"""
_WORKER = "FEDPRUNE_WORKER"
_NATIVE = re.compile(rb"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ ")
"""how a line of JAX's C++ parts begins; what follows without a beginning of Python's belongs to it"""


def is_worker() -> bool:
    """Whether this process has a monitor."""
    return _WORKER in os.environ


def stay_with_monitor() -> None:
    """Ends this process by SIGKILL when its monitor is gone, be it by SIGKILL."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def leave(status: int) -> NoReturn:
    """Ends this process without the farewell for which JAX would wait."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def watch(argv: Sequence[str], initialization_timeout: int, heartbeat_timeout: int) -> int:
    """Runs a command line of ``launch.main`` in a process of its own; returns the exit status."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "launch.main", *argv[1:]],
        env={**os.environ, _WORKER: "1"},
        stdin=subprocess.PIPE,  # closed when this process ends, however it ends
        stderr=subprocess.PIPE,
    )
    signal.signal(signal.SIGTERM, lambda *_: worker.send_signal(signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to both
    native = []
    assert worker.stderr is not None
    for line in worker.stderr:
        if _NATIVE.match(line):
            native.append(line.decode(errors="replace"))
            sys.stderr.buffer.write(b"NATIVE "+line)
        else:
            sys.stderr.buffer.write(line)
            sys.stderr.flush()
    status = worker.wait()
    if status >= 0:
        return status
    print(native)
    return RETRY
