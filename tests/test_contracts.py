"""What the contracts of the stages promise whoever writes a stage."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from problems import federation, leaves, mlp, same

import fedprune as fp
from fedprune import bill, channel, link, resources, rng
from fedprune import config as cfg
from fedprune.algorithms import feddst, prunefl, scaffold
from fedprune.rounds import Edges, Stratum, hierarchical
from fedprune.runs import loop
from fedprune.types import (
    SCOPES,
    Air,
    Candidates,
    Count,
    Model,
    Participation,
    Probe,
    Pruner,
    Received,
    Report,
    Sent,
    Total,
    Trained,
    Uplink,
)

KEY = jax.random.key(3)
D = 6
# A model of one array, whose output nobody needs.
VECTOR = Model(lambda key: {"w": jnp.linspace(-1.0, 1.0, D)}, lambda p, x: x[:, :1, 0, 0])


def first_example(client):
    return client.take(jnp.zeros(1, jnp.int32))[0].reshape(D)


def towards(key, t, params, mask, client):
    """To the client's first example."""
    delta = {"w": first_example(client) - params["w"]}
    return Trained(fp.tree.apply_mask(mask, delta), client.size.astype(jnp.float32))


def build(layout=None, **stages):
    given = {"local": towards, "uplink": link.ideal(), "server": fp.server.average()}
    return fp.rounds.build(**given | stages, layout=layout or fp.mesh.make(clients=1))


def run(make, model, clients, rounds, hyper=(), arms=1, arms_per_chunk=None, size=None):
    """(states, infos) of some arms of one seed."""
    keys = jnp.stack([KEY] * arms)
    layout = make(jax.tree.map(lambda v: v[0], hyper)).layout
    state = fp.run.start(make, model.init, hyper, keys)
    rows = jnp.stack([clients.rows] * arms)
    size = jnp.stack([clients.size] * arms) if size is None else size
    program = fp.run.program(make, layout, rounds, arms_per_chunk=arms_per_chunk)
    return program(fp.run.Arms(hyper, keys, state, rows, size), clients, clients)[:2]


# The store -----


def rows_of_all_types(count, seed):
    """Any bits: negative zeros, infinities, NaNs with payloads, denormal numbers."""
    draw = np.random.default_rng(seed)
    bits = lambda dtype, *shape: draw.integers(0, 2 ** (8 * np.dtype(dtype).itemsize), shape)
    single = bits("u4", count, 3).astype(np.uint32)
    half = bits("u2", count, 2, 2).astype(np.uint16)
    single[:3, 0] = 0x80000000, 0x7FC12345, 0xFF800001
    half[:3, 0, 0] = 0x8000, 0x7FC5, 0xFF81
    return {
        "float32": single.view(np.float32),
        "bfloat16": half.view(ml_dtypes.bfloat16),
        "int8": bits("u1", count).astype(np.uint8).view(np.int8),
        "uint16": bits("u2", count, 5).astype(np.uint16),
        "bool": draw.random((count, 4)) < 0.5,
    }


@pytest.mark.optimized
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("reduction", ["fast", "strict"])
def test_store_equals_indexing(devices, chunk, reduction):
    """Eleven clients, ten of whom are in the cohort: bit for bit, and the last stays as it was.

    What the training of a client makes of its row is its own affair: here rows come from bits, and
    go into bits.
    """
    layout = fp.mesh.make(clients=devices, chunk=chunk, reduction=reduction)
    count, size = 11, 10
    ids = np.random.default_rng(devices).permutation(count)[:size]
    old, new = rows_of_all_types(count, 1), rows_of_all_types(count, 2)
    bits = {"float32": np.uint32, "bfloat16": np.uint16}

    def contribution(shared, position, row):
        new, ids = shared
        mine = {
            name: jax.lax.bitcast_convert_type(v[ids[position]], row[name].dtype)
            if name in bits
            else v[ids[position]]
            for name, v in new.items()
        }
        seen = {
            name: jax.lax.bitcast_convert_type(v, bits[name]) if name in bits else v
            for name, v in row.items()
        }
        return Total(jnp.int32(1), ()), mine, seen

    def on_device(store, new, ids):
        store = jax.tree.map(lambda v: v[0], store)
        found = fp.mesh.collect(contribution, (new, ids), size, layout, store, ids)
        return jax.tree.map(lambda v: v[None], found)

    missing = -count % devices
    fill = lambda v: jnp.asarray(np.concatenate([v, v[:missing]])[None])
    spread = fp.mesh.spread(on_device, layout, (2, 0, 0), (1, 2, 1))
    total, store, found = jax.jit(spread)(
        jax.tree.map(fill, old),
        {name: jnp.asarray(v.view(bits.get(name, v.dtype))) for name, v in new.items()},
        jnp.asarray(ids),
    )
    assert total.sum.tolist() == [size]
    for name, before in old.items():
        after = before.copy()
        after[ids] = new[name][ids]
        assert np.asarray(store[name])[0, :count].tobytes() == after.tobytes(), name
        assert np.asarray(found[name])[0].tobytes() == before[ids].tobytes(), name


