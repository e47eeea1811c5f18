"""A run directory: its owner, its configuration and its starts."""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from fedprune.runs.files import RunDirectoryError, set_aside, write_json
from fedprune.runs.values import differences, flat, relabelled

log = logging.getLogger(__name__)
LOCK = ".fedprune.lock"
OLD = "old"
"""folder of what was set aside, numbered"""


class RunDirectory:
    """One run's files. Holds a lock as long as it is open.

    ``config.json`` is the configuration, written last, so that a directory that has it is complete.
    ``run.json`` has the run's id, the run that it was resumed from, and every start with its
    versions, devices, the file of its experiment, its arms and the shape of its data.

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
      identity: name -> checksum of what a run is beside its configuration, such as its data.
        ``run.json`` keeps it, and every start must have the same, as far as both name it.

    Raises:
      RunDirectoryError: another process uses it, it belongs to another configuration or other
        data, it is not empty and not a run directory, it cannot be made, or ``resume_from`` cannot
        be continued. Nothing is written.
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
        identity: Mapping[str, str] | None = None,
    ) -> None:
        self.path, self._identity = Path(path), dict(identity or {})
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
                _same_identity(f"resume_from={source}", source, self._identity)
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

    @property
    def id(self) -> str:
        """The run's, which stays when it is resumed."""
        return read_json(self.path / "run.json")["id"]

    def record(self, environment: dict[str, Any]) -> None:
        """Adds this start to ``run.json``, and logs in what it differs from the one before.

        Raises:
          RunDirectoryError: it differs in its "arithmetic", so that it would go on with other
            numbers. Nothing is written.
        """
        run = read_json(self.path / "run.json")
        moved = list(self._moved)
        apart = dict.fromkeys(("at", "ended", "arithmetic", "experiment", "arms", "data"))
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
        run = read_json(self.path / "run.json")
        run["starts"][-1]["ended"] = _now()
        write_json(self.path / "run.json", run)

    def _check_own(
        self, config: dict[str, Any], source: Path | None, places: Sequence[str]
    ) -> list[str]:
        """In which of ``places`` the configuration differs from the directory's, in words."""
        moved, old = [], read_config(self.path)
        _same_fields(f"workdir={self.path}", old, config)
        for name, text in differences(old, config):
            if name not in places:
                raise RunDirectoryError(
                    f"workdir={self.path}: belongs to another configuration ({text}); take a new"
                    " directory, run with the old configuration to resume, or start over with"
                    " --fresh"
                )
            moved.append(text)
        _same_identity(f"workdir={self.path}", self.path, self._identity)
        if source is not None:
            origin = read_json(self.path / "run.json")["resumed_from"]
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
                "id": read_json(source / "run.json")["id"],
            }
        run: dict[str, Any] = {"id": uuid.uuid4().hex, "resumed_from": origin}
        run |= {"identity": self._identity} if self._identity else {}
        run["starts"] = []
        write_json(self.path / "run.json", run)
        write_json(self.path / "config.json", config)

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_json(path: Path) -> Any:
    """A file of a run directory.

    Raises:
      RunDirectoryError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise RunDirectoryError(f"{path}: cannot be read ({e})") from e


def read_config(folder: Path) -> Any:
    """The configuration of a run directory as plain values, likewise."""
    return relabelled(read_json(folder / "config.json"))


def _same_fields(given: str, old: Any, new: dict[str, Any]) -> None:
    """Refuses what a version with other fields of the configuration has begun."""
    before, now = ({name for name, _ in flat(values, ".")} for values in (old, new))
    for what, names in (("has", before - now), ("has no", now - before)):
        for name in sorted(names):
            raise RunDirectoryError(
                f"{given}: was begun by another version of fedprune (its configuration {what}"
                f" {name}); its report can be made, but to go on takes that version, or a new"
                " directory"
            )


def _same_identity(given: str, folder: Path, identity: Mapping[str, str]) -> None:
    """Refuses what was begun with other data, or another network of the user's."""
    before = read_json(folder / "run.json").get("identity", {})  # runs of older versions have none
    for name in sorted(before.keys() & identity.keys()):
        if before[name] != identity[name]:
            raise RunDirectoryError(
                f"{given}: was begun with another {name}; put that back, take a new directory, or"
                " start over with --fresh"
            )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def foreign(path: Path, ours: Sequence[str] = ()) -> bool:
    """Whether a folder holds anything but ``ours``, and no run: not even one that was killed while
    its directory was made."""
    there = {p.name for p in path.iterdir()} if path.is_dir() else set()
    return bool(there - {*ours}) and LOCK not in there


def _was_run(path: Path) -> bool:
    """Whether a directory has had a start, of which its configuration is older."""
    run = path / "run.json"
    return run.exists() and bool(read_json(run)["starts"])


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
    old = read_config(source)
    _same_fields(given, old, config)
    for name, text in differences(old, config):
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in free):
            raise RunDirectoryError(
                f"{given}: {text}, but only these may differ: {', '.join(free)}"
            )
    return locked((source / LOCK).open(encoding="utf-8"), given)
