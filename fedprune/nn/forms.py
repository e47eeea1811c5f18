"""The three gradients of the trilinear form of ``nn.conv``, each in the forms that XLA runs fast.

One form is a canonical convolution (batch first, features last), another one matrix product for
each place in the kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Literal

import jax.numpy as jnp
from jax import lax

Kind = Literal["out", "input", "kernel"]
Window = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...]]


def _canonical(lhs, rhs, strides, padding, lhs_dilation=None, rhs_dilation=None):
    space = "DHW"[3 - (lhs.ndim - 2) :]
    spec = (f"N{space}C", f"{space}IO", f"N{space}C")
    if math.prod(rhs.shape[:-2]) > math.prod(lhs.shape[1:-1]):
        # XLA would swap operands whose kernel is the larger one, which is not canonical any more;
        # padding beforehand, behind a barrier, keeps it from seeing that.
        dilation = lhs_dilation or (1,) * len(padding)
        config = [(low, high, s - 1) for (low, high), s in zip(padding, dilation, strict=True)]
        zero = jnp.zeros((), lhs.dtype)
        lhs = lax.optimization_barrier(lax.pad(lhs, zero, [(0, 0, 0), *config, (0, 0, 0)]))
        padding, lhs_dilation = [(0, 0)] * len(padding), None
    return lax.conv_general_dilated(
        lhs, rhs, strides, padding, lhs_dilation, rhs_dilation, dimension_numbers=spec
    )


def _out(x, w, window: Window):
    _, _, strides, padding = window
    return _canonical(x, w, strides, padding)


def _input(y, w, window: Window):
    """Full correlation of the stride-dilated cotangent with the flipped kernel."""
    size, kernel, strides, padding = window
    if y.size == 0:
        return jnp.zeros((y.shape[0], *size, w.shape[-2]), y.dtype)
    pads = []
    for n, k, s, (low, _), out in zip(size, kernel, strides, padding, y.shape[1:-1], strict=True):
        dilated = (out - 1) * s + 1
        before = k - 1 - low
        pads.append((before, n + k - 1 - dilated - before))
    flipped = jnp.flip(w, range(w.ndim - 2)).swapaxes(-1, -2)
    return _canonical(y, flipped, (1,) * len(size), pads, lhs_dilation=strides)


def _kernel(x, y, window: Window):
    """Correlation of inputs with cotangents: channels play the batch, the batch the channels."""
    size, kernel, strides, padding = window
    if y.size == 0:
        return jnp.zeros((*kernel, x.shape[-1], y.shape[-1]), y.dtype)
    pads = []
    for n, k, s, (low, _), out in zip(size, kernel, strides, padding, y.shape[1:-1], strict=True):
        dilated = (out - 1) * s + 1
        pads.append((low, dilated + k - 1 - n - low))
    last = x.ndim - 1
    lhs = x.transpose(last, *range(1, last), 0)
    rhs = y.transpose(*range(1, last), 0, last)
    out = _canonical(lhs, rhs, (1,) * len(size), pads, rhs_dilation=strides)
    return out.transpose(*range(1, last), 0, last)


def _kernel_tall(x, y, window: Window):
    """``_kernel`` without strides, in 2-D, with cotangents that have more rows than the inputs.

    XLA's CPU backend gives a convolution to YNNPACK unless its window has more rows than its input
    has, and then to Eigen, which is the faster one where the result is as small as 3×3. So zero
    rows are added to y. Inputs get their columns of zeros before, behind a barrier, or XLA would
    see a window larger than its input and swap the two, which is not canonical any more.
    """
    (rows, columns), kernel, _, ((above, _), (left, _)) = window
    none, zero = (0, 0, 0), jnp.zeros((), x.dtype)
    more = max(rows + 1 - y.shape[1], 0)
    below = y.shape[1] + more + kernel[0] - 1 - rows - above
    right = y.shape[2] + kernel[1] - 1 - columns - left
    lhs = lax.pad(x.transpose(3, 1, 2, 0), zero, [none, none, (left, right, 0), none])
    rhs = lax.pad(y.transpose(1, 2, 0, 3), zero, [(0, more, 0), none, none, none])
    lhs, rhs = lax.optimization_barrier((lhs, rhs))
    out = _canonical(lhs, rhs, (1, 1), [(above, below), (0, 0)])
    return out.transpose(1, 2, 0, 3)


def _can_be_tall(y, window: Window) -> bool:
    """Without strides, in 2-D, and the window stays smaller than its input."""
    size, kernel, strides, _ = window
    if len(size) != 2 or strides != (1, 1):
        return False
    window_size = max(size[0] + 1, y.shape[1]) * y.shape[2]
    return window_size <= size[0] * (y.shape[2] + kernel[1] - 1)


def _with_channel(x, w):
    """An input channel of zeros more.

    XLA's CPU backend is 3 to 10 times slower at an odd number of input channels, such as three of
    colours, than at one more, for many numbers of output channels (JAX 0.10).
    """
    none, one, zero = (0, 0, 0), (0, 1, 0), jnp.zeros((), x.dtype)
    return (
        lax.pad(x, zero, [*[none] * (x.ndim - 1), one]),
        lax.pad(w, zero, [*[none] * (w.ndim - 2), one, none]),
    )


def _slow_channels(into: int, out: int) -> bool:
    """As measured: up to 16 go another way, and whole pairs of 32 are fast."""
    return into > 1 and into % 2 == 1 and out > 16 and -(-out // 32) % 2 == 1


def _out_wider(x, w, window: Window):
    """``_out`` without strides and padding, in 2-D, with a column more, which is cut off again.

    YNNPACK, XLA's library on CPU, is up to 1.7 times as fast at a large convolution that has any
    padding as at one that has none.
    """
    return _canonical(x, w, (1, 1), [(0, 0), (0, 1)])[:, :, :-1]


MANY_PRODUCTS = 1_400_000
"""multiply-adds for an output channel, from which on YNNPACK is slow without padding"""


def _should_be_wider(x, window: Window) -> bool:
    """Without strides and padding, in 2-D, and large."""
    size, kernel, strides, padding = window
    if strides != (1, 1) or padding != ((0, 0), (0, 0)):
        return False
    outputs = math.prod(n - k + 1 for n, k in zip(size, kernel, strict=True))
    return x.shape[0] * outputs * math.prod(kernel) * x.shape[-1] >= MANY_PRODUCTS


FORMS: dict[Kind, Callable] = {"out": _out, "input": _input, "kernel": _kernel}


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
    return lax.dot_general(a, b, ((over_a, over_b), ((), ())))


def _out_places(x, w, window: Window):
    last = x.ndim - 1
    return sum(_dot(_seen(x, grid), w[i], (last,), (0,)) for i, grid in _places(window))


def _input_places(y, w, window: Window):
    last = y.ndim - 1
    zero = jnp.zeros((), y.dtype)
    return sum(
        lax.pad(_dot(y, w[i], (last,), (1,)), zero, [(0, 0, 0), *grid, (0, 0, 0)])
        for i, grid in _places(window)
    )


def _kernel_places(x, y, window: Window):
    most = tuple(range(x.ndim - 1))
    places = [_dot(_seen(x, grid), y, most, most) for _, grid in _places(window)]
    return jnp.stack(places).reshape(*window[1], x.shape[-1], y.shape[-1])


_BY_PLACE: dict[Kind, Callable] = {
    "out": _out_places,
    "input": _input_places,
    "kernel": _kernel_places,
}


def on_cpu(kind: Kind, a, b, window: Window):
    """The form that is faster on CPU (docs/performance.md).

    Products by place avoid a transposed copy of a wide kernel, and windows of the size of an image
    for the gradient of a kernel. They add up outside the products, hence not in short types.
    """
    if not a.size or not b.size or a.dtype.itemsize < 4:
        return FORMS[kind](a, b, window)
    channels = a.shape[-1], b.shape[-2 if kind == "input" else -1]
    places = math.prod(window[1])
    if places == 1 or (kind == "input" and min(channels) >= 256):
        return _BY_PLACE[kind](a, b, window)
    if kind == "out":
        if _slow_channels(*channels):
            a, b = _with_channel(a, b)
        form = _out_wider if _should_be_wider(a, window) else _out
        return form(a, b, window)
    if kind == "kernel" and (places <= 9 or channels[0] <= 4) and _can_be_tall(b, window):
        return _kernel_tall(a, b, window)
    return FORMS[kind](a, b, window)
