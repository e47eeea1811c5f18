"""Local training's options against NumPy loops and values by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import federation, mlp

import fedprune as fp
from fedprune import build, rng
from fedprune import config as cfg
from fedprune.types import Model

STEPS, BATCH, LR = 4, 5, 0.2
KEY = jax.random.key(7)
# A network whose loss is its one output, x @ kernel + bias: gradients are means of inputs.
SHAPE, D = (2, 3, 1), 6
LINEAR = Model(
    lambda key: {"kernel": jnp.linspace(-1.0, 1.0, D)[:, None], "bias": jnp.full((1,), 0.5)},
    lambda p, x: (x.reshape(x.shape[0], -1) @ p["kernel"])[:, 0] + p["bias"],
)


def own_loss(logits, labels):
    return logits


def train(optimizer, t=0, mask=None, **options):
    """(delta, reported loss) of client 1."""
    client = federation(3, shape=SHAPE).client(1)
    local = fp.local.sgd(LINEAR, optimizer, batch=BATCH, steps=STEPS, loss=own_loss, **options)
    return local(KEY, jnp.int32(t), LINEAR.init(KEY), mask, client)[:2]


def numpy_train(mu=0.0, weight_decay=0.0, clip=np.inf, momentum=0.0, factor=1.0):
    """The same in float64: (delta, mean loss)."""
    clients = federation(3, shape=SHAPE)
    size, rows = int(clients.size[1]), np.asarray(clients.rows)[1]
    w0 = {k: np.asarray(v, np.float64) for k, v in LINEAR.init(KEY).items()}
    w, velocity, losses = dict(w0), dict.fromkeys(w0, 0.0), []
    for i in range(STEPS):
        draw = jax.random.randint(rng.stream(KEY, "batch", i), (BATCH,), 0, size)
        x = np.asarray(clients.examples, np.float64)[rows[np.asarray(draw)]].reshape(BATCH, D)
        losses.append((x @ w["kernel"]).mean() + w["bias"][0])
        g = {"kernel": x.mean(0)[:, None], "bias": np.ones(1)}
        g = {k: g[k] + mu * (w[k] - w0[k]) for k in g}
        norm = np.sqrt(sum((v**2).sum() for v in g.values()))
        g = {k: v * min(1.0, clip / norm) for k, v in g.items()}
        g["kernel"] = g["kernel"] + weight_decay * w["kernel"]
        velocity = {k: momentum * velocity[k] + g[k] for k in g}
        w = {k: w[k] - factor * LR * velocity[k] for k in g}
    return {k: w[k] - w0[k] for k in w}, np.mean(losses)


def agree(found, expected):
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6)


CASES = {
    "plain": {},
    "prox": {"mu": 1.5},
    "weight decay": {"weight_decay": 0.7},
    "clip": {"clip": 0.8},
    "clip that seldom binds": {"clip": 100.0},
    "all": {"mu": 2.0, "weight_decay": 0.3, "clip": 1.2, "momentum": 0.9},
}


@pytest.mark.parametrize("name", list(CASES))
def test_options_equal_a_numpy_loop(name):
    """Also with every number traced, and only the loss without the proximal term is reported."""
    case = CASES[name]
    expected, loss = numpy_train(**case)

    def run(v):
        optimizer = optax.sgd(LR, v.get("momentum"))
        optimizer = fp.local.adjusted(optimizer, v.get("weight_decay"), v.get("clip"))
        return train(optimizer, prox=v.get("mu"))

    found, reported = jax.jit(lambda: run(case))()
    agree(found, expected)
    np.testing.assert_allclose(reported, loss, rtol=1e-5)
    if case:
        traced = {k: jnp.array([v, 0.5 * v]) for k, v in case.items()}
        found, _ = jax.jit(jax.vmap(run))(traced)
        agree(jax.tree.map(lambda v: v[0], found), expected)
        agree(
            jax.tree.map(lambda v: v[1], found),
            numpy_train(**{k: v / 2 for k, v in case.items()})[0],
        )


@pytest.mark.parametrize("name", ["plain", "all"])
def test_parts_of_a_batch_add_up(name):
    """BATCH has no divisors but 1, which the parts then have."""
    given = CASES[name]
    optimizer = fp.local.adjusted(
        optax.sgd(LR, given.get("momentum")),
        weight_decay=given.get("weight_decay"),
        clip=given.get("clip"),
    )
    found, reported = jax.jit(lambda: train(optimizer, prox=given.get("mu"), microbatch=2))()
    expected, mean = numpy_train(**given)
    agree(found, expected)
    np.testing.assert_allclose(reported, mean, rtol=1e-4)


def test_parts_of_the_last_batch_of_an_epoch():
    """A part counts as many examples as it has, be it none."""
    clients, model = federation(3), mlp()

    def run(size):
        local = fp.local.sgd(model, optax.sgd(LR), batch=8, epochs=2, microbatch=size)
        return local(KEY, jnp.int32(0), model.init(KEY), None, clients.client(0))

    assert int(clients.size[0]) % 8
    whole, parts = jax.jit(lambda: run(8))(), jax.jit(lambda: run(2))()
    for a, b in zip(jax.tree.leaves(parts[:2]), jax.tree.leaves(whole[:2]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_sizes_of_parts():
    """28 x 28 images and filters (32, 64): far more activations than weights; an MLP: far fewer."""
    size = lambda model: fp.local.microbatch_size(
        model,
        jax.eval_shape(model.init, KEY),
        jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32),
    )
    assert size(fp.models.mlp()) >= 32
    assert 4 <= size(fp.models.cnn(filters=(32, 64), kernel=5, hidden=(128,))) <= 32


def test_running_statistics_do_not_count_in_proximal_term_and_clipping():
    """They move by 1 a step, and the weights as if there were none."""

    def with_statistics(params, x):
        mean = params["statistics"]["mean"] + 1.0
        return LINEAR.apply(params, x), {**params, "statistics": {"mean": mean}}

    model = Model(LINEAR.init, LINEAR.apply, with_statistics)
    client = federation(3, shape=SHAPE).client(1)
    start = {**LINEAR.init(KEY), "statistics": {"mean": jnp.ones(3)}}
    optimizer = fp.local.adjusted(optax.sgd(LR), clip=1.2)
    local = fp.local.sgd(model, optimizer, batch=BATCH, steps=STEPS, loss=own_loss, prox=2.0)
    delta = local(KEY, jnp.int32(0), start, None, client).delta
    np.testing.assert_allclose(delta["statistics"]["mean"], STEPS, rtol=1e-6)
    agree(delta, numpy_train(mu=2.0, clip=1.2)[0])


def test_an_infinite_limit_does_not_clip():
    optimizer = fp.local.adjusted(optax.sgd(LR), clip=jnp.float32(np.inf))
    agree(train(optimizer)[0], numpy_train()[0])


def test_pruned_weights_stay_zero_with_every_option():
    kept = jnp.array([True, False, True, False, False, True])[:, None]
    mask = {"kernel": kept, "bias": jnp.array([True])}
    optimizer = fp.local.adjusted(optax.sgd(LR, 0.9), weight_decay=0.5, clip=0.5)
    client = federation(3, shape=SHAPE).client(1)
    start = fp.tree.apply_mask(mask, LINEAR.init(KEY))
    local = fp.local.sgd(
        LINEAR, optimizer, batch=BATCH, steps=STEPS, loss=own_loss, prox=0.7,
        decay=fp.local.decay.cosine(10, 0.1),
    )  # fmt: skip
    delta = local(KEY, jnp.int32(3), start, mask, client).delta
    assert not np.asarray(delta["kernel"])[~np.asarray(kept)].any()
    assert np.asarray(delta["kernel"])[np.asarray(kept)].all()


# Learning rates over the rounds -----


def test_decays_by_hand():
    decay = fp.local.decay
    rounds = jnp.array([0, 1, 2, 3, 4, 9], jnp.int32)

    def values(fn):
        return np.stack([fn(t) for t in rounds])

    root = np.sqrt(0.5)
    half = [1, 0.55 + 0.45 * root, 0.55, 0.55 - 0.45 * root, 0.1, 0.1]
    np.testing.assert_allclose(values(decay.cosine(5, 0.1)), half, rtol=1e-5)
    powers = [1, 0.5, 0.25, 0.125, 0.0625, 0.0625]
    np.testing.assert_allclose(values(decay.exponential(5, 0.0625)), powers, rtol=1e-5)
    np.testing.assert_allclose(values(decay.step(2, 0.1)), [1, 1, 0.1, 0.1, 0.01, 1e-4], rtol=1e-5)
    for fn in (decay.cosine(1, 0.5), decay.exponential(1, 0.5)):
        assert float(fn(jnp.int32(0))) == 1.0
    ends = jnp.array([0.1, 0.5])
    both = jax.vmap(lambda end, n: decay.exponential(n, end)(jnp.int32(2)))(ends, jnp.array([5, 3]))
    np.testing.assert_allclose(both, [0.1**0.5, 0.5], rtol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_decay_is_a_factor_on_the_learning_rate(momentum):
    schedule = fp.local.decay.step(2, 0.5)
    optimizer = fp.local.adjusted(optax.sgd(LR, momentum), weight_decay=0.3)
    for t, factor in ((1, 1.0), (2, 0.5), (5, 0.25)):
        found, _ = train(optimizer, t, decay=schedule)
        agree(found, numpy_train(weight_decay=0.3, momentum=momentum, factor=factor)[0])


RAMP = tuple(0.1 * (n + 1) for n in range(3 * STEPS))


def ramp(n):
    """A schedule that has another value in every step of three rounds."""
    return jnp.asarray(RAMP, jnp.float32)[n]


SCHEDULED = {
    "sgd": (optax.sgd(ramp), None),
    "injected": (optax.inject_hyperparams(optax.sgd)(ramp), None),
    "chained": (optax.chain(optax.identity(), optax.scale_by_schedule(lambda n: -ramp(n))), None),
    "masked": (optax.masked(optax.sgd(ramp), {"kernel": True, "bias": True}), None),
    "momentum": (optax.sgd(ramp, 0.5), lambda i: sum(0.5**j for j in range(i + 1))),
    # Of a constant gradient Adam's corrected moments are 1 from the first step of a round on; they
    # are not if their count, too, is that of all rounds.
    "adam": (optax.adam(ramp, eps=0.0), None),
}


@pytest.mark.parametrize("name", list(SCHEDULED))
def test_schedules_of_an_optimizer_go_on_over_the_rounds(name):
    optimizer, velocity = SCHEDULED[name]
    for t in range(3):
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
            delta, _ = train(optimizer, t)
        rates = RAMP[t * STEPS : (t + 1) * STEPS]
        moved = sum(r * (velocity(i) if velocity else 1.0) for i, r in enumerate(rates))
        np.testing.assert_allclose(delta["bias"], -moved, rtol=1e-5)  # its gradient is 1


def test_a_scheduled_weight_decay_goes_on():
    decay = optax.add_decayed_weights(lambda n: jnp.where(n < STEPS, 0.0, 0.5))
    optimizer = optax.chain(decay, optax.sgd(LR))
    agree(train(optimizer, 0)[0], train(optax.sgd(LR), 0)[0])
    constant = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(LR))
    agree(train(optimizer, 1)[0], train(constant, 1)[0])


def test_schedules_count_the_steps_of_epochs():
    """With epochs a round has the steps of the client with most examples."""
    clients = federation(3, shape=SHAPE)
    batches = -(-clients.rows.shape[1] // BATCH)
    client = clients.client(1)
    own = -(-int(client.size) // BATCH)
    rates = np.arange(1.0, 1.0 + 4 * 2 * batches)
    schedule = lambda n: jnp.asarray(rates, jnp.float32)[n]
    options = {"batch": BATCH, "epochs": 2, "loss": own_loss}
    local = fp.local.sgd(LINEAR, optax.sgd(schedule), **options)
    for t in (0, 3):
        delta = local(KEY, jnp.int32(t), LINEAR.init(KEY), None, client).delta
        firsts = [(2 * t + e) * batches for e in range(2)]
        moved = sum(rates[first : first + own].sum() for first in firsts)
        np.testing.assert_allclose(delta["bias"], -moved, rtol=1e-5)


def test_an_optimizer_with_random_numbers_of_its_own_is_refused():
    noisy = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.sgd(LR))
    with pytest.raises(ValueError, match="the same in every round and client"):
        train(noisy)


def final(config, clients, rounds):
    """Global model after some rounds of a configuration with an ideal uplink."""
    model, layout = mlp(), fp.mesh.make(clients=2)
    config = cfg.override(
        config, {"data.clients": clients.size.shape[0], "uplink.link": "ideal", "local.batch": 4}
    )
    algorithm = build.algorithm(config, model, layout)
    return fp.run.simulate(algorithm, model, clients, clients, rounds)[0].params


def test_rounds_give_their_number_to_the_decay():
    """A factor of 0 from round 2 on freezes the model after the two rounds 0 and 1."""
    clients = federation(4)
    values = {"local.schedule": "step", "local.schedule_every": 2, "local.schedule_factor": 0.0}
    config = cfg.override(cfg.Config(), values)
    one, two, four = (jax.tree.leaves(final(config, clients, n)) for n in (1, 2, 4))
    assert all((a == b).all() for a, b in zip(two, four, strict=True))
    assert any((a != b).any() for a, b in zip(one, two, strict=True))


# Configurations -----


def test_names_of_the_configuration():
    for values, message in (
        ({"local.schedule": "exponential", "local.schedule_end": 0.0}, "local.schedule_end=0.0"),
        (
            {"model.name": "resnet18", "model.resnet.groups": 48},
            "model.resnet.widths=(64, 128, 256, 512): must",
        ),
    ):
        with pytest.raises(cfg.ConfigError) as error:
            cfg.validate(cfg.override(cfg.Config(), values))
        assert message in str(error.value)


@pytest.mark.slow
def test_the_configuration_reaches_training():
    """Each field moves the model away from the default, and to where the library's call does."""
    clients, rounds = federation(4), 2
    base = final(cfg.Config(), clients, rounds)
    model, layout = mlp(), fp.mesh.make(clients=2)

    def by_hand(prox=None, weight_decay=None, clip=None, decay=None):
        optimizer = fp.local.adjusted(optax.sgd(0.1, 0.9), weight_decay, clip)
        algorithm = fp.rounds.build(
            local=fp.local.sgd(model, optimizer, batch=4, steps=5, prox=prox, decay=decay),
            uplink=fp.link.ideal(),
            participation=fp.server.full(4),
            server=fp.server.average(),
            layout=layout,
        )
        return fp.run.simulate(algorithm, model, clients, clients, rounds)[0].params

    cases = (
        ({}, {}),
        ({"local.prox": 1.0}, {"prox": 1.0}),
        ({"local.weight_decay": 0.1, "local.clip": 0.5}, {"weight_decay": 0.1, "clip": 0.5}),
        (
            {"local.schedule": "cosine", "local.schedule_end": 0.3, "run.rounds": 2},
            {"decay": lambda t: jnp.where(t == 0, 1.0, 0.3)},
        ),
    )
    for values, options in cases:
        found = final(cfg.override(cfg.Config(), values), clients, rounds)
        expected = by_hand(**options)
        for a, b, c in zip(*map(jax.tree.leaves, (found, expected, base)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
            assert not values or np.abs(a - c).max() > 1e-4
