"""Spirals and repetition against simulated tables, a dense search, quadrature and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from fedprune import coding
from fedprune.coding.code import chunked

N = 200_000
GAMMAS = (0.5, 1.0, 2.0, 4.0, 8.0)
# Mean squared error in dB: SNR per real symbol -> repetition 1:2 and spirals 1:2 of each gamma,
# from an independent simulation of 200,000 normal weights with a dense search.
TABLE = {
    0: (-3.01, -2.41, 0.88, 4.21, 4.87, 4.80),
    5: (-8.01, -8.33, -8.01, -2.21, 2.55, 3.69),
    10: (-13.01, -13.62, -14.31, -13.55, -3.26, 2.19),
    15: (-18.01, -18.70, -19.69, -21.01, -16.90, -2.76),
    20: (-23.01, -23.74, -24.80, -26.43, -28.13, -15.97),
    25: (-28.01, -28.75, -29.83, -31.55, -33.69, -35.53),
}
# 1:4 with 20,000 weights: SNR -> repetition, gamma 1, gamma 2.
TABLE_4 = {
    5: (-11.0, -10.9, -7.3),
    10: (-16.0, -17.9, -17.5),
    15: (-21.0, -23.3, -24.6),
    20: (-26.0, -28.4, -30.3),
}


def draw(symbols, n=N, seed=3):
    rng = np.random.default_rng(seed)
    weights, noise = rng.normal(size=n), rng.normal(size=(n, symbols))
    return jnp.asarray(weights, jnp.float32), jnp.asarray(noise, jnp.float32)


def squared_errors(code, snr_db, weights, noise):
    """[n], jitted by the caller."""
    variance = 10.0 ** (-jnp.asarray(snr_db, jnp.float32) / 10)
    received = code.encode(weights) + jnp.sqrt(variance) * noise
    return jnp.square(code.decode(received, variance) - weights)


def close_to_simulation(errors, decibels, n, rounding):
    """Both are simulations: five standard errors of their difference, and the table's rounding."""
    errors = np.asarray(errors, float)
    expected = 10 ** (decibels / 10)
    deviation = errors.std() * np.sqrt(1 / len(errors) + 1 / n)
    slack = expected * (10 ** (rounding / 10) - 1)
    assert abs(errors.mean() - expected) <= 5 * deviation + slack, (
        10 * np.log10(errors.mean()),
        decibels,
    )


def test_table_of_1_to_2():
    weights, noise = draw(2)
    run = jax.jit(lambda g, snr: squared_errors(coding.spiral(g), snr, weights, noise))
    twice = jax.jit(lambda snr: squared_errors(coding.repetition(2), snr, weights, noise))
    for snr, (repeated, *spirals) in TABLE.items():
        close_to_simulation(twice(snr), repeated, N, 0.005)
        for gamma, decibels in zip(GAMMAS, spirals, strict=True):
            close_to_simulation(run(gamma, snr), decibels, N, 0.005)


def test_table_of_1_to_4():
    weights, noise = draw(4, 60_000)
    run = jax.jit(lambda g, snr: squared_errors(coding.spiral(g, 2), snr, weights, noise))
    four = jax.jit(lambda snr: squared_errors(coding.repetition(4), snr, weights, noise))
    for snr, (repeated, one, two) in TABLE_4.items():
        close_to_simulation(four(snr), repeated, 20_000, 0.05)
        close_to_simulation(run(1.0, snr), one, 20_000, 0.05)
        close_to_simulation(run(2.0, snr), two, 20_000, 0.05)


@pytest.mark.parametrize("decoder", ["ls", "mmse"])
@pytest.mark.parametrize("times", [1, 2, 3, 7])
def test_repetition_has_its_closed_form(times, decoder):
    weights, noise = draw(times, 100_000)
    code = coding.repetition(times, decoder)
    for snr in (-5, 5, 15):
        errors = np.asarray(squared_errors(code, snr, weights, noise), float)
        value = 10 ** (-snr / 10)
        by_hand = value / times if decoder == "ls" else 1 / (1 + times / value)
        assert coding.repetition_error(value, times, decoder) == pytest.approx(by_hand, rel=1e-6)
        assert abs(errors.mean() - by_hand) < 5 * errors.std() / np.sqrt(errors.size)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_without_noise_the_weights_return(levels):
    weights, _ = draw(1, 10_000)
    weights = jnp.concatenate([weights, jnp.asarray([0.0, -0.0, 1e-8, 5.9, -5.9, 40.0])])

    @jax.jit
    def there_and_back(gamma):
        code = coding.spiral(gamma, levels)
        return code.decode(code.encode(weights), 0.0)

    for gamma in (0.3, *GAMMAS):
        error = np.asarray(jnp.abs(there_and_back(gamma) - weights))
        assert (error / np.maximum(1, np.abs(weights))).max() < 1e-6 * levels


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_spirals_are_odd_and_keep_the_energy(levels):
    weights, _ = draw(1, 10_000)
    code = coding.spiral(1.7, levels)
    symbols = np.asarray(code.encode(weights))
    assert symbols.shape == (10_000, 2**levels)
    np.testing.assert_array_equal(code.encode(-weights), -symbols)
    energy = np.square(symbols.astype(float)).mean(-1)
    np.testing.assert_allclose(energy, np.square(np.asarray(weights, float)), rtol=2e-6)
    x = np.asarray(coding.theta(weights, 1.7), float)
    w = np.asarray(weights, float)
    np.testing.assert_allclose(x[:, 0], w * np.cos(1.7 * w), atol=5e-6)
    np.testing.assert_allclose(x[:, 1], w * np.sin(1.7 * np.abs(w)), atol=5e-6)


