"""Fading channels against their distributions, and over-the-air uplinks under fading."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import federation, mlp, same
from scipy import stats
from test_uplink import cohort, send, trained

import fedprune as fp
from fedprune import channel, link
from fedprune.types import Cohort, Sender

SEED = 77  # fixed before any of these tests was run
N = 20_000


def draws(fading, rounds=N, clients=1, combined=channel.superposed):
    """True and known gains of many rounds, [rounds, clients]."""
    root, ids = jax.random.key(SEED), jnp.arange(clients)
    at = lambda t: channel.Instant(root, t, ids)
    gains = jax.jit(jax.vmap(lambda t: combined(fading.draw(at(t))[0])))(jnp.arange(rounds))
    assert gains.true.shape == (rounds, clients, 1)
    return np.asarray(gains.true)[..., 0], np.asarray(gains.known)[..., 0]


def now(fading, clients):
    """The gains of the first round, [S]."""
    at = channel.Instant(jax.random.key(SEED), jnp.int32(0), jnp.arange(clients))
    return channel.Gains(*(v[:, 0] for v in channel.superposed(fading.draw(at)[0])))


def close(values, mean, deviation):
    """The sample mean is within five standard errors."""
    return abs(np.mean(values) - mean) < 5 * deviation / np.sqrt(np.size(values))


@pytest.mark.optimized
def test_rayleigh_power_is_exponential():
    true, known = draws(channel.block_fading())
    power = np.abs(true[:, 0]) ** 2
    assert stats.kstest(power, "expon").pvalue > 1e-4
    assert close(power, 1.0, 1.0)
    np.testing.assert_array_equal(true, known)


@pytest.mark.parametrize("kappa", [0.5, 4.0])
def test_rician_power_is_noncentral_chi_square(kappa):
    true, _ = draws(channel.block_fading(rician=kappa))
    power = 2 * (kappa + 1) * np.abs(true[:, 0]) ** 2
    assert stats.kstest(power, stats.ncx2(2, 2 * kappa).cdf).pvalue > 1e-4


@pytest.mark.parametrize("antennas", [2, 8])
def test_combining_for_one_client_is_maximum_ratio(antennas):
    true, _ = draws(channel.block_fading(antennas))
    assert stats.kstest(np.abs(true[:, 0]) ** 2, stats.gamma(antennas).cdf).pvalue > 1e-4
    assert np.abs(true.imag).max() < 1e-5 * np.abs(true).max()


def test_combining_keeps_the_power_of_the_noise_and_suits_the_cohort():
    """A unit-norm combiner: gains never exceed a client's own norm; on average they add up."""
    antennas, clients = 4, 5
    true, _ = draws(channel.block_fading(antennas), clients=clients)
    # Along f = sum / ||sum||, sum_k f^H h_k = ||sum||, and ||sum||^2 / S is Gamma(M).
    total = true.sum(1)
    assert stats.kstest(np.abs(total) ** 2 / clients, stats.gamma(antennas).cdf).pvalue > 1e-4


@pytest.mark.parametrize("antennas", [1, 8])
def test_in_a_slot_of_its_own_a_client_has_its_own_combiner(antennas):
    """|h|^2 is Gamma(M) for each of many clients, and no client's depends on the others."""
    fading = channel.block_fading(antennas, csi_error=0.1)
    true, known = draws(fading, rounds=1000, clients=20, combined=channel.separate)
    assert stats.kstest(np.abs(true).reshape(-1) ** 2, stats.gamma(antennas).cdf).pvalue > 1e-4
    alone = draws(fading, rounds=1000, clients=1, combined=channel.separate)
    np.testing.assert_array_equal((true[:, 0], known[:, 0]), np.asarray(alone)[..., 0])


