"""Sets that TensorFlow Datasets (the extra ``tfds``) has prepared, read without TensorFlow.

TFDS's data sources read the ``array_record`` format with NumPy and Pillow alone. TFDS writes a
split in the order of md5(split name + key), and its own builders of these sets take an example's
number as its key, so that the original order can be restored: a set read from here and from its raw
files is the same, example by example.

To prepare a set, TFDS's builders encode images with TensorFlow. ``prepare`` replaces the one step
that does: it reads the downloaded files with our readers, and gives Pillow images.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedprune.data import cifar
from fedprune.data.dataset import DataError

FORMAT = "array_record"
RETRIES = 3
"""Of a download that fails."""


def installed() -> bool:
    """Whether TFDS can be imported."""
    return importlib.util.find_spec("tensorflow_datasets") is not None


def builder(name: str, data_dir: str | os.PathLike | None) -> Any:
    """The builder of a set that is prepared in ``data_dir``, its newest version; or None."""
    if data_dir is None or not installed():
        return None
    versions = [info.parent for info in Path(data_dir, name).glob("*/dataset_info.json")]
    if not versions:
        return None
    import tensorflow_datasets as tfds

    newest = max(versions, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])
    return tfds.builder_from_directory(newest)


def read(builder: Any) -> dict[str, np.ndarray]:
    """The images and classes of a prepared set, in their original order.

    Returns:
      x_train, x_test [n, height, width, channels] uint8; y_train, y_test [n] uint8.

    Raises:
      DataError: the set was written in another format, or is damaged.
    """
    arrays = {}
    for part in ("train", "test"):
        try:
            rows = list(builder.as_data_source(part))
        except Exception as e:  # what TFDS raises depends on the format and on what is installed
            raise DataError(
                f"{builder.data_path}: cannot be read without TensorFlow; prepare it with"
                f" file_format='{FORMAT}' ({_one_line(e)})"
            ) from e
        if not rows:
            raise DataError(f"{builder.data_path}: no {part} images")
        if not builder.info.disable_shuffling:
            rows = [rows[i] for i in np.argsort(written_order(part, len(rows)))]
        arrays[f"x_{part}"] = np.stack([np.asarray(row["image"], np.uint8) for row in rows])
        arrays[f"y_{part}"] = np.array([row["label"] for row in rows], np.uint8)
    return arrays


def written_order(split: str, n: int) -> np.ndarray:
    """The order in which TFDS writes examples whose keys are 0 to n - 1.

    Source: ``tensorflow_datasets.core.hashing``, which promises to stay as it is.

    Returns:
      [n], the key of the example at each place.
    """
    return np.array(sorted(range(n), key=lambda i: hashlib.md5(f"{split}{i}".encode()).digest()))


def prepare(name: str, data_dir: str | os.PathLike, read_idx: Callable[[Path], np.ndarray]) -> None:
    """Downloads a set through TFDS and writes it to ``data_dir``, without TensorFlow.

    Args:
      name: mnist, fashion_mnist or cifar10.
      data_dir: where TFDS keeps its sets.
      read_idx: reads an IDX file.

    Raises:
      DataError: TFDS is not installed, or the download failed.
    """
    if not installed():
        raise DataError(f"data.download=true: {name} needs pip install 'fedprune[tfds]'")
    from PIL import Image

    def idx_examples(self: Any, num_examples: int, data_path: Any, label_path: Any) -> Iterator:
        images, labels = read_idx(Path(data_path)), read_idx(Path(label_path))
        for i, (x, y) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": Image.fromarray(x), "label": int(y)}

    def cifar_examples(self: Any, split_prefix: str, filepaths: Any) -> Iterator:
        i = 0
        for path in filepaths:
            for x, y in zip(*cifar.read_file(Path(path)), strict=True):
                record = {"id": f"{split_prefix}{i:05d}", "image": Image.fromarray(x)}
                yield i, {**record, "label": int(y)}
                i += 1

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import tensorflow_datasets as tfds
            from tensorflow_datasets.core.download import downloader

            # Its ten retries with growing pauses last for minutes where there is no network.
            downloader.MAX_RETRIES = min(downloader.MAX_RETRIES, RETRIES)
            logging.getLogger("urllib3").setLevel(logging.ERROR)  # each retry is a warning
            tfds.disable_progress_bar()
            base = {
                "mnist": tfds.image_classification.MNIST,
                "fashion_mnist": tfds.image_classification.FashionMNIST,
                "cifar10": tfds.image_classification.Cifar10,
            }[name]
            body = {
                "_generate_examples": cifar_examples if name == "cifar10" else idx_examples,
                "__module__": base.__module__,
                "name": name,
            }
            with tfds.core.registered.skip_registration():
                subclass = type(base.__name__, (base,), body)
            subclass(data_dir=data_dir, file_format=FORMAT).download_and_prepare()
    except DataError:
        raise
    except Exception as e:  # the network's, the server's, the disk's and TFDS's own
        raise DataError(
            f"data.download=true: {name} could not be downloaded ({type(e).__name__}:"
            f" {_one_line(e)}); put its raw files into {Path(data_dir, name)} instead"
        ) from e


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
