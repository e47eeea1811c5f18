"""Times exact selection of the k largest magnitudes beside sorting.

    python -m benchmarks.topk

8 clients' models of 11 million weights, of which a tenth is kept: ``prune.top_k`` in both ways, one
client after another as in a round on CPU, beside ``jnp.sort`` and ``lax.top_k`` with a threshold.
The ways take turns. Prints a JSON line each, and checks that all keep the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import lax

from benchmarks import machine
from fedprune import backend, prune

SMOKE = flags.DEFINE_bool("smoke", False, "100,000 weights, one turn")
TURNS = flags.DEFINE_integer("turns", 3, "timed turns of each way", lower_bound=1)
OUT = flags.DEFINE_string("out", "", "also write the lines to this file")


def by_sort(scores: jax.Array, k: int) -> jax.Array:
    return scores >= jnp.sort(scores)[-k]


def by_top_k(scores: jax.Array, k: int) -> jax.Array:
    return scores >= lax.top_k(scores, k)[0][-1]


def main(_) -> None:
    backend.configure(devices=1)
    clients, weights = (2, 100_000) if SMOKE.value else (8, 11_000_000)
    scores = jnp.abs(jax.random.normal(jax.random.key(0), (clients, weights)))
    ways: dict[str, Callable] = {
        "histogram": partial(prune.top_k, method="histogram"),
        "counting": partial(prune.top_k, method="counting"),
        "jnp.sort": by_sort,
        "lax.top_k": by_top_k,
    }
    keep = weights // 10
    compiled = {
        name: jax.jit(lambda scores, way=way: lax.map(lambda s: way(s, keep), scores))
        for name, way in ways.items()
    }
    kept = [np.asarray(run(scores)) for run in compiled.values()]
    # Equal scores at the threshold: sorting keeps all of them, selection as many as were asked for.
    assert all(np.all(kept[0] <= other) for other in kept)
    assert np.all(kept[0].sum(-1) == keep)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 if SMOKE.value else TURNS.value):
        for name, run in compiled.items():
            began = time.perf_counter()
            run(scores).block_until_ready()
            times[name].append(time.perf_counter() - began)
    rows = []
    for name, values in times.items():
        row = {
            "way": name,
            "seconds": round(median(values), 4),
            "sort_over_this": round(median(times["jnp.sort"]) / median(values), 2),
            "clients": clients,
            "weights": weights,
            "turns": len(values),
            "versions": {"jax": jax.__version__},
        }
        rows.append({**row, **machine.facts()})
    machine.publish(rows, OUT.value)


if __name__ == "__main__":
    app.run(main)
