"""Where datasets come from.

``load(name)`` never swaps one dataset for another, and says in the log which source it took. A set
that ships with the package (``fashion_mnist_10k``) has a name of its own. All others are looked for
in this order:

  1. TensorFlow Datasets, if installed (the extra ``tfds``) and prepared in ``data_dir``
  2. the standard raw files under ``data_dir`` or ``$FEDPRUNE_DATA``: <root>/<name>/<files>
  3. the folder of Debian's package of the set, where there is one
"""

from __future__ import annotations

import gzip
import importlib.util
import logging
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

log = logging.getLogger(__name__)

_IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
_DEBIAN = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
EMBEDDED = ("fashion_mnist_10k",)
NAMES = (*EMBEDDED, "fashion_mnist", "mnist")


class Dataset(NamedTuple):
    """A labelled dataset in memory."""

    name: str
    source: str
    """where it was found"""
    x_train: np.ndarray
    """[n, height, width, channels] uint8"""
    y_train: np.ndarray
    """[n] uint8 classes"""
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int


class DataError(Exception):
    """A dataset that is missing or damaged; the message is one line and names the file."""


def load(name: str, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Loads a dataset by name.

    Args:
      name: one of ``NAMES``.
      data_dir: where prepared TFDS sets or raw files lie; default ``$FEDPRUNE_DATA``.

    Raises:
      DataError: unknown name, nothing found (with how to get it), or a damaged file.
    """
    if name not in NAMES:
        raise DataError(f"data.name={name!r} is not one of {', '.join(NAMES)}")
    for source, read in _candidates(name, data_dir):
        log.info("%s: reading %s", name, source)
        return _checked(name, str(source), read())
    raise DataError(
        f"data.name={name!r} was not found: put {_IDX_FILES['x_train']}[.gz] and its three"
        f" companions into $FEDPRUNE_DATA/{name}/ (or give data.dir)"
        + (", or apt-get install dataset-fashion-mnist" if name in _DEBIAN else "")
    )


def _candidates(name: str, data_dir: str | os.PathLike | None) -> Iterator:
    if name in EMBEDDED:
        yield f"the package's {name}.npz", lambda: _read_embedded(name)
        return
    root = data_dir or os.environ.get("FEDPRUNE_DATA")
    builder = _tfds_builder(name, root)
    if builder is not None:
        yield f"TFDS {builder.data_path}", lambda: _read_tfds(builder)
    folders = [Path(root) / name] if root else []
    if name in _DEBIAN:
        folders.append(_DEBIAN[name])
    for folder in folders:
        if any(_idx_path(folder, stem) for stem in _IDX_FILES.values()):
            yield folder, lambda folder=folder: _read_idx_folder(folder)


def _checked(name: str, source: str, arrays: dict[str, np.ndarray]) -> Dataset:
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if len(x) != len(y) or len(x) == 0:
            raise DataError(f"{source}: {len(x)} {part} images but {len(y)} {part} labels")
        if x.ndim == 3:
            arrays[f"x_{part}"] = x[..., None]
    return Dataset(name, source, **arrays, classes=int(arrays["y_train"].max()) + 1)


# Embedded -----


def _read_embedded(name: str) -> dict[str, np.ndarray]:
    with resources.files(__package__).joinpath(f"{name}.npz").open("rb") as f, np.load(f) as npz:
        return {key: npz[key] for key in _IDX_FILES}


# IDX files -----


def _idx_path(folder: Path, stem: str) -> Path | None:
    return next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)


def _read_idx_folder(folder: Path) -> dict[str, np.ndarray]:
    arrays = {}
    for key, stem in _IDX_FILES.items():
        path = _idx_path(folder, stem)
        if path is None:
            raise DataError(f"{folder / stem}[.gz]: missing, but other files of the set are there")
        arrays[key] = read_idx(path)
        if arrays[key].ndim != (3 if key.startswith("x") else 1):
            kind = "images" if key.startswith("x") else "labels"
            raise DataError(f"{path}: {kind} expected, found shape {arrays[key].shape}")
    return arrays


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, plain or gzipped, as an array of its own shape.

    Raises:
      DataError: not such a file, truncated, or longer than its header says.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path}: cannot be read ({e})") from e
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or raw[3] not in (1, 3):
        raise DataError(f"{path}: not an IDX file of unsigned bytes")
    ndim = raw[3]
    if len(raw) < 4 + 4 * ndim:
        raise DataError(f"{path}: truncated within its header ({len(raw)} bytes)")
    shape = struct.unpack(f">{ndim}I", raw[4 : 4 + 4 * ndim])
    expected = 4 + 4 * ndim + math.prod(shape)
    if len(raw) != expected:
        raise DataError(f"{path}: {len(raw)} bytes, but its header announces {expected}")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape)


# TFDS -----


def _tfds_builder(name: str, data_dir: str | os.PathLike | None):
    """The builder of a set that is prepared in ``data_dir``; its newest version."""
    if data_dir is None or importlib.util.find_spec("tensorflow_datasets") is None:
        return None
    versions = [info.parent for info in Path(data_dir, name).glob("*/dataset_info.json")]
    if not versions:
        return None
    import tensorflow_datasets as tfds

    newest = max(versions, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])
    return tfds.builder_from_directory(newest)


def _read_tfds(builder) -> dict[str, np.ndarray]:
    arrays = {}
    for part in ("train", "test"):
        try:
            rows = list(builder.as_data_source(part))
        except Exception as e:  # what TFDS raises depends on the format and on what is installed
            raise DataError(
                f"{builder.data_path}: cannot be read without TensorFlow; prepare it with"
                f" file_format='array_record' ({' '.join(str(e).split())[:200]})"
            ) from e
        arrays[f"x_{part}"] = np.stack([np.asarray(row["image"], np.uint8) for row in rows])
        arrays[f"y_{part}"] = np.array([row["label"] for row in rows], np.uint8)
    return arrays
