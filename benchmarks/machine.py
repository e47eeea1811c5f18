"""What a result has to say about the machine, where it goes, turns, and the memory of processes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedprune.nn.table import processor


def facts() -> dict[str, object]:
    """Processor and cores."""
    return {"processor": processor(), "cores": len(os.sched_getaffinity(0))}


def publish(rows: Sequence[dict], out: str) -> None:
    """Prints a JSON line a row, and writes the lines to the file ``out`` unless that is empty."""
    lines = "\n".join(map(json.dumps, rows))
    print(lines)
    if out:
        Path(out).write_text(lines + "\n", encoding="utf-8")


def in_turns(calls: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Seconds of every call, so many times in turns, after a first time that may compile."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(1 + turns):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if i:
                times[name].append(time.perf_counter() - began)
    return times


def peak_memory_mb(pid: int) -> float | None:
    """The largest resident memory so far of a process and its descendants, added up; in MB.

    Pages that processes share count once for each. None where Linux's /proc is missing.
    """
    status = Path(f"/proc/{pid}/status")
    try:
        line = next(
            x for x in status.read_text(encoding="utf-8").splitlines() if x.startswith("VmHWM")
        )
        children = [
            int(child)
            for thread in Path(f"/proc/{pid}/task").iterdir()
            for child in (thread / "children").read_text(encoding="utf-8").split()
        ]
    except (OSError, StopIteration):
        return None
    own = int(line.split()[1]) * 1024 / 1e6
    return round(own + sum(peak_memory_mb(child) or 0.0 for child in children), 1)
