"""Where datasets come from.

``load(name)`` never swaps one dataset for another, and says in the log which source it took. A set
that ships with the package (``fashion_mnist_10k``) has a name of its own. All others are looked for
in this order, under the root ``data_dir`` or ``$FEDPRUNE_DATA``:

  1. TensorFlow Datasets, if installed (the extra ``tfds``) and prepared there; not for ``bearing``
     and ``tiny_imagenet``
  2. the standard raw files:
       mnist, fashion_mnist   <root>/<name>/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]
       cifar10                <root>/cifar10/[cifar-10-batches-bin/]{data_batch_1..5,test_batch}.bin
       tiny_imagenet          <root>/tiny_imagenet/[tiny-imagenet-200/]{wnids.txt,train,val}
       bearing                <root>/[bearing/]cwru_12k_de_1024.npz
  3. the folder of Debian's package of the set, where there is one
  4. if ``download`` asks for it, the network, through TFDS
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import struct
import zlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np

from fedprune import paths
from fedprune.data import bearing, cifar, prepared, tiny_imagenet
from fedprune.data.dataset import DataError as DataError
from fedprune.data.dataset import Dataset as Dataset
from fedprune.data.dataset import checked

log = logging.getLogger(__name__)

_IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
_DEBIAN = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
_HOW = {
    **dict.fromkeys(
        ("fashion_mnist", "mnist"),
        f"put {_IDX_FILES['x_train']}[.gz] and its three companions into $FEDPRUNE_DATA/{{name}}/",
    ),
    "cifar10": f"put data_batch_1.bin and its five companions into $FEDPRUNE_DATA/{{name}}/"
    f"{cifar.FOLDER}/",
    "tiny_imagenet": f"unpack its archive into $FEDPRUNE_DATA/{{name}}/{tiny_imagenet.FOLDER}/",
    "bearing": f"put {bearing.FILE} into $FEDPRUNE_DATA/{{name}}/",
}
EMBEDDED = ("fashion_mnist_10k",)
DOWNLOADABLE = ("fashion_mnist", "mnist", "cifar10")
NAMES = (*EMBEDDED, *DOWNLOADABLE, "tiny_imagenet", "bearing")


def load(
    name: str, data_dir: str | os.PathLike | None = None, *, download: bool = False
) -> Dataset:
    """Loads a dataset by name.

    Args:
      name: one of ``NAMES``.
      data_dir: where prepared TFDS sets or raw files lie; default ``$FEDPRUNE_DATA``.
      download: whether a set that is nowhere to be found may be downloaded into ``data_dir``
        through TFDS; only those in ``DOWNLOADABLE``.

    Raises:
      DataError: unknown name, nothing found (with how to get it), a failed download, or a damaged
        file.
      PathError: ``data_dir`` is no path of this machine.
    """
    if name not in NAMES:
        raise DataError(f"data.name={name!r} is not one of {', '.join(NAMES)}")
    given = {"data.dir": data_dir, "$FEDPRUNE_DATA": os.environ.get("FEDPRUNE_DATA")}
    root = next((paths.local(where, place) for where, place in given.items() if place), None)
    for source, read in _candidates(name, root):
        log.info("%s: reading %s", name, source)
        return _checked(name, str(source), read())
    how = _HOW[name].format(name=name) + " (or give data.dir)"
    how += ", or apt-get install dataset-fashion-mnist" if name in _DEBIAN else ""
    if not download:
        raise DataError(f"data.name={name!r} was not found: {how}")
    if name not in DOWNLOADABLE:
        raise DataError(f"data.name={name!r} was not found and cannot be downloaded: {how}")
    if not root:
        raise DataError(f"data.download=yes: give data.dir or $FEDPRUNE_DATA to keep {name} in")
    log.info("%s: downloading to %s", name, root)
    prepared.prepare(name, root, read_idx)
    builder = prepared.builder(name, root)
    return _checked(name, f"TFDS {builder.data_path}", prepared.read(builder))


def _candidates(name: str, root: str | os.PathLike | None) -> Iterator:
    if name in EMBEDDED:
        yield f"the package's {name}.npz", lambda: _read_embedded(name)
        return
    if name == "bearing":
        path = bearing.find(Path(root)) if root else None
        if path is not None:
            yield path, lambda: bearing.read_file(path)
        return
    if name == "tiny_imagenet":
        unpacked = tiny_imagenet.folder(Path(root, name)) if root else None
        if unpacked:
            yield unpacked, lambda: tiny_imagenet.read_folder(unpacked)
        return
    builder = prepared.builder(name, root)
    if builder is not None:
        yield f"TFDS {builder.data_path}", lambda: prepared.read(builder)
    if name == "cifar10":
        found = cifar.folder(Path(root, name)) if root else None
        if found:
            yield found, lambda: cifar.read_folder(found)
        return
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
        if x.ndim == 3 and name != "bearing":
            arrays[f"x_{part}"] = x[..., None]
    return checked(Dataset(name, source, **arrays, classes=int(arrays["y_train"].max()) + 1))


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
