"""How the model reaches the clients."""

from dataclasses import dataclass
from typing import Any

import fedprune as fp
from fedprune.config.fields import Kind, free, part, require


@dataclass
class Broadcast:
    """Analog symbols, one broadcast for all (P3)."""

    snr_db: float = free(
        10.0,
        "signal-to-noise ratio at each client: power over noise of a complex symbol",
        low=-100,
        high=200,
        unit="dB",
        traced=True,
    )
    code: str = free(
        "repetition",
        "how a weight becomes symbols: sent several times, or as a point on a spiral",
        choices=("repetition", "spiral"),
    )
    repeats: int = free(
        1, "number of symbols for each weight; with spirals, a power of two", low=1, high=64
    )
    gamma: float = free(
        0.0,
        "how tightly the spirals are wound, gamma; 0: the best value for each layer",
        low=0,
        high=100,
        of=("code", "spiral"),
    )
    packing: str = free(
        "complex", "real numbers in a symbol: complex, two; real, one", choices=("complex", "real")
    )
    fading: str = free(
        "none", "kind of fading; each client has one gain in a round", choices=("none", "rayleigh")
    )
    csi_error: float = free(
        0.0,
        "variance of the error with which a client knows its channel",
        low=0,
        high=1e3,
        traced=True,
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
        "kind of downlink: ideal, without errors and free of charge; analog, analog "
        "symbols in one broadcast for all clients",
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
