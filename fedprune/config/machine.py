"""Devices, and length and repetition of runs."""

from dataclasses import dataclass
from typing import Any

from fedprune.config.fields import free, require, spec


@dataclass
class Mesh:
    """Devices."""

    devices: int = free(
        0, "number of devices to use; 0: all (on CPU, one for each core, up to 8)", low=0, high=4096
    )
    arms: int = free(
        0,
        "number of groups of devices among which the runs of a program are divided; 0: "
        "one for each device, if there are enough runs",
        low=0,
        high=4096,
    )
    reduction: str = free(
        "fast",
        "how sums over devices are computed: fast; or strict, in an order that gives the "
        "same bits on any number of devices",
        choices=("fast", "strict"),
    )
    lanes: int = free(
        8,
        "number of partial sums that are added in a fixed order",
        low=1,
        high=4096,
        of=("reduction", "strict"),
    )
    clients_per_chunk: int = free(
        1, "number of clients that a device trains at a time", low=1, high=1_000_000
    )
    arms_per_chunk: int = free(
        0,
        "number of runs that a device computes at a time; 0: one on CPU, all elsewhere",
        low=0,
        high=1_000_000,
    )


PLACES = ("mesh.devices", "mesh.arms")
"""How a run lies on its devices: what it computes does not depend on it, except for last bits with
the fast reduction. (Chunks and lanes decide in which order clients are added up.)"""


@dataclass
class Run:
    """Length of a run, tests and repetitions."""

    rounds: int = free(24, "number of rounds", low=1, high=10_000_000)
    every: int = free(1, "rounds between evaluations", low=1, high=10_000_000)
    save_every: int = free(4, "evaluations between checkpoints", low=1, high=10_000_000)
    evaluate: str = free(
        "pruned",
        "which global model is evaluated: pruned, with the mask of the round; dense, as "
        "the server has it",
        choices=("pruned", "dense"),
    )
    test: str = free(
        "pooled",
        "what is tested: pooled, the global model on all test examples; clients, every "
        "client's model on the client's own test examples",
        choices=("pooled", "clients"),
    )
    seed: int = spec(0, "first random seed", low=0, high=1_000_000_000, traced=True)
    seeds: int = spec(
        3, "number of repetitions, with the seeds run.seed, run.seed + 1, ...", low=1, high=10_000
    )


WHOLE = frozenset(
    (
        *("data.name", "data.dir", "data.download", "data.examples", "mesh.devices"),
        *("data.test_share", "data.test_seed", "data.images.layout"),
        *("data.csv.label", "data.csv.client", "data.csv.ignore"),
        *("run.rounds", "run.every", "run.save_every"),
    )
)
"""What all arms of an experiment share: they are of its data and of its loop over rounds."""


def check(c: Any) -> None:
    """Refuses what does not fit."""
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
