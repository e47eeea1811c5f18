"""Convolution against ``lax.conv_general_dilated`` under every transform, and what XLA makes of it.

The reference of a vmapped or scanned convolution is a Python loop over unbatched ``lax`` ones.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from scipy import signal

from fedprune import nn

# x, w, strides, padding
CASES = {
    "1d-same": ((2, 9, 3), (3, 3, 4), 1, "SAME"),
    "1d-valid-3": ((2, 12, 3), (5, 3, 2), 3, "VALID"),
    "1x1": ((2, 5, 6, 3), (1, 1, 3, 4), 1, "SAME"),
    "1x1-strided": ((2, 7, 6, 3), (1, 1, 3, 4), 2, "VALID"),
    "3x3": ((2, 7, 6, 3), (3, 3, 3, 4), 1, "SAME"),
    "3x3-same-2": ((2, 7, 6, 3), (3, 3, 3, 4), 2, "SAME"),
    "3x3-valid-3": ((2, 10, 9, 3), (3, 3, 3, 4), 3, "VALID"),
    "5x5": ((2, 8, 7, 2), (5, 5, 2, 3), 1, "SAME"),
    "5x5-valid-2": ((2, 10, 9, 2), (5, 5, 2, 3), 2, "VALID"),
    "5x3-mixed-strides": ((2, 9, 7, 2), (5, 3, 2, 3), (1, 3), "SAME"),
    "explicit": ((2, 6, 7, 2), (3, 3, 2, 3), (2, 1), ((0, 2), (3, 1))),
    "explicit-beyond-kernel": ((2, 5, 4, 2), (3, 3, 2, 3), 1, ((4, 5), (3, 0))),
    "kernel-beyond-input": ((2, 3, 4, 2), (5, 5, 2, 3), 2, "SAME"),
    "even-kernel": ((2, 6, 7, 2), (2, 4, 2, 3), 2, "SAME"),
    "1x1-strides": ((2, 6, 7, 3), (1, 1, 3, 4), (2, 3), "SAME"),
    "1x1-padded": ((2, 5, 4, 3), (1, 1, 3, 4), 2, ((0, 2), (3, 1))),
    "wide": ((2, 4, 3, 256), (3, 3, 256, 256), 1, "SAME"),
    "wide-strides": ((2, 5, 4, 256), (3, 2, 256, 257), (2, 3), ((2, 0), (0, 1))),
    "colours": ((2, 7, 6, 3), (3, 3, 3, 20), 1, "SAME"),
    "odd-channels": ((2, 7, 6, 5), (3, 2, 5, 70), (2, 1), ((1, 0), (2, 1))),
    "odd-channels-1d": ((2, 9, 7), (5, 7, 17), 2, "SAME"),
    "many-products": ((12, 30, 31, 8), (5, 5, 8, 3), 1, "VALID"),
    "3d-same": ((2, 4, 5, 3, 2), (3, 3, 3, 2, 3), 1, "SAME"),
    "3d-mixed": ((2, 5, 6, 4, 2), (3, 1, 2, 2, 3), (2, 3, 1), "VALID"),
}
LOWERINGS = ("sequential", "grouped")


def reference(x, w, strides=1, padding="SAME"):
    n = x.ndim - 2
    space = "DHW"[3 - n :]
    strides = (strides,) * n if isinstance(strides, int) else strides
    spec = (f"N{space}C", f"{space}IO", f"N{space}C")
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=spec)


def normal(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def close(got, want, tolerance=1e-5):
    """Every leaf agrees up to ``tolerance`` of the leaf's largest entry, which is not zero."""
    got, want = jax.tree.flatten(got), jax.tree.flatten(want)
    assert got[1] == want[1]
    for a, b in zip(got[0], want[0], strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        scale = np.abs(b).max()
        assert scale > 0
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def loss(conv, x, w):
    """Not quadratic in either operand, so that second and third derivatives are not constants."""
    y = conv(x, w)
    return jnp.mean(jnp.tanh(0.3 * y) ** 3 + y**2)


def derivatives(conv, x, w, dx, dw):
    """Value, gradient, and Hessian-vector products: forward and reverse over reverse."""
    f = partial(loss, conv)
    gradient = jax.grad(f, (0, 1))

    def along(x, w):
        gx, gw = gradient(x, w)
        return jnp.vdot(gx, dx) + jnp.vdot(gw, dw)

    return {
        "value": conv(x, w),
        "jvp": jax.jvp(f, (x, w), (dx, dw))[1],
        "gradient": gradient(x, w),
        "hvp": jax.jvp(gradient, (x, w), (dx, dw))[1],
        "reverse hvp": jax.grad(along, (0, 1))(x, w),
    }


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_derivatives_equal_lax(case):
    x, w, strides, padding = case
    ours, lax_ = (
        jax.jit(partial(derivatives, lambda x, w, c=c: c(x, w, strides, padding)))
        for c in (nn.conv, reference)
    )
    operands = normal(0, x, w, x, w)
    close(ours(*operands), lax_(*operands))


def test_value_equals_scipy():
    x, w = normal(1, (2, 7, 6, 3), (3, 2, 3, 4))
    want = np.zeros((2, 5, 5, 4), np.float32)
    for b, c, d in np.ndindex(2, 3, 4):
        want[b, :, :, d] += signal.correlate2d(x[b, :, :, c], w[:, :, c, d], "valid")
    close(nn.conv(x, w, 1, "VALID"), jnp.asarray(want))


@pytest.mark.parametrize(
    ("x", "w", "strides"),
    [((1, 3, 3, 1), (2, 2, 1, 2), 1), ((1, 4, 3, 2), (3, 3, 2, 1), 2), ((2, 5, 1), (3, 1, 2), 1)],
)
def test_hessians_equal_lax(x, w, strides):
    x, w = normal(2, x, w)

    def both(conv):
        f = partial(loss, lambda x, w: conv(x, w, strides))
        twice = jax.jacrev(jax.jacrev(f, (0, 1)), (0, 1))
        return jax.jit(lambda x, w: (jax.hessian(f, (0, 1))(x, w), twice(x, w)))

    close(both(nn.conv)(x, w), both(reference)(x, w))


def test_third_derivative_and_remat_equal_lax():
    x, w, dx, dw = normal(3, (2, 5, 4, 2), (3, 3, 2, 2), (2, 5, 4, 2), (3, 3, 2, 2))

    def third(conv):
        f = jax.checkpoint(partial(loss, conv))

        def hvp(x, w):
            return jax.jvp(jax.grad(f, (0, 1)), (x, w), (dx, dw))[1]

        def curvature(x, w):
            hx, hw = hvp(x, w)
            return jnp.vdot(hx, dx) + jnp.vdot(hw, dw)

        return jax.jit(jax.grad(curvature, (0, 1)))(x, w)

    close(third(nn.conv), third(reference))


def test_linear_transpose_equals_lax():
    x, w, y = normal(4, (2, 7, 6, 3), (3, 3, 3, 4), (2, 4, 3, 4))
    for i in (0, 1):

        def transposed(conv, i=i):
            f = lambda t: conv(*((t, w) if i == 0 else (x, t)), 2)
            return jax.linear_transpose(f, (x, w)[i])(y)

        close(transposed(nn.conv), transposed(reference))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_equals_lax(dtype):
    x, w = (t.astype(dtype) for t in normal(5, (2, 5, 4, 2), (3, 3, 2, 3)))
    gradient = lambda conv: jax.grad(lambda x, w: conv(x, w).sum(), (0, 1))(x, w)
    # Sums of a few terms in another order: a unit in the last place or two.
    close(nn.conv(x, w), reference(x, w), 2 * float(jnp.finfo(dtype).eps))
    close(gradient(nn.conv), gradient(reference), 2 * float(jnp.finfo(dtype).eps))


# vmap and scan -----

X, W = (2, 6, 5, 2), (3, 3, 2, 3)
BATCHED = ((0, 0, 0, 0), (0, None, 0, None), (None, 0, None, 0), (None, None, 0, None))


@partial(jax.jit, static_argnums=0)
def one(strides, *operands):
    return derivatives(partial(reference, strides=strides), *operands)


def select(axes, i, operands):
    return [t if a is None else jnp.take(t, i, a) for a, t in zip(axes, operands, strict=True)]


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("axes", BATCHED, ids=("both", "x", "w", "tangent"))
def test_vmap_equals_a_loop(axes, lowering):
    shapes = [s if a is None else (3, *s) for a, s in zip(axes, (X, W, X, W), strict=True)]
    operands = normal(6, *shapes)
    conv = partial(nn.conv, strides=2, lowering=lowering)
    got = jax.jit(jax.vmap(partial(derivatives, conv), axes))(*operands)
    close(got, stack([one(2, *select(axes, i, operands)) for i in range(3)]))


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_nested_vmap_equals_a_loop(lowering):
    """x varies along the outer axis (its last), w along the inner one (its second)."""
    x, w, dx, dw = normal(7, (*X, 2), (3, 3, 3, 2, 3), (*X, 2), (3, 3, 3, 2, 3))
    f = partial(derivatives, partial(nn.conv, lowering=lowering))
    got = jax.jit(jax.vmap(jax.vmap(f, (None, 1, None, 1)), (4, None, 4, None)))(x, w, dx, dw)
    rows = [
        stack([one(1, x[..., i], w[:, j], dx[..., i], dw[:, j]) for j in range(3)])
        for i in range(2)
    ]
    close(got, stack(rows))


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_vmap_of_both_twice_equals_a_loop(lowering):
    x, w = normal(8, (2, 3, *X), (2, 3, *W))
    f = lambda x, w: nn.conv(x, w, lowering=lowering)
    got = jax.jit(jax.vmap(jax.vmap(f)))(x, w)
    close(got, stack([stack([reference(x[i, j], w[i, j]) for j in range(3)]) for i in range(2)]))


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_vmapped_hessian_equals_lax(lowering):
    x, w = normal(9, (2, 1, 3, 3, 1), (2, 2, 2, 1, 2))
    f = partial(loss, partial(nn.conv, lowering=lowering))
    got = jax.jit(jax.vmap(jax.hessian(f, (0, 1))))(x, w)
    alone = jax.jit(jax.hessian(partial(loss, reference), (0, 1)))
    close(got, stack([alone(x[i], w[i]) for i in range(2)]))


def cnn_loss(conv, params, x, y):
    w1, w2 = params
    h = nn.max_pool(jax.nn.relu(conv(x, w1)), 2)
    h = conv(h, w2, 2)
    return jnp.mean((h.mean((1, 2)) - y) ** 2)


cnn_gradient = jax.jit(jax.grad(partial(cnn_loss, reference)))


def train(conv, params, x, y, steps=3):
    """Plain SGD in a scan."""

    def step(params, _):
        gradient = jax.grad(partial(cnn_loss, conv))(params, x, y)
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient), None

    return lax.scan(step, params, None, length=steps)[0]


