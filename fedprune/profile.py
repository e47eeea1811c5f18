"""Where the time of a compiled round goes: JAX's trace, added up by stage.

A trace names the operations of the compiled program; the program's text has for every operation the
Python call stack that it comes from. An operation belongs to local training if that passes through
``local``; else to the innermost room of the package on its stack. Fused operations count for the
one that gives their result. Times are those of the devices' own threads, added up over devices; a
device that waits for the others in a reduction spends that time in ``mesh``.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData

STAGES = {
    "local": "local training",
    "models": "local training",
    "nn": "local training",
    "prune": "pruning",
    "link": "uplink",
    "channel": "uplink",
    "resources": "uplink",
    "allocation": "uplink",
    "server": "server, participation",
    "mesh": "sums over clients and devices",
    "rounds": "round: masks, checks, counts",
    "bill": "round: masks, checks, counts",
    "rng": "random keys",
    "tree": "round: masks, checks, counts",
    "data": "batches",
    "types": "batches",
    "run": "run: rounds, arms",
}
"""room -> row of the table"""
WRITES = ("plugins",)
"""what ``measure`` leaves in a folder"""
OTHER, EVALUATION = "not attributed", "evaluation"


def measure(call: Callable[[], Any], folder: Path) -> None:
    """Traces one call, which should have run before, into ``folder`` (TensorBoard and Perfetto read
    it)."""
    with jax.profiler.trace(str(folder)):
        jax.block_until_ready(call())


def by_stage(folder: Path, program: str) -> dict[str, float]:
    """Seconds of each stage in a traced call, the largest first.

    Args:
      folder: of ``measure``.
      program: text of the compiled program, with its tables of stack frames.

    Raises:
      FileNotFoundError: no trace is there.
    """
    traces = sorted(folder.rglob("*.xplane.pb"))  # the one for browsers ends at a million events
    if not traces:
        raise FileNotFoundError(f"no trace in {folder}")
    stage = stages(program)
    seconds: dict[str, float] = defaultdict(float)
    with warnings.catch_warnings():
        # Of JAX 0.12 on Python 3.13, about types of its own; as an error it would end the process.
        warnings.simplefilter("ignore", DeprecationWarning)
        for plane in ProfileData.from_file(str(traces[-1])).planes:
            for thread in plane.lines:
                for name, nanoseconds in _own_times(_operations(thread)):
                    seconds[stage.get(name, OTHER)] += 1e-9 * nanoseconds
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def stages(program: str) -> dict[str, str]:
    """operation -> stage, for all operations of a compiled program's text."""
    frames = _stacks(program)
    found = {}
    for line in program.splitlines():
        operation = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
        frame = re.search(r"stack_frame_id=(\d+)", line)
        if operation and frame:
            found[operation[1]] = _stage(frames.get(int(frame[1]), []))
    return found


def _stage(stack: list[tuple[str, str]]) -> str:
    """The stage of a stack of (file, function), innermost first."""
    rooms = []
    for file, function in stack:
        inside = re.search(r"/fedprune/([a-z]+)(?:/\w+)?\.py$", file)
        if inside and inside[1] == "run" and "evaluate" in function:
            return EVALUATION
        if inside:
            rooms.append(inside[1])
    known = [room for room in rooms if room in STAGES]
    if "local" in known:
        return STAGES["local"]
    return STAGES[known[0]] if known else OTHER


def _stacks(program: str) -> dict[int, list[tuple[str, str]]]:
    """frame -> its stack of (file, function), innermost first, from the tables of a program."""
    tables: dict[str, dict[int, str]] = {}
    current: dict[int, str] = {}
    for line in program.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            current = tables.setdefault(line, {})
        elif entry := re.match(r'(\d+) (?:"(.*)"|\{(.*)\})$', line):
            current[int(entry[1])] = entry[2] or entry[3]

    def numbers(text: str) -> dict[str, int]:
        return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", text)}

    places = {
        i: (
            tables["FileNames"].get(n.get("file_name_id", 0), ""),
            tables["FunctionNames"].get(n.get("function_name_id", 0), ""),
        )
        for i, n in ((i, numbers(t)) for i, t in tables.get("FileLocations", {}).items())
    }
    frames = {i: numbers(text) for i, text in tables.get("StackFrames", {}).items()}
    # The first frame is a root. Some versions write 1 for "no parent" and add 1 to all others.
    none = frames.get(1, {}).get("parent_frame_id", 0)
    stacks = {}
    for start in frames:
        stack, frame = [], start
        while frame in frames:
            stack.append(places[frames[frame]["file_location_id"]])
            frame = frames[frame].get("parent_frame_id", 0) - none
        stacks[start] = stack
    return stacks


class Operation(NamedTuple):
    """What a thread did, from its begin to its end in ns."""

    name: str
    begin: float
    end: float


def _operations(thread: Any) -> list[Operation]:
    """Those of compiled programs; other events are left out."""
    found = []
    for event in thread.events:
        name = dict(event.stats).get("hlo_op")
        if name is not None:
            found.append(Operation(name, event.start_ns, event.start_ns + event.duration_ns))
    return found


def _own_times(operations: list[Operation]) -> list[tuple[str, float]]:
    """(operation, ns) without the operations that ran inside it, for those of one thread."""
    own = []
    inside: list[list] = []  # [name, end, own time] of what is under way
    for name, begin, end in sorted(operations, key=lambda o: (o.begin, -o.end)):
        while inside and inside[-1][1] <= begin:
            last, _, time = inside.pop()
            own.append((last, time))
        if inside:
            inside[-1][2] -= end - begin
        inside.append([name, end, end - begin])
    return own + [(name, time) for name, _, time in inside]
