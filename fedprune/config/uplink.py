"""How updates reach the server."""

from dataclasses import dataclass
from typing import Any

import fedprune as fp
from fedprune.config.fields import Kind, free, part, require, spec

NORMALISATIONS = ("none", "common", "device", "receiver")


@dataclass
class OverTheAir:
    """All clients send at once, and the channel adds up their signals."""

    normalisation: str = free(
        "receiver",
        "power control, which decides to what the SNR refers: none, no noise; common, "
        "one factor for all clients; device, one for each client; receiver, the SNR is "
        "that of the received sum",
        choices=NORMALISATIONS,
    )
    packing: str = free(
        "complex", "weights in a symbol: complex, two; real, one", choices=("complex", "real")
    )
    repeats: int = free(1, "symbols for each weight", low=1, high=64)


@dataclass
class Orthogonal:
    """Bits, one client after another."""

    rate: float = free(
        0.0,
        "bits in a channel use; 0: the capacity",
        low=0,
        high=100,
        unit="bits/channel use",
    )
    value_bits: int = free(32, "bits for a weight", low=2, high=32, unit="bits")
    bitstream: str = free(
        "fixed",
        "bits of the rounded weights: fixed, value_bits each; entropy, what an entropy coder needs",
        choices=("fixed", "entropy"),
    )


@dataclass
class Analog:
    """Analog symbols, one client after another."""

    code: str = free(
        "repetition",
        "a weight is sent several times, or on a spiral",
        choices=("repetition", "spiral"),
    )
    repeats: int = free(1, "symbols for each weight; with spirals, a power of two", low=1, high=64)
    packing: str = free(
        "complex", "real numbers in a symbol: complex, two; real, one", choices=("complex", "real")
    )


@dataclass
class Ofdma:
    """Bits, on shares of a band that are allocated together with pruning ratios (P2, P4)."""

    time_limit: float = free(
        0.03, "time limit of a round, T_th", above=0, high=1e6, unit="s", traced=True
    )
    scheme: str = free(
        "optimal",
        "how band and pruning are allocated: optimal, together; equal, post_hoc and "
        "unpruned, equal shares of the band with the pruning that they need, with the "
        "optimal one or with none; printed, the papers' closed form",
        choices=("optimal", "equal", "post_hoc", "unpruned", "printed"),
    )
    bands: str = free(
        "server",
        "server, each edge server has a band; shared, all share one, as printed in P2 (27)",
        choices=("server", "shared"),
    )
    rho_max: float = free(1.0, "largest pruning ratio", above=0, high=1, traced=True)
    noise: float = free(
        1e-14, "noise power over the band", above=0, high=1e9, unit="W", traced=True
    )
    noise_of: str = free(
        "band",
        "noise in a client's rate: band, the whole band's, as in P2 (10); share, its share's",
        choices=("band", "share"),
    )
    value_bits: int = free(32, "bits for a weight", low=2, high=64, unit="bits")
    frequency: float = free(
        3e9, "speed of a client's processor", above=0, high=1e15, unit="cycles/s", traced=True
    )
    cycles: float = free(
        1.0,
        "processor cycles that one weight takes in a local step",
        low=0,
        high=1e12,
        unit="cycles",
        traced=True,
    )
    payload: str = free(
        "values",
        "sent beside the kept weights: values, nothing; bitmap, a bit a weight; index, positions",
        choices=("values", "bitmap", "index"),
    )
    bill_warm_up: bool = free(True, "whether the time and energy of warm-up steps are counted")


@dataclass
class Rician:
    """Scattered paths and a line of sight."""

    factor: float = free(
        3.0, "power of the line of sight over that of the scattered paths", low=0, high=1e6,
        traced=True,
    )  # fmt: skip


def _block_fading(c: Any, rician: Any) -> Any:
    u = c.uplink
    return fp.channel.block_fading(
        antennas=u.antennas,
        rician=rician,
        csi_error=u.csi_error,
        annulus=(u.nearest, u.farthest) if u.farthest else None,
        blocks=u.blocks,
        taps=(1.0,) * u.taps,
        correlation=u.correlation,
        clients=c.data.clients if u.correlation else None,
    )


FADINGS = {
    "none": Kind(lambda c: None),
    "rayleigh": Kind(lambda c: _block_fading(c, 0.0)),
    "rician": Kind(lambda c: _block_fading(c, c.uplink.rician.factor), "rician"),
}
"""name -> configuration -> fading of the uplink; None: pure AWGN"""


def _over_the_air(c: Any, network: Any) -> Any:
    u, own = c.uplink, c.uplink.over_the_air
    return fp.link.over_the_air(
        *(u.snr_db, own.normalisation, own.packing, FADINGS[u.fading].build(c), u.threshold),
        *(u.power, u.bandwidth, own.repeats),
    )


def _orthogonal(c: Any, network: Any) -> Any:
    u, own = c.uplink, c.uplink.orthogonal
    return fp.link.orthogonal(
        *(u.snr_db, own.rate or None, own.value_bits, FADINGS[u.fading].build(c), u.threshold),
        *(u.power, u.bandwidth, own.bitstream),
    )


def _analog(c: Any, network: Any) -> Any:
    u, own = c.uplink, c.uplink.analog
    protection = fp.link.Protection(own.repeats, own.code, own.repeats)
    return fp.link.one_by_one(
        fp.link.analog(
            u.snr_db, protection, own.packing, u.fading, u.csi_error, u.power, u.bandwidth
        )
    )