def train_all(conv, params, x, y, steps=3):
    """The same with the clients vmapped inside the scan."""

    def step(params, _):
        gradient = jax.vmap(jax.grad(partial(cnn_loss, conv)))(params, x, y)
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient), None

    return lax.scan(step, params, None, length=steps)[0]


def cohort(clients=3, size=12):
    """With 12 pixels the second layer's output is 3x3, as large as its kernel; with 8, smaller."""
    w1, w2, x, y = normal(
        10,
        (clients, 3, 3, 1, 4),
        (clients, 3, 3, 4, 5),
        (clients, 2, size, size, 1),
        (clients, 2, 5),
    )
    return (0.3 * w1, 0.3 * w2), x, y


TRAINERS = {
    "vmap of scan": lambda conv: jax.vmap(partial(train, conv)),
    "scan of vmap": lambda conv: partial(train_all, conv),
    "map of scan": lambda conv: lambda *data: lax.map(lambda one: train(conv, *one), data),
}


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("trainer", TRAINERS.values(), ids=TRAINERS)
def test_training_in_a_scan_equals_a_loop(trainer, lowering):
    params, x, y = cohort()
    got = jax.jit(trainer(partial(nn.conv, lowering=lowering)))(params, x, y)
    want = []
    for k in range(3):
        p = jax.tree.map(lambda v, k=k: v[k], params)
        for _ in range(3):
            p = jax.tree.map(lambda v, g: v - 0.5 * g, p, cnn_gradient(p, x[k], y[k]))
        want.append(p)
    close(got, stack(want))


