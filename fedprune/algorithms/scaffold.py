"""SCAFFOLD: control variates take the drift out of local steps.

Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020,
Algorithm 1 with option II. With x the model received, c the server's variate, c_k the client's
and K clients, of whom the cohort S takes part in a round:

  client   y <- x;  as often as there are steps:  y <- y - eta (grad F_k(y) - c_k + c)
           c_k+ = c_k - c + (x - y) / (steps eta);   sends y - x and c_k+ - c_k
  server   x <- server's step along the mean of y - x over S                       (average: eta_g)
           c <- c + 1/K sum_{k in S} (c_k+ - c_k)

All variates begin at zero, so c stays the mean of all c_k, as long as every update that is sent
arrives: over a link with outage a client keeps a variate that the server has not heard of. Of a
pruned weight variates stay as they are, and running statistics have none.

Billed beside the link: c, d numbers of 32 bits once a round, and c_k+ - c_k, d from every client.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedprune import local, server, tree
from fedprune.types import LocalUpdate, Model, Personal, Report, Server


def train(model: Model, rate, batch: int, steps: int) -> LocalUpdate:
    """The client; ``rate`` is eta and may be traced."""

    def update(key, t, params, mask, client):
        own, common = client.personal, client.message
        shift = tree.apply_mask(mask, jax.tree.map(jnp.subtract, common, own))
        add = optax.stateless(lambda gradient, _: jax.tree.map(jnp.add, gradient, shift))
        sgd = local.sgd(model, optax.chain(add, optax.sgd(rate)), batch, steps)
        trained = sgd(key, t, params, mask, client)
        change = jax.tree.map(lambda c, d: -c - d / (steps * rate), common, trained.delta)
        change = tree.statistics_of(jax.tree.map(jnp.zeros_like, own), change)
        change = tree.apply_mask(mask, change)
        new = jax.tree.map(jnp.add, own, change)
        return trained._replace(personal=new, report=Report(change))

    return update


def variates(clients: int) -> Personal:
    """c_k of every client."""

    def split(params):
        return params, jax.tree.map(jnp.zeros_like, params)

    return Personal(clients, split, lambda params, own: params, own_model=False)


def controlled(step: Server, clients: int) -> Server:
    """Any server, and c."""

    def init(params):
        return step.init(params), jax.tree.map(jnp.zeros_like, params)

    def update(state, outcome):
        params, inner = step.update(state[0], outcome)
        share = outcome.clients / clients
        c = jax.tree.map(lambda c, change: c + share * change, state[1], outcome.report)
        return params, (inner, c)

    return Server(init, update, lambda state: state[1])


def stages(model: Model, clients: int, rate, batch: int, steps: int, step=None) -> dict[str, Any]:
    """What ``rounds.build`` takes, but link, participation and layout; ``step`` is a server."""
    return dict(
        local=train(model, rate, batch, steps),
        personal=variates(clients),
        server=controlled(server.average() if step is None else step, clients),
        weighting="plain",
    )
