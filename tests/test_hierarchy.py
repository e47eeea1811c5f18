"""Edge servers and cloud: against NumPy loops, the flat round, and on any number of devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import distance, federation, leaves, mlp, same
from test_fedavg import BATCH, LR, SEED, STEPS, exported_batches, numpy_gradient

import fedprune as fp
from experiments import hfl_adaptive, hfl_pruning
from fedprune import build as build_stages
from fedprune import config as cfg
from fedprune import link, local, prune, resources, rng
from fedprune.link.ofdma import SCHEMES
from fedprune.rounds import Edges, hierarchical
from fedprune.types import Cohort

MODEL = mlp()
CLIENTS = federation(25)


def edges(*sizes):
    return Edges(jnp.asarray(np.repeat(np.arange(len(sizes)), sizes)), len(sizes))


def sgd(steps=STEPS, rate=LR):
    return local.sgd(MODEL, optax.sgd(rate), batch=BATCH, steps=steps)


def build(layout, tiers, edge_rounds, clients, **changed):
    stages = {
        "local": sgd(),
        "uplink": link.ideal(),
        "cloud": link.ideal(),
        "server": fp.server.average(),
        "participation": fp.server.full(clients),
        "weighting": "plain",
        **changed,
    }
    return hierarchical.build(**stages, edges=tiers, edge_rounds=edge_rounds, layout=layout)


@pytest.mark.parametrize("weighting", ["plain", "examples"])
def test_against_a_numpy_loop(weighting):
    """Edges of 3, 1 and 2 devices, two edge rounds in each of two cloud rounds."""
    clients, sizes, edge_rounds = federation(6), (3, 1, 2), 2
    initial = MODEL.init(rng.stream(jax.random.key(SEED), "init"))
    flat = initial["Dense_0"], initial["Dense_1"]
    w = {"W1": flat[0]["kernel"], "b1": flat[0]["bias"], "W2": flat[1]["kernel"]}
    w = {k: np.asarray(v, np.float64) for k, v in {**w, "b2": flat[1]["bias"]}.items()}
    own, examples = np.asarray(clients.size), np.asarray(clients.examples)
    for t in range(2):
        mean, everything = dict.fromkeys(w, 0.0), 0.0
        for g in range(3):
            members = range(sum(sizes[:g]), sum(sizes[: g + 1]))
            edge = dict(w)
            for e in range(edge_rounds):
                total, weights = dict.fromkeys(w, 0.0), 0.0
                for k in members:
                    mine = dict(edge)
                    for positions in exported_batches(own[k], t * edge_rounds + e, k):
                        rows = np.asarray(clients.rows)[k, positions]
                        x, y = examples[rows].astype(np.float64), np.asarray(clients.labels)[rows]
                        gradient = numpy_gradient(mine, x, y)
                        mine = {n: mine[n] - LR * gradient[n] for n in w}
                    weight = 1.0 if weighting == "plain" else float(own[k])
                    total = {n: total[n] + weight * mine[n] for n in w}
                    weights += weight
                edge = {n: total[n] / weights for n in w}
            weight = 1.0 if weighting == "plain" else float(sum(own[k] for k in members))
            mean = {n: mean[n] + weight * edge[n] for n in w}
            everything += weight
        w = {n: mean[n] / everything for n in w}
    algo = build(fp.mesh.make(clients=2), edges(*sizes), edge_rounds, 6, weighting=weighting)
    state, info, _ = fp.run.simulate(algo, MODEL, clients, clients, 2, seed=SEED)
    for layer, names in (("Dense_0", ("W1", "b1")), ("Dense_1", ("W2", "b2"))):
        np.testing.assert_allclose(state.params[layer]["kernel"], w[names[0]], atol=1e-5)
        np.testing.assert_allclose(state.params[layer]["bias"], w[names[1]], atol=1e-5)
    np.testing.assert_array_equal(info.clients, 6 * edge_rounds)


@pytest.mark.parametrize("tiers", [edges(25), edges(5, 5, 5, 5, 5)], ids=["one", "five-equal"])
def test_one_edge_round_of_equal_edges_is_the_flat_round(tiers):
    """The mean over equal edges of their means is the mean over all; any layout of devices."""
    layout = fp.mesh.make(clients=2)
    flat = fp.rounds.build(
        local=sgd(), uplink=link.ideal(), server=fp.server.average(), layout=layout,
        participation=fp.server.full(25), weighting="plain",
    )  # fmt: skip
    expected = fp.run.simulate(flat, MODEL, CLIENTS, CLIENTS, 2)[0].params
    found = fp.run.simulate(build(layout, tiers, 1, 25), MODEL, CLIENTS, CLIENTS, 2)[0].params
    assert distance(found, expected) < 1e-6


def gains(root, t, ids):
    """Power gains at 100 m to 200 m with fading."""
    return fp.channel.orthogonal_gains(root, t, ids, 100.0 + 4.0 * ids.astype(jnp.float32), 4)


DENSE = prune.named("Dense_0")
D = sum(leaf.size for leaf in leaves(MODEL.init(jax.random.key(0))["Dense_0"]) if leaf.ndim == 2)


def wireless(tiers, threshold=3e-3, scheme="optimal", **options):
    work = resources.hierarchical(160, D, 10, 1000.0, 32)
    return link.ofdma(
        work, gains, threshold=threshold, frequency=3e9, power=0.6, noise=1e-14, bandwidth=2e6,
        edge=tiers.of, edges=tiers.servers, scheme=scheme, rho_max=0.95,
        **options,
    )  # fmt: skip


def pruned(uplink, least=0.1):
    """Devices prune as much as they were told, and are averaged over the holders of each weight."""
    return {
        "local": local.own_masks(
            sgd(1), sgd(2), prune.selection(prunable=DENSE, down=True), local.allocated,
            local.change, rewind=True,
        ),
        "uplink": link.holders(uplink, link.ideal(), least),
    }  # fmt: skip


@pytest.mark.optimized
def test_bitwise_on_any_number_of_devices_with_allocation():
    """Five edges of five devices, pruning as allocated, means over holders, three cloud rounds."""
    tiers = edges(5, 5, 5, 5, 5)

    def final(devices):
        layout = fp.mesh.make(clients=devices, reduction="strict")
        algo = build(layout, tiers, 2, 25, **pruned(wireless(tiers)))
        return fp.run.simulate(algo, MODEL, CLIENTS, CLIENTS, 2)[:2]

    first, info = final(1)
    assert np.isfinite(np.concatenate([v.ravel() for v in leaves(first.params)])).all()
    assert (np.asarray(info.cost.seconds) > 0).all()
    for devices in (2, 4, 8):
        state, other = final(devices)
        assert same(state.params, first.params)
        # The bill is no part of the state; its last bit depends on what XLA fuses.
        assert same(other._replace(cost=None), info._replace(cost=None))
        np.testing.assert_allclose(other.cost.energy, info.cost.energy, rtol=1e-6)
        np.testing.assert_allclose(other.cost.seconds, info.cost.seconds, rtol=1e-6)


def test_devices_prune_as_they_are_told_and_are_in_time():
    """Allocation by edge, the masks' counts, and the bill, recomputed in float64."""
    tiers = edges(4, 1, 6)
    uplink = wireless(tiers)
    key, ids = jax.random.key(3), jnp.arange(11)
    air = uplink.prepare(Cohort(key, jnp.int32(5), ids))
    ratio, seconds = np.asarray(air.ratio, np.float64), np.asarray(air.state.seconds)
    inside = (ratio > 1e-6) & (ratio < 0.95 - 1e-6)
    assert inside.any()
    np.testing.assert_allclose(seconds[inside], 3e-3, rtol=1e-5)
    assert seconds.max() < 3e-3 * (1 + 1e-5)
    rate = 2e6 * np.log2(1 + np.asarray(gains(key, jnp.int32(5), ids), np.float64) * 0.6 / 1e-14)
    cycles = 10 * 1000.0 * (160 + (1 - ratio) * D)
    bits = 32 * (160 + (1 - ratio) * D)
    share = bits / (rate * (seconds - cycles / 3e9))
    for g in range(3):  # every server's band is used up, and not more
        assert share[np.asarray(tiers.of)[:11] == g].sum() < 1 + 1e-4
    np.testing.assert_allclose(air.state.uses, bits / (rate / 2e6), rtol=1e-4)
    train = pruned(uplink)["local"]
    for k in (0, 4, 7):
        client = federation(11).client(k)._replace(ratio=air.ratio[k])
        held = jax.jit(train)(key, jnp.int32(0), MODEL.init(key), None, client).held
        assert int(held["Dense_0"]["kernel"].sum()) == int(np.floor(D * (1 - ratio[k]) + 1e-4))
        assert held["Dense_1"]["kernel"].all()


