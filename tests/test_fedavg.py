"""Federated averaging against a plain NumPy loop, and what must not change the result."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import algorithm, candidates, cnn, distance, federation, leaves, mlp, same

import fedprune as fp
from fedprune import rng
from fedprune.rounds import hierarchical
from fedprune.types import Model, Participation, Uplink

STEPS, BATCH, LR, ROUNDS, SEED = 4, 5, 0.2, 3, 3


def ideal(model, layout, clients, **local):
    return fp.rounds.build(
        local=fp.local.sgd(model, local.pop("optimizer", optax.sgd(LR)), batch=BATCH, **local),
        uplink=fp.link.ideal(),
        participation=fp.server.full(clients),
        server=fp.server.average(),
        layout=layout,
    )


def numpy_gradient(w, x, y):
    """Gradient of the mean cross-entropy of a network with one hidden ReLU layer."""
    x = x.reshape(len(x), -1)
    h = np.maximum(x @ w["W1"] + w["b1"], 0)
    logits = h @ w["W2"] + w["b2"]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    p /= len(y)
    back = (p @ w["W2"].T) * (h > 0)
    return {"W1": x.T @ back, "b1": back.sum(0), "W2": h.T @ p, "b2": p.sum(0)}


def exported_batches(size, t, k):
    """The positions that client k draws in round t, [steps, batch]."""
    key = rng.stream(jax.random.key(SEED), "local", t, k)
    draws = [
        jax.random.randint(rng.stream(key, "batch", i), (BATCH,), 0, size) for i in range(STEPS)
    ]
    return np.stack(draws)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_ideal_uplink_equals_a_numpy_loop(momentum):
    clients, model = federation(6), mlp()
    initial = model.init(rng.stream(jax.random.key(SEED), "init"))
    flat = initial["Dense_0"], initial["Dense_1"]
    w = {"W1": flat[0]["kernel"], "b1": flat[0]["bias"], "W2": flat[1]["kernel"]}
    w = {k: np.asarray(v, np.float64) for k, v in {**w, "b2": flat[1]["bias"]}.items()}
    sizes = np.asarray(clients.size)
    assert len(set(sizes)) > 1
    for t in range(ROUNDS):
        mean = {name: np.zeros_like(v) for name, v in w.items()}
        for k, size in enumerate(sizes):
            local, velocity = dict(w), {name: np.zeros_like(v) for name, v in w.items()}
            for positions in exported_batches(size, t, k):
                rows = np.asarray(clients.rows)[k, positions]
                x, y = np.asarray(clients.examples)[rows], np.asarray(clients.labels)[rows]
                g = numpy_gradient(local, x.astype(np.float64), y)
                velocity = {n: momentum * velocity[n] + g[n] for n in w}
                local = {n: local[n] - LR * velocity[n] for n in w}
            for n in w:
                mean[n] += size / sizes.sum() * local[n]
        w = mean
    optimizer = optax.sgd(LR, momentum)
    algo = ideal(model, fp.mesh.make(clients=2), 6, steps=STEPS, optimizer=optimizer)
    state, _, _ = fp.run.simulate(algo, model, clients, clients, ROUNDS, seed=SEED)
    found = state.params["Dense_0"], state.params["Dense_1"]
    for layer, names in zip(found, (("W1", "b1"), ("W2", "b2")), strict=True):
        np.testing.assert_allclose(layer["kernel"], w[names[0]], atol=1e-5)
        np.testing.assert_allclose(layer["bias"], w[names[1]], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [mlp(), pytest.param(cnn(), marks=pytest.mark.nightly)], ids=["mlp", "cnn"]
)
def test_chunk_sizes_agree(model):
    """Chunks of 1, 3 and all clients; what a chunk lacks to be full is padding."""
    clients = federation(13)

    def final(chunk, devices):
        layout = fp.mesh.make(clients=devices, chunk=chunk)
        algo = algorithm(model, layout, ratio=0.0)
        return fp.run.simulate(algo, model, clients, clients, 2, seed=1)[0].params

    one = final(1, 1)
    for chunk, devices in ((11, 1), (3, 2)):
        assert distance(final(chunk, devices), one) < 1e-5


@pytest.mark.slow
def test_arms_together_agree_with_arms_alone():
    """Three arms with traced learning rate, SNR, ratio and schedule, mapped and vmapped."""
    model, clients = cnn(), federation(13)
    layout = fp.mesh.make(clients=2)
    hyper = {
        "lr": jnp.array([0.1, 0.05, 0.2]),
        "snr_db": jnp.array([0.0, 10.0, 20.0]),
        "ratio": jnp.array([0.0, 0.5, 0.9]),
        "start": jnp.array([1, 2, 1]),
        "steps": jnp.array([1, 1, 2]),
    }

    def build(h):
        return fp.rounds.build(
            local=fp.local.sgd(model, optax.sgd(h["lr"], 0.9), batch=6, steps=3),
            pruner=fp.prune.scheduled(fp.prune.iterative(h["ratio"], h["start"], 1, h["steps"])),
            uplink=fp.link.over_the_air(h["snr_db"], "receiver"),
            participation=fp.server.uniform(13, 7),
            server=fp.server.average(),
            layout=layout,
        )

    key = jnp.stack([jax.random.key(s) for s in range(3)])
    state = fp.run.start(build, model.init, hyper, key)
    tables = [jnp.stack([v] * 3) for v in (clients.rows, clients.size)]
    arms = fp.run.Arms(hyper, key, state, *tables)

    def run(arms, per_chunk, program=None):
        program = program or fp.run.program(build, layout, 3, arms_per_chunk=per_chunk)
        states, infos, _ = program(arms, clients, clients)
        np.testing.assert_array_equal(infos.clients, 7)
        return states.params, infos.kept

    single = fp.run.program(build, layout, 3)
    alone = [run(jax.tree.map(lambda v, a=a: v[a : a + 1], arms), 1, single) for a in range(3)]
    kept = np.concatenate([kept for _, kept in alone])
    assert len({tuple(k) for k in kept}) == 3
    for per_chunk in (1, 2, 3):
        params, found = run(arms, per_chunk)
        np.testing.assert_array_equal(found, kept)
        for a in range(3):
            mine = jax.tree.map(lambda v, a=a: v[a : a + 1], params)
            assert distance(mine, alone[a][0]) < 1e-5


def with_bad_client(value):
    clients = federation(6)
    bad = np.asarray(clients.rows)[5, : int(clients.size[5])]
    return clients._replace(examples=clients.examples.at[bad].set(value))


@pytest.mark.parametrize(
    ("normalisation", "value"), [("common", np.nan), ("device", np.inf), ("receiver", np.nan)]
)
def test_a_bad_client_leaves_no_trace(normalisation, value):
    """Client 5 of 6 diverges; the result is bitwise that of the five others alone."""
    model, layout = mlp(), fp.mesh.make(clients=2, reduction="strict")

    def final(clients, participation):
        algo = fp.rounds.build(
            local=fp.local.sgd(model, optax.sgd(0.1), batch=5, steps=3),
            uplink=fp.link.over_the_air(10.0, normalisation),
            participation=participation,
            server=fp.server.average(),
            layout=layout,
        )
        return fp.run.simulate(algo, model, clients, clients, 3)[:2]

    state, info = final(with_bad_client(value), fp.server.full(6))
    expected, _ = final(federation(6), Participation(5, lambda _: jnp.arange(5), 6))
    assert same(state.params, expected.params)
    assert np.isfinite(info.train_loss).all()
    np.testing.assert_array_equal(info.excluded, 1)
    np.testing.assert_array_equal(info.clients, 5)


def test_all_clients_bad_keeps_the_model():
    model, clients = mlp(), federation(6)
    clients = clients._replace(examples=clients.examples * np.nan)
    algo = fp.rounds.build(
        local=fp.local.sgd(model, optax.sgd(0.1), batch=5, steps=3),
        uplink=fp.link.over_the_air(10.0, "device"),
        participation=fp.server.full(6),
        server=fp.server.optimizer(optax.adam(0.1)),
        layout=fp.mesh.make(clients=2),
    )
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        state, info, _ = fp.run.simulate(algo, model, clients, clients, 2)
    assert same(state.params, model.init(rng.stream(jax.random.key(0), "init")))
    np.testing.assert_array_equal(info.excluded, 6)
    np.testing.assert_array_equal(info.clients, 0)


def in_round_one(update=None, server=None, tiers=None):
    """Three rounds, in the second of which nobody is heard, or something happens to what is."""
    model, clients, plain = mlp(), federation(6), fp.link.ideal()

    def prepare(cohort):
        air, t = plain.prepare(cohort), cohort.round
        active = air.active if update is not None or server is not None else air.active & (t != 1)
        return air._replace(active=active, state=jnp.full(cohort.ids.shape, t))

    def finish(arrival):
        received, t = plain.finish(arrival), arrival.air.state[0]
        if update is None:
            return received
        changed = jax.tree.map(lambda v: jnp.where(t == 1, update, v), received.update)
        return received._replace(update=changed)

    link = Uplink(prepare, plain.encode, finish)
    build = fp.rounds.build if tiers is None else hierarchical.build
    algo = build(
        local=fp.local.sgd(model, optax.sgd(0.1), batch=5, steps=3),
        uplink=link,
        participation=fp.server.full(6),
        server=server or fp.server.momentum(0.5, 0.9),
        layout=fp.mesh.make(clients=2, reduction="strict"),
        **(tiers or {}),
    )
    return fp.run.simulate(algo, model, clients, clients, 3)[:2]


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("tiers", [False, True], ids=["flat", "tiers"])
def test_a_received_update_that_is_not_finite_is_not_applied(value, tiers):
    """The rounds are those in which nobody was heard, server's momentum included."""
    given = {}
    if tiers:
        of = jnp.asarray([0, 0, 0, 1, 1, 1])
        given["tiers"] = {"edges": fp.rounds.Edges(of, 2), "edge_rounds": 1}
        given["tiers"]["cloud"] = fp.link.ideal()
    expected, info = in_round_one(**given)
    np.testing.assert_array_equal(info.rejected, 0)
    state, info = in_round_one(value, **given)
    np.testing.assert_array_equal(info.rejected, [0, 2 if tiers else 1, 0])
    np.testing.assert_array_equal(info.clients, 6)
    assert same(state.params, expected.params)
    assert same(state.server, expected.server)


