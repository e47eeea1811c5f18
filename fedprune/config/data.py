"""Examples and who owns them."""

from dataclasses import dataclass
from typing import Any

import fedprune as fp
from fedprune import paths
from fedprune.config.fields import ConfigError, Kind, free, spec
from fedprune.data.sources import SOURCES


def _by_group(d: Any, dataset: Any) -> Any:
    if dataset.group_train is None or dataset.group_test is None:
        raise ConfigError(f"data.partition='group': {dataset.name} has no natural groups")
    try:
        return fp.data.by_group(dataset.group_train, dataset.group_test, d.clients)
    except ValueError as e:
        raise ConfigError(f"data.{e}") from e


PARTITIONS = {
    "iid": Kind(lambda d, dataset: fp.data.iid(d.clients)),
    "dirichlet": Kind(lambda d, dataset: fp.data.dirichlet(d.clients, d.alpha)),
    "label_k": Kind(lambda d, dataset: fp.data.label_k(d.clients, d.classes_per_client)),
    "shards": Kind(lambda d, dataset: fp.data.shards(d.clients, d.shards_per_client)),
    "group": Kind(_by_group),
}
"""name -> (this section, dataset) -> who owns which examples"""


@dataclass
class Data:
    """Examples and who owns them."""

    name: str = spec("fashion_mnist_10k", "dataset", choices=SOURCES)
    dir: str = free("", "folder of prepared or raw datasets; empty: $FEDPRUNE_DATA")
    download: bool = free(False, "whether a set that is not found is downloaded through TFDS")
    partition: str = spec("iid", "how examples are split", choices=PARTITIONS)
    alpha: float = spec(
        0.3, "concentration of the partition", above=0, high=1e6, of=("partition", "dirichlet")
    )
    classes_per_client: int = spec(
        2, "classes of a client", low=1, high=256, of=("partition", "label_k")
    )
    shards_per_client: int = spec(
        2, "shards of a client", low=1, high=1_000_000, of=("partition", "shards")
    )
    clients: int = spec(20, "clients in the federation, K", low=1, high=1_000_000)
    examples: int = spec(
        0, "training examples that are used, the first ones; 0: all", low=0, high=1_000_000_000
    )


def check(c: Any) -> None:
    """Refuses what does not fit."""
    if c.data.dir:
        try:
            paths.local("data.dir", c.data.dir)
        except paths.PathError as error:
            raise ConfigError(str(error)) from error
