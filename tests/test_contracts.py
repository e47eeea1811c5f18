"""What stages may see and keep: every field of the contracts, used once, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import federation, leaves, mlp, same

import fedprune as fp
from fedprune import bill, channel, link, local, loop, rng, tree
from fedprune.algorithms import scaffold, selection
from fedprune.round import Edges, Stratum, hierarchical
from fedprune.types import Participation, Probe, Received, Report, Sent, Total, Trained, Uplink

K, SEED = 7, 5
CLIENTS = federation(K)
MODEL = mlp()


def build(layout=None, **changed):
    stages = {
        "local": local.sgd(MODEL, optax.sgd(0.1), batch=5, steps=2),
        "uplink": link.ideal(),
        "server": fp.server.average(),
        "participation": fp.server.full(K),
        "layout": layout or fp.mesh.make(clients=1),
        "weighting": "plain",
    }
    return fp.round.build(**(stages | changed))


def simulate(algorithm, rounds=3):
    return fp.run.simulate(algorithm, MODEL, CLIENTS, CLIENTS, rounds, seed=SEED)


def start():
    return jax.tree.map(
        lambda v: np.asarray(v, np.float64), MODEL.init(rng.stream(jax.random.key(SEED), "init"))
    )


def moves(t, k, params):
    """A training that is easy to follow: every weight moves by a number of round and client."""
    step = 0.01 * (1 + k) * (1 + t)
    return jax.tree.map(lambda w: step + 0.1 * w, params)


def apart(a, b):
    """The largest difference of two weights, also where all are zero."""
    return max(abs(x - y).max() for x, y in zip(leaves(a), leaves(b), strict=True))


def by_rule(key, t, params, mask, client):
    k = (client.size % 5).astype(jnp.float32)
    return Trained(moves(t.astype(jnp.float32), k, params), k)


# The store -----


@pytest.mark.parametrize("reduction", ["fast", "strict"])
@pytest.mark.parametrize(("devices", "chunk"), [(1, 1), (2, 3), (4, 1), (8, 2)])
def test_rows_of_any_type_go_to_their_clients_and_back(reduction, devices, chunk):
    """Bit for bit: NaN with a payload, -0.0, bools, bytes; against NumPy's indexing."""
    clients, size = 24, 11
    layout = fp.mesh.make(clients=devices, reduction=reduction, chunk=chunk)
    noise = np.random.default_rng(0)
    words = noise.integers(0, 2**32, (clients, 3), np.uint32)
    words[:3, 0] = 0x80000000, 0x7FC12345, 0
    store = {
        "f": jnp.asarray(words.view(np.float32)),
        "b": jnp.asarray(noise.random((clients, 2)) < 0.5),
        "i": jnp.asarray(noise.integers(-99, 99, (clients,), np.int8)),
        "h": jnp.asarray(noise.normal(size=(clients, 2)), jnp.bfloat16),
    }
    ids = noise.permutation(clients)[:size].astype(np.int32)

    def contribution(shared, position, row):
        new = {"f": row["f"][::-1], "b": ~row["b"], "i": row["i"] + jnp.int8(1), "h": row["h"]}
        return Total(row["i"].astype(jnp.int32), ()), new, position

    def on_device(store):
        found = fp.mesh.collect(contribution, (), size, layout, store, jnp.asarray(ids))
        total, after, found = found
        return jax.tree.map(lambda v: v[None], total), after, found[None]

    clients_axis = jax.P(fp.mesh.CLIENTS)
    run = jax.shard_map(
        on_device,
        mesh=layout.mesh,
        in_specs=clients_axis,
        out_specs=(jax.P(), clients_axis, jax.P()),
    )
    total, after, found = jax.jit(run)(store)
    bits = lambda v: np.asarray(v).view(np.uint8)
    expected = {name: np.array(v) for name, v in store.items()}
    expected["f"][ids] = expected["f"][ids][:, ::-1]
    expected["b"][ids] = ~expected["b"][ids]
    expected["i"][ids] += 1
    for name, value in expected.items():
        np.testing.assert_array_equal(bits(after[name]), bits(value), err_msg=name)
    assert int(total.sum[0]) == np.asarray(store["i"])[ids].sum()
    np.testing.assert_array_equal(found[0], np.arange(size))


# Uplinks with memory -----


