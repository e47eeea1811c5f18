"""What AirNet's experiments share: stages that resume, budgets, rates, and a whole run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from experiments import (
    airnet_ablation,
    airnet_bandwidth,
    airnet_ensemble,
    airnet_expansion,
    airnet_mismatch,
    airnet_sensitivity,
    airnet_snr,
    downlink,
)
from fedprune import airnet, local
from fedprune import config as cfg
from fedprune.types import Client, Model

EXPERIMENTS = (
    airnet_ablation,
    airnet_bandwidth,
    airnet_ensemble,
    airnet_expansion,
    airnet_mismatch,
    airnet_sensitivity,
    airnet_snr,
)


@pytest.mark.parametrize("module", EXPERIMENTS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("variant", ["fast", "full", "paper"])
def test_every_variant_is_valid(module, variant):
    config = module.get_config(variant)
    cfg.validate(config)
    assert f"experiments.{config.experiment}" == module.__name__
    assert module.arms(config) == []
    with pytest.raises(cfg.ConfigError, match="must be one of fast, full, paper"):
        module.get_config("huge")


def test_arms_of_the_downlink_are_valid():
    config = downlink.get_config()
    for arm in downlink.arms(config):
        cfg.validate(cfg.override(config, arm.overrides))


def tiny(module, **values):
    config = module.get_config("fast")
    small = {
        "model.name": "mlp", "model.mlp.hidden": (6,), "run.rounds": 2, "run.every": 2,
        "run.seeds": 1,
        "local.steps": 2, "local.batch": 4, "pruning.every": 1, "pruning.steps": 1, "uses": 1000,
        "draws": 1, "fading_draws": 1, "test_images": 50, "curvature_images": 8, "products": 2,
        "mesh.devices": 2,
    }  # fmt: skip
    return cfg.override(config, {**small, **values})


@pytest.mark.slow
def test_from_end_to_end_and_again(tmp_path):
    """Nets meet their budgets, and a second laboratory takes those that are kept."""
    config = tiny(airnet_snr, snrs_db=(5.0,), shares=(0.2,), widths=(0.5,))
    text = airnet_snr.report(config, [], tmp_path)
    assert "successive refinement" in text
    assert "| 5 " in text
    for name in ("summary.json", "report.md", "figures/awgn.png", "figures/fading.svg"):
        assert (tmp_path / name).is_file()
    kept = {p.name for p in (tmp_path / "nets").iterdir()}
    assert kept == {"dense.npz", "pruned.npz", "expanded.npz", "pairs.npz", "digital.npz",
                    "small-first.npz", "small.npz"}  # fmt: skip
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "nets").iterdir()}
    lab = airnet.Lab(config, tmp_path)
    point = airnet.Point(5.0, 1000)
    airnet.pruned(lab, "pruned", [airnet.Net(f"whole-{point}"), airnet.Net(f"half-{point}")])
    airnet.pair(lab, "pairs", [airnet.Net("pair-1000")], {}, [])
    assert jax.tree.structure(lab.nets["pair-1000"].mask["low"]) == jax.tree.structure(lab.shapes)
    now = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "nets").iterdir()}
    assert now == before
    airnet.train(lab, "small", [airnet.Net("small-0.5")], {})
    assert sum(int(m.sum()) for m in jax.tree.leaves(lab.nets["small-0.5"].mask)) == 3 * 795 + 10
    # 784 inputs, 6 hidden, 10 outputs: each neuron has 784 + 1 + 10 weights, and 10 are biases.
    assert lab.weights == 6 * 795 + 10
    for name, uses in (("whole", 1000), ("half", 500)):
        net = lab.nets[f"{name}-{point}"]
        left = sum(int(m.sum()) for m in jax.tree.leaves(net.mask))
        assert left == (2 * uses - 10) // 795 * 795 + 10
        for v, m in zip(jax.tree.leaves(net.params), jax.tree.leaves(net.mask), strict=True):
            assert not v[~m].any()
    repeats = airnet.protect(lab, "r", f"half-{point}", "hessian", 5.0, 1000)
    sizes = [int(m.sum()) for m in jax.tree.leaves(lab.nets[f"half-{point}"].mask) if m.ndim > 2]
    assert (repeats @ sizes <= 2000).all()


@pytest.mark.nightly
def test_the_papers_recipe_from_end_to_end(tmp_path):
    """P3's recipe with few images and one epoch where it has 30: own nets for fading, one seed."""
    small = {
        "data.name": "fashion_mnist_10k", "data.examples": 60, "model.name": "mlp",
        "model.mlp.hidden": (6,), "run.seeds": 1, "local.epochs": 1, "local.batch": 20,
        "uses": 1000,
        "draws": 1, "fading_draws": 1, "test_images": 50, "curvature_images": 8, "products": 2,
        "mesh.devices": 2, "snrs_db": (5.0,), "shares": (0.2,), "widths": (0.5,),
    }  # fmt: skip
    config = cfg.override(airnet_snr.get_config("paper"), small)
    text = airnet_snr.report(config, [], tmp_path)
    assert "open (1 seed)" in text
    assert "nan" not in text
    kept = {p.stem for p in (tmp_path / "nets").iterdir()}
    marked = {"pruned", "expanded", "pairs"}
    assert kept == {"dense", "digital", "small-first", "small"} | marked | {
        f"{stage}-fading" for stage in marked
    }
    still, faded = (
        dict(np.load(tmp_path / "nets" / f"pruned{mark}.npz")) for mark in ("", "-fading")
    )
    assert any((still[name] != faded[name]).any() for name in still)


