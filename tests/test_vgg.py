"""Small-VGG16 and ResNet-34: their sizes, and a small one against a plain version with ``lax``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fedprune import models

LAYOUT = ("NHWC", "HWIO", "NHWC")


def count(model) -> int:
    return sum(v.size for v in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))


def test_parameters_of_small_vgg16():
    """P3: 14,714,688 in the convolutions and 530,442 in the head."""
    shapes = jax.eval_shape(models.small_vgg16().init, jax.random.key(0))
    conv = sum(v.size for k, p in shapes.items() if k.startswith("conv") for v in p.values())
    assert conv == 14_714_688
    assert count(models.small_vgg16()) == 14_714_688 + 530_442 == 15_245_130
    assert sum(k.startswith("conv") for k in shapes) == 13


def test_parameters_of_resnet34():
    """The well-known 21,797,672 have 1000 classes; 800 fewer are 800 × 513 fewer parameters."""
    assert count(models.resnet34(classes=1000)) == 21_797_672
    assert count(models.resnet34()) == 21_797_672 - 800 * 513 == 21_387_272
    assert count(models.resnet34(norm="batch")) == 21_387_272 + 2 * 8_512


def test_depths_and_large_stem():
    """7×7 of stride 2, then 3×3 max-pooling of stride 2, seen through blocks that add nothing."""
    model = models.resnet34(5, (16, 16, 3), norm="batch", widths=(4, 6))
    params = model.init(jax.random.key(1))
    assert sorted(k for k in params if k.startswith("stage")) == [
        *(f"stage1_block{i}" for i in (1, 2, 3)),
        *(f"stage2_block{i}" for i in (1, 2, 3, 4)),
    ]
    model = models.resnet([(4,)], 5, (16, 16, 3), norm="batch", widths=(4,), stem="large")
    params = model.init(jax.random.key(1))
    params["stage1_block1"]["norm2"]["scale"] = jnp.zeros(4)
    x = jax.random.normal(jax.random.key(2), (2, 16, 16, 3))
    y = lax.conv_general_dilated(
        x,
        params["stem"]["kernel"],
        (2, 2),
        [(3, 3)] * 2,
        dimension_numbers=LAYOUT,
    )
    y = jax.nn.relu(y / np.sqrt(1 + 1e-5))  # initial statistics: mean 0, variance 1
    y = lax.reduce_window(
        y, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)]
    )
    assert y.shape == (2, 4, 4, 4)
    logits = y.mean((1, 2)) @ params["head"]["kernel"]
    np.testing.assert_allclose(model.apply(params, x), logits, rtol=2e-5, atol=2e-5)


def test_vgg_equals_a_plain_version():
    stages, hidden = ((3, 4), (5,)), (6,)
    model = models.vgg(stages, hidden, 7, (8, 8, 2))
    params = model.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + rng.uniform(0, 0.3, p.shape).astype("f4"), params)
    x = jax.random.normal(jax.random.key(1), (3, 8, 8, 2))
    y = x
    for s, widths in enumerate(stages, 1):
        for i in range(1, len(widths) + 1):
            p = params[f"conv{s}_{i}"]
            y = lax.conv_general_dilated(y, p["kernel"], (1, 1), "SAME", dimension_numbers=LAYOUT)
            y = jax.nn.relu(y + p["bias"].reshape(1, 1, 1, -1))
        y = lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    y = y.reshape(3, -1)
    y = jax.nn.relu(y @ params["dense1"]["kernel"] + params["dense1"]["bias"][None])
    y = y @ params["head"]["kernel"] + params["head"]["bias"][None]
    np.testing.assert_allclose(model.apply(params, x), y, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.small_vgg16(input_shape=(784,)), "input_shape"),
        (lambda: models.small_vgg16(widths=(1, 2, 3, 4, 5)), "1 to 4 numbers"),
        (lambda: models.resnet34(stem="tiny"), "stem='tiny'"),
        (lambda: models.resnet([(4,)], widths=(4, 8), groups=2), "1 stages"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