# Memory of the uplink -----


def feedback(keep, beta):
    """The largest weights of update and error; the server remembers a moving sum."""

    def prepare(cohort):
        sends = (cohort.ids + cohort.round) % 3 != 0
        return Air(sends, sends, (), memory=None)

    def encode(sender):
        whole = sender.trained.delta["w"] + sender.memory
        sent = jnp.where(jnp.abs(whole) >= jnp.sort(jnp.abs(whole))[-keep], whole, 0.0)
        total = Total((sender.weight * sent, sender.weight), ())
        return Sent(total, whole - sent)

    def finish(arrival):
        signal, weight = arrival.total.sum
        moved = beta * arrival.air.memory + fp.tree.mean(signal, weight)
        return Received({"w": moved}, link.free(), moved, {"length": jnp.abs(moved).sum()})

    zeros = lambda params: jnp.zeros_like(params["w"])
    return Uplink(prepare, encode, finish, init=zeros, remember=zeros)


@pytest.mark.parametrize(("devices", "per_chunk"), [(1, 1), (1, 2), (4, 2)])
def test_memory_of_the_uplink_against_a_loop(devices, per_chunk):
    """Error feedback: K is no multiple of four, some of the cohort are lost; two arms."""
    K, S, keep, rounds, betas = 6, 4, 2, 5, [0.9, 0.3]
    clients, some = federation(K, shape=(2, 3, 1)), fp.server.uniform(6, 4)
    layout = fp.mesh.make(clients=devices)

    def make(beta):
        return build(layout, uplink=feedback(keep, beta), participation=some)

    states, infos = run(make, VECTOR, clients, rounds, jnp.array(betas), 2, per_chunk)
    size = np.asarray(clients.size, np.float64)
    images = np.asarray(clients.examples, np.float64)[np.asarray(clients.rows)[:, 0]].reshape(K, D)
    for arm, beta in enumerate(betas):
        w, errors, moved = np.linspace(-1, 1, D), np.zeros((K, D)), np.zeros(D)
        for t in range(rounds):
            at = Candidates(rng.stream(KEY, "cohort", t), jnp.int32(t), clients.size)
            heard = [k for k in np.asarray(some.select(at)) if (k + t) % 3]
            total = np.zeros(D)
            for k in heard:
                whole = images[k] - w + errors[k]
                sent = np.zeros(D)
                largest = np.argsort(-abs(whole))[:keep]
                sent[largest] = whole[largest]
                errors[k] = whole - sent
                total += size[k] * sent
            moved = beta * moved + total / size[heard].sum()
            w = w + moved
            assert 0 < len(heard) <= S
            assert int(infos.clients[arm, t]) == len(heard)
            np.testing.assert_allclose(infos.numbers["length"][arm, t], abs(moved).sum(), rtol=1e-5)
        np.testing.assert_allclose(states.params["w"][arm], w, atol=1e-5)
        np.testing.assert_allclose(states.memory[arm], errors, atol=1e-5)
        np.testing.assert_allclose(states.uplink[arm], moved, atol=1e-5)
        assert abs(errors).max() > 0.1


# A probe -----


