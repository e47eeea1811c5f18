"""Numbers of rounds as TensorBoard scalars, in ``tensorboard/ARM/seedN/`` of the run directory.

No file is held open, and no thread writes: what does not fit on the disk is an error of the call
that writes it. Every start that writes begins a file of its own, whose first record tells
TensorBoard that what an interrupted run wrote from its first round on is void.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedprune.runs.files import naming
from fedprune.runs.writers import About, Rounds, Writer


def open(about: About) -> Writer:
    """A writer of event files. Its ``write`` raises an OSError that names the file."""
    boards = about.folder / "tensorboard"
    files: dict[tuple[str, int], Path] = {}

    def begin(arm: str, seed: int, done: int) -> int:
        there = sorted(_folder(arm, seed).glob("events.out.tfevents.*"))
        return min(done, _last_round(there[-1])) if there else 0

    def write(arm: str, seed: int, rounds: Rounds) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        now, events, label = time.time(), [], (arm, seed)
        if label not in files:
            name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}"
            files[label] = _folder(arm, seed) / name
            events.append(Event(wall_time=now, file_version="brain.Event:2"))
            start = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=now, step=min(rounds), session_log=start))
        for step, numbers in rounds.items():
            for name, value in numbers.items():
                events.append(Event(wall_time=now, step=step, summary=scalar(name, value)))
        _append(files[label], events)

    def _folder(arm: str, seed: int) -> Path:
        return boards / arm / f"seed{seed}"

    return Writer(begin, write, lambda ended: None)


def _append(file: Path, events: Sequence[Any]) -> None:
    with naming(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as f:
            f.writelines(_record(event.SerializeToString()) for event in events)


def _record(data: bytes) -> bytes:
    """One record of a TFRecord file, which TensorBoard reads."""
    from tensorboardX.record_writer import masked_crc32c

    size = struct.pack("<Q", len(data))
    sums = [struct.pack("<I", masked_crc32c(part)) for part in (size, data)]
    return size + sums[0] + data + sums[1]


def _last_round(file: Path) -> int:
    """That of the last whole record of an event file, or the one before its start's."""
    from tensorboardX.proto.event_pb2 import Event

    data, at, last = file.read_bytes(), 0, b""
    while at + 12 <= len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        if at + 16 + size > len(data):  # cut off: length, its sum, event, its sum
            break
        last, at = data[at + 12 : at + 12 + size], at + 16 + size
    event = Event.FromString(last)
    return event.step - 1 if event.HasField("session_log") else event.step
