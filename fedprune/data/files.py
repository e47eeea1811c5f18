"""Files of one's own as a ``Dataset``: an npz file, CSV tables, or folders of images.

A file, or folder of images, without a test set has a share of its examples taken out for testing;
how, how classes and clients are numbered, and how numbers are scaled says ``data.arrays``.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fedprune import paths
from fedprune.data.arrays import from_arrays, in_order
from fedprune.data.dataset import LARGEST, DataError, Dataset

LAYOUTS = ("class", "client/class", "class/client")
"""what the levels of folders above images name"""
_TRAINING = {"x_train": "x", "y_train": "y", "client_train": "client"}
_ENTRIES = ("x", "y", "client", "x_test", "y_test", "client_test")


def read_npz(path: str | os.PathLike, *, test_share: float | None = None, seed: int = 0) -> Dataset:
    """An npz file.

    Its entries are x, y and, where it is known whose each example is, client; with a test set they
    are x_train, y_train, x_test, y_test, and client_train and client_test. Other entries are not
    read. ``from_arrays`` says what they hold.

    Args:
      path: of the file.
      test_share: as for ``from_arrays``.
      seed: as for ``from_arrays``.

    Raises:
      DataError: the file cannot be read, an entry is missing, or as ``from_arrays``.
    """
    file = paths.local("path", path)
    try:
        with file.open("rb") as f, np.load(f, allow_pickle=False) as npz:
            there = list(npz)
            wanted = [name for name in (*_ENTRIES, *_TRAINING) if name in there]
            found = {name: npz[name] for name in wanted}
    except Exception as e:  # a damaged archive raises whatever its decoder stumbles over
        raise DataError(f"{file}: cannot be read ({' '.join(str(e).split())})") from e
    for split, whole in _TRAINING.items():
        if split in found and whole in found:
            raise DataError(f"{file}: has both {whole} and {split}, and either is the training set")
    arrays = {_TRAINING.get(name, name): value for name, value in found.items()}
    for name in ("x", "y"):
        if name not in arrays:
            names = ", ".join(there) or "nothing"
            raise DataError(f"{file}: has no entry {name} or {name}_train, but {names}")
    return from_arrays(**arrays, test_share=test_share, seed=seed, name=file.name)


def _sides(arrays: Mapping[str, np.ndarray], counts: Sequence[int]) -> dict[str, Any]:
    """Arrays over the training and then the test set, as ``from_arrays`` calls those of each."""
    cuts = np.cumsum(counts)[:-1]
    return {
        f"{name}{side}": part
        for name, whole in arrays.items()
        for side, part in zip(("", "_test"), np.split(whole, cuts), strict=False)
    }


# Tables -----


class _Table(NamedTuple):
    file: Path
    names: list[str]
    lines: list[int]
    """in the file, from 1, of every row"""
    rows: list[list[str]]

    def cell(self, row: int, column: str) -> str:
        """Where a cell is and what it holds, for messages."""
        held = self.rows[row][self.names.index(column)]
        return f"{self.file}: line {self.lines[row]}, column {column!r}: {held!r}"

    def column(self, name: str) -> list[str]:
        at = self.names.index(name)
        return [row[at].strip() for row in self.rows]


def read_csv(
    path: str | os.PathLike,
    label: str = "label",
    client: str = "",
    ignore: Sequence[str] = (),
    *,
    test_share: float | None = None,
    seed: int = 0,
) -> Dataset:
    """A table of features, a line an example; examples are [n, features] float32.

    The file is CSV in UTF-8: cells separated by commas, and names of the columns in the first line.
    All columns but those that are named here are features, in the order of the training file, and
    have to hold numbers.

    Args:
      path: of the file, or of a folder with train.csv and test.csv.
      label: the column of the class.
      client: the column that says whose each example is; empty: none does.
      ignore: columns that are left out, such as a number of the line.
      test_share: as for ``from_arrays``.
      seed: as for ``from_arrays``.

    Raises:
      DataError: a file cannot be read or is no such table; a column is missing; a cell is no finite
        number, no class or no client, which is named with its line and column; or as
        ``from_arrays``.
    """
    place = paths.local("path", path)
    files = [place / f"{part}.csv" for part in ("train", "test")] if place.is_dir() else [place]
    tables = [_table(file) for file in files]
    special = [label, *([client] if client else []), *ignore]
    if len(set(special)) < len(special):
        raise DataError(
            f"{place}: label={label!r}, client={client!r} and ignore={tuple(ignore)!r}"
            " must name different columns"
        )
    features = [name for name in tables[0].names if name not in special]
    if not features:
        raise DataError(f"{tables[0].file}: has no column of features beside {', '.join(special)}")
    for table in tables:
        for name in (*special, *features):
            if name not in table.names:
                columns = ", ".join(table.names)
                raise DataError(f"{table.file}: has no column {name!r}, but {columns}")
        for name in table.names:
            if name not in (*special, *features):
                raise DataError(f"{table.file}: has the column {name!r}, which {files[0]} has not")
    arrays = {"x": np.concatenate([_numbers(table, features) for table in tables])}
    arrays["y"] = _keys(tables, label)
    if client:
        arrays["client"] = _keys(tables, client)
    sides = _sides(arrays, [len(table.rows) for table in tables])
    return from_arrays(**sides, test_share=test_share, seed=seed, name=place.name)


def _table(file: Path) -> _Table:
    lines, rows = [], []
    try:
        with file.open(encoding="utf-8-sig", newline="") as f:
            reader = csv.reader(f, strict=True)
            for row in reader:
                if row:
                    lines.append(reader.line_num)
                    rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{file}: cannot be read ({e})") from e
    if len(rows) < 2:
        raise DataError(f"{file}: must have a line of names and at least one of an example")
    names = [name.strip() for name in rows[0]]
    for i, name in enumerate(names):
        if not name or name in names[:i]:
            fault = f"has the name {name!r} again" if name else "has no name (pandas: index=False)"
            raise DataError(f"{file}: column {i + 1} {fault}")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(names):
            raise DataError(
                f"{file}: line {line} has {len(row)} cells, but there are {len(names)} columns"
            )
    return _Table(file, names, lines[1:], rows[1:])


def _numbers(table: _Table, columns: Sequence[str]) -> np.ndarray:
    """[rows, columns] float32."""
    x = np.empty((len(table.rows), len(columns)), np.float32)
    for c, name in enumerate(columns):
        for r, cell in enumerate(table.column(name)):
            number = _number(cell)
            if number is None:
                raise DataError(
                    f"{table.cell(r, name)} is not a number from {-LARGEST:g} to {LARGEST:g};"
                    " ignore leaves columns out"
                )
            x[r, c] = number
    return x


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if abs(number) <= LARGEST else None  # nor is NaN


def _keys(tables: Sequence[_Table], column: str) -> np.ndarray:
    """A column of classes or clients of all tables, all integers or all words."""
    cells = [table.column(column) for table in tables]
    together = [cell for side in cells for cell in side]
    numbers = [_number(cell) for cell in together]
    whole = None not in numbers
    for table, side in zip(tables, cells, strict=True):
        for r, cell in enumerate(side):
            number = _number(cell)
            if cell.lower() in ("", "nan"):
                raise DataError(
                    f"{table.cell(r, column)} is missing, but must be an integer or word"
                )
            if whole and number is not None and not number.is_integer():
                raise DataError(f"{table.cell(r, column)} is not an integer or a word")
    keys = in_order(together)
    if whole and keys.dtype.kind == "U" and all(abs(n or 0) < 2**53 for n in numbers):
        keys = np.array(numbers).astype(np.int64)  # as 1.0
    return keys


# Images -----


def read_images(
    path: str | os.PathLike,
    layout: str = "class",
    *,
    test_share: float | None = None,
    seed: int = 0,
) -> Dataset:
    """Folders of images, [n, height, width, 1 or 3] uint8.

    Images have 8 bits, no transparency and one size, in any format that Pillow reads. If all are
    grey there is one channel; otherwise grey ones count as colour images of equal channels. Files
    whose names begin with a dot are not read.

    Args:
      path: of the folder. If it has the two folders train and test and nothing else, both have the
        layout below.
      layout: what its folders name, one of ``LAYOUTS``: "class", as cat/1.png; "client/class", as
        anna/cat/1.png; or "class/client", as cat/anna/1.png.
      test_share: as for ``from_arrays``.
      seed: as for ``from_arrays``.

    Raises:
      DataError: no such folder, an empty one, a file where a folder is expected or the other way
        round; a file that is no such image, or has another size; or as ``from_arrays``.
    """
    root = paths.local("path", path)
    if layout not in LAYOUTS:
        raise DataError(f"layout={layout!r} is not one of {', '.join(LAYOUTS)}")
    levels = layout.split("/")
    split = {p.name for p in _inside(root)} == {"train", "test"}
    sides = {"": root / "train", "_test": root / "test"} if split else {"": root}
    found = {side: _walk(folder, levels) for side, folder in sides.items()}
    everything = [one for side in found.values() for one in side]
    arrays = {"x": _pixels([file for _, file in everything])}
    for i, level in enumerate(levels):
        key = "y" if level == "class" else level
        arrays[key] = in_order([names[i] for names, _ in everything])
    named = _sides(arrays, [len(side) for side in found.values()])
    return from_arrays(**named, test_share=test_share, seed=seed, name=root.name)


def _inside(folder: Path) -> list[Path]:
    try:
        found = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as e:
        raise DataError(f"{folder}: cannot be read ({e.strerror})") from e
    if not found:
        raise DataError(f"{folder}: is an empty folder")
    return found


def _walk(folder: Path, levels: Sequence[str]) -> list[tuple[tuple[str, ...], Path]]:
    """(the folders above it, file) of every file below so many levels of folders."""
    below = _inside(folder)
    for path in below:
        if path.is_dir() != bool(levels):
            wanted = f"folders of a {levels[0]} each" if levels else "images only"
            raise DataError(f"{path}: is not expected here; {folder} must hold {wanted}")
    if not levels:
        return [((), path) for path in below]
    return [
        ((path.name, *names), file) for path in below for names, file in _walk(path, levels[1:])
    ]


def _pixels(files: Sequence[Path]) -> np.ndarray:
    """[files, height, width, 1 or 3] uint8."""
    images: list[np.ndarray] = []
    for file in files:
        images.append(_image(file))
        if images[-1].shape[:2] != images[0].shape[:2]:
            here, first = (f"{a.shape[1]}×{a.shape[0]}" for a in (images[-1], images[0]))
            raise DataError(f"{file}: has {here} pixels, but {files[0]} has {first}")
    channels = max(image.shape[2] for image in images)
    return np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in images])


def _image(file: Path) -> np.ndarray:
    """[height, width, 1] if it is grey, [height, width, 3] if not, uint8."""
    try:
        with Image.open(file) as image:
            mode = image.mode
            grey = mode in ("1", "L", "LA")
            coloured = image.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise DataError(f"{file}: cannot be read as an image ({e})") from e
    if mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise DataError(f"{file}: has pixels of mode {mode}, but 8-bit grey or RGB is needed")
    pixels = np.asarray(coloured)
    if (pixels[..., 3] < 255).any():
        raise DataError(f"{file}: is transparent in places; save it without transparency")
    return pixels[..., : 1 if grey else 3]
