"""PruneFL: the server picks the weights that lower the loss most for the time that they take.

Jiang et al., Model Pruning Enables Efficient Federated Learning on Edge Devices, 2019, and their
code. In the rounds that ask for it clients report squared gradients of their loss, of pruned
weights too, and g^2 is their mean, weighted like updates. With t_j seconds that weight j takes in a
round and c those that the rest takes, the mask A becomes the one of largest

  Gamma(A) = sum_{j in A} g_j^2 / (c + sum_{j in A} t_j)

among those that keep what may not go: leaves that are not prunable, whose time is part of c, and of
each layer the kept weights, but for the share s of smallest magnitude. The paper adds weights in
order of g_j^2 / t_j while that exceeds Gamma. The same set comes without sorting from
A <- {j: g_j^2 > Gamma(A) t_j} and what may not go, repeated until Gamma rises no more (Dinkelbach).
Weights that return start at zero. The first mask keeps the largest initial weights of each layer.
Billed beside the link: d numbers a client, in rounds that ask. They are of one batch at the model
received; the code adds up those of the round's steps.
"""

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import local, prune, rng, tree
from fedprune.types import LocalUpdate, Model, Pruner, Report


def train(model: Model, then: LocalUpdate, asked, batch: int) -> LocalUpdate:
    """The client: ``then`` trains, ``asked`` is round -> bool, ``batch`` examples are reported."""
    if model.train is not None:
        raise ValueError(
            "prunefl.train: the network has running statistics, which have no gradient"
        )

    def update(key, t, params, mask, client):
        nothing = jax.tree.map(jnp.zeros_like, params)
        size = jnp.maximum(client.size, 1)
        drawn = jax.random.randint(rng.stream(key, "report"), (batch,), 0, size)
        at, nothing, own, drawn = tree.match((params, nothing, client, drawn))

        def squares():
            x, y = own.take(drawn)
            slope = jax.grad(lambda w: local.cross_entropy(model.apply(w, x), y).mean())(at)
            return jax.tree.map(jnp.square, slope)

        report = Report(lax.cond(asked(t), squares, lambda: nothing), asked(t))
        return then(key, t, params, mask, client)._replace(report=report)

    return update


def pruner(density, seconds, rest, share=1.0, prunable=prune.kernels) -> Pruner:
    """The server: ``density`` of the first mask, ``seconds`` params -> t_j, one a leaf, ``rest`` c
    and ``share`` s; numbers may be traced."""

    def update(state, before):
        size = jax.tree.map(jnp.abs, before.params)
        keep = jax.tree.map(lambda w: jnp.round(density * w.size).astype(jnp.int32), size)
        first = prune.by_layer(size, keep, None, prunable)
        return tree.where(before.round == 0, first, before.mask), state

    def revise(state, outcome):
        gain, size = outcome.report, jax.tree.map(jnp.abs, outcome.params)
        kept = jax.tree.map(lambda m: m.sum(dtype=jnp.float32), outcome.mask)
        keep = jax.tree.map(lambda n: (n - jnp.floor(share * n)).astype(jnp.int32), kept)
        stays = prune.by_layer(size, keep, outcome.mask, prunable)
        ranked = tree.match_path(prunable, gain)
        time = jax.tree.map(lambda r, t: t if r else 0.0, ranked, seconds(gain))

        def gamma(mask):
            taken = jax.tree.map(lambda m, t: t * m.sum(dtype=jnp.float32), mask, time)
            return tree.total(tree.apply_mask(mask, gain)) / (rest + tree.total(taken))

        def above(level):
            return jax.tree.map(lambda m, g, t: m | (g > level * t), stays, gain, time)

        two = tree.match((jnp.float32(-1.0), gamma(stays)))
        level, _ = lax.while_loop(lambda a: a[1] > a[0], lambda a: (a[1], gamma(above(a[1]))), two)
        return tree.where(outcome.asked, above(level), outcome.mask), state

    return Pruner(lambda params: (), update, revise=revise)
