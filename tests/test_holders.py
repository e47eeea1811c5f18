"""Clients with masks of their own: the three ways to add up their updates, and how they train."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import distance, federation, leaves, mlp, same
from scipy import integrate, stats
from test_local import BATCH, LINEAR, LR, SHAPE, D, own_loss
from test_uplink import as_tree, as_vector, trained

import fedprune as fp
from fedprune import link, local, prune, rng
from fedprune.types import Arrival, Cohort, Sender, Total

SEED = 77  # fixed before any of these tests was run
WIDTH = 20_000


def send(uplink, updates, weights, masks, seed=SEED):
    """All clients' masked updates through an uplink; the round itself has no mask."""
    key = jax.random.key(seed)
    air = uplink.prepare(Cohort(key, jnp.int32(0), jnp.arange(len(updates))))

    def encode(state, update, mask, weight):
        sent = trained(as_tree(jnp.where(mask, update, 0)), as_tree(mask))
        return uplink.encode(Sender(state, air.common, sent, None, weight)).total

    parts = jax.vmap(encode)(air.state, *map(jnp.asarray, (updates, masks, weights)))
    total = Total(
        jax.tree.map(lambda v: v.sum(0), parts.sum), jax.tree.map(lambda v: v.max(0), parts.max)
    )
    received = uplink.finish(Arrival(key, air, total, None))
    return as_vector(received.update), received.cost


def cohort(clients=6, keep=0.3):
    rng = np.random.default_rng(SEED)
    updates = rng.normal(size=(clients, WIDTH)).astype(np.float32)
    weights = rng.integers(5, 50, clients).astype(np.float32)
    return updates, weights, rng.random((clients, WIDTH)) < keep


def loop(updates, weights, masks, least=None):
    """Coordinate by coordinate: mean over all clients, or over the holders."""
    clients, d = updates.shape
    out = np.zeros(d)
    for j in range(d):
        total, share = 0.0, 0.0
        for k in range(clients):
            if masks[k, j]:
                total += weights[k] * float(updates[k, j])
                share += weights[k]
        everybody = weights.sum()
        if least is None:
            out[j] = total / everybody
        elif share / everybody >= least:
            out[j] = total / share
    return out


LINKS = {
    "ideal": (link.ideal, link.ideal),
    "air": (lambda: link.over_the_air(np.inf, "common"),) * 2,
    "digital": (lambda: link.orthogonal(10.0), link.ideal),
}


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("least", [None, 0.05, 0.4])
def test_modes_against_a_loop(name, least):
    values, masks = (make() for make in LINKS[name])
    uplink = values if least is None else link.holders(values, masks, least)
    updates, weights, own = cohort()
    found, _ = send(uplink, updates, weights, own)
    expected = loop(updates[:, :2000], weights, own[:, :2000], least)
    np.testing.assert_allclose(found[:2000], expected, rtol=1e-4, atol=1e-5)
    if least == 0.4:
        assert 0.05 < (found == 0).mean() < 0.95


