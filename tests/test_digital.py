"""The orthogonal digital uplink against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats
from test_uplink import D, as_tree, cohort, send, trained

from fedprune import channel, link
from fedprune.types import Cohort, Sender

SEED = 99  # fixed before any of these tests was run


def many(uplink, rounds=4000, clients=10):
    """The air of many rounds."""
    root, ids = jax.random.key(SEED), jnp.arange(clients)
    return jax.jit(jax.vmap(lambda t: uplink.prepare(Cohort(root, t, ids))))(jnp.arange(rounds))


@pytest.mark.parametrize(("rate", "snr_db"), [(1.0, 0.0), (2.0, 5.0), (4.0, 10.0)])
def test_outage_probability(rate, snr_db):
    active = np.asarray(many(link.orthogonal(snr_db, rate, fading=channel.block_fading())).active)
    outage = 1 - np.exp(-(2**rate - 1) / 10 ** (snr_db / 10))
    error = np.sqrt(outage * (1 - outage) / active.size)
    assert abs((1 - active.mean()) - outage) < 5 * error


@pytest.mark.parametrize(("snr_db", "oracle"), [(5.0, 1.716), (15.0, 4.330)])
def test_ergodic_capacity(snr_db, oracle):
    """E log2(1 + |h|^2 SNR) = e^(1/SNR) E1(1/SNR) / ln 2 under Rayleigh fading."""
    air = many(link.orthogonal(snr_db, fading=channel.block_fading()))
    rate, snr = np.asarray(air.state.rate), 10 ** (snr_db / 10)
    expected = np.exp(1 / snr) * special.exp1(1 / snr) / np.log(2)
    assert expected == pytest.approx(oracle, abs=1e-3)
    assert abs(rate.mean() - expected) < 5 * rate.std() / np.sqrt(rate.size)
    assert np.asarray(air.active).all()


def test_exact_values_and_bill():
    updates, weights, mask = cohort(4, 0.25)
    found, cost = send(link.orthogonal(10.0, rate=2.0, bandwidth=1e5), updates, weights, mask)
    mean = (updates.astype(np.float64) * weights[:, None]).sum(0) / weights.sum()
    np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6)
    uses = 4 * np.ceil(mask.sum() * 32 / 2)
    assert float(cost.channel_uses) == uses
    assert float(cost.seconds) == pytest.approx(uses / 1e5)
    assert float(cost.energy) == pytest.approx(uses / 1e5)
    _, at_capacity = send(link.orthogonal(10.0), updates, weights, mask)
    assert float(at_capacity.channel_uses) == 4 * np.ceil(mask.sum() * 32 / np.log2(11))


@pytest.mark.parametrize("antennas", [2, 8])
def test_a_slot_of_its_own_has_the_capacity_of_its_own_combiner(antennas):
    """E log2(1 + SNR Gamma(M)) by quadrature, for each of 20 clients, whoever else is there."""
    uplink = link.orthogonal(10.0, fading=channel.block_fading(antennas))
    rate = np.asarray(many(uplink, 500, 20).state.rate)
    law = stats.gamma(antennas)
    expected = integrate.quad(lambda g: np.log2(1 + 10 * g) * law.pdf(g), 0, np.inf)[0]
    assert abs(rate.mean() - expected) < 5 * rate.std() / np.sqrt(rate.size)
    np.testing.assert_allclose(rate[:, :1], many(uplink, 500, 1).state.rate, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_unbiased_and_on_a_grid(bits):
    updates, _, _ = cohort(1, 1.0)
    uplink = link.orthogonal(10.0, value_bits=bits)
    step = np.abs(updates).max() / (2 ** (bits - 1) - 1)
    sent = trained(as_tree(jnp.asarray(updates[0])))

    @jax.jit
    def received(t):
        air = uplink.prepare(Cohort(jax.random.key(SEED), t, jnp.arange(1)))
        state = jax.tree.map(lambda v: v[0], air.state)
        total = uplink.encode(Sender(state, (), sent, None, jnp.float32(1))).total
        return jnp.concatenate([v.ravel() for v in jax.tree.leaves(total.sum[0])])

    draws = np.stack([received(jnp.int32(t)) for t in range(100)])
    order = np.concatenate([v.ravel() for v in jax.tree.leaves(as_tree(updates[0]))])
    assert len(np.unique(np.round(draws / step))) <= 2**bits - 1
    np.testing.assert_allclose(draws / step, np.round(draws / step), atol=1e-3)
    assert np.abs(draws - order).max() <= step * (1 + 1e-4)
    # Each draw's error has variance f (1 - f) step^2 with f the fraction between grid points.
    f = order / step - np.floor(order / step)
    error = (draws.mean(0) - order) / step
    z = error.sum() / np.sqrt((f * (1 - f)).sum() / 100)
    assert abs(z) < 5
    assert error.size == D


def test_lost_updates_are_billed_and_change_nothing():
    updates, weights, mask = cohort(6, 1.0)
    uplink = link.orthogonal(0.0, rate=1.0, fading=channel.block_fading())
    air = uplink.prepare(Cohort(jax.random.key(SEED), jnp.int32(0), jnp.arange(6)))
    heard = np.asarray(air.active)
    assert 0 < heard.sum() < 6
    found, cost = send(uplink, updates, weights, mask, SEED)
    mean = (updates * weights[:, None])[heard].sum(0) / weights[heard].sum()
    np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6)
    assert float(cost.channel_uses) == 6 * D * 32
    silent = link.orthogonal(0.0, fading=channel.block_fading(), threshold=0.5)
    air = silent.prepare(Cohort(jax.random.key(SEED), jnp.int32(0), jnp.arange(6)))
    at = channel.Instant(jax.random.key(SEED), jnp.int32(0), jnp.arange(6))
    drawn = channel.block_fading().draw(at)[0]
    gain = abs(drawn.antennas[:, 0, 0]) ** 2
    np.testing.assert_array_equal(air.active, gain >= 0.5)
    _, cost = send(silent, updates, weights, mask, SEED)
    rates = np.log2(1 + np.asarray(gain, np.float64))[np.asarray(gain) >= 0.5]
    np.testing.assert_allclose(int(cost.channel_uses), (D * 32 / rates).sum(), rtol=1e-4)
    with pytest.raises(ValueError, match="value_bits=1: must be a whole number from 2 to 32"):
        link.orthogonal(0.0, value_bits=1)