def feedback(keep):
    """Sends the largest entries of each array; what is left is added to the next update. The server
    counts its rounds, and tells in the row how much was left."""
    plain = link.ideal()

    def encode(sender):
        wanted = jax.tree.map(jnp.add, sender.trained.delta, sender.memory)
        limit = lambda v: jnp.sort(jnp.abs(v).ravel())[-keep]
        sent = jax.tree.map(lambda v: jnp.where(jnp.abs(v) >= limit(v), v, 0.0), wanted)
        left = jax.tree.map(jnp.subtract, wanted, sent)
        trained = sender.trained._replace(delta=sent)
        return Sent(plain.encode(sender._replace(trained=trained)).total, left)

    def finish(arrival):
        received, seen = plain.finish(arrival), arrival.air.memory
        return Received(received.update, received.cost, seen + 1, {"seen": seen})

    zero = lambda params: jax.tree.map(jnp.zeros_like, params)
    return Uplink(plain.prepare, encode, finish, lambda params: jnp.int32(0), zero)


def largest_four(v):
    return np.where(abs(v) >= np.sort(np.abs(v).ravel())[-4], v, 0)


@pytest.mark.parametrize("devices", [1, 4])
def test_what_compression_leaves_is_sent_later(devices):
    """Against a NumPy loop; three of the clients a round, so that memories wait."""
    chosen = np.array([[0, 3, 5], [3, 1, 0], [6, 5, 3]])
    pick = Participation(3, lambda c: jnp.asarray(chosen, jnp.int32)[c.round], K)
    layout = fp.mesh.make(clients=devices)
    algorithm = build(layout, local=by_rule, uplink=feedback(4), participation=pick)
    state, info, _ = simulate(algorithm)
    model = start()
    left = [jax.tree.map(np.zeros_like, model) for _ in range(K)]
    for t, ids in enumerate(chosen):
        sent = []
        for k in ids:
            moved = moves(t, int(CLIENTS.size[k]) % 5, model)
            wanted = jax.tree.map(np.add, moved, left[k])
            sent.append(jax.tree.map(largest_four, wanted))
            left[k] = jax.tree.map(np.subtract, wanted, sent[-1])
        model = jax.tree.map(lambda w, *u: w + np.mean(u, 0), model, *sent)
    assert apart(state.params, model) < 1e-5
    for k in range(K):
        assert apart(jax.tree.map(lambda v, k=k: v[k], state.memory), left[k]) < 1e-5
    np.testing.assert_array_equal(info.numbers["seen"], [0, 1, 2])
    assert int(state.uplink) == 3


def test_memories_of_arms_are_apart_and_names_are_checked():
    rates = jnp.array([0.1, 0.2])
    algorithm = lambda lr: build(
        local=local.sgd(MODEL, optax.sgd(lr), batch=5, steps=1), uplink=feedback(4)
    )
    keys = jnp.stack([jax.random.key(SEED)] * 2)
    state = fp.run.start(algorithm, MODEL.init, rates, keys)
    twice = lambda v: jnp.stack([v] * 2)
    arms = fp.run.Arms(rates, keys, state, twice(CLIENTS.rows), twice(CLIENTS.size))
    program = fp.run.program(algorithm, fp.mesh.make(clients=1), 2, arms_per_chunk=2)
    ended, infos, _ = program(arms, CLIENTS, CLIENTS)
    for i, lr in enumerate(rates):
        alone, _, _ = simulate(algorithm(lr), 2)
        one = jax.tree.map(lambda v, i=i: v[i], ended.memory)
        assert apart(one, alone.memory) < 1e-6
    rows = loop._rows(
        loop.Program("p", [loop.Label("a", 0), loop.Label("b", 0)], None, None, 2),
        0, jax.device_get(infos), type("M", (), {"_asdict": lambda self: {}})(),
    )  # fmt: skip
    assert [row["seen"] for row in rows] == [0, 0, 1, 1]
    plain = feedback(4)
    taken = lambda arrival: plain.finish(arrival)._replace(numbers={"kept": jnp.int32(0)})
    with pytest.raises(ValueError, match="numbers: 'kept' is a name that the round's row has"):
        simulate(build(uplink=plain._replace(finish=taken)), 1)


# SCAFFOLD: a store of training, messages, reports -----


