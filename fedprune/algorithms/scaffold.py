"""SCAFFOLD: local steps corrected by what a client's gradients differ from everybody's.

Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, 2020, with
option II for the control variates. Client k keeps c_k and the server c, all zero at first. From the
model x received a client takes T steps on random batches,

  y <- y - eta (grad F_k(y) - c_k + c),      c_k+ = c_k - c + (x - y) / (T eta),

sends y - x as its update and c_k+ - c_k beside it, and keeps c_k+. With S of K clients in a cohort

  x <- x + eta_g mean(y - x),      c <- c + (S / K) mean(c_k+ - c_k).

The paper's means are plain: ``round.build(..., weighting="plain")``. Billed beside the link: c once
a round, 32 bits a weight, and c_k+ - c_k of every client that counts.
"""

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import local, rng, tree
from fedprune.types import LocalUpdate, Model, Personal, Report, Server, Trained


def train(model: Model, learning_rate, batch: int, steps: int) -> LocalUpdate:
    """The client; ``learning_rate`` eta may be traced, ``steps`` is T."""

    def update(key, t, params, mask, client):
        own, common = client.personal, client.message

        def loss(weights, positions):
            x, y = client.take(positions)
            return local.cross_entropy(model.apply(weights, x), y).mean()

        def step(now, i):
            size = jnp.maximum(client.size, 1)
            drawn = jax.random.randint(rng.stream(key, "batch", i), (batch,), 0, size)
            value, slope = jax.value_and_grad(loss)(now, drawn)
            pull = jax.tree.map(lambda g, mine, all: g - mine + all, slope, own, common)
            pull = tree.apply_mask(mask, pull)
            return jax.tree.map(lambda w, g: w - learning_rate * g, now, pull), value

        start = tree.match((params, client, key, own, common))[0]
        end, values = lax.scan(step, start, jnp.arange(steps))
        delta = jax.tree.map(jnp.subtract, end, params)
        slope = tree.scale(-1.0 / (steps * learning_rate), delta)
        new = jax.tree.map(lambda mine, all, g: mine - all + g, own, common, slope)
        moved = jax.tree.map(jnp.subtract, new, own)
        return Trained(delta, values.mean(), personal=new, report=Report(moved))

    return update


def variates(clients: int) -> Personal:
    """What clients keep: c_k, zero at first."""
    zero = lambda params: jax.tree.map(jnp.zeros_like, params)
    whole = lambda params, own: params
    return Personal(clients, lambda params: (params, zero(params)), whole, own_model=False)


def server(clients: int, cohort: int, learning_rate=1.0) -> Server:
    """The server: keeps c and sends it; ``learning_rate`` is eta_g."""

    def update(common, outcome):
        share = cohort / clients
        common = jax.tree.map(lambda c, moved: c + share * moved, common, outcome.report)
        step = lambda w, u: w + learning_rate * u
        return jax.tree.map(step, outcome.params, outcome.update), common

    return Server(lambda params: jax.tree.map(jnp.zeros_like, params), update, lambda c: c)
