"""Networks of the user's own: what adapters make of flax modules, and that every stage takes it."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fedprune import data, link, local, mesh, models, nn, payload, prune, rounds, run, server, tree
from fedprune.types import Model

SHAPE, CLASSES, K = (6, 6, 2), 3, 4


class Linen(linen.Module):
    norm: type = linen.GroupNorm
    drop: float = 0.0

    @linen.compact
    def __call__(self, x, deterministic=False):
        x = linen.Conv(4, (3, 3))(x)
        x = self.norm(num_groups=2)(x) if self.norm is linen.GroupNorm else self.norm()(x)
        x = linen.relu(x).mean((1, 2))
        x = linen.Dropout(self.drop, deterministic=deterministic)(x)
        return linen.Dense(CLASSES)(x)


class Running(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        x = models.BatchNorm()(linen.Dense(4)(x.reshape(x.shape[0], -1)), train)
        return linen.Dense(CLASSES)(linen.relu(x))


class Nnx(nnx.Module):
    def __init__(self, rngs, dropout=None, norm=None, memory=False):
        self.convs = nnx.List([nnx.Conv(i, 4, (3, 3), rngs=rngs) for i in (2, 4)])
        self.norm = nnx.BatchNorm(4, rngs=rngs) if norm is None else norm
        self.dropout = dropout or nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.head = nnx.Linear(4, CLASSES, rngs=rngs)
        if memory:
            self.seen = nnx.Variable(jnp.zeros(3))

    def __call__(self, x):
        for conv in self.convs:
            x = nnx.relu(conv(x))
        return self.head(self.dropout(self.norm(x)).mean((1, 2)))


def plain():
    def init(key):
        one, two = jax.random.split(key)
        return {
            "hidden": {"w": jax.random.normal(one, (72, 8)) / 9, "b": jnp.zeros(8)},
            "out": {"w": jax.random.normal(two, (8, CLASSES)) / 3, "b": jnp.zeros(CLASSES)},
        }

    def apply(params, x):
        hidden, out = params["hidden"], params["out"]
        x = jax.nn.relu(x.reshape(len(x), -1) @ hidden["w"] + hidden["b"][None])
        return x @ out["w"] + out["b"][None]

    return Model(init, apply)


OWN = {
    "linen": lambda: models.from_linen(Linen(), SHAPE),
    "running": lambda: models.from_linen(Running(), SHAPE, running=True),
    "nnx": lambda: models.from_nnx(Nnx, SHAPE),
    "plain": plain,
}


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(1), (5, *SHAPE))


@pytest.fixture(scope="module")
def federation():
    noise = np.random.default_rng(0)
    images = noise.integers(0, 256, (40, *SHAPE), np.uint8)
    labels = np.arange(40) % CLASSES
    made = data.Dataset("noise", "made here", images, labels, images, labels, CLASSES)
    return data.federate(made, data.iid(K)(labels, labels, 0))


def test_linen_is_the_module_itself(x):
    params = OWN["linen"]().init(jax.random.key(0))
    same = Linen().init(jax.random.key(0), x[:1])["params"]
    jax.tree.map(np.testing.assert_array_equal, params, same)
    wanted = Linen().apply({"params": params}, x)
    np.testing.assert_array_equal(OWN["linen"]().apply(params, x), wanted)


def test_nnx_is_the_module_itself(x):
    """In training mode its BatchNorm takes each batch's own statistics, as the evaluation does."""
    module = Nnx(nnx.Rngs(jax.random.key(0)))
    model = OWN["nnx"]()
    params = model.init(jax.random.key(0))
    assert params["convs"][1]["kernel"].shape == (3, 3, 4, 4)
    np.testing.assert_array_equal(params["head"]["kernel"], module.head.kernel[...])
    np.testing.assert_allclose(model.apply(params, x), module(x), atol=1e-6)


@pytest.mark.parametrize("name", OWN)
def test_every_stage_takes_it(name, federation, tmp_path):
    """Pruned over the air with a personal layer: pruned kernels stay zero, and all else is kept."""
    model, (train, test) = OWN[name](), federation
    last = {"linen": "Dense_0", "running": "Dense_1", "nnx": "head", "plain": "out"}[name]
    federated = rounds.build(
        local=local.frozen(model, lambda part: local.sgd(part, optax.sgd(0.1), batch=8, steps=2)),
        uplink=link.over_the_air(20.0),
        server=server.average(),
        participation=server.full(K),
        pruner=prune.scheduled(prune.constant(0.5)),
        personal=local.parts(tree.within(last), K),
        layout=mesh.make(clients=2, chunk=2),
    )
    state, info, metrics = run.simulate(federated, model, train, test, 2)
    assert np.isfinite(info.train_loss).all()
    assert int(info.excluded.sum()) == 0
    assert 0 <= metrics.accuracy <= 1
    for (path, leaf), kept in zip(
        jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(state.mask), strict=True
    ):
        is_kernel = tree.path_name(path).rpartition("/")[2] in ("kernel", "w")
        share = np.mean(kept)
        assert (0 < share < 1) if is_kernel else share == 1, path
        assert not np.asarray(leaf)[~np.asarray(kept)].any()
        assert np.asarray(leaf).any() or not is_kernel
    payload.save(tmp_path / "model", state.params, state.mask, "bitmap")
    again, _ = payload.load(tmp_path / "model", like=state.params)
    jax.tree.map(np.testing.assert_array_equal, again, state.params)


