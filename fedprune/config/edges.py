"""Edge servers between the clients and the cloud."""

import math
from dataclasses import dataclass
from typing import Any

import fedprune as fp
from fedprune.config.fields import Kind, free, part, require, spec


@dataclass
class OrthogonalCloud:
    """Bits, one edge server after another."""

    snr_db: float = free(
        20.0,
        "signal-to-noise ratio at the cloud: power over noise of a complex symbol",
        low=-100,
        high=200,
        unit="dB",
        traced=True,
    )
    rate: float = free(
        0.0,
        "bits in a channel use; 0: the capacity of the channel",
        low=0,
        high=100,
        unit="bits/channel use",
    )
    value_bits: int = free(32, "bits for a weight", low=2, high=32, unit="bits")
    power: float = free(
        1.0, "power budget of an edge server", above=0, high=1e9, unit="W", traced=True
    )
    bandwidth: float = free(
        1e6, "bandwidth to the cloud", above=0, high=1e12, unit="channel uses/s", traced=True
    )


def _orthogonal(e: Any) -> Any:
    own = e.orthogonal
    return fp.link.orthogonal(
        own.snr_db, own.rate or None, own.value_bits, power=own.power, bandwidth=own.bandwidth
    )


CLOUDS = {
    "ideal": Kind(lambda e: fp.link.ideal()),
    "orthogonal": Kind(_orthogonal, "orthogonal"),
}
"""name -> this section -> link from the edge servers to the cloud"""


@dataclass
class Edges:
    """Edge servers between the clients and the cloud."""

    servers: int = spec(
        0,
        "number of edge servers, G; 0: the clients send to the cloud themselves",
        low=0,
        high=100_000,
    )
    rounds: int = spec(5, "number of edge rounds in a round of the cloud, E", low=1, high=100_000)
    sizes: tuple[int, ...] = spec(
        (),
        "number of clients of each edge server; empty: as equal as possible",
        low=0,
        high=1_000_000,
    )
    cloud: str = free(
        "ideal",
        "link from the edge servers to the cloud, used once in a round of the cloud: "
        "ideal, without errors and free of charge; orthogonal, as bits, one edge server "
        "after another",
        choices=CLOUDS,
    )
    orthogonal: OrthogonalCloud = part("cloud", OrthogonalCloud)


def check(c: Any) -> None:
    """Refuses what does not fit."""
    e = c.edges
    require(
        e.servers <= c.data.clients,
        f"edges.servers={e.servers}: must be at most data.clients={c.data.clients}",
    )
    require(
        e.cloud == "ideal" or e.servers > 0,
        f"edges.cloud={e.cloud!r}: must be ideal for edges.servers={e.servers}",
    )
    capacity = math.log2(1 + 10 ** (e.orthogonal.snr_db / 10))
    require(
        e.cloud == "ideal" or e.orthogonal.rate < capacity,
        f"edges.orthogonal.rate={e.orthogonal.rate}: must be below {capacity:.4g}, the capacity at"
        f" edges.orthogonal.snr_db={e.orthogonal.snr_db}, or nothing arrives",
    )
    require(
        not e.sizes or (len(e.sizes), sum(e.sizes)) == (e.servers, c.data.clients),
        f"edges.sizes={e.sizes!r}: must be {e.servers} numbers (edges.servers) that add"
        f" up to data.clients={c.data.clients}",
    )
