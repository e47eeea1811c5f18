"""Masks."""

from dataclasses import dataclass
from typing import Any

import fedprune as fp
from fedprune.config.fields import Kind, free, require, spec

STEPWISE = ("iterative", "linear", "cubic")
SCHEDULES = {
    "none": Kind(lambda p: None),
    "one_shot": Kind(lambda p: fp.prune.one_shot(p.ratio, p.start)),
    "iterative": Kind(lambda p: fp.prune.iterative(p.ratio, p.start, p.every, p.steps)),
    "linear": Kind(lambda p: fp.prune.linear(p.ratio, p.start, p.every, p.steps)),
    "cubic": Kind(lambda p: fp.prune.cubic(p.ratio, p.start, p.every, p.steps)),
    "allocated": Kind(lambda p: None),
}
"""name -> this section -> sparsity against the round; None: there is none, or the link allocates
it"""
PRUNABLE = {
    "all": Kind(lambda: fp.prune.kernels),
    "dense": Kind(lambda: fp.prune.named("Dense")),
}
"""name -> which leaves have weights that can be pruned"""


def _weights(p: Any, schedule: Any, structure: Any) -> Any:
    prunable = PRUNABLE[p.layers].build()
    return fp.prune.scheduled(
        schedule, distribution=p.distribution, scope=p.scope, prunable=prunable
    )


def _units(p: Any, schedule: Any, structure: Any) -> Any:
    require(
        structure is not None,
        "pruning.granularity='unit': the network is the experiment's own, so its file must have a"
        " function structure that says what its units are, such as fedprune.prune.chain",
    )
    return fp.prune.structured(schedule, structure, p.distribution, p.scope)


METHODS = {
    "weight": Kind(_weights),
    "unit": Kind(_units),
    "neuron": Kind(lambda p, schedule, structure: None),
}
"""granularity -> (this section, schedule, structure of the network) -> pruner; None: the server
decides no masks"""
IMPORTANCES = {
    "magnitude": Kind(lambda: fp.local.magnitude),
    "change": Kind(lambda: fp.local.change),
}
"""name -> what a client's own mask keeps"""


@dataclass
class Pruning:
    """Pruning."""

    schedule: str = spec(
        "none", "how the share of pruned weights grows over the rounds", choices=SCHEDULES
    )
    ratio: float = free(
        0.9,
        "share of the prunable weights that is pruned in the end",
        low=0,
        high=1,
        traced=True,
        of=("schedule", "one_shot", *STEPWISE),
    )
    start: int = free(
        4,
        "round of the first pruning step",
        low=0,
        high=10_000_000,
        traced=True,
        of=("schedule", "one_shot", *STEPWISE),
    )
    every: int = free(
        3,
        "rounds between pruning steps",
        low=1,
        high=10_000_000,
        traced=True,
        of=("schedule", *STEPWISE),
    )
    steps: int = free(
        5, "pruning steps, n", low=1, high=10_000_000, traced=True, of=("schedule", *STEPWISE)
    )
    layers: str = spec(
        "all",
        "which kernels are prunable: all; dense, those of fully connected layers",
        choices=PRUNABLE,
    )
    distribution: str = spec(
        "global",
        "which weights compete: global, those of all layers; layer, those of the same layer",
        choices=("global", "layer"),
    )
    granularity: str = spec(
        "weight",
        "what is pruned as a whole: weight, a single weight; unit, a filter or a neuron "
        "with all its weights (P3); neuron, a neuron of a fully connected layer in per- "
        "client masks, P2 (3)",
        choices=METHODS,
    )
    form: str = spec(
        "derived",
        "share of each layer's neurons that stays: derived, sqrt(1 - ratio), which "
        "prunes the ratio of the weights; printed, the ratio itself, as printed in P2 "
        "(3)",
        choices=("derived", "printed"),
        of=("granularity", "neuron"),
    )
    scope: str = spec(
        "server",
        "to what the mask applies: server, the global model; client, the model that "
        "clients receive; own, every client decides its own mask",
        choices=("server", "client", "own"),
    )
    warm_up: int = spec(
        1,
        "local steps before a client decides its own mask, in addition to those of "
        "local.steps or local.epochs",
        low=1,
        high=1_000_000,
        of=("scope", "own"),
    )
    importance: str = spec(
        "magnitude",
        "what a client's own mask keeps: magnitude, the largest weights; change, those "
        "that the warm-up changed most",
        choices=IMPORTANCES,
        of=("scope", "own"),
    )
    rewind: bool = spec(
        False,
        "whether a client, once it has its own mask, trains from the weights that it "
        "received, instead of those after its warm-up steps",
        of=("scope", "own"),
    )


def check(c: Any) -> None:
    """Refuses what does not fit."""
    p, u = c.pruning, c.uplink
    if p.schedule not in ("none", "allocated") and p.ratio > 0:
        last = p.start if p.schedule == "one_shot" else p.start + p.every * (p.steps - 1)
        require(
            last < c.run.rounds,
            f"pruning.start={p.start}: the last pruning step falls in round {last}, but must come"
            f" before run.rounds={c.run.rounds}",
        )
    require(
        p.granularity != "neuron"
        or (p.scope, p.layers, c.run.evaluate) == ("own", "dense", "dense"),
        f"pruning.granularity={p.granularity!r}: must come with pruning.scope='own' (is"
        f" {p.scope!r}),"
        f" pruning.layers='dense' (is {p.layers!r}) and run.evaluate='dense'"
        f" (is {c.run.evaluate!r})",
    )
    require(
        p.schedule != "allocated" or (u.link, p.scope) == ("ofdma", "own"),
        f"pruning.schedule='allocated': must come with uplink.link='ofdma' (is {u.link!r}) and"
        f" pruning.scope='own' (is {p.scope!r})",
    )
    require(
        p.granularity != "unit" or p.layers == "all",
        f"pruning.layers={p.layers!r}: must be all for pruning.granularity={p.granularity!r}",
    )
    require(
        p.granularity != "unit" or p.scope != "own",
        f"pruning.granularity={p.granularity!r}: must not be unit for pruning.scope={p.scope!r}",
    )
