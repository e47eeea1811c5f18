"""Settings that fit P2's Table III and P4's Table I, and rounds simulated in them.

Neither paper gives distances, antennas, cycles a weight or the kernels' size; what is fitted and
what follows is in ``experiments/latency_tables.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedprune import allocation, channel, resources

POWER, NOISE, BANDWIDTH = resources.watts(28.0), resources.watts(-110.0), 20e6
FREQUENCY = 3e9
CONV, DENSE = 18_720, 25_168
SCHEMES = {
    "optimal": "optimal pruning",
    "post_hoc": "equal resources, post hoc",
    "literal": "equal resources, literal",
    "unpruned": "no pruning",
}


class Preset(NamedTuple):
    """A setting, and what the paper's table says of it."""

    title: str
    places: tuple[float, float, int]
    """distance of the nearest and the farthest device in m, and how many stand there, equally far
    from one another"""
    antennas: int
    threshold: float
    """s"""
    work: resources.Work
    paper: dict[str, tuple[float, float]]
    """scheme -> (mean, what the paper puts behind its ±) in ms"""


def _row(optimal: float, equal: float, spread: float, unpruned: float, spread_unpruned: float):
    equal_stated = (equal, spread)
    return {
        "optimal": (optimal, 0.0),
        "post_hoc": equal_stated,
        "literal": equal_stated,
        "unpruned": (unpruned, spread_unpruned),
    }


def _all_sent(cycles: float, value_bits: float) -> resources.Work:
    return resources.hierarchical(CONV, DENSE, 10.0, cycles, value_bits)


PARTIAL = resources.personalized(CONV, DENSE, 10.0, 10.0, 20.0, 32.0, warm_steps=1.0)
PRESETS = {
    "hfl": Preset("P2, HFL", (122.1, 150.8, 5), 256, 30e-3, _all_sent(1.0, 64.0),
                  _row(30, 48, 0.21, 52, 0.33)),
    "flat": Preset("P2, non-HFL", (582.7, 766.7, 25), 83, 350e-3, _all_sent(1.0, 64.0),
                   _row(350, 590, 12.34, 750, 15.44)),
    "personalized": Preset("P4", (389.5, 437.6, 10), 256, 25e-3, PARTIAL,
                           _row(25, 38, 0.45, 55, 0.55)),
    "pruning_only": Preset("P4, pruning only", (389.5, 437.6, 10), 256, 45e-3,
                           _all_sent(20.0, 32.0), {"optimal": (45, 0.0)}),
    "interior": Preset("interior", (45.6, 57.0, 5), 64, 30e-3, _all_sent(100.0, 64.0), {}),
}  # fmt: skip


class Rounds(NamedTuple):
    """What S seeds of R rounds gave to N devices; shares and ratios are the optimal ones."""

    milliseconds: dict[str, np.ndarray]
    """scheme -> slowest device, [S, R]"""
    rate: np.ndarray
    """[S, R, N] bits a second over the whole band"""
    share: np.ndarray
    """[S, R, N]"""
    ratio: np.ndarray
    """[S, R, N]"""
    feasible: np.ndarray
    """[S, R] bool"""
    least: np.ndarray
    """[S, R] s, T_min"""
    exact: np.ndarray
    """[S, R] bool: is the printed closed form the optimum?"""
    energy: np.ndarray
    """[S, R] of all devices together, optimal over unpruned"""
    weights: np.ndarray
    """[S, R] sent by all devices together, optimal over unpruned"""


def simulate(preset: Preset, seeds: int, rounds: int) -> Rounds:
    """Draws channels and allocates in every round."""
    distance, ids = jnp.linspace(*preset.places), jnp.arange(preset.places[2])
    pruned, dense = preset.work, preset.work._replace(warm_cycles=0.0)  # no masks, no warm-up

    def of_round(seed: jax.Array, t: jax.Array):
        gain = channel.orthogonal_gains(jax.random.key(seed), t, ids, distance, preset.antennas)
        rate = resources.full_rate(gain, POWER, NOISE, BANDWIDTH)
        problem = allocation.problem(pruned, FREQUENCY, rate, preset.threshold)
        best = allocation.optimal(problem)
        found = {
            "optimal": (pruned, best),
            "post_hoc": (pruned, allocation.post_hoc(problem, best)),
            "literal": (pruned, allocation.equal(problem)),
            "unpruned": (dense, allocation.unpruned(problem)),
        }
        took, energy, weights = {}, {}, {}
        for name, (work, a) in found.items():
            got = a.share * rate
            took[name] = 1e3 * jnp.max(resources.seconds(work, a.keep, FREQUENCY, got))
            energy[name] = jnp.sum(resources.energy(work, a.keep, FREQUENCY, got, POWER))
            weights[name] = jnp.sum(resources.weights_sent(work, a.keep))
        exact = allocation.closed_form(problem).feasible
        of_unpruned = [v["optimal"] / v["unpruned"] for v in (energy, weights)]
        return took, rate, best.share, best.ratio, best.feasible, best.least, exact, *of_unpruned

    every = jax.jit(jax.vmap(jax.vmap(of_round, (None, 0)), (0, None)))
    return Rounds(*jax.tree.map(np.asarray, every(jnp.arange(seeds), jnp.arange(rounds))))
