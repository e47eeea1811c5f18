"""Training of clients: who takes part, their steps, and what they keep to themselves."""

from dataclasses import dataclass
from typing import Any

import fedprune as fp
from fedprune.config.fields import Kind, free, part, require, spec


def _optax() -> Any:
    import optax  # with JAX, which a refused value does not wait for

    return optax


OPTIMIZERS = {
    "sgd": Kind(lambda local, lr: _optax().sgd(lr)),
    "momentum": Kind(lambda local, lr: _optax().sgd(lr, local.momentum)),
    "adam": Kind(lambda local, lr: _optax().adam(lr)),
}
"""name -> (this section, learning rate) -> optax transformation"""
DECAYS = {
    "constant": Kind(lambda local, rounds: None),
    "cosine": Kind(lambda local, rounds: fp.local.decay.cosine(rounds, local.schedule_end)),
    "exponential": Kind(
        lambda local, rounds: fp.local.decay.exponential(rounds, local.schedule_end)
    ),
    "step": Kind(
        lambda local, rounds: fp.local.decay.step(local.schedule_every, local.schedule_factor)
    ),
}
"""name -> (this section, rounds) -> factor of the learning rate against the round, or None"""


@dataclass
class Local:
    """Local training."""

    optimizer: str = free("momentum", "local optimizer", choices=OPTIMIZERS)
    lr: float = free(0.1, "learning rate", low=0, high=1e3, traced=True)
    momentum: float = free(
        0.9, "momentum", low=0, below=1, traced=True, of=("optimizer", "momentum")
    )
    steps: int = free(
        5,
        "local steps in a round; 0: local.epochs says how long a client trains",
        low=0,
        high=1_000_000,
    )
    epochs: int = free(
        0,
        "local epochs in a round; 0: local.steps says how long a client trains",
        low=0,
        high=100_000,
    )
    batch: int = free(32, "batch size: examples in a local step", low=1, high=1_000_000)
    microbatch: int = free(
        0,
        "examples whose gradients are computed at a time, within a batch; 0: a number "
        "that suits network and backend",
        low=0,
        high=1_000_000,
    )
    prox: float = free(
        0.0, "weight mu of FedProx's proximal term; 0: no such term", low=0, high=1e6, traced=True
    )
    weight_decay: float = free(
        0.0,
        "weight decay: this factor times a kernel is added to the kernel's gradient",
        low=0,
        high=1e3,
        traced=True,
    )
    clip: float = free(0.0, "largest norm of the gradient; 0: no clipping", low=0, high=1e30)
    schedule: str = free(
        "constant", "how the local learning rate changes over the rounds", choices=DECAYS
    )
    schedule_end: float = free(
        0.01,
        "learning rate in the last round, as a share of local.lr",
        low=0,
        high=1,
        traced=True,
        of=("schedule", "cosine", "exponential"),
    )
    schedule_every: int = free(
        100,
        "rounds between two drops of the learning rate",
        low=1,
        high=10_000_000,
        traced=True,
        of=("schedule", "step"),
    )
    schedule_factor: float = free(
        0.1,
        "factor by which the learning rate is multiplied at each drop",
        low=0,
        high=1,
        traced=True,
        of=("schedule", "step"),
    )


@dataclass
class ChannelAgeLoss:
    """Weights of the scores by which clients are chosen (``algorithms.channel_age_loss``)."""

    channel: float = free(
        1.0, "weight of the power gain of the client's channel", low=0, high=1e9, traced=True
    )
    age: float = free(
        1.0,
        "weight of the number of rounds since the client last took part",
        low=0,
        high=1e9,
        traced=True,
    )
    loss: float = free(
        1.0, "weight of the client's last training loss", low=0, high=1e9, traced=True
    )
    unknown: float = free(
        0.0,
        "loss that is assumed of a client from which no update has arrived yet",
        low=0,
        high=1e9,
        traced=True,
    )


def _channel_age_loss(c: Any, size: int) -> Any:
    by = c.cohort.channel_age_loss
    return fp.algorithms.channel_age_loss.participation(
        c.data.clients, size, by.channel, by.age, by.loss, by.unknown
    )


SELECTIONS = {
    "uniform": Kind(lambda c, size: fp.server.uniform(c.data.clients, size)),
    "channel_age_loss": Kind(_channel_age_loss, "channel_age_loss"),
}
"""name -> (configuration, size of a cohort) -> participation"""


@dataclass
class Cohort:
    """Participation."""

    size: int = free(
        0, "number of clients that take part in a round, S; 0: all", low=0, high=1_000_000
    )
    selection: str = spec(
        "uniform",
        "how the clients of a round are chosen: uniform, at random; channel_age_loss, by "
        "their channel, the rounds since they last took part and their loss (with "
        "uplink.link=over_the_air or orthogonal)",
        choices=SELECTIONS,
    )
    weighting: str = free(
        "examples",
        "weight of a client in means: examples, its number of examples; plain, the same for all",
        choices=("examples", "plain"),
    )
    channel_age_loss: ChannelAgeLoss = part("selection", ChannelAgeLoss)


IN_LAYERS = ("alternating", "simultaneous")
"""methods whose personal part are some of the layers"""


@dataclass
class Personal:
    """What stays at the clients and is never sent."""

    method: str = spec(
        "none",
        "none; alternating, layers trained before the global ones (FedAlt); "
        "simultaneous, layers trained with them (FedSim); ditto, a whole model pulled "
        "towards the global one; tuned, the global model after local training (fine- "
        "tuning)",
        choices=("none", *IN_LAYERS, "ditto", "tuned"),
    )
    layers: tuple[str, ...] = spec(
        (),
        "the layers whose names contain one of these words, such as Conv, are personal",
        of=("method", *IN_LAYERS),
    )
    lr: float = free(
        0.1,
        "learning rate of the personal layers or models",
        low=0,
        high=1e3,
        traced=True,
        of=("method", *IN_LAYERS, "ditto"),
    )
    steps: int = free(
        5, "steps a round", low=1, high=1_000_000, of=("method", "alternating", "ditto")
    )
    pull: float = free(
        0.1,
        "weight lambda of the term that pulls a personal model towards the global one",
        low=0,
        high=1e6,
        traced=True,
        of=("method", "ditto"),
    )


def check(c: Any) -> None:
    """Refuses what does not fit."""
    require(
        c.cohort.size <= c.data.clients,
        f"cohort.size={c.cohort.size}: must be at most data.clients={c.data.clients}",
    )
    require(
        c.cohort.selection == "uniform"
        or (c.uplink.link in ("over_the_air", "orthogonal") and not c.edges.servers),
        f"cohort.selection={c.cohort.selection!r}: must be uniform for"
        f" uplink.link={c.uplink.link!r} and edges.servers={c.edges.servers}; it needs the channels"
        " of an uplink over_the_air or orthogonal, without edge servers",
    )
    require(
        (c.local.steps > 0) != (c.local.epochs > 0),
        f"local.steps={c.local.steps}: exactly one of local.steps and"
        f" local.epochs={c.local.epochs} must be above 0",
    )
    require(
        c.local.schedule != "exponential" or c.local.schedule_end > 0,
        f"local.schedule_end={c.local.schedule_end}: must be above 0 for the exponential schedule",
    )
    own = c.personal
    require(
        bool(own.layers) == (own.method in IN_LAYERS),
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