def dense_search(points, gamma, limit=6.0):
    """512 max(1, gamma) points over [-limit, limit], golden sections, both signs apart."""
    count = int(256 * max(1, gamma))
    ratio = (np.sqrt(5) - 1) / 2
    x, y = points[:, 0], points[:, 1]
    distance = lambda w: (x - w * np.cos(gamma * w)) ** 2 + (y - w * np.sin(gamma * abs(w))) ** 2
    found = []
    for sign in (1, -1):
        grid = sign * np.linspace(0, limit, count + 1)
        least, where = np.full(len(points), np.inf), np.zeros(len(points))
        for w in grid:
            d = distance(w)
            nearer = d < least
            least[nearer], where[nearer] = d[nearer], w
        step = limit / count
        ends = sorted([0, sign * limit])
        a, b = np.clip(where - step, *ends), np.clip(where + step, *ends)
        for _ in range(40):
            c, d = b - ratio * (b - a), a + ratio * (b - a)
            left = distance(c) < distance(d)
            a, b = np.where(left, a, c), np.where(left, d, b)
        found.append((a + b) / 2)
    return np.where(distance(found[0]) <= distance(found[1]), *found)


@pytest.mark.parametrize("gamma", [0.25, *GAMMAS])
def test_the_decoder_finds_the_global_minimum(gamma):
    """24,000 points for each of six gammas, from far outside the spiral to deep noise."""
    rng = np.random.default_rng(11)
    weights = rng.normal(size=24_000)
    deviation = np.sqrt(10 ** (-rng.choice([-5, 0, 5, 10, 20], 24_000) / 10) / 2)
    points = np.stack(
        [weights * np.cos(gamma * weights), weights * np.sin(gamma * abs(weights))], 1
    )
    points += deviation[:, None] * rng.normal(size=points.shape)
    decode = jax.jit(lambda y: coding.nearest_on_spiral(y, gamma, 6.0))
    found = np.asarray(decode(jnp.asarray(points, jnp.float32)), float)
    agrees = np.abs(found - dense_search(points, gamma)) < 1e-3
    assert agrees.mean() >= 0.9999


def test_limits_bind_only_beyond_them():
    points = jnp.asarray([[0.0, 9.0], [50.0, 3.0], [-0.2, 0.1], [2.0, 2.0]])
    decode = jax.jit(lambda gamma, limit: coding.nearest_on_spiral(points, gamma, limit))
    for gamma in (0.3, 1.0, 5.0):
        for limit in (1.0, 6.0):
            found = np.asarray(decode(gamma, limit), float)
            expected = dense_search(np.asarray(points, float), gamma, limit)
            np.testing.assert_allclose(found, expected, atol=2e-3)
            assert np.abs(found).max() <= limit


@pytest.mark.parametrize(
    ("gamma", "levels", "snr"),
    [(0.5, 1, -5), (1.0, 1, 0), (2.0, 1, 5), (2.0, 1, 10), (4.0, 1, 20), (1.0, 2, 0), (2.0, 2, 10)],
)
def test_the_posterior_mean_never_errs_more(gamma, levels, snr):
    weights, noise = draw(2**levels, 10_000)
    codes = [coding.spiral(gamma, levels, decoder) for decoder in ("ml", "mmse")]
    nearest, mean = jax.jit(lambda: [squared_errors(c, snr, weights, noise) for c in codes])()
    gain = np.asarray(nearest, float) - np.asarray(mean, float)
    assert gain.mean() > -5 * gain.std() / np.sqrt(gain.size)
    assert snr > 5 or gain.mean() > 5 * gain.std() / np.sqrt(gain.size)
    assert np.asarray(mean).mean() < 1