def test_an_update_that_makes_the_model_infinite_is_not_applied():
    state, info = in_round_one(3e38, server=fp.server.average(100.0))
    assert all(np.isfinite(leaf).all() for leaf in leaves(state.params))
    np.testing.assert_array_equal(info.rejected, [0, 1, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, s: (p["Dense_0"], s), r"server: params\['Dense_0'\]"),
        (lambda p, s: (jax.tree.map(lambda v: v[..., None], p), s), r"is float32\[16,1\], must be"),
        (lambda p, s: (jax.tree.map(lambda v: v.astype(jnp.bfloat16), p), s), "is bfloat16"),
        (lambda p, s: (p, (s, s)), "server: state"),
    ],
    ids=["tree", "shape", "type", "state"],
)
def test_a_server_that_returns_another_tree_is_refused(change, message):
    plain = fp.server.average()
    server = plain._replace(update=lambda *args: change(*plain.update(*args)))
    with pytest.raises(ValueError, match=message):
        in_round_one(server=server)


@pytest.mark.parametrize("local", [{"steps": 3}, {"epochs": 2}], ids=["steps", "epochs"])
def test_nobody_trains_on_padding_or_on_others(local):
    """Row 0, at which the padding points, is poisoned; so is the example of an empty client."""
    model, clients = mlp(), federation(6)
    clients = clients._replace(
        examples=clients.examples.at[0].set(np.nan), size=clients.size.at[2].set(0)
    )
    algo = ideal(model, fp.mesh.make(clients=2, chunk=2), 6, **local)
    state, info, _ = fp.run.simulate(algo, model, clients, clients, 2)
    assert all(np.isfinite(leaf).all() for leaf in leaves(state.params))
    np.testing.assert_array_equal(info.excluded, 0)
    np.testing.assert_array_equal(info.clients, 5)