def test_equal_shares_without_pruning_take_longer():
    tiers = edges(4, 1, 6)
    air = wireless(tiers, scheme="unpruned").prepare(
        Cohort(jax.random.key(3), jnp.int32(5), jnp.arange(11))
    )
    assert not np.asarray(air.ratio).any()
    assert float(air.state.seconds.max()) > 3e-3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_server_without_devices_changes_no_bill(scheme):
    cohort = Cohort(jax.random.key(3), jnp.int32(5), jnp.arange(11))
    two, one = (wireless(edges(*n), scheme=scheme).prepare(cohort) for n in ((0, 11), (11,)))
    assert np.isfinite(np.asarray(one.state.seconds)).any()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), two, one)


def test_noise_of_the_share_alone():
    """Same allocation; the bill with R = b B log2(1 + g p / (b sigma^2)), in float64."""
    tiers, args = edges(4, 1, 6), (jax.random.key(3), jnp.int32(5), jnp.arange(11))
    printed, physical = (wireless(tiers, scaled=s).prepare(Cohort(*args)) for s in (False, True))
    np.testing.assert_array_equal(physical.ratio, printed.ratio)
    ratio = np.asarray(printed.ratio, np.float64)
    snr = np.asarray(gains(*args), np.float64) * 0.6 / 1e-14
    computing = 10 * 1000.0 * (160 + (1 - ratio) * D) / 3e9
    bits = 32 * (160 + (1 - ratio) * D)
    share = bits / (2e6 * np.log2(1 + snr) * (np.asarray(printed.state.seconds) - computing))
    efficiency = np.log2(1 + snr / share)
    expected = computing + bits / (2e6 * share * efficiency)
    np.testing.assert_allclose(physical.state.seconds, expected, rtol=1e-4)
    np.testing.assert_allclose(physical.state.uses, bits / efficiency, rtol=1e-4)
    assert (np.asarray(physical.state.seconds) < np.asarray(printed.state.seconds)).any()


