"""Which form of a convolution is the fastest on which device, as measured: a committed table.

The choice depends on shapes, the device for which a program is compiled and this file, so a run's
bits depend on no stopwatch. ``python -m benchmarks.forms`` measures all forms on the device at hand
and prints the rows by which this table would change.

*The rule.* A row speaks for a convolution in two dimensions of its device, type, kind, kernel and
stride, with one client or with several as the row has it, whose side, input channels and output
channels are each at most twice and at least half the row's. Of the rows that do, the nearest one is
taken, by the product of the three ratios, each the
larger number over the smaller; the first one if several are as near. Where no
row speaks, ``default`` decides.
"""

from __future__ import annotations

import functools
import math
import platform
from pathlib import Path
from typing import NamedTuple

from fedprune.nn.forms import Kind, Window

FORMS = ("sequential", "grouped", "places", "patches", "subgrids", "winograd")


class Row(NamedTuple):
    """A form that was the fastest."""

    device: str
    """how the name of the device starts: JAX's ``device_kind``, on CPU the processor's name"""
    dtype: str
    kind: Kind
    kernel: int
    """side of a square kernel"""
    stride: int
    side: int
    """of the input, in pixels"""
    channels: tuple[int, int]
    """of input and output"""
    several: bool
    """whether several clients are vmapped; on CPU they run one after another and are as one"""
    form: str


class Case(NamedTuple):
    """A convolution that is to be done."""

    kind: Kind
    window: Window
    channels: tuple[int, int]
    """of input and output"""
    clients: int
    """vmapped together"""
    dtype: str


def _h200(kind: Kind, side: int, channels: int, form: str) -> Row:
    return Row("NVIDIA H200", "bfloat16", kind, 3, 1, side, (channels, channels), True, form)


def _xeon(
    kind: Kind, side: int, channels: tuple[int, int], form: str, kernel: int = 3, stride: int = 1
) -> Row:
    device = "Intel(R) Xeon(R) Processor"
    return Row(device, "float32", kind, kernel, stride, side, channels, False, form)


ROWS: tuple[Row, ...] = (
    # 20 clients of 64 images, JAX 0.11.2; tera multiply-adds and additions a second, of "grouped"
    # and, where that is another one, of the form.
    _h200("out", 32, 64, "grouped"),  # 205
    _h200("out", 16, 128, "grouped"),  # 308
    _h200("out", 8, 256, "grouped"),  # 380
    _h200("out", 4, 512, "patches"),  # 131, 312
    # The input's gradient without strides is the same computation with the kernel turned.
    _h200("input", 32, 64, "grouped"),
    _h200("input", 16, 128, "grouped"),
    _h200("input", 8, 256, "grouped"),
    _h200("input", 4, 512, "patches"),
    _h200("kernel", 32, 64, "sequential"),  # 65, 104
    _h200("kernel", 16, 128, "grouped"),  # 139
    _h200("kernel", 8, 256, "places"),  # 144, 234
    _h200("kernel", 4, 512, "patches"),  # 159, 311
    # AVX-512 and AMX, 2 MB of second-level cache a core; parts of 8 to 16 images on one thread, JAX
    # 0.10.2, ``python -m benchmarks.forms``; how many times as fast as what ``default`` says.
    _xeon("out", 32, (64, 64), "winograd"),  # 1.13
    _xeon("out", 28, (32, 64), "sequential"),
    _xeon("out", 16, (128, 128), "winograd"),  # 1.37
    _xeon("out", 8, (256, 256), "winograd"),  # 1.33
    _xeon("out", 4, (512, 512), "places"),  # 1.24
    _xeon("input", 32, (64, 64), "winograd"),  # 1.10
    _xeon("input", 28, (32, 64), "sequential"),
    _xeon("input", 16, (128, 128), "winograd"),  # 1.31
    _xeon("input", 8, (256, 256), "winograd"),  # 1.25
    _xeon("input", 4, (512, 512), "places"),
    _xeon("kernel", 32, (64, 64), "sequential"),
    _xeon("kernel", 28, (32, 64), "sequential"),
    _xeon("kernel", 16, (128, 128), "sequential"),
    _xeon("kernel", 8, (256, 256), "winograd"),  # 1.23
    _xeon("kernel", 4, (512, 512), "sequential"),  # "winograd" 1.22 and 0.98 in two runs
    _xeon("out", 32, (64, 128), "sequential", stride=2),
    _xeon("out", 16, (128, 256), "patches", stride=2),  # 1.06
    _xeon("out", 8, (256, 512), "places", stride=2),  # 1.15
    _xeon("input", 32, (64, 128), "places", stride=2),  # 1.14
    _xeon("input", 16, (128, 256), "places", stride=2),  # 1.19
    _xeon("input", 8, (256, 512), "places", stride=2),
    _xeon("input", 28, (32, 64), "subgrids", kernel=5, stride=2),  # 1.65
)


def choose(case: Case, device: str, rows: tuple[Row, ...] | None = None) -> str:
    """The form for a convolution on a device.

    Args:
      device: "cpu", or JAX's ``device_kind``; "" for an accelerator of which no more is known.
      rows: default: this module's.
    """
    name = processor() if device == "cpu" else device
    distances = [
        (_distance(case, row), row.form)
        for row in (ROWS if rows is None else rows)
        if name.startswith(row.device) and _speaks(row, case, device)
    ]
    near = [found for found in distances if found[0] < math.inf]
    return min(near, key=lambda found: found[0])[1] if near else default(case, device)


def default(case: Case, device: str) -> str:
    """A product of all clients for 1×1 kernels. Otherwise, on CPU, XLA's convolutions one after
    another, or products where a wide kernel would be copied for the input's gradient; elsewhere
    grouped convolutions, without dilated cotangents where there are strides."""
    _, kernel, strides, _ = case.window
    wide = device == "cpu" and case.kind == "input" and min(case.channels) >= 256
    if math.prod(kernel) == 1 or (wide and case.dtype in ("float32", "float64")):
        return "places"
    if device == "cpu":
        return "sequential"
    return "subgrids" if case.kind == "input" and math.prod(strides) > 1 else "grouped"


def _speaks(row: Row, case: Case, device: str) -> bool:
    several = case.clients > 1 and device != "cpu"
    _, kernel, strides, _ = case.window
    given = (case.dtype, case.kind, kernel, strides, several)
    return given == (row.dtype, row.kind, (row.kernel,) * 2, (row.stride,) * 2, row.several)


def _distance(case: Case, row: Row) -> float:
    """Infinite where a ratio is more than two."""
    side = math.sqrt(math.prod(case.window[0]))
    pairs = zip((side, *case.channels), (row.side, *row.channels), strict=True)
    ratios = [max(a, b) / max(min(a, b), 1e-9) for a, b in pairs]
    return math.prod(ratios) if max(ratios) <= 2.0 else math.inf


@functools.cache
def processor() -> str:
    """The processor's name, where Linux tells it; else what Python knows of it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
