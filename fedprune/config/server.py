"""The step of the global model."""

from dataclasses import dataclass
from typing import Any

import fedprune as fp
from fedprune.config.fields import Kind, free, part, spec


@dataclass
class Momentum:
    """Server momentum (FedAvgM)."""

    beta: float = free(0.9, "momentum", low=0, below=1, traced=True)


@dataclass
class Adam:
    """Server Adam (FedAdam)."""

    b1: float = free(0.9, "decay of the mean update's average", low=0, below=1, traced=True)
    b2: float = free(0.99, "decay of the squares' average", low=0, below=1, traced=True)
    epsilon: float = free(
        1e-3, "added to the root of the squares' average", above=0, high=1e3, traced=True
    )


def _adam(s: Any) -> Any:
    return fp.server.adam(s.lr, s.adam.b1, s.adam.b2, s.adam.epsilon)


SERVERS = {
    "average": Kind(lambda s: fp.server.average(s.lr)),
    "momentum": Kind(lambda s: fp.server.momentum(s.lr, s.momentum.beta), "momentum"),
    "adam": Kind(_adam, "adam"),
}
"""name -> this section -> server"""


@dataclass
class Server:
    """The step of the global model."""

    optimizer: str = spec(
        "average", "how the server makes a step of the clients' mean update", choices=SERVERS
    )
    lr: float = free(
        1.0,
        "server learning rate; 1 is averaging, adam wants far less",
        low=0,
        high=1e3,
        traced=True,
    )
    momentum: Momentum = part("optimizer", Momentum)
    adam: Adam = part("optimizer", Adam)
