"""How the model reaches the clients."""

from dataclasses import dataclass
from typing import Any

import fedprune as fp
from fedprune.config.fields import Kind, free, part, require


@dataclass
class Broadcast:
    """Analog symbols, one broadcast for all (P3)."""

    snr_db: float = free(10.0, "P / no at each client", low=-100, high=200, unit="dB", traced=True)
    code: str = free(
        "repetition",
        "how a weight becomes symbols",
        choices=("repetition", "spiral"),
    )
    repeats: int = free(1, "symbols a weight; spirals: a power of two", low=1, high=64)
    gamma: float = free(
        0.0, "of spirals; 0: the best for each layer", low=0, high=100, of=("code", "spiral")
    )
    packing: str = free("complex", "reals per symbol: two or one", choices=("complex", "real"))
    fading: str = free("none", "one gain a client and round", choices=("none", "rayleigh"))
    csi_error: float = free(
        0.0, "variance of the channel estimate's error", low=0, high=1e3, traced=True
    )
    power: float = free(1.0, "power budget of the server", above=0, high=1e9, unit="W", traced=True)
    bandwidth: float = free(
        1e6, "bandwidth", above=0, high=1e12, unit="channel uses/s", traced=True
    )


def _broadcast(d: Any) -> Any:
    own = d.analog
    protection = fp.link.Protection(own.repeats, own.code, own.repeats, own.gamma or None)
    return fp.link.analog(
        *(own.snr_db, protection, own.packing, own.fading, own.csi_error, own.power),
        own.bandwidth,
    )


DOWNLINKS = {
    "ideal": Kind(lambda d: None),
    "analog": Kind(_broadcast, "analog"),
}
"""name -> this section -> downlink; None: perfect and free"""


@dataclass
class Downlink:
    """How the model reaches the clients."""

    link: str = free(
        "ideal",
        "kind of downlink: perfect and free; or analog symbols, one broadcast for all",
        choices=DOWNLINKS,
    )
    analog: Broadcast = part("link", Broadcast)


def check(c: Any) -> None:
    """Refuses what does not fit."""
    own = c.downlink.analog
    require(
        own.code != "spiral" or own.repeats & (own.repeats - 1) == 0,
        f"downlink.analog.repeats={own.repeats}: must be a power of two for"
        " downlink.analog.code='spiral'",
    )
    require(
        c.downlink.link == "ideal" or not c.edges.servers,
        f"downlink.link={c.downlink.link!r}: must be ideal for edges.servers={c.edges.servers}",
    )