def test_one_mask_for_all_needs_no_counts():
    """With a common mask the three ways agree, and equal the mean over the cohort."""
    updates, weights, own = cohort()
    same_mask = np.broadcast_to(own[:1], own.shape)
    plain, _ = send(link.ideal(), updates, weights, same_mask)
    counted, _ = send(link.holders(link.ideal(), link.ideal(), 0.5), updates, weights, same_mask)
    np.testing.assert_allclose(counted, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("snr_db", [0.0, 12.0])
def test_expectation_of_noisy_counts(snr_db):
    """The docstring's E[1{z >= least} / z], and both error probabilities, for every share."""
    clients, least = 5, 0.1
    rng = np.random.default_rng(SEED)
    weights = np.array([10, 20, 20, 30, 20], np.float32)
    groups = np.array([[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    which = rng.integers(0, len(groups), WIDTH)
    masks = groups[which].T
    updates = (1.0 + 0.2 * rng.normal(size=(clients, WIDTH))).astype(np.float32)
    uplink = link.over_the_air(snr_db, "common")
    found, _ = send(link.holders(uplink, uplink, least), updates, weights, masks)
    signal = np.where(masks, updates, 0) * weights[:, None]
    s2, total = 10 ** (-snr_db / 10), weights.sum()
    v_a = s2 * (signal**2).mean(1).max() / total**2
    v_b = s2 * ((masks * weights[:, None]) ** 2).mean(1).max() / total**2
    for g, group in enumerate(groups):
        here = which == g
        c, n = weights[group].sum() / total, here.sum()
        density = stats.norm(c, np.sqrt(v_b))

        def moment(power, density=density):
            value, _ = integrate.quad(
                lambda z: z**power * density.pdf(z), least, density.mean() + 12 * density.std()
            )
            return value

        passes = density.sf(least)
        assert abs((found[here] != 0).mean() - passes) <= 5 * np.sqrt(passes * (1 - passes) / n)
        y = signal[:, here].sum(0) / total
        error = found[here] - y * moment(-1)
        second = moment(-2)
        variance = y**2 * (second - moment(-1) ** 2) + v_a * second
        assert abs(error.mean()) < 5 * np.sqrt(variance.mean() / n)
    # The closed form of the docstring, where the counts are far above the noise.
    if snr_db == 12.0:
        c, density = 1.0, stats.norm(1.0, np.sqrt(v_b))
        exact, _ = integrate.quad(lambda z: density.pdf(z) / z, least, 2)
        assert abs(exact - (1 + v_b)) < 5 * v_b**2


def test_noise_variance_and_bill():
    """At high SNR the reported variance is that of the error; everything is paid twice."""
    updates, weights, masks = cohort()
    uplink = link.over_the_air(30.0, "common")
    both = link.holders(uplink, uplink, 0.04)
    found, cost = send(both, updates, weights, masks)
    exact = loop(updates, weights, masks, 0.04)
    error = (found - exact)[masks.any(0)]
    spread = np.sqrt(((error**2).var()) / error.size)
    assert abs((error**2).mean() - float(cost.noise_variance)) < 5 * spread
    single, ideal = (send(u, updates, weights, masks)[1] for u in (uplink, link.ideal()))
    assert float(cost.channel_uses) == 2 * float(single.channel_uses) == WIDTH
    assert float(cost.seconds) == 2 * float(single.seconds)
    assert int(cost.side_information) == 2 * int(single.side_information)
    # At most the budget of every client in every channel use of both transmissions.
    assert float(cost.energy) <= len(updates) * float(cost.seconds) * 1.0
    assert float(ideal.channel_uses) == 0


def test_digital_bill_has_values_and_bitmap():
    updates, weights, masks = cohort()
    masks[0, :10] = True
    uplink = link.holders(link.orthogonal(10.0, rate=2.0), link.ideal(), 0.04)
    _, cost = send(uplink, updates, weights, masks)
    bits = 32 * masks.sum(1).max() + WIDTH
    assert float(cost.channel_uses) == len(updates) * np.ceil(bits / 2)


@pytest.mark.parametrize("rewind", [False, True])
@pytest.mark.parametrize("importance", [local.magnitude, local.change])
def test_own_masks_against_a_loop(rewind, importance):
    """Two warm-up steps, three kept of six kernel weights, three more steps, all in float64."""
    key, client = jax.random.key(5), federation(3, shape=SHAPE).client(1)

    def sgd(steps):
        return local.sgd(LINEAR, optax.sgd(LR), batch=BATCH, steps=steps, loss=own_loss)

    update = local.own_masks(
        sgd(2), sgd(3), prune.selection(), lambda t, client: jnp.float32(0.5), importance, rewind
    )
    start = LINEAR.init(key)
    found = jax.jit(update)(key, jnp.int32(0), start, None, client)

    def descend(w, mask, key, steps):
        for i in range(steps):
            batch = rng.stream(key, "batch", i)
            draw = np.asarray(jax.random.randint(batch, (BATCH,), 0, client.size))
            x = np.asarray(client.examples, np.float64)[np.asarray(client.rows)[draw]]
            w = (w[0] - LR * mask * x.reshape(BATCH, D).mean(0), w[1] - LR)
        return w

    w0 = np.asarray(start["kernel"], np.float64)[:, 0], float(start["bias"][0])
    warmed = descend(w0, 1.0, rng.stream(key, "warm_up"), 2)
    score = abs(warmed[0]) if importance is local.magnitude else abs(warmed[0] - w0[0])
    mask = np.zeros(D)
    mask[np.argsort(-score)[:3]] = 1
    first = w0 if rewind else warmed
    kernel, bias = descend((first[0] * mask, first[1]), mask, key, 3)
    np.testing.assert_array_equal(found.held["kernel"][:, 0], mask == 1)
    np.testing.assert_allclose(found.delta["kernel"][:, 0], mask * (kernel - w0[0]), atol=1e-5)
    np.testing.assert_allclose(found.delta["bias"], bias - w0[1], atol=1e-5)


def own_round(layout, division, clients=13):
    def sgd(steps):
        return local.sgd(MODEL, optax.sgd(0.1, 0.9), batch=6, steps=steps)

    schedule = prune.iterative(0.8, start=1, every=2, steps=2)
    values = link.over_the_air(10.0, "common")
    return fp.rounds.build(
        local=local.own_masks(sgd(1), sgd(2), prune.selection(), lambda t, client: schedule(t)),
        pruner=prune.scheduled(schedule, scope="own"),
        uplink=values if division == "all" else link.holders(values, values, 0.5 / 11),
        participation=fp.server.uniform(clients, 11),
        server=fp.server.average(),
        layout=layout,
    )


MODEL = mlp()


@pytest.mark.optimized
@pytest.mark.parametrize("division", ["all", "holders"])
def test_round_with_own_masks_on_any_devices(division):
    clients = federation(13)

    def final(devices, chunk=1, reduction="strict"):
        layout = fp.mesh.make(clients=devices, chunk=chunk, reduction=reduction)
        return fp.run.simulate(own_round(layout, division), MODEL, clients, clients, 4)

    one, info, _ = final(1)
    for devices in (2, 8):
        assert same(one.params, final(devices)[0].params)
    assert distance(final(1, chunk=4, reduction="fast")[0].params, one.params) < 1e-4
    # The server stays dense; the model that is evaluated is pruned.
    assert all((w != 0).mean() > 0.9 for w in leaves(one.params))
    d = sum(w.size for w in leaves(one.params) if w.ndim >= 2)
    biases = sum(w.size for w in leaves(one.params) if w.ndim < 2)
    assert int(info.kept[-1]) == round(d * 0.2) + biases
    uses = (d + biases + 1) // 2
    np.testing.assert_array_equal(info.cost.channel_uses, uses * (1 + (division == "holders")))
