"""What the papers compare with, and the closed form that they print.

"Equal resource pruning" gives every device the share 1/N of the band. How it prunes is not said:

  literal    ``equal``: as little as T_th allows at this share, P2 (31), P4 (47). Its latency is
             max(T_th, T at rho = 1), which is T_th wherever the problem is not nearly infeasible.
  post hoc   ``post_hoc``: as much as would be optimal with optimal shares, at equal ones. It misses
             T_th, as the equal-resource rows of both papers' tables do. A hypothesis that fits, not
             something the papers say.
  no pruning ``unpruned``

The closed form, P2 (34) and P4 (54), is the stationarity condition without the limits on rho and b,
its multiplier left open. It follows from sum_n b_n = 1:

    b_n = (s sqrt(kappa_n) - 1) / v3_n,    s = (1 + sum_m 1/v3_m) / sum_m (sqrt(kappa_m) / v3_m)

It is the optimum exactly if all lo_n <= b_n <= hi_n, and otherwise has negative shares or pruning
ratios outside [0, 1]. ``clipped_form`` is what can be run of it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedprune.allocation.exact import least_threshold
from fedprune.allocation.problem import Allocation, Problem, after, box, floor_of, kept, terms


def equal(p: Problem, rho_max: jax.Array | float = 1.0) -> Allocation:
    """Equal shares, and the least pruning that meets T_th at them, if any up to rho_max does.

    Returns:
      Among it ``feasible`` and ``least`` for these shares.
    """
    floor = floor_of(p, rho_max)
    share = _equal_shares(p)
    return _given(p, share, jnp.clip(kept(p, share), floor, 1.0), floor)


def post_hoc(p: Problem, best: Allocation) -> Allocation:
    """Equal shares, and the pruning that goes with the optimal ones, ``best``."""
    return _given(p, _equal_shares(p), best.keep, best.keep)


def unpruned(p: Problem) -> Allocation:
    """Equal shares and no pruning."""
    return _given(p, _equal_shares(p), jnp.where(p.active, 1.0, 0.0), jnp.ones_like(p.air))


def closed_form(p: Problem) -> Allocation:
    """P2 (34) with (35), P4 (54) with (58), as printed: nothing is clipped.

    Needs v3 > 0, except of a device of rate 0, which gets no share. For a device that computes for
    longer than T_th by itself, the number under the root may be negative; it is then taken for 0.
    ``feasible`` says whether all lo_n <= b_n <= hi_n, so that it is the optimum; ``least`` is that
    of ``optimal`` at rho_max = 1.
    """
    v1, v2, v3 = terms(p)
    hears = p.active & jnp.isfinite(p.air)
    v3 = jnp.where(hears, v3, 1.0)
    root = jnp.sqrt(jnp.maximum(v1 + v2 * v3, 0.0))
    weight = jnp.where(hears, 1.0 / v3, 0.0)
    scale = jnp.sum(root * weight)
    # (s root_n - 1) / v3_n, in differences of roots: s root_n is close to 1 where v3 is small.
    others = jnp.sum((root[:, None] - root[None, :]) * weight[None, :], 1)
    share = jnp.where(hears & (scale > 0), (root + others) / (v3 * scale), 0.0)
    s = (1.0 + jnp.sum(weight)) / scale
    low, high = box(p)
    return Allocation(
        share=share,
        keep=jnp.where(p.active, kept(p, share), 0.0),
        feasible=jnp.all((low <= share) & (share <= high)),
        least=least_threshold(p),
        price=1.0 / (s * s),
    )


def clipped_form(p: Problem, rho_max: jax.Array | float = 1.0) -> Allocation:
    """The closed form's shares, negative ones taken for 0 and their sum scaled to 1.

    Devices prune what they need at these shares, up to rho_max, and may be late; a device without
    a share never gets done with what it must send.
    """
    floor = floor_of(p, rho_max)
    share = jnp.clip(closed_form(p).share, 0.0, 1.0)
    share = _to_one(share)
    return _given(p, share, jnp.clip(kept(p, share), floor, 1.0), floor)


def _equal_shares(p: Problem) -> jax.Array:
    return _to_one(jnp.where(p.active, jnp.ones_like(p.air), 0.0))


def _to_one(share: jax.Array) -> jax.Array:
    """Shares [N] scaled to a sum of 1, or all 0 as they are, where no device is active."""
    total = jnp.sum(share)
    return share / jnp.where(total > 0, total, 1.0)


def _given(p: Problem, share: jax.Array, keep: jax.Array, floor: jax.Array) -> Allocation:
    """Given shares and pruning; ``least`` is the time they take with x = floor."""
    late, air = after(p, floor)
    wait = jnp.where(air > 0, air / jnp.where(share > 0, share, 1.0), 0.0)
    least = jnp.max(jnp.where(p.active, late + wait, 0.0))
    keep = jnp.where(p.active, keep, 0.0)
    return Allocation(share, keep, least <= p.threshold, least, jnp.zeros_like(least))
