"""Measures every form of a convolution on the device at hand, and what its table would change.

    python -m benchmarks.forms [--minutes=3] [--dtype=float32]

The layers are those of ResNet18 and like those of W1 and W5, for several clients; each of the three
kinds (``nn.conv``) in all forms that cover it, in turns. On CPU one thread works, as for one of the
devices of a round, and its processor time counts, of which other programs take little away. A form
that takes twice as long as the fastest leaves after its first turn.

Prints a JSON line for each kind of a layer, with milliseconds a client by form (medians) and the
form of the table, and then the rows of ``fedprune/nn/table.py`` that would be faster by more than
5 %. What the time does not suffice for is said.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from absl import app, flags

BETTER = 1.05
"""times as fast, from which on a row is worth its line"""
MINUTES = flags.DEFINE_float("minutes", 3.0, "time for all of it", lower_bound=0.0)
DTYPE = flags.DEFINE_string("dtype", "", "default: float32 on CPU, bfloat16 elsewhere")
OUT = flags.DEFINE_string("out", "", "file for the JSON lines")


class Layer(NamedTuple):
    """A convolution with an odd kernel, padded by half of it."""

    side: int
    channels: tuple[int, int]
    kernel: int
    stride: int = 1
    batch: int = 8
    """examples on CPU, where steps take a batch in parts; 64 elsewhere"""

    @property
    def window(self) -> tuple:
        pad = (self.kernel - 1) // 2
        return (self.side,) * 2, (self.kernel,) * 2, (self.stride,) * 2, ((pad, pad),) * 2

    @property
    def operands(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of an example's input, of the kernel and of an example's output."""
        out = (self.side - 1) // self.stride + 1
        c, d = self.channels
        return (self.side, self.side, c), (self.kernel, self.kernel, c, d), (out, out, d)


LAYERS = (
    Layer(32, (64, 64), 3),
    Layer(16, (128, 128), 3),
    Layer(8, (256, 256), 3),
    Layer(4, (512, 512), 3),
    Layer(32, (64, 128), 3, 2),
    Layer(16, (128, 256), 3, 2),
    Layer(8, (256, 512), 3, 2),
    Layer(14, (32, 64), 5, batch=16),
    Layer(28, (32, 64), 3, batch=10),
    Layer(28, (32, 64), 5, 2, batch=16),
)


def calls(layer: Layer, kind: str, clients: int, batch: int, dtype: str) -> dict[str, Callable]:
    """form -> a compiled call, for the forms that cover it."""
    import jax

    from fedprune import nn
    from fedprune.nn import lowering, table

    image, kernel, result = layer.operands
    x, w, y = (
        jax.random.normal(jax.random.key(i), (clients, *shape), dtype)
        for i, shape in enumerate(((batch, *image), kernel, (batch, *result)))
    )
    pads = layer.window[-1]

    def one(form: str, x, w, y):
        conv = lambda x, w: nn.conv(x, w, layer.stride, pads, form)
        if kind == "out":
            return conv(x, w)
        if kind == "input":
            return jax.linear_transpose(lambda x: conv(x, w), x)(y)[0]
        return jax.linear_transpose(lambda w: conv(x, w), w)(y)[0]

    def call(form: str) -> Callable:
        compiled = jax.jit(jax.vmap(lambda x, w, y: one(form, x, w, y)))
        return lambda: jax.block_until_ready(compiled(x, w, y))

    return {form: call(form) for form in table.FORMS if lowering.covers(form, kind, layer.window)}


def measured(
    forms: dict[str, Callable], until: float, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of a call, in turns until ``until``, after one that may compile."""
    times: dict[str, list[float]] = {}
    for form, call in forms.items():
        call()
        times[form] = [_seconds(call, clock)]
    best = min(min(t) for t in times.values())
    racing = [form for form, t in times.items() if t[0] <= 2 * best]
    while time.monotonic() < until and len(times[racing[0]]) < 50:
        for form in racing:
            times[form].append(_seconds(forms[form], clock))
    return {form: median(t) for form, t in times.items()}


def _seconds(call: Callable, clock: Callable[[], float]) -> float:
    began = clock()
    call()
    return clock() - began


def main(_) -> None:
    began = time.monotonic()
    one_thread = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["XLA_FLAGS"] = f"{one_thread} {os.environ.get('XLA_FLAGS', '')}"
    import jax

    from benchmarks import machine
    from fedprune.nn import table

    device = jax.devices()[0]
    cpu = device.platform == "cpu"
    dtype = DTYPE.value or ("float32" if cpu else "bfloat16")
    clients = 3 if cpu else 20
    name = "cpu" if cpu else device.device_kind
    todo = [(layer, kind) for layer in LAYERS for kind in ("out", "input", "kernel")]
    rows, changes, end = [], [], began + 60 * MINUTES.value
    for i, (layer, kind) in enumerate(todo):
        left = end - time.monotonic()
        if left < 0.0:
            print(f"no time for {len(todo) - i} of {len(todo)} kinds of layers", file=sys.stderr)
            break
        batch = layer.batch if cpu else 64
        forms = calls(layer, kind, clients, batch, dtype)
        until = time.monotonic() + left / (len(todo) - i)
        times = measured(forms, until, time.process_time if cpu else time.perf_counter)
        case = table.Case(kind, layer.window, layer.channels, clients, dtype)
        now, best = table.choose(case, name), min(times, key=lambda form: times[form])
        ms = {form: round(1e3 * t / clients, 3) for form, t in times.items()}
        rows.append({"kind": kind, **layer._asdict(), "batch": batch, "ms": ms, "table": now})
        print(json.dumps(rows[-1]), flush=True)
        if times[now] > BETTER * times[best]:
            start = table.processor() if cpu else device.device_kind
            shape = (layer.kernel, layer.stride, layer.side, layer.channels)
            row = table.Row(start, dtype, kind, *shape, not cpu, best)
            changes.append(f"{row!r},  # {times[now] / times[best]:.2f} x {now}")
    print("\n".join(changes) if changes else "the table has the fastest form of each")
    if OUT.value:
        facts = {"versions": {"jax": jax.__version__}, **machine.facts()}
        machine.publish([{**row, **facts} for row in rows], OUT.value)


if __name__ == "__main__":
    app.run(main)
