"""Every form of a convolution against loops and ``lax``, and which one the table chooses."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fedprune import nn
from fedprune.nn import lowering, strided, table, winograd

SPEC = ("NHWC", "HWIO", "NHWC")


def normal(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def close(got, want, tolerance=1e-6):
    """Up to ``tolerance`` of the largest entry."""
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    scale = np.abs(np.asarray(want, np.float64)).max()
    assert scale > 0
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)


# Strides -----


def transposed(y, w, size, stride, low):
    """By the definition: entry o of y reaches entry o s + i - low of the input through w[i]."""
    dx = np.zeros((y.shape[0], size, w.shape[1]))
    for o, i in np.ndindex(y.shape[1], w.shape[0]):
        if 0 <= (m := o * stride + i - low) < size:
            dx[:, m] += y[:, o] @ w[i].T
    return jnp.asarray(dx, jnp.float32)


def test_subgrids_equal_a_loop():
    """Strides, kernels, sides of both parities, and padding within and beyond the kernel."""
    cases = [
        (stride, kernel, size, pads)
        for stride, kernel, size in itertools.product((2, 3), range(1, 6), (6, 7))
        for pads in ((0, 0), (1, 1), (0, 2), (4, 5))
        if size + sum(pads) >= kernel
    ]
    outs = [(size + sum(pads) - kernel) // stride + 1 for stride, kernel, size, pads in cases]
    operands = [
        normal(k, (2, out, 3), (kernel, 2, 3))
        for k, ((_, kernel, *_), out) in enumerate(zip(cases, outs, strict=True))
    ]
    windows = [((size,), (kernel,), (stride,), (pads,)) for stride, kernel, size, pads in cases]

    @jax.jit
    def all_of_them(operands):
        pairs = zip(operands, windows, strict=True)
        return [strided.input_subgrids(*given, window) for given, window in pairs]

    for got, (y, w), case in zip(all_of_them(operands), operands, cases, strict=True):
        stride, _, size, (low, _) = case
        want = transposed(np.asarray(y), np.asarray(w), size, stride, low)
        np.testing.assert_allclose(got, want, atol=2e-6 * np.abs(want).max(), err_msg=str(case))


# Each form -----

# side, kernel, strides, padding
WINDOWS = {
    "3x3": ((6, 5), (3, 3), (1, 1), ((1, 1), (1, 1))),
    "3x3-beyond": ((3, 4), (3, 3), (1, 1), ((3, 1), (0, 4))),
    "3x3-strides": ((6, 5), (3, 3), (2, 2), ((1, 1), (1, 1))),
    "1x1-strides": ((5, 4), (1, 1), (2, 2), ((0, 0), (0, 0))),
    "4x3-strides": ((7, 8), (4, 3), (2, 3), ((2, 2), (1, 0))),
}


def operands_of(window, channels=(3, 4), clients=2):
    """x, w and y of some clients."""
    size, kernel, strides, pads = window
    sides = zip(size, kernel, strides, pads, strict=True)
    out = [(n + sum(p) - k) // s + 1 for n, k, s, p in sides]
    c, d = channels
    return normal(0, (clients, 2, *size, c), (clients, *kernel, c, d), (clients, 2, *out, d))


def by_lax(window, x, w, y):
    """The three kinds of one client."""
    _, _, strides, pads = window
    conv = lambda x, w: lax.conv_general_dilated(x, w, strides, pads, dimension_numbers=SPEC)
    out, back = jax.vjp(conv, x, w)
    return dict(zip(("out", "input", "kernel"), (out, *back(y)), strict=True))


def in_form(form, cpu, kind, window, x, w, y):
    """As the primitive is lowered, for clients vmapped together."""
    a, b = {"out": (x, w), "input": (y, w), "kernel": (x, y)}[kind]
    return lowering.lower(cpu, a, b, kind=kind, window=window, lead=1, lowering=form, device="")


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_forms_equal_lax(window):
    """All kinds, as where the forms take clients together, and XLA's convolution as on CPU."""
    given = operands_of(window)
    places = [("sequential", True), *((form, False) for form in table.FORMS)]

    @jax.jit
    def both(*given):
        want = jax.vmap(partial(by_lax, window))(*given)
        return want, {
            (form, cpu, kind): in_form(form, cpu, kind, window, *given)
            for (form, cpu), kind in itertools.product(places, want)
            if lowering.covers(form, kind, window)
        }

    want, got = both(*given)
    for (form, _, kind), value in got.items():
        close(value, want[kind], winograd.TOLERANCE if form == "winograd" else 1e-6)


@pytest.mark.parametrize("form", ["places", "patches", "subgrids", "winograd"])
@pytest.mark.parametrize("stride", [1, 2])
def test_derivatives_of_forms_equal_lax(form, stride):
    """Second ones, reverse over reverse, under vmap over clients and scan over steps."""
    x, w, _ = operands_of(WINDOWS["3x3"])

    def trained(conv):
        def loss(x, w):
            return jnp.mean(jnp.tanh(conv(x, w)) ** 3)

        def curvature(x, w):
            return sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(x, w))

        def step(now, _):
            gradient = jax.grad(lambda now: loss(*now) + curvature(*now))(now)
            return jax.tree.map(lambda v, g: v - 5.0 * g, now, gradient), None

        return jax.jit(jax.vmap(lambda x, w: lax.scan(step, (x, w), length=2)[0]))(x, w)

    pads = ((1, 1), (1, 1))
    ours = trained(lambda x, w: nn.conv(x, w, stride, pads, form))
    theirs = trained(
        lambda x, w: lax.conv_general_dilated(x, w, (stride,) * 2, pads, dimension_numbers=SPEC)
    )
    for got, want, start in zip(ours, theirs, (x, w), strict=True):
        close(got - start, want - start, 1e-5)


