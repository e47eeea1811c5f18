"""Repetition 1:n: every weight is sent n times, and the receiver averages.

With noise variance v per symbol of unit power (SNR = 1 / v) and weights of unit mean square:

    ls     mean of the n symbols                error v / n = 1 / (n SNR), unbiased
    mmse   sum of the n symbols / (n + v)       error v / (n + v) = 1 / (1 + n SNR)

Source: P3 section V ("layer repetition"), which averages.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedprune import check
from fedprune.coding.code import Code

DECODERS = ("ls", "mmse")


def repetition(times: int, decoder: str = "ls") -> Code:
    """The code 1:n.

    Args:
      times: n, at least 1.
      decoder: "ls" or "mmse".

    Raises:
      ValueError: no symbol, or an unknown decoder.
    """
    check.whole("times", times, 1)
    if decoder not in DECODERS:
        raise ValueError(f"decoder={decoder!r} is not one of {DECODERS}")

    def encode(weights: jax.Array) -> jax.Array:
        return jnp.broadcast_to(weights[..., None], (*weights.shape, times))

    def decode(received: jax.Array, variance: jax.Array | float) -> jax.Array:
        return received.sum(-1) / (times + (variance if decoder == "mmse" else 0.0))

    return Code(times, encode, decode)


def repetition_error(
    variance: jax.Array | float, times: jax.Array | int, decoder: str = "ls"
) -> jax.Array:
    """Mean squared error of a decoded weight of unit mean square.

    Raises:
      ValueError: no symbol, a negative variance, or an unknown decoder.
    """
    check.numbers("variance", variance, 0)
    check.wholes("times", times, 1)
    if decoder not in DECODERS:
        raise ValueError(f"decoder={decoder!r} is not one of {DECODERS}")
    variance = jnp.asarray(variance, jnp.float32)
    return variance / (times + (variance if decoder == "mmse" else 0.0))
