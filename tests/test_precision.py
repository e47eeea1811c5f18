"""bfloat16 arithmetic with float32 weights."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import fedprune as fp
from fedprune import build
from fedprune import config as cfg


def rounded(x) -> np.ndarray:
    return np.asarray(x).astype(ml_dtypes.bfloat16)


def test_a_dense_layer_against_numpy():
    """Operands are rounded to bfloat16, so is their product; all that is seen is float32."""
    model = fp.models.mlp(hidden=(), input_shape=(6, 5, 1))
    low = fp.models.compute_in("bfloat16", model)
    params = low.init(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    x = np.random.default_rng(0).normal(size=(4, 6, 5, 1)).astype(np.float32)
    got = low.apply(params, jnp.asarray(x))
    assert got.dtype == jnp.float32
    (kernel,) = (v for v in jax.tree.leaves(params) if v.ndim == 2)
    product = rounded(x).reshape(4, 30).astype(np.float64) @ rounded(kernel).astype(np.float64)
    exact = x.reshape(4, 30).astype(np.float64) @ np.asarray(kernel, np.float64)
    # The product is rounded once or twice to 8 bits, by at most 2^-8 of the terms' sizes each.
    size = np.abs(x.reshape(4, 30)) @ np.abs(np.asarray(kernel))
    assert np.all(np.abs(got - product) <= 2 * 2.0**-8 * size)
    assert np.abs(got - exact).max() > 1e-4, "nothing was rounded"


def test_gradients_are_float32_and_close():
    model = fp.models.cnn(filters=(4,), hidden=(8,))
    params = model.init(jax.random.key(1))
    x = jax.random.normal(jax.random.key(2), (8, 28, 28, 1))
    loss = lambda m: lambda p: jnp.mean(jnp.square(m.apply(p, x)))
    want = jax.grad(loss(model))(params)
    got = jax.grad(loss(fp.models.compute_in("bfloat16", model)))(params)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == jnp.float32
        assert 0 < np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)


def test_running_statistics_are_refused():
    model = fp.models.resnet18(norm="batch", widths=(8,))
    with pytest.raises(ValueError, match="running statistics"):
        fp.models.compute_in("bfloat16", model)


def test_by_configuration(dataset):
    config = cfg.override(cfg.Config(), {"model.name": "mlp", "model.compute": "bfloat16"})
    cfg.validate(config)
    network = build.model(config, dataset)
    x = jnp.ones((2, 28, 28, 1))
    text = str(jax.make_jaxpr(network.apply)(network.init(jax.random.key(0)), x))
    assert "bf16[2,32] = dot_general" in text
    with pytest.raises(cfg.ConfigError, match=r"model\.compute='half': must be one of"):
        cfg.validate(cfg.override(config, {"model.compute": "half"}))