def delta(tmp_path, rate: str) -> np.ndarray:
    """What one step of plain SGD with a teacher makes of a net."""
    values = {"teacher_rate": rate, "local.optimizer": "sgd", "local.steps": 1}
    values |= {"run.rounds": 1, "run.every": 1}
    lab = airnet.Lab(tiny(airnet_snr, **values), tmp_path / rate)
    start = lab.untrained()
    airnet.train(lab, "one", [airnet.Net("net", 5.0)], {"net": start}, teacher=start)
    end = jax.tree.leaves(lab.nets["net"].params)
    pairs = zip(end, jax.tree.leaves(start.params), strict=True)
    return np.concatenate([np.ravel(a - np.asarray(b)) for a, b in pairs])


def test_the_rate_with_a_teacher(tmp_path):
    """Undivided it is 1 + t^2 = 5 times the divided one: so is the first step."""
    same, divided = (delta(tmp_path, rate) for rate in ("same", "divided"))
    assert np.abs(divided).max() > 1e-3
    np.testing.assert_allclose(same, 5 * divided, rtol=1e-3, atol=1e-6)


def test_images_are_resized_and_cropped_as_pillow_does():
    gen = np.random.default_rng(0)
    images = gen.normal(size=(2, 16, 16, 1)).astype("f4")
    seen = airnet.resized(Model(lambda key: (), lambda params, x: x), 64, 56).apply((), images)
    for found, image in zip(seen, images[..., 0], strict=True):
        large = Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(found[..., 0], np.asarray(large)[4:60, 4:60], atol=1e-5)