UPLINKS = {
    "ideal": Kind(lambda c, network: fp.link.ideal()),
    "over_the_air": Kind(_over_the_air, "over_the_air"),
    "orthogonal": Kind(_orthogonal, "orthogonal"),
    "analog": Kind(_analog, "analog"),
    "ofdma": Kind(lambda c, network: fp.build.ofdma(c, network), "ofdma"),
}
"""name -> (configuration, network) -> uplink"""


@dataclass
class Uplink:
    """How updates reach the server."""

    link: str = free(
        "over_the_air",
        "kind of uplink: ideal, without errors and free of charge; over_the_air, the "
        "channel adds up the signals of all clients; orthogonal, bits, one client after "
        "another; analog, analog symbols, one client after another; ofdma, bits, at once "
        "on shares of a band",
        choices=UPLINKS,
    )
    snr_db: float = free(
        10.0,
        "signal-to-noise ratio: a client's power budget over the noise of a complex "
        "symbol; ofdma has uplink.ofdma.noise instead",
        low=-100,
        high=200,
        unit="dB",
        traced=True,
    )
    fading: str = free("none", "kind of small-scale fading", choices=FADINGS)
    antennas: int = free(1, "number of receive antennas", low=1, high=4096)
    blocks: int = free(
        1,
        "number of blocks, such as subcarriers, in a round; the symbols of a block fade "
        "together (with uplink.link=over_the_air or orthogonal)",
        low=1,
        high=4096,
    )
    taps: int = free(
        1,
        "number of paths of equal power and different delays; 1: all blocks fade alike; "
        "as many as blocks: each fades independently",
        low=1,
        high=4096,
    )
    correlation: float = spec(
        0.0,
        "correlation of a client's fading from one round to the next; 0: independent",
        low=0,
        below=1,
    )
    csi_error: float = free(
        0.0,
        "variance of the error with which clients know their channel, relative to its mean gain",
        low=0,
        high=1e3,
        traced=True,
    )
    threshold: float = free(
        0.0,
        "clients with an estimated power gain below this stay silent",
        low=0,
        high=1e6,
        traced=True,
    )
    nearest: float = free(
        0.0, "distance of the nearest client; 0: no path loss", low=0, high=1e8, unit="m"
    )
    farthest: float = free(0.0, "distance of the farthest client", low=0, high=1e8, unit="m")
    division: str = free(
        "all",
        "by what the sum of the updates is divided where masks differ: all, the number "
        "of clients; holders, for each weight the number of clients whose mask keeps it, "
        "found by a second transmission",
        choices=("all", "holders"),
    )
    min_holders: float = free(
        0.5,
        "smallest number of holders with which a weight is updated, in clients of "
        "average weight; without noise on the link, any value up to 1 means that one "
        "holder is enough",
        above=0,
        high=1e6,
        traced=True,
        of=("division", "holders"),
    )
    power: float = free(1.0, "power budget of a client", above=0, high=1e9, unit="W", traced=True)
    bandwidth: float = free(
        1e6, "bandwidth", above=0, high=1e12, unit="channel uses/s", traced=True
    )
    rician: Rician = part("fading", Rician)
    over_the_air: OverTheAir = part("link", OverTheAir)
    orthogonal: Orthogonal = part("link", Orthogonal)
    analog: Analog = part("link", Analog)
    ofdma: Ofdma = part("link", Ofdma)


def check(c: Any) -> None:
    """Refuses what does not fit."""
    coded = c.uplink.analog
    require(
        coded.code != "spiral" or coded.repeats & (coded.repeats - 1) == 0,
        f"uplink.analog.repeats={coded.repeats}: must be a power of two for"
        " uplink.analog.code='spiral'",
    )
    own = c.uplink.orthogonal
    require(
        own.bitstream == "fixed" or own.value_bits <= 12,
        f"uplink.orthogonal.bitstream={own.bitstream!r}: must come with"
        f" uplink.orthogonal.value_bits={own.value_bits} of at most 12",
    )
    _check_channel(c)
    _check_ofdma(c)
    cohort = (c.cohort.size or c.data.clients) / max(1, c.edges.servers)
    u = c.uplink
    require(
        u.min_holders <= cohort,
        f"uplink.min_holders={u.min_holders}: must be at most {cohort:g}, the clients of a server"
        " in a round",
    )
    require(
        u.link != "analog" or u.division == "all",
        f"uplink.division={u.division!r}: must be all for uplink.link='analog'",
    )


def _check_channel(c: Any) -> None:
    u = c.uplink
    require(
        u.link != "analog" or (u.fading != "rician" and u.antennas == 1 and u.farthest == 0),
        f"uplink.fading={u.fading!r}: must be none or rayleigh for uplink.link='analog', with"
        f" uplink.antennas={u.antennas} of 1 and uplink.farthest={u.farthest} of 0",
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


def _check_ofdma(c: Any) -> None:
    u, own = c.uplink, c.uplink.ofdma
    if u.link != "ofdma":
        return
    require(
        u.fading == "rayleigh" and u.farthest > 0,
        f"uplink.fading={u.fading!r}: must be rayleigh, with uplink.farthest={u.farthest} above 0,"
        " for uplink.link='ofdma'",
    )
    require(
        c.local.steps > 0,
        f"local.steps={c.local.steps}: must be above 0 for uplink.link='ofdma', which bills steps",
    )
    require(
        own.scheme != "printed" or own.cycles > 0,
        f"uplink.ofdma.cycles={own.cycles}: must be above 0 for uplink.ofdma.scheme='printed', the"
        " closed form",
    )
