"""Personal parts: closed forms on quadratics, what is sent, and any number of devices."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import candidates, distance, federation, leaves, mlp, same
from test_devices import moved_by

import fedprune as fp
from experiments import personalization
from fedprune import backend, link, local, prune, resources, rng, tree
from fedprune import build as build_stages
from fedprune import config as cfg
from fedprune.runs import RunDirectory, execution, loop
from fedprune.runs.checkpoint import CheckpointError
from fedprune.studies import latency
from fedprune.types import Clients, Model, Personal, Trained

K, S, SEED = 13, 11, 5
CLIENTS = federation(K)
KEY = jax.random.key(SEED)
INITIAL = mlp().init(rng.stream(KEY, "init"))
MODEL = mlp()._replace(init=lambda key: INITIAL)
"""its initial weights are the same bits in whatever program they are asked for"""


def first(path, leaf):
    """As P4 has it: the layers near the input are personal."""
    return "Dense_0" in path


def head(path, leaf):
    return "Dense_1" in path


def sgd(steps, rate=0.1):
    return lambda model: local.sgd(model, optax.sgd(rate), batch=6, steps=steps)


def fedalt(model, rate=0.1, then=None):
    return local.alternating(model, sgd(2, rate), then or local.frozen(model, sgd(3)))


def fedsim(model, predicate, rate=0.1):
    rates = {True: optax.sgd(rate), False: optax.sgd(0.1)}
    optimizer = optax.partition(rates, lambda params: tree.match_path(predicate, params))
    return local.simultaneous(local.sgd(model, optimizer, batch=6, steps=3))


def build(update, personal, layout, cohort=S, **changed):
    stages = {
        "local": update,
        "uplink": link.ideal(),
        "participation": fp.server.uniform(K, cohort),
        "server": fp.server.average(),
        "personal": personal,
        **changed,
    }
    return fp.rounds.build(**stages, layout=layout)


def strict(devices=2):
    return fp.mesh.make(clients=devices, reduction="strict")


def simulate(algorithm, model=MODEL, clients=CLIENTS, rounds=3):
    return fp.run.simulate(algorithm, model, clients, clients, rounds, seed=SEED)


# Closed forms -----

TARGETS = np.array([1.0, -2.0, 4.0, 0.5])
ETA_U, ETA_V, TAU_U, TAU_V = 0.3, 0.2, 3, 2
PULL = 0.7


def quadratics():
    """Client k's examples all are a_k; unequal numbers of them."""
    size = np.array([3, 1, 4, 2])
    rows = np.zeros((4, 4), np.int32)
    for k, n in enumerate(size):
        rows[k, :n] = size[:k].sum() + np.arange(n)
    examples = jnp.asarray(np.repeat(TARGETS, size), jnp.float32)[:, None]
    labels = jnp.zeros(len(examples), jnp.int32)
    return Clients(
        examples, labels, jnp.asarray(rows), jnp.asarray(size), jnp.zeros(1), jnp.ones(1)
    )


def quadratic(*names):
    """F_k(w) = (sum of the weights - a_k)^2 / 2; the loss is the output."""
    start = {name: jnp.full((1,), 0.25 * (i + 1)) for i, name in enumerate(names)}
    return Model(
        lambda key: start, lambda p, x: 0.5 * jnp.square(sum(p[n] for n in names) - x[:, 0])
    )


def descent(steps, rate):
    def make(model):
        optimizer = rate if isinstance(rate, optax.GradientTransformation) else optax.sgd(rate)
        return local.sgd(model, optimizer, batch=2, steps=steps, loss=lambda out, _: out)

    return make


def run_quadratic(model, update, personal, rounds=3):
    algorithm = fp.rounds.build(
        local=update, uplink=link.ideal(), participation=fp.server.full(4),
        server=fp.server.average(), layout=fp.mesh.make(clients=2), weighting="plain",
        personal=personal,
    )  # fmt: skip
    clients = quadratics()
    state = fp.run.start(lambda _: algorithm, model.init, (), KEY[None])
    arms = fp.run.Arms((), KEY[None], state, clients.rows[None], clients.size[None])
    state = fp.run.program(lambda _: algorithm, algorithm.layout, rounds)(arms, clients, clients)[0]
    return jax.tree.map(lambda v: np.asarray(v[0], np.float64), (state.params, state.personal))


