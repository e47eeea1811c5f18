"""The three gradients of the trilinear form of ``nn.conv`` as matrix products.

``PLACES``: one for each place in the kernel. ``PATCHES``: a single one, of all that the kernel sees
in each position ("im2col"). Under ``vmap`` they are batched products.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import reduce

import jax.numpy as jnp
from jax import lax

from fedprune.nn.forms import Kind, Window, turned


def _places(window: Window) -> Iterator[tuple[tuple[int, ...], list[tuple[int, int, int]]]]:
    """Each index into the kernel, and the padding that puts an output grid where it meets x there:
    (before, after, between) for every spatial dimension; negative where x is longer."""
    size, kernel, strides, padding = window
    for index in itertools.product(*map(range, kernel)):
        grid = []
        for n, k, s, i, (low, high) in zip(size, kernel, strides, index, padding, strict=True):
            out = (n + low + high - k) // s + 1
            before = i - low
            grid.append((before, n - before - (out - 1) * s - 1, s - 1))
        yield index, grid


def _seen(x, grid):
    """The entries of x on a grid, zero outside x: [b, *out, c]."""
    x = jnp.pad(x, [(0, 0), *((max(-a, 0), max(-b, 0)) for a, b, _ in grid), (0, 0)])
    return x[(slice(None), *(slice(max(a, 0), _end(b), step + 1) for a, b, step in grid))]


def _end(after: int) -> int | None:
    return -after if after > 0 else None


def _dot(a, b, over_a, over_b):
    """Sums over places happen outside the products, so in short types these stay long."""
    long = jnp.float32 if a.dtype.itemsize < 4 else a.dtype
    return lax.dot_general(a, b, ((over_a, over_b), ((), ())), preferred_element_type=long)


def _out_places(x, w, window: Window):
    last = x.ndim - 1
    parts = (_dot(_seen(x, grid), w[i], (last,), (0,)) for i, grid in _places(window))
    return reduce(jnp.add, parts).astype(x.dtype)


def _input_places(y, w, window: Window):
    last = y.ndim - 1
    parts = (
        _spread(_dot(y, w[i], (last,), (1,)), [(0, 0, 0), *grid, (0, 0, 0)])
        for i, grid in _places(window)
    )
    return reduce(jnp.add, parts).astype(y.dtype)


def _spread(x, grid):
    return lax.pad(x, jnp.zeros((), x.dtype), grid)


def _kernel_places(x, y, window: Window):
    places = [over_positions(_seen(x, grid), y) for _, grid in _places(window)]
    return jnp.stack(places).reshape(*window[1], x.shape[-1], y.shape[-1]).astype(x.dtype)


def over_positions(x, y):
    """[b, *out, c] and [b, *out, d] -> [c, d]. With a single axis of positions no copy of x is
    transposed on CPU."""
    return _dot(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), (0,), (0,))


def _patches(x, window: Window):
    """[b, *out, places * c]."""
    return jnp.concatenate([_seen(x, grid) for _, grid in _places(window)], -1)


def _out_patches(x, w, window: Window):
    last = x.ndim - 1
    return _dot(_patches(x, window), w.reshape(-1, w.shape[-1]), (last,), (0,)).astype(x.dtype)


def _input_patches(y, w, window: Window):
    """Patches of the cotangent, without strides, which would put zeros between its entries."""
    return _out_patches(y, turned(w), backward(window))


def _kernel_patches(x, y, window: Window):
    out = over_positions(_patches(x, window), y)
    return out.reshape(*window[1], x.shape[-1], y.shape[-1]).astype(x.dtype)


def backward(window: Window) -> Window:
    """Without strides, the window in which the cotangent meets the turned kernel."""
    size, kernel, strides, padding = window
    out = tuple(n + sum(p) - k + 1 for n, k, p in zip(size, kernel, padding, strict=True))
    pads = tuple(
        (k - 1 - low, k - 1 - high) for k, (low, high) in zip(kernel, padding, strict=True)
    )
    return out, kernel, strides, pads


PLACES: dict[Kind, Callable] = {
    "out": _out_places,
    "input": _input_places,
    "kernel": _kernel_places,
}
PATCHES: dict[Kind, Callable] = {
    "out": _out_patches,
    "input": _input_patches,
    "kernel": _kernel_patches,
}
