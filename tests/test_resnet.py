"""ResNet18: its size, and its norms against a plain functional version with ``lax``."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from problems import distance, federation, leaves

import fedprune as fp
from fedprune import tree
from fedprune.types import Client

SHAPE, WIDTHS, GROUPS = (8, 8, 3), (4, 8), 2
NORMS = {
    "group": {"norm": "group", "groups": GROUPS},
    "exchanged": {"norm": "batch"},
    "batch": {"norm": "batch", "statistics": "batch"},
}


def small(norm):
    return fp.models.resnet18(input_shape=SHAPE, widths=WIDTHS, **NORMS[norm])


def randomized(model, seed=3):
    """Scales, biases and statistics away from their initial values, so that they matter."""
    rng = np.random.default_rng(seed)
    params = jax.jit(model.init)(jax.random.key(seed))

    def shifted(p):
        return p + rng.uniform(0, 0.3, p.shape).astype("f4") if p.ndim == 1 else p

    return jax.tree.map(shifted, params)


def images(count=6, seed=0):
    return jax.random.normal(jax.random.key(seed), (count, *SHAPE))


def names(params, part):
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    return {tree.path_name(p): v for p, v in paths if part in tree.path_name(p).split("/")}


# A version of its own: nothing but lax and the names of the params -----


def plain(params, x, kind, use_running=False):
    """Logits, and the batch statistics (mean, var) of every norm by name."""
    seen = {}

    def conv(p, x, stride=1):
        k = p["kernel"].shape[0]
        pads = [(k // 2, k // 2)] * 2
        spec = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, p["kernel"], (stride, stride), pads, dimension_numbers=spec
        )

    def norm(p, x, name):
        if kind == "group":
            b, h, w, c = x.shape
            g = x.reshape(b, h * w, GROUPS, c // GROUPS)
            mean, var = g.mean((1, 3), keepdims=True), g.var((1, 3), keepdims=True)
            y = ((g - mean) / jnp.sqrt(var + 1e-6)).reshape(x.shape)
        else:
            mean, var = (f(x.reshape(-1, x.shape[-1]), 0) for f in (jnp.mean, jnp.var))
            seen[name] = (mean, var)
            if use_running:
                mean, var = p["statistics"]["mean"], p["statistics"]["var"]
            y = (x - mean[None, None, None]) / jnp.sqrt(var + 1e-5)[None, None, None]
        return y * p["scale"][None, None, None] + p["bias"][None, None, None]

    x = jax.nn.relu(norm(params["stem_norm"], conv(params["stem"], x), "stem_norm"))
    for stage in range(1, len(WIDTHS) + 1):
        for block in (1, 2):
            name = f"stage{stage}_block{block}"
            p, stride = params[name], 2 if stage > 1 and block == 1 else 1
            y = jax.nn.relu(norm(p["norm1"], conv(p["conv1"], x, stride), f"{name}/norm1"))
            y = norm(p["norm2"], conv(p["conv2"], y), f"{name}/norm2")
            if stride == 2:
                x = norm(
                    p["shortcut_norm"], conv(p["shortcut"], x, stride), f"{name}/shortcut_norm"
                )
            x = jax.nn.relu(x + y)
    head = params["head"]
    return x.mean((1, 2)) @ head["kernel"] + head["bias"][None], seen


# Size -----


def test_number_of_parameters():
    """He's ResNet18 for CIFAR: 11,164,352 in kernels, 2 for each of 4,800 channels, 10 biases."""

    def count(**options):
        shapes = jax.eval_shape(fp.models.resnet18(**options).init, jax.random.key(0))
        kernels = sum(v.size for v in jax.tree.leaves(shapes) if v.ndim >= 2)
        statistics = sum(v.size for v in names(shapes, "statistics").values())
        return kernels, statistics, sum(v.size for v in jax.tree.leaves(shapes)) - statistics

    assert count() == (11_164_352, 0, 11_173_962)
    assert count(norm="batch", statistics="batch") == (11_164_352, 0, 11_173_962)
    assert count(norm="batch") == (11_164_352, 9_600, 11_173_962)
    # 90 more classes: 512 kernels and a bias each.
    assert count(classes=100)[2] == 11_173_962 + 90 * 513


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "layer"}, "norm='layer'"),
        ({"statistics": "kept"}, "statistics='kept'"),
        ({"groups": 48}, "groups=48"),
        ({"input_shape": (784,)}, r"input_shape=\(784,\)"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fp.models.resnet18(**options)


# Values and gradients -----


@pytest.mark.parametrize("norm", list(NORMS))
def test_logits_and_gradients_equal_the_plain_version(norm):
    model = small(norm)
    params = randomized(model)
    x, direction = images(), jax.random.normal(jax.random.key(9), (6, 10))

    def ours(params, x):
        logits = (model.train(params, x) if model.train else (model.apply(params, x),))[0]
        return (logits * direction).sum(), logits

    def theirs(params, x):
        logits = plain(params, x, "group" if norm == "group" else "batch")[0]
        return (logits * direction).sum(), logits

    def both(fn):
        return jax.jit(jax.grad(fn, (0, 1), has_aux=True))(params, x)

    (found, y), (expected, z) = both(ours), both(theirs)
    np.testing.assert_allclose(y, z, atol=1e-4)
    assert distance(found, expected) < 1e-4
    for g in names(found[0], "statistics").values():
        assert not np.asarray(g).any()
    others = [g for g in leaves(found[0]) if g.ndim >= 2]
    assert all(np.abs(g).max() > 0 for g in others)


def test_exchanged_statistics():
    """Training moves them by a tenth to the batch's; the evaluation uses them, and so no batch."""
    model = small("exchanged")
    params, x = randomized(model), images()
    _, after = jax.jit(model.train)(params, x)
    seen = plain(params, x, "batch")[1]
    assert len(names(params, "statistics")) == 2 * len(seen) == 2 * 10
    for name, (mean, var) in seen.items():
        old, new = params, after
        for part in name.split("/"):
            old, new = old[part], new[part]
        for key, value in (("mean", mean), ("var", var)):
            expected = 0.9 * old["statistics"][key] + 0.1 * value
            np.testing.assert_allclose(new["statistics"][key], expected, atol=1e-5)
    rest = tree.statistics_of(params, after)
    assert all((a == b).all() for a, b in zip(leaves(rest), leaves(params), strict=True))
    apply = jax.jit(model.apply)
    y = apply(params, x)
    np.testing.assert_allclose(y, plain(params, x, "batch", use_running=True)[0], atol=1e-4)
    np.testing.assert_allclose(y[:2], apply(params, x[:2]), atol=1e-5)
    negative = jax.tree.map(lambda p: -p, params)
    assert np.isfinite(apply(tree.statistics_of(negative, params), x)).all()


def test_own_statistics_of_each_batch_leak():
    """What the documentation warns of: an example's logits depend on its neighbours."""
    model = small("batch")
    params, x = randomized(model), images()
    assert model.train is None
    apply = jax.jit(model.apply)
    assert np.abs(apply(params, x)[:2] - apply(params, x[:2])).max() > 0.01


# In rounds -----


def test_clients_in_one_vmap_equal_clients_one_by_one():
    model = small("group")
    many = jax.tree.map(lambda *v: jnp.stack(v), *(randomized(model, seed) for seed in range(3)))
    x = jnp.stack([images(4, seed) for seed in range(3)])

    def gradient(params, x):
        return jax.grad(lambda p: jax.nn.log_softmax(model.apply(p, x))[:, 0].mean())(params)

    together = jax.jit(jax.vmap(gradient))(many, x)
    one = jax.jit(gradient)
    for k in range(3):
        mine = jax.tree.map(lambda v, k=k: v[k], (many, x, together))
        assert distance(mine[2], one(*mine[:2])) < 1e-4


def clients_of(count=5):
    return federation(count, shape=SHAPE)


def a_round(model, count, chunk, **local):
    optimizer = fp.local.adjusted(optax.sgd(0.05, 0.9), weight_decay=0.1)
    return fp.rounds.build(
        local=fp.local.sgd(model, optimizer, batch=6, steps=2, **local),
        pruner=fp.prune.scheduled(fp.prune.constant(0.5)),
        uplink=fp.link.ideal(),
        participation=fp.server.full(count),
        server=fp.server.average(),
        layout=fp.mesh.make(clients=2, chunk=chunk),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "chunk"), [("group", 1), ("exchanged", 3)])
