"""Eigenvalues against NumPy and jax.hessian; sensitivities and Algorithm 2 against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedprune import coding, nn

SPECTRA = {
    "positive": [5.0, 3.0, 1.0],
    "negative dominant": [-5.0, 3.0, 1.0],
    "all negative": [-4.0, -2.0, -1.0],
    "tied": [2.0, 2.0, 0.5, -1.0],
    "tied with both signs": [-3.0, 3.0, 1.0],
    "near tie": [1.0, 0.998, 0.5, 0.1],
    "near tie with both signs": [1.0, -0.998, 0.2],
    "one": [0.7],
    "equal": [-1.5, -1.5, -1.5],
    "small": [3e-6, -1e-6],
}


def rotated(spectrum, seed=0):
    """A symmetric matrix with these eigenvalues and no axis of its own."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(len(spectrum), len(spectrum))))
    return basis @ np.diag(spectrum) @ basis.T


def expected(spectrum, which):
    """Values that are right; magnitudes tied within the tolerance do not decide the sign."""
    spectrum = np.asarray(spectrum)
    if which == "la":
        return [spectrum.max()]
    return list(spectrum[np.abs(spectrum) >= 0.998 * np.abs(spectrum).max()])


@pytest.mark.parametrize("which", ["lm", "la"])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("method", ["power", "lanczos"])
def test_known_spectra(name, which, method):
    spectrum = SPECTRA[name]
    matrix = jnp.asarray(rotated(spectrum), jnp.float32)
    start = jnp.asarray(np.random.default_rng(1).normal(size=len(spectrum)), jnp.float32)
    product = lambda v: matrix @ v
    if method == "power":
        found = coding.power_iteration(product, start, which, 1e-3, 5000)
        assert found.products <= 10_002
    else:
        found = coding.lanczos(product, start, which)
    scale = np.abs(spectrum).max()
    assert min(abs(found.value - v) for v in expected(spectrum, which)) < 2e-3 * scale
    # The promise of the residual holds for some eigenvalue, up to float32.
    distance = np.abs(np.asarray(spectrum) - float(found.value)).min()
    assert distance <= float(found.residual) + 2e-5 * scale
    assert found.residual <= 1e-3 * scale


def test_ties_of_both_signs_take_few_products():
    """Where a plain power iteration never settles."""
    matrix = jnp.asarray(rotated([-3.0, 3.0, 1.0]), jnp.float32)
    found = coding.power_iteration(lambda v: matrix @ v, jnp.asarray([1.0, 0.3, -0.4]), "lm")
    assert abs(found.value) == pytest.approx(3, rel=1e-4)
    assert found.products < 40


def test_an_operator_of_zeros_is_zero():
    start = jnp.arange(1.0, 5.0)
    for which in ("lm", "la"):
        for found in (
            coding.power_iteration(lambda v: 0 * v, start, which),
            coding.lanczos(lambda v: 0 * v, start, which),
        ):
            assert found.value == 0
            assert found.residual == 0
    assert coding.power_iteration(lambda v: 0 * v, start, "lm").products == 2


def test_the_limit_of_products_is_kept_and_reported():
    matrix = jnp.asarray(rotated([1.0, 0.9999, 0.3]), jnp.float32)
    start = jnp.asarray([1.0, 0.5, -0.2])
    found = coding.power_iteration(lambda v: matrix @ v, start, "lm", 1e-9, 10)
    assert found.products == 10
    assert found.residual > 1e-9


def test_large_random_matrices():
    rng = np.random.default_rng(4)
    a = rng.normal(size=(60, 60))
    values = np.linalg.eigvalsh(a + a.T)
    matrix, start = jnp.asarray(a + a.T, jnp.float32), jnp.asarray(rng.normal(size=60), jnp.float32)
    product = lambda v: matrix @ v
    found = coding.power_iteration(product, start, "la", 1e-2, 2000)
    assert abs(values - float(found.value)).min() <= found.residual + 1e-4
    assert found.value == pytest.approx(values[-1], rel=1e-3)
    assert coding.lanczos(product, start, "la", 60).value == pytest.approx(values[-1], rel=1e-5)
    largest = values[np.argmax(np.abs(values))]
    assert coding.lanczos(product, start, "lm", 40).value == pytest.approx(largest, rel=1e-4)


def perceptron(seed=0):
    """Weights and the mean loss of a small network with a saddle in it."""
    rng = np.random.default_rng(seed)
    x, y = jnp.asarray(rng.normal(size=(24, 5)), jnp.float32), jnp.asarray(rng.integers(0, 3, 24))
    params = {
        "first": jnp.asarray(rng.normal(size=(5, 6)), jnp.float32),
        "second": jnp.asarray(rng.normal(size=(6, 3)), jnp.float32),
    }

    def losses(p):
        logits = jnp.tanh(x @ p["first"]) @ p["second"]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)[:, 0]

    return params, losses


@pytest.mark.parametrize("method", ["power", "lanczos"])
def test_hessians_of_a_network(method):
    """Each layer's block of the full Hessian, by jax.hessian and NumPy."""
    params, losses = perceptron()
    loss = lambda p: losses(p).mean()
    hessian = jax.hessian(loss)(params)
    key = jax.random.key(0)

    @jax.jit
    def both(p):
        options = (method, 1e-3, 2000 if method == "power" else 30)
        return [coding.hessian_sensitivity(key, loss, p, w, *options) for w in ("la", "lm")]

    (largest, found), (extreme, _) = both(params)
    for name, weights in params.items():
        block = np.asarray(hessian[name][name], float).reshape(weights.size, weights.size)
        values = np.linalg.eigvalsh(block)
        assert name == "second" or values[0] < -1e-3, "a saddle"
        top = values[np.argmax(np.abs(values))]
        assert largest[name] == pytest.approx(values[-1], abs=2e-3 * abs(top))
        assert extreme[name] == pytest.approx(top, rel=2e-3)
        assert found[name].residual <= 1e-3 * abs(top)


