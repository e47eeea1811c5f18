"""The exact allocation against convex solvers, duality, root finding and the papers' formulas."""

import functools
import itertools

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from allocations import Instance, draw, solve
from scipy.optimize import minimize

from fedprune import allocation

SEED = 20_230_505  # fixed before any of these tests was run
KINDS = ["usual", "usual", "extreme", "free", "mixed", "interior", "infeasible"]
COUNTS = {1: 70, 2: 140, 5: 140, 11: 140, 40: 14, 200: 7}
"""N -> problems, 511 in all, of the kinds in turn"""


def problems(size: int) -> list[Instance]:
    rng = np.random.default_rng([SEED, size])
    return [draw(rng, size, KINDS[i % len(KINDS)]) for i in range(COUNTS[size])]


@functools.cache
def each(size: int, dtype: str = "float64"):
    """(instance, its allocation) one by one."""
    instances = problems(size)
    found = solve(instances, dtype)
    return [(x, jax.tree.map(lambda v, i=i: v[i], found)) for i, x in enumerate(instances)]


def by_cvxpy(instances: list[Instance]) -> list[float]:
    """Least sum of rho of each problem, by CLARABEL, all of them as one block-diagonal program.

    In t = (b - lo) / (hi - lo), rho falls from rho(lo) by D (1 + a) t / (1 + a t), with a the ratio
    of V3 (hi - lo) to V3 lo + V4, and t / (1 + a t) = t - a t^2 / (1 + a t) is concave.
    """
    low, high = (np.concatenate(v) for v in zip(*(x.box() for x in instances), strict=True))
    v3 = np.concatenate([x.v[2] / x.v[3] for x in instances])
    worst = np.concatenate([x.rho(x.box()[0]) for x in instances])
    drop = worst - np.concatenate([x.rho(x.box()[1]) for x in instances])
    a = v3 * (high - low) / (1 + v3 * low)
    t, w = cp.Variable(low.size), cp.Variable(low.size)
    y = 1 + cp.multiply(a, t)
    falls = cp.multiply(drop * (1 + a), t - cp.multiply(a, w))
    # w >= t^2 / y
    limits = [cp.SOC(w + y, cp.vstack([2 * t, w - y])), t >= 0, t <= 1]
    ends = np.cumsum([0, *(x.rate.size for x in instances)])
    for i, j in itertools.pairwise(ends):
        limits.append((high - low)[i:j] @ t[i:j] <= 1 - low[i:j].sum())
    task = cp.Problem(cp.Maximize(cp.sum(falls)), limits)
    task.solve(cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    rho = worst - drop * (1 + a) * t.value / (1 + a * t.value)
    return [float(rho[i:j].sum()) for i, j in itertools.pairwise(ends)]


@pytest.mark.parametrize("size", COUNTS)
def test_objective_equals_a_convex_solver(size):
    pairs = [(x, a) for x, a in each(size) if x.feasible()]
    batch = max(1, 60 // size)
    for i in range(0, len(pairs), batch):
        group = pairs[i : i + batch]
        for (x, a), best in zip(group, by_cvxpy([x for x, _ in group]), strict=True):
            assert abs((1 - a.keep).sum() - best) < 1e-6, x


@pytest.mark.parametrize("size", COUNTS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_always_feasible(size, dtype):
    """Limits on shares and pruning; latency in float64 NumPy from the very shares returned."""
    slack = 1e-9 if dtype == "float64" else 1e-5
    for x, a in each(size, dtype):
        assert np.isfinite(a.share).all()
        assert (a.share >= 0).all()
        assert a.share.sum(dtype=np.float64) <= 1 + slack
        assert (a.keep >= x.least_keep - slack).all()
        assert (a.keep <= 1).all()
        took = x.seconds(a.share.astype(np.float64), a.keep.astype(np.float64))
        if x.feasible():
            assert a.feasible
            assert took.max() <= x.threshold * (1 + slack)
            inside = (a.keep > x.least_keep) & (a.keep < 1)
            np.testing.assert_allclose(took[inside], x.threshold, rtol=slack)
        else:
            assert not a.feasible
            np.testing.assert_allclose(a.keep, x.least_keep, atol=slack)
            assert took.max() <= x.least() * (1 + slack)


@pytest.mark.parametrize("size", COUNTS)
def test_duality_gap(size):
    """g(lambda) = sum_n min_b (rho_n(b) + lambda b) - lambda is a lower bound of the optimum."""
    for x, a in each(size):
        if not x.feasible():
            continue
        low, high = x.box()
        v1, v2, v3, v4 = x.v
        if a.price == 0:
            inner = high
        else:
            with np.errstate(divide="ignore", invalid="ignore"):
                at = (np.sqrt((v1 * v4 + v2 * v3) / a.price) - v4) / v3
            inner = np.where(v3 > 0, np.clip(at, low, high), low)
        # rho + lambda b is linear where V3 = 0: its least value is at an end.
        values = [x.rho(b) + a.price * b for b in (low, inner, high)]
        dual = np.minimum.reduce(values).sum() - a.price
        gap = (1 - a.keep).sum() - dual
        scale = max(1.0, float(a.price))
        assert -1e-10 * scale < gap < 1e-10 * scale, x


@pytest.mark.parametrize("size", COUNTS)
def test_least_threshold_by_root_finding(size):
    for x, a in each(size):
        np.testing.assert_allclose(a.least, x.least(), rtol=1e-11)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_least_threshold_brackets_feasibility(dtype):
    rng = np.random.default_rng(SEED)
    base = [draw(rng, 5, "usual") for _ in range(30)]
    for factor, holds in ((1 - 1e-6, False), (1 + 1e-6, True)):
        if dtype == "float32":
            factor = 1 + 20 * (factor - 1)
        moved = [x._replace(threshold=x.least() * factor) for x in base]
        moved = [x for x in moved if x.box()[0].any()]  # else nothing is sent and any band will do
        assert (solve(moved, dtype).feasible == holds).all()


def test_joint_optimum_by_a_general_solver():
    """Shares and ratios together, from the raw latency alone, so nothing is split or boxed."""
    rng = np.random.default_rng(SEED)
    instances = [draw(rng, 4, "interior") for _ in range(10)]
    instances += [
        draw(rng, 4, "usual")._replace(rho_max=1.0, cycles=np.full(4, 60.0)) for _ in range(10)
    ]
    instances = [x._replace(threshold=1.3 * x.least()) for x in instances]
    found = solve(instances)
    for i, x in enumerate(instances):
        n = x.rate.size

        def late(z, x=x, n=n):
            return 1 - x.seconds(z[:n], z[n:]) / x.threshold

        start = np.concatenate([found.share[i] * 0.5 + 0.5 / n, np.full(n, 0.01)])
        result = minimize(
            lambda z, n=n: np.sum(1 - z[n:]),
            start,
            method="SLSQP",
            bounds=[(1e-9, 1)] * n + [(0, 1)] * n,
            constraints=[
                {"type": "ineq", "fun": late},
                {"type": "ineq", "fun": lambda z, n=n: 1 - z[:n].sum()},
            ],
            options={"maxiter": 1000, "ftol": 1e-13},
        )
        ours = (1 - found.keep[i]).sum()
        assert ours < result.fun + 1e-7
        if result.success:
            assert ours > result.fun - 1e-6


def test_marginal_gain_of_band_is_the_price():
    for x, a in each(5):
        low, high = x.box()
        if a.price > 0 and x.feasible():
            inside = (a.share > low * (1 + 1e-9)) & (a.share < high * (1 - 1e-9))
            v1, v2, v3, v4 = x.v
            gain = (v1 * v4 + v2 * v3) / (a.share * v3 + v4) ** 2
            np.testing.assert_allclose(gain[inside], a.price, rtol=1e-8)
            assert (gain[a.share <= low] <= a.price * (1 + 1e-8)).all()
            assert (gain[a.share >= high] >= a.price * (1 - 1e-8)).all()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_vmapped_equals_looped(dtype):
    rng = np.random.default_rng(SEED)
    instances = [draw(rng, 5, kind) for kind in KINDS]
    together = solve(instances, dtype)
    with jax.enable_x64(dtype == "float64"):
        for i, x in enumerate(instances):
            alone = jax.jit(allocation.optimal)(x.problem(dtype), jnp.asarray(x.rho_max, dtype))
            rtol = 1e-12 if dtype == "float64" else 1e-5  # fused differently
            for a, b in zip(alone, together, strict=True):
                np.testing.assert_allclose(a, b[i], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("seed", range(5))
def test_free_computing_is_a_fractional_knapsack(seed):
    """Every device takes lo; the rest goes to the best rates, each up to its hi."""
    x = draw(np.random.default_rng([SEED, seed]), 7, "free")
    low, high = x.box()
    share, left = low.copy(), 1 - low.sum()
    for n in np.argsort(-x.snr):
        share[n] += min(left, high[n] - low[n])
        left -= share[n] - low[n]
    for dtype, rtol in (("float64", 1e-12), ("float32", 1e-4)):
        found = solve([x], dtype)
        np.testing.assert_allclose(found.share[0], share, rtol=rtol, atol=rtol * 0.01)


def test_equal_prices_without_computing():
    """Ties: any filling is optimal, and the band is used."""
    x = Instance("P4", np.full(4, 100.0), np.full(4, 1e9), np.zeros(4), 0.0, 1.0, 2e-3)
    share = solve([x]).share[0]
    assert share.sum() == pytest.approx(1)
    assert (x.rho(share) <= 1 + 1e-12).all()
    assert (x.rho(share) >= -1e-12).all()


def test_more_of_anything_never_prunes_more():
    """The optimum is nonincreasing in T_th, B (all rates) and power."""
    rng = np.random.default_rng(SEED)
    for _ in range(5):
        x = draw(rng, 5, "usual")
        steps = np.linspace(1, 3, 9)
        slower = [x._replace(threshold=x.threshold * s) for s in steps]
        louder = [x._replace(snr=x.snr * s**4) for s in steps]
        wider = [x._replace(snr=(1 + x.snr) ** s - 1) for s in steps]
        for family in (slower, louder, wider):
            total = (1 - solve(family).keep).sum(1)
            assert (np.diff(total) <= 1e-12).all()


def test_limit_on_pruning_may_be_traced():
    rng = np.random.default_rng(SEED)
    x = draw(rng, 5, "usual")._replace(rho_max=1.0)
    with jax.enable_x64(True):
        p = x.problem("float64")
        limits = jnp.linspace(0.5, 1.0, 6)
        found = jax.jit(jax.vmap(lambda limit: allocation.optimal(p, limit)))(limits)
        ratio, feasible = np.asarray(found.ratio), np.asarray(found.feasible)
    for i, limit in enumerate(np.asarray(limits)):
        assert ratio[i].max() <= limit + 1e-12
        assert feasible[i] == x._replace(rho_max=limit).feasible()
    objective = ratio.sum(1)[feasible]
    assert (np.diff(objective) <= 1e-12).all()
    assert len(objective) > 1


def test_a_dead_channel_may_prune_everything_in_p4():
    x = Instance("P4", np.array([0.0, 1e3]), np.full(2, 3e9), np.full(2, 20.0), 0.0, 1.0, 0.02)
    found = solve([x], "float32")
    assert found.feasible[0]
    assert found.keep[0, 0] == 0
    assert x.seconds(found.share[0], found.keep[0]).max() <= 0.02 * (1 + 1e-5)


SOLVERS = {
    "optimal": allocation.optimal,
    "equal": allocation.equal,
    "post_hoc": lambda p, limit: allocation.post_hoc(p, allocation.optimal(p, limit)),
    "unpruned": lambda p, limit: allocation.unpruned(p),
    "closed_form": lambda p, limit: allocation.closed_form(p),
    "clipped_form": allocation.clipped_form,
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_dead_channel_that_has_to_send_is_a_status(solver):
    """Fixed bits (P2), or a limit on pruning: infeasible for ever, and nothing is NaN.

    Where the shares follow from what helps, the others get them all.
    """
    snr, same = np.array([1e4, 0.0, 1e3]), np.full(3, 20.0)
    two = Instance("P2", snr, np.full(3, 3e9), same, 0.0, 1.0, 0.02)
    four = two._replace(paper="P4", rho_max=0.9)
    for x in (two, four, two._replace(snr=0 * snr)):
        with jax.debug_nans(True):
            found = solve([x], "float32", SOLVERS[solver])
        # The closed form knows no limit, and at rho = 1 the second sends nothing.
        may_wait = solver == "closed_form" and x is four
        assert not found.feasible[0]
        assert np.isfinite(found.least[0]) == may_wait
        assert all(np.isfinite(leaf).all() for leaf in (found.share, found.keep, found.price))
        if solver in ("optimal", "closed_form", "clipped_form"):
            assert found.share[0, 1] == 0
            assert found.share.sum() == pytest.approx(float(x.snr.any()), rel=1e-6)


@pytest.mark.parametrize("size", [5, 25])
def test_error_of_float32_is_that_of_a_rounded_time_limit(size):
    """Nearly infeasible problems too; the slope in the time limit by NumPy, in float64."""
    rng = np.random.default_rng([SEED, size, 32])
    kinds = ("usual", "extreme", "mixed", "interior") * 50
    drawn = [draw(rng, size, kind) for kind in kinds]
    near = [x._replace(threshold=x.least() * (1 + 10 ** rng.uniform(-6, 0))) for x in drawn]
    near = [x for x in near if x.threshold > 0]
    rough, exact = solve(near, "float32"), solve(near)
    worst = 0.0
    for i, x in enumerate(near):
        assert rough.feasible[i] == exact.feasible[i] == x.feasible()
        share, keep = exact.share[i], exact.keep[i]
        bits = x.bits[0] + keep * x.bits[1]
        sending = np.where(bits > 0, bits / np.maximum(share * x.rate, 1e-300), np.inf)
        # The slope changes where a device reaches a limit, so the larger one of both sides counts.
        price = max(exact.price[i], rough.price[i])
        slope = price / size * (share * x.threshold / sending).sum()
        error = abs(rough.keep[i].mean(dtype=np.float64) - keep.mean())
        assert error <= 8 * np.finfo(np.float32).eps * (1 + slope), x
        worst = max(worst, error)
    assert worst > 1e-5  # such that the bound is tried where it is wide


def test_nothing_is_nan_under_float32_stress():
    """Problems of every kind: no 0 / 0 on the way either, which debug_nans would refuse."""
    rng = np.random.default_rng(SEED)
    instances = [draw(rng, 4, KINDS[i % len(KINDS)]) for i in range(1_000)]
    with jax.debug_nans(True):
        found = solve(instances, "float32")
    assert all(np.isfinite(leaf).all() for leaf in found)
