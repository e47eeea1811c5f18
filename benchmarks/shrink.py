"""Times inference of a masked model beside the smaller dense one that is left of it.

    python -m benchmarks.shrink

Small-VGG16 with random weights, of which structured pruning keeps 50, 20 and 8 %; a batch of 64
images of 32×32. Masked weights are multiplied like any other, so the masked model takes as long as
the whole one. The ways take turns. Prints a JSON line each, with the largest difference from the
masked model's logits, relative to the largest of these.
"""

from __future__ import annotations

import itertools
import time
from statistics import median

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks import machine
from fedprune import backend, models, prune, tree

SMOKE = flags.DEFINE_bool("smoke", False, "a sixteenth of the filters, one turn")
TURNS = flags.DEFINE_integer("turns", 5, "timed turns of each way", lower_bound=1)
OUT = flags.DEFINE_string("out", "", "also write the lines to this file")
KEPT = (0.5, 0.2, 0.08)


def main(_) -> None:
    backend.configure(devices=1)
    part = 16 if SMOKE.value else 1
    widths, hidden = [w // part for w in (64, 128, 256, 512)], [512 // part] * 2
    model = models.small_vgg16(widths, hidden)
    params = jax.jit(model.init)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (64, 32, 32, 3))
    units = prune.chain(params)
    whole = jax.jit(model.apply)
    runs = {"whole": (whole, params)}
    reference = {"whole": whole(params, x)}
    for share in KEPT:
        pruner = prune.structured(prune.constant(1.0 - share), prune.chain)
        mask, _ = jax.jit(pruner.update)(pruner.init(params), params, jnp.int32(0))
        left = prune.widths(units, mask)
        convolutions = iter(left)
        stages = [list(itertools.islice(convolutions, depth)) for depth in models.VGG_DEPTHS]
        smaller = models.vgg(stages, list(convolutions))
        name = f"{share:g} kept"
        runs[name] = (jax.jit(smaller.apply), prune.shrink(units, params, mask))
        reference[name] = whole(tree.apply_mask(mask, params), x)
    error = {
        name: float(jnp.abs(run(p, x) - reference[name]).max() / jnp.abs(reference[name]).max())
        for name, (run, p) in runs.items()
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 if SMOKE.value else TURNS.value):
        for name, (run, p) in runs.items():
            began = time.perf_counter()
            run(p, x).block_until_ready()
            times[name].append(time.perf_counter() - began)
    rows = []
    for name, values in times.items():
        row = {
            "way": name,
            "weights": sum(leaf.size for leaf in jax.tree.leaves(runs[name][1])),
            "seconds": round(median(values), 4),
            "whole_over_this": round(median(times["whole"]) / median(values), 2),
            "largest_difference": error[name],
            "turns": len(values),
            "versions": {"jax": jax.__version__},
        }
        rows.append({**row, **machine.facts()})
    machine.publish(rows, OUT.value)


if __name__ == "__main__":
    app.run(main)
