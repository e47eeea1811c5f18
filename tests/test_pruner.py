"""Schedules against their formulas, and pruners against a numpy simulation of every round."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from problems import before

from fedprune import link, local, payload, prune, tree
from fedprune.rounds import Tally
from fedprune.rounds.row import kept_by_clients

# s_i of step i of n, in Python's floats.
FORMULAS = {
    "iterative": lambda p, i, n: 1 - (1 - p) ** (i / n),
    "linear": lambda p, i, n: p * i / n,
    "cubic": lambda p, i, n: p * (1 - (1 - i / n) ** 3),
}
SCHEDULES = {"iterative": prune.iterative, "linear": prune.linear, "cubic": prune.cubic}
# p, start, every, n
PLANS = [(0.9, 2, 1, 5), (0.3, 0, 3, 4), (0.75, 4, 2, 1), (1.0, 1, 2, 3), (0.0, 1, 1, 3)]
ROUNDS = 14


def sparsity(name: str, plan, t: int) -> float:
    p, start, every, n = plan
    i = 0 if t < start else min((t - start) // every + 1, n)
    return FORMULAS[name](p, i, n)


def keep(d: int, s: float) -> int:
    exact = d * (1 - s)
    assert abs(exact % 1 - 0.5) > 1e-3, "on the edge of rounding: choose another d"
    return round(exact)


# Schedules -----


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_equals_its_formula(name, plan):
    p, start, every, n = plan
    schedule = SCHEDULES[name](*plan)
    got = np.array([schedule(jnp.int32(t)) for t in range(ROUNDS)])
    want = [sparsity(name, plan, t) for t in range(ROUNDS)]
    np.testing.assert_allclose(got, want, rtol=0, atol=2 * np.finfo(np.float32).eps)
    assert (np.diff(got) >= 0).all()
    # Nothing before the start, and exactly p from the last step on.
    assert (got[:start] == 0).all()
    assert (got[start + (n - 1) * every :] == np.float32(p)).all()


def test_iterative_prunes_the_same_share_at_every_step():
    """The fraction .3690 of what is left, five times, leaves a tenth."""
    schedule = prune.iterative(0.9, start=3, every=2, steps=5)
    left = 1 - np.array([schedule(jnp.int32(t)) for t in range(2, 13)], np.float64)[::2]
    np.testing.assert_allclose(1 - left[1:] / left[:-1], 0.3690, atol=5e-5)
    np.testing.assert_allclose(left[-1], (1 - 0.3690427) ** 5, rtol=1e-5)


@pytest.mark.parametrize("start", [0, 5])
def test_one_shot(start):
    schedule = prune.one_shot(0.7, start)
    got = [float(schedule(jnp.int32(t))) for t in range(8)]
    assert got == [0.0] * start + [float(np.float32(0.7))] * (8 - start)


def test_constant():
    assert all(prune.constant(0.4)(jnp.int32(t)) == np.float32(0.4) for t in range(3))


def test_schedules_differ_between_their_ends():
    got = [float(SCHEDULES[name](0.9, 0, 1, 4)(jnp.int32(1))) for name in FORMULAS]
    np.testing.assert_allclose(got, [0.683772, 0.45, 0.7875], atol=1e-6)


# Pruners -----

SHAPES = {
    "conv/bias": (4,),
    "conv/kernel": (3, 3, 2, 4),
    "dense/bias": (4,),
    "dense/kernel": (17, 4),
}
KERNELS = ("conv/kernel", "dense/kernel")


def nested(flat):
    """{"conv/kernel": v} as {"conv": {"kernel": v}}."""
    tree = {}
    for path, leaf in flat.items():
        layer, name = path.split("/")
        tree.setdefault(layer, {})[name] = leaf
    return tree


def flat(tree):
    return {f"{layer}/{name}": np.asarray(v) for layer, d in tree.items() for name, v in d.items()}


def random_params(seed, mask=None, decimals=1):
    """Rounded to one decimal: many ties, and some exact zeros among the living."""
    rng = np.random.default_rng(seed)
    params = {
        path: rng.normal(size=shape).round(decimals).astype(np.float32)
        for path, shape in SHAPES.items()
    }
    if mask is not None:
        params = {path: np.where(mask[path], v, 0).astype(np.float32) for path, v in params.items()}
    return params


def ones():
    return {path: np.ones(shape, bool) for path, shape in SHAPES.items()}


def simulate(mask, params, s, groups):
    """Keeps in every group the largest magnitudes of what ``mask`` has left, as many as s says."""
    mask = dict(mask)
    for group in groups:
        score = np.concatenate([np.abs(params[path]).ravel() for path in group])
        alive = np.concatenate([mask[path].ravel() for path in group])
        order = np.argsort(-score, kind="stable")
        new = np.zeros(score.size, bool)
        new[order[alive[order]][: keep(score.size, s)]] = True
        for path in group:
            size = mask[path].size
            mask[path], new = new[:size].reshape(mask[path].shape), new[size:]
    return mask


GROUPS = {"global": [KERNELS], "layer": [(path,) for path in KERNELS]}


def same(got, want):
    got = flat(got)
    assert got.keys() == want.keys()
    for path in want:
        assert got[path].dtype == bool
        np.testing.assert_array_equal(got[path], want[path], err_msg=path)


@pytest.mark.parametrize("distribution", GROUPS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_server_masks_round_by_round(name, distribution):
    """Weights change at random from round to round, but stay zero where they were pruned."""
    plan = (0.9, 2, 2, 5)
    pruner = prune.scheduled(SCHEDULES[name](*plan), distribution=distribution)
    assert pruner.scope == "server"
    update = jax.jit(lambda state, params, t: pruner.update(state, before(params, t)))
    want = ones()
    state = pruner.init(nested(random_params(0)))
    same(state.mask, want)
    for t in range(ROUNDS):
        params = random_params(t, want)
        last = want
        want = simulate(want, params, sparsity(name, plan, t), GROUPS[distribution])
        mask, state = update(state, nested(params), jnp.int32(t))
        same(mask, want)
        same(state.mask, want)
        assert all((last[path] | ~want[path]).all() for path in want)  # nested
        sizes = [sum(want[path].sum() for path in group) for group in GROUPS[distribution]]
        np.testing.assert_array_equal(state.kept, sizes)
    assert sizes == [keep(d, 0.9) for d in ([140] if distribution == "global" else [72, 68])]


@pytest.mark.parametrize("distribution", GROUPS)
def test_client_masks_follow_the_given_params_only(distribution):
    plan = (0.8, 1, 1, 3)
    pruner = prune.scheduled(prune.linear(*plan), distribution=distribution, scope="client")
    assert pruner.scope == "client"
    update = jax.jit(lambda state, params, t: pruner.update(state, before(params, t)))
    state = pruner.init(nested(random_params(0)))
    masks = []
    for t in range(6):
        params = random_params(100 + t)
        want = simulate(ones(), params, sparsity("linear", plan, t), GROUPS[distribution])
        mask, state = update(state, nested(params), jnp.int32(t))
        same(mask, want)
        masks.append(want["conv/kernel"])
    # The same number in the last rounds, but not the same weights.
    assert (masks[5] & ~masks[4]).any()
    if distribution == "layer":
        assert masks[5].sum() == masks[4].sum() == keep(72, 0.8)


def test_global_ranks_layers_together_and_layer_each_by_itself():
    """A layer of small weights goes first globally, and loses half like the others layerwise."""
    params = {path: np.full(shape, 1.0, np.float32) for path, shape in SHAPES.items()}
    params["conv/kernel"] *= 0.01
    tree = nested(params)
    counts = {}
    for distribution in GROUPS:
        pruner = prune.scheduled(prune.constant(0.5), distribution=distribution)
        mask = flat(jax.jit(pruner.update)(pruner.init(tree), before(tree, 0))[0])
        counts[distribution] = [int(mask[path].sum()) for path in KERNELS]
    assert counts == {"global": [2, 68], "layer": [36, 34]}


@pytest.mark.parametrize("distribution", GROUPS)
def test_ties_are_cut_by_index(distribution):
    tree = nested({path: np.full(shape, -2.0, np.float32) for path, shape in SHAPES.items()})
    pruner = prune.scheduled(prune.constant(0.6), distribution=distribution)
    mask = flat(jax.jit(pruner.update)(pruner.init(tree), before(tree, 0))[0])
    first = lambda shape, n: (np.arange(np.prod(shape)) < n).reshape(shape)
    kept = (56, 0) if distribution == "global" else (29, 27)
    for path, n in zip(KERNELS, kept, strict=True):
        np.testing.assert_array_equal(mask[path], first(SHAPES[path], n))


@pytest.mark.parametrize("scope", ["server", "client"])
@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_extreme_ratios_and_biases(ratio, scope):
    """Biases stay in any case."""
    params = random_params(5)
    pruner = prune.scheduled(prune.iterative(ratio, 0, 1, 2), scope=scope)
    state = pruner.init(nested(params))
    update = jax.jit(lambda state, params, t: pruner.update(state, before(params, t)))
    for t in range(3):
        mask, state = update(state, nested(params), jnp.int32(t))
        gone = ratio == 1.0
        same(mask, {path: v & ~(gone and path in KERNELS) for path, v in ones().items()})


def test_prunable_sees_paths_and_leaves():
    params = random_params(6)
    seen = {}

    def only_dense_bias(path, leaf):
        seen[path] = leaf.shape
        return path == "dense/bias"

    pruner = prune.scheduled(prune.constant(0.4), prunable=only_dense_bias)
    mask, _ = jax.jit(pruner.update)(pruner.init(nested(params)), before(nested(params), 0))
    assert seen == SHAPES
    same(mask, simulate(ones(), params, 0.4, [("dense/bias",)]))


def test_another_score():
    params = random_params(7, decimals=6)
    inverse = lambda params: jax.tree.map(lambda v: 1 / jnp.abs(v), params)
    pruner = prune.scheduled(prune.constant(0.5), inverse, "layer")
    mask, _ = jax.jit(pruner.update)(pruner.init(nested(params)), before(nested(params), 0))
    kernel = np.abs(params["conv/kernel"])
    got = flat(mask)["conv/kernel"]
    np.testing.assert_array_equal(got, kernel < np.sort(kernel, None)[36])


def test_scores_are_magnitudes():
    params = random_params(8)
    got = flat(prune.magnitude(nested(params)))
    for path in params:
        np.testing.assert_array_equal(got[path], np.abs(params[path]))


def test_arms_with_different_schedules_share_a_program():
    """Ratio, start, interval and steps traced under vmap, rounds in a scan."""
    plans = [(0.9, 2, 1, 5), (0.3, 0, 3, 4), (0.75, 4, 2, 1), (0.5, 1, 2, 3)]
    history = [random_params(20 + t, decimals=4) for t in range(ROUNDS)]
    stacked = nested({path: np.stack([p[path] for p in history]) for path in SHAPES})

    def run(ratio, start, every, steps):
        pruner = prune.scheduled(prune.iterative(ratio, start, every, steps))

        def one(state, now):
            t, params = now
            params = jax.tree.map(lambda m, v: jnp.where(m, v, 0), state.mask, params)
            mask, state = pruner.update(state, before(params, t))
            return state, (mask, state.kept)

        state = pruner.init(jax.tree.map(lambda v: v[0], stacked))
        return lax.scan(one, state, (jnp.arange(ROUNDS), stacked))[1]

    ratios, *whole = zip(*plans, strict=True)
    masks, kept = jax.jit(jax.vmap(run))(jnp.array(ratios), *map(jnp.array, whole))
    assert kept.shape == (len(plans), ROUNDS, 1)
    for a, plan in enumerate(plans):
        want = ones()
        for t in range(ROUNDS):
            params = {path: np.where(want[path], v, 0) for path, v in history[t].items()}
            want = simulate(want, params, sparsity("iterative", plan, t), GROUPS["global"])
            same(jax.tree.map(lambda m, a=a, t=t: m[a, t], masks), want)
            assert kept[a, t, 0] == keep(140, sparsity("iterative", plan, t))


def count_kept(schedule, d: int, t: int) -> int:
    tree = {"kernel": jnp.arange(1.0, d + 1.0).reshape(1, d)}
    pruner = prune.scheduled(schedule)
    mask, state = jax.jit(pruner.update)(pruner.init(tree), before(tree, t))
    kept = int(mask["kernel"].sum())
    assert state.kept.tolist() == [kept]
    return kept


@pytest.mark.parametrize("d", [5, 7, 9, 25, 27])
def test_halves_round_to_even(d):
    assert count_kept(prune.constant(0.5), d, 0) == round(d / 2)


@pytest.mark.parametrize(
    ("name", "d", "i", "want"),
    [
        ("linear", 25, 5, 2),  # 2.5: half to even
        ("iterative", 1549, 4, 245),  # 245.49996
        ("cubic", 100_611, 4, 10_785),  # 10785.49920
    ],
)
def test_counts_where_float32_may_round_the_other_way(name, d, i, want):
    """p = .9 in five steps; these are as close to a half as float32 errors reach."""
    exact = {"iterative": 0.1 ** (i / 5), "linear": 1 - 0.9 * i / 5}
    exact["cubic"] = 1 - 0.9 * (1 - (1 - i / 5) ** 3)
    assert round(d * exact[name]) == want
    kept = count_kept(SCHEDULES[name](0.9, 0, 1, 5), d, i - 1)
    assert abs(kept - d * exact[name]) <= 0.5 + 3e-7 * d


# Errors -----


def test_unknown_distribution():
    with pytest.raises(ValueError, match="distribution='erk' is neither 'global' nor 'layer'"):
        prune.scheduled(prune.constant(0.5), distribution="erk")


def test_unknown_scope():
    with pytest.raises(ValueError, match="scope='edge' is not one of"):
        prune.scheduled(prune.constant(0.5), scope="edge")


def test_nothing_prunable():
    pruner = prune.scheduled(prune.constant(0.5))
    with pytest.raises(ValueError, match="no weight of the model is prunable"):
        pruner.init({"bias": jnp.ones(3)})


@pytest.mark.parametrize("distribution", GROUPS)
@pytest.mark.parametrize("scope", ["server", "client"])
def test_signed_scores_are_ranked_by_value(distribution, scope):
    params = {"kernel": jnp.array([[-5.0, -3.0, -1.0, 0.5, 1.0, 2.0]])}
    by_value = dict(score=lambda p: p, distribution=distribution, scope=scope)
    pruner = prune.scheduled(prune.constant(0.5), **by_value)
    mask, _ = pruner.update(pruner.init(params), before(params, 0))
    np.testing.assert_array_equal(mask["kernel"][0], [False, False, False, True, True, True])


# What is a kernel -----


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        heads = nn.MultiHeadDotProductAttention(num_heads=2)
        return x + nn.Dense(4)(heads(nn.LayerNorm()(x))), None


class Scanned(nn.Module):
    """Three blocks by ``nn.scan``: each of their leaves has a leading axis of 3."""

    @nn.compact
    def __call__(self, x):
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 3}
        x, _ = nn.scan(Block, **axes)()(x, None)
        return nn.Dense(2)(x)


def modules():
    """Params of libraries, and by their documentation the names of their kernels."""
    linen = Scanned().init(jax.random.key(0), jnp.ones((1, 5, 4)))["params"]
    haiku = {
        "linear": {"w": jnp.ones((3, 4, 4)), "b": jnp.ones((3, 4))},
        "batch_norm": {"scale": jnp.ones((1, 1, 1, 4)), "offset": jnp.ones((1, 1, 1, 4))},
        "gru": {"w_i": jnp.ones((4, 12)), "w_h": jnp.ones((4, 12)), "b": jnp.ones((12,))},
        "embed": {"embeddings": jnp.ones((7, 4))},
        "norm/~/mean_ema": {"average": jnp.ones((1, 4)), "hidden_var": jnp.ones((1, 4))},
    }
    attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=nnx.Rngs(0))
    stacked = nnx.vmap(lambda rngs: nnx.BatchNorm(4, rngs=rngs))(nnx.Rngs(0).fork(split=3))
    plain = {"w1": jnp.ones((3, 4)), "lora_b": jnp.ones((2, 4)), "in_proj_bias": jnp.ones((3, 4))}
    heads = [f"MultiHeadDotProductAttention_0/{part}" for part in ("key", "out", "query", "value")]
    blocks = [f"ScanBlock_0/{path}/kernel" for path in ("Dense_0", *heads)]
    return {
        "linen": (linen, {"Dense_0/kernel", *blocks}),
        "haiku": (haiku, {"linear/w", "gru/w_i", "gru/w_h", "embed/embeddings"}),
        "nnx": (
            {"attention": nnx.state(attention, nnx.Param), "norm": nnx.state(stacked)},
            {f"attention/{part}/kernel/value" for part in ("key", "out", "query", "value")},
        ),
        "arrays": (plain, {"w1", "lora_b"}),
    }


@pytest.mark.parametrize("library", ["linen", "haiku", "nnx", "arrays"])
def test_kernels_are_decided_by_role_and_everywhere_alike(library):
    params, wanted = modules()[library]
    named = [(tree.path_name(p), v) for p, v in jax.tree_util.tree_leaves_with_path(params)]
    assert any(v.ndim >= 2 and name not in wanted for name, v in named)

    names = lambda chosen: {
        n for (n, _), c in zip(named, jax.tree.leaves(chosen), strict=True) if c
    }
    pruner = prune.scheduled(prune.constant(0.5), distribution="layer")
    mask, _ = pruner.update(pruner.init(params), before(params, 0))
    assert names(jax.tree.map(lambda m: not m.all(), mask)) == wanted
    decayed = local.adjusted(optax.sgd(1.0), weight_decay=1.0)
    zero = jax.tree.map(jnp.zeros_like, params)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = decayed.update(zero, decayed.init(ones), ones)
    assert names(jax.tree.map(lambda u: bool(u.any()), updates)) == wanted
    assert set(link.layer_names(params)) == wanted
    assert sorted(v.shape for v in payload.kernels(params, mask)[1]) == sorted(
        v.shape for name, v in named if name in wanted
    )
    tally = Tally(*[jnp.float32(2)] * 4, None, None, None, None)
    assert set(kept_by_clients(mask, tally, params)[1]) == wanted
    sizes = {bits: len(payload.to_bytes(params, None, "dense", bits)) for bits in (32, 16)}
    assert sizes[32] - sizes[16] == 2 * sum(v.size for name, v in named if name in wanted)


def test_a_chain_of_stacked_layers_is_refused():
    params = {"a": {"kernel": jnp.ones((4, 4))}, "b": {"kernel": jnp.ones((3, 4, 4))}}
    params["b"]["bias"] = jnp.ones((3, 4))
    params["c"] = {"kernel": jnp.ones((4, 2))}
    with pytest.raises(ValueError, match=r"b/bias \(3, 4\) is of several layers"):
        prune.chain(params)
