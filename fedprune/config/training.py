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
    steps: int = free(5, "steps a round, or 0 to use epochs", low=0, high=1_000_000)
    epochs: int = free(0, "epochs a round, or 0 to use steps", low=0, high=100_000)
    batch: int = free(32, "examples a step", low=1, high=1_000_000)
    microbatch: int = free(
        0,
        "examples whose gradients are computed at once; 0: what suits network and backend",
        low=0,
        high=1_000_000,
    )
    prox: float = free(0.0, "mu of FedProx's proximal term; 0: none", low=0, high=1e6, traced=True)
    weight_decay: float = free(
        0.0, "factor on kernels that is added to their gradient", low=0, high=1e3, traced=True
    )
    clip: float = free(0.0, "largest norm of the gradient; 0: no clipping", low=0, high=1e30)
    schedule: str = free("constant", "learning rate against the round", choices=DECAYS)
    schedule_end: float = free(
        0.01,
        "share of the learning rate left in the last round",
        low=0,
        high=1,
        traced=True,
        of=("schedule", "cosine", "exponential"),
    )
    schedule_every: int = free(
        100,
        "rounds between drops",
        low=1,
        high=10_000_000,
        traced=True,
        of=("schedule", "step"),
    )
    schedule_factor: float = free(
        0.1,
        "factor on the learning rate at each drop",
        low=0,
        high=1,
        traced=True,
        of=("schedule", "step"),
    )


@dataclass
class ChannelAgeLoss:
    """Weights of the scores by which clients are chosen (``algorithms.channel_age_loss``)."""

    channel: float = free(1.0, "of the power gain", low=0, high=1e9, traced=True)
    age: float = free(1.0, "of the rounds since the last time", low=0, high=1e9, traced=True)
    loss: float = free(1.0, "of the last training loss", low=0, high=1e9, traced=True)
    unknown: float = free(
        0.0, "loss of a client that was never heard", low=0, high=1e9, traced=True
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

    size: int = free(0, "clients a round, S, drawn anew every round; 0: all", low=0, high=1_000_000)
    selection: str = spec(
        "uniform",
        "how they are chosen: at random, or by channel, age and loss (over_the_air, orthogonal)",
        choices=SELECTIONS,
    )
    weighting: str = free(
        "examples",
        "how clients count in means: by their number of examples, or all the same",
        choices=("examples", "plain"),
    )
    channel_age_loss: ChannelAgeLoss = part("selection", ChannelAgeLoss)


IN_LAYERS = ("alternating", "simultaneous")
"""methods whose personal part are some of the layers"""


@dataclass
class Personal:
    """What clients keep to themselves."""

    method: str = spec(
        "none",
        "nothing; layers trained before the global ones (FedAlt) or with them (FedSim); a whole"
        " model pulled towards the global one (Ditto); or the model that local training makes of"
        " the global one (fine-tuning)",
        choices=("none", *IN_LAYERS, "ditto", "tuned"),
    )
    layers: tuple[str, ...] = spec(
        (), "parts of the paths of personal layers, such as Conv", of=("method", *IN_LAYERS)
    )
    lr: float = free(
        0.1,
        "learning rate of what is personal",
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
        "lambda of the pull towards the global model",
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
