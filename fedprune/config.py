"""Configurations: nested dataclasses whose every field knows its range, and how to say so.

Nothing here needs a device, so a bad value is refused before one is touched. What the fields build
is in ``build``. A field marked ``traced`` is numeric and may differ between the arms
of one compiled program; all others are part of the program's shape.
"""

import copy
import dataclasses
import difflib
import inspect
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from fedprune import paths


class ConfigError(ValueError):
    """A bad configuration; one line that names the field, its value and what is allowed."""


def spec(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    unit: str = "",
    traced: bool = False,
) -> Any:
    """A field with its meaning, unit and range: low <= value <= high, above < value < below."""
    limits = {"low": low, "high": high, "above": above, "below": below, "choices": choices}
    words = {"meaning": meaning, "unit": unit, "traced": traced}
    return field(default=default, metadata={**words, **limits})


@dataclass
class Data:
    """Examples and who owns them."""

    name: str = spec(
        "fashion_mnist_10k",
        "dataset",
        choices=(
            "fashion_mnist_10k",
            "fashion_mnist",
            "mnist",
            "cifar10",
            "tiny_imagenet",
            "bearing",
        ),
    )
    dir: str = spec("", "folder of prepared or raw datasets; empty: $FEDPRUNE_DATA")
    download: str = spec(
        "no", "whether a set that is not found is downloaded through TFDS", choices=("no", "yes")
    )
    partition: str = spec(
        "iid",
        "how examples are split",
        choices=("iid", "dirichlet", "label_k", "shards", "group"),
    )
    alpha: float = spec(0.3, "concentration of the Dirichlet partition", above=0, high=1e6)
    classes_per_client: int = spec(2, "classes of a client (label_k)", low=1, high=256)
    shards_per_client: int = spec(2, "shards of a client (shards)", low=1, high=1_000_000)
    clients: int = spec(20, "clients in the federation, K", low=1, high=1_000_000)
    examples: int = spec(
        0, "training examples that are used, the first ones; 0: all", low=0, high=1_000_000_000
    )


@dataclass
class Model:
    """The network."""

    name: str = spec(
        "cnn", "architecture", choices=("cnn", "mlp", "signal", "resnet18", "resnet34", "vgg16")
    )
    filters: tuple[int, ...] = spec(
        (8, 16), "filters of each convolution block (cnn, signal)", low=1, high=65536
    )
    kernel: int = spec(3, "kernel size of the convolutions (cnn, signal)", low=1, high=15)
    stem_kernel: int = spec(64, "taps of the first convolution (signal)", low=1, high=4096)
    stem_stride: int = spec(8, "stride of the first convolution (signal)", low=1, high=4096)
    hidden: tuple[int, ...] = spec(
        (32,), "widths of the hidden dense layers", low=1, high=1_000_000
    )
    widths: tuple[int, ...] = spec(
        (64, 128, 256, 512), "filters of each stage (resnet, vgg16)", low=1, high=65536
    )
    norm: str = spec("group", "normalisation (resnet)", choices=("group", "batch"))
    groups: int = spec(32, "groups of channels (group norm)", low=1, high=65536)
    stem: str = spec(
        "small",
        "3×3 convolution, or 7×7 of stride 2 with max-pooling (resnet)",
        choices=("small", "large"),
    )
    statistics: str = spec(
        "exchanged",
        "what the evaluation normalises by (batch norm): running statistics that are trained, sent"
        " and averaged with the weights, or each batch's own",
        choices=("exchanged", "batch"),
    )
    compute: str = spec(
        "float32",
        "type of activations and products; the weights themselves are float32",
        choices=("float32", "bfloat16"),
    )


