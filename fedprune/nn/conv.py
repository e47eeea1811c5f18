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
three gradients are written as canonical convolutions and as matrix products, and leading vmapped
axes are kept apart until lowering, where each convolution gets a form that suits its shape and the
device (see ``LOWERINGS``).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from fedprune import tree
from fedprune.nn import table
from fedprune.nn.forms import CANONICAL, Kind, Window
from fedprune.nn.lowering import lower

Padding = str | Sequence[tuple[int, int]]

# Which of the trilinear form's arguments a kind takes; it returns the third.
_OPERANDS: dict[Kind, tuple[str, str]] = {
    "out": ("x", "w"),
    "input": ("y", "w"),
    "kernel": ("x", "y"),
}
_KIND = {frozenset(operands): kind for kind, operands in _OPERANDS.items()}
_RESULT: dict[Kind, str] = {"out": "y", "input": "x", "kernel": "w"}

LOWERINGS = ("auto", *table.FORMS)
"""How convolutions run. The forms, of which ``auto`` takes one by the table of ``nn.table``:

  sequential  XLA's convolution, one client after another (a client's working set stays in cache)
  grouped     one grouped convolution of all clients
  places      a matrix product for each place in the kernel
  patches     one matrix product of all that the kernel sees at every position
  subgrids    input gradients with strides as an ordinary convolution for each residue
  winograd    3×3 kernels without strides, in fewer multiplications

All but ``grouped`` take clients one after another on CPU, and all but ``sequential`` take them
together elsewhere. What ``subgrids``, ``winograd`` and ``patches`` (input gradients with strides)
do not cover runs as XLA's convolution."""


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
      lowering: one of ``LOWERINGS``.

    Returns:
      [b, *out, d], equal to ``lax.conv_general_dilated`` in value and in every derivative, up to
      rounding; with ``winograd``, within its ``TOLERANCE``.

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
    return _bind("out", x, w, window=window, lead=0, lowering=lowering, device=_accelerator())


def _accelerator() -> str:
    """The kind of the accelerators that the program being traced is for, as their mesh has it; ""
    without one. (CPU is known when a program is lowered.)"""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return "" if device is None else device.device_kind


def per_dimension(name: str, value: int | Sequence[int], n: int) -> tuple[int, ...]:
    """One positive integer per spatial dimension, from one for all or one each."""
    values = tuple(map(int, value)) if isinstance(value, Sequence) else (int(value),) * n
    if len(values) != n or min(values) < 1:
        raise ValueError(f"{name}={value} must be {n} integers of at least 1, or one")
    return values


conv_p = Primitive("fedprune_conv")


def _bind(kind: Kind, a, b, **params):
    # Inside shard_map, operands that vary over different mesh axes are promoted to the union, so
    # that a gradient is a sum over devices only where the user's own promotion makes it one.
    a, b = tree.match((a, b))
    return conv_p.bind(a, b, kind=kind, **params)


def _abstract(a, b, *, kind: Kind, window: Window, lead: int, **params):
    shape = jax.eval_shape(
        lambda a, b: CANONICAL[kind](a, b, window),
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
for _platform in (None, "cpu"):
    _rule = mlir.lower_fun(partial(lower, _platform == "cpu"), multiple_results=False)
    mlir.register_lowering(conv_p, _rule, platform=_platform)
