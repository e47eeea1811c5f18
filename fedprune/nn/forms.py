"""The three gradients of the trilinear form of ``nn.conv`` as canonical convolutions (batch first,
features last), and what makes these faster on CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jax import lax

Kind = Literal["out", "input", "kernel"]
Window = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...]]


def canonical(lhs, rhs, strides, padding, lhs_dilation=None, rhs_dilation=None):
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
    return canonical(x, w, strides, padding)


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
    return canonical(y, turned(w), (1,) * len(size), pads, lhs_dilation=strides)


def turned(w):
    """The kernel with which a cotangent is correlated: its places reversed, [*k, d, c]."""
    return jnp.flip(w, range(w.ndim - 2)).swapaxes(-1, -2)


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
    out = canonical(lhs, rhs, (1,) * len(size), pads, rhs_dilation=strides)
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
    out = canonical(lhs, rhs, (1, 1), [(above, below), (0, 0)])
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
    return canonical(x, w, (1, 1), [(0, 0), (0, 1)])[:, :, :-1]


MANY_PRODUCTS = 1_400_000
"""multiply-adds for an output channel, from which on YNNPACK is slow without padding"""


def _should_be_wider(x, window: Window) -> bool:
    """Without strides and padding, in 2-D, and large."""
    size, kernel, strides, padding = window
    if strides != (1, 1) or padding != ((0, 0), (0, 0)):
        return False
    outputs = math.prod(n - k + 1 for n, k in zip(size, kernel, strict=True))
    return x.shape[0] * outputs * math.prod(kernel) * x.shape[-1] >= MANY_PRODUCTS


CANONICAL: dict[Kind, Callable] = {"out": _out, "input": _input, "kernel": _kernel}


def on_cpu(kind: Kind, a, b, window: Window):
    """The canonical convolution that is faster on CPU (docs/performance.md)."""
    if not a.size or not b.size or a.dtype.itemsize < 4:
        return CANONICAL[kind](a, b, window)
    channels = a.shape[-1], b.shape[-2 if kind == "input" else -1]
    if kind == "out":
        if _slow_channels(*channels):
            a, b = _with_channel(a, b)
        form = _out_wider if _should_be_wider(a, window) else _out
        return form(a, b, window)
    places = math.prod(window[1])
    if kind == "kernel" and (places <= 9 or channels[0] <= 4) and _can_be_tall(b, window):
        return _kernel_tall(a, b, window)
    return CANONICAL[kind](a, b, window)
