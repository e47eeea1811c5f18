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
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from fedprune import mesh, processes, run
from fedprune.checkpoint import (
    CheckpointError,
    Checkpoints,
    Leaves,
    fingerprint,
    leaves_of,
    rebuild,
)
from fedprune.round import RoundInfo
from fedprune.writer import Metrics, Row

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
) -> list[Row]:
    """Runs all programs to their end, resuming from what ``folder`` holds.

    Args:
      programs: one after another.
      folder: a run directory; None on all processes but the first.
      rounds: rounds of each program.
      every: rounds between evaluations, the length of a segment.
      save_every: segments between checkpoints.
      stop: asked before every segment; if it is True on one process, all stop before this segment.

    Returns:
      All rows of ``metrics.jsonl``; none where there is no folder.

    Raises:
      Stopped: ``stop`` said so, and the state is saved.
      CheckpointError: what is there cannot be continued, or a checkpoint cannot be written.
      RunDirectoryError: the rows that are there are damaged.
      ProcessesError: that happened to process 0, or the processes run different programs.
    """
    metrics = None if folder is None else Metrics(folder)
    bar = tqdm(
        total=rounds * len(programs), unit="round", disable=None if processes.is_first() else True
    )
    try:
        for program in programs:
            with contextlib.closing(_Record(program, folder, metrics)) as record:
                _train(program, record, bar, rounds, every, save_every, stop)
    finally:
        bar.close()
    return metrics.rows() if metrics else []


class _Record:
    """Rows and checkpoints of a program, which process 0 has. All processes call every method, so
    that what fails there fails everywhere."""

    def __init__(self, program: Program, folder: Path | None, metrics: Metrics | None) -> None:
        self._program, self._metrics = program, metrics
        self._checkpoints = (
            None if folder is None else Checkpoints(folder / "checkpoints" / program.name)
        )
        self._leaves: Leaves = {}

    def done(self, rounds: int) -> int:
        """Rounds of the newest checkpoint, which is read; the rows beyond it are dropped."""

        def read() -> int:
            if not (self._checkpoints and self._metrics):
                return 0
            done, self._leaves = self._checkpoints.restore()
            _check(self._program, done, rounds, self._metrics)
            name = self._program.name
            self._metrics.keep(lambda row: row["program"] != name or row["round"] <= done)
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

        processes.together(write)

    def save(self, done: int, arms: run.Arms) -> None:
        real = len(self._program.labels)
        state = run.head(mesh.to_host(arms.state), real)

        def save() -> None:
            if self._checkpoints:
                self._checkpoints.save(done, {"state": state, "key": arms.key[:real]})

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
    bar: tqdm,
    rounds: int,
    every: int,
    save_every: int,
    stop: Callable[[], bool],
) -> None:
    done = saved = record.done(rounds)
    bar.update(done)
    if done:
        log.info("%s: resuming after round %d", program.name, done)
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

    segments, began, first = 0, time.monotonic(), done
    bar.set_description(f"{program.name} (compiling)")
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
        accuracy = float(np.mean(measured.accuracy[: len(program.labels)]))
        bar.set_description(program.name)
        bar.set_postfix(accuracy=f"{accuracy:.3f}")
        bar.update(length)
        left = (time.monotonic() - began) / (done - first) * (rounds - done)
        log.info(
            "%s: round %d of %d, mean accuracy %.3f, %.0f s left in this program",
            *(program.name, done, rounds, accuracy, left),
        )
    record.finish()


def _code(compiled: mesh.Compiled, arms: run.Arms) -> str:
    """SHA-256 of a program as it is given to the compiler."""
    return hashlib.sha256(compiled.lower(arms).as_text().encode()).hexdigest()


def _check(program: Program, done: int, rounds: int, metrics: Metrics) -> None:
    """Whether a program can go on after so many rounds: its arms have all their rows so far."""
    if done > rounds:
        raise CheckpointError(
            f"{program.name}: its checkpoint is of round {done}, beyond run.rounds={rounds}"
        )
    wanted = [(*label, r + 1) for r in range(done) for label in program.labels]
    rows = (row for row in metrics.rows() if row["program"] == program.name)
    if [(r["arm"], r["seed"], r["round"]) for r in rows if r["round"] <= done] != wanted:
        arms = ", ".join(dict.fromkeys(label.arm for label in program.labels))
        raise CheckpointError(
            f"metrics.jsonl: must have the rows of rounds 1 to {done} of {program.name}, like its"
            f" checkpoint, for the arms {arms}"
        )


def _rows(program: Program, done: int, infos: RoundInfo, measured: Any) -> list[Row]:
    """A row a round and arm; the test metrics stand in the last round's."""
    columns: dict[str, Any] = {**infos._asdict(), **infos.cost._asdict()}
    columns = {k: v for k, v in columns.items() if k != "cost" and jax.tree.leaves(v)}
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