def test_fedalt_on_quadratics():
    """A step of either part shrinks e = u + v - a by (1 - eta) and moves the part by -eta e."""
    model = quadratic("u", "v")
    update = local.alternating(
        model, descent(TAU_V, ETA_V), local.frozen(model, descent(TAU_U, ETA_U))
    )
    found = run_quadratic(model, update, local.parts(lambda path, _: path == "v", 4))
    u, v = 0.25, np.full(4, 0.5)
    for _ in range(3):
        e = u + v - TARGETS
        left = (1 - ETA_V) ** TAU_V
        v = v - (1 - left) * e
        u = np.mean(u - (1 - (1 - ETA_U) ** TAU_U) * left * e)
    np.testing.assert_allclose(found[0]["u"], [u], rtol=1e-5)
    np.testing.assert_allclose(found[1]["v"][:, 0], v, rtol=1e-5)
    assert found[0]["v"] is None
    assert found[1]["u"] is None


def test_fedsim_on_quadratics():
    """A step shrinks e by 1 - eta_u - eta_v; each part moves by its share of the whole way."""
    model = quadratic("u", "v")
    rates = {"u": optax.sgd(ETA_U), "v": optax.sgd(ETA_V)}
    optimizer = optax.partition(rates, {"u": "u", "v": "v"})
    update = local.simultaneous(descent(TAU_U, optimizer)(model))
    found = run_quadratic(model, update, local.parts(lambda path, _: path == "v", 4))
    u, v = 0.25, np.full(4, 0.5)
    for _ in range(3):
        way = (1 - (1 - ETA_U - ETA_V) ** TAU_U) * (u + v - TARGETS)
        u, v = np.mean(u - ETA_U / (ETA_U + ETA_V) * way), v - ETA_V / (ETA_U + ETA_V) * way
    np.testing.assert_allclose(found[0]["u"], [u], rtol=1e-5)
    np.testing.assert_allclose(found[1]["v"][:, 0], v, rtol=1e-5)


def test_ditto_and_tuning_on_quadratics():
    """Ditto's v goes to (a + pull u) / (1 + pull) at the factor 1 - eta (1 + pull) a step."""
    model = quadratic("w")
    shared = descent(TAU_U, ETA_U)(model)
    pulled = optax.chain(optax.add_decayed_weights(PULL), optax.sgd(ETA_V))
    ditto = local.ditto(model, descent(TAU_V, pulled), shared)
    found = run_quadratic(model, ditto, local.copies(4))
    u, v, last = 0.25, np.full(4, 0.25), np.empty(0)
    for _ in range(3):
        target = (TARGETS + PULL * u) / (1 + PULL)
        v = target + (1 - ETA_V * (1 + PULL)) ** TAU_V * (v - target)
        last = u - (1 - (1 - ETA_U) ** TAU_U) * (u - TARGETS)
        u = last.mean()
    np.testing.assert_allclose(found[0]["w"], [u], rtol=1e-5)
    np.testing.assert_allclose(found[1]["w"][:, 0], v, rtol=1e-5)
    found = run_quadratic(model, local.tuned(shared), local.copies(4))
    np.testing.assert_allclose(found[0]["w"], [u], rtol=1e-5)
    np.testing.assert_allclose(found[1]["w"][:, 0], last, rtol=1e-5)


