"""Structured pruning: whole neurons, against loops, and how it trains and is averaged."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import cnn, federation, mlp

from experiments import hfl_adaptive, hfl_pruning
from fedprune import build, link, prune
from fedprune import config as cfg
from fedprune.prune import named
from fedprune.types import Arrival, Cohort, Sender, Total, Trained

SEED = 5


def scores(params, seed=SEED):
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(draw.random(p.shape), jnp.float32), params)


def loop(kernels, keep):
    """Masks of kernels [n, m] in a chain; keep(n, is_last) neurons of each column stay."""
    columns = [kernels[0].shape[0], *(k.shape[1] for k in kernels)]
    alive = []
    for c, width in enumerate(columns):
        score = np.zeros(width)
        for n in range(width):
            if c > 0:
                score[n] += sum(float(v) for v in kernels[c - 1][:, n])
            if c < len(kernels):
                score[n] += sum(float(v) for v in kernels[c][n, :])
        stay = np.zeros(width, bool)
        stay[np.argsort(-score, kind="stable")[: keep(width, c == len(kernels))]] = True
        alive.append(stay)
    return alive, [np.outer(alive[c], alive[c + 1]) for c in range(len(kernels))]


def counts(form, whole, ratio):
    share = ratio if form == "printed" else math.sqrt(1 - ratio)
    return lambda n, last: n if last and form == "derived" else whole(n * share)


# None of 24 and 12 times a share lies at an integer, but for the exact 0, 1/2 and 1.
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.55, 0.75, 0.9, 1.0])
@pytest.mark.parametrize(
    ("form", "down"), [("derived", False), ("derived", True), ("printed", False)]
)
def test_masks_equal_a_loop(form, down, ratio):
    params = cnn().init(jax.random.key(0))
    given = scores(params)
    select = jax.jit(prune.neurons(named("Dense"), down, form))
    found = select(given, jnp.float32(ratio))
    head = [np.asarray(given["head"][n]["kernel"]) for n in ("Dense_0", "Dense_1")]
    keep = counts(form, math.floor if down else math.ceil, ratio)
    alive, masks = loop(head, keep)
    for i, mask in enumerate(masks):
        layer = found["head"][f"Dense_{i}"]
        np.testing.assert_array_equal(layer["kernel"], mask)
        np.testing.assert_array_equal(layer["bias"], alive[i + 1])
        n, m = mask.shape
        assert int(layer["kernel"].sum()) == keep(n, False) * keep(m, i == 1)
    for name in params.keys() - {"head"}:
        assert all(np.asarray(m).all() for m in jax.tree.leaves(found[name]))


def test_sizes_of_p2s_network():
    """3136-8-10 at 70 %: ceil(.5477 * 3136) * ceil(.5477 * 8) + ceil(.5477 * 8) * 10, and (6)."""
    params = {"Dense_0": {"kernel": jnp.ones((3136, 8))}, "Dense_1": {"kernel": jnp.ones((8, 10))}}
    given = scores(params)

    def kept(ratio, **options):
        select = prune.neurons(named("Dense"), **options)

        def counts(ratio):
            return [layer["kernel"].sum() for layer in select(given, ratio).values()]

        return np.stack(jax.jit(lambda r: jax.lax.map(counts, r))(jnp.float32(ratio)), 1).tolist()

    assert kept([0.7]) == [[1718 * 5, 50]]
    assert kept([0.3], form="printed") == [[941 * 3, 3 * 3]]
    # With floor at most (kappa - kappa^2) 80 above (6), which is 20 at the most.
    ratios = [0.7, *np.linspace(0.01, 0.99, 20)]
    found = kept(ratios, down=True)
    assert found[0] == [1717 * 4, 40]
    for ratio, layers in zip(ratios, found, strict=True):
        assert sum(layers) <= (1 - ratio) * 25_168 + 20


def config(**values):
    changed = cfg.override(hfl_pruning.get_config("fast"), {"pruning.granularity": "neuron"})
    return cfg.override(changed, {k.replace("__", "."): v for k, v in values.items()})


def test_clients_with_ratios_of_their_own_are_averaged_over_holders():
    """Traced ratios of four clients, vmapped; the mean of each weight, against a NumPy loop."""
    network, clients = mlp(), federation(4)
    params = network.init(jax.random.key(1))
    allocated = cfg.override(
        hfl_adaptive.get_config("fast"),
        {"pruning.granularity": "neuron", "local.batch": 6, "local.steps": 2},
    )
    cfg.validate(allocated)
    train = build.local_update(allocated, network)
    ratios = jnp.asarray([0.0, 0.3, 0.6, 0.9])

    def one(k, ratio) -> Trained:
        client = clients.client(k)._replace(ratio=ratio)
        return train(jax.random.fold_in(jax.random.key(2), k), jnp.int32(0), params, None, client)

    trained = jax.jit(jax.vmap(one))(jnp.arange(4), ratios)
    uplink = link.holders(link.ideal(), link.ideal(), 1e-9)
    air = uplink.prepare(Cohort(jax.random.key(3), jnp.int32(0), jnp.arange(4)))
    sent = lambda state, one: uplink.encode(Sender(state, air.common, one, None, jnp.float32(1)))
    parts = jax.vmap(sent)(air.state, trained).total
    total = Total(*(jax.tree.map(lambda v: v.sum(0), part) for part in parts))  # no maximum
    update = uplink.finish(Arrival(jax.random.key(4), air, total, None)).update
    for name, (n, m) in {"Dense_0": (64, 16), "Dense_1": (16, 10)}.items():
        held = np.asarray(trained.held[name]["kernel"])
        delta = np.asarray(trained.delta[name]["kernel"], np.float64)
        for k in range(4):
            share = np.sqrt(1 - float(ratios[k]))
            outputs = m if name == "Dense_1" else math.floor(share * m)
            assert held[k].sum() == math.floor(share * n) * outputs
            assert not delta[k][~held[k]].any()
        expected = np.zeros((n, m))
        for i in range(n):
            for j in range(m):
                some = [delta[k, i, j] for k in range(4) if held[k, i, j]]
                expected[i, j] = np.mean(some) if some else 0.0
        np.testing.assert_allclose(update[name]["kernel"], expected, rtol=1e-4, atol=1e-7)


def test_configuration():
    """Fixed ratios reach the masks; the form changes them; the server decides none."""
    network, clients = mlp(), federation(2)
    params = network.init(jax.random.key(1))
    for form, width in (("derived", math.ceil(16 * math.sqrt(0.3))), ("printed", 12)):
        changed = config(pruning__ratio=0.7, pruning__form=form, local__batch=4)
        cfg.validate(changed)
        train = jax.jit(build.local_update(changed, network))
        held = train(jax.random.key(0), jnp.int32(0), params, None, clients.client(0)).held
        assert int(held["Dense_0"]["bias"].sum()) == width
        assert build.pruner(changed.pruning, prune.chain) is None
    with pytest.raises(cfg.ConfigError, match=r"granularity='neuron': must come with"):
        cfg.validate(config(run__evaluate="pruned"))


def test_refuses():
    with pytest.raises(ValueError, match="form='x'"):
        prune.neurons(form="x")
    select = prune.neurons()
    with pytest.raises(ValueError, match="is not of a fully connected layer"):
        select(cnn().init(jax.random.key(0)), jnp.float32(0.5))
    two = {"a": {"kernel": jnp.ones((3, 4))}, "b": {"kernel": jnp.ones((5, 2))}}
    with pytest.raises(ValueError, match=r"a/kernel \(3, 4\) does not lead to b/kernel \(5, 2\)"):
        select(two, jnp.float32(0.5))
    with pytest.raises(ValueError, match="no weight"):
        select({"b": {"bias": jnp.ones(3)}}, jnp.float32(0.5))
