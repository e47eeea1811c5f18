"""Servers: the global model's step along the received mean update Delta.

    average     w <- w + lr Delta                                              (FedAvg with lr = 1)
    momentum    v <- momentum v + Delta,  w <- w + lr v                        (FedAvgM)
    adam        m <- b1 m + (1 - b1) Delta,  v <- b2 v + (1 - b2) Delta^2,
                w <- w + lr m' / (sqrt(v') + epsilon)                          (FedAdam)

with m' = m / (1 - b1^n) and v' = v / (1 - b2^n) in the n-th step, as in Adam; FedAdam as published
does without this correction and starts from v = epsilon^2. A round in which no client counted is no
step.

FedAvgM: Hsu, Qi, Brown, Measuring the Effects of Non-Identical Data Distribution for Federated
Visual Classification, 2019. FedAdam: Reddi et al., Adaptive Federated Optimization, 2021, with
b1 = 0.9, b2 = 0.99 and epsilon = 1e-3 there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from fedprune import check, tree
from fedprune.types import Outcome, Params, PyTree, Server

Number = jax.Array | float


def optimizer(transform: optax.GradientTransformation) -> Server:
    """An optax optimizer on the pseudo-gradient, minus the mean update (FedOpt).

    Running statistics (``tree.statistics_of``) are no weights: they take the mean update as it is.

    Raises:
      TypeError: no optimizer.
    """
    check.kind("transform", transform, optax.GradientTransformation, optax.MultiSteps)

    def update(state: PyTree, outcome: Outcome) -> tuple[Params, PyTree]:
        params, received = outcome.params, outcome.update
        gradient = jax.tree.map(lambda u: -u, received)
        updates, state = transform.update(gradient, state, params)
        stepped = optax.apply_updates(params, updates)
        return tree.statistics_of(jax.tree.map(jnp.add, params, received), stepped), state

    return Server(transform.init, update)


def average(learning_rate: Number = 1.0) -> Server:
    """params + learning_rate × mean update; with 1.0, federated averaging."""
    _rate(learning_rate)
    return optimizer(optax.sgd(learning_rate))


def momentum(learning_rate: Number = 1.0, momentum: Number = 0.9) -> Server:
    """FedAvgM."""
    _rate(learning_rate)
    check.number("momentum", momentum, 0, below=1)
    return optimizer(optax.sgd(learning_rate, momentum))


def adam(
    learning_rate: Number, b1: Number = 0.9, b2: Number = 0.99, epsilon: Number = 1e-3
) -> Server:
    """FedAdam, with Adam's correction of the first steps."""
    _rate(learning_rate)
    check.number("b1", b1, 0, below=1)
    check.number("b2", b2, 0, below=1)
    check.number("epsilon", epsilon, 0)
    return optimizer(optax.adam(learning_rate, b1, b2, epsilon))


def _rate(learning_rate: Number) -> None:
    """A number, or an optax schedule: servers keep their state, so that it counts all rounds."""
    if not callable(learning_rate):
        check.number("learning_rate", learning_rate, 0)
