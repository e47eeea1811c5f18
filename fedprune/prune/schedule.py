"""Sparsity against the round.

A schedule is a function of the round t that gives the sparsity s in force in that round: the share
of prunable weights that are pruned at its start, before the broadcast. All of them prune in n
steps i = 1..n, at rounds ``start``, ``start + every``, ... and keep s_n = p afterwards:

  one-shot   s_1 = p                            (n = 1)
  iterative  s_i = 1 - (1-p)^(i/n)              each step prunes the same share of what is left
  linear     s_i = p i/n                        each step prunes the same number
  cubic      s_i = p (1 - (1 - i/n)^3)          Zhu and Gupta's gradual pruning

p, start, every and n may be traced, so arms with different schedules share a program. Source: P0
section III for one-shot and iterative magnitude pruning (the paper gives no formula; the
equal-share rule is its "small percentage of the remaining weights").
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedprune import check

Schedule = Callable[[jax.Array], jax.Array]
"""round [] int32 -> sparsity [] float32 in [0, 1]"""


def constant(ratio: jax.Array | float) -> Schedule:
    """The same sparsity from the first round on."""
    return one_shot(ratio, 0)


def one_shot(ratio: jax.Array | float, start: jax.Array | int) -> Schedule:
    """Prunes the share ``ratio`` at once at round ``start``."""
    return iterative(ratio, start, 1, 1)


def iterative(
    ratio: jax.Array | float,
    start: jax.Array | int,
    every: jax.Array | int,
    steps: jax.Array | int,
) -> Schedule:
    """s_i = 1 - (1-p)^(i/n): the same share of the remaining weights at each of n steps."""
    return _stepwise(lambda f, p: 1.0 - (1.0 - p) ** f, ratio, start, every, steps)


def linear(
    ratio: jax.Array | float,
    start: jax.Array | int,
    every: jax.Array | int,
    steps: jax.Array | int,
) -> Schedule:
    """s_i = p i/n: the same number of weights at each of n steps."""
    return _stepwise(lambda f, p: p * f, ratio, start, every, steps)


def cubic(
    ratio: jax.Array | float,
    start: jax.Array | int,
    every: jax.Array | int,
    steps: jax.Array | int,
) -> Schedule:
    """s_i = p (1 - (1 - i/n)^3): fast first, slow towards the end."""
    return _stepwise(lambda f, p: p * (1.0 - (1.0 - f) ** 3), ratio, start, every, steps)


def sparsity_of(schedule: Schedule, t: jax.Array) -> jax.Array:
    """The sparsity in force in round t.

    Raises:
      TypeError: what the schedule returns is no number.
      ValueError: it is not from 0 to 1, which shows where it is concrete: outside of programs, or
        if it does not depend on the round.
    """
    sparsity = schedule(t)
    check.number("schedule", sparsity, 0, 1)
    return sparsity


def checked(schedule: Schedule) -> Schedule:
    """A schedule as it is, once its first round was tried."""
    check.function("schedule", schedule)
    sparsity_of(schedule, jnp.int32(0))
    return schedule


def _stepwise(curve, ratio, start, every, steps) -> Schedule:
    check.number("ratio", ratio, 0, 1)
    check.whole("start", start, 0)
    check.whole("every", every, 1)
    check.whole("steps", steps, 1)

    def sparsity(t: jax.Array) -> jax.Array:
        p = jnp.asarray(ratio, jnp.float32)
        done = jnp.clip((t - start) // every + 1, 0, steps)  # i
        s = curve(done.astype(jnp.float32) / jnp.asarray(steps, jnp.float32), p)
        # The ends are exact whatever the curve rounds to.
        return jnp.where(done == 0, 0.0, jnp.where(done == steps, p, s))

    return sparsity
