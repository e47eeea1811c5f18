"""FedDST: clients drop and regrow weights of a sparse model while they train it.

Bibikar, Vikalo, Wang, Chen, Federated Dynamic Sparse Training, AAAI 2022, and their code. By layer,
with n_l the number of weights that the mask m keeps of it and a(t) the share readjusted in round t:

  client   w_k <- steps on m * w;   m' = the n_l - round(a n_l) largest |w_k| within m
           m_k = m' and the round(a n_l) largest |grad F_k(w_k)| outside m', which start at zero
           w_k <- steps on m_k * w_k                                            (before and after)
  server   w   <- sum_k D_k m_k w_k / sum_k D_k m_k,  0 where nobody holds a weight
           m   <- the round(density d_l) largest |w| of those that somebody holds,  w <- m * w

A round without readjustment has a(t) = 0. The first mask keeps the largest initial weights. As in
the paper, weights that are held do not regrow; the code ranks them, too, and sets them to zero.

Billed: symbols of all d weights over the air, since any may arrive, the held ones by digital links;
and the masks, which the server counts: one bit a weight and client, in every round.
"""

import jax
import jax.numpy as jnp

from fedprune import local, prune, rng, tree
from fedprune.types import LocalUpdate, Model, Pruner, Server, Trained


def train(
    model: Model, before: LocalUpdate, after: LocalUpdate, share, batch: int, prunable=prune.kernels
) -> LocalUpdate:
    """The client: ``before`` and ``after`` train, ``share`` is round -> a(t), ``batch`` examples
    decide what grows."""
    if model.train is not None:
        raise ValueError("feddst.train: the network has running statistics, which have no gradient")

    def update(key, t, params, mask, client):
        first = before(rng.stream(key, "before"), t, params, mask, client)
        trained = jax.tree.map(jnp.add, params, first.delta)
        size = jnp.maximum(client.size, 1)
        x, y = client.take(jax.random.randint(rng.stream(key, "growth"), (batch,), 0, size))
        slope = jax.grad(lambda w: local.cross_entropy(model.apply(w, x), y).mean())(trained)
        go = jax.tree.map(lambda m: jnp.round(share(t) * m.sum(dtype=jnp.float32)), mask)
        go = jax.tree.map(lambda n: n.astype(jnp.int32), go)
        stay = jax.tree.map(lambda m, n: m.sum(dtype=jnp.int32) - n, mask, go)
        magnitude, slope = jax.tree.map(jnp.abs, (trained, slope))
        stays = prune.by_layer(magnitude, stay, mask, prunable)
        grows = prune.by_layer(slope, go, jax.tree.map(jnp.logical_not, stays), prunable)
        held = jax.tree.map(jnp.logical_or, stays, grows)
        start = tree.apply_mask(stays, trained)
        second = after(rng.stream(key, "after"), t, start, held, client)
        delta = jax.tree.map(lambda s, d, w: s + d - w, start, second.delta, params)
        return Trained(tree.apply_mask(held, delta), second.loss, held=held)

    return update


def holders() -> Server:
    """The server's step: the mean over holders from the mean over all clients, which every link
    but ``link.holders`` estimates."""

    def update(state, outcome):
        one = lambda w, u, c: jnp.where(c > 0, w + u / jnp.where(c > 0, c, 1.0), 0.0)
        return jax.tree.map(one, outcome.params, outcome.update, outcome.held), state

    return Server(lambda params: (), update)


def pruner(density, prunable=prune.kernels) -> Pruner:
    """The server's mask: of every layer the share ``density``, which may be traced."""

    def select(params, alive=None):
        keep = jax.tree.map(lambda w: jnp.round(density * w.size).astype(jnp.int32), params)
        return prune.by_layer(jax.tree.map(jnp.abs, params), keep, alive, prunable)

    def update(state, before):
        return tree.where(before.round == 0, select(before.params), before.mask), state

    def revise(state, outcome):
        mask = select(outcome.params, jax.tree.map(lambda c: c > 0, outcome.held))
        return tree.where(outcome.heard, mask, outcome.mask), state

    return Pruner(lambda params: (), update, revise=revise, proposals=True)