@dataclass
class Local:
    """Local training."""

    optimizer: str = spec("momentum", "local optimizer", choices=("sgd", "momentum", "adam"))
    lr: float = spec(0.1, "learning rate", low=0, high=1e3, traced=True)
    momentum: float = spec(0.9, "momentum (momentum only)", low=0, below=1, traced=True)
    steps: int = spec(5, "steps a round, or 0 to use epochs", low=0, high=1_000_000)
    epochs: int = spec(0, "epochs a round, or 0 to use steps", low=0, high=100_000)
    batch: int = spec(32, "examples a step", low=1, high=1_000_000)
    microbatch: int = spec(
        0,
        "examples whose gradients are computed at once; 0: what suits network and backend",
        low=0,
        high=1_000_000,
    )
    prox: float = spec(0.0, "mu of FedProx's proximal term; 0: none", low=0, high=1e6, traced=True)
    weight_decay: float = spec(
        0.0, "factor on kernels that is added to their gradient", low=0, high=1e3, traced=True
    )
    clip: float = spec(0.0, "largest norm of the gradient; 0: no clipping", low=0, high=1e30)
    schedule: str = spec(
        "constant",
        "learning rate against the round",
        choices=("constant", "cosine", "exponential", "step"),
    )
    schedule_end: float = spec(
        0.01,
        "share of the learning rate left in the last round (cosine, exponential)",
        low=0,
        high=1,
        traced=True,
    )
    schedule_every: int = spec(
        100, "rounds between drops (step)", low=1, high=10_000_000, traced=True
    )
    schedule_factor: float = spec(
        0.1, "factor on the learning rate at each drop (step)", low=0, high=1, traced=True
    )


@dataclass
class Cohort:
    """Participation."""

    size: int = spec(0, "clients a round, S, drawn anew every round; 0: all", low=0, high=1_000_000)
    weighting: str = spec(
        "examples",
        "how clients count in means: by their number of examples, or all the same",
        choices=("examples", "plain"),
    )


@dataclass
class Personal:
    """What clients keep to themselves."""

    method: str = spec(
        "none",
        "nothing; layers trained before the global ones (FedAlt) or with them (FedSim); a whole"
        " model pulled towards the global one (Ditto); or the model that local training makes of"
        " the global one (fine-tuning)",
        choices=("none", "alternating", "simultaneous", "ditto", "tuned"),
    )
    layers: tuple[str, ...] = spec(
        (), "parts of the paths of personal layers, such as Conv (alternating, simultaneous)"
    )
    lr: float = spec(
        0.1, "learning rate of what is personal (not: tuned)", low=0, high=1e3, traced=True
    )
    steps: int = spec(5, "steps a round (alternating, ditto)", low=1, high=1_000_000)
    pull: float = spec(
        0.1, "lambda of Ditto's pull towards the global model", low=0, high=1e6, traced=True
    )


@dataclass
class Edges:
    """Edge servers between the clients and the cloud."""

    servers: int = spec(0, "edge servers, G; 0: clients talk to the cloud", low=0, high=100_000)
    rounds: int = spec(5, "edge rounds in a round of the cloud, E", low=1, high=100_000)
    sizes: tuple[int, ...] = spec(
        (), "clients of each edge server; none: as equal as can be", low=0, high=1_000_000
    )
    cloud: str = spec(
        "ideal",
        "link from the edge servers to the cloud, once a round of the cloud: perfect and free; or"
        " bits, in channel uses of each server's own",
        choices=("ideal", "orthogonal"),
    )
    cloud_snr_db: float = spec(
        20.0, "P / no at the cloud (orthogonal)", low=-100, high=200, unit="dB", traced=True
    )
    cloud_rate: float = spec(
        0.0, "rate (orthogonal); 0: capacity", low=0, high=100, unit="bits/channel use"
    )
    cloud_value_bits: int = spec(32, "size of a weight (orthogonal)", low=2, high=32, unit="bits")
    cloud_power: float = spec(
        1.0, "power budget of an edge server", above=0, high=1e9, unit="W", traced=True
    )
    cloud_bandwidth: float = spec(
        1e6, "bandwidth to the cloud", above=0, high=1e12, unit="channel uses/s", traced=True
    )


