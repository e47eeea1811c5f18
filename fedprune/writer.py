"""A run directory: its owner, its configuration, its starts, its metrics as JSON lines and
TensorBoard."""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import json
import logging
import math
import os
import shutil
import socket
import struct
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

log = logging.getLogger(__name__)

LOCK = ".fedprune.lock"
OLD = "old"
"""folder of what was set aside, numbered"""

Row = dict[str, Any]
"""program, arm, seed, round (1-based: rounds done) and numbers, lists of them, or mappings"""


class RunDirectoryError(Exception):
    """A run directory that cannot be used; the message is one line."""


class RunDirectory:
    """One run's files. Holds a lock as long as it is open.

    ``config.json`` is the configuration, written last, so that a directory that has it is complete.
    ``run.json`` has the run's id, the run that it was resumed from, and every start with its
    versions, devices and the file of its experiment.

    Args:
      path: a run directory, an empty one, or one to be made.
      config: the whole configuration, as plain values.
      fresh: what the directory holds is moved to a numbered folder under ``old`` first.
      resume_from: a run directory; its checkpoints and metrics are copied into a new one, where the
        run goes on from them. It is not changed. Given again to a directory that was begun in this
        way, it does nothing.
      free: patterns of the paths in which ``resume_from``'s configuration may differ.
      places: paths that say on which devices a run computes, and not what. In these a start may
        differ from the one before; ``config.json`` has the last one's.

    Raises:
      RunDirectoryError: another process uses it, it belongs to another configuration, it is not
        empty and not a run directory, it cannot be made, or ``resume_from`` cannot be continued.
        Nothing is written.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        config: dict[str, Any],
        *,
        fresh: bool = False,
        resume_from: str | os.PathLike | None = None,
        free: Sequence[str] = (),
        places: Sequence[str] = (),
    ) -> None:
        self.path = Path(path)
        file = self.path / "config.json"
        # Through JSON and back, so that tuples compare with the lists they become.
        self._config = config = relabelled(json.loads(json.dumps(config)))
        source = None if resume_from is None else Path(resume_from)
        begun = file.exists() and not fresh
        self._moved: list[str] = []
        if begun:
            self._moved = self._check_own(config, source, places)
        elif not file.exists() and foreign(self.path):
            raise RunDirectoryError(f"workdir={self.path}: is neither empty nor a run directory")
        elif not fresh and not file.exists() and _was_run(self.path):
            raise RunDirectoryError(
                f"workdir={self.path}: holds a run, but no config.json that says which; put"
                " it back, take a new directory, or start over with --fresh"
            )
        with contextlib.ExitStack() as stack:
            if source is not None and not begun:
                stack.enter_context(_open_source(source, self.path, config, free))
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock = (self.path / LOCK).open("w", encoding="utf-8")
            except OSError as e:
                raise RunDirectoryError(f"workdir={self.path}: cannot be used ({e})") from e
            self._lock = locked(lock, f"workdir={self.path}")
            if not begun:
                try:
                    self._begin(config, source)
                except BaseException:
                    self.close()
                    raise

    def record(self, environment: dict[str, Any]) -> None:
        """Adds this start to ``run.json``, and logs in what it differs from the one before.

        Raises:
          RunDirectoryError: it differs in its "arithmetic", so that it would go on with other
            numbers. Nothing is written.
        """
        run = _read_json(self.path / "run.json")
        moved = list(self._moved)
        apart = dict.fromkeys(("at", "ended", "arithmetic", "experiment"))
        arithmetic = environment.get("arithmetic")
        for last in run["starts"][-1:]:
            for _, text in differences(last.get("arithmetic", arithmetic), arithmetic):
                raise RunDirectoryError(
                    f"workdir={self.path}: was begun with other arithmetic ({text}); set that back,"
                    " take a new directory, or start over with --fresh"
                )
            moved += [t for _, t in differences({**last, **apart}, {**environment, **apart})]
            before, now = (start.get("experiment") for start in (last, environment))
            if before and now and before["sha256"] != now["sha256"]:
                log.warning(
                    "resuming with another %s: the experiment's file has changed since the last"
                    " start (its configuration and arms are checked, its report is not)",
                    now["file"] or now["name"],
                )
        for text in moved:
            log.warning("resuming elsewhere: %s; numbers may differ in their last bits", text)
        if self._moved:
            write_json(self.path / "config.json", self._config)
        run["starts"].append({"at": _now(), **environment})
        write_json(self.path / "run.json", run)

    def ended(self) -> None:
        """Says in ``run.json`` when the start that was recorded last came to its end.

        A start that was killed has no end there.
        """
        run = _read_json(self.path / "run.json")
        run["starts"][-1]["ended"] = _now()
        write_json(self.path / "run.json", run)

    def _check_own(
        self, config: dict[str, Any], source: Path | None, places: Sequence[str]
    ) -> list[str]:
        """In which of ``places`` the configuration differs from the directory's, in words."""
        moved = []
        for name, text in differences(_read_config(self.path), config):
            if name not in places:
                raise RunDirectoryError(
                    f"workdir={self.path}: belongs to another configuration ({text}); take a new"
                    " directory, run with the old configuration to resume, or start over with"
                    " --fresh"
                )
            moved.append(text)
        if source is not None:
            origin = _read_json(self.path / "run.json")["resumed_from"]
            if origin is None or origin["path"] != str(source.resolve()):
                raise RunDirectoryError(
                    f"workdir={self.path}: holds a run that was not begun with"
                    f" resume_from={source}; take a new directory, or start over with --fresh"
                )
        return moved

    def _begin(self, config: dict[str, Any], source: Path | None) -> None:
        there = [p for p in sorted(self.path.iterdir()) if p.name not in (LOCK, OLD)]
        if there:
            # The configuration last: until then the directory is the old run's.
            there.sort(key=lambda p: p.name == "config.json")
            log.info("what was there is now in %s", set_aside(there, self.path / OLD))
        origin = None
        if source is not None:
            damaged = shutil.ignore_patterns("*.damaged")
            shutil.copytree(source / "checkpoints", self.path / "checkpoints", ignore=damaged)
            shutil.copy(source / "metrics.jsonl", self.path)
            origin = {
                "path": str(source.resolve()),
                "id": _read_json(source / "run.json")["id"],
            }
        run: dict[str, Any] = {"id": uuid.uuid4().hex, "resumed_from": origin, "starts": []}
        write_json(self.path / "run.json", run)
        write_json(self.path / "config.json", config)

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Metrics:
    """``metrics.jsonl``, a line a round and arm, and the same numbers as TensorBoard scalars.

    No file is held open, and no thread writes: what does not fit on the disk is an error of the
    call that writes it.

    Args:
      folder: the run directory.
      programs: whose rows belong there, in their order; None: any.
    """

    def __init__(self, folder: Path, programs: Sequence[str] | None = None) -> None:
        self._programs = programs
        self._path = folder / "metrics.jsonl"
        self._boards = folder / "tensorboard"
        self._begun: dict[str, Path] = {}
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
        rows = [{k: _finite(v) for k, v in row.items()} for row in rows]
        with _naming(self._path), self._path.open("a", encoding="utf-8") as f:
            f.writelines(json.dumps(row) + "\n" for row in rows)
            f.flush()
            os.fsync(f.fileno())
        self._count(rows)
        boards: dict[str, list[Row]] = {}
        for row in rows:
            boards.setdefault(f"{row['arm']}/seed{row['seed']}", []).append(row)
        for name, mine in boards.items():
            self._show(name, mine)

    def _show(self, name: str, rows: Sequence[Row]) -> None:
        """Appends rows of one arm and seed to its file of TensorBoard events."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        now, events = time.time(), []
        if name not in self._begun:
            host = socket.gethostname()
            self._begun[name] = self._boards / name / f"events.out.tfevents.{now:.6f}.{host}"
            events.append(Event(wall_time=now, file_version="brain.Event:2"))
            # What an interrupted run wrote from this round on is void.
            start = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=now, step=rows[0]["round"], session_log=start))
        for row in rows:
            for column, value in flat(row):
                number = isinstance(value, int | float)  # neither null nor a histogram
                if number and column not in ("program", "arm", "seed", "round"):
                    shown = scalar(column, value)
                    events.append(Event(wall_time=now, step=row["round"], summary=shown))
        file = self._begun[name]
        with _naming(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab") as f:
                f.writelines(_record(event.SerializeToString()) for event in events)


def _record(data: bytes) -> bytes:
    """One record of a TFRecord file, which TensorBoard reads."""
    from tensorboardX.record_writer import masked_crc32c

    size = struct.pack("<Q", len(data))
    sums = [struct.pack("<I", masked_crc32c(part)) for part in (size, data)]
    return size + sums[0] + data + sums[1]


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


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file in one step: readers see the old one or the whole new one.

    JSON has no infinities: they are the strings "inf" and "-inf", which ``float`` reads. NaN is
    null.
    """
    write_text(path, json.dumps(_strict(value), indent=2, allow_nan=False) + "\n")


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(float(value))
    return value