@pytest.mark.parametrize("devices", [1, 4])
def test_of_six_that_are_asked_three_go_on(devices):
    """The three with most examples; each finds its own answer again; six answers are billed."""
    clients = federation(8, shape=(2, 3, 1))

    def ask(key, t, params, mask, client):
        return {"size": client.size, "first": first_example(client) + params["w"]}

    def decide(candidates, ids, answers):
        return jax.lax.top_k(answers["size"], 3)[1]

    def local(key, t, params, mask, client):
        right = (client.probe["size"] == client.size).astype(jnp.float32)
        return Trained({"w": client.probe["first"]}, right)

    chosen = jnp.array([7, 2, 5, 0, 3, 6], jnp.int32)
    participation = Participation(
        3, lambda _: chosen, 8, init=lambda: jnp.zeros(3, jnp.int32),
        learn=lambda state, outcome: outcome.ids, probe=Probe(6, ask, decide),
    )  # fmt: skip
    algorithm = build(
        fp.mesh.make(clients=devices), local=local, participation=participation, weighting="plain"
    )
    state, info, _ = fp.run.simulate(algorithm, VECTOR, clients, clients, 1)
    asked = np.asarray(chosen)
    going = asked[np.argsort(-np.asarray(clients.size)[asked], kind="stable")[:3]]
    assert state.participation.tolist() == going.tolist()
    assert info.train_loss.tolist() == [1.0]
    images = np.asarray(clients.examples)[np.asarray(clients.rows)[going, 0]].reshape(3, D)
    w = np.linspace(-1, 1, D)
    np.testing.assert_allclose(state.params["w"], w + (images + w).mean(0), atol=1e-5)
    assert info.cost.side_information.tolist() == [6 * (D + 1) + 3]  # and three losses


# Strata -----

WIDE, NARROW = mlp(), fp.models.mlp(hidden=(4,), input_shape=(8, 8, 1))


def sgd(model, batch=4):
    return fp.local.sgd(model, optax.sgd(0.1), batch, steps=2)


def narrow(values):
    first, last = values["Dense_0"], values["Dense_1"]
    return {
        "Dense_0": {"kernel": first["kernel"][:, :4], "bias": first["bias"][:4]},
        "Dense_1": {"kernel": last["kernel"][:4], "bias": last["bias"]},
    }


def widen(small, nothing):
    put = lambda s, z: z.at[tuple(slice(n) for n in s.shape)].set(s)
    return jax.tree.map(put, small, nothing)


def stratified(small, layout=None, sizes=(2, 3), batch=4, **stages):
    whole = Stratum(sizes[0], sgd(WIDE, batch), lambda values: values, lambda values, _: values)
    other = Stratum(sizes[1], sgd(NARROW, batch), narrow, widen) if small else whole
    strata = (whole, other._replace(size=sizes[1]))
    return build(
        layout,
        local=strata,
        uplink=link.holders(link.ideal(), link.ideal(), 1e-3),
        participation=fp.server.full(5),
        **stages,
    )


