"""The link of P3, layers to layers, and its rates, against simulation and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, special, stats

from fedprune import channel, coding

SHAPES = [(3, 3, 4, 5), (41,), (20, 7)]
REPEATS = [1, 2, 4]


def layers(seed=0):
    rng = np.random.default_rng(seed)
    scales = (0.3, 2.0, 0.01)
    return [
        jnp.asarray(s * rng.normal(size=shape), jnp.float32)
        for s, shape in zip(scales, SHAPES, strict=True)
    ]


def repeated():
    return [coding.repetition(r) for r in REPEATS]


@pytest.mark.parametrize("packing", ["complex", "real"])
@pytest.mark.parametrize("weighted", [False, True])
def test_power_meets_the_budget(packing, weighted):
    codes = [coding.spiral(1.0), coding.repetition(3), coding.spiral(2.0, 2)]
    sensitivity = jnp.asarray([3.0, 0.1, 1.0]) if weighted else None
    power = channel.real_power(packing)
    symbols, side = coding.encode_layers(layers(), codes, power, sensitivity)
    assert symbols.shape == (180 * 2 + 41 * 3 + 140 * 4,)
    assert np.square(np.asarray(symbols, float)).mean() == pytest.approx(power, rel=1e-5)
    assert side.reals == 6
    assert weighted or np.ptp(side.amplitude) == 0


def test_amplitudes_minimise_the_weighted_error():
    rng = np.random.default_rng(1)
    e, d, r, s = (rng.exponential(size=5) + 0.1 for _ in range(4))
    r = np.ceil(3 * r)
    alpha = np.asarray(coding.amplitudes(*map(jnp.asarray, (e, d, r)), 0.5, jnp.asarray(s)), float)
    budget = 0.5 * (r * d).sum()
    assert (alpha**2 * r * e).sum() == pytest.approx(budget, rel=1e-5)
    # In logarithms of alpha^2, normalised to the budget: a problem without constraints.
    squares = lambda x: np.exp(x) * budget / (np.exp(x) * r * e).sum()
    objective = lambda x: (s * d / (squares(x) * r)).sum()
    best = optimize.minimize(objective, np.zeros(5), method="BFGS", options={"gtol": 1e-10})
    assert (s * d / (alpha**2 * r)).sum() == pytest.approx(best.fun, rel=1e-6)
    np.testing.assert_allclose(alpha**2, squares(best.x), rtol=1e-3)


def test_layers_return_without_noise():
    codes = [coding.spiral(1.0), coding.repetition(3), coding.spiral(2.0, 2)]
    weights = [*layers()[:2], jnp.zeros((20, 7))]
    symbols, side = coding.encode_layers(weights, codes, 0.5)
    found = coding.decode_layers(symbols, side, codes, SHAPES, 0.0)
    for w, back in zip(weights, found, strict=True):
        assert w.shape == back.shape
        np.testing.assert_allclose(back, w, atol=1e-5 * float(jnp.abs(w).max()))


@pytest.mark.parametrize("packing", ["complex", "real"])
@pytest.mark.parametrize("gain", [1.0, 0.5 - 0.8j])
def test_noise_on_weights_is_what_training_injects(packing, gain):
    """Deviation on each layer over 2,000 draws, with sigma_real / (|h| alpha sqrt(r)) by hand."""
    weights, codes = layers(), repeated()
    gains = channel.Gains(jnp.complex64(gain), jnp.complex64(gain))

    @jax.jit
    @jax.vmap
    def deliver(key):
        symbols, side = coding.encode_layers(weights, codes, channel.real_power(packing))
        received = channel.transmit(key, symbols, 7.0, packing, gains)
        variance = channel.noise_after(7.0, gains)
        return coding.decode_layers(received, side, codes, SHAPES, variance)

    found = deliver(jax.random.split(jax.random.key(0), 2000))
    energy = [float(jnp.square(w).sum()) for w in weights]
    sizes = [w.size for w in weights]
    power = {"complex": 0.5, "real": 1.0}[packing]
    sent = sum(r * e for r, e in zip(REPEATS, energy, strict=True))
    alpha = np.sqrt(power * sum(r * d for r, d in zip(REPEATS, sizes, strict=True)) / sent)
    sigma = np.sqrt(10**-0.7 / 2)
    by_hand = [sigma / (abs(gain) * alpha * np.sqrt(r)) for r in REPEATS]
    amplitude = coding.amplitudes(*map(jnp.asarray, (energy, sizes, REPEATS)), power)
    injected = channel.weight_deviation(amplitude, jnp.asarray(REPEATS), 7.0, abs(gain))
    np.testing.assert_allclose(injected, by_hand, rtol=1e-5)
    for w, back, deviation in zip(weights, found, by_hand, strict=True):
        noise = np.asarray(back - w[None], float).ravel()
        assert abs(noise.mean()) < 5 * deviation / np.sqrt(noise.size)
        measured = np.square(noise).mean() / deviation**2
        assert abs(measured - 1) < 5 * np.sqrt(2 / noise.size)


def test_no_gradient_through_the_normalisation():
    deviation = lambda a: channel.weight_deviation(a, jnp.asarray([1, 2]), 5.0).sum()
    np.testing.assert_array_equal(jax.grad(deviation)(jnp.asarray([1.0, 2.0])), 0)


@pytest.mark.parametrize("count", [1, 2, 7, 8])
@pytest.mark.parametrize("packing", ["complex", "real"])
def test_the_equaliser_undoes_the_gain(count, packing):
    symbols = jnp.asarray(np.random.default_rng(3).normal(size=count), jnp.float32)
    gain = jnp.complex64(-0.3 + 1.2j)
    exact = channel.Gains(gain, gain)
    found = channel.transmit(jax.random.key(1), symbols, 200.0, packing, exact)
    np.testing.assert_allclose(found, symbols, atol=1e-6)
    # A wrong estimate turns and scales: h h_hat^* / |h_hat|^2 = h / h_hat.
    wrong = channel.Gains(gain, 2j * gain)
    found = np.asarray(channel.transmit(jax.random.key(1), symbols, 200.0, packing, wrong))
    if packing == "real":
        np.testing.assert_allclose(found, 0, atol=1e-6)
    else:
        padded = np.pad(np.asarray(symbols), (0, count % 2))
        turned = (padded[0::2] + 1j * padded[1::2]) / 2j
        expected = np.stack([turned.real, turned.imag], 1).reshape(-1)[:count]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        # What is not sent takes no place in a symbol.
        sent = np.arange(count) % 3 != 1
        some = jnp.where(sent, symbols, 0)
        key = jax.random.key(1)
        found = np.asarray(channel.transmit(key, some, 200.0, packing, wrong, jnp.asarray(sent)))
        kept = np.asarray(symbols)[sent]
        padded = np.pad(kept, (0, kept.size % 2))
        turned = (padded[0::2] + 1j * padded[1::2]) / 2j
        expected = np.stack([turned.real, turned.imag], 1).reshape(-1)[: kept.size]
        np.testing.assert_allclose(found[sent], expected, atol=1e-6)
        np.testing.assert_allclose(found[~sent], 0, atol=1e-6)


def test_slow_fading_is_rayleigh():
    draw = jax.jit(jax.vmap(lambda key: channel.slow_rayleigh(key, 0.25)))
    gains = draw(jax.random.split(jax.random.key(4), 20_000))
    true, error = np.asarray(gains.true), np.asarray(gains.known - gains.true)
    assert stats.kstest(np.abs(true) ** 2, "expon").pvalue > 1e-4
    assert stats.kstest(np.angle(true), stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 1e-4
    assert stats.kstest(np.abs(error) ** 2 / 0.25, "expon").pvalue > 1e-4
    assert abs(np.mean(true * error.conj())) < 5 * 0.5 / np.sqrt(20_000)
    perfect = channel.slow_rayleigh(jax.random.key(5))
    assert perfect.true == perfect.known
    # 1 / |h|^2 has no mean, but the median 1 / ln 2.
    noise = np.asarray(jax.vmap(lambda g: channel.noise_after(0.0, g))(gains._replace(known=true)))
    share = np.mean(noise < 0.5 / np.log(2))
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(20_000)
    assert channel.clear() == (1, 1)


def test_outage_against_draws():
    gains = np.random.default_rng(6).exponential(size=400_000)
    for rate, snr in ((1.0, 1.0), (2.0, 10.0), (0.5, 3.0)):
        lost = np.mean(np.log2(1 + gains * snr) < rate)
        expected = float(channel.outage(rate, snr))
        assert abs(lost - expected) < 5 * np.sqrt(expected * (1 - expected) / gains.size)
    assert channel.outage(1.5, 2**1.5 - 1) == pytest.approx(1 - np.exp(-1), abs=1e-6)


def test_ergodic_capacity_is_its_integral():
    snr = 10.0 ** np.arange(-2.5, 5.1, 0.5)
    found = np.asarray(channel.ergodic_capacity(jnp.asarray(snr, jnp.float32)), float)
    np.testing.assert_allclose(
        found, special.exp1(1 / snr) * np.exp(1 / snr) / np.log(2), rtol=2e-6
    )
    for s, c in zip(snr[::4], found[::4], strict=True):
        mean = integrate.quad(lambda g, s=s: np.log2(1 + g * s) * np.exp(-g), 0, 60)[0]
        assert c == pytest.approx(mean, rel=1e-5)
    assert channel.ergodic_capacity(10**0.5) == pytest.approx(1.716, abs=5e-4)
    assert channel.ergodic_capacity(10**1.5) == pytest.approx(4.330, abs=5e-4)
    assert channel.capacity(3.0) == pytest.approx(2)


def test_digital_payload_of_the_paper():
    """b = 1.2e6 at 5 dB: 2.47 Mbit."""
    assert 1.2e6 * channel.capacity(10**0.5) == pytest.approx(2.47e6, abs=5e3)


def test_accuracy_over_fading():
    sizes, levels = [1e5, 5e5, 2e6, 8e6], [0.3, 0.6, 0.8, 0.9]
    curve = channel.step_curve(sizes, levels)
    known = curve(jnp.asarray([0.0, 9.9e4, 1e5, 4.9e5, 3e6, 9e9]))
    np.testing.assert_allclose(known, [0, 0, 0.3, 0.3, 0.8, 0.9], rtol=1e-6)
    symbols = 6e5
    for snr in (0.5, 3.0, 30.0):
        # Thresholds of |h|^2 at which the next model fits, by hand.
        needed = (2 ** (np.asarray(sizes) / symbols) - 1) / snr
        exact = np.sum(np.diff([0, *levels]) * np.exp(-needed))
        assert channel.adaptive_rate(snr, symbols, curve) == pytest.approx(exact, abs=2e-4)
        for rate in (0.5, 1.0, 4.0):
            kept = np.exp(-(2**rate - 1) / snr)
            level = max(
                [0.0] + [a for b, a in zip(sizes, levels, strict=True) if b <= symbols * rate]
            )
            found = channel.fixed_rate(rate, snr, symbols, curve)
            assert found == pytest.approx(kept * level, rel=1e-5)


def test_hyperparameters_may_be_traced():
    symbols = jnp.linspace(-1, 1, 9)
    run = lambda snr, error: channel.transmit(
        jax.random.key(0), symbols, snr, "complex", channel.slow_rayleigh(jax.random.key(1), error)
    )
    snr, error = jnp.asarray([0.0, 10.0]), jnp.asarray([0.0, 0.1])
    mapped = jax.jit(jax.vmap(run))(snr, error)
    for row, s, e in zip(mapped, snr, error, strict=True):
        np.testing.assert_allclose(row, run(s, e), rtol=2e-5, atol=1e-6)


def test_what_is_refused():
    gains = channel.clear()
    with pytest.raises(ValueError, match="packing='both'"):
        channel.transmit(jax.random.key(0), jnp.ones(2), 0.0, "both", gains)
    with pytest.raises(ValueError, match="bits must increase"):
        channel.step_curve([2, 1], [0.1, 0.2])