@dataclass
class Pruning:
    """Masks."""

    schedule: str = spec(
        "none",
        "sparsity against the round",
        choices=("none", "one_shot", "iterative", "linear", "cubic", "allocated"),
    )
    ratio: float = spec(0.9, "final share of prunable weights pruned", low=0, high=1, traced=True)
    start: int = spec(4, "round of the first pruning step", low=0, high=10_000_000, traced=True)
    every: int = spec(3, "rounds between pruning steps", low=1, high=10_000_000, traced=True)
    steps: int = spec(5, "pruning steps, n", low=1, high=10_000_000, traced=True)
    layers: str = spec(
        "all", "which kernels are prunable: all, or fully connected ones", choices=("all", "dense")
    )
    distribution: str = spec("global", "ranking of weights", choices=("global", "layer"))
    granularity: str = spec(
        "weight",
        "what is pruned as a whole: a weight; a unit, which is a filter or a neuron with all its"
        " weights (P3); or a neuron of a fully connected layer, by clients' own masks, P2 (3)",
        choices=("weight", "unit", "neuron"),
    )
    form: str = spec(
        "derived",
        "which share of each layer's neurons stays (neuron): sqrt(1 - ratio), which prunes the"
        " ratio of the weights; or the ratio itself, as printed in P2 (3)",
        choices=("derived", "printed"),
    )
    scope: str = spec(
        "server",
        "what the round's mask applies to: the global model, or what clients receive; own: clients"
        " decide masks of their own",
        choices=("server", "client", "own"),
    )
    warm_up: int = spec(
        1, "steps before a client decides its own mask, beside local", low=1, high=1_000_000
    )
    importance: str = spec(
        "magnitude",
        "what a client's own mask keeps: large weights, or weights that the warm-up changed much",
        choices=("magnitude", "change"),
    )
    rewind: str = spec(
        "no",
        "whether own masks are followed by the weights received, instead of the warmed-up ones",
        choices=("no", "yes"),
    )


@dataclass
class Uplink:
    """How updates reach the server."""

    link: str = spec(
        "over_the_air",
        "kind of uplink; orthogonal: bits, analog: symbols, both in channel uses of each client's"
        " own",
        choices=("ideal", "over_the_air", "orthogonal", "analog", "ofdma"),
    )
    code: str = spec(
        "repetition",
        "how a weight becomes symbols (over_the_air, analog); spirals do not add up on the air",
        choices=("repetition", "spiral"),
    )
    repeats: int = spec(1, "symbols a weight (over_the_air, analog)", low=1, high=64)
    bitstream: str = spec(
        "fixed",
        "bits of rounded values (orthogonal): value_bits each, or what an entropy coder takes",
        choices=("fixed", "entropy"),
    )
    rate: float = spec(
        0.0, "rate (orthogonal); 0: capacity", low=0, high=100, unit="bits/channel use"
    )
    value_bits: int = spec(
        32, "size of a weight (orthogonal: at most 32; ofdma)", low=2, high=64, unit="bits"
    )
    snr_db: float = spec(
        10.0, "P / no, no per complex symbol", low=-100, high=200, unit="dB", traced=True
    )
    normalisation: str = spec(
        "receiver",
        "power control, which decides what the SNR refers to",
        choices=("none", "common", "device", "receiver"),
    )
    packing: str = spec("complex", "weights per symbol: two or one", choices=("complex", "real"))
    fading: str = spec("none", "small-scale fading", choices=("none", "rayleigh", "rician"))
    rician: float = spec(
        3.0, "line of sight over scattered power (rician)", low=0, high=1e6, traced=True
    )
    antennas: int = spec(1, "receive antennas", low=1, high=4096)
    blocks: int = spec(
        1,
        "blocks of symbols that fade together in a round, such as subcarriers (over_the_air,"
        " orthogonal)",
        low=1,
        high=4096,
    )
    taps: int = spec(
        1,
        "paths of equal power that the blocks' channels are the spectrum of; 1: all blocks fade"
        " alike, as many as blocks: each by itself",
        low=1,
        high=4096,
    )
    correlation: float = spec(
        0.0,
        "of a client's scattered paths from one round to the next; 0: drawn anew",
        low=0,
        below=1,
    )
    csi_error: float = spec(
        0.0,
        "variance of the channel estimate's error, relative to the gain",
        low=0,
        high=1e3,
        traced=True,
    )
    threshold: float = spec(
        0.0,
        "clients with an estimated power gain below this stay silent",
        low=0,
        high=1e6,
        traced=True,
    )
    nearest: float = spec(
        0.0, "distance of the nearest client; 0: no path loss", low=0, high=1e8, unit="m"
    )
    farthest: float = spec(0.0, "distance of the farthest client", low=0, high=1e8, unit="m")
    division: str = spec(
        "all",
        "what the sum of updates with different masks is divided by: all clients, or the holders of"
        " each weight, counted by a second transmission",
        choices=("all", "holders"),
    )
    min_holders: float = spec(
        0.5,
        "fewest holders, in clients of mean weight at the largest server (holders); up to 1,"
        " anybody counts over links without noise",
        above=0,
        high=1e6,
        traced=True,
    )
    power: float = spec(1.0, "power budget of a client", above=0, high=1e9, unit="W", traced=True)
    bandwidth: float = spec(
        1e6, "bandwidth", above=0, high=1e12, unit="channel uses/s", traced=True
    )
    time_limit: float = spec(
        0.03, "T_th, the time of a round (ofdma)", above=0, high=1e6, unit="s", traced=True
    )
    scheme: str = spec(
        "optimal",
        "how band and pruning are allocated (ofdma): together; or equal shares with the pruning"
        " that they need, with the optimal pruning, or with none; or the papers' closed form",
        choices=("optimal", "equal", "post_hoc", "unpruned", "printed"),
    )
    bands: str = spec(
        "server",
        "whose the band is (ofdma): every edge server has one, or all of them share one, as printed"
        " in P2 (27)",
        choices=("server", "shared"),
    )
    rho_max: float = spec(1.0, "largest pruning ratio (ofdma)", above=0, high=1, traced=True)
    noise: float = spec(
        1e-14, "noise power over the band (ofdma)", above=0, high=1e9, unit="W", traced=True
    )
    noise_of: str = spec(
        "band",
        "which noise a device's rate has (ofdma): the whole band's, as in P2 (10), or its share's",
        choices=("band", "share"),
    )
    frequency: float = spec(
        3e9, "speed of a processor (ofdma)", above=0, high=1e15, unit="cycles/s", traced=True
    )
    cycles: float = spec(
        1.0, "work for a step of one weight (ofdma)", low=0, high=1e12, unit="cycles", traced=True
    )
    payload: str = spec(
        "values",
        "what is sent beside kept values (ofdma): nothing, a bitmap, or their positions",
        choices=("values", "bitmap", "index"),
    )
    bill_warm_up: str = spec(
        "yes", "whether warm-up steps take time and energy (ofdma)", choices=("yes", "no")
    )


