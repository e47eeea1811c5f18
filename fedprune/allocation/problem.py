"""The problem of P2 (32) and P4 (49): least total pruning within a time limit and a band.

    min sum_n rho_n   over shares b_n >= 0, sum_n b_n <= 1, and 0 <= rho_n <= rho_max,
                      with T_n(b_n, rho_n) <= T_th for all n

for the devices of one server in one round. T_n grows as rho_n falls, so at given shares

    x_n = 1 - rho_n = (b_n V1 - V2) / (b_n V3 + V4)       P2 (31) and (35), P4 (47) and (58)

within its limits. With r_n the rate over the whole band:

    V1 = r (T_th - T_fixed - T_warm)    T_fixed: computing what cannot be pruned
    V2 = bits that cannot be pruned     T_warm:  the steps before the masks are known
    V3 = r T_prunable                   T_prunable: computing what can be pruned
    V4 = bits that can be pruned

P4's printed V1 lacks T_warm, though its (28) has it: it exceeds T_th by T_warm on every device that
sends anything. ``form="printed"`` leaves it out. P2's printed latency has no warm-up at all.

V1 and V3 are about 1e6 to 1e9 and their products overflow or cancel in float32. Here they are all
divided by V4, whose time on the air over the whole band is ``air`` = V4 / r:

    v1 = (T_th - T_fixed - T_warm) / air,  v2 = V2 / V4,  v3 = T_prunable / air

so that only ratios of times and of sizes appear.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedprune import check
from fedprune.resources import Work

FORMS = ("derived", "printed")


class Problem(NamedTuple):
    """One server's devices in one round. Fields may be traced."""

    threshold: jax.Array
    """[] T_th in s"""
    fixed: jax.Array
    """[N] s, computing what cannot be pruned, and the warm-up"""
    prunable: jax.Array
    """[N] s, computing what can be pruned, all of it kept"""
    air: jax.Array
    """[N] s, sending what can be pruned, all of it kept, over the whole band"""
    overhead: jax.Array
    """[N] V2 / V4"""
    active: jax.Array
    """[N] bool; the others get nothing and keep nothing"""


class Allocation(NamedTuple):
    """Shares and pruning of every device."""

    share: jax.Array
    """[N] b_n"""
    keep: jax.Array
    """[N] x_n = 1 - rho_n, share of the prunable weights that is kept"""
    feasible: jax.Array
    """[] bool: every device meets T_th with at most rho_max pruned"""
    least: jax.Array
    """[] s, the smallest T_th that would be feasible"""
    price: jax.Array
    """[] lambda, by how much sum rho_n would fall for a little more band, per unit of it; 0 where
    the band is not the limit, where the problem is infeasible, and for given shares"""

    @property
    def ratio(self) -> jax.Array:
        """[N] rho_n."""
        return 1.0 - self.keep


def problem(
    work: Work,
    frequency: jax.Array | float,
    rate: jax.Array,
    threshold: jax.Array | float,
    form: str = "derived",
    active: jax.Array | None = None,
) -> Problem:
    """The problem of devices with this work, from ``resources.hierarchical`` or ``personalized``.

    Args:
      work: of each device, fields [] or [N].
      frequency: f_n in Hz, [] or [N].
      rate: r_n over the whole band in bits a second, [N] (``resources.full_rate``). May be 0 for
        a device that need not send anything; otherwise above 0.
      threshold: T_th in s.
      form: "derived", or "printed" for V1 without the warm-up.
      active: [N] bool, which devices take part; None: all.

    Raises:
      ValueError: an unknown form.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r}: must be one of {', '.join(FORMS)}")
    check.numbers("prunable_bits", work.prunable_bits, above=0)
    check.numbers("frequency", frequency, above=0)
    check.numbers("rate", rate, 0)
    check.number("threshold", threshold, above=0)
    cycles = work.fixed_cycles + (work.warm_cycles if form == "derived" else 0.0)

    def each(value) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(value, rate.dtype), rate.shape)

    return Problem(
        threshold=jnp.asarray(threshold, rate.dtype),
        fixed=each(cycles / frequency),
        prunable=each(work.prunable_cycles / frequency),
        air=each(work.prunable_bits) / rate,
        overhead=each(work.fixed_bits / work.prunable_bits),
        active=jnp.ones(rate.shape, bool) if active is None else active,
    )


def terms(p: Problem) -> tuple[jax.Array, jax.Array, jax.Array]:
    """v1, v2, v3 = V1/V4, V2/V4, V3/V4, each [N]."""
    return (p.threshold - p.fixed) / p.air, p.overhead, p.prunable / p.air


def kept(p: Problem, share: jax.Array) -> jax.Array:
    """x_n at given shares [N], neither limited to [1 - rho_max, 1] nor to the active devices."""
    v1, v2, v3 = terms(p)
    return (share * v1 - v2) / (share * v3 + 1.0)


def box(p: Problem, rho_max: jax.Array | float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Shares at which a device prunes as much as it may, and at which it prunes nothing, [N] each.

    Less than the first is infeasible (it is inf where computing alone takes too long), more than
    the second is of no use. Both 0 for devices that are not active.
    """
    least = floor_of(p, rho_max)
    late, air = after(p, least)
    slack = p.threshold - late
    low = jnp.where(slack > 0, air / jnp.where(slack > 0, slack, 1.0), jnp.inf)
    late, air = after(p, jnp.ones_like(least))
    slack = p.threshold - late
    high = jnp.where(slack > 0, air / jnp.where(slack > 0, slack, 1.0), 1.0)
    low = jnp.where(p.active, low, 0.0)
    return low, jnp.where(p.active, jnp.maximum(jnp.minimum(high, 1.0), low), 0.0)


def floor_of(p: Problem, rho_max: jax.Array | float) -> jax.Array:
    """The least that a device keeps, 1 - rho_max, [] or [N]; rho_max in (0, 1]."""
    check.numbers("rho_max", rho_max, above=0, high=1)
    return 1.0 - jnp.asarray(rho_max, p.air.dtype)


def after(p: Problem, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Seconds before sending and seconds of sending over the whole band, [N], with x = keep."""
    sent = p.overhead + keep
    return p.fixed + keep * p.prunable, jnp.where(sent > 0, sent * p.air, 0.0)