@pytest.mark.parametrize(("devices", "ratio"), [(1, 0.0), (4, 0.0), (1, 0.5)])
def test_strata_against_a_loop(devices, ratio):
    """Of five clients three train a smaller network; the mean is over who holds a weight.

    With a ratio half of the kernels' weights are pruned by the server, by magnitude, in round 0.
    """
    clients = federation(5)
    pruner = fp.prune.scheduled(fp.prune.one_shot(ratio, 0)) if ratio else None
    state, info, _ = fp.run.simulate(
        stratified(True, fp.mesh.make(clients=devices), pruner=pruner),
        *(WIDE, clients, clients, 2, 3),
    )
    params = WIDE.init(rng.stream(KEY, "init"))
    mask = jax.tree.map(np.ones_like, params)
    if ratio:
        kernels = [abs(layer["kernel"]) for layer in params.values()]
        middle = np.median(np.concatenate([k.reshape(-1) for k in kernels]))
        for layer, kernel in zip(mask, kernels, strict=True):
            mask[layer]["kernel"] = np.float32(kernel > middle)
        params = jax.tree.map(jnp.multiply, params, mask)
        assert all(map(np.array_equal, leaves(state.mask), leaves(mask)))
    whole = jax.tree.map(lambda m: m > 0, mask) if ratio else None
    trainers = {2: jax.jit(sgd(WIDE)), 3: jax.jit(sgd(NARROW))}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for t in range(2):
        top, bottom = ([np.zeros(v.shape) for v in leaves(params)] for _ in range(2))
        for k in range(5):
            at, client = rng.stream(KEY, "local", t, k), clients.client(k)
            mine = params if k < 2 else narrow(params)
            held = whole if k < 2 or whole is None else narrow(whole)
            delta = trainers[2 if k < 2 else 3](at, jnp.int32(t), mine, held, client).delta
            ones = mask if k < 2 else narrow(mask)
            if k >= 2:
                delta, ones = widen(delta, zeros), widen(ones, zeros)
            for i, (d, m) in enumerate(zip(leaves(delta), leaves(ones), strict=True)):
                top[i] += int(clients.size[k]) * d
                bottom[i] += int(clients.size[k]) * m
        steps = [a / np.maximum(b, 1) for a, b in zip(top, bottom, strict=True)]
        flat = [w + step for w, step in zip(leaves(params), steps, strict=True)]
        params = jax.tree.unflatten(jax.tree.structure(params), map(jnp.float32, flat))
    for found, expected in zip(leaves(state.params), leaves(params), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    sizes = [sum(v.sum() for v in leaves(m)) for m in (mask, narrow(mask))]
    assert (info.sent == 2 * sizes[0] + 3 * sizes[1]).all()


def test_strata_with_masks_of_their_own():
    """They may have some with scope "own", and none beside a mask that all clients share."""

    def keeping(key, t, params, mask, client):
        trained = sgd(WIDE)(key, t, params, None, client)
        return trained._replace(held=jax.tree.map(lambda w: w > 0, params))

    def one(scope):
        strata = (Stratum(5, keeping, lambda values: values, lambda values, _: values),)
        pruner = fp.prune.scheduled(fp.prune.one_shot(0.5, 0), scope=scope)
        algorithm = build(
            local=strata, uplink=link.ideal(), participation=fp.server.full(5), pruner=pruner
        )
        return fp.run.simulate(algorithm, WIDE, federation(5), federation(5), 1)

    state, _, _ = one("own")
    assert all(np.isfinite(v).all() for v in leaves(state.params))
    with pytest.raises(ValueError, match="outside the mask that all clients share"):
        one("server")


def test_small_strata_compute_less():
    """Operations of the compiled round: four of five clients have a quarter of the hidden units."""
    clients = federation(5)

    def operations(small):
        algorithm = stratified(small, fp.mesh.make(clients=1, chunk=4), (1, 4), batch=64)
        state = jax.eval_shape(algorithm.init, WIDE.init(KEY))
        step = jax.jit(fp.mesh.spread(algorithm.step, algorithm.layout, (0, 0, 0), 0))
        return step.lower(KEY, state, clients).compile().cost_analysis()["flops"]

    assert operations(True) < 0.75 * operations(False)


def test_strata_have_to_fill_the_cohort():
    with pytest.raises(ValueError, match=r"strata: of \[2, 2\] clients, but the cohort has 5"):
        fp.run.simulate(stratified(True, sizes=(2, 2)), WIDE, federation(5), federation(5), 1)


# The row -----


def numbered(stage, name, value=7.0):
    """Stages that count nothing, of which one gives a number."""
    give = {name: jnp.asarray(value)}
    plain, mean = link.ideal(), fp.server.average()

    def finish(arrival):
        received = plain.finish(arrival)
        return received._replace(numbers=give) if stage == "uplink" else received

    numbers = {kind: (lambda state: give) if stage == kind else None for kind in STAGES}
    keep = lambda state, before: (before.mask, state)
    return {
        "uplink": plain._replace(finish=finish),
        "server": mean._replace(numbers=numbers["server"]),
        "pruner": Pruner(lambda params: (), keep, numbers=numbers["pruner"]),
        "participation": fp.server.full(3)._replace(numbers=numbers["participation"]),
    }


STAGES = ("uplink", "server", "pruner", "participation")
VECTORS = federation(3, shape=(2, 3, 1))


@pytest.mark.parametrize("stage", STAGES)
def test_numbers_of_stages_are_in_the_row(stage):
    _, infos = run(lambda _: build(**numbered(stage, "own")), VECTOR, VECTORS, 2)
    program = loop.Program("p", [loop.Label("a", 0)], lambda: None, lambda _: None, 1)
    measured = fp.run.Metrics(np.zeros(1), np.zeros(1))
    rows = loop._rows(program, 4, jax.tree.map(np.asarray, infos), measured)
    assert [(row["round"], row["own"], row["clients"]) for row in rows] == [(5, 7, 3), (6, 7, 3)]


@pytest.mark.parametrize("stage", STAGES)
def test_numbers_that_are_arrays_are_refused(stage):
    with pytest.raises(ValueError, match=r"numbers: 'own' must be a scalar, not of \(2,\)"):
        run(lambda _: build(**numbered(stage, "own", (1.0, 2.0))), VECTOR, VECTORS, 1)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["clients", "seconds", "round", "test_accuracy"])
