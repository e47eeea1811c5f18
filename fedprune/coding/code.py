"""What a code is: weights of unit mean square <-> real symbols of unit mean square.

P3 sends every weight as r real symbols. A code knows nothing of layers or power: ``layers`` scales
weights to unit mean square before it and symbols to the budget after it. So one rule of power
serves all codes, and a decoder needs one number, the noise variance v per symbol of unit power, 1 /
SNR.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import check


class Code(NamedTuple):
    """Maps each weight to ``symbols`` reals and back."""

    symbols: int
    """r, real symbols a weight"""
    encode: Callable[[jax.Array], jax.Array]
    """weights [...] of unit mean square -> symbols [..., r] of unit mean square"""
    decode: Callable[[jax.Array, jax.Array | float], jax.Array]
    """(received symbols [..., r], noise variance per symbol []) -> weights [...]"""
    sent: jax.Array | int | None = None
    """how many of the r symbols are really sent, which may be traced; the others are zero, take no
    power and are not billed. None: all"""

    @property
    def repeats(self) -> jax.Array | int:
        """Symbols a weight that are sent."""
        return self.symbols if self.sent is None else self.sent


def chunked(decode: Callable[[jax.Array], jax.Array], received: jax.Array, chunk: int) -> jax.Array:
    """``decode`` applied to at most ``chunk`` weights at a time, in constant memory.

    Args:
      decode: symbols [n, r] -> weights [n], row by row.
      received: [..., r]
      chunk: largest n.
    """
    check.whole("chunk", chunk, 1)
    shape, symbols = received.shape[:-1], received.shape[-1]
    rows = received.reshape(-1, symbols)
    count = rows.shape[0]
    if count <= chunk:
        return decode(rows).reshape(shape)
    chunks = -(-count // chunk)
    padded = jnp.pad(rows, ((0, chunks * chunk - count), (0, 0)))
    weights = lax.map(decode, padded.reshape(chunks, chunk, symbols))
    return weights.reshape(-1)[:count].reshape(shape)