@dataclass
class Downlink:
    """How the model reaches the clients (P3)."""

    link: str = spec(
        "ideal",
        "kind of downlink: perfect and free; or analog symbols, one broadcast for all",
        choices=("ideal", "analog"),
    )
    snr_db: float = spec(10.0, "P / no at each client", low=-100, high=200, unit="dB", traced=True)
    code: str = spec(
        "repetition",
        "how a weight becomes symbols",
        choices=("repetition", "spiral"),
    )
    repeats: int = spec(1, "symbols a weight; spirals: a power of two", low=1, high=64)
    gamma: float = spec(0.0, "of spirals; 0: the best for each layer", low=0, high=100)
    packing: str = spec("complex", "reals per symbol: two or one", choices=("complex", "real"))
    fading: str = spec("none", "one gain a client and round", choices=("none", "rayleigh"))
    csi_error: float = spec(
        0.0, "variance of the channel estimate's error", low=0, high=1e3, traced=True
    )
    power: float = spec(1.0, "power budget of the server", above=0, high=1e9, unit="W", traced=True)
    bandwidth: float = spec(
        1e6, "bandwidth", above=0, high=1e12, unit="channel uses/s", traced=True
    )


@dataclass
class Server:
    """The step of the global model."""

    optimizer: str = spec(
        "average", "step along the mean update", choices=("average", "momentum", "adam")
    )
    lr: float = spec(
        1.0,
        "server learning rate; 1 is averaging, adam wants far less",
        low=0,
        high=1e3,
        traced=True,
    )
    momentum: float = spec(
        0.9, "momentum; of the mean update's average (adam: b1)", low=0, below=1, traced=True
    )
    b2: float = spec(0.99, "decay of the squares' average (adam)", low=0, below=1, traced=True)
    epsilon: float = spec(
        1e-3, "added to the root of the squares' average (adam)", above=0, high=1e3, traced=True
    )


@dataclass
class Mesh:
    """Devices."""

    devices: int = spec(
        0, "devices to use; 0: all (on CPU, one per core up to 8)", low=0, high=4096
    )
    arms: int = spec(
        0, "devices that share out the arms; 0: all if there are enough arms", low=0, high=4096
    )
    reduction: str = spec("fast", "sum over devices", choices=("fast", "strict"))
    lanes: int = spec(8, "lanes of the strict reduction", low=1, high=4096)
    clients_per_chunk: int = spec(1, "clients vmapped together", low=1, high=1_000_000)
    arms_per_chunk: int = spec(
        0, "arms vmapped together; 0: one on CPU, all elsewhere", low=0, high=1_000_000
    )


