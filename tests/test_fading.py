"""Fading channels against their distributions, and over-the-air uplinks under fading."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import federation, mlp, same
from scipy import stats
from test_uplink import as_tree, as_vector, cohort, send, trained

import fedprune as fp
from fedprune import channel, link

SEED = 77  # fixed before any of these tests was run
N = 20_000


def draws(fading, rounds=N, clients=1):
    """True and known gains of many rounds, [rounds, clients]."""
    root, ids = jax.random.key(SEED), jnp.arange(clients)
    gains = jax.jit(jax.vmap(lambda t: fading(root, t, ids)))(jnp.arange(rounds))
    return np.asarray(gains.true), np.asarray(gains.known)


def close(values, mean, deviation):
    """The sample mean is within five standard errors."""
    return abs(np.mean(values) - mean) < 5 * deviation / np.sqrt(np.size(values))


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
    active = jax.jit(jax.vmap(lambda t: uplink.prepare(root, t, ids).active))(jnp.arange(2000))
    p = np.exp(-threshold)
    assert close(np.asarray(active), p, np.sqrt(p * (1 - p)))


def waveform(normalisation, packing, updates, weights, mask, gains):
    """The noiseless round in NumPy, symbol by symbol: estimate and every client's power."""
    half = -(-D // 2)
    a = (updates * weights[:, None]).astype(np.float64)
    m = np.sqrt((a**2).sum(1) / mask.sum())
    h, known = (np.asarray(g, np.complex128) for g in gains)
    if packing == "complex":
        padded = np.pad(a, ((0, 0), (0, 2 * half - D)))
        x = padded[:, :half] + 1j * padded[:, half:]
    else:
        x = a + 0j
    if normalisation == "device":
        x = x / m[:, None] * (known.conj() / abs(known))[:, None]
        scale = m.mean() / abs(known).mean()
    else:
        eta = 1 / (m / abs(known)).max() ** 2
        x = np.sqrt(eta) * x / known[:, None]
        scale = 1 / np.sqrt(eta)
    y = scale * (h[:, None] * x).sum(0) / weights.sum()
    reals = np.concatenate([y.real, y.imag])[:D] if packing == "complex" else y.real
    return reals * mask, (abs(x) ** 2).sum(1) / mask.sum()


D = 20_000


@pytest.mark.parametrize("normalisation", ["common", "device", "receiver"])
@pytest.mark.parametrize("packing", ["complex", "real"])
@pytest.mark.parametrize("error", [0.0, 0.3])
def test_estimate_equals_the_waveform(normalisation, packing, error):
    updates, weights, mask = cohort(6, 0.5)
    fading = channel.block_fading(csi_error=error)
    gains = fading(jax.random.key(SEED), jnp.int32(0), jnp.arange(6))
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
        air = uplink.prepare(jax.random.key(SEED), t, jnp.arange(5))
        parts = jax.vmap(lambda g, u: uplink.encode(g, trained({"w": u}), None, jnp.float32(1)))(
            air.state, updates
        )
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
    gains = fading(jax.random.key(SEED), jnp.int32(0), jnp.arange(5))
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
    return fp.round.build(
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


@pytest.mark.slow
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


def test_trees_survive_rotation():
    """Mixing of pairs, odd length: by hand."""
    rotated = channel.rotate(jnp.complex64(1j), as_tree(jnp.arange(1.0, D + 1)), "complex")
    half = D // 2
    expected = np.concatenate([-np.arange(half + 1, D + 1), np.arange(1, half + 1)])
    np.testing.assert_allclose(as_vector(rotated), expected)
    odd = channel.rotate(jnp.complex64(1j), {"w": jnp.array([1.0, 2.0, 3.0])}, "complex")
    np.testing.assert_allclose(odd["w"], [-3.0, 0.0, 1.0])