def test_statistics_of_boundary_networks_move_by_their_share():
    """A step for an SNR a quarter of the way up: 3/4 of the statistics' step, and 1/4."""

    def train(params, x):
        mean = params["statistics"]["mean"]
        after = {**params, "statistics": {"mean": 0.9 * mean + 0.1 * x.mean(0)}}
        return (x - mean[None]) @ params["kernel"], after

    def receive(key, number, params, mask):
        return local.interpolated(0.0, 20.0)(params, jnp.float32(5.0))

    gen = np.random.default_rng(0)
    x = gen.normal(size=(8, 3)).astype("f4")
    model = Model(lambda key: (), lambda params, x: train(params, x)[0], train)
    low, high = (gen.normal(size=3).astype("f4") for _ in range(2))
    of = lambda mean: {"kernel": jnp.ones((3, 2)), "statistics": {"mean": jnp.asarray(mean)}}
    client = Client(
        jnp.asarray(x), jnp.zeros(8, jnp.int32), jnp.arange(8), jnp.int32(8),
        shift=jnp.zeros(3), scale=jnp.ones(3),
    )  # fmt: skip
    update = local.sgd(model, optax.sgd(0.1), batch=8, epochs=1, reception=receive)
    start = {"low": of(low), "high": of(high)}
    end = update(jax.random.key(0), jnp.int32(0), start, None, client)
    step = 0.1 * (x.mean(0) - (0.75 * low + 0.25 * high))
    found = end.delta["low"]["statistics"]["mean"], end.delta["high"]["statistics"]["mean"]
    np.testing.assert_allclose(found, [0.75 * step, 0.25 * step], rtol=1e-4, atol=1e-6)


def test_rates_by_hand():
    curves = [{"entropy": (np.array([1000, 3000]), np.array([50.0, 80.0]))}]
    at = lambda snr, fading: airnet.digital_accuracies(curves, "entropy", snr, 1000, fading)[0]
    assert at(0.0, "none") == 50  # capacity 1 bit
    assert at(-1.0, "none") == 0
    assert at(9.0, "none") == 80  # 3.16 bits
    snr = 10**0.5
    outage = [50 * np.exp(-(2**1 - 1) / snr), 80 * np.exp(-(2**3 - 1) / snr)]
    assert at(5.0, "outage") == pytest.approx(max(outage), rel=1e-4)
    csit = 50 * np.exp(-1 / snr) + 30 * np.exp(-7 / snr)
    assert at(5.0, "csit") == pytest.approx(csit, abs=0.05)


def test_streams_decode_to_what_they_are_billed_for():
    gen = np.random.default_rng(0)
    params = {"kernel": gen.normal(size=(40, 30)).astype("f4"), "bias": np.ones(30, "f4")}
    mask = {"kernel": np.abs(params["kernel"]) > 1.5, "bias": np.ones(30, bool)}
    params["kernel"] *= mask["kernel"]
    found = airnet.streams(params, mask)
    assert [name for name, *_ in found] == ["entropy"] * 2 + ["refined"] * 7
    for family in ("entropy", "refined"):
        errors, sizes = [], []
        for name, bits, decoded in found:
            if name == family:
                np.testing.assert_array_equal(decoded["bias"], params["bias"])
                errors.append(np.abs(decoded["kernel"] - params["kernel"]).max())
                sizes.append(bits)
        assert sizes == sorted(sizes)
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.05
        assert sizes[-1] < 32 * mask["kernel"].sum()


def test_a_small_model_is_coded_without_what_it_lost():
    gen = np.random.default_rng(1)
    kept = np.arange(30) % 3 != 1
    params = {
        "a": {"kernel": gen.normal(size=(3, 3, 20, 30)).astype("f4"), "bias": np.ones(30, "f4")},
        "b": {"kernel": gen.normal(size=(120, 50)).astype("f4")},
    }
    mask = jax.tree.map(lambda v: np.ones(v.shape, bool), params)
    mask["a"]["kernel"] &= kept
    mask["b"]["kernel"] &= np.tile(kept, 4)[:, None]
    params = jax.tree.map(np.multiply, params, mask)
    (_, fewer, coarse), (_, more, fine) = airnet.small_streams(params, mask)
    assert fewer < more < 8 * (9 * 20 * 20 + 80 * 50)
    for decoded, levels in ((coarse, 7), (fine, 127)):  # half a step of the largest weight
        np.testing.assert_array_equal(decoded["a"]["bias"], params["a"]["bias"])
        for layer in ("a", "b"):
            back, sent, m = (v[layer]["kernel"] for v in (decoded, params, mask))
            assert not back[~m].any()
            assert np.abs(back - sent).max() <= 1.001 * np.abs(sent).max() / (2 * levels)