def test_seconds_are_the_slowest_edge_servers():
    """The round's time and energy against the uplink's own numbers, edge round by edge round."""
    tiers, edge_rounds = edges(4, 1, 6), 3
    uplink, clients = wireless(tiers, scheme="post_hoc"), federation(11)
    changed = pruned(uplink, least=0.05)
    algo = build(fp.mesh.make(clients=2), tiers, edge_rounds, 11, **changed)
    _, info, _ = fp.run.simulate(algo, MODEL, clients, clients, 1, seed=9)
    air = [
        uplink.prepare(Cohort(jax.random.key(9), jnp.int32(e), jnp.arange(11)))
        for e in range(edge_rounds)
    ]
    seconds = np.stack([a.state.seconds for a in air]).astype(np.float64)
    of = np.asarray(tiers.of)
    slowest = [seconds[:, of == g].max(1).sum() for g in range(3)]
    np.testing.assert_allclose(info.cost.seconds[0], max(slowest), rtol=1e-5)
    joules = np.stack([a.state.energy for a in air]).astype(np.float64).sum()
    np.testing.assert_allclose(info.cost.energy[0], joules, rtol=1e-5)
    # What was allocated, and what the devices kept and sent for it.
    ratio, share = (np.stack([getattr(a, n) for a in air]) for n in ("ratio", "share"))
    found = {name: float(v[0]) for name, v in info.allocation.items()}
    ends = {"low": np.min, "high": np.max}
    expected = {f"ratio_{e}": float(of(ratio)) for e, of in ends.items()}
    expected |= {f"share_{e}": float(of(share)) for e, of in ends.items()}
    assert found == pytest.approx(expected, rel=1e-5)
    assert found["ratio_low"] < found["ratio_high"]
    kept = np.round(D * (1 - ratio.astype(np.float64)))
    np.testing.assert_allclose(info.density["Dense_0/kernel"][0], (kept / D).mean(), atol=1 / D)
    assert set(info.density) == {"Dense_0/kernel", "Dense_1/kernel"}
    assert float(info.density["Dense_1/kernel"][0]) == 1.0
    rest = sum(leaf.size for leaf in leaves(MODEL.init(jax.random.key(0)))) - D
    np.testing.assert_allclose(info.sent[0], kept.sum() + ratio.size * rest, atol=ratio.size)


