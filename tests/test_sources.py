"""Where datasets come from: IDX files written by hand, and all that can be wrong with them."""

import gzip
import logging
import struct
import sys
import types

import numpy as np
import pytest

from fedprune import data
from fedprune.data import sources

FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch, tmp_path):
    """No set from this machine: neither the environment's nor Debian's."""
    monkeypatch.delenv("FEDPRUNE_DATA", raising=False)
    elsewhere = sources.SOURCES["fashion_mnist"]._replace(package=tmp_path / "debian")
    monkeypatch.setitem(sources.SOURCES, "fashion_mnist", elsewhere)


def idx(array) -> bytes:
    """Two zeros, 8 for unsigned bytes, the rank, the sizes big-endian, the entries row by row."""
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    return header + bytes(int(v) for v in array.ravel())


def arrays(seed=0, train=5, test=3, shape=(4, 6)):
    rng = np.random.default_rng(seed)
    return {
        "x_train": rng.integers(0, 256, (train, *shape)),
        "y_train": np.arange(train) % 3,
        "x_test": rng.integers(0, 256, (test, *shape)),
        "y_test": np.arange(test) % 3,
    }


def write_set(folder, content, compressed=False):
    folder.mkdir(parents=True)
    for key, array in content.items():
        raw = idx(array)
        if compressed:
            (folder / f"{FILES[key]}.gz").write_bytes(gzip.compress(raw))
        else:
            (folder / FILES[key]).write_bytes(raw)


def is_content(dataset, content):
    for key, array in content.items():
        got = getattr(dataset, key)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, array[..., None] if key[0] == "x" else array)
    return True


def fails(path, content: bytes) -> str:
    """The error's message, which is one line and names the file."""
    path.write_bytes(content)
    with pytest.raises(data.DataError) as error:
        data.read_idx(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# IDX files -----


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=("plain", "gz"))
@pytest.mark.parametrize("shape", [(7,), (2, 3, 5), (0,), (0, 4, 4)], ids=str)
def test_round_trip(tmp_path, shape, pack):
    array = np.random.default_rng(0).integers(0, 256, shape)
    path = tmp_path / "file"
    path.write_bytes(pack(idx(array)))
    got = data.read_idx(path)
    assert got.dtype == np.uint8
    assert got.shape == shape
    np.testing.assert_array_equal(got, array)


def test_compression_is_seen_in_the_bytes_not_in_the_name(tmp_path):
    array = np.arange(6)
    for name, content in (("a.gz", idx(array)), ("b", gzip.compress(idx(array)))):
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(data.read_idx(tmp_path / name), array)


@pytest.mark.parametrize("array", [np.arange(9), np.arange(24).reshape(2, 3, 4)], ids=("1d", "3d"))
def test_truncated_anywhere(tmp_path, array):
    raw = idx(array)
    for n in range(len(raw)):
        message = fails(tmp_path / "file", raw[:n])
        if n >= 4 + 4 * array.ndim:
            assert f"{n} bytes" in message
            assert str(len(raw)) in message
        elif n >= 4:
            assert "truncated within its header" in message
        else:
            assert "not an IDX file" in message


def test_truncated_gz_anywhere(tmp_path):
    packed = gzip.compress(idx(np.arange(24).reshape(2, 3, 4)))
    for n in range(len(packed)):
        fails(tmp_path / "file.gz", packed[:n])


def test_gz_of_a_truncated_file(tmp_path):
    raw = idx(np.arange(24).reshape(2, 3, 4))
    assert "39 bytes" in fails(tmp_path / "file.gz", gzip.compress(raw[:-1]))


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=("plain", "gz"))
def test_too_long(tmp_path, pack):
    raw = idx(np.arange(5))
    message = fails(tmp_path / "file", pack(raw + b"\0"))
    assert "14 bytes" in message
    assert "13" in message


def test_damaged_gz(tmp_path):
    """Any flipped byte gives the error or, where it carries nothing (a time stamp), the content."""
    array = np.random.default_rng(0).integers(0, 9, (2, 5, 5))
    packed = gzip.compress(idx(array))
    path = tmp_path / "file.gz"
    messages = []
    for i in range(len(packed)):
        path.write_bytes(packed[:i] + bytes([packed[i] ^ 0xFF]) + packed[i + 1 :])
        try:
            np.testing.assert_array_equal(data.read_idx(path), array)
        except data.DataError as error:
            messages.append(str(error))
    assert len(messages) > len(packed) - 10
    assert all(str(path) in message and "\n" not in message for message in messages)


