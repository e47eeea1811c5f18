"""Servers: the global model's step along the received mean update."""

from __future__ import annotations

import jax
import optax

from fedprune.types import Params, PyTree, Server


def optimizer(transform: optax.GradientTransformation) -> Server:
    """An optax optimizer on the pseudo-gradient, minus the mean update (FedOpt)."""

    def update(state: PyTree, params: Params, received: Params) -> tuple[Params, PyTree]:
        gradient = jax.tree.map(lambda u: -u, received)
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return Server(transform.init, update)


def average(learning_rate: jax.Array | float = 1.0) -> Server:
    """params + learning_rate × mean update; with 1.0, federated averaging."""
    return optimizer(optax.sgd(learning_rate))
