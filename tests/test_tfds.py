"""The same set through TensorFlow Datasets and through its raw files, without TensorFlow.

Tiny sets are written both ways: as raw files byte by byte, and by TFDS itself, with a builder that
follows TFDS's own (an example's number is its key).
"""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record")
from PIL import Image  # noqa: E402

from fedprune import data  # noqa: E402
from fedprune.data import prepared, sources  # noqa: E402

SIZE = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
BASES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "Cifar10"}
TRAIN, TEST = 23, 11
pytestmark = [
    # TFDS leaves its readers open, and its files to be collected.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch, tmp_path):
    monkeypatch.delenv("FEDPRUNE_DATA", raising=False)
    elsewhere = sources.SOURCES["fashion_mnist"]._replace(package=tmp_path / "debian")
    monkeypatch.setitem(sources.SOURCES, "fashion_mnist", elsewhere)


def arrays(name, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x_train": rng.integers(0, 256, (TRAIN, *SIZE[name])).astype(np.uint8),
        "y_train": rng.permutation(np.arange(TRAIN) % 10),
        "x_test": rng.integers(0, 256, (TEST, *SIZE[name])).astype(np.uint8),
        "y_test": rng.permutation(np.arange(TEST) % 10),
    }


def write_raw(folder: Path, name, content):
    folder.mkdir(parents=True)
    if name == "cifar10":
        cuts = np.array_split(np.arange(TRAIN), 5)
        files = {f"data_batch_{i + 1}.bin": ("train", cut) for i, cut in enumerate(cuts)}
        files["test_batch.bin"] = ("test", np.arange(TEST))
        for file, (part, rows) in files.items():
            raw = b""
            for i in rows:
                planes = np.moveaxis(content[f"x_{part}"][i], -1, 0)
                raw += bytes([content[f"y_{part}"][i]]) + planes.tobytes()
            (folder / file).write_bytes(raw)
        (folder / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n")
        return
    for part, stem in (("train", "train"), ("test", "t10k")):
        x, y = content[f"x_{part}"][..., 0], content[f"y_{part}"]
        images = struct.pack(">4I", 0x803, *x.shape) + x.tobytes()
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(images)
        labels = struct.pack(">2I", 0x801, len(y)) + bytes(y.tolist())
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(labels)


def write_tfds(root: Path, name, content, shuffled=True):
    """By TFDS itself, with Pillow images."""

    def info(self):
        features = {
            "image": tfds.features.Image(shape=SIZE[name]),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=not shuffled,
        )

    def examples(part):
        for i, (x, y) in enumerate(zip(content[f"x_{part}"], content[f"y_{part}"], strict=True)):
            picture = Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x)
            yield i, {"image": picture, "label": int(y)}

    body = {
        "name": name,
        "VERSION": tfds.core.Version("3.0.2"),
        "pkg_dir_path": None,
        "_info": info,
        "_split_generators": lambda self, _: {part: examples(part) for part in ("train", "test")},
        "_generate_examples": lambda self: iter(()),
    }
    with tfds.core.registered.skip_registration():
        builder = type("Tiny", (tfds.core.GeneratorBasedBuilder,), body)
    builder(data_dir=root, file_format="array_record").download_and_prepare()


def same(got, want):
    for key in ("x_train", "y_train", "x_test", "y_test"):
        a, b = getattr(got, key), want[key] if isinstance(want, dict) else getattr(want, key)
        assert a.dtype == np.uint8
        np.testing.assert_array_equal(a, b)
    return True


@pytest.mark.parametrize("shuffled", [True, False], ids=("shuffled", "in order"))
@pytest.mark.parametrize("name", SIZE)
def test_same_through_raw_files_and_tfds(tmp_path, name, shuffled):
    content = arrays(name)
    write_raw(tmp_path / "raw" / name, name, content)
    write_tfds(tmp_path / "tfds", name, content, shuffled)
    through_tfds = data.load(name, tmp_path / "tfds")
    assert "TFDS" in through_tfds.source
    raw = data.load(name, tmp_path / "raw")
    assert "TFDS" not in raw.source
    assert same(through_tfds, content)
    assert same(raw, through_tfds)
    assert raw.classes == through_tfds.classes == 10
    assert "tensorflow" not in sys.modules


def test_tfds_really_shuffles(tmp_path):
    """Without restoring the order the sets would differ."""
    content = arrays("mnist")
    write_tfds(tmp_path, "mnist", content)
    rows = list(prepared.builder("mnist", tmp_path).as_data_source("train"))
    stored = np.array([row["label"] for row in rows])
    assert (stored != content["y_train"]).any()
    np.testing.assert_array_equal(
        stored, content["y_train"][prepared.written_order("train", TRAIN)]
    )


def test_prepared_comes_before_raw_and_newest_first(tmp_path):
    old, new, raw = (arrays("mnist", seed) for seed in (1, 2, 3))
    write_raw(tmp_path / "mnist", "mnist", raw)
    assert same(data.load("mnist", tmp_path), raw)
    write_tfds(tmp_path, "mnist", old)
    assert same(data.load("mnist", tmp_path), old)
    (tmp_path / "mnist" / "3.0.2").rename(tmp_path / "mnist" / "3.0.10")
    write_tfds(tmp_path, "mnist", new)
    assert same(data.load("mnist", tmp_path), old)


def test_damaged_record_file(tmp_path):
    write_tfds(tmp_path, "mnist", arrays("mnist"))
    folder = tmp_path / "mnist" / "3.0.2"
    (path,) = folder.glob("*train*")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(data.DataError) as error:
        data.load("mnist", tmp_path)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


# Downloading -----


@pytest.fixture
def network(monkeypatch, tmp_path):
    """TFDS's own builders, with files that a server would give in ``tmp_path``/server/NAME."""
    asked = []

    def download(self, urls):
        asked.append(urls)
        if isinstance(urls, str):  # CIFAR-10's archive, in which the files have a folder
            return str(tmp_path / "server" / "cifar10")
        name = "fashion_mnist" if "fashion" in next(iter(urls.values())) else "mnist"
        return {
            key: str(tmp_path / "server" / name / url.split("/")[-1].removesuffix(".gz"))
            for key, url in urls.items()
        }

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", download)
    return asked


@pytest.mark.parametrize("name", SIZE)
def test_download_without_tensorflow(tmp_path, network, name):
    content = arrays(name)
    below = "cifar-10-batches-bin" if name == "cifar10" else ""
    write_raw(tmp_path / "server" / name / below, name, content)
    root = tmp_path / "root"
    with pytest.raises(data.DataError, match="was not found"):
        data.load(name, root)
    assert network == []
    assert same(data.load(name, root, download=True), content)
    assert len(network) == 1
    assert "tensorflow" not in sys.modules
    assert same(data.load(name, root), content)  # now it is prepared
    assert same(data.load(name, root, download=True), content)
    assert len(network) == 1


def test_nothing_is_downloaded_for_a_set_that_is_there(tmp_path, network):
    content = arrays("mnist")
    write_raw(tmp_path / "mnist", "mnist", content)
    assert same(data.load("mnist", tmp_path, download=True), content)
    assert network == []


def test_download_needs_a_folder():
    with pytest.raises(data.DataError, match=r"give data\.dir"):
        data.load("mnist", download=True)


@pytest.mark.parametrize("name", SIZE)
def test_no_network(tmp_path, monkeypatch, name):
    def fail(self, urls):
        raise ConnectionError("first line\nsecond line")

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", fail)
    with pytest.raises(data.DataError) as error:
        data.load(name, tmp_path, download=True)
    message = str(error.value)
    assert "\n" not in message
    assert "could not be downloaded" in message
    assert "ConnectionError: first line second line" in message
    assert str(tmp_path / name) in message


def test_without_tfds(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "installed", lambda: False)
    with pytest.raises(data.DataError, match=r"pip install 'fedprune\[tfds\]'"):
        data.load("mnist", tmp_path, download=True)
