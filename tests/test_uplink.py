"""Noise laws, biases and bills of the uplinks, against formulas evaluated in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedprune import link
from fedprune.types import Arrival, Cohort, Sender, Total, Trained

D = 20_000
SEED = 2024  # fixed before any of these tests was run


def cohort(clients: int, keep: float):
    """Updates of very unequal power, [K, D] masked, the weights D_k, and the mask."""
    rng = np.random.default_rng(SEED + clients)
    power = 10 ** rng.uniform(-2, 1, (clients, 1))
    mask = rng.random(D) < keep
    updates = (power * rng.normal(size=(clients, D)) * mask).astype(np.float32)
    return updates, rng.integers(5, 50, clients).astype(np.float32), mask


def as_tree(vector):
    """Two leaves, so that nothing depends on a model being one array."""
    return {"a": vector[: D // 4].reshape(50, -1), "b": vector[D // 4 :]}


def trained(delta, held=None):
    return Trained(delta, jnp.float32(0), held)


def as_vector(tree):
    return np.concatenate([np.asarray(tree["a"]).ravel(), np.asarray(tree["b"])])


def send(uplink, updates, weights, mask, seed=SEED, noise=None):
    """All contributions added up, then the receiver's end; its noise may have a seed of its own."""
    mask_tree = None if mask is None else as_tree(jnp.asarray(mask))
    key = jax.random.key(seed)
    air = uplink.prepare(Cohort(key, jnp.int32(0), jnp.arange(len(updates)), mask_tree))
    parts = [
        uplink.encode(
            Sender(
                jax.tree.map(lambda v, k=k: v[k], air.state),
                air.common,
                trained(as_tree(jnp.asarray(update))),
                mask_tree,
                jnp.float32(weight),
            )
        ).total
        for k, (update, weight) in enumerate(zip(updates, weights, strict=True))
        if air.active[k]
    ]
    total = parts[0]
    for part in parts[1:]:
        total = Total(
            jax.tree.map(jnp.add, total.sum, part.sum),
            jax.tree.map(jnp.maximum, total.max, part.max),
        )
    key = key if noise is None else jax.random.key(noise)
    received = uplink.finish(Arrival(key, air, total, mask_tree))
    return as_vector(received.update), received.cost


def expected(normalisation, packing, snr_db, updates, weights, mask):
    """(mean of the estimate, its noise variance) by the docstring's formulas, in float64."""
    a = updates.astype(np.float64) * weights[:, None]
    d, total = mask.sum(), weights.sum()
    s2 = 10 ** (-snr_db / 10) / (1 if packing == "complex" else 2)
    m = np.sqrt((a**2).sum(1) / d)
    mean = a.sum(0) / total
    if normalisation == "none":
        return mean, 0.0
    if normalisation == "common":
        return mean, s2 * (m**2).max() / total**2
    if normalisation == "device":
        biased = m.mean() * (a / m[:, None]).sum(0) / total
        return biased, s2 * m.mean() ** 2 / total**2
    return mean, s2 * (a.sum(0) ** 2).sum() / d / total**2


@pytest.mark.parametrize("normalisation", link.NORMALISATIONS)
@pytest.mark.parametrize("packing", ["complex", "real"])
@pytest.mark.parametrize(("clients", "snr_db", "keep"), [(1, 10, 1), (5, -5, 0.4), (50, 25, 0.1)])
def test_noise_law(normalisation, packing, clients, snr_db, keep):
    updates, weights, mask = cohort(clients, keep)
    uplink = link.over_the_air(float(snr_db), normalisation, packing)
    found, cost = send(uplink, updates, weights, mask)
    mean, variance = expected(normalisation, packing, snr_db, updates, weights, mask)
    np.testing.assert_allclose(cost.noise_variance, variance, rtol=1e-5)
    assert not found[~mask].any(), "pruned weights receive no noise"
    n = mask.sum()
    if normalisation == "none":
        np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-6)
        return
    noise = (found - mean)[mask]
    # Gaussian: the mean's standard error is sd / sqrt(n), the variance's is v sqrt(2 / n). What
    # float32 rounding of the sum adds is far below (the largest |estimate| times 1e-6).
    assert abs(noise.mean()) < 5 * np.sqrt(variance / n)
    assert abs(noise.var() - variance) < 5 * variance * np.sqrt(2 / n)
    fourth = (noise**4).mean() / variance**2
    assert abs(fourth - 3) < 5 * np.sqrt(96 / n), "Gaussian"