def write_text(path: Path, text: str) -> None:
    """Writes a file in one step, likewise."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file in one step, likewise. What does not fit on the disk takes no room there."""
    temporary = path.with_name(f".{path.name}.tmp")
    with _naming(path):
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
def _naming(path: Path) -> Iterator[None]:
    """An error in it says which file it is about, which a full disk does not."""
    try:
        yield
    except OSError as e:
        e.filename = e.filename or str(path)
        raise


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flat(row: Row, above: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of every column; values in a mapping are named "column/key"."""
    for name, value in row.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{name}/")
        else:
            yield f"{above}{name}", value


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise RunDirectoryError(f"{path}: cannot be read ({e})") from e


def _read_config(folder: Path) -> Any:
    return relabelled(_read_json(folder / "config.json"))


def relabelled(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration, as plain values, in which an experiment is called by its file's name alone.

    Up to version 0.1 it was the module ``experiments.NAME``. A program of several trials has its
    configuration under the key "config".
    """
    if isinstance(config.get("config"), dict):
        return config | {"config": relabelled(config["config"])}
    if "experiment" not in config:
        return config
    return config | {"experiment": str(config["experiment"]).removeprefix("experiments.")}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


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


def foreign(path: Path, ours: Sequence[str] = ()) -> bool:
    """Whether a folder holds anything but ``ours``, and no run: not even one that was killed while
    its directory was made."""
    there = {p.name for p in path.iterdir()} if path.is_dir() else set()
    return bool(there - {*ours}) and LOCK not in there


def _was_run(path: Path) -> bool:
    """Whether a directory has had a start, of which its configuration is older."""
    run = path / "run.json"
    return run.exists() and bool(_read_json(run)["starts"])


def locked(file: IO[str], owner: str) -> IO[str]:
    """A file of which this process has the lock for as long as it is open.

    A file that is only read is locked against writers alone. Where the file system has no locks, as
    Lustre without its option for them, a warning says so.

    Raises:
      RunDirectoryError: another process has it.
    """
    kind = fcntl.LOCK_EX if file.writable() else fcntl.LOCK_SH  # NFS locks as the file is opened
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as e:
        file.close()
        raise RunDirectoryError(f"{owner}: another process is using it") from e
    except OSError as e:
        log.warning(
            "%s: its file system has no locks (%s); nothing keeps a second process out of it",
            *(owner, e.strerror),
        )
    return file


def _open_source(source: Path, path: Path, config: dict[str, Any], free: Sequence[str]) -> IO[str]:
    """The lock of a run directory whose states ``config`` can go on from."""
    given = f"resume_from={source}"
    for name in (LOCK, "config.json", "run.json", "metrics.jsonl", "checkpoints"):
        if not (source / name).exists():
            raise RunDirectoryError(f"{given}: is not a run directory with checkpoints (no {name})")
    if source.resolve() == path.resolve():
        raise RunDirectoryError(f"{given}: must be another directory than workdir={path}")
    for name, text in differences(_read_config(source), config):
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in free):
            raise RunDirectoryError(
                f"{given}: {text}, but only these may differ: {', '.join(free)}"
            )
    return locked((source / LOCK).open(encoding="utf-8"), given)


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, the same in words) of every value that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, f"{path} was {old!r}, is {new!r}"
