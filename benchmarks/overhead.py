"""Times what a round does besides training: pruning, channel, sums, and the strict reduction.

    python -m benchmarks.overhead

Rounds of W1 in turns: bare (no pruning, an ideal uplink), with everything (a pruning step in every
round, noise over the air), and bare with the strict reduction. Then a trace of a round with
everything, by stage. Prints a JSON line for each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import jax
from absl import app, flags

import fedprune as fp
from benchmarks import machine
from benchmarks.peers import fedprune as ours
from benchmarks.workloads import workload
from fedprune import profile

SMOKE = flags.DEFINE_bool("smoke", False, "two clients, one turn")
TURNS = flags.DEFINE_integer("turns", 3, "timed turns of each variant", lower_bound=1)
OUT = flags.DEFINE_string("out", "", "also write the lines to this file")


def variants() -> dict[str, tuple[fp.mesh.Layout, dict]]:
    """name -> (layout, stages that differ from plain averaging)"""
    fast, strict = fp.mesh.make(), fp.mesh.make(reduction="strict")
    everything = {
        "pruner": fp.prune.scheduled(fp.prune.iterative(0.9, start=0, every=1, steps=1000)),
        "uplink": fp.link.over_the_air(snr_db=10.0, normalisation="receiver"),
    }
    return {"bare": (fast, {}), "everything": (fast, everything), "strict": (strict, {})}


def prepared(layout: fp.mesh.Layout, stages: dict) -> tuple[Callable[[], None], Callable[[], str]]:
    """A turn, and the text of its compiled program."""
    w = workload("W1:smoke" if SMOKE.value else "W1")
    train, test = jax.device_put(ours.federation(w), layout.replicated())
    one = ours.algorithm(w, layout, **stages)
    key = jax.random.key(0)[None]
    state = fp.run.start(lambda _: one, ours.MODELS[w.model]().init, (), key)
    arms = fp.run.Arms((), key, state, train.rows[None], train.size[None])
    program = fp.run.program(lambda _: one, layout, rounds=1)

    def turn() -> None:
        nonlocal arms
        state, _, _ = jax.block_until_ready(program(arms, train, test))
        arms = arms._replace(state=state)

    return turn, lambda: program.lower(arms, train, test).compile().as_text()


def main(_) -> None:
    fp.backend.configure()
    programs = {name: prepared(*variant) for name, variant in variants().items()}
    turns = {name: turn for name, (turn, _) in programs.items()}
    times = machine.in_turns(turns, 1 if SMOKE.value else TURNS.value)
    facts = {"versions": {"jax": jax.__version__}, **machine.facts()}
    bare = median(times["bare"])
    rows: list[dict] = [
        {
            "variant": name,
            "round_s": round(median(values), 4),
            "percent_over_bare": round(100 * (median(values) / bare - 1), 1),
            **facts,
        }
        for name, values in times.items()
    ]
    turn, text = programs["everything"]
    with tempfile.TemporaryDirectory() as folder:
        profile.measure(turn, Path(folder))
        seconds = profile.by_stage(Path(folder), text())
    total = sum(seconds.values())
    rows += [
        {"stage": name, "seconds": round(s, 4), "percent": round(100 * s / total, 2), **facts}
        for name, s in seconds.items()
    ]
    machine.publish(rows, OUT.value)


if __name__ == "__main__":
    app.run(main)
