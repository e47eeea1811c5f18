"""Bounds against the papers' lines in exact arithmetic, their properties, estimated constants."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedprune import theory

SEED = 31
P2 = dict(gap=2.0, ratios=7.5, rounds=10, edge_rounds=5, steps=10, lr=1e-3, devices=5,
          weights=43_888, holders=2)  # fmt: skip
P4 = dict(gap=2.0, ratios=40.0, rounds=20, shared_steps=10, personal_steps=4, shared_lr=1e-3,
          personal_lr=2e-3, devices=10, weights=25_168, holders=3)  # fmt: skip
C = theory.Constants(smoothness=3.0, gradient=1.5, noise=0.7, pruning=2.5)
V = theory.Constants(smoothness=2.0, gradient=9.0, noise=0.4)


def p2(form="derived", constants=C, **changes):
    with jax.enable_x64(True):
        return jax.tree.map(float, theory.hierarchical(constants, **{**P2, **changes}, form=form))


def p4(shared=C, personal=V, **changes):
    with jax.enable_x64(True):
        return jax.tree.map(float, theory.personalized(shared, personal, **{**P4, **changes}))


def exact(*values):
    return [Fraction(v).limit_denominator(10**6) for v in values]


def test_p2_derived_from_the_lemmas():
    """Lemma 5 (48) and the inner product (56) put into the smoothness bound (52), summed and solved
    for the left side of (22), step by step, in rational numbers."""
    L, phi, s, D, eta, gap, R = exact(3, 1.5, 0.7, 2.5, 1e-3, 2, 7.5)
    Q, E, T, N, W, G = (Fraction(v) for v in (10, 5, 10, 5, 43_888, 2))
    step = 3 * eta**2 * W**2 * E**2 * T**2 * phi**2
    step += 3 * W**2 * eta**2 * E**2 * T**2 * N * s**2 / G
    step += 3 * W**2 * E**2 * L**2 * T**4 * eta**4 * N * phi**2 / G
    step += 6 * W**2 * eta**2 * L**2 * D**2 * T**2 * E * R / G
    inner = (W * phi**2 * N * E * eta**3 * L**2 * T**3 + 2 * W * eta * T * L**2 * D**2 * R) / (
        2 * G
    )
    # (eta E T / 2) sum_q ||grad||^2 <= gap + Q (L step / 2 + inner); divide by Q W eta E T / 2.
    total = (gap + Q * (L / 2 * step + inner)) / (Q * W * eta * E * T / 2)
    assert p2().total == pytest.approx(float(total), rel=1e-12)


def test_p2_printed_line_by_line():
    L, phi, s, D, eta, gap, R = exact(3, 1.5, 0.7, 2.5, 1e-3, 2, 7.5)
    Q, E, T, N, W, G = (Fraction(v) for v in (10, 5, 10, 5, 43_888, 2))
    h1 = (
        3 * L * eta * T * E * W * phi**2
        + (
            phi**2 * N * eta**2 * T**2 * L**3
            + 3 * L * W * eta * E * T * N * s**2
            + 3 * W * E * L**3 * T**3 * eta**3 * phi**2 * N
        )
        / G
    )
    h2 = (2 * E * L**2 + 6 * W * eta * L**3 * D**2 * T) / G
    found = p2("printed")
    assert found.floor == pytest.approx(float(h1), rel=1e-12)
    assert found.slope == pytest.approx(float(h2), rel=1e-12)
    assert found.start == pytest.approx(float(2 * gap / (Q * W * eta * E * T)), rel=1e-12)
    assert found.total == pytest.approx(float(found.start + h1 + h2 * R), rel=1e-12)
    with jax.enable_x64(True):
        difference = found.slope - p2().slope
    assert difference == pytest.approx(float((2 * E * L**2 - 2 * L**2 * D**2 / E) / G), rel=1e-6)


def test_p4_derived_from_the_lemmas():
    """(65) and, for the global part, (75) and (81) put into (78); then the mean over rounds."""
    L, phi, s, D, eta, gap = exact(3, 1.5, 0.7, 2.5, 1e-3, 2)
    L_v, s_v, eta_v = exact(2, 0.4, 2e-3)
    G, tau, tau_v, K, N, H, R = (Fraction(v) for v in (20, 10, 4, 10, 25_168, 3, 40))
    mean_ratio = R / G  # sum_k rho of one round
    v_step = eta_v**2 * tau_v**2 * s_v**2 * L_v / 2
    v_step += 4 * eta_v**3 * L_v**2 * s_v**2 * tau_v**2 * (tau_v - 1)
    moved = 3 * eta**2 * N**2 * tau**2 * phi**2  # (75): the three thirds of (76)
    moved += 3 * N**2 * eta**2 * tau**2 * K * s**2 / H
    moved += 3 * N**2 * eta**2 * (phi**2 * K * eta**2 * L**2 * tau**4) / H
    moved += 3 * N**2 * eta**2 * (2 * tau**2 * L**2 * D**2 * mean_ratio) / H
    inner = N * phi**2 * K * eta**3 * L**2 * tau**3 + 2 * N * eta * tau * L**2 * D**2 * mean_ratio
    total = gap / G + v_step + L / 2 * moved + inner / (2 * H)
    assert p4().total == pytest.approx(float(total), rel=1e-12)


def test_cubic_term_needs_two_personal_steps():
    """With a global part that adds nothing, (41) is its first two terms."""
    silent = theory.Constants(0.0, 0.0, 0.0, 0.0)
    first = 2e-3**2 * V.noise**2 * V.smoothness / 2
    cubic = 4 * 2e-3**3 * V.smoothness**2 * V.noise**2
    assert p4(silent, personal_steps=1).floor == pytest.approx(first, rel=1e-12)
    three = p4(silent, personal_steps=3).floor
    assert three == pytest.approx(9 * first + 9 * 2 * cubic, rel=1e-12)


@pytest.mark.parametrize("bound", [p2, lambda **c: p2("printed", **c), p4])
def test_shared_properties(bound):
    base = bound()
    # Strictly decreasing in the rounds at a fixed mean ratio, towards floor + slope R.
    per_round = P4["ratios"] / P4["rounds"] if bound is p4 else None

    def at(rounds):
        if per_round:
            return bound(rounds=rounds, ratios=per_round * rounds)
        return bound(rounds=rounds)

    totals = [at(q).total for q in (1, 2, 5, 100, 1e6)]
    assert (np.diff(totals) < 0).all()
    limit = at(1e12)
    assert limit.total == pytest.approx(base.total - base.start, rel=1e-9)
    # Affine and increasing in the ratios.
    r0, r1, r2 = (bound(ratios=r).total for r in (0.0, 1.0, 2.0))
    assert r1 - r0 == pytest.approx(r2 - r1, rel=1e-6)
    assert r1 > r0
    assert r1 - r0 == pytest.approx(base.slope, rel=1e-5)
    # Decreasing in the least number of holders; infinite where a weight has none.
    assert (np.diff([bound(holders=h).total for h in (1, 2, 3, 5)]) < 0).all()
    assert bound(holders=0).total == np.inf
    assert bound(devices=10).total > bound(devices=5).total


@pytest.mark.parametrize("field", C._fields)
@pytest.mark.parametrize("form", ["derived", "printed", "p4"])
def test_increasing_in_every_constant(field, form):
    def total(x):
        changed = C._replace(**{field: x})
        return (p4(shared=changed) if form == "p4" else p2(form, changed)).total

    assert (np.diff([total(x) for x in (0.5, 1.0, 2.0, 8.0)]) > 0).all()


@pytest.mark.parametrize("field", ["lr", "edge_rounds", "steps"])
def test_not_monotone_in_step_size_and_lengths(field):
    """The start falls and the floor rises: with a large gap, more first helps, then hurts."""
    quiet = theory.Constants(1e-3, 1e-1, 1e-3, 1.0)
    values = [P2[field] * 10.0**i for i in range(-3, 8)]
    totals = np.array([p2(constants=quiet, gap=1e6, **{field: v}).total for v in values])
    change = np.sign(np.diff(totals))
    assert change[0] < 0 < change[-1]


def test_size_of_the_floor_at_p2s_settings():
    """The bound is vacuous: H1 is about 6600 phi^2 for L = 1 without noise."""
    one = theory.Constants(1.0, 1.0, 0.0, 0.0)
    assert p2(constants=one, holders=5).floor == pytest.approx(6600, rel=0.01)


def test_bounds_take_tracers():
    family = jax.vmap(lambda g: theory.hierarchical(C, **{**P2, "holders": g}).total)
    found = family(jnp.arange(4.0))
    assert np.isinf(found[0])
    np.testing.assert_allclose(found[1:], [p2(holders=h).total for h in (1, 2, 3)], rtol=1e-5)


def test_left_side_of_p4():
    draw = np.random.default_rng(SEED)
    v, u = draw.exponential(size=(6, 10)), draw.exponential(size=6)
    for form, scale in (("derived", 0.1), ("printed", 1.0)):
        expected = np.mean(
            [2e-3 * 4 / 8 * scale * sum(v[g]) + 1e-3 * 10 / 2 * u[g] for g in range(6)]
        )
        steps = dict(shared_steps=10, personal_steps=4, shared_lr=1e-3, personal_lr=2e-3)
        found = theory.personalized_left(jnp.float32(v), jnp.float32(u), **steps, form=form)
        assert found == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="form='x'"):
        theory.personalized_left(jnp.ones((1, 1)), jnp.ones(1), 1, 1, 1.0, 1.0, form="x")
    with pytest.raises(ValueError, match="form='x'"):
        p2("x")


# Constants -----


def test_constants_of_a_quadratic():
    """F = w' A w / 2 has L = the largest eigenvalue, found exactly along its eigenvector."""
    draw = np.random.default_rng(SEED)
    root = draw.normal(size=(6, 6))
    A = root @ root.T
    values, vectors = np.linalg.eigh(A)
    points = draw.normal(size=(12, 6))
    found = float(theory.smoothness(jnp.float32(points), jnp.float32(points @ A)))
    assert found <= values[-1] * (1 + 1e-5)
    pairs = [(i, j) for i in range(12) for j in range(i)]
    ratios = [
        np.linalg.norm(A @ (points[i] - points[j])) / np.linalg.norm(points[i] - points[j])
        for i, j in pairs
    ]
    assert found == pytest.approx(max(ratios), rel=1e-5)
    points = np.concatenate([points, points[:1] + vectors[:, -1]])
    found = theory.smoothness(jnp.float32(points), jnp.float32(points @ A))
    assert found == pytest.approx(values[-1], rel=1e-4)


