"""The gradient of the input of a convolution with strides, without a dilated cotangent.

In one dimension, with stride s, padding p in front and m + p = s q + r, 0 <= r < s, the gradient is

    dx[m] = sum over i, o with o s + i = m + p of y[o] w[i] = sum_j y[q - j] w[r + s j],

an ordinary convolution of y with every s-th entry of w, for each residue r. The grids of all
residues, interleaved, are dx. A convolution with the dilated cotangent multiplies by the zeros
between its entries: s - 1 of s in every dimension.
"""

from __future__ import annotations

import itertools
import math

import jax.numpy as jnp
from jax import lax

from fedprune.nn.forms import CANONICAL, Window, canonical, turned


def input_subgrids(y, w, window: Window):
    """An ordinary convolution for each residue; y [b, *out, d], w [*k, c, d] -> [b, *in, c]."""
    size, _, strides, padding = window
    if y.size == 0 or math.prod(strides) == 1:
        return CANONICAL["input"](y, w, window)
    first = [low // s for s, (low, _) in zip(strides, padding, strict=True)]
    count = [
        (n - 1 + low) // s - q + 1
        for n, s, (low, _), q in zip(size, strides, padding, first, strict=True)
    ]
    total = jnp.zeros((y.shape[0], *size, w.shape[-2]), y.dtype)
    for residues in itertools.product(*map(range, strides)):
        part = w[tuple(slice(r, None, s) for r, s in zip(residues, strides, strict=True))]
        if part.size:
            total += _interleaved(_subgrid(y, part, first, count), residues, first, window)
    return total


def _subgrid(y, w, first, count):
    """Entries q = first, ..., first + count - 1 of the sum over j of y[q - j] w[j]."""
    pads = []
    for k, q, n, out in zip(w.shape, first, count, y.shape[1:-1], strict=False):
        before = k - 1 - q
        pads.append((before, n + k - 1 - out - before))
    return canonical(y, turned(w), (1,) * len(pads), pads)


def _interleaved(part, residues, first, window: Window):
    """A residue's entries where they belong in the input, and zeros elsewhere."""
    size, _, strides, padding = window
    grid = []
    for n, s, (low, _), r, q, m in zip(
        size, strides, padding, residues, first, part.shape[1:-1], strict=True
    ):
        before = s * q + r - low
        grid.append((before, n - before - (m - 1) * s - 1, s - 1))
    return lax.pad(part, jnp.zeros((), part.dtype), [(0, 0, 0), *grid, (0, 0, 0)])
