"""Convergence bounds of P2 and P4, as functions of constants that can be measured.

P2 Theorem 1 bounds 1/(Q W) sum_q ||grad F(w_q)||^2 by

    2 (F0 - F*) / (Q W eta E T) + H1 + H2 R,      R = sum_e sum_n rho_{n,e}

    H1 = 3 L eta T E W phi^2
         + [N eta^2 T^2 L^2 phi^2 + 3 L W eta E T N s^2 + 3 W E L^3 T^3 eta^3 phi^2 N] / Gamma*
    H2 = [2 L^2 D^2 / E + 6 W eta L^3 D^2 T] / Gamma*

This is ``form="derived"``, worked out from the paper's Lemmas 2 to 5. Its (23) and (24) print L^3
for L^2 in the second term of H1 and 2 E L^2 for 2 L^2 D^2 / E in H2, which do not follow from them.

P4 Theorem 1 bounds 1/G sum_g [c sum_k ||grad_v F_k||^2 + eta_u tau_u / 2 ||grad_u F||^2] by

    (F0 - F*) / G + A1 + A2 R,                    R = sum_g sum_k rho_k^g

with A1 and A2 of (41) and (42), which follow from the paper's lemmas as printed; c is in
``personalized_left``. Its lemma on the personal part, (65), is taken from elsewhere.

Symbols: Q cloud rounds of E edge rounds of T steps; G rounds; N devices (P4: K); W weights (P4: N,
of the global part); eta learning rates; Gamma* (P4: kappa*) the fewest devices that hold a weight
in any round. L, D, phi and s are those of the assumptions, and have estimators below.

Neither bound says much of the size of a gradient: W enters because every coordinate is bounded by
the whole norm, and at P2's own settings (W = 43,888, eta = 1e-3, E T = 50, L = 1) H1 is 6600 phi^2.
They say what pruning costs relative to the rest: the bounds are affine in R.

Sources: P2 (17)-(24) and appendix A; P4 (30)-(42) and appendix.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedprune import check

Number = jax.Array | float


class Bound(NamedTuple):
    """A bound of the form start + floor + slope R."""

    start: jax.Array
    """what more rounds reduce"""
    floor: jax.Array
    """what they do not, with nothing pruned: H1, A1"""
    slope: jax.Array
    """of the sum of pruning ratios: H2, A2"""
    total: jax.Array


class Constants(NamedTuple):
    """Of the assumptions, for P2 or for one of P4's two parts."""

    smoothness: Number
    """L, of the gradients: (17); P4 (30), (31)"""
    gradient: Number
    """phi, root of the second moment of stochastic gradients: (19); P4 (33), (34)"""
    noise: Number
    """s, root of their variance: (21); P4 (37), (38)"""
    pruning: Number = 0.0
    """D, with ||w - w m||^2 <= rho D^2: (18); P4 (32). Not used for P4's personal part."""


def hierarchical(
    constants: Constants,
    gap: Number,
    ratios: Number,
    rounds: Number,
    edge_rounds: Number,
    steps: Number,
    lr: Number,
    devices: Number,
    weights: Number,
    holders: Number,
    form: str = "derived",
) -> Bound:
    """P2 Theorem 1, (22).

    Args:
      constants: L, phi, s, D.
      gap: F(w_0) - F(w*).
      ratios: R, the sum of rho over a round's edge rounds and devices.
      rounds: Q.
      edge_rounds: E.
      steps: T.
      lr: eta.
      devices: N.
      weights: W.
      holders: Gamma*; at 0 the bound is infinite.
      form: "derived", or "printed" for (23) and (24) as they stand.

    Raises:
      ValueError: an unknown form.
    """
    _check(form)
    _constants(constants=constants)
    _positive_numbers(
        rounds=rounds, edge_rounds=edge_rounds, steps=steps, lr=lr, devices=devices, weights=weights
    )
    _not_negative(gap=gap, ratios=ratios, holders=holders)
    L, phi, s, D = (jnp.asarray(c) for c in constants)
    eta, E, T, N, W = lr, edge_rounds, steps, devices, weights
    drift = L**2 if form == "derived" else L**3
    pruned = 2 * L**2 * D**2 / E if form == "derived" else 2 * E * L**2
    shared = (
        N * eta**2 * T**2 * drift * phi**2
        + 3 * L * W * eta * E * T * N * s**2
        + 3 * W * E * L**3 * T**3 * eta**3 * phi**2 * N
    )
    floor = 3 * L * eta * T * E * W * phi**2 + _over(shared, holders)
    slope = _over(pruned + 6 * W * eta * L**3 * D**2 * T, holders)
    start = jnp.asarray(2 * gap / (rounds * W * eta * E * T))
    return _bound(start, floor, slope, ratios, holders)


