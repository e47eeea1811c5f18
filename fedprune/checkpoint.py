"""Checkpoints of a whole state by Orbax: atomic, asynchronous, the newest two kept."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from fedprune.types import PyTree


class Checkpoints:
    """The checkpoints of one program."""

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest(self) -> int:
        """The newest round that was saved; 0 if none was."""
        return self._manager.latest_step() or 0

    def save(self, rounds_done: int, state: PyTree) -> None:
        """Saves in the background; a save still under way is waited for first."""
        # Host copies: Orbax writes while the next segment already runs.
        self._manager.save(rounds_done, args=ocp.args.StandardSave(jax.tree.map(_host, state)))

    def restore(self, rounds_done: int, like: PyTree) -> PyTree:
        """The state saved after so many rounds, as NumPy arrays and keys shaped like ``like``."""
        target = jax.tree.map(_host, like)
        restored = self._manager.restore(rounds_done, args=ocp.args.StandardRestore(target))
        return jax.tree.map(_as, restored, like)

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def _host(leaf: jax.Array) -> np.ndarray:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _as(saved: np.ndarray, like: jax.Array) -> jax.Array | np.ndarray:
    if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(saved))
    return saved
