"""A run directory: its owner, its configuration, its metrics as JSON lines and TensorBoard."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

Row = dict[str, Any]
"""program, arm, seed, round (1-based: rounds done) and numbers, or lists of them"""


class RunDirectoryError(Exception):
    """A run directory that cannot be used; the message is one line."""


class RunDirectory:
    """One run's files. Holds a lock as long as it is open.

    Raises:
      RunDirectoryError: another process uses it, it belongs to another configuration, or it is not
        empty and not a run directory.
    """

    def __init__(self, path: str | os.PathLike, config: dict[str, Any]) -> None:
        self.path = Path(path)
        file = self.path / "config.json"
        # Through JSON and back, so that tuples compare with the lists they become.
        config = json.loads(json.dumps(config))
        if file.exists():
            difference = _first_difference(json.loads(file.read_text()), config)
            if difference:
                raise RunDirectoryError(
                    f"workdir={self.path}: belongs to another configuration ({difference});"
                    " take a new directory, or run with the old configuration to resume"
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise RunDirectoryError(f"workdir={self.path}: is neither empty nor a run directory")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            self._lock.close()
            raise RunDirectoryError(f"workdir={self.path}: another process is using it") from e
        write_json(file, config)

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Metrics:
    """``metrics.jsonl``, a line a round and arm, and the same numbers as TensorBoard scalars."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "metrics.jsonl"
        self._boards = folder / "tensorboard"
        self._open: dict[str, SummaryWriter] = {}

    def rows(self) -> list[Row]:
        """All rows so far; a last line that was cut off is left out."""
        if not self._path.exists():
            return []
        rows = []
        for line in self._path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Drops the rows that are not wanted, and anything after a damaged line."""
        lines = (json.dumps(row) + "\n" for row in self.rows() if wanted(row))
        _write_atomically(self._path, "".join(lines))

    def write(self, rows: Iterable[Row]) -> None:
        """Appends rows; on disk when it returns. NaN and infinities become null."""
        rows = [{k: _finite(v) for k, v in row.items()} for row in rows]
        with self._path.open("a") as f:
            f.writelines(json.dumps(row) + "\n" for row in rows)
            f.flush()
            os.fsync(f.fileno())
        for row in rows:
            board = self._board(f"{row['arm']}/seed{row['seed']}", row["round"])
            for name, value in row.items():
                number = isinstance(value, int | float)  # neither null nor a histogram
                if number and name not in ("program", "arm", "seed", "round"):
                    board.add_scalar(name, value, row["round"])

    def close(self) -> None:
        for board in self._open.values():
            board.close()
        self._open.clear()

    def _board(self, name: str, first: int) -> SummaryWriter:
        if name not in self._open:
            # What an interrupted run wrote from this round on is void.
            self._open[name] = SummaryWriter(str(self._boards / name), purge_step=first)
        return self._open[name]


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file in one step: readers see the old one or the whole new one."""
    _write_atomically(path, json.dumps(value, indent=2) + "\n")


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _first_difference(old: Any, new: Any, path: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            found = _first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
            if found:
                return found
        return ""
    return "" if old == new else f"{path} was {old!r}, is {new!r}"
