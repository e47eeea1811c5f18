"""Malformed calls: each is refused in one line that begins with the argument's name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import mlp

import fedprune as fp
from fedprune import (
    allocation,
    channel,
    check,
    coding,
    data,
    link,
    local,
    prune,
    resources,
    server,
    theory,
)
from fedprune.rounds import Edges, hierarchical

NAN, INF = float("nan"), float("inf")
MODEL, KEY, LAYOUT = mlp(), jax.random.key(0), fp.mesh.make(clients=1)
WEIGHTS = {"Dense_0": {"kernel": jnp.ones((2, 3))}}
WORK = resources.hierarchical(10, 20, steps=1, cycles=1.0, value_bits=32)
RATE = jnp.ones(2)
PROBLEM = allocation.problem(WORK, 1.0, RATE, 1e4)
LABELS = np.arange(20) % 4
ONES = np.ones(3)


def sgd(optimizer=None, model=MODEL, batch=4, steps=1, **options):
    return local.sgd(model, optimizer or optax.sgd(0.1), batch=batch, steps=steps, **options)


def flat(**changes):
    stages = {"local": sgd(), "uplink": link.ideal(), "server": server.average()}
    stages |= {"participation": server.full(3), "layout": LAYOUT}
    return fp.rounds.build(**stages | changes)


def tiers(**changes):
    stages = {"local": sgd(), "uplink": link.ideal(), "cloud": link.ideal()}
    stages |= {"server": server.average(), "participation": server.full(3), "layout": LAYOUT}
    stages |= {"edges": Edges(jnp.asarray([0, 0, 1]), 2), "edge_rounds": 1}
    return hierarchical.build(**stages | changes)


def own_masks(**changes):
    given = {"warm_up": sgd(), "train": sgd(), "select": prune.selection()}
    return local.own_masks(**given | {"sparsity": lambda t, client: 0.5} | changes)


def ofdma(**changes):
    given = {"gains": lambda root, t, ids: RATE, "threshold": 1.0, "frequency": 1.0, "power": 1.0}
    return link.ofdma(WORK, **given | {"noise": 1.0, "bandwidth": 1.0} | changes)


def bound(**changes):
    given = dict.fromkeys(("gap", "ratios", "rounds", "edge_rounds", "steps", "lr"), 1.0)
    given |= dict.fromkeys(("devices", "weights", "holders"), 1.0)
    return theory.hierarchical(**{"constants": theory.Constants(1.0, 1.0, 1.0)} | given | changes)


def personal_bound(**changes):
    given = dict.fromkeys(("gap", "ratios", "rounds", "shared_steps", "personal_steps"), 1.0)
    given |= dict.fromkeys(("shared_lr", "personal_lr", "devices", "weights", "holders"), 1.0)
    constants = theory.Constants(1.0, 1.0, 1.0)
    return theory.personalized(**{"shared": constants, "personal": constants} | given | changes)


def protected(**changes):
    return link.analog(10.0, link.Protection(**changes))


def scored(**changes):
    return prune.scheduled(**{"schedule": prune.constant(0.5)} | changes)


def stepwise(make=prune.iterative, **changes):
    return make(**{"ratio": 0.5, "start": 0, "every": 1, "steps": 2} | changes)


def left(**changes):
    given = dict.fromkeys(("shared_steps", "personal_steps", "shared_lr", "personal_lr"), 1.0)
    return theory.personalized_left(jnp.ones((2, 3)), jnp.ones(2), **given | changes)


def rate(share=1.0, gain=1.0, power=1.0, noise=1.0, bandwidth=1.0):
    return resources.rate(share, gain, power, noise, bandwidth)


def working(fixed=1, prunable=2, steps=1, cycles=1.0, value_bits=8, **rest):
    return resources.hierarchical(fixed, prunable, steps, cycles, value_bits, **rest)


def personal_work(personal=1, personal_steps=1):
    return resources.personalized(personal, 2, personal_steps, 1, 1.0, 8)


def energy(frequency=1.0, power=1.0, capacitance=1.0):
    return resources.energy(WORK, RATE, frequency, RATE, power, capacitance)


def teacher(model=MODEL, temperature=2.0, weight=1.0, form="printed"):
    return local.distillation(model, WEIGHTS, temperature, weight, form)


def layers(**changes):
    return coding.amplitudes(**{"energy": ONES, "sizes": ONES, "repeats": ONES} | changes)


def expansions(**changes):
    given = {"sensitivity": ONES, "energy": ONES, "sizes": np.ones(3, int), "budget": 9}
    return coding.expansions(**given | changes)


def power(**changes):
    return coding.power_iteration(lambda v: v, jnp.ones(3), **changes)


# (function, argument, malformed values)
CASES = [
    # channel
    (lambda v: channel.noise_to_signal(v, "complex"), "snr_db", [NAN, -INF, "10", None]),
    (lambda v: channel.block_fading(antennas=v), "antennas", [0, -1, 1.5, True]),
    (lambda v: channel.block_fading(rician=v), "rician", [-1.0, NAN]),
    (lambda v: channel.block_fading(csi_error=v), "csi_error", [-0.1, INF]),
    (
        lambda v: channel.block_fading(annulus=v),
        "annulus",
        [(0.0, 1.0), (2.0, 1.0), (1.0, INF), 5.0, (1.0, 2.0, 3.0)],
    ),
    (lambda v: channel.places(KEY, jnp.arange(2), v), "annulus", [(-1.0, 1.0), (2.0, 1.0)]),
    (lambda v: channel.path_gain(v), "distance", [0.0, -1.0, NAN]),
    (
        lambda v: channel.orthogonal_gains(KEY, 0, jnp.arange(2), RATE, v),
        "antennas",
        [0, 2.0],
    ),
    (lambda v: channel.budget_db(v, 1.0), "power", [0.0, -1.0, NAN]),
    (lambda v: channel.budget_db(1.0, v), "bandwidth", [0.0, INF]),
    (lambda v: channel.budget_db(1.0, 1.0, v), "noise_density_dbm", [NAN]),
    (channel.real_noise, "snr_db", [NAN, -INF]),
    (channel.real_power, "packing", ["imaginary"]),
    (lambda v: channel.slow_rayleigh(KEY, v), "csi_error", [-1.0, NAN]),
    (lambda v: channel.weight_deviation(RATE, v, 10.0), "repeats", [0, np.array([1, 0])]),
    (lambda v: channel.weight_deviation(RATE, 1, 10.0, v), "gain", [0.0, -1.0]),
    (channel.capacity, "snr", [-0.5, NAN]),
    (channel.ergodic_capacity, "snr", [0.0, -1.0]),
    (lambda v: channel.outage(v, 1.0), "rate", [0.0, -1.0, NAN]),
    (lambda v: channel.outage(1.0, v), "snr", [0.0, INF]),
    (lambda v: channel.fixed_rate(1.0, 1.0, v, jnp.abs), "symbols", [-1.0]),
    (lambda v: channel.adaptive_rate(1.0, 1.0, jnp.abs, v), "points", [0, 1.5]),
    (lambda v: channel.step_curve([1.0, 2.0], v), "accuracies", [[0.5, 190.0], [0.5, NAN]]),
    (lambda v: channel.step_curve(v, [0.1, 0.2]), "bits", [[2.0, 1.0], [-1.0, 1.0], [1.0]]),
    # link
    (link.over_the_air, "snr_db", [NAN, -INF, "10", [1.0, 2.0], 1j, KEY]),
    (lambda v: link.over_the_air(1.0, v), "normalisation", ["loud"]),
    (lambda v: link.over_the_air(1.0, packing=v), "packing", ["both"]),
    (lambda v: link.over_the_air(1.0, threshold=v), "threshold", [-1.0, NAN]),
    (lambda v: link.over_the_air(1.0, power=v), "power", [-1.0, INF]),
    (lambda v: link.over_the_air(1.0, bandwidth=v), "bandwidth", [0.0, -1.0]),
    (lambda v: link.over_the_air(1.0, repeats=v), "repeats", [0, -1, 1.5]),
    (link.orthogonal, "snr_db", [NAN, INF]),
    (lambda v: link.orthogonal(1.0, v), "rate", [0.0, -1.0, NAN]),
    (lambda v: link.orthogonal(1.0, None, v), "value_bits", [1, 33, 8.0]),
    (lambda v: link.orthogonal(1.0, threshold=v), "threshold", [-1.0]),
    (lambda v: link.orthogonal(1.0, power=v), "power", [-1.0]),
    (lambda v: link.orthogonal(1.0, bandwidth=v), "bandwidth", [0.0]),
    (lambda v: link.orthogonal(1.0, bitstream=v), "bitstream", ["zip"]),
    (link.analog, "snr_db", [NAN, -INF]),
    (lambda v: link.analog(1.0, fading=v), "fading", ["rician"]),
    (lambda v: link.analog(1.0, csi_error=v), "csi_error", [-1.0]),
    (lambda v: link.analog(1.0, power=v), "power", [-1.0]),
    (lambda v: link.analog(1.0, bandwidth=v), "bandwidth", [0.0]),
    (lambda v: protected(repeats=v, largest=4), "repeats", [0, 5, np.array([1, 8])]),
    (lambda v: protected(largest=v), "largest", [0, 1.0]),
    (lambda v: protected(gamma=v), "gamma", [0.0, -1.0, NAN]),
    (lambda v: protected(family=v), "family", ["turbo"]),
    (link.injection, "snr_db", [10.0]),
    (lambda v: link.injection(local.sandwich(0.0, 1.0), v), "repeats", [0]),
    (
        lambda v: link.injection(local.sandwich(0.0, 1.0), gain_floor=v),
        "gain_floor",
        [0.0, -0.1],
    ),
    (link.one_by_one, "link", [link.ideal(), 1.0]),
    (lambda v: link.holders(v, link.ideal(), 0.1), "values", [0.5, server.average()]),
    (lambda v: link.holders(link.ideal(), v, 0.1), "masks", [None]),
    (lambda v: link.holders(link.ideal(), link.ideal(), v), "least", [0.0, -1.0, NAN]),
    (lambda v: ofdma(gains=v), "gains", [1.0]),
    (lambda v: ofdma(threshold=v), "threshold", [0.0, -1.0, INF]),
    (lambda v: ofdma(frequency=v), "frequency", [0.0, -1.0]),
    (lambda v: ofdma(power=v), "power", [-1.0, NAN]),
    (lambda v: ofdma(noise=v), "noise", [0.0, -1.0]),
    (lambda v: ofdma(bandwidth=v), "bandwidth", [0.0]),
    (lambda v: ofdma(edges=v), "edges", [0, 1.0]),
    (lambda v: ofdma(rho_max=v), "rho_max", [0.0, 1.5, 90]),
    (lambda v: ofdma(scheme=v), "scheme", ["best"]),
    # prune
    (lambda v: stepwise(ratio=v), "ratio", [90, 1.1, -0.1, NAN, "half"]),
    (lambda v: stepwise(start=v), "start", [-1, 0.5]),
    (lambda v: stepwise(every=v), "every", [0, -1]),
    (lambda v: stepwise(steps=v), "steps", [0, 2.0]),
    (lambda v: stepwise(prune.linear, ratio=v), "ratio", [2.0]),
    (lambda v: stepwise(prune.cubic, ratio=v), "ratio", [-1.0]),
    (prune.constant, "ratio", [90, INF]),
    (lambda v: prune.one_shot(v, 1), "ratio", [1.5]),
    (prune.scheduled, "schedule", [0.9, lambda t: 2.0, lambda t: -0.5, lambda t: None]),
    (lambda v: scored(score=v), "score", [0.5]),
    (lambda v: scored(prunable=v), "prunable", ["Dense"]),
    (lambda v: scored(distribution=v), "distribution", ["row"]),
    (lambda v: scored(scope=v), "scope", ["edge"]),
    (
        lambda v: prune.structured(v, prune.chain),
        "schedule",
        [0.5, lambda t: 2.0, lambda t: jnp.float32(NAN)],
    ),
    (lambda v: prune.structured(prune.constant(0.5), v), "structure", ["chain"]),
    (lambda v: prune.selection()(WEIGHTS, v), "sparsity", [90, -0.1, NAN]),
    (lambda v: prune.neurons()(WEIGHTS, v), "sparsity", [1.5]),
    (lambda v: prune.neurons(v), "prunable", ["Dense"]),
    (lambda v: prune.top_k(WEIGHTS, v), "k", [-1, 7, 1.0]),
    # local
    (lambda v: sgd(v), "optimizer", [0.1, server.average(), optax.constant_schedule(0.1)]),
    (lambda v: sgd(model=v), "model", [0.1, link.ideal()]),
    (lambda v: sgd(batch=v), "batch", [0, -1, 4.0]),
    (lambda v: sgd(steps=v), "steps", [0, -1, 1.0]),
    (lambda v: sgd(steps=None, epochs=v), "epochs", [0, 1.5]),
    (lambda v: sgd(loss=v), "loss", ["mse"]),
    (lambda v: sgd(prox=v), "prox", [-1.0, NAN]),
    (lambda v: sgd(decay=v), "decay", [0.5]),
    (lambda v: sgd(microbatch=v), "microbatch", [-1, 0.5]),
    (lambda v: sgd(reception=v), "reception", [10.0]),
    (lambda v: sgd(distillation=v), "distillation", [1.0]),
    (lambda v: local.adjusted(v), "optimizer", [0.1]),
    (lambda v: local.adjusted(optax.sgd(0.1), clip=v), "clip", [0.0, -1.0, NAN]),
    (lambda v: local.adjusted(optax.sgd(0.1), v), "weight_decay", [-1.0, INF]),
    (local.decay.cosine, "rounds", [0, -1, 1.5]),
    (lambda v: local.decay.cosine(2, v), "end", [-0.1, NAN]),
    (lambda v: local.decay.exponential(2, v), "end", [0.0, -1.0]),
    (lambda v: local.decay.step(v, 0.5), "every", [0]),
    (lambda v: local.decay.step(1, v), "factor", [-0.5, INF]),
    (lambda v: teacher(v), "teacher", [0.5]),
    (lambda v: teacher(temperature=v), "temperature", [0.0, -2.0]),
    (lambda v: teacher(weight=v), "weight", [-1.0, NAN]),
    (lambda v: teacher(form=v), "form", ["soft"]),
    (lambda v: local.sandwich(v, 1.0), "low_db", [NAN, -INF]),
    (lambda v: local.sandwich(1.0, v), "high_db", [NAN]),
    (lambda v: local.share_of_high(v, 0.0, 1.0), "snr_db", [NAN]),
    (lambda v: local.interpolated(0.0, v), "high_db", [0.0, -1.0]),
    (lambda v: local.interpolated(0.0, 1.0, v), "bend", [0.0, 1.0, 2.0]),
    (lambda v: own_masks(warm_up=v), "warm_up", [3]),
    (lambda v: own_masks(train=v), "train", [None]),
    (lambda v: own_masks(select=v), "select", ["global"]),
    (lambda v: own_masks(sparsity=v), "sparsity", [0.5]),
    (lambda v: own_masks(importance=v), "importance", ["magnitude"]),
    (local.copies, "clients", [0, -1, 2.0]),
    (lambda v: local.parts(lambda path, leaf: True, v), "clients", [0]),
    (lambda v: local.parts(v, 3), "personal", ["Dense_1"]),
    # server
    (server.full, "clients", [-1, 0, 2.5, None]),
    (lambda v: server.uniform(5, v), "size", [0, -1, 6, 2.0]),
    (lambda v: server.uniform(v, 1), "clients", [0, 5.0]),
    (server.optimizer, "transform", [0.1, server.average()]),
    (server.average, "learning_rate", [-1.0, NAN, "1"]),
    (server.momentum, "learning_rate", [INF]),
    (lambda v: server.momentum(1.0, v), "momentum", [1.0, -0.1]),
    (lambda v: server.adam(0.1, v), "b1", [1.0, -0.1]),
    (lambda v: server.adam(0.1, 0.9, v), "b2", [1.5]),
    (lambda v: server.adam(0.1, epsilon=v), "epsilon", [-1.0, NAN]),
    # rounds
    (lambda v: flat(local=v), "local", [0.1, server.average()]),
    (lambda v: flat(uplink=v), "uplink", [10.0, link.analog(10.0)]),
    (lambda v: flat(server=v), "server", [1.0, optax.sgd(1.0)]),
    (lambda v: flat(participation=v), "participation", [5]),
    (lambda v: flat(pruner=v), "pruner", [0.9, prune.constant(0.9)]),
    (lambda v: flat(downlink=v), "downlink", [link.ideal()]),
    (lambda v: flat(personal=v), "personal", [3]),
    (lambda v: flat(weighting=v), "weighting", ["size"]),
    (lambda v: tiers(edge_rounds=v), "edge_rounds", [0, 1.0]),
    (lambda v: tiers(cloud=v), "cloud", [None]),
    (lambda v: tiers(edges=v), "edges", [[0, 0, 1]]),
    (lambda v: tiers(edges=Edges(v, 2)), "edges.of", [jnp.asarray([0, 0, 2]), jnp.ones(3)]),
    # resources
    (lambda v: rate(share=v), "share", [1.5, -0.1, 50]),
    (lambda v: rate(gain=v), "gain", [-1.0]),
    (lambda v: rate(power=v), "power", [-1.0, NAN]),
    (lambda v: rate(noise=v), "noise", [0.0, -1.0]),
    (lambda v: rate(bandwidth=v), "bandwidth", [0.0]),
    (resources.watts, "power_dbm", [NAN, "23"]),
    (lambda v: working(fixed=v), "fixed_weights", [-1, 1.5]),
    (lambda v: working(prunable=v), "prunable_weights", [-1]),
    (lambda v: working(steps=v), "steps", [-1, NAN]),
    (lambda v: working(cycles=v), "cycles", [-1.0, NAN]),
    (lambda v: working(value_bits=v), "value_bits", [0, -8]),
    (lambda v: working(warm_steps=v), "warm_steps", [-1.0]),
    (lambda v: working(payload=v), "payload", ["zip"]),
    (lambda v: personal_work(personal=v), "personal_weights", [-1]),
    (lambda v: personal_work(personal_steps=v), "personal_steps", [-1]),
    (lambda v: resources.compute_seconds(WORK, RATE, v), "frequency", [0.0, -1.0]),
    (lambda v: resources.uplink_seconds(WORK, RATE, v), "rate", [np.array([-1.0, 1.0])]),
    (lambda v: energy(frequency=v), "frequency", [0.0]),
    (lambda v: energy(power=v), "power", [-1.0]),
    (lambda v: energy(capacitance=v), "capacitance", [-1.0, NAN]),
    # allocation
    (lambda v: allocation.problem(WORK, v, RATE, 1.0), "frequency", [0.0, -1.0]),
    (lambda v: allocation.problem(WORK, 1.0, v, 1.0), "rate", [-RATE, RATE * NAN]),
    (lambda v: allocation.problem(WORK, 1.0, RATE, v), "threshold", [0.0, -1.0, NAN]),
    (
        lambda v: allocation.problem(WORK._replace(prunable_bits=v), 1.0, RATE, 1.0),
        "prunable_bits",
        [0.0],
    ),
    (lambda v: allocation.optimal(PROBLEM, v), "rho_max", [0.0, 1.5, 90]),
    (lambda v: allocation.equal(PROBLEM, v), "rho_max", [-0.5]),
    (lambda v: allocation.clipped_form(PROBLEM, v), "rho_max", [2.0]),
    (lambda v: allocation.least_threshold(PROBLEM, v), "rho_max", [NAN]),
    (lambda v: allocation.by_edge(PROBLEM, jnp.zeros(2, jnp.int32), v), "edges", [0]),
    # coding
    (coding.repetition, "times", [0, -1, 2.0]),
    (lambda v: coding.repetition(1, v), "decoder", ["map"]),
    (lambda v: coding.repetition_error(v, 1), "variance", [-1.0, NAN]),
    (lambda v: coding.repetition_error(1.0, v), "times", [0]),
    (lambda v: coding.repetition_error(1.0, 1, v), "decoder", ["map"]),
    (coding.spiral, "gamma", [0.0, -1.0, NAN]),
    (lambda v: coding.spiral(1.0, v), "levels", [0, 1.5]),
    (lambda v: coding.spiral(1.0, limit=v), "limit", [0.0, NAN]),
    (lambda v: coding.spiral(1.0, points=v), "points", [1]),
    (coding.best_gamma, "snr_db", [NAN]),
    (lambda v: coding.spiral_error(1.0, v), "gamma", [0.0]),
    (lambda v: coding.expansion("repetition", v, 2), "times", [0, 3]),
    (lambda v: coding.expansion("repetition", 1, v), "largest", [0]),
    (lambda v: coding.expansion(v, 1, 2), "family", ["turbo"]),
    (lambda v: layers(energy=v), "energy", [-ONES]),
    (lambda v: layers(repeats=v), "repeats", [0 * ONES]),
    (lambda v: layers(power=v), "power", [-1.0]),
    (lambda v: layers(sensitivity=v), "sensitivity", [0 * ONES]),
    (lambda v: expansions(sensitivity=v), "sensitivity", [-ONES, ONES * NAN]),
    (lambda v: expansions(sizes=v), "sizes", [ONES, np.zeros(3, int)]),
    (lambda v: expansions(budget=v), "budget", [0, 2, 9.5]),
    (lambda v: expansions(largest=v), "largest", [0]),
    (lambda v: coding.loss_sensitivity(KEY, jnp.abs, WEIGHTS, WEIGHTS, v), "draws", [0]),
    (lambda v: power(tolerance=v), "tolerance", [-1.0, NAN]),
    (lambda v: power(products=v), "products", [0, 1.5]),
    (lambda v: coding.lanczos(lambda v: v, RATE, products=v), "products", [0]),
    # data
    (data.iid, "clients", [0, -1, 2.5]),
    (lambda v: data.dirichlet(2, v), "alpha", [0.0, -1.0, NAN, INF]),
    (lambda v: data.label_k(2, v), "classes_per_client", [0, 1.5]),
    (lambda v: data.shards(2, v), "shards_per_client", [0, 0.5]),
    (lambda v: data.natural(LABELS, LABELS, v), "clients", [0, 5, 4.0]),
    # theory
    (lambda v: bound(rounds=v), "rounds", [0, -1.0]),
    (lambda v: bound(lr=v), "lr", [0.0, NAN]),
    (lambda v: bound(gap=v), "gap", [-1.0]),
    (lambda v: bound(ratios=v), "ratios", [-0.5]),
    (lambda v: bound(holders=v), "holders", [-1]),
    (
        lambda v: bound(constants=theory.Constants(v, 1.0, 1.0)),
        "constants.smoothness",
        [-1.0, INF],
    ),
    (lambda v: bound(form=v), "form", ["exact"]),
    (lambda v: personal_bound(shared_lr=v), "shared_lr", [0.0]),
    (lambda v: personal_bound(weights=v), "weights", [-1]),
    (lambda v: personal_bound(holders=v), "holders", [NAN]),
    (lambda v: left(personal_steps=v), "personal_steps", [0]),
    (lambda v: left(form=v), "form", ["exact"]),
]
CALLS = [(call, name, value) for call, name, values in CASES for value in values]


@pytest.mark.parametrize(
    ("call", "name", "value"), CALLS, ids=[f"{name}-{i}" for i, (_, name, _) in enumerate(CALLS)]
)
def test_malformed_calls_are_refused(call, name, value):
    with pytest.raises((TypeError, ValueError)) as refused:
        call(value)
    message = str(refused.value)
    assert message.startswith(name), message
    assert "\n" not in message
    assert len(message) < 250


def test_as_many_calls_as_promised():
    assert len(CALLS) >= 170


# What is accepted by design, with the reason.
ACCEPTED = {
    "an infinite SNR is a channel without noise": lambda: link.over_the_air(INF),
    "no power is silence": lambda: link.over_the_air(10.0, power=0.0),
    "an infinite limit is none": lambda: local.adjusted(optax.sgd(0.1), clip=INF),
    "an infinite range is all weights": lambda: coding.spiral(1.0, limit=INF),
    "a ratio of 1 leaves nothing": lambda: prune.constant(1.0),
    "whole numbers of NumPy": lambda: server.uniform(np.int64(5), np.int32(3)),
    "whole numbers of JAX": lambda: prune.one_shot(0.5, jnp.int32(2)),
    "a whole number is a number": lambda: prune.constant(1),
    "servers keep their state, and schedules count in it": lambda: server.average(
        optax.constant_schedule(0.1)
    ),
    "equal ends of a range are one SNR": lambda: local.sandwich(5.0, 5.0),
    "nothing is trained in no step": lambda: personal_work(personal_steps=0),
    "nobody holds a weight: the bound is infinite": lambda: bound(holders=0),
    "closed forms leave the limits of shares kept, as printed": lambda: resources.seconds(
        WORK, jnp.asarray([-0.1, 1.1]), 1.0, RATE
    ),
}


@pytest.mark.parametrize("reason", list(ACCEPTED))
def test_accepted_by_design(reason):
    ACCEPTED[reason]()


def test_tracers_pass():
    """What is not known while a program is built is not checked, whatever it turns out to be."""

    def build(v):
        i = v.astype(jnp.int32)
        link.over_the_air(v, threshold=v, power=v, repeats=i)
        link.analog(v, link.Protection(i, "spiral", 4, v))
        scored(schedule=stepwise(ratio=v, start=i, every=i, steps=i))
        scored(schedule=lambda t: v)
        sgd(local.adjusted(optax.sgd(v), v, v), prox=v, decay=local.decay.exponential(i, v))
        local.interpolated(v, v, v)
        server.adam(v, v, v, v)
        check.numbers("list", [1.0, v])
        return v

    jax.make_jaxpr(build)(jnp.float32(-5.0))


def test_messages():
    def message(call, *args, **options):
        with pytest.raises((TypeError, ValueError)) as refused:
            call(*args, **options)
        return f"{type(refused.value).__name__} {refused.value}"

    assert message(check.number, "a", 90, 0, 1) == (
        "ValueError a=90: must be a finite number from 0 to 1"
    )
    assert message(check.number, "a", NAN) == "ValueError a=nan: must be a finite number"
    assert message(check.number, "a", True) == "TypeError a=True: must be a finite number"
    assert (
        message(check.whole, "a", 2.0, 1) == "TypeError a=2.0: must be a whole number, at least 1"
    )
    assert message(check.numbers, "a", np.array([[1, 2], [0, 3]]), above=0) == (
        "ValueError a[1, 0]=0: must be finite numbers, above 0"
    )
    assert message(check.number, "a", -INF, 0, infinite=True) == (
        "ValueError a=-inf: must be a number, at least 0"
    )
    assert message(check.function, "a", 0.5) == "TypeError a=0.5: must be a function"
    assert message(flat, server=optax.sgd(1.0)).endswith("must be fedprune's Server")
