"""The rows of a run: ``metrics.jsonl``."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fedprune.runs.files import RunDirectoryError, naming, numbered, write_text
from fedprune.runs.values import strict

Row = dict[str, Any]
"""program, arm, seed, round (1-based: rounds done) and numbers, lists of them, or mappings"""


class MetricsFile:
    """``metrics.jsonl``, a line a round and arm.

    The file is not held open, and no thread writes: what does not fit on the disk is an error of
    the call that writes it.

    Args:
      folder: the run directory.
      programs: whose rows belong there, in their order; None: any.
    """

    def __init__(self, folder: Path, programs: Sequence[str] | None = None) -> None:
        self._programs = programs
        self._path = folder / "metrics.jsonl"
        self._sums: dict[str, list[str]] = {}

    def rows(self) -> list[Row]:
        """All rows so far, as ``read_rows``."""
        return list(read_rows(self._path))

    def readable(self) -> tuple[list[Row], list[int]]:
        """The rows that can be read, and the numbers of the lines that are damaged."""
        rows, damaged = [], []
        for number, row in _lines(self._path):
            if not _is_row(row) or row["program"] not in (self._programs or (row["program"],)):
                damaged.append(number)
            else:
                rows.append(row)
        return rows, damaged

    def checksums(self, program: str) -> list[str]:
        """Those of a program's rows: of what was kept and what was written since."""
        return self._sums.get(program, [])

    def set_aside(self) -> Path:
        """Copies the file as it is into a numbered folder of ``metrics.damaged``; the copy."""
        folder = numbered(self._path.with_suffix(".damaged"))
        return Path(shutil.copy(self._path, folder))

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Drops the rows that are not wanted, and lines that are damaged or cut off."""
        self._replace([row for row in self.readable()[0] if wanted(row)])

    def order(self) -> None:
        """Puts the rows in the order of the programs, in which an unbroken run writes them."""
        rows, programs = self.rows(), list(self._programs or ())
        ordered = sorted(rows, key=lambda row: programs.index(row["program"]))
        if ordered != rows:
            self._replace(ordered)

    def _replace(self, rows: Sequence[Row]) -> None:
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        self._sums = {}
        self._count(rows)

    def _count(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._sums.setdefault(row["program"], []).append(checksum(row))

    def write(self, rows: Iterable[Row]) -> None:
        """Appends rows; on disk when it returns. NaN and infinities become null.

        Raises:
          OSError: a file cannot be written; it is named. Of the rows, some may be there.
        """
        rows = [strict(row, infinities=False) for row in rows]
        with naming(self._path), self._path.open("a", encoding="utf-8") as f:
            f.writelines(json.dumps(row) + "\n" for row in rows)
            f.flush()
            os.fsync(f.fileno())
        self._count(rows)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of ``metrics.jsonl``; none if there is no such file.

    A last line that was cut off, as in a run that is under way or was killed, is left out.

    Raises:
      RunDirectoryError: another line is damaged.
    """
    for number, row in _lines(path):
        if row is None:
            raise RunDirectoryError(f"{path}: line {number} is damaged")
        yield row


def checksum(row: Row) -> str:
    """64 bits of the SHA-256 of a row's line, as 16 digits."""
    return hashlib.sha256(json.dumps(row).encode()).hexdigest()[:16]


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(number from 1, value) of every line but a last one that was cut off; None: no JSON."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines) and not line.endswith(b"\n"):
                return
            row = None
        yield number, row


def _is_row(row: Any) -> bool:
    kinds = {"program": str, "arm": str, "seed": int, "round": int}
    return isinstance(row, dict) and all(type(row.get(k)) is kind for k, kind in kinds.items())