def test_taken_names_are_refused(stage, name):
    with pytest.raises(ValueError, match=f"numbers: '{name}' is a name that the round's row has"):
        run(lambda _: build(**numbered(stage, name)), VECTOR, VECTORS, 1)


def test_two_stages_do_not_give_the_same_name():
    stages = numbered("server", "own") | {"uplink": numbered("uplink", "own")["uplink"]}
    with pytest.raises(ValueError, match="numbers: 'own'"):
        run(lambda _: build(**stages), VECTOR, VECTORS, 1)


# What edge servers do not carry -----


def edged(**changes):
    given = {
        "local": towards, "uplink": link.ideal(), "cloud": link.ideal(),
        "server": fp.server.average(), "participation": fp.server.full(3),
        "edges": Edges(jnp.array([0, 0, 1]), 2), "edge_rounds": 2,
        "layout": fp.mesh.make(clients=1),
    }  # fmt: skip
    return hierarchical.build(**given | changes)


REMEMBERS = feedback(2, 0.5)
SELECTION = fp.server.full(3)
REFUSED = {
    "uplink: keeps memory": {"uplink": REMEMBERS},
    "uplink: keeps memory (init or remember)": {"uplink": REMEMBERS._replace(init=None)},
    "cloud: keeps memory": {"cloud": REMEMBERS._replace(remember=None)},
    "server: sends a message": {"server": fp.server.average()._replace(message=lambda s: ())},
    "participation: learns": {"participation": SELECTION._replace(learn=lambda s, o: s)},
    "participation: learns (init": {"participation": SELECTION._replace(init=lambda: ())},
    "participation: asks for channels": {"participation": SELECTION._replace(gains=True)},
    "participation: probes": {"participation": SELECTION._replace(probe=Probe(3, None, None))},
    "participation: gives numbers": {"participation": SELECTION._replace(numbers=lambda s: {})},
    "pruner: revises its mask": {
        "pruner": Pruner(lambda p: (), lambda s, b: (b.mask, s), revise=lambda s, o: (o.mask, s))
    },
}


@pytest.mark.parametrize("what", REFUSED)
def test_edge_servers_refuse_by_name(what):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        edged(**REFUSED[what])
    assert str(refusal.value).startswith(what)
    assert str(refusal.value).endswith("which rounds with edge servers do not carry")


@pytest.mark.parametrize(
    ("what", "gives"),
    [
        ("local: reports", {"report": Report(jnp.float32(1))}),
        ("local: keeps personal parts", {"personal": jnp.float32(1)}),
    ],
)
def test_edge_servers_refuse_what_training_gives(what, gives):
    algorithm = edged(local=lambda *args: towards(*args)._replace(**gives))
    with pytest.raises(ValueError, match=rf"^{what} .*edge servers do not carry"):
        run(lambda _: algorithm, VECTOR, VECTORS, 1)


def test_edge_servers_refuse_strata():
    stratum = Stratum(3, towards, lambda v: v, lambda v, _: v)
    with pytest.raises((TypeError, ValueError), match=r"^local"):
        edged(local=(stratum,))


# Counts -----


def test_counts_are_exact():
    """Products, and sums in any grouping, up to 1e12; beyond 32 bits and beyond float32."""
    draw = np.random.default_rng(5)
    numbers = [int(n) for n in draw.integers(0, 2**31, 400)]
    counts = bill.count(jnp.array(numbers, jnp.int32))
    assert int(bill.total(counts)) == sum(numbers) > 4e11
    apart = [bill.count(n) for n in numbers[:50]]
    assert int(bill.add(*apart)) == sum(numbers[:50])
    together = jax.tree.map(lambda v: v.sum(), counts)
    assert int(bill.carried(together)) == sum(numbers)
    for a, b in ((2**31 - 1, 465), (30_517_578, 32_767), (65_535, 32_767), (0, 7), (7, 0)):
        assert int(bill.times(a, b)) == a * b <= 1e12
        assert bill.on_host(bill.times(a, b)) == a * b
    large = bill.times(30_517_578, 32_767)
    assert int(bill.add(large, bill.count(1))) == 30_517_578 * 32_767 + 1
    assert 0 <= int(large.low) < 65536
    assert f"{large}" == f"{30_517_578 * 32_767}"
    for exact in (0.0, 1.0, 65536.0, 2.0**24 + 2, 3e9, 2.0**39):
        assert int(bill.count(jnp.float32(exact))) == int(np.float32(exact))


