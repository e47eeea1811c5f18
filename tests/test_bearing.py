"""The bearing set: files written by hand, the split in time, the network and the experiment."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bearing as experiment_file
from fedprune import build, data, models
from fedprune import config as cfg
from fedprune.data import bearing
from fedprune.runs import RunDirectory, execution

# Windows of each recording (class, load), in the order of the file.
RECORDINGS = {(0, 0): 10, (0, 1): 5, (1, 0): 9, (1, 1): 12, (2, 0): 3}


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch):
    monkeypatch.delenv("FEDPRUNE_DATA", raising=False)


def entries(samples=8):
    """The first sample of a window tells class, load and place in the recording."""
    y, load, t = np.array([(*r, t) for r, n in RECORDINGS.items() for t in range(n)]).T
    x = np.random.default_rng(0).normal(size=(len(y), samples))
    x[:, 0] = 100 * y + 1000 * load + t
    return {
        "x": x.astype(np.float32),
        "y": y.astype(np.uint8),
        "load": load.astype(np.uint8),
        "classes": np.array(["a", "b", "c"]),
    }


def write(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "cwru_12k_de_1024.npz", **content)
    return folder / "cwru_12k_de_1024.npz"


def not_loaded(root) -> str:
    with pytest.raises(data.DataError) as error:
        data.load("bearing", root)
    assert "\n" not in str(error.value)
    return str(error.value)


# Reading -----


@pytest.mark.parametrize("below", ["bearing", "."])
def test_last_fifth_of_every_recording_is_the_test_set(tmp_path, below):
    path = write(tmp_path / below, entries())
    dataset = data.load("bearing", tmp_path)
    assert dataset.source == str(path)
    assert dataset.x_train.dtype == np.float32
    assert dataset.x_train.shape[1:] == (8, 1)
    assert dataset.classes == 3
    assert list(dataset.names) == ["a", "b", "c"]
    want = {"train": [], "test": []}
    for (y, load), n in RECORDINGS.items():
        ends = {10: 2, 5: 1, 9: 2, 12: 2, 3: 1}[n]  # a fifth, rounded
        for t in range(n):
            want["test" if t >= n - ends else "train"].append((100 * y + 1000 * load + t, y, load))
    for part, rows in want.items():
        x, y, load = (getattr(dataset, f"{v}_{part}") for v in ("x", "y", "group"))
        got = list(zip(x[:, 0, 0].astype(int), y, load, strict=True))
        assert got == rows


def test_recordings_that_are_interleaved():
    """Recordings are told by their keys, not by where they stand."""
    keys = np.array([[0, 1] * 5, [7, 7] * 5])
    marked = bearing.last_of_each(keys, 0.2)
    np.testing.assert_array_equal(marked, [False] * 8 + [True] * 2)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"x": None}, "entry is missing"),
        ({"load": None}, "entry is missing"),
        ({"x": np.zeros((39, 8))}, "float32"),
        ({"x": np.zeros((39, 8, 1), np.float32)}, "float32 x"),
        ({"y": np.zeros(38, np.uint8)}, r"\(38,\)"),
        ({"load": np.zeros((39, 1), np.uint8)}, r"\(39, 1\)"),
        ({"load": np.zeros(39)}, "integers"),
        ({"y": np.full(39, 3, np.uint8)}, "between 0 and 2"),
        ({"y": np.full(39, -1, np.int8)}, "between 0 and 2"),
        ({"x": np.full((39, 8), np.nan, np.float32)}, "not finite"),
        ({"classes": np.array([{}], object)}, "cannot be read"),
    ],
    ids=lambda v: "",
)
def test_entries_that_do_not_fit(tmp_path, change, what):
    content = {k: v for k, v in (entries() | change).items() if v is not None}
    path = write(tmp_path, content)
    with pytest.raises(data.DataError, match=what) as error:
        data.load("bearing", tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_or_flipped_anywhere(tmp_path):
    """Any cut is found; any flipped byte is found or leaves the content as it was."""
    path = write(tmp_path, entries(4))
    raw = path.read_bytes()
    content = data.load("bearing", tmp_path)
    for n in range(0, len(raw), 7):
        path.write_bytes(raw[:n])
        assert str(path) in not_loaded(tmp_path)
    messages = []
    for i in range(0, len(raw), 7):
        path.write_bytes(raw[:i] + bytes([raw[i] ^ 0xFF]) + raw[i + 1 :])
        try:
            np.testing.assert_array_equal(data.load("bearing", tmp_path).x_train, content.x_train)
        except data.DataError as e:
            messages.append(str(e))
    assert len(messages) > len(raw) / 7 / 2
    assert all(str(path) in message and "\n" not in message for message in messages)


def test_not_found_says_what_to_do(tmp_path):
    message = not_loaded(tmp_path)
    assert "$FEDPRUNE_DATA/bearing/" in message
    assert "cwru_12k_de_1024.npz" in message
    with pytest.raises(data.DataError, match="cannot be downloaded"):
        data.load("bearing", tmp_path, download=True)


def test_federate_floats(tmp_path):
    write(tmp_path, entries())
    dataset = data.load("bearing", tmp_path)
    partition = data.natural(dataset.group_train, dataset.group_test)(
        dataset.y_train, dataset.y_test, 0
    )
    train, _ = data.federate(dataset, partition)
    assert train.examples.dtype == jnp.float32
    x, y = train.client(jnp.int32(1)).take(jnp.array([2, 0]))
    mine = np.flatnonzero(dataset.group_train == 1)[[2, 0]]
    raw = dataset.x_train.astype(np.float64)
    np.testing.assert_allclose(x, (raw[mine] - raw.mean()) / raw.std(), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(y, dataset.y_train[mine])


# The network -----


def test_signal_network_against_numpy():
    """Two blocks and a hidden layer, written as loops."""
    model = models.signal((3, 4), 3, 5, 2, (6,), 4, (32, 2))
    params = model.init(jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    x = rng.normal(size=(2, 32, 2)).astype(np.float32)

    def block(x, layer, stride):
        kernel, bias = (np.asarray(layer[k], np.float64) for k in ("kernel", "bias"))
        taps, length = len(kernel), -(-x.shape[1] // stride)
        pad = max(0, (length - 1) * stride + taps - x.shape[1])
        x = np.pad(x, ((0, 0), (pad // 2, pad - pad // 2), (0, 0)))
        out = np.zeros((len(x), length, kernel.shape[2]))
        for i in range(length):
            out[:, i] = np.tensordot(x[:, i * stride : i * stride + taps], kernel, 2) + bias
        out = np.maximum(out, 0)
        return np.maximum(out[:, ::2], out[:, 1::2])

    want = block(block(x.astype(np.float64), params["Conv_0"], 2), params["Conv_1"], 1)
    want = want.reshape(2, -1)
    for i in (0, 1):
        dense = {k: np.asarray(v, np.float64) for k, v in params[f"Dense_{i}"].items()}
        want = want @ dense["kernel"] + dense["bias"]
        want = want if i else np.maximum(want, 0)
    np.testing.assert_allclose(model.apply(params, x), want, rtol=1e-4, atol=1e-3)


def test_signal_size():
    """16 kernels of 64, 32 of 5×16, 64 of 5×32; 1024 / 8 / 2 / 2 / 2 = 16 samples of 64 remain."""
    sizes = jax.eval_shape(models.signal().init, jax.random.key(0))
    conv = (64 * 1 * 16 + 16) + (5 * 16 * 32 + 32) + (5 * 32 * 64 + 64)
    dense = (16 * 64 * 32 + 32) + (32 * 16 + 16)
    assert sum(p.size for p in jax.tree.leaves(sizes)) == conv + dense == 47264


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 1)], ids=str)
def test_signal_refuses_what_does_not_fit(shape, dataset):
    config = cfg.override(cfg.Config(), {"model.name": "signal", "model.signal.filters": (4, 4, 4)})
    x = np.zeros((1, *shape), np.float32)
    with pytest.raises(cfg.ConfigError, match=r"model\.signal: does not fit"):
        build.model(config, dataset._replace(x_train=x))


def test_image_network_refuses_signals(dataset):
    with pytest.raises(cfg.ConfigError, match=r"model\.cnn: does not fit"):
        build.model(cfg.Config(), dataset._replace(x_train=np.zeros((1, 1024, 1), np.float32)))


# The experiment -----


def test_group_needs_groups(dataset):
    config = cfg.override(cfg.Config(), {"data.partition": "natural"})
    with pytest.raises(cfg.ConfigError, match="fashion_mnist_10k does not say whose"):
        build.partitioner(config.data, dataset)


def test_clients_must_be_a_multiple_of_the_loads(tmp_path):
    write(tmp_path, entries())
    config = experiment_file.get_config()
    config.data.dir = str(tmp_path)
    config.data.clients = 3
    with pytest.raises(cfg.ConfigError, match=r"data\.clients=3: must be 2, as many as"):
        build.partitioner(config.data, data.load("bearing", tmp_path))


@pytest.mark.slow
def test_experiment_on_a_tiny_set(tmp_path, caplog):
    """From a folder to a report: three kinds of waves under two loads are told apart."""
    rng = np.random.default_rng(0)
    y, load, _ = (a.ravel() for a in np.meshgrid(range(3), range(2), range(20), indexing="ij"))
    time = np.arange(64) / 64
    wave = np.sin(2 * np.pi * ((2 + 6 * y[:, None]) * time + rng.random((len(y), 1))))
    x = wave * (1 + load[:, None]) + 0.1 * rng.normal(size=wave.shape)
    content = entries() | {"x": x.astype(np.float32), "y": y, "load": load}
    write(tmp_path / "data", content)
    config = experiment_file.get_config("fast")
    config.data.dir, config.data.clients = str(tmp_path / "data"), 4
    own = config.model.signal
    own.filters, own.stem_kernel, own.stem_stride = (8,), 16, 2
    config.local.batch, config.run.rounds, config.run.seeds = 8, 14, 2
    config.pruning.start, config.pruning.every, config.pruning.steps = 2, 1, 3
    config.mesh.devices = 2
    with caplog.at_level(logging.INFO):
        plan = execution.plan(config, experiment_file.arms(config))
    assert "partition natural of seed 0" in caplog.text
    with RunDirectory(str(tmp_path / "run"), cfg.to_json(config)) as directory:
        rows = execution.execute(plan, directory)
        text = experiment_file.report(config, rows, directory.path)
    last = {r["arm"]: r for r in rows if r["round"] == 14 and r["seed"] == 0}
    assert set(last) == {
        "unpruned",
        *(f"{how}-{r}" for how in experiment_file.METHODS for r in (50, 90)),
    }
    assert last["unpruned"]["test_accuracy"] > 0.9
    assert last["iterative-90"]["kept"] < last["one-shot-50"]["kept"] < last["unpruned"]["kept"]
    kept = {r["round"]: r["kept"] for r in rows if r["arm"] == "one-shot-90" and r["seed"] == 0}
    assert kept[4] == last["unpruned"]["kept"]  # pruned at the start of round 4, seen in row 5
    assert kept[5] == last["iterative-90"]["kept"]
    for name in ("accuracy", "partition"):
        for suffix in ("png", "svg"):
            assert (tmp_path / "run" / "figures" / f"{name}.{suffix}").stat().st_size > 1000
    assert "iterative above one-shot at 90 %" in text
    assert (tmp_path / "run" / "report.md").read_text() == text
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["experiment"] == "bearing"
    assert summary["config"]["data"]["clients"] == 4
    assert {arm["name"] for arm in summary["arms"]} == set(last)
    (table,) = summary["tables"].values()
    assert table in text
    late = [
        np.mean(
            [r["test_accuracy"] for r in rows if r["arm"] == "unpruned" and r["seed"] == seed][-5:]
        )
        for seed in (0, 1)
    ]
    assert f"| {100 * np.mean(late):.1f} " in table
    assert "±" not in table  # of two seeds
    claims = {claim["id"]: claim for claim in summary["claims"]}
    assert claims["unpruned-learns"]["value"].startswith(f"{100 * np.mean(late):.1f} ")
