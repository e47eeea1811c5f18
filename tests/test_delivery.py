"""P3's link as a downlink and as noise in training; distillation; networks for a range of SNRs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import distance, federation, leaves, mlp, same
from scipy import special

import fedprune as fp
from fedprune import bill, build, channel, coding, link, local, rng
from fedprune import config as cfg
from fedprune.types import Arrival, Cohort, Downlink, Model, Sender

SNR = 6.0
SIGMA = np.sqrt(10 ** (-SNR / 10) / 2)


def model_and_mask(seed=0):
    """Two kernels of different scales with biases, and a mask of half of the first one's units."""
    gen = np.random.default_rng(seed)
    params = {
        "a": {"kernel": gen.normal(0, 0.2, (30, 8)), "bias": gen.normal(size=8)},
        "b": {"kernel": gen.normal(0, 2.0, (8, 5)), "bias": gen.normal(size=5)},
    }
    params = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), params)
    kept = np.arange(8) % 2 == 0
    mask = {
        "a": {"kernel": np.broadcast_to(kept, (30, 8)), "bias": kept},
        "b": {"kernel": np.broadcast_to(kept[:, None], (8, 5)), "bias": np.ones(5, bool)},
    }
    mask = jax.tree.map(jnp.asarray, mask)
    return fp.tree.apply_mask(mask, params), mask


def deviations(params, mask, repeats, packing):
    """sigma_real / (alpha sqrt(r_i)) in NumPy, over the weights that are sent."""
    power = {"complex": 0.5, "real": 1.0}[packing]
    layers = [(np.asarray(params[k]["kernel"]), np.asarray(mask[k]["kernel"])) for k in "ab"]
    energy = sum(r * (w[m] ** 2).sum() for r, (w, m) in zip(repeats, layers, strict=True))
    reals = sum(r * m.sum() for r, (_, m) in zip(repeats, layers, strict=True))
    alpha = np.sqrt(power * reals / energy)
    return [SIGMA / (alpha * np.sqrt(r)) for r in repeats]