def test_short_types_are_added_up_in_long_ones():
    """Nine products in bfloat16: what their sum in it would lose is more than its last rounding."""
    window = WINDOWS["3x3"]
    given = [t.astype(jnp.bfloat16) for t in operands_of(window)]

    @jax.jit
    def both(*given):
        long = (t.astype(jnp.float32) for t in given)
        exact = jax.vmap(partial(by_lax, window))(*long)
        return exact, {kind: in_form("places", False, kind, window, *given) for kind in exact}

    exact, got = both(*given)
    for kind, value in got.items():
        assert value.dtype == jnp.bfloat16
        close(value.astype(jnp.float32), exact[kind], float(jnp.finfo(jnp.bfloat16).eps) / 2)


# The table -----


def test_rows_name_what_exists_and_equal_lax():
    """Each kind, kernel, stride and form of the table, with few channels."""
    assert len({row[:-1] for row in table.ROWS}) == len(table.ROWS)
    checked = set()
    for row in table.ROWS:
        pad = (row.kernel - 1) // 2
        window = ((5, 4), (row.kernel,) * 2, (row.stride,) * 2, ((pad, pad),) * 2)
        assert row.form in table.FORMS
        assert lowering.covers(row.form, row.kind, window), row
        cpu = "NVIDIA" not in row.device
        assert not (cpu and row.several), row
        checked.add((row.form, cpu, row.kind, window))
    operands = {window: operands_of(window) for *_, window in checked}

    @jax.jit
    def both(operands):
        of_rows = {each: in_form(*each, *operands[each[-1]]) for each in checked}
        return of_rows, {w: jax.vmap(partial(by_lax, w))(*given) for w, given in operands.items()}

    got, want = both(operands)
    for form, cpu, kind, window in checked:
        tolerance = winograd.TOLERANCE if form == "winograd" else 1e-6
        close(got[form, cpu, kind, window], want[window][kind], tolerance)


def case(kind="out", side=8, kernel=3, stride=1, channels=(64, 64), clients=4, dtype="bfloat16"):
    window = ((side, side), (kernel,) * 2, (stride,) * 2, ((1, 1),) * 2)
    return table.Case(kind, window, channels, clients, dtype)


def row(form, side=8, channels=(64, 64), several=True):
    return table.Row("Card 7", "bfloat16", "out", 3, 1, side, channels, several, form)


ROWS = (row("places"), row("patches", 16), row("grouped", 8, (64, 128)), row("winograd", 8, (4, 4)))


@pytest.mark.parametrize(
    ("given", "form"),
    [
        (case(), "places"),
        (case(side=16), "patches"),
        (case(side=13), "patches"),
        (case(side=11), "places"),
        (case(side=32), "patches"),
        (case(side=33), "grouped by default"),
        (case(channels=(32, 64)), "places"),
        (case(channels=(31, 64)), "grouped by default"),
        (case(channels=(64, 100)), "grouped"),
        (case(clients=2000), "places"),
        (case(clients=1), "grouped by default"),
        (case(kernel=5), "grouped by default"),
        (case(dtype="float32"), "grouped by default"),
        (case(kind="kernel"), "grouped by default"),
        (case(kind="input", stride=2), "subgrids by default"),
        (case(kernel=1), "places by default"),
        (case(kernel=1, stride=2, kind="input"), "places by default"),
    ],
)
def test_the_nearest_row_speaks_within_a_factor_of_two(given, form):
    assert table.choose(given, "Card 7 XL", ROWS) == form.removesuffix(" by default")
    if form.endswith("by default"):
        assert table.choose(given, "Card 8", ROWS) == form.removesuffix(" by default")


def test_clients_on_cpu_are_as_one(monkeypatch):
    monkeypatch.setattr(table, "processor", lambda: "Card 7")
    rows = (row("winograd", several=False), row("places", several=True))
    for clients in (1, 4):
        assert table.choose(case(clients=clients), "cpu", rows) == "winograd"
    assert table.choose(case(side=64), "cpu", rows) == "sequential"
    wide = case("input", channels=(256, 300), dtype="float32")
    assert table.choose(wide, "cpu", rows) == "places"


def text_for(kind: str) -> str:
    """A program of 20 clients for an accelerator that this machine lacks."""
    device = jax.sharding.AbstractDevice(kind, None, "gpu")
    mesh = jax.sharding.AbstractMesh(
        (1,), ("d",), (jax.sharding.AxisType.Auto,), abstract_device=device
    )
    x, w = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        for shape in ((20, 2, 4, 4, 512), (20, 3, 3, 512, 512))
    )
    f = jax.shard_map(jax.vmap(nn.conv), mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d"))
    return jax.jit(f).trace(x, w).lower(lowering_platforms=("cuda",)).as_text()


def test_a_program_takes_the_rows_of_its_device():
    """As 4 × 4 pixels with 512 channels are patches there, by the table."""
    patches, grouped = text_for("NVIDIA H200"), text_for("NVIDIA of another kind")
    assert "dot_general" in patches
    assert "stablehlo.convolution" not in patches
    assert "feature_group_count = 20" in grouped


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match=r"^conv: lowering 'fft' is not one of auto, .*winograd$"):
        nn.conv(jnp.ones((1, 3, 3, 1)), jnp.ones((1, 1, 1, 1)), lowering="fft")
