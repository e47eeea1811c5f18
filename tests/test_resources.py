"""Rates, latency and energy against the papers' formulas in plain Python; gains by their law."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedprune import channel, resources

SEED = 97  # fixed before any of these tests was run
P, NO, B = 10 ** (-0.2), 1e-14, 20e6
"""28 dBm, -110 dBm, 20 MHz"""
CONV, DENSE = 18_720, 25_168


def test_watts():
    assert resources.watts(28.0) == pytest.approx(P)
    assert resources.watts(-110.0) == pytest.approx(NO)
    assert resources.watts(30.0) == 1


@pytest.mark.parametrize("share", [0.0, 1e-3, 0.2, 1.0])
@pytest.mark.parametrize("gain", [1e-16, 1e-13, 1e-10, 1e-7])
def test_rate_by_hand(share, gain):
    linear = resources.rate(jnp.float32(share), jnp.float32(gain), P, NO, B)
    assert linear == pytest.approx(share * B * math.log2(1 + gain * P / NO), rel=1e-5)
    scaled = resources.rate(jnp.float32(share), jnp.float32(gain), P, NO, B, scaled=True)
    expected = share * B * math.log2(1 + gain * P / (share * NO)) if share else 0.0
    assert scaled == pytest.approx(expected, rel=1e-5)
    assert scaled >= linear * (1 - 1e-6)


def test_rate_of_a_tiny_share_under_its_own_noise_tends_to_the_wideband_limit():
    """b log2(1 + x / b) falls with b; N0 b B noise lets R grow no faster than the power allows."""
    shares = jnp.asarray([1e-6, 1e-3, 0.1, 1.0], jnp.float32)
    found = resources.rate(shares, jnp.full(4, 1e-13, jnp.float32), P, NO, B, scaled=True)
    assert (np.diff(found) > 0).all()
    assert found[-1] < B * 1e-13 * P / NO / math.log(2)


def p2_latency(rho, share, rate, cycles, f, bits, steps, warm, payload):
    """(6), (9), (11), (14) with the warm-up and the positions."""
    kept = CONV + (1 - rho) * DENSE
    compute = steps * cycles * kept / f + warm * cycles * (CONV + DENSE) / f
    sent = bits * kept
    if payload == "bitmap":
        sent += DENSE
    if payload == "index":
        sent += math.ceil(math.log2(DENSE)) * (1 - rho) * DENSE
    return compute, sent / (share * rate)


def p4_latency(rho, share, rate, cycles, f, bits, tau_v, tau_u, warm):
    """(24), (25), (28)."""
    compute = cycles / f * (tau_v * CONV + warm * DENSE + (1 - rho) * tau_u * DENSE)
    return compute, bits * (1 - rho) * DENSE / (share * rate)


@pytest.mark.parametrize("payload", resources.PAYLOADS)
@pytest.mark.parametrize("warm", [0.0, 3.0])
def test_p2_latency_term_by_term(payload, warm):
    draw = np.random.default_rng(SEED)
    rho, share = draw.uniform(size=6), draw.dirichlet(np.ones(6))
    rate, f, cycles = draw.uniform(1e7, 3e8, 6), draw.uniform(5e8, 3e9, 6), draw.uniform(1, 100, 6)
    work = resources.hierarchical(CONV, DENSE, 10.0, cycles, 64.0, warm, payload)
    with jax.enable_x64(True):
        keep, got = jnp.asarray(1 - rho), jnp.asarray(share * rate)
        compute = resources.compute_seconds(work, keep, f)
        uplink = resources.uplink_seconds(work, keep, got)
        total = resources.seconds(work, keep, f, got)
        energy = resources.energy(work, keep, f, got, P, 2e-28)
        sent = resources.weights_sent(work, keep)
        bits = resources.bits_sent(work, keep)
    for n in range(6):
        a, b = p2_latency(rho[n], share[n], rate[n], cycles[n], f[n], 64, 10, warm, payload)
        assert compute[n] == pytest.approx(a, rel=1e-12)
        assert uplink[n] == pytest.approx(b, rel=1e-12)
        assert total[n] == pytest.approx(a + b, rel=1e-12)
        assert energy[n] == pytest.approx(2e-28 * f[n] ** 2 * (a * f[n]) + P * b, rel=1e-12)
        assert sent[n] == pytest.approx(CONV + (1 - rho[n]) * DENSE, rel=1e-12)
        assert bits[n] == pytest.approx(b * share[n] * rate[n], rel=1e-12)


def test_p4_latency_term_by_term():
    draw = np.random.default_rng(SEED)
    rho, rate = draw.uniform(size=6), draw.uniform(1e7, 3e8, 6)
    work = resources.personalized(CONV, DENSE, 4.0, 7.0, 20.0, 32.0, 2.0)
    with jax.enable_x64(True):
        total = resources.seconds(work, jnp.asarray(1 - rho), 3e9, jnp.asarray(rate / 6))
    for n in range(6):
        expected = sum(p4_latency(rho[n], 1 / 6, rate[n], 20.0, 3e9, 32, 4, 7, 2))
        assert total[n] == pytest.approx(expected, rel=1e-12)
    assert resources.weights_sent(work, 1.0) == DENSE
    # With nothing personal it is P2's; personal weights add cycles and nothing else.
    p2 = resources.hierarchical(CONV, DENSE, 7.0, 20.0, 32.0, 2.0, "bitmap")
    same = (DENSE, 4.0, 7.0, 20.0, 32.0, 2.0, "bitmap")
    assert resources.personalized(0, *same, fixed_weights=CONV) == p2
    more = resources.personalized(1000, *same, fixed_weights=CONV)
    assert more == p2._replace(fixed_cycles=p2.fixed_cycles + 4 * 20 * 1000)


def test_energy_in_float32():
    """f^2 is 1e19 and the capacitance 1e-28, but products stay in range."""
    work = resources.hierarchical(CONV, DENSE, jnp.float32(10), jnp.float32(100), jnp.float32(64))
    one = jnp.float32(1)
    found = resources.energy(work, one, jnp.float32(3e9), jnp.float32(1e8), jnp.float32(P))
    cycles = 10 * 100 * (CONV + DENSE)
    expected = 1e-28 * 9e18 * cycles + P * 64 * (CONV + DENSE) / 1e8
    assert found == pytest.approx(expected, rel=1e-5)


def test_nothing_to_send_takes_no_time_at_any_rate():
    work = resources.personalized(CONV, DENSE, 1.0, 1.0, 1.0, 32.0)
    keep, rate = jnp.asarray([0.0, 0.0, 0.5]), jnp.asarray([0.0, 1e8, 0.0])
    np.testing.assert_array_equal(resources.uplink_seconds(work, keep, rate), [0, 0, np.inf])
    slope = jax.grad(lambda x: resources.uplink_seconds(work, x, jnp.float32(0)).sum())
    assert not np.isnan(slope(jnp.float32(0)))


def test_without_power_sending_takes_for_ever_and_costs_nothing():
    work = resources.hierarchical(10, 20, 5.0, 20.0, 64.0)
    keep, rate, power = jnp.ones(2), jnp.array([0.0, 1e6]), jnp.array([0.0, 0.5])
    assert np.isinf(resources.uplink_seconds(work, keep, rate)[0])
    spent = resources.energy(work, keep, 3e9, rate, power)
    computing = 1e-28 * 3e9**2 * 5 * 20 * 30
    np.testing.assert_allclose(spent, [computing, computing + 0.5 * 64 * 30 / 1e6], rtol=1e-6)


def test_latency_is_monotone():
    """In b, rho, C and q, over a grid at once: arguments broadcast and vmap."""
    grid = jnp.linspace(0.1, 1, 10)

    def took(share, keep, cycles, bits):
        work = resources.hierarchical(CONV, DENSE, 10.0, cycles, bits)
        return resources.seconds(work, keep, 3e9, share * 1e8)

    one = jnp.float32(0.5)
    for i, sign in enumerate([-1, 1, 1, 1]):
        arguments = [one, one, jnp.float32(50), jnp.float32(32)]
        family = jax.vmap(lambda x, i=i, a=arguments: took(*a[:i], x * a[i], *a[i + 1 :]))
        assert (sign * np.diff(family(grid)) > 0).all()


def test_round_time_by_loops():
    """The slowest device of each edge and edge round, summed over rounds, the slowest edge."""
    draw = np.random.default_rng(SEED)
    times = draw.exponential(size=(20, 3, 11)).astype(np.float32)  # draws, E, N
    edge = np.array([0, 3, 3, 1, 0, 1, 1, 1, 3, 0, 3])  # edge 2 is empty
    found = jax.vmap(lambda t: resources.round_seconds(t, jnp.asarray(edge), 4))(times)
    for i, t in enumerate(times):
        expected = max(sum(t[e, edge == k].max() for e in range(3)) for k in (0, 1, 3))
        assert found[i] == pytest.approx(expected, rel=1e-6)


def test_payloads_are_checked():
    with pytest.raises(ValueError, match="payload='csr'"):
        resources.hierarchical(CONV, DENSE, 1.0, 1.0, 32.0, payload="csr")


@pytest.mark.parametrize("antennas", [1, 4, 256])
def test_gains_are_gamma(antennas):
    """Gamma(M, 1/M) about the path loss: the whole law, and mean and variance at 5 deviations."""
    n = 4000
    distance = jnp.asarray([100.0, 500.0])
    gains = jax.jit(
        jax.vmap(
            lambda t: channel.orthogonal_gains(
                jax.random.key(SEED), t, jnp.arange(2), distance, antennas
            )
        )
    )(jnp.arange(n))
    for k, metres in enumerate((100.0, 500.0)):
        large = 10 ** (-(128.1 + 37.6 * math.log10(metres / 1000)) / 10)
        small = np.asarray(gains[:, k], np.float64) / large
        law = stats.gamma(antennas, scale=1 / antennas)
        assert stats.kstest(small, law.cdf).pvalue > 1e-5
        assert abs(small.mean() - 1) < 5 * law.std() / math.sqrt(n)
        spread = (small - small.mean()) ** 2
        assert abs(spread.mean() - law.var()) < 5 * spread.std() / math.sqrt(n)
    assert abs(np.corrcoef(gains.T)[0, 1]) < 5 / math.sqrt(n)


def test_gains_are_those_of_block_fading():
    """One antenna: the same address, so the same power as the complex gain."""
    root, ids, t = jax.random.key(SEED), jnp.arange(7), jnp.int32(3)
    annulus = (50.0, 200.0)
    complex_gain = (
        channel.block_fading(annulus=annulus)
        .draw(channel.Instant(root, t, ids))[0]
        .antennas[:, 0, 0]
    )
    places = channel.places(root, ids, annulus)
    power = channel.orthogonal_gains(root, t, ids, places)
    np.testing.assert_allclose(power, np.abs(complex_gain) ** 2, rtol=1e-5)
    assert ((places >= 50) & (places <= 200)).all()
