"""On the host: programs in segments of rounds, with evaluation, writing, checkpoints and resuming.

The program is the same for every segment, so a run that was killed and started again computes
exactly what an unbroken one does: the checkpoint holds the whole state, metrics rows beyond it are
dropped, and every random number has an address.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from fedprune import mesh, run
from fedprune.checkpoint import CheckpointError, Checkpoints, rebuild
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


def train(
    programs: Sequence[Program],
    folder: Path,
    rounds: int,
    every: int,
    save_every: int,
) -> list[Row]:
    """Runs all programs to their end, resuming from what ``folder`` holds.

    Args:
      programs: one after another.
      folder: a run directory.
      rounds: rounds of each program.
      every: rounds between evaluations, the length of a segment.
      save_every: segments between checkpoints.

    Returns:
      All rows of ``metrics.jsonl``.

    Raises:
      CheckpointError: what is there cannot be continued, or a checkpoint cannot be written.
    """
    metrics = Metrics(folder)
    bar = tqdm(total=rounds * len(programs), unit="round", disable=None)
    try:
        for program in programs:
            place = folder / "checkpoints" / program.name
            with contextlib.closing(Checkpoints(place)) as checkpoints:
                _train(program, checkpoints, metrics, bar, rounds, every, save_every)
    finally:
        bar.close()
        metrics.close()
    return metrics.rows()


def _train(
    program: Program,
    checkpoints: Checkpoints,
    metrics: Metrics,
    bar: tqdm,
    rounds: int,
    every: int,
    save_every: int,
) -> None:
    done, leaves = checkpoints.restore()
    _check(program, done, rounds, metrics)
    metrics.keep(lambda row: row["program"] != program.name or row["round"] <= done)
    bar.update(done)
    if done:
        log.info("%s: resuming after round %d", program.name, done)
    if done == rounds:
        return
    arms = program.start()
    if done:
        saved = rebuild(leaves, {"state": arms.state, "key": arms.key})
        arms = arms._replace(state=saved["state"], key=saved["key"])
    arms = run.pad(arms, program.padded)
    segment = functools.cache(program.segment)
    segments, began, first = 0, time.monotonic(), done
    bar.set_description(f"{program.name} (compiling)")
    while done < rounds:
        length = min(every, rounds - done)
        state, infos, measured = segment(length)(arms)
        arms = arms._replace(state=state)
        metrics.write(_rows(program, done, infos, measured))
        done, segments = done + length, segments + 1
        if segments % save_every == 0 or done == rounds:
            real = len(program.labels)
            checkpoints.save(done, {"state": run.head(state, real), "key": arms.key[:real]})
        accuracy = float(np.mean(measured.accuracy[: len(program.labels)]))
        bar.set_description(program.name)
        bar.set_postfix(accuracy=f"{accuracy:.3f}")
        bar.update(length)
        left = (time.monotonic() - began) / (done - first) * (rounds - done)
        log.info(
            "%s: round %d of %d, mean accuracy %.3f, %.0f s left in this program",
            *(program.name, done, rounds, accuracy, left),
        )


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
    infos, measured = jax.tree.map(np.asarray, (infos, measured))
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