def test_rounds_on_devices_equal_clients_one_by_one(norm, chunk):
    """Scan, shard_map and vmapped chunks; the update is the weighted mean of the clients' own."""
    model, clients = small(norm), clients_of()
    params = jax.jit(model.init)(fp.rng.stream(jax.random.key(0), "init"))
    algorithm = a_round(model, 5, chunk, prox=0.1)
    state, info, _ = fp.run.simulate(algorithm, model, clients, clients, 1)

    optimizer = fp.local.adjusted(optax.sgd(0.05, 0.9), weight_decay=0.1)
    local = jax.jit(fp.local.sgd(model, optimizer, batch=6, steps=2, prox=0.1))
    start = tree.apply_mask(state.mask, params)
    mean = jax.tree.map(np.zeros_like, jax.tree.map(np.asarray, params))
    sizes = np.asarray(clients.size)
    for k, size in enumerate(sizes):
        key = fp.rng.stream(jax.random.key(0), "local", 0, k)
        delta = local(key, jnp.int32(0), start, state.mask, clients.client(k)).delta
        share = np.float32(size / sizes.sum())
        mean = jax.tree.map(lambda m, d, a=share: m + a * np.asarray(d), mean, delta)
    assert distance(state.params, jax.tree.map(lambda p, m: p + m, start, mean)) < 1e-4

    kernels = sum(v.size for v in leaves(params) if v.ndim >= 2)
    always = sum(v.size for v in leaves(params) if v.ndim < 2)
    np.testing.assert_array_equal(info.kept, round(kernels / 2) + always)
    if norm == "exchanged":
        assert all(np.asarray(m).all() for m in names(state.mask, "statistics").values())


