"""Files that are written in one step, and folders in which what is old is set aside."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fedprune.runs.values import strict


class RunDirectoryError(Exception):
    """A run directory that cannot be used; the message is one line."""


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file in one step: readers see the old one or the whole new one.

    JSON has no infinities: they are the strings "inf" and "-inf", which ``float`` reads. NaN is
    null.
    """
    write_text(path, json.dumps(strict(value), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file in one step, likewise."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file in one step, likewise. What does not fit on the disk takes no room there."""
    temporary = path.with_name(f".{path.name}.tmp")
    with naming(path):
        try:
            with temporary.open("wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error in it says which file it is about, which a full disk does not."""
    try:
        yield
    except OSError as e:
        e.filename = e.filename or str(path)
        raise


def set_aside(paths: Iterable[Path], folder: Path) -> Path:
    """Moves files into the next numbered folder, and returns it."""
    place = numbered(folder)
    for path in paths:
        path.rename(place / path.name)
    return place


def numbered(folder: Path) -> Path:
    """Makes the next numbered folder, ``folder``/1, /2, ..., and returns it."""
    used = [int(p.name) for p in folder.glob("*") if p.name.isdecimal()]
    place = folder / str(1 + max(used, default=0))
    place.mkdir(parents=True)
    return place
