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

Files of the user's own (``npz``, ``csv``, ``images``) have the path that ``data_dir`` is, and
``data.files`` says what they hold.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedprune import paths
from fedprune.data import bearing, cifar, files, prepared, tiny_imagenet
from fedprune.data.dataset import DataError as DataError
from fedprune.data.dataset import Dataset as Dataset
from fedprune.data.dataset import made

log = logging.getLogger(__name__)

_IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
_IDX = f"put {_IDX_FILES['x_train']}[.gz] and its three companions into $FEDPRUNE_DATA/{{name}}/"


LISTED = 20
"""classes, and clients, of the user's that the log names"""


class Source(NamedTuple):
    """Where a dataset comes from: the line by which one is added."""

    find: Callable[[str, Path | None], Place | None] = lambda name, root: None
    """(name, root) -> its raw files, or None if they are not there"""
    how: str = ""
    """how to get them"""
    prepared: bool = False
    """whether TFDS has it, prepared or to be downloaded"""
    package: Path | None = None
    """folder of Debian's package of the set"""
    own: Callable[..., Dataset] | None = None
    """for files of the user's: (path, options of ``load``) -> dataset; then there is no ``find``"""
    part: str = ""
    """the part of the configuration's section that has the fields of this kind alone"""


Place = tuple[Any, Callable[[], dict[str, np.ndarray]]]
"""(where, what reads the arrays x_train, y_train, x_test and y_test there, and groups if any)"""


def _embedded(name: str, root: Path | None) -> Place:
    return f"the package's {name}.npz", lambda: _read_embedded(name)


def _idx(name: str, root: Path | None) -> Place | None:
    folder = root / name if root else None
    if folder and any(_idx_path(folder, stem) for stem in _IDX_FILES.values()):
        return folder, lambda: _read_idx_folder(folder)
    return None


def _cifar(name: str, root: Path | None) -> Place | None:
    found = cifar.folder(root / name) if root else None
    return (found, lambda: cifar.read_folder(found)) if found else None


def _tiny_imagenet(name: str, root: Path | None) -> Place | None:
    found = tiny_imagenet.folder(root / name) if root else None
    return (found, lambda: tiny_imagenet.read_folder(found)) if found else None


def _bearing(name: str, root: Path | None) -> Place | None:
    found = bearing.find(root) if root else None
    return None if found is None else (found, lambda: bearing.read_file(found))


SOURCES = {
    "fashion_mnist_10k": Source(_embedded),
    "fashion_mnist": Source(_idx, _IDX, True, Path("/usr/share/datasets/fashion-mnist")),
    "mnist": Source(_idx, _IDX, True),
    "cifar10": Source(
        _cifar,
        "put data_batch_1.bin and its five companions into $FEDPRUNE_DATA/{name}/"
        f"{cifar.FOLDER}/",
        True,
    ),
    "tiny_imagenet": Source(
        _tiny_imagenet, f"unpack its archive into $FEDPRUNE_DATA/{{name}}/{tiny_imagenet.FOLDER}/"
    ),
    "bearing": Source(_bearing, f"put {bearing.FILE} into $FEDPRUNE_DATA/{{name}}/"),
    "npz": Source(how="an npz file", own=files.read_npz),
    "csv": Source(
        how="a CSV file, or a folder with train.csv and test.csv", own=files.read_csv, part="csv"
    ),
    "images": Source(
        how="a folder of images, below a folder for each class",
        own=files.read_images,
        part="images",
    ),
}


def load(
    name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    download: bool = False,
    **options: Any,
) -> Dataset:
    """Loads a dataset by name.

    Args:
      name: one of ``SOURCES``.
      data_dir: where prepared TFDS sets or raw files lie; default ``$FEDPRUNE_DATA``. For files of
        your own (npz, csv, images), the file or folder itself.
      download: whether a set that is nowhere to be found may be downloaded into ``data_dir``
        through TFDS; only those that TFDS has.
      options: for files of your own, what ``read_npz``, ``read_csv`` or ``read_images`` takes.

    Raises:
      DataError: unknown name, nothing found (with how to get it), a failed download, or a damaged
        file.
      PathError: ``data_dir`` is no path of this machine.
    """
    if name not in SOURCES:
        raise DataError(f"data.name={name!r} is not one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    if source.own is not None:
        return _own(name, source, data_dir, options)
    for option, value in options.items():
        raise DataError(f"{option}={value!r}: means nothing for data.name={name!r}")
    given = {"data.dir": data_dir, "$FEDPRUNE_DATA": os.environ.get("FEDPRUNE_DATA")}
    root = next((paths.local(where, place) for where, place in given.items() if place), None)
    for place, read in _candidates(name, root):
        log.info("%s: reading %s", name, place)
        return made(name, str(place), read())
    how = source.how.format(name=name) + " (or give data.dir)"
    how += f", or apt-get install dataset-{source.package.name}" if source.package else ""
    if not download:
        raise DataError(f"data.name={name!r} was not found: {how}")
    if not source.prepared:
        raise DataError(f"data.name={name!r} was not found and cannot be downloaded: {how}")
    if not root:
        raise DataError(f"data.download=true: give data.dir or $FEDPRUNE_DATA to keep {name} in")
    log.info("%s: downloading to %s", name, root)
    prepared.prepare(name, root, read_idx)
    builder = prepared.builder(name, root)
    return made(name, f"TFDS {builder.data_path}", prepared.read(builder))


def _own(
    name: str, source: Source, path: str | os.PathLike | None, options: dict[str, Any]
) -> Dataset:
    if not path:
        raise DataError(f"data.dir='': must be the path of {source.how}, for data.name={name!r}")
    assert source.own is not None
    dataset = source.own(paths.local("data.dir", path), **options)
    for what, names in (("classes", dataset.names), ("clients", dataset.group_names)):
        if names is not None:
            said = ", ".join(f"{i} = {word}" for i, word in enumerate(names[:LISTED]))
            more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
            log.info("%s: %s %s%s", path, what, said, more)
    return dataset


def _candidates(name: str, root: Path | None) -> Iterator[Place]:
    source = SOURCES[name]
    builder = prepared.builder(name, root) if source.prepared else None
    if builder is not None:
        yield f"TFDS {builder.data_path}", lambda: prepared.read(builder)
    found = source.find(name, root)
    if found:
        yield found
    if source.package and any(_idx_path(source.package, stem) for stem in _IDX_FILES.values()):
        package = source.package
        yield package, lambda: _read_idx_folder(package)


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