def dropout(rngs):
    return Nnx(rngs, dropout=nnx.Dropout(0.5, rngs=rngs))


def averaging(rngs):
    return Nnx(rngs, norm=nnx.BatchNorm(4, use_running_average=True, rngs=rngs))


def batch_norm():
    return linen.BatchNorm(use_running_average=False)


REFUSED = {
    "running statistics": (
        lambda: models.from_linen(Linen(batch_norm), SHAPE),
        r"Linen keeps 'BatchNorm_0/mean' in the collection 'batch_stats'.* GroupNorm .*BatchNorm$",
    ),
    "dropout": (
        lambda: models.from_linen(Linen(drop=0.5), SHAPE),
        r"Linen draws random numbers, as Dropout does; .*deterministic=True$",
    ),
    "no logits": (
        lambda: models.from_linen(linen.Dense(3), SHAPE),
        r"Dense returns \[1, 6, 6, 3\] for one example, but logits are \[batch, outputs\]$",
    ),
    "no parameters": (
        lambda: models.from_linen(linen.Dropout(0.5, deterministic=True), (4,)),
        "Dropout has no parameters$",
    ),
    "dropout of nnx": (
        lambda: models.from_nnx(dropout, SHAPE),
        "Nnx has Dropout 'dropout', which draws random numbers; .*deterministic=True$",
    ),
    "running average of nnx": (
        lambda: models.from_nnx(averaging, SHAPE),
        "Nnx has BatchNorm 'norm' with use_running_average=True; with False .* nn.batch_norm$",
    ),
    "variable of nnx": (
        lambda: models.from_nnx(lambda rngs: Nnx(rngs, memory=True), SHAPE),
        "Nnx keeps 'seen', a Variable, but only nnx.Param is trained$",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_state_beside_parameters_is_refused_by_name(case):
    make, says = REFUSED[case]
    with pytest.raises(ValueError, match=rf"^from_(linen|nnx): {says}") as caught:
        make()
    assert "\n" not in str(caught.value)


def test_running_statistics_that_a_call_asks_for_are_not_invented(x):
    """They are kept nowhere, so logits are NaN, which leaves the client out and is counted."""

    class Asks(Nnx):
        def __call__(self, x):
            return self.head(self.norm(self.convs[0](x), use_running_average=True).mean((1, 2)))

    model = models.from_nnx(Asks, SHAPE)
    assert jnp.isnan(model.apply(model.init(jax.random.key(0)), x)).all()


def test_dropout_that_is_off_is_taken(x):
    model = models.from_linen(Linen(drop=0.5), SHAPE, deterministic=True)
    params = model.init(jax.random.key(0))
    np.testing.assert_array_equal(model.apply(params, x), OWN["linen"]().apply(params, x))


def test_batch_norm_of_a_batch_and_of_given_moments(x):
    """Against the formula in NumPy; linen's layer is the same, with and without statistics."""
    scale, bias = jnp.array([2.0, 0.5]), jnp.array([-1.0, 3.0])
    a = np.asarray(x, np.float64)
    mean, var = a.mean((0, 1, 2)), a.var((0, 1, 2))
    wanted = (a - mean) / np.sqrt(var + 1e-5) * np.asarray(scale) + np.asarray(bias)
    np.testing.assert_allclose(nn.batch_norm(x, scale, bias), wanted, atol=1e-5)
    layer = models.BatchNorm(running=False)
    params = {"params": {"scale": scale, "bias": bias}}
    assert jax.tree.map(jnp.shape, layer.init(jax.random.key(0), x)) == jax.tree.map(
        jnp.shape, params
    )
    np.testing.assert_allclose(layer.apply(params, x), wanted, atol=1e-5)
    moments = jnp.array([1.0, 2.0]), jnp.array([4.0, -1.0])
    wanted = (a - [1, 2]) / np.sqrt([4 + 1e-5, 1e-5]) * np.asarray(scale) + np.asarray(bias)
    np.testing.assert_allclose(nn.batch_norm(x, scale, bias, moments), wanted, rtol=1e-5)
