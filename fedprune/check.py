"""Arguments that can be right or wrong: what is concrete is checked, tracers pass.

Every refusal is one line that begins with the name and says what is allowed: a TypeError for what
is no number, function or stage at all, a ValueError for a number outside its range.
"""

from __future__ import annotations

import reprlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Limit = float | None
INFINITY = float("inf")


def number(
    name: str,
    value: Any,
    low: Limit = None,
    high: Limit = None,
    *,
    above: Limit = None,
    below: Limit = None,
    infinite: bool = False,
) -> None:
    """One number: finite, from ``low`` to ``high``, larger than ``above``, smaller than ``below``.

    Args:
      infinite: whether infinity is allowed, where the limits allow it.

    Raises:
      TypeError: not one real number.
      ValueError: NaN, infinite or outside the limits.
    """
    _check(name, value, np.number, (low, high, above, below), True, infinite)


def numbers(
    name: str,
    value: Any,
    low: Limit = None,
    high: Limit = None,
    *,
    above: Limit = None,
    below: Limit = None,
    infinite: bool = False,
) -> None:
    """``number`` of every element of an array of any shape."""
    _check(name, value, np.number, (low, high, above, below), False, infinite)


def whole(name: str, value: Any, low: Limit = None, high: Limit = None) -> None:
    """One integer from ``low`` to ``high``, of an integer type: 2.0 is none."""
    _check(name, value, np.integer, (low, high, None, None), True, False)


def wholes(name: str, value: Any, low: Limit = None, high: Limit = None) -> None:
    """``whole`` of every element of an array of any shape."""
    _check(name, value, np.integer, (low, high, None, None), False, False)


def function(name: str, value: Any) -> None:
    """A function, where a number or a stage may have been given in its place.

    Raises:
      TypeError: it cannot be called.
    """
    if not callable(value):
        raise TypeError(f"{name}={_shown(value)}: must be a function")


def kind(name: str, value: Any, *kinds: type) -> None:
    """A stage of one of some kinds, such as an optax optimizer.

    Raises:
      TypeError: it is something else.
    """
    if not isinstance(value, kinds):
        names = " or ".join(f"{k.__module__.split('.')[0]}'s {k.__name__}" for k in kinds)
        raise TypeError(f"{name}={_shown(value)}: must be {names}")


def same_shapes(name: str, found: Any, wanted: Any) -> None:
    """A pytree of the structure, shapes and types of another one; tracers have them, too.

    Raises:
      ValueError: it differs; the first leaf in which it does is named.
    """
    here, there = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (found, wanted))
    for path in [*there, *here]:
        a, b = (_kind(tree[path]) if path in tree else "nothing" for tree in (here, there))
        if a != b:
            raise ValueError(f"{name}{jax.tree_util.keystr(path)}: is {a}, must be {b}")
    structures = {str(jax.tree.structure(tree)) for tree in (found, wanted)}
    if len(structures) > 1:
        raise ValueError(f"{name}: has another structure than it was given")


def _check(
    name: str,
    value: Any,
    kind: Any,
    limits: tuple[Limit, Limit, Limit, Limit],
    single: bool,
    infinite: bool,
) -> None:
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
        return
    sort = "whole number" if kind is np.integer else "number" if infinite else "finite number"
    allowed = f"must be {f'a {sort}' if single else f'{sort}s'}{_range(*limits)}"
    array = _array(value)
    real = array is not None and jnp.issubdtype(array.dtype, kind)
    if array is None or not real or jnp.iscomplexobj(array) or (single and array.ndim):
        raise TypeError(f"{name}={_shown(value)}: {allowed}")
    flat = array.astype(np.float64).ravel()
    right = ~np.isnan(flat) if infinite else np.isfinite(flat)
    tests = (flat.__ge__, flat.__le__, flat.__gt__, flat.__lt__)
    for limit, holds in zip(limits, tests, strict=True):
        right &= limit is None or holds(limit)
    if not right.all():
        worst = int(np.argmin(right))
        index = [int(i) for i in np.unravel_index(worst, array.shape)]
        at = str(index) if index else ""
        raise ValueError(f"{name}{at}={array.ravel()[worst]}: {allowed}")


def _array(value: Any) -> np.ndarray | None:
    """As NumPy has it; None for what holds no numbers."""
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return None
    try:
        return np.asarray(value)
    except (TypeError, ValueError):  # ragged lists, objects with an opinion of their own
        return None


def _range(low: Limit, high: Limit, above: Limit, below: Limit) -> str:
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    words = {"at least": low, "above": above, "at most": high, "below": below}
    parts = [f"{word} {limit:g}" for word, limit in words.items() if limit is not None]
    return f", {' and '.join(parts)}" if parts else ""


def _kind(leaf: Any) -> str:
    """Type and shape, as "float32[3,4]"."""
    aval = jax.typeof(leaf)
    return f"{aval.dtype}[{','.join(map(str, aval.shape))}]"


def _shown(value: Any) -> str:
    """On one line, and short."""
    return " ".join(reprlib.repr(value).split())
