"""Times the settings between which a default chooses, in turns.

    python -m benchmarks.options

Of fedprune on W1 and W3, each as ``benchmarks.run`` times frameworks: number of virtual CPU
devices, clients in a chunk, examples at once, type of arithmetic, rounds in a call, and buffers of
the state given away; on W4, examples at once. In one process: the forms of a convolution and of
pooling under ``vmap`` over clients and ``scan`` over steps, test examples that are evaluated at
once, and the draw of a cohort. Prints a JSON line for each setting.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from statistics import median

import jax
import jax.numpy as jnp
from absl import app
from jax import lax

from benchmarks import machine, run
from fedprune import backend, data, mesh, models, nn, server
from fedprune import run as fp_run

CORES = len(os.sched_getaffinity(0))
SETTINGS = {
    "default": [],
    "1 device": ["devices=1"],
    "2 devices a core": [f"devices={2 * CORES}"],
    "chunks of 5 clients": ["chunk=5"],
    "whole batches": ["microbatch=1000000"],
    "bfloat16": ["compute=bfloat16"],
    "state given away": ["donate=1"],
}
BATCH, CLIENTS, STEPS = 32, 4, 3
"""of the convolutions"""


def engine(workload: str, turns: int, settings: dict[str, list[str]]) -> list[dict]:
    """Settings of the engine on a workload."""
    settings = dict(settings)
    if run.workload(workload).rounds > 1:
        settings["one round a call"] = ["rounds=1"]
    environment, module = run.FRAMEWORKS["fedprune"]
    entries = [
        run.Entry(name, workload, environment, [*module, *arguments])
        for name, arguments in settings.items()
    ]
    workers = run.started(entries, create=False)
    run.interleave(workers, turns)
    middle = {w.entry.label: median(w.turns) for w in workers}
    return [
        {
            "workload": workload,
            "setting": label,
            "time_over_default": round(value / middle["default"], 3),
        }
        for label, value in middle.items()
    ]


def plain(x: jax.Array, w: jax.Array) -> jax.Array:
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dimensions)


def im2col(x: jax.Array, w: jax.Array) -> jax.Array:
    """Patches, then one matrix product."""
    k, _, c, d = w.shape
    dimensions = ("NHWC", "HWIO", "NHWC")
    patches = lax.conv_general_dilated_patches(
        x, (k, k), (1, 1), "SAME", dimension_numbers=dimensions
    )
    return patches @ w.transpose(2, 0, 1, 3).reshape(c * k * k, d)


def window_pool(x: jax.Array) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


CONVOLUTIONS: dict[str, Callable] = {
    "one after another": lambda x, w: nn.conv(x, w, lowering="sequential"),
    "grouped": lambda x, w: nn.conv(x, w, lowering="grouped"),
    "patches and a product": im2col,
    "lax.conv under vmap": plain,
}
POOLS: dict[str, Callable] = {
    "reshaped maximum": lambda x: nn.max_pool(x, 2),
    "windowed reduction": window_pool,
}


def trained(layer: Callable[[jax.Array, jax.Array], jax.Array], c: int, d: int) -> Callable:
    """STEPS of gradient descent on the layer's kernel and input, of CLIENTS clients at once."""
    x = jax.random.normal(jax.random.key(0), (CLIENTS, BATCH, 14, 14, c))
    w = jax.random.normal(jax.random.key(1), (CLIENTS, 5, 5, c, d))

    def one(x: jax.Array, w: jax.Array):
        def step(now, _):
            gradient = jax.grad(lambda xw: jnp.sum(jnp.square(layer(*xw))))(now)
            return jax.tree.map(lambda v, g: v - 1e-9 * g, now, gradient), None

        return lax.scan(step, (x, w), length=STEPS)[0]

    compiled = jax.jit(jax.vmap(one))
    return lambda: jax.block_until_ready(compiled(x, w))


def forms(kind: str, layers: dict[str, Callable], turns: int) -> list[dict]:
    """Forms of a layer, in turns."""
    return compared(kind, {name: trained(layer, 8, 16) for name, layer in layers.items()}, turns)


def evaluations(examples: int, turns: int) -> list[dict]:
    """Numbers of test examples at once, for W1's network; the first is the default."""
    dataset = data.first(data.load("fashion_mnist_10k"), examples)
    _, test = data.federate(dataset, data.iid(1)(dataset.y_train, dataset.y_test, seed=0))
    model = models.cnn((32, 64), 5, (128,))
    params = jax.tree.map(lambda leaf: leaf[None], model.init(jax.random.key(0)))
    key = jax.random.key(0)[None]

    def timed(batch: int | None) -> Callable:
        as_sent = lambda _: lambda key, params, mask: params
        call = fp_run.delivery(model, mesh.make(), as_sent, draws=1, batch=batch)
        return lambda: jax.block_until_ready(call((), key, params, (), test))

    calls = {str(batch or "default"): timed(batch) for batch in (None, 25, 50, 100, 200, 500)}
    return compared("evaluation, examples at once", calls, turns)


def draws(clients: int, size: int, turns: int) -> list[dict]:
    """Cohorts of ``size`` of the clients."""
    ways: dict[str, Callable[[jax.Array], jax.Array]] = {
        "first of floats": server.uniform(clients, size).select,
        "jax.random.permutation": lambda key: jax.random.permutation(key, clients)[:size],
    }
    keys = jax.random.split(jax.random.key(0), 20)

    def timed(way: Callable[[jax.Array], jax.Array]) -> Callable:
        compiled = jax.jit(lambda keys: lax.map(way, keys))
        return lambda: jax.block_until_ready(compiled(keys))

    calls = {name: timed(way) for name, way in ways.items()}
    return compared(f"cohort of {size:,} of {clients:,} clients", calls, turns)


def compared(kind: str, calls: dict[str, Callable], turns: int) -> list[dict]:
    """Times over that of the first."""
    times = machine.in_turns(calls, turns)
    first = median(next(iter(times.values())))
    return [
        {
            "workload": kind,
            "setting": name,
            "time_over_default": round(median(values) / first, 3),
        }
        for name, values in times.items()
    ]


def main(_) -> None:
    backend.configure(devices=1)
    turns = run.TURNS.value or 3
    suffix = ":smoke" if run.SMOKE.value else ""
    rows = forms("convolution", CONVOLUTIONS, turns)
    rows += forms("pooling", {k: lambda x, _, f=f: f(x) for k, f in POOLS.items()}, turns)
    rows += evaluations(200 if suffix else 2000, turns)
    rows += draws(1000, 10, turns)
    rows += draws(100_000, 100, turns)
    for workload in ("W1", "W3"):
        rows += engine(workload + suffix, turns, SETTINGS)
    batches = {name: SETTINGS[name] for name in ("default", "whole batches")}
    rows += engine("W4" + suffix, 1, batches)
    facts = {"versions": {"jax": jax.__version__}, **machine.facts()}
    machine.publish([{**row, **facts} for row in rows], run.OUT.value)


if __name__ == "__main__":
    app.run(main)