def test_scaffold_against_a_loop():
    """Option II by hand, with partial participation; every gradient by jax on the same batches."""
    lr, steps, cohort = 0.05, 3, 3
    algorithm = build(
        local=scaffold.train(MODEL, lr, 4, steps),
        personal=scaffold.variates(K),
        server=scaffold.server(K, cohort),
        participation=fp.server.uniform(K, cohort),
    )
    state, info, _ = simulate(algorithm)
    root, model = jax.random.key(SEED), MODEL.init(rng.stream(jax.random.key(SEED), "init"))
    add = lambda a, b, s=1.0: jax.tree.map(lambda x, y: x + s * y, a, b)
    own = [jax.tree.map(jnp.zeros_like, model) for _ in range(K)]
    common = own[0]

    @jax.jit
    def gradient(weights, k, drawn):
        x, y = CLIENTS.client(k).take(drawn)
        return jax.grad(lambda w: local.cross_entropy(MODEL.apply(w, x), y).mean())(weights)

    from problems import candidates

    for t in range(3):
        seen = candidates(rng.stream(root, "cohort", t), K)
        updates, changes = [], []
        for k in np.asarray(fp.server.uniform(K, cohort).select(seen)):
            key, now = rng.stream(root, "local", t, int(k)), model
            for i in range(steps):
                size = int(CLIENTS.size[k])
                drawn = jax.random.randint(rng.stream(key, "batch", i), (4,), 0, size)
                slope = add(add(gradient(now, int(k), drawn), own[k], -1.0), common)
                now = add(now, slope, -lr)
            update = add(now, model, -1.0)
            new = add(add(own[k], common, -1.0), update, -1 / (steps * lr))
            updates.append(update)
            changes.append(add(new, own[k], -1.0))
            own[k] = new
        mean = lambda values: jax.tree.map(lambda *v: sum(v) / cohort, *values)
        model, common = add(model, mean(updates)), add(common, mean(changes), cohort / K)
    assert apart(state.params, model) < 1e-5
    assert apart(state.server, common) < 1e-5
    for k in range(K):
        assert apart(jax.tree.map(lambda v, k=k: v[k], state.personal), own[k]) < 1e-5
    weights = sum(v.size for v in leaves(model))
    np.testing.assert_array_equal(info.cost.side_information, weights * (1 + cohort))


def test_reports_are_billed_and_heard_in_rounds_that_ask():
    def reporting(key, t, params, mask, client):
        told = {"size": client.size.astype(jnp.float32)}
        return by_rule(key, t, params, mask, client)._replace(report=Report(told, t == 1))

    seen = lambda state, outcome: jnp.where(outcome.asked, outcome.report["size"], state)
    plain = fp.server.average()
    server = plain._replace(
        init=lambda params: jnp.float32(-1),
        update=lambda state, o: (tree.where(True, o.params, o.params), seen(state, o)),
        numbers=lambda state: {"told": state},
    )
    _, info, _ = simulate(build(local=reporting, server=server))
    np.testing.assert_array_equal(info.cost.side_information, [0, K, 0])
    expected = np.asarray(CLIENTS.size).mean()
    np.testing.assert_allclose(info.numbers["told"], [-1, expected, expected], rtol=1e-6)


# Who takes part -----


def test_selection_by_channel_age_and_loss_against_a_loop():
    fading = channel.block_fading(2)
    uplink = link.over_the_air(np.inf, "common", fading=fading, threshold=0.5)
    chosen = selection.by_channel_age_and_loss(K, 3, 1.0, 0.5, 0.2)
    state, info, _ = simulate(build(local=by_rule, uplink=uplink, participation=chosen), 5)
    root, age, loss = jax.random.key(SEED), np.zeros(K), np.zeros(K)
    for t in range(5):
        drawn = np.asarray(fading(root, jnp.int32(t), jnp.arange(K)).antennas)
        gain = (abs(drawn) ** 2).sum(1)
        score = np.log2(1 + gain) + 0.5 * age + 0.2 * loss
        ids = sorted(range(K), key=lambda k: (-score[k], k))[:3]
        combined = channel.superposed(fading(root, jnp.int32(t), jnp.asarray(ids)))
        age += 1
        for k, h in zip(ids, np.asarray(combined.known), strict=True):
            if abs(h) ** 2 >= 0.5:
                age[k], loss[k] = 0, int(CLIENTS.size[k]) % 5
        assert int(info.numbers["oldest"][t]) == age.max()
    np.testing.assert_array_equal(state.participation.age, age)
    np.testing.assert_allclose(state.participation.loss, loss, rtol=1e-6)
    with pytest.raises(ValueError, match="participation: asks for channels"):
        build(participation=chosen)


