"""CIFAR-10 in its binary version (Krizhevsky, 2009).

A file is a row of records of 3073 bytes: the class 0-9, then the red, green and blue planes of
32×32 pixels, each row by row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedprune.data.dataset import DataError

FILES = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("test_batch.bin",),
}
FOLDER = "cifar-10-batches-bin"
CLASSES = 10
_RECORD = 1 + 3 * 32 * 32


def folder(root: Path) -> Path | None:
    """Where under ``root`` the files lie: in the archive's own folder, or directly; or None."""
    names = [name for part in FILES.values() for name in part]
    places = (root / FOLDER, root)
    return next((p for p in places if any((p / name).is_file() for name in names)), None)


def read_folder(path: Path) -> dict[str, np.ndarray]:
    """The six files as x_train, x_test [n, 32, 32, 3] uint8 and y_train, y_test [n] uint8.

    Raises:
      DataError: a file that is missing or damaged.
    """
    arrays = {}
    for part, names in FILES.items():
        parts = [read_file(path / name) for name in names]
        arrays[f"x_{part}"] = np.concatenate([x for x, _ in parts])
        arrays[f"y_{part}"] = np.concatenate([y for _, y in parts])
    return arrays


def read_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One file, of any number of records: images [n, 32, 32, 3] uint8 and classes [n] uint8.

    Raises:
      DataError: the file is missing, empty or not a whole number of records, or a class is above 9.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as e:
        raise DataError(f"{path}: missing, but other files of the set are there") from e
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e})") from e
    if not raw or len(raw) % _RECORD:
        raise DataError(f"{path}: {len(raw)} bytes are not a whole number of {_RECORD}-byte images")
    records = np.frombuffer(raw, np.uint8).reshape(-1, _RECORD)
    y = records[:, 0].copy()
    wrong = np.flatnonzero(y >= CLASSES)
    if len(wrong):
        raise DataError(f"{path}: image {wrong[0]} has class {y[wrong[0]]}, but 9 is the highest")
    x = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(x), y