def test_gradient_through_a_scan_equals_lax():
    """Differentiating the training itself, as meta-learning does."""
    params, x, y = cohort()

    def after(conv):
        f = lambda params: jax.vmap(partial(cnn_loss, conv))(train_all(conv, params, x, y), x, y)
        return jax.jit(jax.grad(lambda params: f(params).sum()))(params)

    close(after(nn.conv), after(reference))


# shard_map -----

DEVICES = 4
VARYING = {"x": (True, False), "w": (False, True), "both": (True, True), "none": (False, False)}


def mesh():
    return jax.make_mesh((DEVICES,), ("d",), (AxisType.Auto,), devices=jax.devices()[:DEVICES])


def sharded(f, varying):
    """``f(x, w, dx, dw)``, a gradient and an HVP, on every device's own slice of what varies."""
    specs = tuple(jax.P("d") if v else jax.P() for v in varying)
    peel = lambda v, t: t[0] if v else t

    def local(*operands):
        gradient, hvp = f(*map(peel, varying * 2, operands))
        lead = lambda out: tuple(g[None] if v else g for v, g in zip(varying, out, strict=True))
        return lead(gradient), lead(hvp)

    return jax.shard_map(local, mesh=mesh(), in_specs=specs * 2, out_specs=(specs, specs))


