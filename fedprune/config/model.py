"""The network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import fedprune as fp
from fedprune.config.fields import ConfigError, part, require, spec


class Network(NamedTuple):
    """What the name of a network stands for: the line by which one is added."""

    build: Callable[[Any, int, tuple[int, ...]], Any]
    """(its part of the section, classes, shape of an example) -> model"""
    part: str
    """the part of the section that has its fields; empty: it has none"""
    structure: Callable[[Any], Any]
    """params -> the units that can be pruned as a whole, one of ``prune``'s structures"""


@dataclass
class Mlp:
    """A network of dense layers."""

    hidden: tuple[int, ...] = spec(
        (32,), "widths of the hidden dense layers", low=1, high=1_000_000
    )


@dataclass
class Cnn(Mlp):
    """A network of convolution blocks, each with max-pooling, and dense layers."""

    filters: tuple[int, ...] = spec((8, 16), "filters of each convolution block", low=1, high=65536)
    kernel: int = spec(3, "kernel size of the convolutions", low=1, high=15)


@dataclass
class Signal(Cnn):
    """A network of convolutions over time, for vibration signals."""

    stem_kernel: int = spec(64, "kernel size of the first convolution", low=1, high=4096)
    stem_stride: int = spec(8, "stride of the first convolution", low=1, high=4096)


@dataclass
class Resnet:
    """Residual networks."""

    widths: tuple[int, ...] = spec((64, 128, 256, 512), "filters of each stage", low=1, high=65536)
    norm: str = spec(
        "group", "kind of normalisation layer: group norm or batch norm", choices=("group", "batch")
    )
    groups: int = spec(
        32, "number of groups of channels in a group norm", low=1, high=65536, of=("norm", "group")
    )
    stem: str = spec(
        "small",
        "first layer: small, a 3×3 convolution; large, a 7×7 convolution of stride 2 "
        "with max-pooling",
        choices=("small", "large"),
    )
    statistics: str = spec(
        "exchanged",
        "statistics by which the evaluation normalises: exchanged, running statistics "
        "that are sent and averaged with the weights; batch, those of each batch",
        choices=("exchanged", "batch"),
        of=("norm", "batch"),
    )


@dataclass
class Vgg16(Mlp):
    """P3's small VGG16."""

    widths: tuple[int, ...] = spec((64, 128, 256, 512), "filters of each stage", low=1, high=65536)


def _resnet(depth: str) -> Network:
    def build(m: Resnet, classes: int, shape: tuple[int, ...]) -> Any:
        make = getattr(fp.models, depth)
        return make(classes, shape, m.norm, m.groups, m.statistics, m.widths, m.stem)

    return Network(build, "resnet", lambda params: fp.prune.blocks(params))


def _chain(params: Any) -> Any:
    return fp.prune.chain(params)


def _missing(*_: Any) -> Any:
    raise ConfigError(f"model.name={OWN!r}: the experiment's file has no function model")


OWN = "own"
"""the name of the network that the function ``model`` of an experiment's file makes"""

NETWORKS = {
    "mlp": Network(
        lambda m, classes, shape: fp.models.mlp(m.hidden, classes, shape), "mlp", _chain
    ),
    "cnn": Network(
        lambda m, classes, shape: fp.models.cnn(m.filters, m.kernel, m.hidden, classes, shape),
        *("cnn", _chain),
    ),
    "signal": Network(
        lambda m, classes, shape: fp.models.signal(
            m.filters, m.kernel, m.stem_kernel, m.stem_stride, m.hidden, classes, shape
        ),
        *("signal", _chain),
    ),
    "resnet18": _resnet("resnet18"),
    "resnet34": _resnet("resnet34"),
    "vgg16": Network(
        lambda m, classes, shape: fp.models.small_vgg16(m.widths, m.hidden, classes, shape),
        *("vgg16", _chain),
    ),
    OWN: Network(_missing, "", _missing),
}


@dataclass
class Model:
    """The network."""

    name: str = spec(
        "cnn",
        "architecture; own is that of the function model in the experiment's file",
        choices=NETWORKS,
    )
    compute: str = spec(
        "float32",
        "type of activations and products; the weights themselves are float32",
        choices=("float32", "bfloat16"),
    )
    mlp: Mlp = part("name", Mlp)
    cnn: Cnn = part("name", Cnn)
    signal: Signal = part("name", Signal)
    resnet: Resnet = part("name", Resnet)
    vgg16: Vgg16 = part("name", Vgg16)

    def own(self) -> Any:
        """The part with the fields of the network that is chosen; the section if it has none."""
        part = NETWORKS[self.name].part
        return getattr(self, part) if part else self


def check(c: Any) -> None:
    """Refuses what does not fit."""
    m = c.model
    if NETWORKS[m.name].part == "resnet" and m.resnet.norm == "group":
        require(
            all(width % m.resnet.groups == 0 for width in m.resnet.widths),
            f"model.resnet.widths={m.resnet.widths!r}: must be multiples of"
            f" model.resnet.groups={m.resnet.groups}",
        )
    if m.name == "cnn":
        require(
            len(m.cnn.filters) <= 4,
            f"model.cnn.filters={m.cnn.filters!r}: at most 4 blocks, each halves the 28 pixels",
        )
