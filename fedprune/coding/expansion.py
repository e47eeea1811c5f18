"""One code for any number of symbols a weight, which may be traced.

Unequal protection gives every layer of every model a number of symbols of its own. As shapes they
would make a program for each of them; so here a code has places for the largest number, and
``sent`` says how many are used. Zeros in the others take no power.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import check
from fedprune.coding.code import Code
from fedprune.coding.repetition import repetition
from fedprune.coding.spiral import spiral

FAMILIES = ("repetition", "spiral")


def expansion(
    family: str,
    times: jax.Array | int,
    largest: int,
    gamma: jax.Array | float = 1.0,
    decoder: str | None = None,
) -> Code:
    """The code 1:times of a family.

    Args:
      family: "repetition", or "spiral", which sends single symbols uncoded.
      times: symbols a weight, at least 1 and at most ``largest``; spirals take powers of two, and
        of another number the next lower one. May be traced.
      largest: symbols that there is room for.
      gamma: of the spirals.
      decoder: of the family; None: "ls" or "ml".

    Raises:
      ValueError: an unknown family or decoder, or room for less than one symbol.
    """
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} is not one of {FAMILIES}")
    check.whole("largest", largest, 1)
    check.whole("times", times, 1, largest)
    if family == "repetition":
        codes = [repetition(n, decoder or "ls") for n in range(1, largest + 1)]
        which = jnp.asarray(times, jnp.int32) - 1
    else:
        levels = range(largest.bit_length())
        codes = [
            spiral(gamma, level, decoder or "ml") if level else repetition(1) for level in levels
        ]
        steps = jnp.asarray([2**level for level in levels[1:]], jnp.int32)
        which = jnp.sum(jnp.asarray(times, jnp.int32) >= steps, dtype=jnp.int32)
    sent = jnp.asarray([code.symbols for code in codes], jnp.int32)[which]

    def encode(weights: jax.Array) -> jax.Array:
        def of(code: Code) -> jax.Array:
            symbols = code.encode(weights)
            room = [(0, 0)] * weights.ndim + [(0, largest - code.symbols)]
            return jnp.pad(symbols, room)

        return lax.switch(which, [lambda code=code: of(code) for code in codes])

    def decode(received: jax.Array, variance: jax.Array | float) -> jax.Array:
        def of(code: Code) -> jax.Array:
            return code.decode(received[..., : code.symbols], variance)

        return lax.switch(which, [lambda code=code: of(code) for code in codes])

    return Code(largest, encode, decode, sent)