def test_every_edge_server_combines_its_own_clients():
    """Each server's combiner is along the sum over its clients, in NumPy; one has none."""
    at = channel.Instant(jax.random.key(SEED), jnp.int32(0), jnp.arange(7))
    drawn = channel.block_fading(4).draw(at)[0]
    server = np.array([0, 2, 2, 0, 2, 0, 0])
    found = np.asarray(channel.superposed(drawn, jnp.asarray(server), 3).true)[:, 0]
    u = np.asarray(drawn.antennas, np.complex128)[:, 0]
    for g in (0, 2):
        along = u[server == g].sum(0)
        expected = u[server == g] @ (along / np.linalg.norm(along)).conj()
        np.testing.assert_allclose(found[server == g], expected, rtol=1e-5)


@pytest.mark.parametrize("error", [0.1, 1.0])
def test_imperfect_csi(error):
    true, known = (v[:, 0] for v in draws(channel.block_fading(csi_error=error)))
    square = np.abs(known - true) ** 2
    assert stats.kstest(square / error, "expon").pvalue > 1e-4
    assert close((true.conj() * (known - true)).real, 0.0, np.sqrt(error / 2))
    assert close(np.abs(known) ** 2, 1 + error, 1 + error)


def test_path_loss_and_placement():
    distances = np.array([10.0, 100.0, 1000.0])
    expected = 10 ** -((128.1 + 37.6 * np.log10(distances / 1000)) / 10)
    np.testing.assert_allclose(channel.path_gain(jnp.asarray(distances)), expected, rtol=1e-5)
    true, _ = draws(channel.block_fading(annulus=(50.0, 200.0)), rounds=200, clients=4000)
    gain = (np.abs(true) ** 2).mean(0)  # of each client over rounds: its own large-scale gain
    distance = 1000 * 10 ** ((-10 * np.log10(gain) - 128.1) / 37.6)
    # The mean over 200 rounds is off by 7 %, a distance by 2 %: compare the law coarsely.
    share = (np.clip(distance, 50, 200) ** 2 - 50**2) / (200**2 - 50**2)
    assert stats.kstest(share, "uniform").statistic < 0.05
    assert channel.budget_db(0.1, 1e6) == pytest.approx(20 + 174 - 60)
    with pytest.raises(ValueError, match="nearest <= farthest"):
        channel.block_fading(annulus=(200.0, 50.0))
    with pytest.raises(ValueError, match="antennas=0"):
        channel.block_fading(antennas=0)


@pytest.mark.parametrize("threshold", [0.1, 1.0, 2.5])
def test_truncation_leaves_out_whom_it_should(threshold):
    """Under Rayleigh fading a client takes part with probability exp(-threshold)."""
    uplink = link.over_the_air(10.0, "common", fading=channel.block_fading(), threshold=threshold)
    root, ids = jax.random.key(SEED), jnp.arange(20)
    active = jax.vmap(lambda t: uplink.prepare(Cohort(root, t, ids)).active)
    active = jax.jit(active)(jnp.arange(2000))
    p = np.exp(-threshold)
    assert close(np.asarray(active), p, np.sqrt(p * (1 - p)))


