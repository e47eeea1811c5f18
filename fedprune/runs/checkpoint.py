"""Checkpoints of a whole state by Orbax: atomic, asynchronous, the newest two kept, with checksums.

Orbax reads most damaged files without complaint, so every leaf is saved with a SHA-256 of its own,
and a state counts only if all of them are right.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils.epath.gpath import PosixGPath

from fedprune import processes
from fedprune.runs import set_aside
from fedprune.types import PyTree

log = logging.getLogger(__name__)

Leaves = Mapping[str, np.ndarray]
"""the leaves of a state by their path, as ``state.params.Dense_0.kernel``; keys as their data"""


Fits = Callable[[int, Sequence[str] | None], None]
"""(rounds done, checksums of the rows; None if there are none)"""


class CheckpointError(Exception):
    """Checkpoints that cannot be read, continued or written; the message is one line."""


class _Folder(PosixGPath):
    """A folder of this machine whose name stands for nothing but itself.

    Orbax's own lists a folder by a pattern that its name is a part of, so that in one with brackets
    it finds nothing of what it has just written; and it takes ``/s3`` for a cloud.
    """

    _uri_scheme = None

    def glob(self, pattern: str) -> Iterator[_Folder]:
        return (self / name for name in glob.glob(pattern, root_dir=self))


class Checkpoints:
    """The checkpoints of one program. One process has them, whatever others there are.

    The first save is read back: a place that does not give back what is written there is found out
    before the run has cost much.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._proved = folder.absolute(), False
        self._folder.mkdir(parents=True, exist_ok=True)
        alone = ocp.options.MultiprocessingOptions(
            primary_host=processes.index(),
            active_processes={processes.index()},
            barrier_sync_key_prefix="fedprune",
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,
            create=False,
            cleanup_tmp_directories=True,
            multiprocessing_options=alone,
        )
        names = ("state", "checksums")
        self._manager = ocp.CheckpointManager(
            _Folder(self._folder), options=options, item_names=names
        )

    def save(self, rounds_done: int, state: PyTree, rows: Sequence[str] = ()) -> None:
        """Saves in the background; a save still under way is waited for first, and so is the first.

        Args:
          rounds_done: that the state has behind it.
          state: any pytree of arrays.
          rows: checksums of the rows that belong to it, which ``restore`` gives back.

        Raises:
          CheckpointError: this save or the one before failed, or the first is not what was saved.
        """
        # Host copies: Orbax writes while the next segment already runs.
        leaves = leaves_of(state)
        about = _about(leaves)
        parts = ocp.args.Composite(
            state=ocp.args.PyTreeSave(leaves),
            checksums=ocp.args.JsonSave(
                {"leaves": about, "rows": list(rows), "sha256": _of_json([about, list(rows)])}
            ),
        )
        try:
            saved = self._manager.save(rounds_done, args=parts)
        except Exception as e:  # Orbax and TensorStore raise many kinds
            raise self._unwritten(e) from e
        assert saved, f"a checkpoint of round {rounds_done} or later exists"
        if not self._proved:
            self._read_back(rounds_done, about, rows)
            self._proved = True

    def restore(self, fits: Fits = lambda rounds_done, rows: None) -> tuple[int, Leaves]:
        """The newest state that is whole, as ``newest``; damaged ones that are newer are moved to a
        numbered folder in FOLDER.damaged.

        Raises:
          CheckpointError: there are states, but none is whole. Nothing is moved or changed then.
        """
        rounds_done, leaves, damaged = self._newest(fits)
        if damaged:
            aside = self._folder.with_name(f"{self._folder.name}.damaged")
            set_aside([self._folder / str(step) for step in damaged], aside)
            self._manager.reload()
        return rounds_done, leaves

    def newest(self, fits: Fits = lambda rounds_done, rows: None) -> tuple[int, Leaves]:
        """The newest state that is whole, with the rounds that it has behind it; 0 and {} if none.

        Damaged states that are newer are reported in a line each. Nothing is moved or changed.

        Args:
          fits: raises a CheckpointError if what else is there does not go with a state.

        Raises:
          CheckpointError: there are states, but none is whole.
        """
        rounds_done, leaves, _ = self._newest(fits)
        return rounds_done, leaves

    def _newest(self, fits: Fits) -> tuple[int, Leaves, list[int]]:
        """And the damaged ones that are newer, by their rounds."""
        faults: dict[int, str] = {}
        for rounds_done in sorted(self._manager.all_steps(), reverse=True):
            try:
                leaves = self._read(rounds_done, fits)
            except Exception as e:  # Orbax and TensorStore raise many kinds
                faults[rounds_done] = f"the checkpoint of round {rounds_done}: {_one_line(e)}"
                continue
            for fault in faults.values():
                log.warning(
                    "%s: %s; taking that of round %d", self._folder.name, fault, rounds_done
                )
            return rounds_done, leaves, list(faults)
        if faults:
            raise CheckpointError(
                f"{self._folder}: no checkpoint is whole: {'; '.join(faults.values())}"
            )
        return 0, {}, []

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
          CheckpointError: the last save failed.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as e:
            raise self._unwritten(e) from e

    def close(self) -> None:
        """Waits, as ``wait``, and ends the threads of Orbax, which can stall the exit."""
        try:
            with contextlib.closing(self._manager):  # which may raise what waiting did not
                self._manager.wait_until_finished()
        except Exception as e:
            raise self._unwritten(e) from e

    def _read_back(self, rounds_done: int, about: Mapping[str, Any], rows: Sequence[str]) -> None:
        def fits(_: int, found: Sequence[str] | None) -> None:
            if found != list(rows):
                raise CheckpointError("its checksums of rows are not those that were saved")

        try:
            self._manager.wait_until_finished()
        except Exception as e:
            raise self._unwritten(e) from e
        try:
            same = _of_json(_about(self._read(rounds_done, fits))) == _of_json(about)
        except Exception as e:  # Orbax and TensorStore raise many kinds
            raise CheckpointError(
                f"{self._folder}: the first checkpoint cannot be read back: {_one_line(e)}"
            ) from e
        if not same:
            raise CheckpointError(f"{self._folder}: the first checkpoint is not what was saved")

    def _read(self, rounds_done: int, fits: Fits) -> Leaves:
        checksums = self._restored(rounds_done, "checksums", ocp.args.JsonRestore())
        about, rows = checksums["leaves"], checksums.get("rows")  # of old, there were none of rows
        if _of_json(about if rows is None else [about, rows]) != checksums["sha256"]:
            raise CheckpointError("its list of checksums is damaged")
        fits(rounds_done, rows)
        leaves = {}
        for name, of in about.items():  # one by one, to know whose file cannot be read
            part = dict.fromkeys(about, ocp.PLACEHOLDER)
            part[name] = np.empty(of["shape"], jnp.dtype(of["dtype"]))
            try:
                found = self._restored(rounds_done, "state", ocp.args.PyTreeRestore(part))
            except Exception as e:
                raise CheckpointError(f"{name} cannot be read ({_one_line(e)})") from e
            leaves[name] = found[name]
            if _of_array(leaves[name]) != of["sha256"]:
                raise CheckpointError(f"{name} is damaged")
        return leaves

    def _restored(self, rounds_done: int, item: str, args: ocp.args.CheckpointArgs) -> Any:
        return self._manager.restore(rounds_done, args=ocp.args.Composite(**{item: args}))[item]

    def _unwritten(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self._folder}: a checkpoint was not written: {_one_line(error)}")


