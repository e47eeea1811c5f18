"""Channels that differ between blocks of symbols, and that go on from round to round."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import federation, mlp, same
from scipy import stats
from test_uplink import D, cohort, send

import fedprune as fp
from fedprune import channel, link
from fedprune.rounds import Edges, hierarchical
from fedprune.types import Candidates, Cohort, Participation, Survey

SEED = 78  # fixed before any of these tests was run
KEY = jax.random.key(SEED)


def history(fading, rounds, clients=1):
    """Channels of many rounds in order, [rounds, clients, blocks, antennas]."""

    def step(state, t):
        drawn, state = fading.draw(channel.Instant(KEY, t, jnp.arange(clients), state))
        return state, drawn.antennas

    start = None if fading.init is None else fading.init()
    return np.asarray(jax.jit(lambda: jax.lax.scan(step, start, jnp.arange(rounds))[1])())


def correlated(a, b):
    """Sample correlation of complex numbers of mean 0, and five standard errors of it."""
    n = a.size
    scale = np.sqrt((abs(a) ** 2).mean() * (abs(b) ** 2).mean())
    return (a * b.conj()).mean() / scale, 5 / np.sqrt(n)


@pytest.mark.parametrize("taps", [(1.0,), (1.0, 0.5, 0.25), (1.0,) * 8])
def test_blocks_are_the_spectrum_of_the_taps(taps):
    """Each block is CN(0, 1); those that are d apart correlate as the spectrum of the powers."""
    blocks, rounds = 8, 20_000
    h = history(channel.block_fading(blocks=blocks, taps=taps), rounds)[:, 0, :, 0]
    for b in (0, 5):
        assert stats.kstest(abs(h[:, b]) ** 2, "expon").pvalue > 1e-4
    powers = np.array(taps) / sum(taps)
    for apart in (1, 3, 4):
        found, error = correlated(h[:, apart], h[:, 0])
        expected = (powers * np.exp(-2j * np.pi * apart * np.arange(len(taps)) / blocks)).sum()
        assert abs(found - expected) < error


@pytest.mark.parametrize("rho", [0.5, 0.95])
def test_rounds_correlate_as_a_gauss_markov_process(rho):
    """rho^d between rounds d apart; CN(0, 1) in every round, the first one too."""
    rounds, clients = 6, 20_000
    h = history(channel.block_fading(correlation=rho, clients=clients), rounds, clients)[..., 0, 0]
    for t in (0, rounds - 1):
        assert stats.kstest(abs(h[t]) ** 2, "expon").pvalue > 1e-4
    for apart in (1, 4):
        found, error = correlated(h[rounds - 1], h[rounds - 1 - apart])
        assert abs(found - rho**apart) < error


@pytest.mark.optimized
def test_without_correlation_a_process_is_a_new_draw_every_round():
    on = history(channel.block_fading(2, blocks=3, taps=(1, 1), clients=4), 3, 4)
    np.testing.assert_array_equal(on, history(channel.block_fading(2, blocks=3, taps=(1, 1)), 3, 4))


def test_a_round_is_drawn_once():
    """A survey and the cohort that is chosen from it have the channels of the same round."""
    fading = channel.block_fading(antennas=2, correlation=0.9, clients=5, blocks=2, taps=(1, 1))
    ids = jnp.array([3, 1])
    for uplink in (
        link.over_the_air(10.0, "common", fading=fading),
        link.orthogonal(10.0, fading=fading),
    ):
        memory = uplink.init({})
        for t in range(3):
            gains, surveyed = uplink.survey(Survey(KEY, jnp.int32(t), 5, memory))
            air = uplink.prepare(Cohort(KEY, jnp.int32(t), ids, memory=surveyed))
            alone = uplink.prepare(Cohort(KEY, jnp.int32(t), ids, memory=memory))
            assert same(alone.memory, air.memory)
            assert same(surveyed, air.memory)
            drawn, memory = fading.draw(channel.Instant(KEY, jnp.int32(t), jnp.arange(5), memory))
            power = (abs(np.asarray(drawn.antennas)) ** 2).sum(2)
            np.testing.assert_allclose(gains, power.mean(1), rtol=1e-5)
        if hasattr(air.state, "rate"):  # a code spans the blocks
            rate = np.log2(1 + 10 * power).mean(1)
            np.testing.assert_allclose(air.state.rate, rate[np.asarray(ids)], rtol=1e-5)


def waveform(normalisation, packing, threshold, updates, weights, mask, h, known):
    """A noiseless round in NumPy, symbol by symbol.

    Returns:
      The estimate, who is heard of each weight, and every client's power.
    """
    blocks = h.shape[1]
    a = (updates * weights[:, None]).astype(np.float64)
    m = np.sqrt((a**2).sum(1) / mask.sum())
    strong = abs(known) ** 2 >= threshold
    step = 2 if packing == "complex" else 1
    symbols = []  # (places of kept weights, block), in the two arrays of test_uplink.as_tree
    for first, beyond in ((0, D // 4), (D // 4, D)):
        kept = [i for i in range(first, beyond) if mask[i]]
        parts = [kept[i : i + step] for i in range(0, len(kept), step)]
        symbols += [(places, i % blocks) for i, places in enumerate(parts)]
    x, estimate, heard = np.zeros((len(a), len(symbols)), complex), np.zeros(D), np.zeros(D)
    for s, (places, b) in enumerate(symbols):
        x[:, s] = a[:, places[0]] + (1j * a[:, places[1]] if len(places) == 2 else 0)
        if normalisation == "device":
            x[:, s] *= (known.conj() / abs(known))[:, b] / m
        else:
            x[:, s] /= known[:, b]
        x[~strong[:, b], s] = 0
    power = (abs(x) ** 2).sum(1) / mask.sum()
    if normalisation != "device":
        power /= power.max()
    for s, (places, b) in enumerate(symbols):
        on = strong[:, b]
        if not on.any():
            continue
        y = (h[:, b] * x[:, s]).sum() / weights[on].sum()
        if normalisation == "device":
            y *= m[on].mean() / abs(known[on, b]).mean()
        for place, part in zip(places, (y.real, y.imag), strict=False):
            estimate[place], heard[place] = part, weights[on].sum()
    return estimate, heard, power


@pytest.mark.parametrize("normalisation", ["common", "device", "receiver"])
@pytest.mark.parametrize("packing", ["complex", "real"])
@pytest.mark.parametrize("keep", [1.0, 0.1])
def test_estimate_equals_the_waveform(normalisation, packing, keep):
    """Four independent blocks, a threshold that silences some, and one block without a sender."""
    updates, weights, mask = cohort(4, keep)
    fading = channel.block_fading(csi_error=0.3, blocks=4, taps=(1.0,) * 4)
    gains = channel.superposed(fading.draw(channel.Instant(KEY, jnp.int32(0), jnp.arange(4)))[0])
    h, known = (np.asarray(g, np.complex128) for g in gains)
    threshold = np.sort((abs(known) ** 2).max(0))[0] * 1.01  # above the best of one block
    strong = abs(known) ** 2 >= threshold
    assert (~strong.any(0)).sum() == 1
    assert 1 < strong.sum() < strong.size
    given = updates, weights, mask
    options = (normalisation, packing, fading, threshold)
    found, cost = send(link.over_the_air(np.inf, *options), *given, SEED)
    expected, heard, powers = waveform(normalisation, packing, threshold, *given, h, known)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(cost.energy, powers.sum() * float(cost.seconds), rtol=1e-4)
    assert (found[mask & (heard == 0)] == 0).all()
    # What ten rounds of noise add has the variance that is billed.
    noisy = link.over_the_air(10.0, *options)
    drawn, billed = zip(*(send(noisy, *given, SEED, noise=i) for i in range(10)), strict=True)
    noise = (np.stack(drawn) - found)[:, mask & (heard > 0)]
    variance = float(billed[0].noise_variance)
    per_weight = (noise**2).mean(0)
    assert abs(per_weight.mean() - variance) < 5 * per_weight.std() / np.sqrt(per_weight.size)


def by_gain(candidates: Candidates):
    return jax.lax.top_k(candidates.gains, 3)[1].astype(jnp.int32)


def rounds(layout, **options):
    fading = channel.block_fading(correlation=0.8, clients=5, blocks=2, taps=(1, 1))
    given = dict(
        local=fp.local.sgd(mlp(), optax.sgd(0.1), batch=5, steps=2),
        uplink=link.over_the_air(10.0, "common", fading=fading, threshold=0.3),
        participation=Participation(3, by_gain, 5, gains=True),
        server=fp.server.average(),
        layout=layout,
    )
    return fp.rounds.build(**given | options)


@pytest.mark.slow
def test_a_process_is_the_same_on_any_number_of_devices():
    model, clients = mlp(), federation(5)
    (first, info), (second, other) = (
        fp.run.simulate(
            rounds(fp.mesh.make(clients=n, reduction="strict")), model, clients, clients, 4
        )[:2]
        for n in (1, 4)
    )
    assert same(first, second)
    assert same(info, other)
    assert first.uplink.round == 3
    assert np.isfinite(info.cost.noise_variance).all()


def test_edge_servers_refuse_a_process():
    fading = channel.block_fading(correlation=0.8, clients=4)
    with pytest.raises(ValueError, match="uplink: keeps memory"):
        hierarchical.build(
            local=fp.local.sgd(mlp(), optax.sgd(0.1), batch=5, steps=1),
            uplink=link.over_the_air(10.0, fading=fading),
            cloud=link.ideal(),
            server=fp.server.average(),
            participation=fp.server.full(4),
            edges=Edges(jnp.array([0, 0, 1, 1]), 2),
            edge_rounds=1,
            layout=fp.mesh.make(clients=1),
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"blocks": 0}, "blocks=0"),
        ({"blocks": 2, "taps": (1.0, 1.0, 1.0)}, "must be 1 to blocks=2 numbers"),
        ({"taps": ()}, "must be 1 to blocks=1 numbers"),
        ({"blocks": 2, "taps": (1.0, -1.0)}, "taps"),
        ({"correlation": 1.0, "clients": 3}, "correlation=1.0"),
        ({"correlation": 0.5}, "clients=None must be their number for correlation=0.5"),
        ({"clients": 0}, "clients=0"),
    ],
)
def test_wrong_fading_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        channel.block_fading(**wrong)


@pytest.mark.parametrize("make", [link.over_the_air, link.orthogonal])
def test_what_is_no_fading_is_refused(make):
    with pytest.raises(TypeError, match="fading"):
        make(10.0, fading=lambda root, t, ids: None)