def test_fedsim_with_a_mask():
    """A pruned weight stays zero; the other global one and the personal one move as without it."""
    model = quadratic("pruned", "u", "v")
    optimizer = optax.partition({"u": optax.sgd(ETA_U), "v": optax.sgd(ETA_V)},
                                {"pruned": "u", "u": "u", "v": "v"})  # fmt: skip
    train = jax.jit(local.simultaneous(descent(TAU_U, optimizer)(model)))
    zero, one = jnp.zeros(1), jnp.ones(1)
    client = quadratics().client(2)._replace(personal={"pruned": None, "u": None, "v": one})
    mask = {"pruned": zero > 0, "u": one > 0, "v": None}
    trained = train(KEY, jnp.int32(0), {"pruned": zero, "u": one, "v": None}, mask, client)
    way = (1 - (1 - ETA_U - ETA_V) ** TAU_U) * (2 - TARGETS[2])
    assert trained.delta["pruned"] == 0
    np.testing.assert_allclose(trained.delta["u"], -ETA_U / (ETA_U + ETA_V) * way, rtol=1e-5)
    np.testing.assert_allclose(trained.personal["v"], 1 - ETA_V / (ETA_U + ETA_V) * way, rtol=1e-5)
    assert trained.delta["v"] is None


def test_personal_statistics():
    """Running means m <- (m + a_k) / 2 that are personal follow in the personal steps only."""

    def train(p, x):
        m = p["statistics"]["m"]
        return 0.5 * jnp.square(p["w"] - x[:, 0]), {**p, "statistics": {"m": (m + x.mean(0)) / 2}}

    start = {"w": jnp.full((1,), 0.25), "statistics": {"m": jnp.zeros(1)}}
    model = Model(lambda key: start, lambda p, x: train(p, x)[0], train)
    update = local.alternating(
        model, descent(TAU_V, ETA_V), local.frozen(model, descent(TAU_U, ETA_U))
    )
    shared, own = run_quadratic(model, update, local.parts(tree.within("statistics"), 4))
    expected = (1 - 0.5 ** (3 * TAU_V)) * TARGETS
    np.testing.assert_allclose(own["statistics"]["m"][:, 0], expected, rtol=1e-5)
    w = TARGETS.mean() + (1 - ETA_U) ** (3 * TAU_U) * (0.25 - TARGETS.mean())
    np.testing.assert_allclose(shared["w"], [w], rtol=1e-5)


# On a network -----


def flat(predicate):
    """Federated averaging of a network of which some layers stay at their initial values."""
    shared, own = tree.split(tree.match_path(predicate, INITIAL), INITIAL)
    model = Model(lambda key: shared, lambda p, x: MODEL.apply(tree.join(p, own), x))
    algorithm = build(sgd(3)(model), None, strict())
    return simulate(algorithm, model)[0].params, own


@pytest.mark.parametrize("how", ["alternating", "simultaneous"])
def test_zero_personal_rate_is_flat_federated_averaging(how):
    expected, own = flat(first)
    update = fedalt(MODEL, 0.0) if how == "alternating" else fedsim(MODEL, first, 0.0)
    found, _, _ = simulate(build(update, local.parts(first, K), strict()))
    assert same(found.params, expected)
    assert all(
        (np.asarray(v) == np.asarray(o)).all()
        for v, o in zip(jax.tree.leaves(found.personal), jax.tree.leaves(own), strict=True)
    )


def pruned(layout, cohort=S):
    """P4's Algorithm 1 without the channel: FedAlt with masks on the global part."""
    masked = local.own_masks(
        local.frozen(MODEL, sgd(1)), local.frozen(MODEL, sgd(3)),
        prune.selection(), lambda t, client: jnp.float32(0.6),
        local.change, rewind=True,
    )  # fmt: skip
    uplink = link.holders(link.ideal(), link.ideal(), 1e-9)
    personal = local.parts(first, K)
    return build(fedalt(MODEL, then=masked), personal, layout, cohort, uplink=uplink)


@pytest.mark.optimized
def test_bitwise_on_any_number_of_devices():
    """13 clients, which no number of devices divides, 11 in a round, and their own evaluation."""
    one, *others = [simulate(pruned(strict(n))) for n in (1, 2, 4, 8)]
    for other in others:
        assert same(other, one)
    for v, w in zip(leaves(one[0].personal), leaves(INITIAL["Dense_0"]), strict=True):
        assert v.shape == (K, *w.shape)
        assert (v != w).reshape(K, -1).any(1).all(), "everybody was in three rounds of 11 of 13"


