"""Times a cloud round of P2 beside flat rounds with the same local work.

    python -m benchmarks.hierarchy

P2's network and federation, 25 devices at 5 edge servers, 5 edge rounds of one warm-up step and 10
others, batches of 32, in turns with 5 flat rounds of 11 steps: edge servers alone, with masks of
the devices' own and means over holders, and with the allocation as well, which is P2. Prints a JSON
line for each.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import jax
from absl import app

import fedprune as fp
from benchmarks import machine
from benchmarks.overhead import OUT, SMOKE, TURNS
from benchmarks.peers import fedprune as ours
from benchmarks.workloads import Workload
from experiments import hfl_adaptive
from fedprune import build
from fedprune import config as cfg


def variants() -> dict[str, cfg.Config]:
    """Every one with the steps of the first."""
    p2 = hfl_adaptive.get_config("full")
    if SMOKE.value:
        small = {"data.clients": 4, "edges.servers": 2, "edges.rounds": 2, "local.steps": 1}
        p2 = cfg.override(p2, {**small, "local.batch": 2})
    ideal: dict[str, Any] = {"uplink.link": "ideal", "uplink.fading": "none"}
    ideal |= {"uplink.nearest": 0.0, "uplink.farthest": 0.0, "uplink.antennas": 1}
    masks = {**ideal, "pruning.schedule": "one_shot", "pruning.start": 0, "pruning.ratio": 0.7}
    edges = {**ideal, "pruning.schedule": "none", "uplink.division": "all"}
    edges["local.steps"] = p2.local.steps + p2.pruning.warm_up
    found = {
        "flat": cfg.override(p2, {**edges, "edges.servers": 0}),
        "edge servers": cfg.override(p2, edges),
        "and own masks": cfg.override(p2, masks),
        "and allocation: P2": p2,
    }
    for config in found.values():
        cfg.validate(config)
    return found


def prepared(config: cfg.Config) -> Callable[[], None]:
    """A turn: one cloud round, or as many flat rounds as it has edge rounds."""
    layout = fp.mesh.make()
    w = Workload("cnn", config.data.clients, config.local.steps, config.local.batch)
    train, test = jax.device_put(ours.federation(w), layout.replicated())
    m = config.model
    network = fp.models.cnn(m.filters, m.kernel, m.hidden)
    one = build.algorithm(config, network, layout)
    key = jax.random.key(0)[None]
    state = fp.run.start(lambda _: one, network.init, (), key)
    arms = fp.run.Arms((), key, state, train.rows[None], train.size[None])
    rounds = 1 if config.edges.servers else config.edges.rounds
    program = fp.run.program(lambda _: one, layout, rounds)

    def turn() -> None:
        nonlocal arms
        state, _, _ = jax.block_until_ready(program(arms, train, test))
        arms = arms._replace(state=state)

    return turn


def main(_) -> None:
    fp.backend.configure()
    turns = {name: prepared(config) for name, config in variants().items()}
    times = machine.in_turns(turns, 1 if SMOKE.value else TURNS.value)
    facts = {"versions": {"jax": jax.__version__}, **machine.facts()}
    flat = median(times["flat"])
    rows = [
        {
            "variant": name,
            "cloud_round_s": round(median(values), 4),
            "time_over_flat": round(median(values) / flat, 3),
            "turns": len(values),
            **facts,
        }
        for name, values in times.items()
    ]
    machine.publish(rows, OUT.value)


if __name__ == "__main__":
    app.run(main)