def test_moments_of_stochastic_gradients():
    draw = np.random.default_rng(SEED)
    g = draw.normal(size=(3, 8, 5)) * np.array([1.0, 3.0, 2.0])[:, None, None] + 0.5
    moments = [np.mean([x @ x for x in point]) for point in g]
    variances = [np.trace(np.cov(point.T)) for point in g]
    assert theory.second_moment(jnp.float32(g)) == pytest.approx(max(moments), rel=1e-5)
    assert theory.gradient_variance(jnp.float32(g)) == pytest.approx(max(variances), rel=1e-5)


def test_pruning_error_of_magnitude_masks_and_of_others():
    draw = np.random.default_rng(SEED)
    w = draw.normal(size=(50, 40)).astype(np.float32)
    for pruned in (0, 1, 13, 40):
        order = np.argsort(np.abs(w), 1)
        mask = np.ones_like(w, bool)
        np.put_along_axis(mask, order[:, :pruned], False, 1)
        found = np.asarray(theory.pruning_error(jnp.asarray(w), jnp.asarray(mask)))
        lost = (np.where(mask, 0, w) ** 2).sum(1)
        np.testing.assert_allclose(found * pruned / 40, lost, rtol=1e-5)
        assert (found <= (w**2).sum(1) * (1 + 1e-5)).all()  # (18) with D = ||w||
    # The change in training prunes the only weight: (2) breaks (18) with D = ||w||.
    w, mask = jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.array([False, True, True, True])
    assert theory.pruning_error(w, mask) == pytest.approx(4.0)
