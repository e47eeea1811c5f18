"""Vibration of motor bearings with and without faults, in windows of 1024 samples.

The file holds recordings of the drive-end accelerometer of one test rig, at 12 kHz (Case Western
Reserve University Bearing Data Center): a recording for each bearing (no fault; or a fault of the
ball, B, the inner race, IR, or the outer race, OR, of 7 to 28 thousandths of an inch, and for OR
its position on the clock) and each motor load of 0 to 3 horsepower. It was cut into consecutive
windows that do not overlap. Entries of the npz file:

  x        [n, 1024] float32, acceleration
  y        [n] the class: an index into ``classes``
  load     [n] the motor load in horsepower
  classes  [16] the names of the bearings' states

Windows of one recording and load stand together in the order of time. The test set is the last
fifth of every recording, so between training and test signal there is one cut in a recording and
none is shared; a random split would put neighbours of most test windows into training. Both sets
still come from the same physical bearings: accuracy says how well known bearings are told apart,
not how well an unseen one is diagnosed. The file tells loads but no machines apart: the natural
group of a window is its load.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedprune.data.dataset import DataError

FILE = "cwru_12k_de_1024.npz"
TEST_SHARE = 0.2
_ENTRIES = ("x", "y", "load", "classes")


def find(root: Path) -> Path | None:
    """The file in ``root``/bearing or in ``root`` itself, or None."""
    return next((p for p in (root / "bearing" / FILE, root / FILE) if p.is_file()), None)


def read_file(path: Path) -> dict[str, np.ndarray]:
    """The windows, split into training and test set.

    Returns:
      x_train, x_test [n, samples, 1] float32; y_train, y_test [n] uint8; group_train, group_test
      [n] int32, the motor load in horsepower; names, of the classes.

    Raises:
      DataError: the file cannot be read, or its entries are not as described above.
    """
    try:
        with path.open("rb") as f, np.load(f, allow_pickle=False) as npz:
            x, y, load, classes = (npz[name] for name in _ENTRIES)
    except KeyError as e:
        raise DataError(f"{path}: an entry is missing, {', '.join(_ENTRIES)} are needed") from e
    except Exception as e:  # a damaged archive raises whatever its decoder stumbles over
        raise DataError(f"{path}: cannot be read ({' '.join(str(e).split())})") from e
    if x.ndim != 2 or x.dtype != np.float32 or y.shape != x.shape[:1] or load.shape != y.shape:
        shapes = f"{x.dtype} {x.shape}, {y.shape} and {load.shape}"
        raise DataError(
            f"{path}: float32 x [n, samples], y [n] and load [n] expected, not {shapes}"
        )
    if not len(y) or not all(np.issubdtype(a.dtype, np.integer) for a in (y, load)):
        raise DataError(f"{path}: y and load must be integers, and not empty")
    if y.min() < 0 or y.max() >= min(len(classes), 256):
        raise DataError(f"{path}: y must lie between 0 and {len(classes) - 1}")
    if not np.isfinite(x).all():
        raise DataError(f"{path}: x holds values that are not finite")
    is_test = last_of_each(np.stack([y.astype(np.int64), load.astype(np.int64)]), TEST_SHARE)
    arrays = {}
    for part, rows in (("train", ~is_test), ("test", is_test)):
        arrays[f"x_{part}"] = x[rows][..., None]
        arrays[f"y_{part}"] = y[rows].astype(np.uint8)
        arrays[f"group_{part}"] = load[rows].astype(np.int32)
    arrays["names"] = classes
    return arrays


def last_of_each(keys: np.ndarray, share: float) -> np.ndarray:
    """Marks the last round(share · n) examples of every n that have equal keys.

    Args:
      keys: [..., n]; a column names the recording of an example.
      share: of the examples, between 0 and 1.

    Returns:
      [n] booleans.
    """
    marked = np.zeros(keys.shape[-1], bool)
    _, recording = np.unique(keys.reshape(-1, keys.shape[-1]), axis=1, return_inverse=True)
    for r in range(recording.max() + 1):
        mine = np.flatnonzero(recording.ravel() == r)
        marked[mine[len(mine) - round(share * len(mine)) :]] = True
    return marked
