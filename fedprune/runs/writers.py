"""Where the numbers of every round go beside ``metrics.jsonl``: TensorBoard, MLflow, a user's file.

A ``Writer`` is three functions. It is told where a run goes on and answers what it has already, so
that no round is missing there and none is there twice, however often the run was interrupted:

    have = begin(arm, seed, done)     # the rounds up to ``done`` are final
    write(arm, seed, {round: {name: value}})

It is given the rounds after ``have``, of which those up to ``done`` come from ``metrics.jsonl``,
and every round before the checkpoint that makes it final. A resumed run computes again what comes
after its newest checkpoint; a writer that says it has these rounds is not given them again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedprune.runs.values import flat, strict

log = logging.getLogger(__name__)

Rounds = Mapping[int, Mapping[str, float]]
"""the numbers of some rounds, which count from 1, in ascending order: {round: {name: value}}"""


class WriterError(Exception):
    """A writer that cannot be had, or has failed; the message is one line."""


class About(NamedTuple):
    """The run of which a writer is given the numbers."""

    id: str
    """that ``run.json`` has too; it stays when the run is resumed"""
    experiment: str
    """NAME or NAME:VARIANT"""
    folder: Path
    """the run directory"""
    arms: Mapping[str, Mapping[str, Any]]
    """the configuration of each arm, as plain values by path: {"single": {"local.lr": 0.1, ...}}"""


class Writer(NamedTuple):
    """Takes the numbers of a run's arms, each with each of its seeds."""

    begin: Callable[[str, int, int], int]
    """(arm, seed, done) -> the last round that it has, 0 if none. Called once at every start of the
    run, before ``write``. Rounds up to ``done`` are final; later ones that an interrupted run has
    written are computed again. A writer that cannot know what it has begins anew, and returns 0."""
    write: Callable[[str, int, Rounds], None]
    """(arm, seed, rounds): what was written is kept when it returns"""
    close: Callable[[str], None]
    """(how the run ended: "finished", "stopped" or "failed"): nothing is written any more"""


Open = Callable[[About], Writer]
"""what ``--log`` names"""


class Log:
    """Rows for several writers."""

    def __init__(self, writers: Sequence[Writer] = ()) -> None:
        self._writers: list[tuple[Writer, dict[tuple[str, int], int]]]
        self._writers = [(writer, {}) for writer in writers]

    def begin(
        self, labels: Iterable[tuple[str, int]], done: int, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Arms and seeds that go on after the round ``done``, with all their rows up to it."""
        for writer, have in self._writers:
            for arm, seed in labels:
                have[arm, seed] = writer.begin(arm, seed, done)
        self.write(rows)

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Gives each writer what it has not; NaN and infinities are left out."""
        found: dict[tuple[str, int], dict[int, dict[str, float]]] = {}
        for row in rows:
            found.setdefault((row["arm"], row["seed"]), {})[row["round"]] = numbers(row)
        for writer, have in self._writers:
            for label, rounds in found.items():
                new = {r: values for r, values in rounds.items() if r > have[label]}
                if new:
                    writer.write(*label, new)

    def close(self, ended: str) -> None:
        """Ends all writers. A run that has failed already goes on failing of that."""
        for writer, _ in self._writers:
            try:
                writer.close(ended)
            except (WriterError, OSError) as e:
                if ended == "finished":
                    raise
                log.warning("%s", e)


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row by name; those of a mapping are NAME/KEY."""
    place = ("program", "arm", "seed", "round")
    return {
        name: value
        for name, value in flat(strict(dict(row), infinities=False))
        if name not in place and isinstance(value, int | float)
    }


def guarded(writer: Writer, said: Callable[[Exception], str]) -> Writer:
    """A writer whose errors, of whatever kind, are a ``WriterError`` that says ``said(error)``."""

    def guard(fn: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            try:
                return fn(*given)
            except WriterError:
                raise
            except Exception as e:
                raise WriterError(said(e)) from e

        return call

    return Writer(guard(writer.begin), guard(writer.write), guard(writer.close))
