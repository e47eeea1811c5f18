"""Convolution of one client's batch, fast and exact under every JAX transform.

With input x [b, *in, c], kernel w [*k, c, d] and output cotangent y [b, *out, d] (any number of
spatial dimensions from one to three), convolution is one trilinear form

    T(x, w, y) = sum_b <y_b, x_b * w>,

and its three partial gradients are everything that differentiation ever needs:

    "out"     (x, w) -> dT/dy = x * w            [b, *out, d]
    "input"   (y, w) -> dT/dx                    [b, *in, c]
    "kernel"  (x, y) -> dT/dw                    [*k, c, d]

Each is bilinear, and the transpose of each in either operand is another of the three. So one JAX
primitive closed under jvp and transpose gives gradients, Hessian-vector products and Hessians of
any order, forward or reverse.

Why a primitive and not ``lax.conv_general_dilated`` under ``vmap``: XLA's CPU backend only
recognises *canonical* convolutions (batch first, features last) inside a loop body, and ``vmap``
over per-client kernels turns them into grouped convolutions; either costs 35x or more. Here all
three gradients are written as canonical convolutions, and leading vmapped axes are kept apart
until lowering, where each backend gets the form that it runs best (see ``LOWERINGS``).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from fedprune import tree

Padding = str | Sequence[tuple[int, int]]
Kind = Literal["out", "input", "kernel"]

# Which of the trilinear form's arguments a kind takes; it returns the third.
_OPERANDS: dict[Kind, tuple[str, str]] = {
    "out": ("x", "w"),
    "input": ("y", "w"),
    "kernel": ("x", "y"),
}
_KIND = {frozenset(operands): kind for kind, operands in _OPERANDS.items()}
_RESULT: dict[Kind, str] = {"out": "y", "input": "x", "kernel": "w"}

LOWERINGS = ("auto", "sequential", "grouped")
"""How vmapped convolutions run: ``sequential``, one after another, each in the form that is fastest
on CPU (a client's working set stays in cache); ``grouped``, one grouped convolution (best where the
device is wide); ``auto`` takes the first on CPU and the second elsewhere."""


def conv(
    x: jax.Array,
    w: jax.Array,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    lowering: str = "auto",
) -> jax.Array:
    """Convolve one client's batch (cross-correlation, as everywhere in deep learning).

    Args:
      x: input [b, *in, c], with one to three spatial dimensions.
      w: kernel [*k, c, d].
      strides: one stride, or one per spatial dimension.
      padding: "SAME", "VALID", or (low, high) per spatial dimension.
      lowering: one of ``LOWERINGS``; only matters under vmap.

    Returns:
      [b, *out, d], equal to ``lax.conv_general_dilated`` in value and in every derivative.

    Raises:
      ValueError: operands whose ranks, channels or dtypes do not match; strides, padding or a
        lowering that are not among the above.
    """
    n = x.ndim - 2
    if not 1 <= n <= 3 or w.ndim != n + 2:
        raise ValueError(f"conv: x must be [b, *in, c] and w [*k, c, d], got {x.shape}, {w.shape}")
    if x.shape[-1] != w.shape[-2]:
        raise ValueError(f"conv: x has {x.shape[-1]} channels, w takes {w.shape[-2]}")
    if x.dtype != w.dtype:
        raise ValueError(f"conv: x is {x.dtype}, w is {w.dtype}; they must be the same")
    if lowering not in LOWERINGS:
        raise ValueError(f"conv: lowering {lowering!r} is not one of {', '.join(LOWERINGS)}")
    stride = per_dimension("strides", strides, n)
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f"conv: padding {padding!r} is neither SAME nor VALID")
        padding = lax.padtype_to_pads(x.shape[1:-1], w.shape[:-2], stride, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    if len(pads) != n:
        raise ValueError(f"conv: padding {padding} is not for {n} spatial dimensions")
    window = (x.shape[1:-1], w.shape[:-2], stride, pads)
    return _bind("out", x, w, window=window, lead=0, lowering=lowering)


def per_dimension(name: str, value: int | Sequence[int], n: int) -> tuple[int, ...]:
    """One positive integer per spatial dimension, from one for all or one each."""
    values = tuple(map(int, value)) if isinstance(value, Sequence) else (int(value),) * n
    if len(values) != n or min(values) < 1:
        raise ValueError(f"{name}={value} must be {n} integers of at least 1, or one")
    return values


# The three gradients of T as canonical convolutions -----

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


_FORMS: dict[Kind, Callable] = {"out": _out, "input": _input, "kernel": _kernel}


# The same as one matrix product for each place in the kernel -----


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


def _on_cpu(kind: Kind, a, b, window: Window):
    """The form that is faster on CPU (docs/performance.md).

    Products by place avoid a transposed copy of a wide kernel, and windows of the size of an image
    for the gradient of a kernel. They add up outside the products, hence not in short types.
    """
    if not a.size or not b.size or a.dtype.itemsize < 4:
        return _FORMS[kind](a, b, window)
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
    return _FORMS[kind](a, b, window)


# The primitive -----

conv_p = Primitive("fedprune_conv")


def _bind(kind: Kind, a, b, **params):
    # Inside shard_map, operands that vary over different mesh axes are promoted to the union, so
    # that a gradient is a sum over devices only where the user's own promotion makes it one.
    a, b = tree.match((a, b))
    return conv_p.bind(a, b, kind=kind, **params)


def _alone(kind: Kind, a, b, window: Window):
    return _FORMS[kind](a, b, window)


def _sequential(kind: Kind, window: Window, a, b):
    return lax.map(lambda ab: _on_cpu(kind, ab[0], ab[1], window), (a, b))


def _grouped(kind: Kind, window: Window, a, b):
    return jax.vmap(lambda a, b: _alone(kind, a, b, window))(a, b)


def _lower(a, b, *, kind: Kind, window: Window, lead: int, lowering: str):
    """Operands carry ``lead`` leading vmapped axes."""
    if lead == 0:
        return (_on_cpu if lowering == "sequential" else _alone)(kind, a, b, window)
    axes = a.shape[:lead]
    flat = [t.reshape((math.prod(axes), *t.shape[lead:])) for t in (a, b)]
    many = _sequential if lowering == "sequential" else _grouped
    out = many(kind, window, *flat)
    return out.reshape(axes + out.shape[1:])


def _lower_on(platform_default: str, a, b, *, lowering: str, **params):
    return _lower(a, b, lowering=platform_default if lowering == "auto" else lowering, **params)


def _abstract(a, b, *, kind: Kind, window: Window, lead: int, lowering: str):
    shape = jax.eval_shape(
        lambda a, b: _FORMS[kind](a, b, window),
        jax.ShapeDtypeStruct(a.shape[lead:], a.dtype),
        jax.ShapeDtypeStruct(b.shape[lead:], b.dtype),
    ).shape
    shape = a.shape[:lead] + shape
    sharding = a.sharding.update(spec=jax.P(*[None] * len(shape)))
    return a.update(shape=shape, weak_type=False, sharding=sharding)


def _jvp(primals, tangents, *, kind: Kind, **params):
    a, b = primals
    da, db = tangents
    out = _bind(kind, a, b, **params)
    terms = []
    if not isinstance(da, ad.Zero):
        terms.append(_bind(kind, da, b, **params))
    if not isinstance(db, ad.Zero):
        terms.append(_bind(kind, a, db, **params))
    return out, sum(terms[1:], terms[0])


def _transpose(ct, a, b, *, kind: Kind, **params):
    linear = 0 if ad.is_undefined_primal(a) else 1
    if isinstance(ct, ad.Zero):
        return (None, None)
    known = {_RESULT[kind]: ct, _OPERANDS[kind][1 - linear]: (a, b)[1 - linear]}
    gradient = _KIND[frozenset(known)]
    operands = (known[name] for name in _OPERANDS[gradient])
    out = _bind(gradient, *operands, **params)
    return (out, None) if linear == 0 else (None, out)


def _batch(args, dims, *, kind: Kind, lead: int, **params):
    size = next(t.shape[d] for t, d in zip(args, dims, strict=True) if d is not None)
    args = [
        jnp.broadcast_to(t, (size, *t.shape)) if d is None else jnp.moveaxis(t, d, 0)
        for t, d in zip(args, dims, strict=True)
    ]
    return _bind(kind, *args, lead=lead + 1, **params), 0


@functools.cache
def _compiled(**params):
    return jax.jit(partial(conv_p.bind, **params))


conv_p.def_impl(lambda a, b, **params: _compiled(**params)(a, b))
conv_p.def_abstract_eval(_abstract)
ad.primitive_jvps[conv_p] = _jvp
ad.primitive_transposes[conv_p] = _transpose
batching.primitive_batchers[conv_p] = _batch
mlir.register_lowering(
    conv_p, mlir.lower_fun(partial(_lower_on, "grouped"), multiple_results=False)
)
mlir.register_lowering(
    conv_p, mlir.lower_fun(partial(_lower_on, "sequential"), multiple_results=False), platform="cpu"
)
