"""How every program of the launcher meets the shell: its streams, and its exit status."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Ends the process with what ``main`` returns.

    What the terminal's encoding lacks is printed as an escape. A reader that has gone, as ``head``,
    ends it silently, with 141, and Ctrl-C in one line, with 130, as a shell counts both.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    status: str | int | None
    try:
        try:
            status = main(sys.argv)
        except SystemExit as e:  # --help
            status = e.code
        print(end="", flush=True)
    except BrokenPipeError:
        status = 128 + signal.SIGPIPE
        for number in (1, 2):  # the interpreter flushes both at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from what is saved", file=sys.stderr)
        status = 128 + signal.SIGINT
    sys.exit(status)
