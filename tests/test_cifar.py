"""CIFAR-10's binary files, written by hand, and all that can be wrong with them."""

import numpy as np
import pytest

from fedprune import data
from fedprune.data import cifar

TRAIN = [f"data_batch_{i}.bin" for i in (1, 2, 3, 4, 5)]
FILES = [*TRAIN, "test_batch.bin"]
SIZES = dict(zip(FILES, (3, 1, 2, 4, 2, 5), strict=True))


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch):
    monkeypatch.delenv("FEDPRUNE_DATA", raising=False)


def images(n, seed):
    """x [n, 32, 32, 3], y [n]"""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 32, 32, 3)), np.arange(n) % 4


def record(x, y) -> bytes:
    """The class, then red, green and blue, each row by row; byte by byte."""
    pixels = [int(x[i, j, c]) for c in range(3) for i in range(32) for j in range(32)]
    return bytes([int(y), *pixels])


CONTENT = {name: images(n, seed) for seed, (name, n) in enumerate(SIZES.items())}
RAW = {name: b"".join(map(record, *content)) for name, content in CONTENT.items()}


def write_set(folder):
    folder.mkdir(parents=True)
    for name, raw in RAW.items():
        (folder / name).write_bytes(raw)
    return folder


def not_loaded(root) -> str:
    with pytest.raises(data.DataError) as error:
        data.load("cifar10", root)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("below", ["cifar10/cifar-10-batches-bin", "cifar10"])
def test_load(tmp_path, below, monkeypatch):
    folder = write_set(tmp_path / below)
    (folder / "batches.meta.txt").write_text("airplane\n")
    dataset = data.load("cifar10", tmp_path)
    for part, names in (("train", TRAIN), ("test", ["test_batch.bin"])):
        x, y = getattr(dataset, f"x_{part}"), getattr(dataset, f"y_{part}")
        assert x.dtype == y.dtype == np.uint8
        np.testing.assert_array_equal(x, np.concatenate([CONTENT[name][0] for name in names]))
        np.testing.assert_array_equal(y, np.concatenate([CONTENT[name][1] for name in names]))
    assert dataset.x_train.shape == (12, 32, 32, 3)
    assert dataset.source == str(folder)
    monkeypatch.setenv("FEDPRUNE_DATA", str(tmp_path))
    np.testing.assert_array_equal(data.load("cifar10").x_test, dataset.x_test)


def test_the_archives_folder_comes_first(tmp_path):
    write_set(tmp_path / "cifar10" / "cifar-10-batches-bin")
    (tmp_path / "cifar10" / "test_batch.bin").write_bytes(b"something else")
    assert len(data.load("cifar10", tmp_path).x_test) == 5


def test_truncated_anywhere(tmp_path):
    """Every length but whole records; over one record every byte, then around the boundaries."""
    path, raw = tmp_path / "data_batch_1.bin", RAW["data_batch_1.bin"]
    one = len(raw) // 3
    for n in [*range(0, one, 61), one - 1, one + 1, 2 * one - 1, 2 * one + 1, len(raw) - 1]:
        path.write_bytes(raw[:n])
        with pytest.raises(data.DataError, match=rf"data_batch_1\.bin: {n} bytes") as error:
            cifar.read_file(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    path.write_bytes(raw[:one])
    assert cifar.read_file(path)[0].shape == (1, 32, 32, 3)


@pytest.mark.parametrize("name", FILES)
def test_one_damaged_file(tmp_path, name):
    path = write_set(tmp_path / "cifar10" / "cifar-10-batches-bin") / name
    for content, what in (
        (RAW[name][:-1], f"{len(RAW[name]) - 1} bytes"),
        (RAW[name] + b"\0", f"{len(RAW[name]) + 1} bytes"),
        (b"", "0 bytes"),
        (b"\x0a" + RAW[name][1:], "image 0 has class 10"),
        (RAW[name][:-3073] + b"\xff" + RAW[name][-3072:], f"image {SIZES[name] - 1} has class 255"),
    ):
        path.write_bytes(content)
        message = not_loaded(tmp_path)
        assert str(path) in message
        assert what in message
    path.unlink()
    message = not_loaded(tmp_path)
    assert str(path) in message
    assert "missing" in message
    path.mkdir()
    assert str(path) in not_loaded(tmp_path)


def test_highest_class_is_allowed(tmp_path):
    path = tmp_path / "test_batch.bin"
    path.write_bytes(record(CONTENT["test_batch.bin"][0][0], 9))
    np.testing.assert_array_equal(cifar.read_file(path)[1], [9])


def test_not_found_says_how_to_get_it(tmp_path):
    for root in (None, tmp_path):
        message = not_loaded(root)
        assert "data_batch_1.bin" in message
        assert "$FEDPRUNE_DATA/cifar10/cifar-10-batches-bin/" in message
        assert "fashion" not in message


def test_never_another_set(tmp_path):
    """Files beside the set's own folder are not taken."""
    write_set(tmp_path / "bare")
    not_loaded(tmp_path / "bare")
    write_set(tmp_path / "other" / "mnist")
    not_loaded(tmp_path / "other")