@pytest.mark.parametrize("levels", [1, 2])
def test_the_posterior_mean_is_one(levels):
    """Against SciPy's adaptive quadrature, for a Laplacian prior."""
    weights, noise = draw(2**levels, 12)
    laplace = lambda w: -(2**0.5) * jnp.abs(w)
    code = coding.spiral(1.5, levels, "mmse", log_prior=laplace)
    received = np.asarray(code.encode(weights) + 0.7 * noise, float)
    found = code.decode(jnp.asarray(received, jnp.float32), 0.49)

    def curve(w):
        x = np.array([w])
        for _ in range(levels):
            x = np.stack([x * np.cos(1.5 * x), x * np.sin(1.5 * np.abs(x))], -1).reshape(-1)
        return np.sqrt(2.0**levels) * x

    for y, estimate in zip(received, found, strict=True):
        density = lambda w, y=y: np.exp(
            -np.square(y - curve(w)).sum() / 0.98 - np.sqrt(2) * np.abs(w)
        )
        options = {"points": np.linspace(-6, 6, 49), "limit": 400}
        total = integrate.quad(density, -6, 6, **options)[0]
        first = integrate.quad(lambda w, f=density: w * f(w), -6, 6, **options)[0]
        assert estimate == pytest.approx(first / total, abs=2e-4)


@pytest.mark.parametrize("gamma", [0.05, *GAMMAS])
def test_high_snr_form_is_its_integral(gamma):
    density = lambda w: np.exp(-w * w / 2) / np.sqrt(2 * np.pi) / (1 + gamma**2 * w**2)
    exact = integrate.quad(density, -12, 12, points=[-0.1, 0, 0.1])[0] * 0.01 / 2
    assert coding.spiral_error(0.01, gamma) == pytest.approx(exact, rel=1e-4)


def test_high_snr_form_is_what_is_simulated():
    """Where no arm is jumped: gamma 1 at 25 dB; the next order is of 0.3 %."""
    weights, noise = draw(2)
    errors = np.asarray(squared_errors(coding.spiral(1.0), 25, weights, noise), float)
    expected = float(coding.spiral_error(10**-2.5, 1.0))
    assert abs(errors.mean() - expected) < 5 * errors.std() / np.sqrt(N) + 0.005 * expected


def test_best_gamma_beats_every_column_of_the_table():
    weights, noise = draw(2)
    run = jax.jit(
        lambda snr: squared_errors(coding.spiral(coding.best_gamma(snr)), snr, weights, noise)
    )
    for snr, row in TABLE.items():
        errors = np.asarray(run(snr), float)
        least = 10 ** (min(row) / 10)
        assert errors.mean() < least + 5 * errors.std() * np.sqrt(2 / N) + 0.01 * least
    gammas = np.asarray(coding.best_gamma(jnp.linspace(-10, 45, 56)))
    assert (np.diff(gammas) >= 0).all()
    assert gammas[0] == pytest.approx(0.1)


def test_gamma_and_variance_may_be_mapped_over():
    weights, noise = draw(2, 500)
    gammas = jnp.asarray([0.5, 1.0, 3.0])
    decoders = ("ml", "mmse")
    for decoder in decoders:
        one = lambda g, v, d=decoder: coding.spiral(g, 1, d, points=512).decode(
            coding.spiral(g).encode(weights) + 0.1 * noise, v
        )
        mapped = jax.jit(jax.vmap(one))(gammas, jnp.full(3, 0.01))
        for row, gamma in zip(mapped, gammas, strict=True):
            alone = jax.jit(one)(gamma, jnp.float32(0.01))
            np.testing.assert_allclose(row, alone, atol=2e-5)


@pytest.mark.parametrize("shape", [(23, 2), (4, 6, 2), (2,), (0, 2), (21, 2)])
def test_chunks_change_nothing(shape):
    received = jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32)
    decode = lambda y: y[:, 0] - 2 * y[:, 1]
    expected = received[..., 0] - 2 * received[..., 1]
    np.testing.assert_array_equal(chunked(decode, received, 7), expected)


def test_what_is_refused():
    with pytest.raises(ValueError, match="levels=0"):
        coding.spiral(1.0, 0)
    with pytest.raises(ValueError, match="decoder='map'"):
        coding.spiral(1.0, decoder="map")
    with pytest.raises(ValueError, match="times=0"):
        coding.repetition(0)
    with pytest.raises(ValueError, match="decoder='ml'"):
        coding.repetition(2, "ml")