def waveform(normalisation, packing, updates, weights, mask, gains):
    """The noiseless round in NumPy, symbol by symbol: estimate and every client's power.

    A symbol is a list of one or two places of kept weights of one array.
    """
    a = (updates * weights[:, None]).astype(np.float64)
    m = np.sqrt((a**2).sum(1) / mask.sum())
    h, known = (np.asarray(g, np.complex128) for g in gains)
    symbols = []
    for first, beyond in ((0, D // 4), (D // 4, D)):  # the two arrays of test_uplink.as_tree
        kept = [i for i in range(first, beyond) if mask[i]]
        step = 2 if packing == "complex" else 1
        symbols += [kept[i : i + step] for i in range(0, len(kept), step)]
    x = np.zeros((len(a), len(symbols)), complex)
    for s, places in enumerate(symbols):
        x[:, s] = a[:, places[0]] + (1j * a[:, places[1]] if len(places) == 2 else 0)
    if normalisation == "device":
        x = x / m[:, None] * (known.conj() / abs(known))[:, None]
        scale = m.mean() / abs(known).mean()
    else:
        eta = 1 / (m / abs(known)).max() ** 2
        x = np.sqrt(eta) * x / known[:, None]
        scale = 1 / np.sqrt(eta)
    y = scale * (h[:, None] * x).sum(0) / weights.sum()
    reals = np.zeros(D)
    for s, places in enumerate(symbols):
        for place, part in zip(places, (y[s].real, y[s].imag), strict=False):
            reals[place] = part
    return reals, (abs(x) ** 2).sum(1) / mask.sum()


D = 20_000


@pytest.mark.parametrize("normalisation", ["common", "device", "receiver"])
@pytest.mark.parametrize("packing", ["complex", "real"])
@pytest.mark.parametrize(("error", "keep"), [(0.0, 0.5), (0.3, 1.0), (0.3, 0.1)])
def test_estimate_equals_the_waveform(normalisation, packing, error, keep):
    updates, weights, mask = cohort(6, keep)
    fading = channel.block_fading(csi_error=error)
    gains = now(fading, 6)
    uplink = link.over_the_air(np.inf, normalisation, packing, fading)
    found, cost = send(uplink, updates, weights, mask, SEED)
    expected, powers = waveform(normalisation, packing, updates, weights, mask, gains)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    # Powers per real dimension at P = 1: nobody above the budget, and all of them billed.
    assert powers.max() <= 1 + 1e-6
    np.testing.assert_allclose(cost.energy, powers.sum() * float(cost.seconds), rtol=1e-4)
    assert cost.seconds == pytest.approx(int(cost.channel_uses) / 1e6)


def test_power_budget_on_many_draws():
    """Ten thousand rounds of five clients: the largest power is the budget, never more."""
    rng = np.random.default_rng(SEED)
    fading = channel.block_fading(rician=1.0, csi_error=0.2, annulus=(10.0, 500.0))
    _, known = draws(fading, rounds=10_000, clients=5)
    rms = rng.lognormal(0, 2, known.shape)
    updates = jnp.asarray(rms[..., None] * np.array([1.0, -1.0, 1.0, -1.0]), jnp.float32)
    uplink = link.over_the_air(10.0, "common", fading=fading)

    @jax.jit
    @jax.vmap
    def spent(t, updates):
        air = uplink.prepare(Cohort(jax.random.key(SEED), t, jnp.arange(5)))

        def encode(gain, update):
            one = jnp.float32(1)
            sender = Sender(gain, air.common, trained({"w": update}), None, one)
            return uplink.encode(sender).total

        parts = jax.vmap(encode)(air.state, updates)
        peak = parts.max.max()
        return jnp.square(parts.max) / jnp.square(peak)

    share = np.asarray(spent(jnp.arange(10_000), updates))
    needed = (rms / np.abs(known)) ** 2
    np.testing.assert_allclose(share, needed / needed.max(1, keepdims=True), rtol=1e-3)
    assert share.max() <= 1.0


def test_noise_under_fading():
    """The client with the worst ratio of update to channel sets the noise."""
    updates, weights, mask = cohort(5, 1.0)
    fading = channel.block_fading()
    gains = now(fading, 5)
    found, cost = send(
        link.over_the_air(10.0, "common", fading=fading), updates, weights, mask, SEED
    )
    a = updates.astype(np.float64) * weights[:, None]
    needed = np.sqrt((a**2).mean(1)) / abs(np.asarray(gains.known))
    variance = 0.1 * needed.max() ** 2 / weights.sum() ** 2
    np.testing.assert_allclose(cost.noise_variance, variance, rtol=1e-4)
    noise = found - a.sum(0) / weights.sum()
    assert abs(noise.var() - variance) < 5 * variance * np.sqrt(2 / D)


def algorithm(threshold, layout, **fading):
    return fp.rounds.build(
        local=fp.local.sgd(mlp(), optax.sgd(0.1), batch=5, steps=2),
        uplink=link.over_the_air(
            10.0, "common", fading=channel.block_fading(**fading), threshold=threshold
        ),
        participation=fp.server.full(13),
        server=fp.server.average(),
        layout=layout,
    )


def test_nobody_heard_changes_nothing():
    model, clients = mlp(), federation(13)
    state, info, _ = fp.run.simulate(
        algorithm(1e9, fp.mesh.make(clients=2)), model, clients, clients, 3
    )
    assert same(state.params, model.init(fp.rng.stream(jax.random.key(0), "init")))
    for column in (info.clients, info.excluded, info.cost.channel_uses, info.cost.energy):
        np.testing.assert_array_equal(column, 0)


@pytest.mark.optimized
def test_fading_is_the_same_on_any_number_of_devices():
    model, clients = mlp(), federation(13)
    (first, info), (second, _) = (
        fp.run.simulate(
            algorithm(0.5, fp.mesh.make(clients=n, reduction="strict"), csi_error=0.1),
            *(model, clients, clients, 6),
        )[:2]
        for n in (1, 4)
    )
    assert same(first, second)
    assert len(set(np.asarray(info.clients).tolist())) > 1
    assert (np.asarray(info.clients) <= 13).all()


def test_rotation_mixes_the_two_reals_of_a_symbol():
    """By hand: neighbours among what is sent, within an array; an odd one out has no partner."""
    quarter = jnp.complex64(1j)  # (a, b) -> (-b, a)
    whole = {"w": jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), "b": jnp.array([7.0, 8.0, 9.0])}
    turned = channel.rotate(quarter, whole, "complex")
    np.testing.assert_allclose(turned["w"], [[-2, 1, -4], [3, -6, 5]])
    np.testing.assert_allclose(turned["b"], [-8, 7, 0])
    mask = {"w": np.array([[1, 0, 0], [1, 1, 0]], bool), "b": np.array([0, 1, 1], bool)}
    kept = jax.tree.map(jnp.where, mask, whole, {"w": 0.0, "b": 0.0})
    turned = channel.rotate(quarter, kept, "complex", channel.pairs(mask))
    np.testing.assert_allclose(turned["w"], [[-4, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(turned["b"], [0, -9, 8])
    assert int(channel.symbols(mask, whole, "complex")) == 2 + 1
    assert int(channel.symbols(None, whole, "complex")) == 3 + 2
    assert int(channel.symbols(mask, whole, "real")) == 5
    nothing = jax.tree.map(np.zeros_like, mask)
    none = jax.tree.map(jnp.zeros_like, whole)
    still = channel.rotate(quarter, none, "complex", channel.pairs(nothing))
    assert not any(v.any() for v in jax.tree.leaves(still))
    assert int(channel.symbols(nothing, whole, "complex")) == 0
    real = channel.rotate(jnp.complex64(2 + 1j), whole, "real")
    np.testing.assert_allclose(real["b"], [14, 16, 18])


@pytest.mark.parametrize(("keep", "error"), [(1.0, 0.1), (0.5, 0.1), (0.1, 0.1)])
def test_leak_of_imperfect_csi_does_not_depend_on_the_mask(keep, error):
    """What a wrong estimate leaks into a weight comes from a kept weight, however few are kept.

    With x of variance 1 in every client, an estimate off by a factor c = 1 + e errs by
    |c - 1|^2 = |e|^2 in the mean, in phase and in quadrature together; both halves are seen.
    """
    rng = np.random.default_rng(SEED)
    mask = rng.random((40, 100)) < keep
    x = np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32)
    factor = 1 + np.sqrt(error / 2) * (1 + 1j)
    paired = channel.pairs({"w": jnp.asarray(mask)})
    found = channel.rotate(jnp.complex64(factor), {"w": jnp.asarray(x)}, "complex", paired)["w"]
    wrong = np.asarray(found)[mask] - x[mask]
    assert np.mean(wrong**2) / np.mean(x[mask] ** 2) == pytest.approx(error, rel=0.1)
    assert not np.asarray(found)[~mask].any()