@dataclass
class Run:
    """Length and repetition."""

    rounds: int = spec(24, "rounds", low=1, high=10_000_000)
    every: int = spec(1, "rounds between evaluations", low=1, high=10_000_000)
    save_every: int = spec(4, "evaluations between checkpoints", low=1, high=10_000_000)
    evaluate: str = spec(
        "pruned",
        "which global model is evaluated: with the round's mask, or as the server has it",
        choices=("pruned", "dense"),
    )
    test: str = spec(
        "pooled",
        "the global model on all test examples, or every client's model on its own",
        choices=("pooled", "clients"),
    )
    seed: int = spec(0, "first seed", low=0, high=1_000_000_000, traced=True)
    seeds: int = spec(3, "repetitions, with seeds run.seed, run.seed + 1, ...", low=1, high=10_000)


@dataclass
class Config:
    """A whole experiment. ``experiment`` and ``variant`` are labels; the command line sets them."""

    experiment: str = spec("", "name of the experiment's file, a label; the command line sets it")
    variant: str = spec("", "variant of the experiment, a label; the command line sets it")
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    local: Local = field(default_factory=Local)
    cohort: Cohort = field(default_factory=Cohort)
    personal: Personal = field(default_factory=Personal)
    edges: Edges = field(default_factory=Edges)
    pruning: Pruning = field(default_factory=Pruning)
    uplink: Uplink = field(default_factory=Uplink)
    downlink: Downlink = field(default_factory=Downlink)
    server: Server = field(default_factory=Server)
    mesh: Mesh = field(default_factory=Mesh)
    run: Run = field(default_factory=Run)


@dataclass(frozen=True)
class Arm:
    """One line of a figure: a name, and where it differs from the configuration."""

    name: str
    overrides: Mapping[str, Any]


# Reading and changing -----


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """Every leaf field as (dotted path, field, value)."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, f, value


def override(config: Any, values: Mapping[str, Any]) -> Any:
    """A copy with some fields changed, by dotted path; values may be tracers.

    Raises:
      ConfigError: an unknown path.
    """
    known = [path for path, _, _ in fields(config)]
    config = copy.deepcopy(config)
    for path, value in values.items():
        if path not in known:
            raise ConfigError(f"{path}: there is no such field{suggestion(path, known)}")
        *parents, name = path.split(".")
        owner = config
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, value)
    return config


def traced_paths(config: Any) -> set[str]:
    """Paths of the fields that may differ between the arms of one program."""
    return {path for path, f, _ in fields(config) if f.metadata.get("traced")}


def to_json(config: Any) -> dict[str, Any]:
    """The configuration as plain nested values."""
    return dataclasses.asdict(config)


# A run may go on with other values of these: neither the shapes nor the meaning of a checkpoint
# depend on them. Local optimizers start afresh every round, and links hold no state.
FREE = (
    *("variant", "data.dir", "data.download", "local.*", "cohort.*"),
    *("personal.lr", "personal.pull", "personal.steps"),
    *("pruning.ratio", "pruning.start", "pruning.every", "pruning.steps"),
    *("uplink.*", "downlink.*", "edges.cloud*"),
    *("server.lr", "server.momentum", "server.b2", "server.epsilon"),
    *("mesh.*", "run.rounds", "run.every", "run.save_every", "run.evaluate", "run.test"),
)


# How a run lies on its devices: what it computes does not depend on it, except for last bits with
# the fast reduction. (Chunks and lanes decide in which order clients are added up.)
PLACES = ("mesh.devices", "mesh.arms")


# What all arms of an experiment share: they are of its data and of its loop over rounds.
WHOLE = frozenset(
    (
        *("data.name", "data.dir", "data.download", "data.examples", "mesh.devices"),
        *("run.rounds", "run.every", "run.save_every"),
    )
)


def program_groups(config: Config, arms: Sequence[Arm]) -> dict[tuple, list[Arm]]:
    """Arms by the fields in which they differ and which shape a program: (path, value) pairs."""
    traced = traced_paths(config)
    groups: dict[tuple, list[Arm]] = {}
    for arm in arms:
        static = tuple(sorted((k, v) for k, v in arm.overrides.items() if k not in traced))
        groups.setdefault(static, []).append(arm)
    return groups


# In words -----


def describe(f: dataclasses.Field) -> str:
    """What a field allows, in words."""
    m = f.metadata
    if m.get("choices"):
        one = "one of " + ", ".join(m["choices"])
        return one if one_value(f) else f"a list, each {one}"
    words = {
        "low": "at least {}",
        "above": "above {}",
        "high": "at most {}",
        "below": "below {}",
    }
    ends = {name: m[name] for name in words if m.get(name) is not None}
    bounds = [words[name].format(_short(end)) for name, end in ends.items()]
    one = {int: "an integer", float: "a number", str: "a string"}[element_type(f)]
    return " and ".join([one if one_value(f) else f"a list, each {one}", *bounds])


def _short(number: float) -> str:
    """1,000,000 for integers, 1e6 for floats."""
    return f"{number:,}" if isinstance(number, int) else re.sub(r"e\+?0*", "e", f"{number:g}")


def explain(config: Any) -> str:
    """Every field of a configuration, by section: its value, unit, meaning and what it allows."""
    blocks: dict[str, list[str]] = {}
    for path, f, value in fields(config):
        section = path.rpartition(".")[0]
        unit = f" {f.metadata['unit']}" if f.metadata["unit"] else ""
        text = f"{f.metadata['meaning']}. Must be {describe(f)}."
        about = textwrap.fill(text, 96, initial_indent="    ", subsequent_indent="    ")
        blocks.setdefault(section, []).append(f"  {path} = {value!r}{unit}\n{about}")
    titles = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    lines = []
    for section, entries in blocks.items():
        lines += [inspect.getdoc(titles.get(section, config)) or "", *entries, ""]
    return "\n".join(lines)


def suggestion(word: Any, known: Iterable[str]) -> str:
    """`` (did you mean X?)`` for what is close to a word, or has the same last part; or nothing."""
    known, last = list(known), str(word).rpartition(".")[2]
    close = difflib.get_close_matches(str(word), known, n=1)
    close = close or [path for path in known if path.rpartition(".")[2] == last]
    return f" (did you mean {close[0]}?)" if close else ""


# Validation -----


def one_value(f: dataclasses.Field) -> bool:
    """Whether a field holds one value, and not a tuple of them."""
    return not get_args(f.type)


def element_type(f: dataclasses.Field) -> type:
    """int, float or str: of the field, or of a tuple field's elements."""
    kind: Any = f.type if one_value(f) else get_args(f.type)[0]
    return kind


