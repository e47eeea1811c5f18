"""On the host: programs in segments of rounds, with evaluation, writing, checkpoints and resuming.

The program is the same for every segment, so a run that was killed and started again computes
exactly what an unbroken one does: the checkpoint holds the whole state, metrics rows beyond it are
dropped, and every random number has an address.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedprune import bill, mesh, processes, progress, run
from fedprune.rounds import RoundInfo
from fedprune.runs import MetricsFile, Row, checksum
from fedprune.runs.checkpoint import (
    CheckpointError,
    Checkpoints,
    Leaves,
    fingerprint,
    leaves_of,
    rebuild,
)
from fedprune.runs.writers import Log

log = logging.getLogger(__name__)


class Label(NamedTuple):
    """Which arm a row belongs to."""

    arm: str
    seed: int


class Program(NamedTuple):
    """Arms that run together."""

    name: str
    labels: Sequence[Label]
    """of the A arms, in order"""
    start: Callable[[], run.Arms]
    """the arms at round 0"""
    segment: Callable[[int], mesh.Compiled]
    """rounds -> (arms, padded to ``padded``) -> (states, infos [A, rounds], metrics)"""
    padded: int
    """arms that ``segment`` takes: A, made divisible by the devices with idle copies"""


class Stopped(Exception):
    """A run that was asked to stop, and whose state is saved; the message is one line."""


def train(
    programs: Sequence[Program],
    folder: Path | None,
    rounds: int,
    every: int,
    save_every: int,
    stop: Callable[[], bool] = lambda: False,
    out: Log | None = None,
) -> list[Row]:
    """Runs all programs to their end, resuming from what ``folder`` holds.

    Args:
      programs: one after another.
      folder: a run directory; None on all processes but the first.
      rounds: rounds of each program.
      every: rounds between evaluations, the length of a segment.
      save_every: segments between checkpoints.
      stop: asked before every segment; if it is True on one process, all stop before this segment.
      out: writers that are given every row as well, and are closed at the end.

    Returns:
      All rows of ``metrics.jsonl``; none where there is no folder.

    Raises:
      Stopped: ``stop`` said so, and the state is saved.
      CheckpointError: what is there cannot be continued, or a checkpoint cannot be written.
      RunDirectoryError: the rows that are there are damaged.
      WriterError: a writer has failed.
      ProcessesError: that happened to process 0, or the processes run different programs.
    """
    out = out or Log()
    metrics = (
        None if folder is None else MetricsFile(folder, [program.name for program in programs])
    )
    parts = [progress.Part(p.name, rounds, len(p.labels)) for p in programs]
    try:
        with progress.show(parts, processes.is_first()) as shown:
            for program in programs:
                with contextlib.closing(_Record(program, folder, metrics, out)) as record:
                    _train(program, record, shown, rounds, every, save_every, stop)
    except BaseException as e:
        out.close("stopped" if isinstance(e, Stopped | KeyboardInterrupt) else "failed")
        raise
    processes.together(lambda: out.close("finished"))
    if not metrics:
        return []
    metrics.order()
    return metrics.rows()


class _Record:
    """Rows and checkpoints of a program, which process 0 has. All processes call every method, so
    that what fails there fails everywhere."""

    def __init__(
        self, program: Program, folder: Path | None, metrics: MetricsFile | None, out: Log
    ) -> None:
        self._program, self._metrics, self._out = program, metrics, out
        self._checkpoints = (
            None if folder is None else Checkpoints(folder / "checkpoints" / program.name)
        )
        self._leaves: Leaves = {}

    def done(self, rounds: int) -> int:
        """Rounds of the newest checkpoint that is whole and has its rows, which is read; the rows
        beyond it are dropped."""

        def read() -> int:
            if not (self._checkpoints and self._metrics):
                return 0
            name = self._program.name
            every, damaged = self._metrics.readable()
            rows = [row for row in every if row["program"] == name]
            lines = [f"line {number} is damaged" for number in damaged]
            faults = list(lines)

            def fits(done: int, sums: Sequence[str] | None) -> None:
                fault = _misfit(self._program, done, rows, sums)
                if fault:
                    faults.append(fault)
                    raise CheckpointError("metrics.jsonl: " + "; ".join((*lines, fault)))

            done, self._leaves = self._checkpoints.restore(fits)
            if done > rounds:
                raise CheckpointError(
                    f"{name}: its checkpoint is of round {done}, beyond run.rounds={rounds}"
                )
            if faults:
                copy = self._metrics.set_aside()
                log.warning("metrics.jsonl: %s; a copy of it is %s", faults[0], copy)
            self._metrics.keep(lambda row: row["program"] != name or row["round"] <= done)
            kept = [row for row in rows if row["round"] <= done]
            self._out.begin(self._program.labels, done, kept)
            return done

        return processes.gather(read)[0]

    def resumed(self, arms: run.Arms) -> run.Arms:
        """Arms with the state that was read."""
        like = {"state": arms.state, "key": arms.key}
        if self._checkpoints is None:
            self._leaves = leaves_of(like)
        processes.together(lambda: rebuild(self._leaves, like))  # before leaves are exchanged
        saved = rebuild(processes.broadcast(self._leaves), like)
        return arms._replace(state=saved["state"], key=saved["key"])

    def write(self, rows: Sequence[Row]) -> None:
        def write() -> None:
            if self._metrics:
                self._metrics.write(rows)
                self._out.write(rows)

        processes.together(write)

    def save(self, done: int, arms: run.Arms) -> None:
        real = len(self._program.labels)
        state = run.head(mesh.to_host(arms.state), real)

        def save() -> None:
            if self._checkpoints:
                assert self._metrics
                rows = self._metrics.checksums(self._program.name)
                self._checkpoints.save(done, {"state": state, "key": arms.key[:real]}, rows)

        processes.together(save)

    def finish(self) -> None:
        """Waits until what was saved is on disk."""

        def wait() -> None:
            if self._checkpoints:
                self._checkpoints.wait()

        processes.together(wait)

    def close(self) -> None:
        """On its own, as after a fault of one process; it waits as ``finish`` does."""
        if self._checkpoints:
            self._checkpoints.close()


def _train(
    program: Program,
    record: _Record,
    shown: progress.Progress,
    rounds: int,
    every: int,
    save_every: int,
    stop: Callable[[], bool],
) -> None:
    done = saved = record.done(rounds)
    if done == rounds:
        log.info("%s: all its %d rounds were done before", program.name, rounds)
    elif done:
        log.info("%s: resuming after round %d", program.name, done)
    shown.start(done)
    if done == rounds:
        return
    arms = program.start()
    if done:
        arms = record.resumed(arms)
    processes.require_same(lambda: {f"what {program.name} starts from": fingerprint(arms)})
    arms = run.pad(arms, program.padded)

    @functools.cache
    def segment(length: int) -> mesh.Compiled:
        compiled = program.segment(length)
        processes.require_same(lambda: {f"{program.name} as compiled": _code(compiled, arms)})
        return compiled

    segments = 0
    while done < rounds:
        if any(processes.gather(stop)):
            if saved < done:
                record.save(done, arms)
            record.finish()
            raise Stopped(f"{program.name} was stopped after round {done} of {rounds}")
        length = min(every, rounds - done)
        state, infos, measured = segment(length)(arms)
        arms = arms._replace(state=state)
        infos, measured = mesh.to_host((infos, measured))
        record.write(_rows(program, done, infos, measured))
        done, segments = done + length, segments + 1
        if segments % save_every == 0 or done == rounds:
            record.save(done, arms)
            saved = done
        shown.advance(done, float(np.mean(measured.accuracy[: len(program.labels)])))
    record.finish()


def _code(compiled: mesh.Compiled, arms: run.Arms) -> str:
    """SHA-256 of a program as it is given to the compiler."""
    return hashlib.sha256(compiled.lower(arms).as_text().encode()).hexdigest()


def _misfit(
    program: Program, done: int, rows: Sequence[Row], sums: Sequence[str] | None
) -> str | None:
    """Why a program cannot go on after so many rounds with the rows that are there; None: it can.

    Its arms must have all their rows so far, as they were when the state was saved.
    """
    wanted = [(*label, r + 1) for r in range(done) for label in program.labels]
    rows = [row for row in rows if row["round"] <= done]
    if not set(program.labels) <= {(row["arm"], row["seed"]) for row in rows}:
        arms = ", ".join(dict.fromkeys(label.arm for label in program.labels))
        return (
            f"must have the rows of rounds 1 to {done} of {program.name}, like its checkpoint, for"
            f" the arms {arms}"
        )
    there = [(row["arm"], row["seed"], row["round"]) for row in rows]
    for is_, should in zip_longest(there, wanted):
        if is_ != should:
            return f"{_named(program, *(should or is_))} is not in its place"
    for place, row, was in zip(wanted, rows, sums or (), strict=sums is not None):
        if checksum(row) != was:
            return f"{_named(program, *place)} is damaged"
    return None


def _named(program: Program, arm: str, seed: int, at: int) -> str:
    return f"the row of {program.name}, arm {arm}, seed {seed}, round {at},"


def _rows(program: Program, done: int, infos: RoundInfo, measured: Any) -> list[Row]:
    """A row a round and arm; the test metrics stand in the last round's."""
    infos = bill.on_host(infos)
    columns: dict[str, Any] = {**infos._asdict(), **infos.cost._asdict(), **infos.numbers}
    parted = ("cost", "numbers")
    columns = {k: v for k, v in columns.items() if k not in parted and jax.tree.leaves(v)}
    length = infos.train_loss.shape[1]
    rows = []
    for r in range(length):
        for a, label in enumerate(program.labels):
            row: Row = {"program": program.name, **label._asdict(), "round": done + r + 1}
            for name, values in columns.items():
                row[name] = jax.tree.map(lambda v, at=(a, r): v[at].item(), values)
            if r == length - 1:
                row |= {f"test_{k}": v[a].tolist() for k, v in measured._asdict().items()}
            rows.append(row)
    return rows
