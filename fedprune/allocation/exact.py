"""The exact solution of the capped problem, without iteration to convergence.

P2 calls its problem non-convex and mixed-integer, and solves for rho and b in turn. It is neither:
sum_n rho_n(b_n) is convex in the shares, and pruning as little as the shares allow is optimal for
them, so the two steps give the joint optimum. What both papers leave out are the limits on rho.
With them, each share lies in a box [lo_n, hi_n] (``problem.box``), and from the stationarity
condition, P2 (65) and P4 (56), with kappa_n = v1 + v2 v3 and a common s = 1 / sqrt(lambda),

    b_n(s) = clip((s sqrt(kappa_n) - 1) / v3, lo_n, hi_n),       sum_n b_n(s) = 1

unless sum hi_n <= 1, when nobody prunes. The sum is nondecreasing and piecewise linear in s, with
2N breakpoints where a device leaves lo_n or reaches hi_n. They are sorted, the piece that contains
sum = 1 is found by bisection over their order (log2 2N sums), and the shares are interpolated
between its two ends.

Why not bisect on s: where computing costs little against sending, v3 is small and b_n(s) runs
through its whole box while s hardly moves. In float32 the last bit of s then moves shares by
1e-7 / v3, and the band is left unused or exceeded; at v3 = 0 the sum jumps. Interpolation between
shares always fills the band to rounding, and v3 = 0 (filling from lo to hi in order of v1, as for
a fractional knapsack) is no special case: a device's two breakpoints coincide, but their order
tells them apart.

An error in s only moves band between devices of nearly the same price, which changes the objective
in second order. What remains is what rounded numbers leave open in any solver. The slope of the
mean of rho in the logarithm of T_th is

    S = lambda / N  sum_n b_n T_th / (seconds in which n sends)

and in float32, eps = 1.2e-7, the mean of rho is within 8 eps (1 + S) of the optimum. At a T_th 10 %
above the least one that is some 1e-7; in nearly infeasible problems, where lambda is large and
sending has a small part of T_th, errors of 3.5e-4 were seen with 25 devices, and of 1e-3 where
their links differ by 150 dB. There is x64 for who needs more.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import check, tree
from fedprune.allocation.problem import Allocation, Problem, after, box, floor_of, kept, terms

_HALVINGS = 64
"""more than a float64 has bits"""


def optimal(p: Problem, rho_max: jax.Array | float = 1.0) -> Allocation:
    """Least sum of pruning ratios within T_th and the band.

    Args:
      p: of N devices.
      rho_max: largest pruning ratio, in (0, 1]; [] or [N]; may be traced.

    Returns:
      The optimum. If there is none, ``feasible`` is False and every device prunes rho_max, with
      the band divided such that the slowest one is as fast as can be: it then takes ``least``. A
      device of rate 0 that has to send something makes that inf; the others share the band.
    """
    floor = floor_of(p, rho_max)
    low, high = box(p, rho_max)
    feasible = jnp.sum(low) <= 1.0  # shares are not negative, so this bounds each of them too
    possible = jnp.where(feasible, low, 0.0)
    share, price = _fill(p, possible, jnp.maximum(high, possible))
    keep = jnp.clip(kept(p, share), floor, 1.0)
    least, rushed = _min_max(p, floor)
    return Allocation(
        share=jnp.where(p.active, jnp.where(feasible, share, rushed), 0.0),
        keep=jnp.where(p.active, jnp.where(feasible, keep, floor), 0.0),
        feasible=feasible,
        least=least,
        price=jnp.where(feasible, price, 0.0),
    )


def least_threshold(p: Problem, rho_max: jax.Array | float = 1.0) -> jax.Array:
    """T_min in s, [], below which no division of the band meets the time limit.

    The root of sum_n A_n / (T - t_n) = 1, with A_n the seconds of sending over the whole band and
    t_n those before it, at rho_max.
    """
    return _min_max(p, floor_of(p, rho_max))[0]


def by_edge(
    p: Problem,
    edge: jax.Array,
    edges: int,
    allocate: Callable[[Problem], Allocation] = optimal,
) -> Allocation:
    """One allocation for every edge server with a band of its own (P2).

    Args:
      p: of all N devices.
      edge: the server of each device, [N] int32 in 0..edges-1.
      edges: servers, K. One without devices is feasible.
      allocate: the devices of one server -> their allocation.

    Returns:
      share and keep [N], the other fields [K].

    Raises:
      ValueError: servers outside 0..edges-1.
    """
    check.whole("edges", edges, 1)
    check.wholes("edge", edge, 0, edges - 1)

    def of(k: jax.Array) -> Allocation:
        return allocate(p._replace(active=p.active & (edge == k)))

    every = jax.vmap(of)(jnp.arange(edges, dtype=edge.dtype))
    return every._replace(share=jnp.sum(every.share, 0), keep=jnp.sum(every.keep, 0))


def _min_max(p: Problem, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The least time of the slowest device with x = keep, [], and the shares [N] that reach it.

    inf if a device never gets done, whatever its share; the shares are then those of the others.
    """
    late, air = after(p, keep)
    ends = p.active & jnp.isfinite(air)
    air = jnp.where(ends, air, 0.0)
    start = jnp.max(jnp.where(ends, late, 0.0))

    def shares(extra: jax.Array) -> jax.Array:
        wait = extra + (start - late)  # no difference of T and t_n: they may agree in all digits
        return jnp.where(air > 0, air / jnp.where(air > 0, wait, 1.0), 0.0)

    def halve(_: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        short, enough = ends
        middle = 0.5 * (short + enough)
        fits = jnp.sum(shares(middle)) <= 1.0
        return jnp.where(fits, short, middle), jnp.where(fits, middle, enough)

    total = jnp.sum(air)
    limits = tree.match((jnp.zeros_like(total), total, late, keep))[:2]
    extra = lax.fori_loop(0, _HALVINGS, halve, limits)[1]
    return jnp.where(jnp.all(ends | ~p.active), start + extra, jnp.inf), shares(extra)


def _fill(p: Problem, low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Shares [N] that fill the band at one price, and the price []; needs sum low <= 1."""
    n = low.shape[0]
    v1, v2, v3 = terms(p)
    # A device whose band is of no use (rate 0) comes last.
    root = jnp.sqrt(jnp.maximum(v1 + v2 * v3, jnp.finfo(v1.dtype).tiny))
    points = jnp.concatenate([(low * v3 + 1.0) / root, (high * v3 + 1.0) / root])
    order = jnp.argsort(points)  # stable: of equal points, leaving lo comes before reaching hi
    rank = jnp.argsort(order)
    leaves, reaches = rank[:n], rank[n:]
    points = points[order]

    def shares(j: jax.Array) -> jax.Array:
        """At the j-th breakpoint; nondecreasing in j, whatever is rounded."""
        inner = jnp.where(v3 > 0, (points[j] * root - 1.0) / jnp.where(v3 > 0, v3, 1.0), low)
        inner = jnp.clip(inner, low, high)
        return jnp.where(j >= reaches, high, jnp.where(j <= leaves, low, inner))

    def halve(_: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        below, above = ends  # the sum is <= 1 at the first, > 1 at the second or beyond the last
        middle = (below + above) // 2
        fits = jnp.sum(shares(middle)) <= 1.0
        return jnp.where(fits, middle, below), jnp.where(fits, above, middle)

    first, last = jnp.zeros_like(order[0]), jnp.full_like(order[0], 2 * n)
    first, last, *_ = tree.match((first, last, p, low, high))
    below, above = lax.fori_loop(0, (2 * n).bit_length(), halve, (first, last))
    above = jnp.minimum(above, 2 * n - 1)
    first, second = shares(below), shares(above)
    gap = jnp.sum(second - first)
    part = jnp.where(gap > 0, (1.0 - jnp.sum(first)) / jnp.where(gap > 0, gap, 1.0), 0.0)
    part = jnp.clip(part, 0.0, 1.0)
    s = points[below] + part * (points[above] - points[below])
    price = jnp.where(jnp.sum(high) <= 1.0, 0.0, 1.0 / (s * s))
    return first + part * (second - first), price
