"""Clients that prune the model they received by themselves, each with a mask of its own."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedprune import check, rng, tree
from fedprune.types import Client, Key, LocalUpdate, Mask, Params, PyTree, Trained

Importance = Callable[[Params, Params], PyTree]
"""(received, warmed up) -> numbers of the same shapes; the smallest are pruned"""


def magnitude(received: Params, warmed: Params) -> PyTree:
    """|w| after the warm-up (P0 section III, at the device)."""
    return jax.tree.map(jnp.abs, warmed)


def change(received: Params, warmed: Params) -> PyTree:
    """How far the warm-up moved each weight, |w - w_hat| (P2 (2), P4 (20))."""
    return jax.tree.map(lambda w, v: jnp.abs(w - v), received, warmed)


def allocated(t: jax.Array, client: Client) -> jax.Array:
    """The pruning ratio that the client was told with its channel (P2, P4).

    Raises:
      ValueError: the uplink allocates none.
    """
    if client.ratio is None:
        raise ValueError("local.allocated: the uplink allocates no pruning ratios")
    return client.ratio


def own_masks(
    warm_up: LocalUpdate,
    train: LocalUpdate,
    select: Callable[[PyTree, jax.Array], Mask],
    sparsity: Callable[[jax.Array, Client], jax.Array],
    importance: Importance = magnitude,
    rewind: bool = False,
) -> LocalUpdate:
    """Warm-up steps, a mask from what they found, then training of what the mask keeps.

        w_hat = warm_up(w),   m_k = select(importance(w, w_hat), s),
        w_k   = train(m_k * w_hat, m_k),   delta_k = m_k * (w_k - w)

    for one client k that received w and prunes the share s. Clients have seen different examples,
    so their masks differ.

    The optimizer starts afresh after the warm-up, FedProx pulls ``train`` towards its own start,
    and the reported loss is that of ``train``.

    Args:
      warm_up: the first steps, on the dense model that was received.
      train: the other steps; it starts with an optimizer of its own.
      select: (importance, sparsity) -> mask, for example ``prune.selection``.
      sparsity: (round, client) -> share to prune: a schedule, or ``allocated``.
      importance: of every weight.
      rewind: training starts from m_k * w, the weights received, and not from the warmed-up ones.

    Source: P0 section III with pruning at the devices; P2 Algorithm 1 and (2), (5), (8), which
    leaves ``rewind`` open, P4 (20)-(22), which rewinds.
    """
    for name, value in (("warm_up", warm_up), ("train", train), ("select", select)):
        check.function(name, value)
    check.function("sparsity", sparsity)
    check.function("importance", importance)

    def update(key: Key, t: jax.Array, params: Params, mask: Mask, client: Client) -> Trained:
        first = warm_up(rng.stream(key, "warm_up"), t, params, mask, client)
        warmed = jax.tree.map(jnp.add, params, first.delta)
        held = tree.conjunction(mask, select(importance(params, warmed), sparsity(t, client)))
        start = tree.apply_mask(held, params if rewind else warmed)
        trained = train(key, t, start, held, client)
        delta = jax.tree.map(lambda s, d, w: s + d - w, start, trained.delta, params)
        return trained._replace(delta=tree.apply_mask(held, delta), held=held)

    return update