def test_infinite_counts_stay_infinite():
    infinite = bill.count(jnp.float32(jnp.inf))
    for found in (infinite, bill.add(infinite, bill.count(3)), bill.carried(infinite)):
        assert float(found) == np.inf
        assert bill.on_host(found) == np.inf
        assert bill.approximate(found) == np.inf
    some = bill.count(jnp.array([1.0, jnp.inf, 2.0]))
    assert float(bill.total(some)) == np.inf
    assert bill.on_host(some).tolist() == [1.0, np.inf, 2.0]


# What is evaluated, and what is lowered -----


def test_the_rounds_model_is_evaluated():
    """Not the state's params, nor with its mask."""
    clients, other = federation(5), WIDE.init(jax.random.key(9))
    given = {
        "local": sgd(WIDE), "participation": fp.server.full(5),
        "pruner": fp.prune.scheduled(fp.prune.one_shot(0.9, 0)),
    }  # fmt: skip
    x = np.asarray(clients.examples)
    right = np.argmax(WIDE.apply(other, x), -1) == np.asarray(clients.labels)
    doubled = lambda state: jax.tree.map(lambda w, o: 0.0 * w + o, state.params, other)
    state, _, metrics = fp.run.simulate(build(**given, model=doubled), WIDE, clients, clients, 1)
    np.testing.assert_allclose(metrics.accuracy, right.mean(), rtol=1e-6)
    plain_state, _, plain = fp.run.simulate(build(**given), WIDE, clients, clients, 1)
    assert same(state.params, plain_state.params)
    assert plain.loss != metrics.loss


@pytest.mark.parametrize("devices", [1, 8])
def test_shapes_are_enough_to_lower_a_program(devices):
    """With a store in blocks: the same text as with arrays, for as many devices."""
    clients, some = federation(6, shape=(2, 3, 1)), fp.server.uniform(6, 4)
    layout = fp.mesh.make(clients=devices)

    def make(beta):
        return build(layout, uplink=feedback(2, beta), participation=some)

    hyper, keys = jnp.array([0.5]), KEY[None]
    state = fp.run.start(make, VECTOR.init, hyper, keys)
    arms = fp.run.Arms(hyper, keys, state, clients.rows[None], clients.size[None])
    args = (arms, clients, clients)
    program = fp.run.program(make, layout, 2)
    shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), args)
    text = program.lower(*shapes).as_text()
    assert text == program.lower(*args).as_text()
    assert f"num_partitions = {devices} " in text


# All uplinks -----