def test_epochs_go_through_every_example_once():
    """The gradient of a weight per example counts how often that example was seen."""
    clients = federation(4, low=7, high=12)
    total = clients.examples.shape[0]
    flat = {"shift": clients.shift[0], "scale": clients.scale[0]}
    clients = clients._replace(examples=jnp.eye(total)[:, :, None], **flat)
    model = Model(lambda key: jnp.zeros(total), lambda w, x: x[..., 0] @ w)
    local = fp.local.sgd(
        model, optax.sgd(1.0), batch=5, epochs=2, loss=lambda logits, labels: logits
    )
    for k in range(4):
        size = int(clients.size[k])
        delta, loss, *_ = jax.jit(local)(
            jax.random.key(k), jnp.int32(0), jnp.zeros(total), None, clients.client(k)
        )
        seen = -np.asarray(delta)[np.asarray(clients.rows)[k, :size]]
        # Per epoch each example moves its weight by 1 over the size of the batch it fell into.
        batches = [5] * (size // 5) + [size % 5] * (size % 5 > 0)
        assert np.isclose(seen.sum(), 2 * len(batches), atol=1e-5)
        allowed = {round(1 / a + 1 / b, 4) for a in batches for b in batches}
        assert {round(float(v), 4) for v in seen} <= allowed
        others = np.delete(np.asarray(delta), np.asarray(clients.rows)[k, :size])
        assert not others.any()
        assert np.isfinite(loss)


def test_cohort_is_drawn_without_repetition_and_anew():
    select = fp.server.uniform(20, 7).select
    cohorts = [np.asarray(select(candidates(jax.random.key(t), 20))) for t in range(200)]
    assert all(len(set(c)) == 7 and c.min() >= 0 and c.max() < 20 for c in cohorts)
    counts = np.bincount(np.concatenate(cohorts), minlength=20)
    # Binomial(200, 0.35): mean 70, standard deviation 6.7; five of them either side.
    assert (abs(counts - 70) < 34).all()
    with pytest.raises(ValueError, match="size=21"):
        fp.server.uniform(20, 21)


@pytest.mark.parametrize(("clients", "size"), [(20, 7), (20_000, 150), (20_000, 19_999)])
def test_cohort_is_the_first_of_sorted_numbers(clients, size):
    chosen = fp.server.uniform(clients, size).select
    select = jax.vmap(lambda key: chosen(candidates(key, clients)))
    keys = jax.random.split(jax.random.key(0), 5)
    for key, found in zip(keys, select(keys), strict=True):
        numbers = np.asarray(jax.random.bits(jax.random.split(key)[1], (clients,))) >> 3
        np.testing.assert_array_equal(found, np.argsort(numbers, kind="stable")[:size])
        if clients < 1625:
            np.testing.assert_array_equal(found, jax.random.permutation(key, clients)[:size])


def test_server_masks_hold_after_aggregation():
    model, clients = cnn(), federation(13)
    algo = algorithm(model, fp.mesh.make(clients=2), ratio=0.9)
    state, info, _ = fp.run.simulate(algo, model, clients, clients, 8)
    kernels = [leaf for leaf in leaves(model.init(jax.random.key(0))) if leaf.ndim >= 2]
    d = sum(leaf.size for leaf in kernels)
    biases = sum(leaf.size for leaf in leaves(state.params) if leaf.ndim < 2)
    kept = [d if s == 0 else round(d * 0.1 ** (s / 3)) for s in (0, 1, 1, 2, 2, 3, 3, 3)]
    np.testing.assert_array_equal(info.kept, np.array(kept) + biases)
    for w, m in zip(leaves(state.params), leaves(state.mask), strict=True):
        assert not w[~m].any()
        assert w[m].all() or w.ndim < 2
    # Two weights a symbol; each of the arrays may leave half a symbol empty.
    least = (np.array(kept) + biases) / 2
    more = info.cost.channel_uses - least
    assert ((more >= 0) & (more <= len(leaves(state.params)) / 2)).all()
    last = sum(-(-int(m.sum()) // 2) for m in leaves(state.mask))
    assert info.cost.channel_uses[-1] == last
    np.testing.assert_allclose(info.sent, 11 * (np.array(kept) + biases))
    masks = [np.asarray(m) for m in leaves(state.mask) if m.ndim >= 2]
    density = np.array(list(info.density.values()))  # in the order of the leaves
    np.testing.assert_allclose(density[:, -1], [m.mean() for m in masks], rtol=1e-6)
    np.testing.assert_allclose(density.T @ [m.size for m in masks], kept, rtol=1e-6)
    assert not info.allocation


def test_client_masks_leave_the_server_dense():
    model, clients = mlp(), federation(13)
    algo = fp.rounds.build(
        local=fp.local.sgd(model, optax.sgd(0.1), batch=5, steps=2),
        uplink=fp.link.over_the_air(10.0, "common"),
        pruner=fp.prune.scheduled(fp.prune.constant(0.7), scope="client"),
        participation=fp.server.full(13),
        server=fp.server.average(),
        layout=fp.mesh.make(clients=2),
    )
    initial = model.init(rng.stream(jax.random.key(0), "init"))
    state, _, _ = fp.run.simulate(algo, model, clients, clients, 1)
    for before, after, m in zip(
        leaves(initial), leaves(state.params), leaves(state.mask), strict=True
    ):
        np.testing.assert_array_equal(after[~m], before[~m])
        if m.ndim >= 2:
            assert (after[m] != before[m]).all()