def personalized(
    shared: Constants,
    personal: Constants,
    gap: Number,
    ratios: Number,
    rounds: Number,
    shared_steps: Number,
    personal_steps: Number,
    shared_lr: Number,
    personal_lr: Number,
    devices: Number,
    weights: Number,
    holders: Number,
) -> Bound:
    """P4 Theorem 1, (40)-(42).

    Args:
      shared: L_u, phi_u, s_u, D of the global part.
      personal: L_v, phi_v, s_v of the personal parts; phi_v does not appear.
      gap: F(u_0, V_0) - F(u*, V*).
      ratios: R, the sum of rho over all rounds and devices.
      rounds: G.
      shared_steps: tau_u.
      personal_steps: tau_v.
      shared_lr: eta_u.
      personal_lr: eta_v.
      devices: K.
      weights: N, of the global part.
      holders: kappa*; at 0 the bound is infinite.
    """
    _constants(shared=shared, personal=personal)
    _positive_numbers(
        rounds=rounds,
        shared_steps=shared_steps,
        personal_steps=personal_steps,
        shared_lr=shared_lr,
        personal_lr=personal_lr,
        devices=devices,
        weights=weights,
    )
    _not_negative(gap=gap, ratios=ratios, holders=holders)
    L, phi, s, D = (jnp.asarray(c) for c in shared)
    L_v, s_v = jnp.asarray(personal.smoothness), jnp.asarray(personal.noise)
    eta, tau, eta_v, tau_v = shared_lr, shared_steps, personal_lr, personal_steps
    G, K, N = rounds, devices, weights
    varying = (
        N * phi**2 * K * eta**3 * L**2 * tau**3
        + 3 * N**2 * eta**2 * tau**2 * K * s**2 * L
        + 3 * N**2 * L**3 * tau**4 * eta**4 * K * phi**2
    )
    floor = (
        eta_v**2 * tau_v**2 * s_v**2 * L_v / 2
        + 4 * eta_v**3 * L_v**2 * s_v**2 * tau_v**2 * (tau_v - 1)
        + 3 * eta**2 * N**2 * tau**2 * phi**2 * L / 2
        + _over(varying, 2 * holders)
    )
    pruned = N * eta * tau * L**2 * D**2 + 3 * N**2 * eta**2 * L**3 * D**2 * tau**2
    return _bound(jnp.asarray(gap / G), floor, _over(pruned, G * holders), ratios, holders)