class Layers(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


LAYERS = Model(
    lambda key: Layers(jax.random.normal(key, (8, 3)), jnp.ones(3)), lambda p, x: x[:, :1, 0, 0]
)
DEEP = 1e9  # of |h|^2, so that nobody sends


def scattered(key, t, params, mask, client):
    def one(i, w):
        return jax.random.normal(rng.stream(key, "delta", i), w.shape)

    delta = Layers(*(one(i, w) for i, w in enumerate(params)))
    return Trained(fp.tree.apply_mask(mask, delta), jnp.float32(1.0))


def ofdma(threshold):
    work = resources.hierarchical(27, 100, steps=2, cycles=1e5, value_bits=32)
    gains = lambda root, t, ids: jnp.full(ids.shape, 1e-9)
    return link.ofdma(work, gains, 1.0, 1e9, 0.1, 1e-12, 1e6)


def air(threshold, normalisation="common"):
    return link.over_the_air(
        10.0, normalisation, fading=channel.block_fading(), threshold=threshold
    )


def selective():
    """Blocks that fade apart, and go on from round to round."""
    return channel.block_fading(blocks=3, taps=(1.0, 0.5), correlation=0.9, clients=5)


def digital(threshold, **options):
    return link.orthogonal(10.0, fading=channel.block_fading(), threshold=threshold, **options)


UPLINKS = {
    "ideal": lambda threshold: link.ideal(),
    **{name: lambda threshold, n=name: air(threshold, n) for name in link.NORMALISATIONS},
    "blocks": lambda threshold: link.over_the_air(
        10.0, "device", fading=selective(), threshold=threshold
    ),
    "orthogonal": digital,
    "rate": lambda threshold: digital(threshold, rate=0.5),
    "entropy": lambda threshold: digital(threshold, value_bits=4, bitstream="entropy"),
    "holders": lambda threshold: link.holders(air(threshold), air(threshold), 0.1),
    "one_by_one": lambda threshold: link.one_by_one(link.analog(10.0)),
    "ofdma": ofdma,
}
FADE = set(UPLINKS) - {"ideal", "one_by_one", "ofdma"}


def some(names, ci):
    """All names, of which continuous integration tries those in ``ci``."""
    return [
        pytest.param(name, marks=pytest.mark.slow if name in ci else pytest.mark.nightly)
        for name in names
    ]


@pytest.mark.parametrize("name", some(UPLINKS, {"common", "blocks", "entropy"}))
def test_every_uplink_keeps_the_contract(name):
    """Three arms of one program: all is well; nobody's channel is good enough; nobody has examples.

    On one device with arms one after another, and on four with arms under vmap.
    """
    clients, thresholds = federation(5), jnp.array([0.0, DEEP, 0.0])
    size = jnp.stack([clients.size, clients.size, jnp.zeros_like(clients.size)])
    found = {}
    for devices in (1, 4):
        layout = fp.mesh.make(clients=devices, reduction="strict")

        def make(threshold, layout=layout):
            pruner = fp.prune.scheduled(fp.prune.one_shot(0.5, 0))
            return build(
                layout, local=scattered, uplink=UPLINKS[name](threshold), pruner=pruner,
                participation=fp.server.uniform(5, 3),
            )  # fmt: skip

        found[devices] = run(
            make, LAYERS, clients, 2, thresholds, 3, 1 if devices == 1 else 3, size
        )
    for one, four in zip(leaves(found[1]), leaves(found[4]), strict=True):
        np.testing.assert_allclose(one, four, rtol=1e-5, atol=1e-6)
    states, infos = found[1]
    start = LAYERS.init(rng.stream(KEY, "init"))
    heard = np.array([True, name not in FADE, False])
    for new, old, mask in zip(states.params, start, states.mask, strict=True):
        assert (new.shape, new.dtype) == ((3, *old.shape), old.dtype)
        assert np.isfinite(new).all()
        assert not np.asarray(new)[~np.asarray(mask)].any()
        kept = np.where(mask, old, 0)
        for arm in range(3):
            assert (np.asarray(new[arm]) != kept[arm]).any() == heard[arm]
    np.testing.assert_array_equal(np.asarray(infos.clients).min(1) > 0, heard)
    assert not np.asarray(infos.excluded).any()
    assert not np.asarray(infos.rejected).any()
    for count in (infos.cost.channel_uses, infos.cost.side_information):
        assert isinstance(count, Count)
        assert (np.asarray(count.low) < 65536).all()
        assert (bill.on_host(count) >= 0).all()
    uses = bill.on_host(infos.cost.channel_uses)
    if name not in ("ideal", "none"):
        assert (uses[0] > 0).all()
    if name in FADE:  # who does not send is not billed
        assert not uses[1].any()
        assert not np.asarray(infos.cost.energy[1]).any()
    for value in infos.cost[2:]:
        assert value.dtype == jnp.float32
        assert (np.asarray(value) >= 0).all()
        assert np.isfinite(value).all()


# All other stages -----


def pruned(*args, **options):
    return lambda: {"pruner": fp.prune.scheduled(*args, **options)}


def sparse_training():
    grow = feddst.train(WIDE, sgd(WIDE), sgd(WIDE), lambda t: 0.3, 8)
    return {"local": grow, "pruner": feddst.pruner(0.5), "server": feddst.holders()}


def reporting():
    local = prunefl.train(WIDE, sgd(WIDE), lambda t: t % 2 == 0, 8)
    seconds = lambda params: jax.tree.map(lambda _: 1e-4, params)
    return {"local": local, "pruner": prunefl.pruner(0.5, seconds, 1.0)}


SCHEDULED = cfg.Pruning(ratio=0.5, start=1, every=1, steps=2)


def served(kind):
    return {"server": kind.build(cfg.Server())}


def sparse(kind):
    schedule = kind.build(SCHEDULED)
    return {} if schedule is None else pruned(schedule)()


def chosen(kind):
    config = cfg.Config()
    config.data.clients = 5
    return {"participation": kind.build(config, 3)}


PARTS = {
    **{f"server.{n}": partial(served, of) for n, of in cfg.SERVERS.items()},
    **{
        f"schedule.{n}": pruned(of.build(SCHEDULED))
        for n, of in cfg.SCHEDULES.items()
        if of.build(SCHEDULED)
    },
    **{f"scope.{scope}": pruned(fp.prune.one_shot(0.5, 0), scope=scope) for scope in SCOPES},
    "structured": lambda: {
        "pruner": fp.prune.structured(fp.prune.one_shot(0.25, 0), fp.prune.chain)
    },
    **{f"cohort.{n}": partial(chosen, of) for n, of in cfg.SELECTIONS.items()},
    "cohort.full": lambda: {"participation": fp.server.full(5)},
    "feddst": sparse_training,
    "prunefl": reporting,
    "scaffold": lambda: scaffold.stages(WIDE, 5, 0.1, 4, 2),
}


@pytest.mark.parametrize(
    "name", some(PARTS, {"server.adam", "schedule.iterative", "structured", "feddst"})
)
def test_every_stage_keeps_the_contract(name):
    """As for uplinks: all is well; nobody's channel is good enough; nobody has examples.

    What nobody is heard of leaves the model as it was but for the mask, and the server as it was.
    """
    clients, thresholds = federation(5), jnp.array([0.0, DEEP, 0.0])
    size = jnp.stack([clients.size, clients.size, jnp.zeros_like(clients.size)])
    found = {}
    for devices in (1, 4):
        layout = fp.mesh.make(clients=devices, reduction="strict")

        def make(threshold, layout=layout):
            given = {"local": sgd(WIDE), "participation": fp.server.uniform(5, 3)}
            return build(layout, **given | {"uplink": air(threshold)} | PARTS[name]())

        with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
            found[devices] = run(
                make, WIDE, clients, 3, thresholds, 3, 1 if devices == 1 else 3, size
            )
    for one, four in zip(leaves(found[1]), leaves(found[4]), strict=True):
        np.testing.assert_allclose(one, four, rtol=1e-4, atol=1e-5)
    states, infos = found[1]
    parts = make(0.0)
    one = jax.eval_shape(lambda: parts.init(WIDE.init(KEY)))
    for new, old in zip(jax.tree.leaves(states), jax.tree.leaves(one), strict=True):
        assert (new.shape, new.dtype) == ((3, *old.shape), old.dtype)
        assert np.isfinite(new).all()
    start = WIDE.init(rng.stream(KEY, "init"))
    pruner = PARTS[name]().get("pruner")
    for path, new in jax.tree_util.tree_leaves_with_path(states.params):
        old = start
        for step in path:
            old = old[step.key]
        kept = np.ones((3, *old.shape), bool)
        if pruner is not None:
            mask = states.mask
            for step in path:
                mask = mask[step.key]
            assert mask.dtype == bool
            kept = np.asarray(mask) if pruner.scope == "server" else kept
        assert (np.asarray(new[0]) != np.where(kept[0], old, 0)).any()
        for silent in (1, 2):
            np.testing.assert_array_equal(new[silent], np.where(kept[silent], old, 0))
    heard = np.asarray(infos.clients)
    assert (heard[0] > 0).all()
    assert not heard[1:].any()
    if pruner is not None:
        masks = jax.tree.map(lambda m: np.asarray(m).reshape(3, -1).sum(1), states.mask)
        np.testing.assert_array_equal(infos.kept[:, -1], sum(leaves(masks)))
    assert not np.asarray(infos.excluded).any()
    assert not np.asarray(infos.rejected).any()
    uses = bill.on_host(infos.cost.channel_uses)
    assert (uses[0] > 0).all()
    assert not uses[1:].any()
    for count in (infos.cost.channel_uses, infos.cost.side_information, infos.sent):
        assert isinstance(count, Count)
        assert (np.asarray(count.low) < 65536).all()
    for value in infos.cost[2:]:
        assert np.isfinite(value).all()
        assert (np.asarray(value) >= 0).all()