def test_gz_with_something_after_it(tmp_path):
    fails(tmp_path / "file.gz", gzip.compress(idx(np.arange(5))) + b"something")


@pytest.mark.parametrize(
    "magic",
    [
        b"\0\0\x0d\x01",
        b"\0\0\x08\x02",
        b"\0\0\x08\x04",
        b"\0\0\x08\0",
        b"\x01\0\x08\x01",
        b"\x89PNG",
    ],
    ids=("floats", "rank 2", "rank 4", "rank 0", "first byte", "another format"),
)
def test_wrong_magic(tmp_path, magic):
    assert "not an IDX file of unsigned bytes" in fails(
        tmp_path / "file", magic + idx(np.arange(5))[4:]
    )


def test_sizes_that_overflow(tmp_path):
    """2^31 · 2^31 · 4 is zero modulo 2^64."""
    fails(tmp_path / "file", b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**31, 4))


def test_no_such_file_or_a_folder(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(data.DataError, match="cannot be read") as error:
            data.read_idx(path)
        assert str(path) in str(error.value)


# load -----


def not_loaded(*args) -> str:
    with pytest.raises(data.DataError) as error:
        data.load(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("compressed", [False, True], ids=("plain", "gz"))
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_load_from_data_dir(tmp_path, caplog, name, compressed):
    content = arrays()
    write_set(tmp_path / "root" / name, content, compressed)
    with caplog.at_level(logging.INFO):
        dataset = data.load(name, tmp_path / "root")
    assert is_content(dataset, content)
    assert dataset.name == name
    assert dataset.classes == 3
    assert dataset.source == str(tmp_path / "root" / name)
    assert dataset.source in caplog.text
    assert is_content(data.load(name, str(tmp_path / "root")), content)


def test_load_from_the_environment(tmp_path, monkeypatch):
    content = arrays()
    write_set(tmp_path / "root" / "mnist", content)
    assert "mnist" in not_loaded("mnist")
    monkeypatch.setenv("FEDPRUNE_DATA", str(tmp_path / "root"))
    assert is_content(data.load("mnist"), content)


def test_data_dir_comes_before_the_environment(tmp_path, monkeypatch):
    content = {place: arrays(seed) for seed, place in enumerate(("given", "environment"))}
    for place in content:
        write_set(tmp_path / place / "mnist", content[place])
    monkeypatch.setenv("FEDPRUNE_DATA", str(tmp_path / "environment"))
    assert is_content(data.load("mnist", tmp_path / "given"), content["given"])
    assert is_content(data.load("mnist"), content["environment"])


def test_debian_folder_comes_last(tmp_path):
    debian, given = arrays(1), arrays(2)
    write_set(tmp_path / "debian", debian)
    assert is_content(data.load("fashion_mnist"), debian)
    (tmp_path / "root").mkdir()
    assert is_content(data.load("fashion_mnist", tmp_path / "root"), debian)
    write_set(tmp_path / "root" / "fashion_mnist", given)
    assert is_content(data.load("fashion_mnist", tmp_path / "root"), given)


def test_prepared_tfds_comes_first(tmp_path, monkeypatch):
    """With a stand-in for the library: a folder with dataset_info.json is read through it."""
    content = arrays(3)
    write_set(tmp_path / "root" / "mnist", arrays(4))
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "tensorflow_datasets.py").write_text(
        "def builder_from_directory(path):\n    return BUILDER(path)\n"
    )
    monkeypatch.delitem(sys.modules, "tensorflow_datasets", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    import tensorflow_datasets

    class Builder:
        info = types.SimpleNamespace(disable_shuffling=True)

        def __init__(self, path):
            self.data_path = path

        def as_data_source(self, part):
            pairs = zip(content[f"x_{part}"], content[f"y_{part}"], strict=True)
            return [{"image": x[..., None], "label": int(y)} for x, y in pairs]

    monkeypatch.setattr(tensorflow_datasets, "BUILDER", Builder, raising=False)
    assert is_content(data.load("mnist", tmp_path / "root"), arrays(4))  # nothing prepared
    version = tmp_path / "root" / "mnist" / "3.0.1"
    version.mkdir()
    (version / "dataset_info.json").write_text("{}")
    dataset = data.load("mnist", tmp_path / "root")
    assert is_content(dataset, content)
    assert str(version) in dataset.source
    monkeypatch.delitem(sys.modules, "tensorflow_datasets")


@pytest.mark.parametrize("key", FILES)
def test_missing_companion(tmp_path, key):
    write_set(tmp_path / "mnist", arrays())
    path = tmp_path / "mnist" / FILES[key]
    path.unlink()
    message = not_loaded("mnist", tmp_path)
    assert str(path) in message
    assert "missing" in message


@pytest.mark.parametrize("key", FILES)
def test_damaged_file_of_a_set(tmp_path, key):
    write_set(tmp_path / "mnist", arrays())
    path = tmp_path / "mnist" / FILES[key]
    path.write_bytes(path.read_bytes()[:-1])
    assert str(path) in not_loaded("mnist", tmp_path)


@pytest.mark.parametrize("part", ["train", "test"])
def test_images_and_labels_must_be_as_many(tmp_path, part):
    content = arrays()
    content[f"y_{part}"] = content[f"y_{part}"][:-1]
    write_set(tmp_path / "mnist", content)
    n = len(content[f"x_{part}"])
    message = not_loaded("mnist", tmp_path)
    assert str(tmp_path / "mnist") in message
    assert f"{n} {part} images but {n - 1} {part} labels" in message


def test_empty_set(tmp_path):
    write_set(tmp_path / "mnist", arrays(test=0))
    assert "0 test images" in not_loaded("mnist", tmp_path)


@pytest.mark.parametrize(("image", "label"), [("y_train", "y_train"), ("y_train", "x_train")])
def test_labels_where_images_belong(tmp_path, image, label):
    """idx3 and idx1 are part of the files' names."""
    content = arrays()
    write_set(tmp_path / "mnist", {**content, "x_train": content[image], "y_train": content[label]})
    assert str(tmp_path / "mnist" / FILES["x_train"]) in not_loaded("mnist", tmp_path)


def test_never_another_set(tmp_path):
    """What lies beside the set that was asked for is not taken for it."""
    write_set(tmp_path / "root" / "fashion_mnist", arrays(1))
    write_set(tmp_path / "debian", arrays(2))
    assert "'mnist' was not found" in not_loaded("mnist", tmp_path / "root")
    write_set(tmp_path / "other" / "mnist", arrays(3))
    assert is_content(data.load("fashion_mnist", tmp_path / "other"), arrays(2))
    # Files directly in the root have no name.
    write_set(tmp_path / "bare", arrays(4))
    not_loaded("mnist", tmp_path / "bare")


def test_not_found_says_how_to_get_it(tmp_path):
    for name in ("fashion_mnist", "mnist"):
        message = not_loaded(name, tmp_path)
        assert "$FEDPRUNE_DATA" in message
        assert f"{name}/" in message
        assert FILES["x_train"] in message
        assert ("apt-get" in message) == (name == "fashion_mnist")


@pytest.mark.parametrize("name", ["MNIST", "cifar", "", "../mnist"])
def test_unknown_name(tmp_path, name):
    write_set(tmp_path / "mnist", arrays())
    message = not_loaded(name, tmp_path)
    assert repr(name) in message
    assert all(known in message for known in data.SOURCES)


# Embedded -----


def test_embedded_set(dataset):
    assert dataset.name == "fashion_mnist_10k"
    assert dataset.classes == 10
    for part, each in (("train", 800), ("test", 200)):
        x, y = getattr(dataset, f"x_{part}"), getattr(dataset, f"y_{part}")
        assert x.shape == (10 * each, 28, 28, 1)
        assert x.dtype == y.dtype == np.uint8
        np.testing.assert_array_equal(np.bincount(y), [each] * 10)
        assert len(np.unique(x.reshape(len(x), -1), axis=0)) > 0.99 * len(x)
        assert (x.min(), x.max()) == (0, 255)
    assert 70 < dataset.x_train.mean() < 76  # 72.9 in the full training set


def test_embedded_test_images_are_not_training_images(dataset):
    train = {image.tobytes() for image in dataset.x_train}
    assert sum(image.tobytes() in train for image in dataset.x_test) == 0


def test_embedded_set_is_never_read_from_elsewhere(tmp_path, dataset):
    write_set(tmp_path / "fashion_mnist_10k", arrays())
    np.testing.assert_array_equal(data.load("fashion_mnist_10k", tmp_path).x_test, dataset.x_test)


def test_first_examples():
    whole = data.load("fashion_mnist_10k")
    few = data.first(whole, 100)
    np.testing.assert_array_equal(few.x_train, whole.x_train[:100])
    np.testing.assert_array_equal(few.y_train, whole.y_train[:100])
    assert few.x_test is whole.x_test
    with pytest.raises(data.DataError, match=r"data\.examples=99999: fashion_mnist_10k has 8000"):
        data.first(whole, 99_999)
