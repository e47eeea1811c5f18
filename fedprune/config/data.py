"""Examples and who owns them."""

from dataclasses import asdict, dataclass
from typing import Any

import fedprune as fp
from fedprune import paths
from fedprune.config.fields import ConfigError, Kind, free, part, require, spec
from fedprune.data.files import LAYOUTS
from fedprune.data.sources import SOURCES


def _natural(d: Any, dataset: Any) -> Any:
    if dataset.group_train is None or dataset.group_test is None:
        raise ConfigError(
            f"data.partition='natural': {dataset.name} does not say whose its examples are"
        )
    try:
        return fp.data.natural(dataset.group_train, dataset.group_test, d.clients)
    except ValueError as e:
        raise ConfigError(f"data.{e}") from e


PARTITIONS = {
    "iid": Kind(lambda d, dataset: fp.data.iid(d.clients)),
    "dirichlet": Kind(lambda d, dataset: fp.data.dirichlet(d.clients, d.alpha)),
    "label_k": Kind(lambda d, dataset: fp.data.label_k(d.clients, d.classes_per_client)),
    "shards": Kind(lambda d, dataset: fp.data.shards(d.clients, d.shards_per_client)),
    "natural": Kind(_natural),
}
"""name -> (this section, dataset) -> who owns which examples"""


OWN_FILES = tuple(name for name, source in SOURCES.items() if source.own is not None)
"""names of files of the user's"""


@dataclass
class Csv:
    """Of CSV tables."""

    label: str = spec("label", "column of the class")
    client: str = spec(
        "", "column that says whose an example is, for the natural partition; empty: none"
    )
    ignore: tuple[str, ...] = spec((), "columns that are left out")


@dataclass
class Images:
    """Of folders of images."""

    layout: str = spec("class", "what the folders name, from the outermost", choices=LAYOUTS)


@dataclass
class Data:
    """Examples and who owns them."""

    name: str = spec("fashion_mnist_10k", "dataset", choices=SOURCES)
    dir: str = free(
        "",
        "folder of prepared or raw datasets (empty: $FEDPRUNE_DATA), or, for npz, csv and images,"
        " the file or folder itself",
    )
    download: bool = free(False, "whether a set that is not found is downloaded through TFDS")
    test_share: float = spec(
        0.0,
        "share of the examples that is taken out for testing; 0: none where the files have a test"
        " set of their own, else a fifth",
        low=0,
        below=1,
        of=("name", *OWN_FILES),
    )
    test_seed: int = spec(
        0, "seed of that choice", low=0, high=1_000_000_000, of=("name", *OWN_FILES)
    )
    csv: Csv = part("name", Csv)
    images: Images = part("name", Images)
    partition: str = spec(
        "iid", "how the examples are divided among the clients", choices=PARTITIONS
    )
    alpha: float = spec(
        0.3,
        "concentration alpha of the Dirichlet distribution; the smaller, the more the "
        "clients differ",
        above=0,
        high=1e6,
        of=("partition", "dirichlet"),
    )
    classes_per_client: int = spec(
        2, "number of classes that a client has", low=1, high=256, of=("partition", "label_k")
    )
    shards_per_client: int = spec(
        2,
        "number of shards that a client has; a shard is a run of examples sorted by class",
        low=1,
        high=1_000_000,
        of=("partition", "shards"),
    )
    clients: int = spec(20, "number of clients, K", low=1, high=1_000_000)
    examples: int = spec(
        0,
        "number of training examples that are used, from the first; 0: all",
        low=0,
        high=1_000_000_000,
    )

    def options(self) -> dict[str, Any]:
        """What ``data.load`` is given beside name, folder and download."""
        source = SOURCES[self.name]
        if source.own is None:
            return {}
        fields = asdict(getattr(self, source.part)) if source.part else {}
        return {**fields, "test_share": self.test_share or None, "seed": self.test_seed}


def check(c: Any) -> None:
    """Refuses what does not fit."""
    if c.data.name in OWN_FILES:
        how = SOURCES[c.data.name].how
        require(
            c.data.dir != "",
            f"data.dir='': must be the path of {how}, for data.name={c.data.name!r}",
        )
        require(not c.data.download, f"data.download=true: {c.data.name} are files of your own")
    if c.data.dir:
        try:
            paths.local("data.dir", c.data.dir)
        except paths.PathError as error:
            raise ConfigError(str(error)) from error