def rebuild(leaves: Leaves, like: PyTree) -> PyTree:
    """Restored leaves in the structure of a state: NumPy arrays, and keys where ``like`` has them.

    Raises:
      CheckpointError: a leaf that is missing, left over or of another shape or type.
    """
    wanted = leaves_of(like)
    for name in (*wanted, *leaves):
        if name not in leaves or name not in wanted:
            raise CheckpointError(f"checkpoint: {name} is in only one of checkpoint and program")
        kinds = [f"{v.dtype}{list(v.shape)}" for v in (leaves[name], wanted[name])]
        if kinds[0] != kinds[1]:
            raise CheckpointError(f"checkpoint: {name} is {kinds[0]}, must be {kinds[1]}")
    values = [
        _as(leaves[name], old) for name, old in zip(wanted, jax.tree.leaves(like), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), values)


def fingerprint(state: PyTree) -> str:
    """One SHA-256 of all leaves, with their paths, shapes and types."""
    return _of_json(_about(leaves_of(state)))


def _about(leaves: Leaves) -> dict[str, dict[str, Any]]:
    return {
        name: {"shape": leaf.shape, "dtype": str(leaf.dtype), "sha256": _of_array(leaf)}
        for name, leaf in leaves.items()
    }


def leaves_of(state: PyTree) -> dict[str, np.ndarray]:
    """A state on the host as it is saved."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): _host(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _host(leaf: jax.Array) -> np.ndarray:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _as(saved: np.ndarray, like: jax.Array) -> jax.Array | np.ndarray:
    if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(saved))
    return saved


def _of_array(leaf: np.ndarray) -> str:
    """SHA-256 of an array's bytes. The list of checksums has shapes and types, and its own SHA."""
    return hashlib.sha256(np.ascontiguousarray(leaf).view(np.uint8).data).hexdigest()


def _of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