def test_negative_curvature_is_no_sensitivity():
    concave = lambda p: -jnp.square(p["w"]).sum()
    params, key = {"w": jnp.arange(4.0)}, jax.random.key(1)
    assert coding.hessian_sensitivity(key, concave, params)[0]["w"] == 0
    value = coding.hessian_sensitivity(key, concave, params, "lm")[0]["w"]
    assert value == pytest.approx(-2, rel=1e-5)


def test_hessians_through_our_convolution():
    """A quadratic of a convolution, whose Hessian is that of a linear map."""
    x = jnp.asarray(np.random.default_rng(5).normal(size=(2, 5, 5, 2)), jnp.float32)
    params = {"kernel": jnp.zeros((3, 3, 2, 1), jnp.float32)}
    loss = lambda p: 0.5 * jnp.square(nn.conv(x, p["kernel"])).sum()
    plain = lambda k: (
        0.5
        * jnp.square(
            jax.lax.conv_general_dilated(
                x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        ).sum()
    )
    values = np.linalg.eigvalsh(jax.hessian(plain)(params["kernel"]).reshape(18, 18))
    found = coding.hessian_sensitivity(jax.random.key(2), loss, params, tolerance=1e-4)[0]
    assert found["kernel"] == pytest.approx(values[-1], rel=1e-3)


def test_loss_sensitivity_of_a_linear_loss():
    """l_j = a_j.w: noise of deviation s on w gives sum_j (a_j.n)^2, with mean s^2 sum ||a_j||^2."""
    rng = np.random.default_rng(6)
    a = {k: rng.normal(size=(9, d)) for k, d in (("u", 4), ("v", 7))}
    losses = lambda p: sum(jnp.asarray(a[k], jnp.float32) @ p[k] for k in a)
    params = {k: jnp.asarray(rng.normal(size=a[k].shape[1]), jnp.float32) for k in a}
    deviations = {"u": 0.3, "v": jnp.float32(0.05)}
    found = coding.loss_sensitivity(jax.random.key(3), losses, params, deviations, draws=4000)
    for k in a:
        gram = a[k] @ a[k].T
        mean = float(deviations[k]) ** 2 * np.trace(gram)
        spread = float(deviations[k]) ** 2 * np.sqrt(2 * np.square(gram).sum() / 4000)
        assert abs(float(found[k]) - mean) < 5 * spread
    silent = {"u": 0.0, "v": 0.0}
    assert coding.loss_sensitivity(jax.random.key(3), losses, params, silent)["u"] == 0


def test_what_is_refused():
    with pytest.raises(ValueError, match="which='sm'"):
        coding.power_iteration(lambda v: v, jnp.ones(2), "sm")
    with pytest.raises(ValueError, match="which='sm'"):
        coding.lanczos(lambda v: v, jnp.ones(2), "sm")
    with pytest.raises(ValueError, match="method='qr'"):
        coding.hessian_sensitivity(jax.random.key(0), jnp.sum, {"w": jnp.ones(2)}, method="qr")


@pytest.mark.parametrize("growth", ["add", "double"])
def test_budgets_hold_and_are_used_up(growth):
    rng = np.random.default_rng(7)
    for _ in range(1000):
        count = rng.integers(1, 9)
        d = rng.integers(1, 400, count)
        s = rng.exponential(size=count) * (rng.random(count) < 0.9)
        e = rng.exponential(size=count) * (rng.random(count) < 0.9)
        budget = int(d.sum() + rng.integers(0, 3 * d.sum()))
        r = coding.expansions(s, e, d, budget, growth)
        assert (r * d).sum() <= budget
        extra = d if growth == "add" else r * d
        assert ((r * d).sum() + extra > budget).all(), "a layer could still be expanded"
        assert (r >= 1).all()
        assert growth == "add" or (np.log2(r) % 1 == 0).all()


def test_expansion_by_hand():
    """Scores s / (r E) of 6, 4, 1: the first to 2 (then 3), the second (2), the first again (2)."""
    s, e, d = [6.0, 8.0, 3.0], [1.0, 2.0, 3.0], [10, 20, 30]
    for budget, r in ((60, [1, 1, 1]), (70, [2, 1, 1]), (90, [2, 2, 1]), (100, [3, 2, 1])):
        np.testing.assert_array_equal(coding.expansions(s, e, d, budget), r)
    # 29 short of a second layer: the first takes what it can, two times ten.
    np.testing.assert_array_equal(coding.expansions(s, e, [10, 50, 90], 179), [3, 1, 1])
    np.testing.assert_array_equal(coding.expansions(s, e, d, 110, "double"), [4, 2, 1])


def test_a_budget_below_one_symbol_a_weight_is_refused():
    with pytest.raises(ValueError, match="budget=59 symbols for 60 weights"):
        coding.expansions([1, 1], [1, 1], [20, 40], 59)
    with pytest.raises(ValueError, match="growth="):
        coding.expansions([1], [1], [1], 1, "triple")
    with pytest.raises(ValueError, match="sensitivity"):
        coding.expansions([-1.0], [1], [1], 1)
    with pytest.raises(ValueError, match="energy"):
        coding.expansions([1.0], [np.nan], [1], 1)
    with pytest.raises(ValueError, match="shapes"):
        coding.expansions([1.0], [1], [1, 2], 9)
