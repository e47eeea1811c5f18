"""Updates whose masks differ: the mean over those clients that hold a weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedprune import bill, check, rng, tree
from fedprune.types import (
    Air,
    Arrival,
    Cohort,
    Params,
    Received,
    Sender,
    Sent,
    Survey,
    Total,
    Uplink,
)


def holders(values: Uplink, masks: Uplink, least: jax.Array | float) -> Uplink:
    """Divides what ``values`` carries by the share of the cohort that holds each weight.

    Client k keeps weight j or not, m_kj in {0, 1}, and trains only what it keeps. An uplink by
    itself estimates the mean over all clients ("deltas over N"),

      s_j = sum_k w_k m_kj g_kj / W = c_j gbar_j,       c_j = sum_k w_k m_kj / W,

    which shrinks gbar_j, the mean over the holders of weight j, by their share c_j. Here a second
    transmission, over ``masks``, carries m_k in place of g_k, and the estimate is

      y_j / z_j  where z_j >= least,  0 elsewhere,       y_j = s_j + a_j,  z_j = c_j + b_j,

    with the receiver noises a_j and b_j of the two transmissions. They are independent and
    a_j has mean zero, so, with b_j of variance v and the holders given,

      E[estimate_j] = c_j gbar_j E[1{z_j >= least} / z_j]
                    = gbar_j (1 + v / c_j^2 + O(v^2 / c_j^4))     for  c_j - least >> sqrt(v):

    nearly unbiased where the counts are well above the noise. A weight that somebody holds is
    zeroed with probability Phi((least - c_j) / sqrt(v)); one that nobody holds is let through, as
    pure noise divided by at least ``least``, with probability Phi(-least / sqrt(v)). Over exact
    links this is P2 (12), with "nobody holds it" read as "no change" (the previous value is kept).

    With "receiver" normalisation at SNR g, v = mean(c^2) / g, which may be far above (0.5 / S)^2:
    then only a ``least`` of some sqrt(v) keeps out weights that nobody holds, and rarely held ones
    with them.

    Over the air every transmission takes all d weights of the round's mask, since the server does
    not know who holds which: per-client masks save no channel use there, and counting them
    doubles the bill. Both transmissions are billed. ``Cost.noise_variance`` is the mean over the
    weights that pass of (v_a + estimate_j^2 v_b) / z_j^2.

    Args:
      values: carries the updates.
      masks: carries the masks, as zeros and ones: the same uplink again over the air, ``ideal()``
        where the server reads the masks from the bits it receives.
      least: smallest share of the cohort's weight, above 0: the minimum-holder rule. 0.5 / S asks
        for half a client of mean weight, the midpoint between none and one.

    Raises:
      ValueError: uplinks for different numbers of clients.

    Source: P2 (12); counting over the air is our extension of P0's superposition.
    """
    for name, link in (("values", values), ("masks", masks)):
        check.kind(name, link, Uplink)
    check.number("least", least, above=0)
    known = {link.clients for link in (values, masks) if link.clients is not None}
    if len(known) > 1:
        raise ValueError(
            f"values is for {values.clients} clients, but masks for {masks.clients}: must be equal"
        )
    links = (values, masks)

    def prepare(cohort: Cohort) -> Air:
        memory = _parted(cohort.memory)
        first, second = (
            uplink.prepare(cohort._replace(memory=kept))
            for uplink, kept in zip(links, memory, strict=True)
        )
        return first._replace(
            sends=first.sends | second.sends,
            active=first.active & second.active,
            state=(first.state, second.state),
            common=(first.common, second.common),
            memory=_joined([first.memory, second.memory]),
        )

    def encode(sender: Sender) -> Sent:
        trained, memory = sender.trained, _parted(sender.memory)
        ones = jax.tree.map(jnp.ones_like, trained.delta)
        held = tree.apply_mask(sender.mask, tree.apply_mask(trained.held, ones))

        def part(i: int, delta: Params) -> Sent:
            mine = {"state": sender.state[i], "common": sender.common[i], "memory": memory[i]}
            return links[i].encode(sender._replace(trained=trained._replace(delta=delta), **mine))

        first, second = part(0, trained.delta), part(1, held)
        total = Total((first.total.sum, second.total.sum), (first.total.max, second.total.max))
        return Sent(total, _joined([first.memory, second.memory]))

    def finish(arrival: Arrival) -> Received:
        air, total = arrival.air, arrival.total
        memory = _parted(air.memory)

        def part(i: int) -> Received:
            mine = Total(total.sum[i], total.max[i])
            here = air._replace(state=air.state[i], common=air.common[i], memory=memory[i])
            key = rng.stream(arrival.key, "holders", i)
            return links[i].finish(arrival._replace(key=key, air=here, total=mine))

        return _quotient(part(0), part(1), least, memory)

    def survey(asked: Survey) -> tuple[jax.Array, Any]:
        assert values.survey is not None
        memory = _parted(asked.memory)
        gains, memory[0] = values.survey(asked._replace(memory=memory[0]))
        return gains, _joined(memory)

    return Uplink(
        prepare,
        encode,
        finish,
        _of_both(values.init, masks.init),
        _of_both(values.remember, masks.remember),
        None if values.survey is None else survey,
        values.masks,
        max(known, default=None),
    )


def _quotient(
    carried: Received, counted: Received, least: jax.Array | float, memory: list[Any]
) -> Received:
    """The mean over holders, of the mean over all and their share.

    Args:
      carried: by the link of the values.
      counted: by that of the masks.
      least: see ``holders``.
      memory: what both links had kept at the server before they finished.
    """
    cost, counting, share = carried.cost, counted.cost, counted.update
    passes = jax.tree.map(lambda c: c >= least, share)
    update = jax.tree.map(lambda p, y, c: jnp.where(p, y / c, 0.0), passes, carried.update, share)

    def squared(p: jax.Array, u: jax.Array, c: jax.Array) -> jax.Array:
        noise = cost.noise_variance + jnp.square(u) * counting.noise_variance
        return jnp.where(p, noise / jnp.square(c), 0.0)

    noise = tree.total(jax.tree.map(squared, passes, update, share))
    number = jnp.maximum(tree.count(passes, update), 1).astype(jnp.float32)
    both = bill.both(cost, counting)._replace(noise_variance=noise / number)
    named = (("values", carried), ("masks", counted))
    numbers = {f"{name}_{key}": value for name, of in named for key, value in of.numbers.items()}
    after = [
        kept if received.memory is None else received.memory
        for kept, received in zip(memory, (carried, counted), strict=True)
    ]
    return Received(update, both, _joined(after), numbers)


def _parted(of: Any) -> list[Any]:
    """The parts of what both links have one of; None where neither has."""
    return [None, None] if of is None else list(of)


def _joined(parts: list[Any]) -> Any:
    return None if all(part is None for part in parts) else tuple(parts)


def _of_both(*made: Callable[[Params], Any] | None) -> Callable[[Params], Any] | None:
    """What makes the memory of each, where any of them has one."""
    if all(of is None for of in made):
        return None
    return lambda params: tuple(None if of is None else of(params) for of in made)
