"""What the papers say of the allocation: closed form, warm-up, remarks, equal resources, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from allocations import BAND, CONV, DENSE, Instance, draw, solve

from fedprune import allocation, resources
from fedprune.link.ofdma import SCHEMES

SEED = 20_230_505  # fixed before any of these tests was run


def closed_form(p, _):
    return allocation.closed_form(p)


def post_hoc(p, rho_max):
    return allocation.post_hoc(p, allocation.optimal(p, rho_max))


def unpruned(p, _):
    return allocation.unpruned(p)


@pytest.mark.parametrize("size", [2, 5, 11])
def test_closed_form_equals_the_optimum_exactly_where_nothing_is_clipped(size):
    rng = np.random.default_rng([SEED, size, 1])
    kinds = ["interior"] * 8 + ["usual"]
    instances = [draw(rng, size, kinds[i % 9]) for i in range(90)]
    instances = [x._replace(rho_max=1.0) for x in instances if x.feasible()]
    best = solve(instances)
    printed = solve(instances, solver=closed_form)
    np.testing.assert_allclose(printed.share.sum(1), 1, rtol=1e-12)
    counts = {True: 0, False: 0}
    for i, x in enumerate(instances):
        low, high = x.box()
        b = printed.share[i]
        unclipped = bool((low <= b).all() and (b <= high).all())
        counts[unclipped] += 1
        assert printed.feasible[i] == unclipped
        v1, v2, v3, v4 = x.v
        root, s = np.sqrt(v1 * v4 + v2 * v3), (1 + (v4 / v3).sum())
        s = s / (np.sqrt(v1 * v4 + v2 * v3) / v3).sum()
        np.testing.assert_allclose(b, (s * root - v4) / v3, rtol=1e-6, atol=1e-9)
        if unclipped:
            np.testing.assert_allclose(b, best.share[i], rtol=1e-11)
            np.testing.assert_allclose(printed.keep[i], best.keep[i], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(printed.price[i], best.price[i], rtol=1e-9)
        else:
            assert np.abs(b - best.share[i]).max() > 1e-12
    assert min(counts.values()) > 0


def test_uncapped_shares_of_p2_do_not_depend_on_the_threshold():
    """kappa = r T_th q W_f (without warm-up), so T_th cancels in the closed form."""
    rng = np.random.default_rng(SEED)
    x = draw(rng, 5, "usual")._replace(paper="P2", warm=0.0)
    share = solve([x._replace(threshold=t) for t in (0.02, 0.2)], solver=closed_form).share
    np.testing.assert_allclose(share[0], share[1], rtol=1e-9)


@pytest.mark.parametrize("paper", ["P2", "P4"])
def test_worse_channel_gets_more_only_beyond_the_peak(paper):
    """Remarks 2 and 3: at one price, b(r) peaks at r = 4 V4^2 lambda / kappa', kappa' = kappa / r,
    where b = V4 / V3. Twenty equal devices at rates on both sides of it."""
    middle, cycles, threshold = {"P2": (4e8, 1000.0, 0.2), "P4": (1e8, 4000.0, 0.4)}[paper]
    rates = middle * np.geomspace(0.2, 5, 20)
    x = Instance(
        paper, 2 ** (rates / BAND) - 1, np.full(20, 3e9), np.full(20, cycles), 0.0, 1.0, threshold
    )
    found = solve([x])
    share, price = found.share[0], found.price[0]
    low, high = x.box()
    inside = (share > low * (1 + 1e-6)) & (share < high * (1 - 1e-6))
    v1, v2, v3, v4 = x.v
    peak = 4 * v4[0] ** 2 * price / ((v1 * v4 + v2 * v3) / rates)[0]
    rising, falling = inside & (rates < peak), inside & (rates > peak)
    assert rising.sum() > 2
    assert falling.sum() > 2
    assert (np.diff(share[rising]) > 0).all()
    assert (np.diff(share[falling]) < 0).all()
    np.testing.assert_array_equal((share > v4 / v3)[inside], (rates > peak)[inside])


@pytest.mark.parametrize("weights", [DENSE, 402_688])
@pytest.mark.parametrize(("cycles", "warm"), [(20.0, 1.0), (100.0, 5.0)])
def test_printed_form_of_p4_overshoots_by_the_warm_up(weights, cycles, warm):
    """0.17 ms at C = 20, one step, 25,168 weights; 67 ms at C = 100, five, 402,688."""
    work = resources.personalized(CONV, weights, 10.0, 10.0, cycles, 32.0, warm)
    extra = warm * cycles * weights / 3e9
    dense = 10 * cycles * (CONV + weights) / 3e9 + 32 * weights / 1e8
    threshold = extra + 0.6 * dense
    with jax.enable_x64(True):
        rate = jnp.asarray([2.8e8, 3e8, 3.2e8])
        for form, over in (("derived", 0.0), ("printed", extra)):
            problem = allocation.problem(work, 3e9, rate, threshold, form)
            a = jax.jit(allocation.optimal)(problem)
            took = resources.seconds(work, a.keep, 3e9, a.share * rate)
            sends = np.asarray((a.keep > 0) & (a.keep < 1))
            assert sends.any()
            np.testing.assert_allclose(np.asarray(took)[sends], threshold + over, rtol=1e-11)
    expected = {(20.0, DENSE): 0.168e-3, (100.0, 402_688): 67.1e-3}.get((cycles, weights))
    if expected:
        assert extra == pytest.approx(expected, rel=1e-2)


def test_p4_is_in_time_in_ten_thousand_random_rounds():
    """(28) with the warm-up, in float64 from the shares and ratios found in float32; weights are
    kept in whole numbers, rounded down. Without the warm-up in (46) most rounds are late."""
    rounds, devices, tau_v, tau_u, warm, bits = 10_000, 10, 10.0, 10.0, 1.0, 32.0
    draw = np.random.default_rng(SEED)
    rate = np.float32(20e6 * draw.uniform(1, 12, (rounds, devices)))
    cycles = np.float32(draw.uniform(5, 60, (rounds, devices)))
    threshold = np.float32(draw.uniform(10e-3, 40e-3, rounds))

    def of_round(rate, cycles, threshold, form):
        work = resources.personalized(CONV, DENSE, tau_v, tau_u, cycles, bits, warm)
        found = allocation.optimal(allocation.problem(work, 3e9, rate, threshold, form), 0.95)
        return found.share, found.keep, found.feasible

    for form in allocation.FORMS:
        solve = jax.jit(jax.vmap(lambda r, c, t, form=form: of_round(r, c, t, form)))
        share, keep, feasible = jax.tree.map(np.asarray, solve(rate, cycles, threshold))
        kept = np.floor(DENSE * keep.astype(np.float64))
        compute = cycles / 3e9 * (tau_v * CONV + warm * DENSE + tau_u * kept)
        took = (compute + bits * kept / (share.astype(np.float64) * rate)).max(1)[feasible]
        late = took / threshold[feasible] - 1
        assert feasible.sum() > rounds / 2
        if form == "derived":
            assert late.max() < 1e-5
            assert np.median(late) > -1e-3, "no time is left over"
        else:
            assert (late > 1e-3).mean() > 0.9
        np.testing.assert_array_less(share.sum(1), 1 + 1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_edges_are_solved_apart(scheme):
    """Ragged edges, one empty and one infeasible, against one problem each."""
    allocate = SCHEMES[scheme]
    rng = np.random.default_rng(SEED)
    x = draw(rng, 12, "usual")._replace(rho_max=1.0, paper="P2", cycles=np.full(12, 10.0))
    edge, bad = np.array([0, 2, 2, 0, 4, 2, 4, 4, 2, 2, 0, 2]), 4
    x = x._replace(threshold=0.5, snr=np.where(edge == bad, 1e-3, x.snr + 1))
    with jax.enable_x64(True):
        found = jax.jit(allocation.by_edge, static_argnums=(2, 3))(
            x.problem("float64"), jnp.asarray(edge, jnp.int32), 5, lambda p: allocate(p, 1.0)
        )
        for k in range(5):
            mine = edge == k
            if not mine.any():
                assert bool(found.feasible[k])
                continue
            part = x._replace(snr=x.snr[mine], cycles=x.cycles[mine], frequency=x.frequency[mine])
            alone = jax.tree.map(lambda v: v[0], solve([part], solver=allocate))
            assert bool(alone.feasible) == bool(found.feasible[k])
            assert scheme != "optimal" or bool(alone.feasible) == (k != bad)
            assert np.isfinite(alone.share).all()
            np.testing.assert_allclose(found.share[mine], alone.share, rtol=1e-12)
            np.testing.assert_allclose(found.keep[mine], alone.keep, rtol=1e-12)
            np.testing.assert_allclose(found.least[k], alone.least, rtol=1e-12)
            np.testing.assert_allclose(found.price[k], alone.price, rtol=1e-12)


def test_forms_are_checked():
    work = resources.hierarchical(CONV, DENSE, 10.0, 1.0, 64.0)
    with pytest.raises(ValueError, match="form='exact'"):
        allocation.problem(work, 3e9, jnp.ones(3), 0.03, "exact")


@pytest.mark.parametrize("kind", ["usual", "infeasible"])
def test_readings_of_equal_resources(kind):
    rng = np.random.default_rng(SEED)
    instances = [draw(rng, 6, kind) for _ in range(20)]
    literal = solve(instances, solver=allocation.equal)
    kept = solve(instances, solver=post_hoc)
    dense = solve(instances, solver=unpruned)
    best = solve(instances)
    for i, x in enumerate(instances):
        share = np.full(6, 1 / 6)
        for found in (literal, kept, dense):
            np.testing.assert_allclose(found.share[i], share)
        pruned = np.minimum(np.clip(x.rho(share), 0, None), x.rho_max)
        late = x.v[0] <= 0
        np.testing.assert_allclose(literal.ratio[i], np.where(late, x.rho_max, pruned), atol=1e-12)
        took = x.seconds(share, literal.keep[i]).max()
        floor = x.seconds(share, np.full(6, x.least_keep)).max()
        whole = x.seconds(share, np.ones(6)).max()
        # max(T_th, T at rho_max), unless nobody needs to prune.
        assert took == pytest.approx(min(max(x.threshold, floor), whole), rel=1e-9)
        assert literal.least[i] == pytest.approx(floor, rel=1e-9)
        assert literal.feasible[i] == (floor <= x.threshold)
        np.testing.assert_allclose(kept.keep[i], best.keep[i], rtol=1e-12)
        assert (dense.keep[i] == 1).all()


def test_closed_form_made_usable():
    """Clipped, scaled shares and the pruning they need, by NumPy; the optimum where it is exact."""
    rng = np.random.default_rng([SEED, 6])
    instances = [draw(rng, 5, kind) for kind in ("interior", "usual") * 15]
    found = solve(instances, solver=allocation.clipped_form)
    best, printed = solve(instances), solve(instances, solver=closed_form)
    late = 0
    for i, x in enumerate(instances):
        share = np.clip(printed.share[i], 0, 1)
        share = share / share.sum()
        np.testing.assert_allclose(found.share[i], share, rtol=1e-12)
        keep = np.clip(1 - x.rho(share), x.least_keep, 1)
        np.testing.assert_allclose(found.keep[i], keep, rtol=1e-9, atol=1e-12)
        if printed.feasible[i] and best.ratio[i].max() < x.rho_max:
            np.testing.assert_allclose(found.keep[i], best.keep[i], rtol=1e-9, atol=1e-12)
        late += not found.feasible[i]
    assert 0 < late < len(instances)


@pytest.mark.parametrize("late", [[1], [0, 1, 2, 3]], ids=["one", "all"])
def test_closed_form_of_devices_that_compute_too_long(late):
    """They get nothing, and the others share the band; nothing is NaN."""
    others = np.setdiff1d(np.arange(4), late)
    fixed = np.zeros(4, np.float32)
    fixed[late] = 2.0
    one = jnp.ones(4)
    p = allocation.Problem(jnp.float32(1), jnp.asarray(fixed), one, one, 0 * one, one > 0)
    found = allocation.clipped_form(p)
    np.testing.assert_allclose(np.asarray(found.share)[late], 0)
    np.testing.assert_allclose(np.asarray(found.share)[others], 1 / max(1, len(others)), rtol=1e-6)
    assert np.isfinite(found.keep).all()
    assert not found.feasible