def sharded_operands(seed, varying, lead=()):
    shapes = [(*lead, *(DEVICES,) * v, *s) for v, s in zip(varying, (X, W), strict=True)]
    return normal(seed, *shapes, *shapes)


def total(varying, x, w):
    """The loss whose gradient devices must find: summed over them as soon as anything varies."""
    if not any(varying):
        return loss(reference, x, w)
    rows = [(x[i] if varying[0] else x, w[i] if varying[1] else w) for i in range(DEVICES)]
    return sum(loss(reference, *row) for row in rows)


@partial(jax.jit, static_argnums=0)
def total_derivatives(varying, x, w, dx, dw):
    """The gradient, and its derivative along (dx, dw)."""
    return jax.jvp(jax.grad(partial(total, varying), (0, 1)), (x, w), (dx, dw))


def own_derivatives(conv, x, w, dx, dw):
    return jax.jvp(jax.grad(partial(loss, conv), (0, 1)), (x, w), (dx, dw))


@pytest.mark.parametrize("varying", VARYING.values(), ids=VARYING)
def test_shard_map_sums_derivatives_of_invariant_operands_only(varying):
    operands = sharded_operands(11, varying)
    got = jax.jit(sharded(partial(own_derivatives, nn.conv), varying))(*operands)
    close(got, total_derivatives(varying, *operands))


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("varying", [(True, False), (True, True)], ids=("x", "both"))
def test_vmap_of_shard_map(varying, lowering):
    operands = sharded_operands(13, varying, lead=(2,))
    conv = partial(nn.conv, lowering=lowering)
    got = jax.jit(jax.vmap(sharded(partial(own_derivatives, conv), varying)))(*operands)
    close(got, stack([total_derivatives(varying, *(t[i] for t in operands)) for i in range(2)]))


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("varying", [(True, False), (False, True)], ids=("x", "w"))
def test_shard_map_of_vmapped_hvp(varying, lowering):
    """Each device vmaps over a second axis that only the varying operand has."""
    batched = tuple(0 if v else None for v in varying)
    shapes = [(DEVICES, 2, *s) if v else s for v, s in zip(varying, (X, W), strict=True)]
    operands = normal(14, *shapes, *shapes)
    conv = partial(nn.conv, lowering=lowering)
    many = jax.vmap(partial(own_derivatives, conv), batched * 2)

    def summed(*local):
        # One HVP per vmapped example: the invariant operand's are summed here, over examples.
        add = lambda out: tuple(
            h if b == 0 else h.sum(0) for h, b in zip(out, batched, strict=True)
        )
        gradient, hvp = many(*local)
        return add(gradient), add(hvp)

    got = jax.jit(sharded(summed, varying))(*operands)
    axes = [1 if v else None for v in varying * 2]
    parts = [total_derivatives(varying, *select(axes, i, operands)) for i in range(2)]
    want = [
        tuple(
            jnp.stack((a, b), 1) if v else a + b
            for v, a, b in zip(varying, first, second, strict=True)
        )
        for first, second in zip(*parts, strict=True)
    ]
    close(got, tuple(want))


def test_shard_map_of_scan_of_vmap_equals_a_loop():
    """The nest that a round is: devices, then steps, then clients."""
    params, x, y = cohort(2 * DEVICES)
    specs = jax.P("d")
    spread = jax.shard_map(
        partial(train_all, nn.conv), mesh=mesh(), in_specs=(specs,) * 3, out_specs=specs
    )
    alone = jax.jit(partial(train, reference))
    own = lambda k: jax.tree.map(lambda v: v[k], (params, x, y))
    close(jax.jit(spread)(params, x, y), stack([alone(*own(k)) for k in range(2 * DEVICES)]))