def test_a_server_that_hears_nobody_keeps_its_model():
    """Edge 1's devices have no examples: the result is that of the other edges alone."""
    clients, layout = federation(6), fp.mesh.make(clients=2)
    silent = clients._replace(size=clients.size.at[3].set(0))
    found, info, _ = fp.run.simulate(build(layout, edges(3, 1, 2), 2, 6), MODEL, silent, clients, 2)
    np.testing.assert_array_equal(info.clients, 5 * 2)
    # The others alone: client ids decide random numbers, so the silent one stays in the federation.
    two = Edges(jnp.asarray([0, 0, 0, 0, 1, 1]), 2)
    expected = fp.run.simulate(build(layout, two, 2, 6), MODEL, silent, clients, 2)[0]
    assert distance(found.params, expected.params) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("noisy", ["cloud", "uplink"])
@pytest.mark.parametrize("weighting", ["plain", "examples"])
def test_noise_of_either_link(noisy, weighting):
    """Variance of what a noisy link adds to the global model, against the report."""
    tiers, layout, clients = edges(4, 2), fp.mesh.make(clients=2), federation(6)

    def final(**changed):
        algo = build(layout, tiers, 1, 6, weighting=weighting, **changed)
        state, info, _ = fp.run.simulate(algo, MODEL, clients, clients, 1)
        return np.concatenate([v.ravel() for v in leaves(state.params)]), info

    exact, _ = final()
    found, info = final(**{noisy: link.over_the_air(5.0, "common")})
    error, variance = found - exact, float(info.cost.noise_variance[0])
    assert abs(error.mean()) < 5 * np.sqrt(variance / error.size)
    assert abs(error.var() - variance) < 5 * variance * np.sqrt(2 / error.size)
    sends = 1 if noisy == "cloud" else 2
    assert float(info.cost.channel_uses[0]) == sends * ((error.size + 1) // 2)


def test_schedules_count_cloud_rounds():
    """A learning rate that falls to zero after round 0 lets all of its edge rounds train."""
    clients, layout = federation(6), fp.mesh.make(clients=2)
    stops = local.sgd(
        MODEL, optax.sgd(LR), batch=BATCH, steps=STEPS, decay=lambda t: jnp.where(t < 1, 1.0, 0.0)
    )

    def final(train, rounds):
        algo = build(layout, edges(3, 3), 3, 6, local=train)
        return fp.run.simulate(algo, MODEL, clients, clients, rounds)[0].params

    one = final(sgd(), 1)
    for rounds in (1, 2):  # programs with and without a factor round differently
        assert distance(final(stops, rounds), one) < 1e-6


def test_configuration_reaches_the_allocation():
    """25 devices of hfl_adaptive: in time with allocated pruning, late and unpruned without."""
    config = hfl_adaptive.get_config("fast")
    network = fp.models.cnn(
        config.model.cnn.filters, config.model.cnn.kernel, config.model.cnn.hidden
    )

    def slowest(**values):
        changed = cfg.override(config, {k.replace("__", "."): v for k, v in values.items()})
        uplink = build_stages.uplink(changed, network)
        everyone = Cohort(jax.random.key(0), jnp.int32(0), jnp.arange(25))
        air = jax.jit(lambda: uplink.prepare(everyone))()
        return float(air.state[0].seconds.max()), np.asarray(air.ratio), air.state[0]

    for limit in (0.025, 0.04):
        seconds, ratio, _ = slowest(uplink__ofdma__time_limit=limit)
        np.testing.assert_allclose(seconds, limit, rtol=1e-5)
        assert ratio.min() > 0
    seconds, ratio, _ = slowest(uplink__ofdma__scheme="unpruned", pruning__schedule="none")
    assert seconds > 0.04
    assert not ratio.any()
    # What P2 prints. Here no limit binds, so its closed form is the optimum.
    _, best, _ = slowest()
    _, ratio, _ = slowest(uplink__ofdma__scheme="printed")
    np.testing.assert_allclose(ratio, best, rtol=1e-4)
    # One band for 25 devices is too little: all prune what they may, and end together.
    seconds, ratio, device = slowest(uplink__ofdma__bands="shared")
    np.testing.assert_allclose(ratio, 0.95, rtol=1e-6)
    assert seconds > 0.03
    np.testing.assert_allclose(device.seconds, seconds, rtol=1e-4)
    seconds, ratio, _ = slowest(uplink__ofdma__noise_of="share")
    assert seconds < 0.03 * (1 - 1e-4)
    np.testing.assert_allclose(ratio, best, rtol=1e-6)


TIERS = {
    "data.clients": 6,
    "local.steps": 1,
    "local.batch": 4,
    "pruning.schedule": "one_shot",
    "pruning.ratio": 0.5,
    "pruning.start": 1,
    "edges.servers": 3,
    "edges.rounds": 2,
    "edges.orthogonal.snr_db": 15.0,
    "edges.orthogonal.power": 0.3,
    "edges.orthogonal.bandwidth": 2e5,
}


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "bits"), [(0.0, 8), (2.5, 32)])
def test_configuration_bills_the_cloud(rate, bits):
    """Beside what the devices take, by hand: bits of the kept weights, uses, seconds, joules."""
    clients, layout = federation(6), fp.mesh.make(clients=1)
    shapes = [leaf.shape for leaf in leaves(MODEL.init(jax.random.key(0)))]
    kernels = sum(math.prod(shape) for shape in shapes if len(shape) == 2)
    biases = sum(math.prod(shape) for shape in shapes if len(shape) == 1)

    def bill(cloud, uplink):
        changes = {
            "edges.cloud": cloud,
            "edges.orthogonal.rate": rate,
            "edges.orthogonal.value_bits": bits,
        }
        config = cfg.override(cfg.Config(), {**TIERS, **changes, "uplink.link": uplink})
        cfg.validate(config)
        algorithm = build_stages.algorithm(config, MODEL, layout)
        return fp.run.simulate(algorithm, MODEL, clients, clients, 3)[1].cost

    sent = np.array([kernels, kernels // 2, kernels // 2]) + biases  # pruned from round 1 on
    header = 32 if bits < 32 else 0
    uses = 3 * np.ceil((bits * sent + header) / (rate or np.log2(1 + 10**1.5)))
    found = bill("orthogonal", "ideal")
    np.testing.assert_array_equal(found.channel_uses, uses)
    np.testing.assert_allclose(found.seconds, uses / 2e5, rtol=1e-6)
    np.testing.assert_allclose(found.energy, 0.3 * uses / 2e5, rtol=1e-6)
    if rate:
        both, devices = bill("orthogonal", "over_the_air"), bill("ideal", "over_the_air")
        np.testing.assert_allclose(both.channel_uses, uses + devices.channel_uses, rtol=1e-6)
        np.testing.assert_allclose(both.seconds, uses / 2e5 + devices.seconds, rtol=1e-6)
        assert (np.asarray(devices.seconds) > 0).all()


@pytest.mark.parametrize("experiment", [hfl_pruning, hfl_adaptive])
def test_experiments_build_with_traced_fields(experiment):
    """Every arm's round is built and traced, as ``run.program`` does; nothing is compiled."""
    config = experiment.get_config("fast")
    network = fp.models.cnn((4,), 3, (8,), input_shape=(8, 8, 1))
    clients, layout, key = federation(25), fp.mesh.make(), jax.random.key(0)
    traced = cfg.traced_paths(config)
    for arm in experiment.arms(config):
        cfg.validate(cfg.override(config, arm.overrides))
        static = {k: v for k, v in arm.overrides.items() if k not in traced}
        hyper = {"local.lr": 0.1, **{k: v for k, v in arm.overrides.items() if k in traced}}

        def final(hyper, key, static=static):
            changed = cfg.override(cfg.override(config, static), hyper)
            algorithm = build_stages.algorithm(changed, network, layout)
            state = algorithm.init(network.init(key))

            def one(*args):
                return jax.tree.map(lambda leaf: leaf[None], algorithm.step(*args))

            return fp.mesh.spread(one, layout, (False,) * 3)(key, state, clients)

        state, info = jax.eval_shape(final, hyper, key)
        assert state.params["head"]["Dense_0"]["kernel"].shape == (1, 64, 8)
        assert info.cost.seconds.shape == (1,)


def test_refuses():
    with pytest.raises(ValueError, match="edge_rounds=0"):
        build(fp.mesh.make(), edges(6), 0, 6)
    with pytest.raises(ValueError, match="weighting='size' is not one of"):
        build(fp.mesh.make(), edges(6), 1, 6, weighting="size")
    with pytest.raises(ValueError, match="scheme='best' is not one of"):
        wireless(edges(6), scheme="best")