def validate(config: Config) -> None:
    """Checks every field by itself, then the fields together.

    Raises:
      ConfigError: the first fault.
    """
    for path, f, value in fields(config):
        single = one_value(f)
        values = (value,) if single else value
        if not (single or isinstance(value, tuple)) or not all(
            _right_type(f, v) and _in_range(f, v) for v in values
        ):
            close = "".join(_suggestions(f, value))
            raise ConfigError(f"{path}={value!r}: must be {describe(f)}{close}")
    _validate_together(config)


def validate_arms(config: Config, arms: Sequence[Arm]) -> None:
    """Checks a configuration by itself, then with each of its arms.

    Raises:
      ConfigError: the first fault.
    """
    validate(config)
    if not arms and config.run.seed:
        raise ConfigError(
            f"run.seed={config.run.seed}: must be 0 for {config.experiment}, which has no arms"
        )
    if len({arm.name for arm in arms}) < len(arms):
        raise ConfigError(f"arms: names repeat: {[arm.name for arm in arms]}")
    for arm in arms:
        try:
            for path in arm.overrides.keys() & WHOLE:
                raise ConfigError(f"{path}: must be the same for all arms")
            validate(override(config, arm.overrides))
        except ConfigError as e:
            raise ConfigError(f"{e} (arm {arm.name})") from e


def _suggestions(f: dataclasses.Field, value: Any) -> list[str]:
    known = f.metadata["choices"] or ()
    words = value if isinstance(value, tuple) else (value,)
    return [suggestion(word, known) for word in words if word not in known]


def _right_type(f: dataclasses.Field, value: Any) -> bool:
    kind = element_type(f)
    allowed = int | float if kind is float else kind
    finite = not isinstance(value, float) or math.isfinite(value)
    return isinstance(value, allowed) and not isinstance(value, bool) and finite


def _in_range(f: dataclasses.Field, value: Any) -> bool:
    m = f.metadata
    return (
        (m.get("choices") is None or value in m["choices"])
        and (m.get("low") is None or value >= m["low"])
        and (m.get("high") is None or value <= m["high"])
        and (m.get("above") is None or value > m["above"])
        and (m.get("below") is None or value < m["below"])
    )