@pytest.mark.parametrize("layout", [strict(), fp.mesh.make(clients=4, chunk=3)])
def test_only_the_cohort_changes_and_no_bad_client(layout):
    """One round: those who were not drawn, or whose update is not finite, keep what they had."""
    bad = np.asarray(CLIENTS.rows)[4, : int(CLIENTS.size[4])]
    clients = CLIENTS._replace(examples=CLIENTS.examples.at[bad].set(np.nan))
    cohort = 6
    algorithm = build(fedalt(MODEL), local.parts(first, K), layout, cohort)
    state, info, _ = simulate(algorithm, clients=clients, rounds=1)
    seen = candidates(rng.stream(KEY, "cohort", 0), K)
    drawn = set(np.asarray(fp.server.uniform(K, cohort).select(seen)))
    initial = np.asarray(INITIAL["Dense_0"]["kernel"])
    kernel = np.asarray(state.personal["Dense_0"]["kernel"])
    changed = {k for k in range(K) if (kernel[k] != initial).any()}
    assert changed == drawn - {4}
    assert int(info.excluded[0]) == (4 in drawn)
    shared, own = tree.split(tree.match_path(first, INITIAL), INITIAL)
    train = jax.jit(fedalt(MODEL))
    for k in changed:  # a row is what its client trains by itself
        client = clients.client(k)._replace(personal=own)
        trained = train(rng.stream(KEY, "local", 0, k), jnp.int32(0), shared, None, client)
        found = jax.tree.map(lambda v, k=k: v[k], state.personal)
        assert distance(found, trained.personal) < 1e-5
    assert np.isfinite(kernel).all()


