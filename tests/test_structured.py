"""Pruning of filters and neurons: against loops, and the smaller model against the masked one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import before, leaves

import fedprune as fp
from fedprune import prune, tree

CNN = fp.models.cnn((5, 6), 3, (7,), input_shape=(8, 8, 1))
VGG = fp.models.vgg(((3, 4), (5, 6)), (8, 7), input_shape=(8, 8, 2))
RESNET = fp.models.resnet([(5, 6), (7,)], 4, (8, 8, 3), norm="batch", widths=(4, 6))
CASES = {
    "cnn": (
        CNN,
        prune.chain,
        (8, 8, 1),
        lambda w: fp.models.cnn(w[:2], 3, w[2:], input_shape=(8, 8, 1)),
    ),
    "vgg": (
        VGG,
        prune.chain,
        (8, 8, 2),
        lambda w: fp.models.vgg((w[:2], w[2:4]), w[4:], input_shape=(8, 8, 2)),
    ),
    "resnet": (
        RESNET,
        prune.blocks,
        (8, 8, 3),
        lambda w: fp.models.resnet([w[:2], w[2:]], 4, (8, 8, 3), norm="batch", widths=(4, 6)),
    ),
}


def randomized(model, seed=0):
    """All leaves away from zero, statistics positive."""
    rng = np.random.default_rng(seed)
    params = model.init(jax.random.key(seed))
    return jax.tree.map(lambda p: p + rng.uniform(0.05, 0.4, p.shape).astype("f4"), params)


def pruned(name, ratio, distribution="global", seed=0):
    model, structure, _, _ = CASES[name]
    params = randomized(model, seed)
    pruner = prune.structured(prune.constant(ratio), structure, distribution)
    mask, _ = jax.jit(pruner.update)(pruner.init(params), before(params))
    return params, mask


@pytest.mark.parametrize("name", CASES)
def test_the_smaller_model_is_the_same_function(name):
    model, structure, shape, rebuild = CASES[name]
    params, mask = pruned(name, 0.5)
    x = jax.random.normal(jax.random.key(1), (4, *shape))
    masked = model.apply(tree.apply_mask(mask, params), x)
    units = structure(params)
    widths = prune.widths(units, mask)
    assert any(w < u.size for w, u in zip(widths, units, strict=True))
    assert all(w >= 1 for w in widths)
    small = prune.shrink(units, params, mask)
    found = rebuild(widths).apply(small, x)
    np.testing.assert_allclose(found, masked, atol=1e-5, rtol=1e-5)
    shapes = jax.eval_shape(rebuild(widths).init, jax.random.key(0))
    assert [v.shape for v in leaves(small)] == [v.shape for v in jax.tree.leaves(shapes)]
    assert sum(v.size for v in leaves(small)) == int(tree.count(mask, params))


def by_hand(params, limit):
    """Greedy, on the host: drop the unit of least mean |w| while the cnn has too many weights."""
    names = ["Conv_0", "Conv_1", "Dense_0"]
    layers = {**params, **params["head"]}
    kernels = [np.abs(np.asarray(layers[name]["kernel"])) for name in names]
    scores = [k.reshape(-1, k.shape[-1]).mean(0) for k in kernels]
    kept = [np.ones(len(s), bool) for s in scores]

    def count():
        a, b, c = (int(k.sum()) for k in kept)
        return (9 + 1) * a + (9 * a + 1) * b + (4 * b + 1) * c + (c + 1) * 10

    order = sorted(
        ((s[i], layer, i) for layer, s in enumerate(scores) for i in range(len(s))),
        key=lambda entry: entry[0],
    )
    for _, layer, i in order:
        if count() <= limit:
            break
        if i != scores[layer].argmax():
            kept[layer][i] = False
    return [int(k.sum()) for k in kept], count()


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5, 0.8, 0.97])
def test_global_ranking_equals_a_loop(ratio):
    params, mask = pruned("cnn", ratio)
    total = sum(v.size for v in leaves(params))
    widths, count = by_hand(params, np.floor(np.float32(total) * np.float32(1 - ratio)))
    assert prune.widths(prune.chain(params), mask) == widths
    assert int(tree.count(mask, params)) == count
    assert ratio > 0.9 or count <= total * (1 - ratio) + 1e-3


def test_layers_lose_equal_shares():
    params, mask = pruned("vgg", 0.7, "layer")
    units = prune.chain(params)
    shares = [w / u.size for w, u in zip(prune.widths(units, mask), units, strict=True)]
    assert 0.3 < np.mean(shares) < 0.75
    for share, u in zip(shares, units, strict=True):
        assert abs(share - np.mean(shares)) <= 1.5 / min(u.size for u in units)
    # Of each layer the units of largest l1 norm stay.
    flat = {tree.path_name(p): v for p, v in jax.tree_util.tree_flatten_with_path(params)[0]}
    for u, kept in zip(units, prune.kept_units(units, mask), strict=True):
        score = np.abs(np.asarray(flat[u.kernel])).reshape(-1, u.size).sum(0)
        kept = np.asarray(kept)
        assert kept.all() or score[kept].min() > score[~kept].max()


def test_masks_are_nested_over_rounds():
    """Also if the scores of what is left turn around, and with a traced schedule."""
    params = randomized(CNN)
    pruner = lambda ratio: prune.structured(prune.iterative(ratio, 0, 1, 4), prune.chain)
    state = pruner(0.8).init(params)
    update = jax.jit(lambda r, s, p, t: pruner(r).update(s, before(p, t)))
    counts = []
    for t in range(6):
        mask, after = update(0.8, state, params, jnp.int32(t))
        assert all((a <= b).all() for a, b in zip(leaves(mask), leaves(state), strict=True))
        counts.append(int(tree.count(mask, params)))
        state = after
        params = tree.apply_mask(mask, jax.tree.map(lambda p: 1.0 / (0.1 + jnp.abs(p)), params))
    total = sum(v.size for v in leaves(params))
    sparsities = [1 - 0.2 ** (i / 4) for i in (1, 2, 3, 4, 4, 4)]
    assert counts == sorted(counts, reverse=True)
    assert counts[3] == counts[5]
    assert all(c <= total * (1 - s) + 1e-3 for c, s in zip(counts, sparsities, strict=True))


def test_resnets_keep_the_channels_of_their_stages():
    _, mask = pruned("resnet", 0.5)
    flat = {tree.path_name(p): v for p, v in jax.tree_util.tree_flatten_with_path(mask)[0]}
    for path, kept in flat.items():
        inner = "conv1" in path or "norm1" in path or path.endswith("conv2/kernel")
        assert inner or np.asarray(kept).all(), path


def test_natural_order_of_many_layers():
    model = fp.models.mlp((3,) * 12, input_shape=(4,))
    units = prune.chain(jax.eval_shape(model.init, jax.random.key(0)))
    assert [u.kernel for u in units] == [f"Dense_{i}/kernel" for i in range(12)]


def test_what_is_refused():
    with pytest.raises(ValueError, match="distribution='both'"):
        prune.structured(prune.constant(0.5), prune.chain, "both")
    with pytest.raises(ValueError, match="no residual blocks"):
        prune.blocks(randomized(CNN))
    with pytest.raises(ValueError, match="outputs"):
        prune.chain(randomized(RESNET))