@pytest.mark.parametrize("packing", ["complex", "real"])
def test_delivery_and_injection_have_the_noise_of_the_channel(packing):
    """2,000 draws of each; biases exact, pruned weights zero."""
    params, mask = model_and_mask()
    repeats = jnp.array([3, 1])
    down = link.analog(SNR, link.Protection(repeats, "repetition", 4), packing)
    inject = link.injection(local.sandwich(SNR, SNR), repeats, packing)
    keys = jax.random.split(jax.random.key(1), 2000)
    sent = jax.jit(jax.vmap(lambda k: down.send(k, params, mask)))(keys)
    injected = jax.jit(jax.vmap(lambda k: inject(k, jnp.int32(0), params, mask)))(keys)
    for found in (sent, injected):
        for name, deviation in zip("ab", deviations(params, mask, (3, 1), packing), strict=True):
            kept = np.asarray(mask[name]["kernel"])
            noise = np.asarray(found[name]["kernel"]) - np.asarray(params[name]["kernel"])[None]
            assert not noise[:, ~kept].any()
            noise = noise[:, kept]
            assert abs(noise.mean()) < 5 * deviation / np.sqrt(noise.size)
            assert abs((noise**2).mean() / deviation**2 - 1) < 5 * np.sqrt(2 / noise.size)
            np.testing.assert_array_equal(found[name]["bias"][7], params[name]["bias"])
    cost = down.bill(params, mask)
    reals = 3 * 30 * 4 + 4 * 5
    assert int(cost.channel_uses) == (reals / 2 if packing == "complex" else reals)
    # Biases, two reals a layer, and the bits of the masks of those layers that are pruned.
    pruned = sum(mask[k]["kernel"].size for k in "ab" if not mask[k]["kernel"].all())
    assert int(cost.side_information) == 4 + 5 + 2 * 2 + -(-pruned // 32)
    known = down.bill(params, mask, True)
    assert int(known.side_information) == 4 + 5 + 2 * 2


def test_gradients_pass_the_noise_unchanged():
    """No term from the noise's deviation, which depends on the weights' energy."""
    params, mask = model_and_mask()
    inject = link.injection(local.sandwich(SNR, SNR), 2)
    total = lambda p: fp.tree.total(inject(jax.random.key(0), jnp.int32(3), p, mask))
    gradient = jax.grad(total)(params)
    assert same(gradient, jax.tree.map(lambda m: m.astype(jnp.float32), mask))


def test_injection_over_fading():
    """Noise scales with 1 / |h|, |h| at least the floor; medians agree with Rayleigh's."""
    params, mask = model_and_mask()
    inject = link.injection(local.sandwich(SNR, SNR), fading="rayleigh", gain_floor=0.1)
    keys = jax.random.split(jax.random.key(2), 4000)
    found = jax.jit(jax.vmap(lambda k: inject(k, jnp.int32(0), params, mask)))(keys)
    kept = np.asarray(mask["a"]["kernel"])
    noise = (np.asarray(found["a"]["kernel"]) - np.asarray(params["a"]["kernel"])[None])[:, kept]
    gain = deviations(params, mask, (1, 1), "complex")[0] / np.sqrt((noise**2).mean(1))
    error = 5 * 0.5 / np.sqrt(len(keys)) + 0.02  # draws of h; 120 weights tell |h| to 6 %
    for g in (0.3, 0.6, 1.0, 1.5):
        assert abs((gain < g).mean() - (1 - np.exp(-(g**2)))) < error
    assert gain.min() > 0.07


def test_spirals_of_best_gamma_beat_repetition():
    """One alpha for all layers leaves the first 3 dB and the second 23 dB of the mean of 15 dB.

    By P3's table (1:2) the best spiral is as good as repetition at 3 dB, and 5 dB better at 20 dB.
    """
    params, mask = model_and_mask()
    keys = jax.random.split(jax.random.key(3), 100)
    error = {}
    for family in coding.FAMILIES:
        down = link.analog(15.0, link.Protection(2, family, 4))
        found = jax.jit(jax.vmap(lambda k, d=down: d.send(k, params, mask)))(keys)
        for name in "ab":
            noise = np.asarray(found[name]["kernel"]) - np.asarray(params[name]["kernel"])[None]
            error[family, name] = (noise**2).sum()
    assert error["spiral", "a"] < 1.1 * error["repetition", "a"]
    assert error["spiral", "b"] < 0.45 * error["repetition", "b"]


@pytest.mark.parametrize("family", coding.FAMILIES)
def test_codes_of_traced_length(family):
    w = jnp.linspace(-2, 2, 11)

    @jax.jit
    def run(times):
        code = coding.expansion(family, times, 5, 1.5)
        symbols = code.encode(w)
        return symbols, code.decode(symbols + 0.01, 1e-3), code.repeats

    for times in (1, 2, 3, 4, 5):
        used = 1 << (times.bit_length() - 1) if family == "spiral" else times
        plain = coding.repetition(used)
        if family == "spiral" and used > 1:
            plain = coding.spiral(1.5, used.bit_length() - 1)
        symbols, decoded, sent = run(times)
        assert sent == used
        np.testing.assert_allclose(symbols[:, :used], plain.encode(w), atol=1e-6)
        assert not np.asarray(symbols[:, used:]).any()
        np.testing.assert_allclose(decoded, plain.decode(plain.encode(w) + 0.01, 1e-3), atol=1e-5)


# In rounds -----


def test_a_noisy_downlink_is_a_noisy_step():
    """One client, one step: training at what it received, added to what the server sent."""
    clients, model = federation(1), mlp()
    shift = lambda p: jax.tree.map(lambda v: v + 0.1, p)
    seven = link.free()._replace(channel_uses=bill.count(7), noise_variance=jnp.float32(9))
    common = {
        "uplink": link.ideal(),
        "server": fp.server.average(),
        "participation": fp.server.full(1),
        "layout": fp.mesh.make(clients=1),
    }
    step = {"batch": 6, "steps": 1}
    through = fp.rounds.build(
        local=local.sgd(model, optax.sgd(0.2), **step),
        downlink=Downlink(lambda key, params, mask: shift(params), lambda *_: seven),
        **common,
    )
    inside = fp.rounds.build(
        local=local.sgd(model, optax.sgd(0.2), reception=lambda k, n, p, m: shift(p), **step),
        **common,
    )
    plain = fp.rounds.build(local=local.sgd(model, optax.sgd(0.2), **step), **common)
    runs = [fp.run.simulate(a, model, clients, clients, 3) for a in (through, inside, plain)]
    assert distance(runs[0][0].params, runs[1][0].params) < 1e-5
    assert distance(runs[2][0].params, runs[1][0].params) > 1e-3
    np.testing.assert_array_equal(runs[0][1].cost.channel_uses, 7)
    np.testing.assert_array_equal(runs[0][1].cost.noise_variance, 0)


@pytest.mark.parametrize("steps", [True, False])
def test_steps_are_counted_over_rounds(steps):
    """A reception that notes the number of its step in the loss."""
    clients = federation(2)
    network = Model(
        lambda key: {"w": jnp.zeros((1, 1))},
        lambda p, x: jnp.broadcast_to(p["w"].reshape(1), x.shape[:1]),
    )
    how = {"steps": 4} if steps else {"epochs": 2}
    update = local.sgd(
        network, optax.sgd(0.0), batch=8, loss=lambda logits, y: logits,
        reception=lambda key, n, p, m: {"w": p["w"] + n.astype(jnp.float32)}, **how,
    )  # fmt: skip
    size, longest = int(clients.size[1]), clients.rows.shape[1]
    found = update(jax.random.key(0), jnp.int32(3), network.init(0), None, clients.client(1)).loss
    if steps:
        assert found == np.mean([12, 13, 14, 15])
    else:
        batches = -(-longest // 8)
        counts = np.clip(size - 8 * np.arange(batches), 0, 8)
        numbers = 3 * 2 * batches + np.arange(2 * batches)
        np.testing.assert_allclose(
            found, np.average(numbers, weights=[*counts, *counts]), rtol=1e-6
        )


def test_every_client_hears_noise_of_its_own_and_one_broadcast_is_billed():
    clients, model = federation(5), mlp()
    down = link.analog(0.0)
    still = fp.rounds.build(
        local=lambda key, t, params, mask, client: fp.types.Trained(params, jnp.float32(0)),
        uplink=link.ideal(),
        server=fp.types.Server(lambda p: (), lambda s, outcome: (outcome.update, s)),
        participation=fp.server.full(5),
        layout=fp.mesh.make(clients=1),
        weighting="plain",
        downlink=down,
    )
    state, info, _ = fp.run.simulate(still, model, clients, clients, 1)
    params = jax.jit(model.init)(rng.stream(jax.random.key(0), "init"))
    kernels = sum(v.size for v in leaves(params) if v.ndim > 1)
    biases = sum(v.size for v in leaves(params) if v.ndim == 1)
    assert info.cost.channel_uses[0] == np.ceil(kernels / 2)
    assert info.cost.side_information[0] == biases + 2 * 2
    # The mean over five receivers has a fifth of the noise energy: at 0 dB as much as the signal's.
    noise = [a - b for a, b in zip(leaves(state.params), leaves(params), strict=True)]
    energy = lambda values: sum((v**2).sum() for v in values if v.ndim > 1)
    assert energy(noise) / energy(leaves(params)) == pytest.approx(0.2, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("family", coding.FAMILIES)
def test_clients_one_by_one(family):
    """Means of noisy updates; bills of all clients."""
    clients, model = federation(4), mlp()
    up = link.one_by_one(link.analog(30.0, link.Protection(2, family, 2)))
    parts = {
        "local": local.sgd(model, optax.sgd(0.2), batch=6, steps=2),
        "server": fp.server.average(),
        "participation": fp.server.full(4),
        "layout": fp.mesh.make(clients=2),
    }
    noisy, info, _ = fp.run.simulate(
        fp.rounds.build(uplink=up, **parts), model, clients, clients, 1
    )
    clean, _, _ = fp.run.simulate(
        fp.rounds.build(uplink=link.ideal(), **parts), model, clients, clients, 1
    )
    start = jax.jit(model.init)(rng.stream(jax.random.key(0), "init"))
    updates = [jax.tree.map(jnp.subtract, s.params, start) for s in (noisy, clean)]
    assert 1e-4 < distance(*updates) < 0.05
    kernels = sum(v.size for v in leaves(start) if v.ndim > 1)
    assert info.cost.channel_uses[0] == 4 * kernels


@pytest.mark.parametrize("repeats", [1, 4])
def test_repetition_over_the_air(repeats):
    """Noise variance over r, channel uses and energy times r."""
    uplink = link.over_the_air(3.0, "common", repeats=repeats)
    once = link.over_the_air(3.0, "common")
    delta = {"w": jnp.linspace(-1, 1, 4001).reshape(1, -1)}
    trained = fp.types.Trained(delta, jnp.float32(0))
    air = uplink.prepare(Cohort(jax.random.key(0), jnp.int32(0), jnp.arange(1)))
    gains = jax.tree.map(lambda leaf: leaf[0], air.state)
    found = []
    for u in (uplink, once):
        total = u.encode(Sender(gains, air.common, trained, None, jnp.float32(1))).total
        received = u.finish(Arrival(jax.random.key(1), air, total, None))
        found.append((received.update, received.cost))
    (update, cost), (_, plain) = found
    noise = np.asarray(update["w"] - delta["w"])
    assert cost.noise_variance * repeats == pytest.approx(float(plain.noise_variance), rel=1e-5)
    assert (noise**2).mean() == pytest.approx(float(cost.noise_variance), rel=0.15)
    assert int(cost.channel_uses) == 2001 * repeats
    assert cost.energy == pytest.approx(repeats * float(plain.energy), rel=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_entropy_coded_uplink_is_billed_near_a_real_stream(bits):
    from fedprune import payload

    delta = {"w": jnp.asarray(np.random.default_rng(0).laplace(size=(40, 500)), jnp.float32)}
    trained = fp.types.Trained(delta, jnp.float32(0))
    up = link.orthogonal(0.0, 1.0, bits, bitstream="entropy")
    air = up.prepare(Cohort(jax.random.key(0), jnp.int32(0), jnp.arange(1)))
    state = jax.tree.map(lambda leaf: leaf[0], air.state)
    total = up.encode(Sender(state, air.common, trained, None, jnp.float32(1))).total
    values = np.asarray(total.sum[0]["w"])
    step = np.abs(np.asarray(delta["w"])).max() / (2 ** (bits - 1) - 1)
    levels = np.rint(values / step).astype(np.int32).reshape(-1)
    stream = 8 * len(payload.entropy.encode(levels, np.array([levels.size])))
    assert float(total.max) == pytest.approx(stream, rel=0.04)


# Losses and SNRs -----


@pytest.mark.parametrize("form", ["printed", "hinton"])
def test_distillation_by_hand(form):
    gen = np.random.default_rng(0)
    student, answers = gen.normal(size=(2, 6, 4))
    teacher = Model(None, lambda p, x: p["scale"] * x)
    params = {"scale": jnp.float32(3.0)}
    term = local.distillation(teacher, params, 2.0, 0.7, form)
    found = term(jnp.asarray(student, jnp.float32), jnp.asarray(answers / 3, jnp.float32))
    q = special.softmax(answers / 2, -1)
    log_p = special.log_softmax(student / (2 if form == "hinton" else 1), -1)
    np.testing.assert_allclose(found, -0.7 * 4 * (q * log_p).sum(-1), rtol=1e-5)
    # A teacher that is certain asks for the cross-entropy of its answer.
    certain = term(jnp.asarray(student, jnp.float32), 1e4 * jax.nn.one_hot(jnp.arange(6) % 4, 4))
    labels = jnp.arange(6) % 4
    temperature = 2 if form == "hinton" else 1
    plain = local.cross_entropy(jnp.asarray(student, jnp.float32) / temperature, labels)
    np.testing.assert_allclose(certain, 2.8 * np.asarray(plain), rtol=1e-4)


def test_distillation_in_training():
    """The loss that is reported is the sum, and a teacher equal to the student pulls nowhere."""
    clients, model = federation(1), mlp()
    params = model.init(jax.random.key(0))
    term = local.distillation(model, params, 1.0, form="hinton")
    run = lambda **kw: jax.jit(local.sgd(model, optax.sgd(0.1), batch=8, steps=1, **kw))(
        jax.random.key(1), jnp.int32(0), params, None, clients.client(0)
    )
    plain, taught = run(), run(distillation=term)
    assert distance(taught.delta, plain.delta) < 1e-5
    assert float(taught.loss) > float(plain.loss) + 0.1
    other = local.distillation(model, model.init(jax.random.key(5)), 1.0, form="hinton")
    assert distance(run(distillation=other).delta, plain.delta) > 0.01


def test_sandwich():
    snr = local.sandwich(-3.0, 12.0)
    draws = np.array([float(snr(jax.random.key(i), jnp.int32(i))) for i in range(60)])
    np.testing.assert_allclose(draws[0::3], -3)
    np.testing.assert_allclose(draws[1::3], 12)
    between = draws[2::3]
    assert between.min() > -3
    assert between.max() < 12
    assert np.ptp(between) > 8
    assert local.sandwich(5.0, 5.0)(jax.random.key(0), jnp.int32(2)) == 5


@pytest.mark.parametrize("bend", [0.1, 0.5, 0.8])
def test_shares_of_the_boundary_networks(bend):
    """Against the parametric curve, (2 u (1 - u) b + u^2, 2 u (1 - u) (1 - b) + u^2)."""
    u = np.linspace(0, 1, 401)
    x = 2 * u * (1 - u) * bend + u * u
    y = 2 * u * (1 - u) * (1 - bend) + u * u
    snr = np.linspace(-8, 25, 67)
    found = jax.vmap(lambda s: local.share_of_high(s, -3.0, 20.0, bend))(jnp.asarray(snr, "f4"))
    expected = np.interp(np.clip((snr + 3) / 23, 0, 1), x, y)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    inside = np.asarray(found)[(snr > -3) & (snr < 20)]
    assert (np.diff(inside) > 0).all()
    assert found[0] == 0
    assert found[-1] == 1
    if bend == 0.5:
        np.testing.assert_allclose(found, np.clip((snr + 3) / 23, 0, 1), atol=1e-5)


def test_interpolated_networks_and_their_gradients():
    low, high = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([5.0, -2.0])}
    network = local.interpolated(0.0, 10.0)
    both = {"low": low, "high": high}
    np.testing.assert_allclose(network(both, jnp.float32(0.0))["w"], low["w"])
    np.testing.assert_allclose(network(both, jnp.float32(10.0))["w"], high["w"])
    np.testing.assert_allclose(network(both, jnp.float32(2.5))["w"], [2.0, 1.0], rtol=1e-6)
    loss = lambda p: (jnp.array([1.0, 3.0]) * network(p, jnp.float32(2.5))["w"]).sum()
    gradient = jax.grad(loss)(both)
    np.testing.assert_allclose(gradient["low"]["w"], [0.75, 2.25], rtol=1e-6)
    np.testing.assert_allclose(gradient["high"]["w"], [0.25, 0.75], rtol=1e-6)
    assert same(local.pair(low), {"low": low, "high": low})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: link.analog(0.0, packing="both"), "packing='both'"),
        (lambda: link.analog(0.0, fading="rician"), "fading='rician'"),
        (lambda: link.analog(0.0, link.Protection(family="turbo")), "family='turbo'"),
        (lambda: link.injection(local.sandwich(0, 1), fading="rician"), "fading='rician'"),
        (lambda: coding.expansion("spiral", 1, 0), "largest=0"),
        (lambda: link.orthogonal(0.0, bitstream="zip"), "bitstream='zip'"),
        (lambda: link.orthogonal(0.0, value_bits=16, bitstream="entropy"), "value_bits=16"),
        (lambda: local.distillation(None, None, form="soft"), "form='soft'"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_perfect_channels_deliver_the_model():
    params, mask = model_and_mask()
    assert channel.PACKINGS
    for protection in (None, link.Protection(4, "spiral", 4, 1.0)):
        found = link.analog(120.0, protection).send(jax.random.key(0), params, mask)
        assert distance(found, params) < 1e-4


def test_protection_with_a_limit():
    """The best layer stops at the limit, and the next one takes what is left."""
    repeats = coding.expansions([100.0, 1.0], [1.0, 1.0], [10, 10], 100, "double", 4)
    np.testing.assert_array_equal(repeats, [4, 4])
    repeats = coding.expansions([100.0, 1.0], [1.0, 1.0], [10, 10], 100, "add", 3)
    np.testing.assert_array_equal(repeats, [3, 3])
    repeats = coding.expansions([100.0, 1.0], [1.0, 1.0], [10, 10], 100, "add")
    np.testing.assert_array_equal(repeats, [9, 1])


# Configurations -----


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"uplink.link": "analog", "uplink.analog.code": "spiral", "uplink.analog.repeats": 3},
            "uplink.analog.repeats=3",
        ),
        ({"uplink.orthogonal.bitstream": "entropy"}, "uplink.orthogonal.bitstream='entropy'"),
        ({"uplink.link": "analog", "uplink.fading": "rician"}, "uplink.fading='rician'"),
        (
            {"downlink.analog.code": "spiral", "downlink.analog.repeats": 6},
            "downlink.analog.repeats=6",
        ),
        ({"downlink.link": "analog", "edges.servers": 2}, "downlink.link='analog'"),
        ({"pruning.granularity": "unit", "pruning.layers": "dense"}, "pruning.layers='dense'"),
        ({"pruning.granularity": "unit", "pruning.scope": "own"}, "pruning.granularity='unit'"),
    ],
)
def test_combinations_that_are_refused(values, message):
    config = cfg.override(cfg.Config(), values)
    with pytest.raises(cfg.ConfigError, match="^" + message) as error:
        cfg.validate(config)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_configuration_reaches_both_directions():
    """Spirals down and up and pruned units, through ``build``, with the bill by hand."""
    values = {
        "data.clients": 3,
        "local.batch": 4,
        "local.steps": 1,
        "pruning.schedule": "one_shot",
        "pruning.granularity": "unit",
        "pruning.start": 0,
        "pruning.ratio": 0.5,
        "uplink.link": "analog",
        "uplink.analog.code": "spiral",
        "uplink.analog.repeats": 4,
        "uplink.fading": "none",
        "downlink.link": "analog",
        "downlink.analog.repeats": 3,
        "model.name": "mlp",
    }
    config = cfg.override(cfg.Config(), values)
    cfg.validate(config)
    model, clients = mlp(), federation(3)
    algorithm = build.algorithm(config, model, fp.mesh.make(clients=1))
    state, info, _ = fp.run.simulate(algorithm, model, clients, clients, 2)
    kept = [int(np.asarray(m).sum()) for m in leaves(state.mask) if m.ndim > 1]
    # 64 inputs, 16 neurons, 10 outputs: of 1,210 weights each neuron has 75, and 10 are biases.
    assert kept == [64 * 7, 7 * 10]
    down, up = np.ceil(3 * sum(kept) / 2), 3 * np.ceil(4 * sum(kept) / 2)
    np.testing.assert_array_equal(info.cost.channel_uses, down + up)
    # Of all four transmissions biases and two reals a layer; of the broadcast the bits of the mask,
    # which the server knows of the clients' updates.
    mask_bits = 64 * 16 + 16 * 10
    expected = 4 * (7 + 10 + 2 * 2) + mask_bits // 32
    np.testing.assert_array_equal(info.cost.side_information, expected)