@pytest.mark.parametrize("predicate", [first, head])
def test_personal_parts_are_not_sent(predicate):
    """What the uplink is given and what it adds up has the global weights and nothing else."""
    air = link.over_the_air(10.0, "common")
    seen = []

    def encode(sender):
        sent = air.encode(sender)
        seen.append((sender.trained, sent.total.sum.signal))
        return sent

    algorithm = build(
        fedalt(MODEL), local.parts(predicate, K), strict(), uplink=air._replace(encode=encode)
    )
    _, info, _ = simulate(algorithm, rounds=1)
    shared, own = tree.split(tree.match_path(predicate, INITIAL), INITIAL)
    shapes = lambda values: [
        (tree.path_name(path), leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(values)
    ]
    assert seen
    for trained, signal in seen:
        assert trained.personal is None
        assert shapes(trained.delta) == shapes(signal) == shapes(shared)
    sent = sum(leaf.size for leaf in leaves(shared))
    assert sent < sum(leaf.size for leaf in leaves(INITIAL)) - 1
    assert float(info.cost.channel_uses[0]) == (sent + 1) // 2
    assert leaves(own)


def test_only_the_cohorts_rows_move_between_devices():
    """Every collective of the compiled round: there are 12 personal parts, the cohort's are 4."""
    layout, clients = fp.mesh.make(clients=4), CLIENTS._replace(size=CLIENTS.size[:12])
    algorithm = build(
        fedalt(MODEL), local.parts(first, 12), layout, participation=fp.server.uniform(12, 4)
    )
    state = fp.run.start(lambda _: algorithm, MODEL.init, (), KEY[None])
    arms = fp.run.Arms((), KEY[None], state, clients.rows[None, :12], clients.size[None])
    program = fp.run.program(lambda _: algorithm, layout, 2)
    found = moved_by(program.lower(arms, clients, clients))
    model = MODEL.init(KEY)
    shared, own = (
        sum(leaf.size for leaf in leaves(part))
        for part in tree.split(tree.match_path(first, model), model)
    )
    # Each device gets the one row that it trains; the new ones go back to their owners.
    assert sum(n for op, n in found if op == "reduce-scatter") == own
    assert sum(n for op, n in found if op == "all-gather") == 4 * own
    assert sum(n for op, n in found if op == "all-reduce") <= shared + 8
    assert {op for op, _ in found} == {"all-gather", "all-reduce", "reduce-scatter"}


@pytest.mark.slow
def test_own_test_sets_against_a_loop():
    """The evaluation's five numbers from every client's logits; one client has no test examples."""
    algorithm = pruned(strict())
    test = CLIENTS._replace(size=CLIENTS.size.at[3].set(0))
    state, _, metrics = fp.run.simulate(algorithm, MODEL, CLIENTS, test, 2, seed=SEED)
    shares, counts, right, losses, total = [], [], 0, 0.0, 0
    for k in range(K):
        rows = np.asarray(test.rows)[k, : int(test.size[k])]
        if not len(rows):
            continue
        own = jax.tree.map(lambda v, k=k: v[k], state.personal)
        logits = np.asarray(
            MODEL.apply(tree.join(state.params, own), test.examples[rows]), np.float64
        )
        y = np.asarray(test.labels)[rows]
        hits = (logits.argmax(1) == y).sum()
        losses += (np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]).sum()
        right, total = right + hits, total + len(rows)
        shares.append(hits / len(rows))
        counts.append((hits, len(rows)))
    assert len(shares) == 12
    np.testing.assert_allclose(metrics.accuracy, right / total, rtol=1e-6)
    np.testing.assert_allclose(metrics.loss, losses / total, rtol=1e-5)
    np.testing.assert_allclose(metrics.mean, np.mean(shares), rtol=1e-6)
    np.testing.assert_allclose(metrics.worst, np.mean(sorted(shares)[:2]), rtol=1e-6, atol=1e-7)
    bins = [sum(min(20 * h // n, 19) == b for h, n in counts) for b in range(20)]
    np.testing.assert_array_equal(metrics.histogram, bins)


def test_impossible_splits_are_refused():
    for predicate, which in ((lambda *_: True, "all"), (lambda *_: False, "none")):
        with pytest.raises(ValueError, match=f"personal: {which} of the model's weights"):
            local.parts(predicate, K).split(MODEL.init(KEY))


# From a configuration -----


def small(**changed):
    """P4's algorithm in small: five clients, of whom three take part, on two devices."""
    config = personalization.get_config("fast")
    values = {
        "data.clients": 5, "cohort.size": 3, "model.name": "mlp", "model.mlp.hidden": (8,),
        "personal.layers": ("Dense_0",), "local.steps": 1, "personal.steps": 1, "local.batch": 4,
        "run.rounds": 4, "run.seeds": 1, "run.save_every": 2, "mesh.devices": 2,
    }  # fmt: skip
    return cfg.override(config, values | changed)


class Kept(loop.Checkpoints):
    """Checkpoints that remember what was saved last."""

    last = None

    def save(self, rounds_done, state, rows=()):
        super().save(rounds_done, state, rows)
        self._manager.wait_until_finished()
        Kept.last = jax.tree.map(np.asarray, state["state"])


def test_what_is_kept_of_clients_is_said_and_refused_where_it_has_no_room(
    tmp_path, monkeypatch, caplog
):
    """The bytes of the arrays of a run's own state, and of what is on each device afterwards."""
    config, arm = small(), cfg.Arm("limit-25", {})
    caplog.set_level(logging.INFO, "fedprune")
    plan = execution.plan(config, [arm])
    (said,) = [r.getMessage() for r in caplog.records if "are kept of" in r.getMessage()]
    program = plan.programs[0]
    state = program.start().state
    store = sum(v.nbytes for v in jax.tree.leaves((state.personal, state.memory)))
    whole = sum(v.nbytes for v in jax.tree.leaves(state))
    assert plan.checkpoints == whole
    assert store > 0
    clients = config.data.clients
    assert said.startswith(f"program0: {execution._bytes(store)} are kept of {clients} clients")
    assert said.endswith(f"{execution._bytes(whole)} in a checkpoint")

    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=whole - 1))
    with RunDirectory(tmp_path / "run", cfg.to_json(config)) as directory:
        with pytest.raises(CheckpointError, match="of room, but a checkpoint of all runs has"):
            execution.execute(plan, directory)
        assert not (directory.path / "checkpoints").exists()
    monkeypatch.setattr(backend, "memory", lambda: float(whole - 1))
    with pytest.raises(cfg.ConfigError, match=f"^data.clients={clients}: what runs hold between"):
        execution.plan(config, [arm])


@pytest.mark.parametrize("devices", [1, 4])
def test_bytes_on_each_device(devices):
    """Of what a program gives back: a store of 13 rows has 4 on each of 4 devices."""
    clients, rows = 13, jnp.zeros((3, 5), jnp.float16)
    layout = fp.mesh.make(clients=devices)
    keep = Personal(clients, lambda p: (p, {"mine": rows}), lambda p, _: p, own_model=False)
    model = mlp()

    def local(key, t, params, mask, client):
        still = jax.tree.map(jnp.zeros_like, params)
        return Trained(still, jnp.float32(1), personal=client.personal)

    algorithm = fp.rounds.build(
        local=local, uplink=link.ideal(), server=fp.server.average(), layout=layout,
        participation=fp.server.full(clients), personal=keep,
    )  # fmt: skip
    found = fp.run.footprint(algorithm, model.init, arms=2)
    weights = sum(v.nbytes for v in jax.tree.leaves(model.init(jax.random.key(0)))) + 4  # and t
    assert found.store == 2 * clients * rows.nbytes
    assert found.checkpoint == found.store + 2 * weights
    assert found.device == 2 * (-(-clients // devices) * rows.nbytes + weights)


@pytest.mark.slow
def test_interrupted_run_ends_like_an_unbroken_one(tmp_path, monkeypatch):
    """Stopped in round 4, after the checkpoint of round 2: the same rows and personal parts."""
    config, arm = small(), cfg.Arm("limit-25", {})
    monkeypatch.setattr(loop, "Checkpoints", Kept)

    def run(folder):
        with RunDirectory(tmp_path / folder, cfg.to_json(config)) as directory:
            execution.execute(execution.plan(config, [arm]), directory)
        return (tmp_path / folder / "metrics.jsonl").read_text(), Kept.last

    rows, state = run("unbroken")
    write, calls = loop.MetricsFile.write, []

    def interrupted(self, rows):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        write(self, rows)

    monkeypatch.setattr(loop.MetricsFile, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("broken")
    found, again = run("broken")
    assert found == rows
    assert len(calls) == 4 + 2
    assert same(again, state)
    kernel = state.personal["Dense_0"]["kernel"]
    assert kernel.shape == (1, 5, 784, 8)
    assert len({k.tobytes() for k in kernel[0]}) > 1


def test_the_configuration_reaches_the_stages():
    """Table I's setting at width 8: the link has the work that latency_tables fits to it."""
    values = {"model.cnn.filters": (32, 64), "model.cnn.hidden": (8,), "uplink.ofdma.cycles": 20.0}
    values |= {"local.steps": 10, "personal.steps": 10, "data.clients": 10, "cohort.size": 0}
    values |= {"model.name": "cnn", "personal.layers": ("Conv",)}
    config = small(**values)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "ofdma", lambda work, *_, **__: seen.append(work) or link.ideal())
        network = fp.models.cnn((32, 64), 3, (8,))
        build_stages.uplink(config, network)
        flat = {"personal.method": "none", "personal.layers": ()}
        build_stages.uplink(cfg.override(config, flat), network)
    assert seen[0] == latency.PARTIAL
    assert seen[1] == resources.hierarchical(18_720, 25_168, 10, 20.0, 32, 1)
    wide = personalization.get_config("full")
    assert personalization.global_weights(wide) == 402_688
    assert wide.uplink.bandwidth / 20e6 == pytest.approx(16.0, rel=1e-12)
    for layers, says in (
        (("Conv", "Norm"), "('Norm',)"),
        (("Conv", "head"), "all of the model's weights"),
    ):
        with pytest.raises(cfg.ConfigError, match=r"personal\.layers") as error:
            build_stages.personal(cfg.override(config, {"personal.layers": layers}), network)
        assert says in str(error.value)
