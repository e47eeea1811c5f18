"""A convolution of one client or of many, in a form, on CPU or elsewhere."""

from __future__ import annotations

import math
from functools import partial

import jax
from jax import lax

from fedprune.nn import table
from fedprune.nn.forms import CANONICAL, Kind, Window, on_cpu
from fedprune.nn.products import PATCHES, PLACES
from fedprune.nn.strided import input_subgrids
from fedprune.nn.winograd import covers_winograd, winograd


def covers(form: str, kind: Kind, window: Window) -> bool:
    """Whether a form is one of its own for this kind and window, or XLA's convolution again."""
    strided = math.prod(window[2]) > 1
    if form == "winograd":
        return covers_winograd(window)
    if form == "subgrids":
        return kind == "input" and strided
    return form != "patches" or kind != "input" or not strided


def lower(cpu: bool, a, b, *, kind: Kind, window: Window, lead: int, lowering: str, device: str):
    """What the primitive of ``nn.conv`` computes.

    Args:
      cpu: whether the program is for CPU.
      a, b: the kind's operands, each with ``lead`` vmapped axes in front.
      lowering: one of ``nn.conv``'s.
      device: the kind of the accelerator; "" if unknown.
    """
    axes = a.shape[:lead]
    form = lowering
    if form == "auto":
        channels = (b.shape[-2] if kind == "input" else a.shape[-1], b.shape[-1])
        case = table.Case(kind, window, channels, math.prod(axes), str(a.dtype))
        form = table.choose(case, "cpu" if cpu else device)
    one = partial(_one, form, cpu, kind, window)
    if lead == 0:
        return one(a, b)
    flat = [t.reshape((math.prod(axes), *t.shape[lead:])) for t in (a, b)]
    together = form == "grouped" if cpu else form != "sequential"
    out = jax.vmap(one)(*flat) if together else lax.map(lambda ab: one(*ab), tuple(flat))
    return out.reshape(axes + out.shape[1:])


def _one(form: str, cpu: bool, kind: Kind, window: Window, a, b):
    """One client's convolution."""
    if a.size and b.size and covers(form, kind, window):
        if form == "places":
            return PLACES[kind](a, b, window)
        if form == "patches":
            return PATCHES[kind](a, b, window)
        if form == "subgrids":
            return input_subgrids(a, b, window)
        if form == "winograd":
            return winograd(kind, a, b, window)
    if cpu and form != "grouped":
        return on_cpu(kind, a, b, window)
    return CANONICAL[kind](a, b, window)