def _validate_together(c: Config) -> None:
    def require(condition: bool, message: str) -> None:
        if not condition:
            raise ConfigError(message)

    if c.data.dir:
        try:
            paths.local("data.dir", c.data.dir)
        except paths.PathError as error:
            raise ConfigError(str(error)) from error
    require(
        c.cohort.size <= c.data.clients,
        f"cohort.size={c.cohort.size}: must be at most data.clients={c.data.clients}",
    )
    require(
        (c.local.steps > 0) != (c.local.epochs > 0),
        f"local.steps={c.local.steps}: exactly one of local.steps and"
        f" local.epochs={c.local.epochs} must be above 0",
    )
    p = c.pruning
    if p.schedule not in ("none", "allocated") and p.ratio > 0:
        last = p.start if p.schedule == "one_shot" else p.start + p.every * (p.steps - 1)
        require(
            last < c.run.rounds,
            f"pruning.start={p.start}: the last pruning step falls in round {last}, but must come"
            f" before run.rounds={c.run.rounds}",
        )
    require(
        c.local.schedule != "exponential" or c.local.schedule_end > 0,
        f"local.schedule_end={c.local.schedule_end}: must be above 0 for the exponential schedule",
    )
    if c.model.name.startswith("resnet") and c.model.norm == "group":
        require(
            all(width % c.model.groups == 0 for width in c.model.widths),
            f"model.widths={c.model.widths!r}: must be multiples of model.groups={c.model.groups}",
        )
    require(
        p.granularity != "neuron"
        or (p.scope, p.layers, c.run.evaluate) == ("own", "dense", "dense"),
        f"pruning.granularity={p.granularity!r}: must come with pruning.scope='own' (is"
        f" {p.scope!r}),"
        f" pruning.layers='dense' (is {p.layers!r}) and run.evaluate='dense'"
        f" (is {c.run.evaluate!r})",
    )
    u = c.uplink
    require(
        p.schedule != "allocated" or (u.link, p.scope) == ("ofdma", "own"),
        f"pruning.schedule='allocated': must come with uplink.link='ofdma' (is {u.link!r}) and"
        f" pruning.scope='own' (is {p.scope!r})",
    )
    require(
        u.link != "ofdma" or (u.fading == "rayleigh" and u.farthest > 0),
        f"uplink.fading={u.fading!r}: must be rayleigh, with uplink.farthest={u.farthest} above 0,"
        " for uplink.link='ofdma'",
    )
    require(
        u.link != "ofdma" or c.local.steps > 0,
        f"local.steps={c.local.steps}: must be above 0 for uplink.link='ofdma', which bills steps",
    )
    require(
        u.link != "ofdma" or u.scheme != "printed" or u.cycles > 0,
        f"uplink.cycles={u.cycles}: must be above 0 for uplink.scheme='printed', the closed form",
    )
    require(
        u.link != "orthogonal" or u.value_bits <= 32,
        f"uplink.value_bits={u.value_bits}: must be at most 32 for uplink.link='orthogonal'",
    )
    require(
        u.link != "over_the_air" or u.code == "repetition",
        f"uplink.code={u.code!r}: must be repetition for uplink.link='over_the_air', since only"
        " linear codes survive superposition",
    )
    require(
        u.bitstream == "fixed" or (u.link == "orthogonal" and u.value_bits <= 12),
        f"uplink.bitstream={u.bitstream!r}: must come with uplink.link='orthogonal' (is {u.link!r})"
        f" and uplink.value_bits={u.value_bits} of at most 12",
    )
    for name, way in (("uplink", u), ("downlink", c.downlink)):
        require(
            way.code != "spiral" or way.repeats & (way.repeats - 1) == 0,
            f"{name}.repeats={way.repeats}: must be a power of two for {name}.code='spiral'",
        )
    require(
        u.repeats == 1 or u.link in ("over_the_air", "analog"),
        f"uplink.repeats={u.repeats}: must be 1 for uplink.link={u.link!r}",
    )
    require(
        u.link != "analog" or (u.fading != "rician" and u.antennas == 1 and u.farthest == 0),
        f"uplink.fading={u.fading!r}: must be none or rayleigh for uplink.link='analog', with"
        f" uplink.antennas={u.antennas} of 1 and uplink.farthest={u.farthest} of 0",
    )
    require(
        u.link != "analog" or u.division == "all",
        f"uplink.division={u.division!r}: must be all for uplink.link='analog'",
    )
    require(
        c.downlink.link == "ideal" or not c.edges.servers,
        f"downlink.link={c.downlink.link!r}: must be ideal for edges.servers={c.edges.servers}",
    )
    require(
        p.granularity != "unit" or p.layers == "all",
        f"pruning.layers={p.layers!r}: must be all for pruning.granularity={p.granularity!r}",
    )
    require(
        p.granularity != "unit" or p.scope != "own",
        f"pruning.granularity={p.granularity!r}: must not be unit for pruning.scope={p.scope!r}",
    )
    require(
        c.edges.servers <= c.data.clients,
        f"edges.servers={c.edges.servers}: must be at most data.clients={c.data.clients}",
    )
    e = c.edges
    require(
        e.cloud == "ideal" or e.servers > 0,
        f"edges.cloud={e.cloud!r}: must be ideal for edges.servers={e.servers}",
    )
    capacity = math.log2(1 + 10 ** (e.cloud_snr_db / 10))
    require(
        e.cloud == "ideal" or e.cloud_rate < capacity,
        f"edges.cloud_rate={e.cloud_rate}: must be below {capacity:.4g}, the capacity at"
        f" edges.cloud_snr_db={e.cloud_snr_db}, or nothing arrives",
    )
    require(
        not c.edges.sizes
        or (len(c.edges.sizes), sum(c.edges.sizes)) == (c.edges.servers, c.data.clients),
        f"edges.sizes={c.edges.sizes!r}: must be {c.edges.servers} numbers (edges.servers) that add"
        f" up to data.clients={c.data.clients}",
    )
    require(
        u.taps <= u.blocks,
        f"uplink.taps={u.taps}: must be at most uplink.blocks={u.blocks}",
    )
    require(
        (u.blocks, u.correlation) == (1, 0.0)
        or (u.fading != "none" and u.link in ("over_the_air", "orthogonal")),
        f"uplink.blocks={u.blocks}: must be 1, and uplink.correlation={u.correlation} must be 0,"
        f" for uplink.fading={u.fading!r} and uplink.link={u.link!r}",
    )
    require(
        u.correlation == 0 or not c.edges.servers,
        f"uplink.correlation={u.correlation}: must be 0 for edges.servers={c.edges.servers}",
    )
    cohort = (c.cohort.size or c.data.clients) / max(1, c.edges.servers)
    require(
        u.min_holders <= cohort,
        f"uplink.min_holders={u.min_holders}: must be at most {cohort:g}, the clients of a server"
        " in a round",
    )
    require(
        u.nearest <= u.farthest,
        f"uplink.nearest={u.nearest}: must be at most uplink.farthest={u.farthest}",
    )
    require(
        u.nearest > 0 or u.farthest == 0,
        f"uplink.nearest={u.nearest}: must be above 0 where uplink.farthest={u.farthest} is given",
    )
    require(
        u.fading != "none" or (u.antennas, u.csi_error, u.farthest) == (1, 0.0, 0.0),
        f"uplink.fading={u.fading!r}: must be rayleigh or rician for uplink.antennas={u.antennas},"
        f" uplink.csi_error={u.csi_error}, uplink.farthest={u.farthest}",
    )
    own = c.personal
    require(
        bool(own.layers) == (own.method in ("alternating", "simultaneous")),
        f"personal.layers={own.layers!r}: must be given for personal.method='alternating' and"
        f" 'simultaneous' and for no other (is {own.method!r})",
    )
    require(
        own.method == "none" or (c.run.test, c.edges.servers) == ("clients", 0),
        f"personal.method={own.method!r}: must come with run.test='clients' (is {c.run.test!r}) and"
        f" edges.servers=0 (is {c.edges.servers})",
    )
    require(
        own.method != "simultaneous" or c.local.prox == 0,
        f"local.prox={c.local.prox}: must be 0 for personal.method='simultaneous'",
    )
    if c.model.name == "cnn":
        require(
            len(c.model.filters) <= 4,
            f"model.filters={c.model.filters!r}: at most 4 blocks, each halves the 28 pixels",
        )
    m = c.mesh
    require(
        m.devices == 0 or m.arms == 0 or m.devices % m.arms == 0,
        f"mesh.arms={m.arms}: must divide mesh.devices={m.devices}",
    )
    if m.reduction == "strict" and m.devices and m.arms:
        across = m.devices // m.arms
        require(
            m.lanes % across == 0,
            f"mesh.lanes={m.lanes}: must be a multiple of the {across} devices that share a cohort",
        )
