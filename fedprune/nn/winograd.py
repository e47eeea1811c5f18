"""Convolution with 3×3 kernels and no strides in four ninths of the multiplications.

F(2×2, 3×3) of Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016: in one
dimension, two neighbouring results of a kernel of three see four entries d of the input,

    A^T ((G g) . (B^T d)),    G g = (g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2),
    B^T d = (d0 - d2, d1 + d2, d2 - d1, d1 - d3),    A^T m = (m0 + m1 + m2, m1 - m2 - m3),

with four multiplications in place of six; in two dimensions 16 in place of 36, as 16 matrix
products over the channels. The input's gradient is the same with the kernel turned. The kernel's is
the transpose in g: the sum over all tiles of G^T ((B^T d) . (A y)). Sums and differences lose some
bits: in float32, results are within 5e-6 of the largest one of ``lax.conv_general_dilated``'s.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from fedprune.nn.forms import Kind, Window
from fedprune.nn.products import backward, over_positions

TOLERANCE = 5e-6
"""of float32, relative to the largest result"""


def covers_winograd(window: Window) -> bool:
    """3×3 kernels without strides."""
    _, kernel, strides, _ = window
    return kernel == (3, 3) and strides == (1, 1)


def winograd(kind: Kind, a, b, window: Window):
    """Any kind, where ``covers_winograd`` says so."""
    if kind == "kernel":
        return _kernel(a, b, window)
    if kind == "input":
        return _correlated(a, jnp.flip(b, (0, 1)), backward(window), over=1)
    return _correlated(a, b, window, over=0)


def _correlated(x, w, window: Window, over: int):
    """The kernel [3, 3, c, d] is summed over its channels ``over``, the first or the second, as it
    lies: a transposed copy of a wide one takes longer than the products."""
    size, _, _, padding = window
    height, width = (n + sum(p) - 2 for n, p in zip(size, padding, strict=True))
    seen, kernel = _seen(x, window), [_kernels(*row) for row in _kernels(*w)]
    dot = lambda d, g: lax.dot_general(d, g, (((3,), (over,)), ((), ())))
    products = _each(dot, seen, kernel)
    down = zip(*(_results(*column) for column in zip(*products, strict=True)), strict=True)
    both = jnp.stack([jnp.stack(_results(*row), 3) for row in down], 2)
    b, rows, _, columns, _, d = both.shape
    return both.reshape(b, 2 * rows, 2 * columns, d)[:, :height, :width]


def _kernel(x, y, window: Window):
    """The transpose in w: the sum over tiles of B^T d times A y, and then G^T."""
    height, width = y.shape[1:3]
    y = jnp.pad(y, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    two = lambda t, axis: [lax.slice_in_dim(t, i, None, 2, axis) for i in range(2)]
    spread = [_results_transposed(*two(row, 2)) for row in _results_transposed(*two(y, 1))]
    products = _each(over_positions, _seen(x, window), spread)
    columns = [jnp.stack(_kernels_transposed(*c)) for c in zip(*products, strict=True)]
    return jnp.stack(_kernels_transposed(*columns), 1)


def _seen(x, window: Window):
    """B^T d of all tiles: 4 × 4 arrays [b, rows, columns, c]."""
    size, _, _, padding = window
    tiles, pads = [], []
    for n, (low, high) in zip(size, padding, strict=True):
        tiles.append((n + low + high - 1) // 2)
        pads.append((low, 2 * tiles[-1] + 2 - n - low, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    four = lambda t, axis: [
        lax.slice_in_dim(t, i, i + 2 * tiles[axis - 1] - 1, 2, axis) for i in range(4)
    ]
    return [_inputs(*four(row, 2)) for row in _inputs(*four(x, 1))]


def _each(dot, left, right):
    return [[dot(a, b) for a, b in zip(*row, strict=True)] for row in zip(left, right, strict=True)]


def _inputs(a, b, c, d):
    return a - c, b + c, c - b, b - d


def _kernels(a, b, c):
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _results(a, b, c, d):
    return a + b + c, b - c - d


def _kernels_transposed(a, b, c, d):
    return a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d


def _results_transposed(a, b):
    return a, a + b, a - b, -b