def test_of_those_that_are_probed_some_go_on():
    """Six are asked for their size; the three with most examples train and find their answer."""

    def ask(key, t, params, mask, client):
        return {"size": client.size, "twice": 2 * client.size}

    def decide(candidates, ids, answers):
        return jax.lax.top_k(answers["size"], 3)[1]

    def train(key, t, params, mask, client):
        return Trained(jax.tree.map(jnp.ones_like, params), client.probe["twice"].astype("f4"))

    pick = Participation(
        3, lambda c: jnp.arange(6, dtype=jnp.int32), K, probe=Probe(6, ask, decide)
    )
    _, info, _ = simulate(build(local=train, participation=pick), 1)
    best = np.sort(np.asarray(CLIENTS.size)[:6])[-3:]
    assert info.train_loss[0] == pytest.approx(2 * best.mean())
    assert info.clients[0] == 3
    assert info.cost.side_information[0] == 2 * 6


# Capacity -----


def test_strata_train_smaller_networks():
    """The first two clients train half of the hidden units; means over holders, and less work."""

    def narrow(params):
        first, second = params["Dense_0"], params["Dense_1"]
        half = first["bias"].shape[0] // 2
        cut = {"kernel": first["kernel"][:, :half], "bias": first["bias"][:half]}
        rest = {"kernel": second["kernel"][:half], "bias": second["bias"]}
        return {"Dense_0": cut, "Dense_1": rest}

    def widen(small, zeros):
        half = small["Dense_0"]["bias"].shape[0]
        first, second = zeros["Dense_0"], zeros["Dense_1"]
        one, two = small["Dense_0"], small["Dense_1"]
        return {
            "Dense_0": {
                "kernel": first["kernel"].at[:, :half].set(one["kernel"]),
                "bias": first["bias"].at[:half].set(one["bias"]),
            },
            "Dense_1": {
                "kernel": second["kernel"].at[:half].set(two["kernel"]),
                "bias": two["bias"],
            },
        }

    ones = lambda key, t, params, mask, client: Trained(
        jax.tree.map(jnp.ones_like, params), jnp.float32(0)
    )
    whole = (Stratum(2, ones, narrow, widen), Stratum(5, ones, lambda p: p, lambda s, z: s))
    uplink = link.holders(link.ideal(), link.ideal(), 1e-6)
    state, info, _ = simulate(build(local=whole, uplink=uplink), 1)
    moved = jax.tree.map(lambda a, b: np.asarray(a) - b, state.params, start())
    assert all(np.allclose(v, 1, atol=1e-5) for v in leaves(moved))  # by the holders of each
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    count = lambda params: sum(v.size for v in jax.tree.leaves(params))
    small = count(jax.eval_shape(narrow, shapes))
    assert info.sent[0] == 2 * small + 5 * count(shapes)

    def flops(strata):
        algorithm = build(local=strata, uplink=uplink)
        key = jax.random.key(0)[None]
        state = fp.run.start(lambda _: algorithm, MODEL.init, (), key)
        arms = fp.run.Arms((), key, state, CLIENTS.rows[None], CLIENTS.size[None])
        program = fp.run.program(lambda _: algorithm, fp.mesh.make(clients=1), 1)
        return program.lower(arms, CLIENTS, CLIENTS).compile().cost_analysis()["flops"]

    # XLA counts the body of a loop once, so that all clients are of one stratum here.
    train = lambda model: local.sgd(model, optax.sgd(0.1), batch=20, steps=2)
    half = fp.models.mlp(hidden=(8,), input_shape=(8, 8, 1))
    large = (Stratum(7, train(MODEL), lambda p: p, lambda s, z: s),)
    assert flops((Stratum(7, train(half), narrow, widen),)) < 0.75 * flops(large)
    with pytest.raises(ValueError, match=r"strata: of \[2\] clients, but the cohort has 7"):
        simulate(build(local=(Stratum(2, ones, narrow, widen),), uplink=uplink), 1)