def test_local_training_only_averages_statistics():
    """No optimizer, decay or proximal term reaches them; with learning rate 0 they still move."""
    model, clients = small("exchanged"), clients_of()
    params = randomized(model)
    client: Client = clients.client(1)
    decay_all = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.0))
    local = fp.local.sgd(model, decay_all, batch=6, steps=2, prox=10.0)
    key = jax.random.key(4)
    delta = jax.jit(local)(key, jnp.int32(0), params, None, client).delta
    now = params
    train = jax.jit(model.train)
    for i in range(2):
        draw = jax.random.randint(fp.rng.stream(key, "batch", i), (6,), 0, client.size)
        now = train(now, client.take(draw)[0])[1]
    moved = jax.tree.map(jnp.subtract, now, params)
    np.testing.assert_allclose(
        np.concatenate([v.ravel() for v in leaves(delta)]),
        np.concatenate([v.ravel() for v in leaves(moved)]),
        atol=1e-6,
    )
    assert all(np.abs(np.asarray(v)).max() > 0 for v in names(delta, "statistics").values())
    # With a learning rate, the same optimizer moves weights and the first step's statistics alike.
    fast = fp.local.sgd(
        model,
        optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1)),
        batch=6,
        steps=1,
        prox=10.0,
    )
    moved = jax.jit(fast)(key, jnp.int32(0), params, None, client).delta
    draw = jax.random.randint(fp.rng.stream(key, "batch", 0), (6,), 0, client.size)
    expected = train(params, client.take(draw)[0])[1]
    for name, v in names(moved, "statistics").items():
        before, after = names(params, "statistics")[name], names(expected, "statistics")[name]
        np.testing.assert_allclose(v, after - before, atol=1e-6)
    assert all(np.abs(v).max() > 0 for v in leaves(moved) if v.ndim >= 2)