def test_gradient_of_shard_map_from_outside():
    x, w, dx, dw = sharded_operands(15, (True, False))

    def everywhere(x, w):
        local = lambda x, w: lax.psum(loss(nn.conv, x[0], w), "d")
        return jax.shard_map(local, mesh=mesh(), in_specs=(jax.P("d"), jax.P()), out_specs=jax.P())(
            x, w
        )

    got = jax.jit(jax.grad(everywhere, (0, 1)))(x, w)
    close(got, total_derivatives((True, False), x, w, dx, dw)[0])


# What XLA gets to see -----


def not_canonical(hlo: str) -> list[str]:
    """Convolutions that XLA's CPU backend runs by its naive loop inside a ``while`` body."""
    layouts = dict(re.findall(r"(%[\w.-]+) = \w+\[[\d,]*\]\{([\d,]*)", hlo))
    odd = []
    lines = [line for line in hlo.splitlines() if " convolution(" in line]
    for line in lines:
        name, *operands = re.findall(r"%[\w.-]+", line.split("metadata=")[0])
        if (
            "dim_labels=b01f_01io->b01f" not in line
            or "group_count" in line
            or "rhs_reversal" in line
            or any(layouts.get(t, "3,2,1,0") != "3,2,1,0" for t in (name, *operands))
        ):
            odd.append(line)
    # Two layers forward, both kernels' gradients, and the second layer's input's: none turned
    # into a fusion or a call that the check would overlook.
    assert len(lines) == 5
    return odd


def compiled(conv, trainer, size=12) -> str:
    return jax.jit(trainer(conv)).lower(*cohort(size=size)).compile().as_text()


@pytest.mark.parametrize("trainer", TRAINERS.values(), ids=TRAINERS)
def test_only_canonical_convolutions_in_loops(trainer):
    assert not_canonical(compiled(nn.conv, trainer)) == []


def test_canonical_where_the_kernel_exceeds_the_feature_map():
    """XLA swaps the operands of a convolution if that makes the kernel smaller."""
    assert not_canonical(compiled(nn.conv, TRAINERS["map of scan"], size=8)) == []


@pytest.mark.parametrize(("name", "odd"), [("vmap of scan", 5), ("map of scan", 3)])
def test_the_check_sees_what_lax_does(name, odd):
    """Grouped convolutions under vmap; transposed layouts of the gradients in any case."""
    assert len(not_canonical(compiled(reference, TRAINERS[name]))) == odd


def test_eager_calls_compile_once():
    compilations = []
    x, w = normal(16, (2, 5, 5, 2), (3, 3, 2, 3))
    nn.conv(x, w).block_until_ready()

    def listen(event, *args, **kwargs):
        if event.endswith("backend_compile_duration"):
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        nn.conv(x + 1.0, w).block_until_ready()
        first = len(compilations)
        nn.conv(x + 1.0, w).block_until_ready()
        assert len(compilations) == first
        # The listener does hear compilations.
        jax.jit(lambda x: x - 7.0)(x).block_until_ready()
        assert len(compilations) == first + 1
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


# Errors and corners -----


@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        (jnp.ones((2, 3)), jnp.ones((3, 4)), r"\[b, \*in, c\].*\(2, 3\)"),
        (jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 4)), r"\(2, 5, 5, 3\), \(3, 3, 4\)"),
        (jnp.ones((2, 3, 3, 3, 3, 1)), jnp.ones((1, 1, 1, 1, 1, 1)), r"\[b, \*in, c\]"),
        (jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 2, 4)), "x has 3 channels, w takes 2"),
        (jnp.ones((2, 5, 3)), jnp.ones((3, 3, 4), jnp.bfloat16), "x is float32, w is bfloat16"),
    ],
    ids=("rank", "kernel rank", "four dimensions", "channels", "dtype"),
)
def test_operands_that_do_not_match(x, w, message):
    with pytest.raises(ValueError, match=message):
        nn.conv(x, w)


@pytest.mark.parametrize("strides", [1, 2])
def test_kernel_larger_than_the_input_has_zero_gradients(strides):
    """VALID leaves no output; ``lax`` gives zero gradients of the operands' shapes."""
    x, w = normal(17, (2, 4, 4, 2), (7, 7, 2, 3))
    gradient = jax.grad(lambda x, w: nn.conv(x, w, strides, "VALID").sum(), (0, 1))
    for got, like in zip(gradient(x, w), (x, w), strict=True):
        np.testing.assert_array_equal(got, np.zeros(like.shape))