def test_noise_is_independent_between_weights_and_rounds():
    updates, weights, mask = cohort(3, 1.0)
    uplink = link.over_the_air(10.0, "common")
    mean, variance = expected("common", "complex", 10, updates, weights, mask)
    first, second = (send(uplink, updates, weights, mask, seed)[0] - mean for seed in (1, 2))
    for a, b in ((first, second), (first[1:], first[:-1])):
        assert abs((a * b).mean()) < 5 * variance / np.sqrt(len(a))


@pytest.mark.parametrize("normalisation", link.NORMALISATIONS)
def test_one_client_without_noise_is_the_identity(normalisation):
    updates, weights, mask = cohort(1, 0.5)
    found, _ = send(link.over_the_air(np.inf, normalisation), updates, weights, mask)
    np.testing.assert_allclose(found, updates[0], rtol=1e-6)


def test_ideal_is_the_weighted_mean():
    updates, weights, _ = cohort(7, 1.0)
    found, cost = send(link.ideal(), updates, weights, None)
    mean = (updates.astype(np.float64) * weights[:, None]).sum(0) / weights.sum()
    np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6)
    assert int(cost.channel_uses) == int(cost.side_information) == 0


@pytest.mark.parametrize(
    ("normalisation", "scalars"), [("none", 0), ("common", 6), ("device", 5), ("receiver", 1)]
)
def test_bill(normalisation, scalars):
    """Five clients; of both arrays an odd number of weights is sent: two symbols are half empty."""
    updates, weights, mask = cohort(5, 0.3)
    for part in (mask[: D // 4], mask[D // 4 :]):
        if part.sum() % 2 == 0:
            part[np.flatnonzero(~part)[0]] = True
    d = int(mask.sum())
    for packing, uses in (("complex", d // 2 + 1), ("real", d)):
        uplink = link.over_the_air(10.0, normalisation, packing)
        _, cost = send(uplink, updates * mask, weights, mask)
        assert int(cost.channel_uses) == uses
        assert int(cost.side_information) == scalars


@pytest.mark.parametrize("normalisation", link.NORMALISATIONS)
def test_silent_clients_do_no_harm(normalisation):
    """All updates zero, or nobody counted: the estimate is zero, not NaN."""
    uplink = link.over_the_air(10.0, normalisation)
    zeros = np.zeros((2, D), np.float32)
    found, cost = send(uplink, zeros, np.ones(2, np.float32), np.ones(D, bool))
    assert not found.any() or normalisation == "device"
    assert np.isfinite(found).all()
    assert np.isfinite(cost.noise_variance)
    from fedprune.mesh import identity

    key = jax.random.key(0)
    air = uplink.prepare(Cohort(key, jnp.int32(0), jnp.arange(1)))
    gain = jax.tree.map(lambda v: v[0], air.state)
    sender = Sender(gain, air.common, trained(as_tree(jnp.zeros(D))), None, jnp.float32(1))
    nobody = identity(uplink.encode(sender).total)
    assert not as_vector(uplink.finish(Arrival(key, air, nobody, None)).update).any()


def test_names_are_checked():
    with pytest.raises(ValueError, match="normalisation='unit'"):
        link.over_the_air(10.0, "unit")
    with pytest.raises(ValueError, match="packing='half'"):
        link.over_the_air(10.0, packing="half")
