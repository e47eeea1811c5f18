"""Data: sources, partitions over clients, and arrays for the device.

What a name stands for is imported when it is first used, so that the names of datasets are known
without JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedprune.data.arrays import from_arrays as from_arrays
    from fedprune.data.clients import Federation as Federation
    from fedprune.data.clients import federate as federate
    from fedprune.data.clients import normalisation as normalisation
    from fedprune.data.dataset import DataError as DataError
    from fedprune.data.dataset import Dataset as Dataset
    from fedprune.data.dataset import checked as checked
    from fedprune.data.dataset import first as first
    from fedprune.data.files import read_csv as read_csv
    from fedprune.data.files import read_images as read_images
    from fedprune.data.files import read_npz as read_npz
    from fedprune.data.partition import Partition as Partition
    from fedprune.data.partition import class_counts as class_counts
    from fedprune.data.partition import dirichlet as dirichlet
    from fedprune.data.partition import iid as iid
    from fedprune.data.partition import label_k as label_k
    from fedprune.data.partition import natural as natural
    from fedprune.data.partition import shards as shards
    from fedprune.data.partition import summary as summary
    from fedprune.data.sources import SOURCES as SOURCES
    from fedprune.data.sources import load as load
    from fedprune.data.sources import read_idx as read_idx

_FILES = {
    **dict.fromkeys(
        ("from_arrays",),
        "arrays",
    ),
    **dict.fromkeys(
        (
            "read_csv",
            "read_images",
            "read_npz",
        ),
        "files",
    ),
    **dict.fromkeys(
        (
            "Federation",
            "federate",
            "normalisation",
        ),
        "clients",
    ),
    **dict.fromkeys(
        (
            "DataError",
            "Dataset",
            "checked",
            "first",
        ),
        "dataset",
    ),
    **dict.fromkeys(
        (
            "Partition",
            "class_counts",
            "dirichlet",
            "iid",
            "label_k",
            "natural",
            "shards",
            "summary",
        ),
        "partition",
    ),
    **dict.fromkeys(
        (
            "SOURCES",
            "load",
            "read_idx",
        ),
        "sources",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_FILES})
