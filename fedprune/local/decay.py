"""Learning rates that fall over the rounds: factors on the local learning rate.

A decay maps the round t, counted from 0, to a factor that is 1 at t = 0. With T rounds and
x = min(t / (T - 1), 1), which is 1 in the last round:

    cosine       end + (1 - end) (1 + cos(pi x)) / 2    (Loshchilov and Hutter, SGDR, (5))
    exponential  end^x
    step         factor^floor(t / every)

All numbers may be traced.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedprune import check

Decay = Callable[[jax.Array], jax.Array]
"""round [] int32 -> factor [] float32"""

Number = jax.Array | float
Count = jax.Array | int


def cosine(rounds: Count, end: Number = 0.0) -> Decay:
    """Half a period of a cosine, from 1 to ``end`` in the last of ``rounds`` rounds."""
    check.whole("rounds", rounds, 1)
    check.number("end", end, 0)

    def decay(t: jax.Array) -> jax.Array:
        return end + (1.0 - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * _progress(t, rounds)))

    return decay


def exponential(rounds: Count, end: Number) -> Decay:
    """The same factor in every round, from 1 to ``end`` > 0 in the last of ``rounds`` rounds."""
    check.whole("rounds", rounds, 1)
    check.number("end", end, above=0)
    return lambda t: jnp.power(_float(end), _progress(t, rounds))


def step(every: Count, factor: Number) -> Decay:
    """Times ``factor`` after each ``every`` rounds."""
    check.whole("every", every, 1)
    check.number("factor", factor, 0)
    return lambda t: jnp.power(_float(factor), (t // every).astype(jnp.float32))


def _progress(t: jax.Array, rounds: Count) -> jax.Array:
    last = jnp.maximum(_float(rounds) - 1.0, 1.0)
    return jnp.minimum(t.astype(jnp.float32) / last, 1.0)


def _float(value: Number) -> jax.Array:
    return jnp.asarray(value, jnp.float32)
