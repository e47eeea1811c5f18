"""How much a layer's noise matters, for unequal error protection.

A layer is a leaf of ``params``; what is not to be measured (biases, statistics) is closed over by
the loss. With l_j the loss of example j and L the *mean* loss:

    loss      s_i = sum_j (l_j(w) - l_j(w + noise on layer i))^2, averaged over draws
    hessian   s_i = the largest eigenvalue of d^2 L / d w_i^2, at least 0

P3 states neither the noise nor the draws of the first, so both are arguments: the natural noise is
that of the channel (``channel.weight_deviation``). It writes the second for the sum of the losses,
which only rescales all layers alike.

Source: P3 (5) and Algorithm 1 (whose defects ``eigen`` mends).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import check, rng
from fedprune.coding import eigen
from fedprune.types import Key, Params

METHODS = ("power", "lanczos")


def loss_sensitivity(
    key: Key,
    losses: Callable[[Params], jax.Array],
    params: Params,
    deviations: Params,
    draws: int = 1,
) -> Params:
    """P3 (5) of every layer.

    Args:
      key: of the noise.
      losses: params -> the loss of each example [n].
      params: pytree of L layers.
      deviations: standard deviation [] of the noise on each layer, a pytree like ``params``.
      draws: of the noise.

    Returns:
      s_i [] for each layer, a pytree like ``params``.
    """
    check.function("losses", losses)
    check.whole("draws", draws, 1)
    leaves, treedef = jax.tree.flatten(params)
    clean = losses(params)

    def of_layer(i: int, deviation: jax.Array | float) -> jax.Array:
        def of_draw(draw: jax.Array) -> jax.Array:
            noise = jax.random.normal(rng.stream(key, "sensitivity", i, draw), leaves[i].shape)
            noisy = [*leaves]
            noisy[i] = leaves[i] + deviation * noise
            return jnp.square(losses(jax.tree.unflatten(treedef, noisy)) - clean).sum()

        return lax.map(of_draw, jnp.arange(draws)).mean()

    found = [of_layer(i, s) for i, s in enumerate(jax.tree.leaves(deviations))]
    return jax.tree.unflatten(treedef, found)


def hessian_sensitivity(
    key: Key,
    loss: Callable[[Params], jax.Array],
    params: Params,
    which: str = "la",
    method: str = "power",
    tolerance: jax.Array | float = 1e-3,
    products: int = 200,
) -> tuple[Params, Params]:
    """Extreme eigenvalue of every layer's Hessian block.

    Args:
      key: of the first vectors.
      loss: params -> mean loss [].
      params: pytree of L layers.
      which: "la", the largest eigenvalue, where negative ones count as 0; or "lm", the one of
        largest magnitude, with its sign, which Algorithm 1 is after.
      method: "power" (``eigen.power_iteration``) or "lanczos" (``eigen.lanczos``).
      tolerance: of the residual, relative, for "power".
      products: limit of Hessian-vector products ("power", each run), or their number ("lanczos").

    Returns:
      The eigenvalues, and ``eigen.Eigenvalue`` with the residual of each; pytrees like ``params``.

    Raises:
      ValueError: an unknown method or ``which``.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is not one of {METHODS}")
    check.function("loss", loss)
    leaves, treedef = jax.tree.flatten(params)

    def of_layer(i: int) -> eigen.Eigenvalue:
        def at(w: jax.Array) -> jax.Array:
            replaced = [*leaves]
            replaced[i] = w.reshape(leaves[i].shape)
            return loss(jax.tree.unflatten(treedef, replaced))

        flat = leaves[i].reshape(-1)
        product = lambda v: jax.jvp(jax.grad(at), (flat,), (v,))[1]
        start = jax.random.normal(rng.stream(key, "eigenvector", i), flat.shape)
        if method == "lanczos":
            return eigen.lanczos(product, start, which, products)
        return eigen.power_iteration(product, start, which, tolerance, products)

    found = [of_layer(i) for i in range(len(leaves))]
    values = [f.value if which == "lm" else jnp.maximum(f.value, 0.0) for f in found]
    return jax.tree.unflatten(treedef, values), jax.tree.unflatten(treedef, found)