def personalized_left(
    personal_squares: jax.Array,
    shared_squares: jax.Array,
    shared_steps: Number,
    personal_steps: Number,
    shared_lr: Number,
    personal_lr: Number,
    form: str = "derived",
) -> jax.Array:
    """What P4 Theorem 1 bounds, the left side of (40).

    The objective (63) is a mean over the K devices, so its gradient with respect to V holds a
    factor 1/K, which (65) and (40) lost: c = eta_v tau_v / (8 K), printed eta_v tau_v / 8.

    Args:
      personal_squares: ||grad_v F_k||^2 of every round and device, [G, K].
      shared_squares: ||grad_u F||^2 of every round, [G].
      shared_steps: tau_u.
      personal_steps: tau_v.
      shared_lr: eta_u.
      personal_lr: eta_v.
      form: "derived" or "printed".

    Raises:
      ValueError: an unknown form.
    """
    _check(form)
    _positive_numbers(
        shared_steps=shared_steps,
        personal_steps=personal_steps,
        shared_lr=shared_lr,
        personal_lr=personal_lr,
    )
    gather = jnp.mean if form == "derived" else jnp.sum
    v = personal_lr * personal_steps / 8 * gather(personal_squares, 1)
    return jnp.mean(v + shared_lr * shared_steps / 2 * shared_squares)


# Constants from measurements -----


def smoothness(weights: jax.Array, gradients: jax.Array) -> jax.Array:
    """Largest ||g_a - g_b|| / ||w_a - w_b|| over pairs of P points: a lower bound of L.

    Args:
      weights: [P, d].
      gradients: of one loss at these points, not stochastic, [P, d].
    """

    def distances(x: jax.Array) -> jax.Array:
        return jax.vmap(lambda a: jax.vmap(lambda b: jnp.sqrt(jnp.sum((a - b) ** 2)))(x))(x)

    between = distances(weights)
    return jnp.max(jnp.where(between > 0, distances(gradients), 0.0) / _positive(between))


def second_moment(gradients: jax.Array) -> jax.Array:
    """phi^2: the largest mean square norm over points, from B stochastic gradients [P, B, d]."""
    return jnp.max(jnp.mean(jnp.sum(gradients**2, -1), -1))


def gradient_variance(gradients: jax.Array) -> jax.Array:
    """s^2: the largest unbiased variance over points, from B > 1 stochastic gradients [P, B, d]."""
    centred = gradients - jnp.mean(gradients, 1, keepdims=True)
    return jnp.max(jnp.sum(centred**2, (-2, -1))) / (gradients.shape[1] - 1)


def pruning_error(weights: jax.Array, mask: jax.Array) -> jax.Array:
    """||w - w m||^2 / rho, the least D^2 that satisfies (18) here, with rho the pruned share.

    At most ||w||^2 if m prunes the smallest magnitudes, but not for other masks: at
    w = (1, 0, 0, 0), pruning the first weight has 4. So it is to be logged, not assumed. 0 where
    nothing is pruned.

    Args:
      weights: those that may be pruned, [..., d].
      mask: True where kept, [..., d].

    Returns:
      [...]
    """
    lost = jnp.sum(jnp.where(mask, 0.0, weights**2), -1)
    ratio = jnp.mean(jnp.where(mask, 0.0, jnp.ones_like(weights)), -1)
    return jnp.where(ratio > 0, lost, 0.0) / _positive(ratio)


def _bound(
    start: jax.Array, floor: jax.Array, slope: jax.Array, ratios: Number, holders: Number
) -> Bound:
    total = jnp.where(jnp.asarray(holders) > 0, start + floor + slope * ratios, jnp.inf)
    return Bound(start, floor, slope, total)


def _over(numerator: jax.Array, holders: Number) -> jax.Array:
    """Divided by a number of devices; infinite where there are none."""
    count = jnp.asarray(holders, numerator.dtype)
    return jnp.where(count > 0, numerator / _positive(count), jnp.inf)


def _positive(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, 1.0)


def _positive_numbers(**given: Number) -> None:
    for name, value in given.items():
        check.numbers(name, value, above=0)


def _not_negative(**given: Number) -> None:
    for name, value in given.items():
        check.numbers(name, value, 0)


def _constants(**given: Constants) -> None:
    for name, constants in given.items():
        for field, value in constants._asdict().items():
            check.numbers(f"{name}.{field}", value, 0)


def _check(form: str) -> None:
    if form not in ("derived", "printed"):
        raise ValueError(f"form={form!r}: must be derived or printed")