# What is evaluated, bills, refusals -----


def test_another_model_is_evaluated():
    half = lambda state: tree.scale(0.0, state.params)
    _, _, metrics = simulate(build(local=by_rule, model=half), 1)
    assert metrics.loss == pytest.approx(np.log(10), rel=1e-5)  # all logits equal


def test_counts_are_exact_integers():
    gen = np.random.default_rng(SEED)
    small = gen.integers(0, 10**7, 30_000)
    assert int(bill.total(bill.count(jnp.asarray(small.astype(np.int32))))) == small.sum()
    for factor in (1, 7, 2000):
        assert int(bill.times(500_000_001, factor)) == 500_000_001 * factor
    assert int(bill.add(*[bill.count(jnp.float32(2.0**33))] * 3, bill.count(5))) == 3 * 2**33 + 5
    assert bill.on_host(bill.count(jnp.float32(np.inf))) == np.inf
    assert bill.on_host({"a": bill.count(jnp.arange(3))})["a"].dtype == np.int64


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"uplink": feedback(4)}, "uplink: keeps memory"),
        ({"cloud": feedback(4)}, "cloud: keeps memory"),
        ({"server": scaffold.server(K, K)}, "server: sends a message"),
        ({"participation": selection.by_channel_age_and_loss(K, 3)}, "participation: learns"),
    ],
)
def test_edge_servers_refuse_what_they_do_not_carry(changed, message):
    stages = {
        "local": by_rule,
        "uplink": link.ideal(),
        "cloud": link.ideal(),
        "server": fp.server.average(),
        "participation": fp.server.full(K),
        "edges": Edges(jnp.asarray([0, 0, 0, 1, 1, 1, 1]), 2),
        "edge_rounds": 1,
        "layout": fp.mesh.make(clients=1),
    }
    with pytest.raises(ValueError, match=message):
        hierarchical.build(**(stages | changed))


# Every uplink -----

FADED = {"fading": channel.block_fading(2, csi_error=0.1)}
UPLINKS = {
    "ideal": link.ideal(),
    **{f"air-{n}": link.over_the_air(10.0, n, **FADED) for n in link.NORMALISATIONS},
    "air-real": link.over_the_air(10.0, packing="real", **FADED),
    "orthogonal": link.orthogonal(10.0, **FADED),
    "outage": link.orthogonal(0.0, 1.0, 8, **FADED),
    "entropy": link.orthogonal(10.0, value_bits=4, bitstream="entropy", **FADED),
    "one-by-one": link.one_by_one(link.analog(10.0)),
    "holders": link.holders(link.over_the_air(10.0, "common", **FADED),
                            link.over_the_air(10.0, "common", **FADED), 0.1),
}  # fmt: skip


@pytest.mark.parametrize("name", UPLINKS)
def test_every_uplink_keeps_the_contract(name):
    """Masks are respected, bills are whole, four devices are one, and nobody changes nothing."""
    pruner = fp.prune.scheduled(fp.prune.constant(0.7))
    states = []
    for devices in (1, 4):
        layout = fp.mesh.make(clients=devices, reduction="strict")
        algorithm = build(layout, local=by_masked, uplink=UPLINKS[name], pruner=pruner)
        state, info, _ = simulate(algorithm, 2)
        states.append(state)
    assert same(states[0].params, states[1].params)
    for w, m in zip(leaves(state.params), leaves(state.mask), strict=True):
        assert np.isfinite(w).all()
        assert not w[~m].any()
    assert info.cost.channel_uses.dtype == np.int64
    assert (info.cost.channel_uses > 0).all() == (name != "ideal")
    nobody = CLIENTS._replace(size=jnp.zeros(K, jnp.int32))
    empty, info, _ = fp.run.simulate(algorithm, MODEL, nobody, CLIENTS, 1, seed=SEED)
    expected = tree.apply_mask(empty.mask, jax.tree.map(jnp.float32, start()))
    assert apart(empty.params, expected) < 1e-6
    np.testing.assert_array_equal(info.clients, 0)


def by_masked(key, t, params, mask, client):
    trained = by_rule(key, t, params, mask, client)
    return trained._replace(delta=tree.apply_mask(mask, trained.delta))
