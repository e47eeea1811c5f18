"""Clients with personal parts: P4's partial personalization, and what it is compared with.

A client's model joins the global part u, which it receives and sends, and its personal part v_k,
which it keeps. In a round, with F_k the client's loss:

  alternating   v_k <- tau_v steps on F_k(u, .), then u_k <- tau_u steps on F_k(., v_k)
                FedAlt, P4 (6), (7)
  simultaneous  tau steps on F_k(., .), both parts at once, each with its optimizer
                FedSim; P4 names it and gives no equation
  ditto         u_k as without personal parts; v_k, a whole model, <- steps on
                F_k(v) + pull/2 |v - u|^2 with u the model received
                Li et al. (2021), Ditto: Fair and Robust Federated Learning Through Personalization
  tuned         u_k as without personal parts; v_k = u_k, what local training made of the model
                received: federated averaging, tested after local steps (fine-tuning)

All are made of trainers of models (``local.sgd``, ``own_masks``): a part is trained by giving them
a model of which only that part counts as parameters. FedAlt and FedSim: Pillutla et al. (2022),
Federated Learning with Partial Model Personalization, which is P4's reference [11].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedprune import check, rng, tree
from fedprune.types import Client, Key, LocalUpdate, Mask, Model, Params, Personal, PyTree, Trained

Make = Callable[[Model], LocalUpdate]
"""A trainer of any model, for example ``lambda model: local.sgd(model, ...)``"""


def parts(personal: Callable[[str, Any], bool], clients: int) -> Personal:
    """Every weight is either global or personal.

    Args:
      personal: (path "layer/kernel", leaf) -> whether it is personal.
      clients: K.

    Raises (when a model is split):
      ValueError: no weight is personal, or all are.
    """
    check.function("personal", personal)
    check.whole("clients", clients, 1)

    def split(params: Params) -> tuple[Params, PyTree]:
        chosen = tree.match_path(personal, params)
        if len(set(jax.tree.leaves(chosen))) < 2:
            which = "all" if any(jax.tree.leaves(chosen)) else "none"
            raise ValueError(f"personal: {which} of the model's weights would be personal")
        return tree.split(chosen, params)

    return Personal(clients, split, tree.join)


def copies(clients: int) -> Personal:
    """Every client has a whole model of its own beside the global one (``ditto``, ``tuned``)."""
    check.whole("clients", clients, 1)
    return Personal(clients, lambda params: (params, params), lambda shared, own: own)


def frozen(model: Model, make: Make) -> LocalUpdate:
    """Trains the global part at the client's personal part, which stays as it is, P4 (7)."""

    def update(key: Key, t: jax.Array, params: Params, mask: Mask, client: Client) -> Trained:
        own = client.personal
        train = make(_of_part(model, params, lambda shared: tree.join(shared, own)))
        return train(key, t, params, mask, client)._replace(personal=own)

    return update


def alternating(model: Model, personal: Make, then: LocalUpdate) -> LocalUpdate:
    """FedAlt: first the personal part at the global part received, P4 (6), then ``then``.

    The reported loss is that of ``then``.

    Args:
      model: the whole network.
      personal: trains the personal part.
      then: trains the global part at the new personal part: ``frozen``, or ``own_masks`` of it.
    """

    def update(key: Key, t: jax.Array, params: Params, mask: Mask, client: Client) -> Trained:
        own = client.personal
        train = personal(_of_part(model, own, lambda own: tree.join(params, own)))
        moved = train(rng.stream(key, "personal"), t, own, None, client).delta
        own = jax.tree.map(jnp.add, own, moved)
        return then(key, t, params, mask, client._replace(personal=own))

    return update


def simultaneous(train: LocalUpdate) -> LocalUpdate:
    """FedSim: steps of both parts at once, on the same batches.

    Args:
      train: of the whole network; ``optax.partition`` gives the parts different optimizers.
    """

    def update(key: Key, t: jax.Array, params: Params, mask: Mask, client: Client) -> Trained:
        own = client.personal
        if mask is not None:  # personal weights are never pruned
            mask = tree.join(mask, jax.tree.map(lambda v: jnp.ones(v.shape, bool), own))
        trained = train(key, t, tree.join(params, own), mask, client)
        own = jax.tree.map(jnp.add, own, tree.like(own, trained.delta))
        return Trained(tree.like(params, trained.delta), trained.loss, personal=own)

    return update


def ditto(model: Model, personal: Make, train: LocalUpdate) -> LocalUpdate:
    """Ditto: the global model as ``train`` has it, and a whole model pulled towards it.

    What is trained is d = v_k - u from the model received, u. The pull's gradient is pull d, so
    ``personal`` needs an optimizer behind ``optax.add_decayed_weights(pull)`` and nothing else.

    Args:
      model: the network.
      personal: trains d.
      train: trains the global model.
    """

    def update(key: Key, t: jax.Array, params: Params, mask: Mask, client: Client) -> Trained:
        apart = jax.tree.map(jnp.subtract, client.personal, params)
        shifted = _at(
            model,
            lambda apart: jax.tree.map(jnp.add, params, apart),
            lambda whole: jax.tree.map(jnp.subtract, whole, params),
        )
        moved = personal(shifted)(rng.stream(key, "personal"), t, apart, None, client).delta
        own = jax.tree.map(jnp.add, client.personal, moved)
        return train(key, t, params, mask, client)._replace(personal=own)

    return update


def tuned(train: LocalUpdate) -> LocalUpdate:
    """Fine-tuning: the client's model is what ``train`` has made of the one received."""

    def update(key: Key, t: jax.Array, params: Params, mask: Mask, client: Client) -> Trained:
        trained = train(key, t, params, mask, client)
        return trained._replace(personal=jax.tree.map(jnp.add, params, trained.delta))

    return update


def _of_part(model: Model, part: PyTree, join: Callable[[PyTree], Params]) -> Model:
    """The network as a function of one part of its parameters."""
    return _at(model, join, lambda whole: tree.like(part, whole))


def _at(model: Model, whole: Callable[[PyTree], Params], part: Callable[[Params], PyTree]) -> Model:
    """The network with other parameters; ``part`` undoes ``whole``."""

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        return model.apply(whole(params), x)

    def train(params: PyTree, x: jax.Array) -> tuple[jax.Array, PyTree]:
        assert model.train is not None
        logits, after = model.train(whole(params), x)
        return logits, part(after)

    return Model(lambda key: part(model.init(key)), apply, train if model.train else None)
