"""Extreme eigenvalues of a symmetric operator of which only products H v are known.

``power_iteration`` goes by pairs of products, a = H v and b = H a. Then mu^2 = v.b is the Rayleigh
quotient of H^2, and for either sign e = a + sign mu v satisfies H e - sign mu e = b - mu^2 v: the
pair (sign mu, e) solves the problem of H as well as v solves that of H^2, without a further
product. So eigenvalues that are negative, or tied in magnitude with opposite signs, need no special
case; the sign is the one that makes e longer. The value is the Rayleigh quotient of e, and the
iteration stops when ||H e - value e|| <= tolerance mu ||e||: *some* eigenvalue lies within that
residual of the value. Near ties slow the vector down, not the value.

  lm   the eigenvalue of largest magnitude
  la   the largest one: lm gives mu >= |every eigenvalue|, up to its tolerance, and the iteration is
       repeated on H + 1.05 mu I

``lanczos`` takes a fixed number of products and keeps all its vectors, with full orthogonalisation:
far fewer products for eigenvalues that are close together, in more memory.

Source: P3 Algorithm 1, which takes the norm of H v for an eigenvalue (never negative), and stops
when v stands still (never, if the dominant eigenvalue is negative or tied).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import check

Product = Callable[[jax.Array], jax.Array]
"""v [d] -> H v [d]"""
WHICH = ("lm", "la")
_TINY = 1e-30


class Eigenvalue(NamedTuple):
    """An estimate, and what it is worth."""

    value: jax.Array
    """[]"""
    residual: jax.Array
    """[] ||H e - value e|| / ||e||: an eigenvalue lies within this distance"""
    products: jax.Array
    """[] int32, products H v that were spent"""


def power_iteration(
    product: Product,
    start: jax.Array,
    which: str = "la",
    tolerance: jax.Array | float = 1e-3,
    products: int = 200,
) -> Eigenvalue:
    """The eigenvalue ``which`` of the operator, zero for the zero operator.

    Args:
      product: v -> H v.
      start: [d] any vector that is not orthogonal to the eigenvector sought, such as a normal draw.
      which: "lm" or "la".
      tolerance: of the residual, relative to the largest magnitude.
      products: limit for each of the two runs of "la", rounded up to an even number.

    Raises:
      ValueError: an unknown ``which``.
    """
    _check(which)
    check.number("tolerance", tolerance, 0)
    check.whole("products", products, 1)
    found, largest = _dominant(product, start, tolerance, products)
    if which == "lm":
        return found
    shift = 1.05 * largest
    shifted, _ = _dominant(lambda v: product(v) + shift * v, start, tolerance / 2.05, products)
    return Eigenvalue(shifted.value - shift, shifted.residual, found.products + shifted.products)


def _dominant(
    product: Product, start: jax.Array, tolerance: jax.Array | float, products: int
) -> tuple[Eigenvalue, jax.Array]:
    """The eigenvalue of largest magnitude, and mu."""

    def step(state: tuple) -> tuple:
        v, _, _, spent = state
        a = product(v)
        b = product(a)
        mu = jnp.linalg.norm(a)
        sign = jnp.where(jnp.vdot(v, a) < 0, -1.0, 1.0)
        e, error = a + sign * mu * v, b - mu * mu * v
        squared = jnp.maximum(jnp.vdot(e, e), _TINY)
        value = sign * mu + jnp.vdot(e, error) / squared
        residual = jnp.linalg.norm(error) / jnp.sqrt(squared)
        v = b / jnp.maximum(jnp.linalg.norm(b), _TINY)
        return v, Eigenvalue(value, residual, spent + 2), mu, spent + 2

    def unfinished(state: tuple) -> jax.Array:
        _, found, mu, spent = state
        return (spent < products) & (found.residual > tolerance * mu)

    zero, none = jnp.float32(0.0), jnp.int32(0)
    first = (_unit(start), Eigenvalue(zero, jnp.float32(jnp.inf), none), zero, none)
    _, found, mu, _ = lax.while_loop(unfinished, step, first)
    return found, mu


def lanczos(
    product: Product, start: jax.Array, which: str = "la", products: int = 30
) -> Eigenvalue:
    """The eigenvalue ``which`` from a Krylov space of that many dimensions (at most d), kept whole.

    Args:
      product, start, which: as for ``power_iteration``.
      products: dimensions m; memory is m vectors.

    Raises:
      ValueError: an unknown ``which``.
    """
    _check(which)
    check.whole("products", products, 1)
    size = min(products, start.size)

    def step(state: tuple, i: jax.Array) -> tuple:
        basis, v = state
        basis = basis.at[i].set(v)
        full = product(v)
        w = full
        for _ in range(2):  # once loses orthogonality to rounding
            w = w - basis.T @ (basis @ w)
        beside = jnp.linalg.norm(w)
        beside = jnp.where(beside > 1e-6 * jnp.linalg.norm(full), beside, 0.0)
        v = jnp.where(beside > 0, w / jnp.maximum(beside, _TINY), 0.0)
        return (basis, v), (jnp.vdot(full, basis[i]), beside)

    empty = jnp.zeros((size, start.size), jnp.float32)
    rows: tuple[jax.Array, jax.Array]
    _, rows = lax.scan(step, (empty, _unit(start)), jnp.arange(size))
    diagonal, beside = rows
    # Once the space is exhausted, rows repeat the first quotient, which is never extreme.
    alive = jnp.concatenate([jnp.ones(1, bool), beside[:-1] > 0])
    diagonal = jnp.where(alive, diagonal, diagonal[0])
    off = jnp.diag(beside[:-1], 1)
    values, vectors = jnp.linalg.eigh(jnp.diag(diagonal) + off + off.T)
    best = jnp.argmax(jnp.abs(values)) if which == "lm" else jnp.int32(size - 1)
    return Eigenvalue(values[best], jnp.abs(beside[-1] * vectors[-1, best]), jnp.int32(size))


def _check(which: str) -> None:
    if which not in WHICH:
        raise ValueError(f"which={which!r} is not one of {WHICH}")


def _unit(v: jax.Array) -> jax.Array:
    return v / jnp.maximum(jnp.linalg.norm(v), _TINY)
