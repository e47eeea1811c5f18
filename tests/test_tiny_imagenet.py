"""Tiny ImageNet's folders, written by the test, and all that can be wrong with them."""

import numpy as np
import pytest
from PIL import Image

from fedprune import data

CLASSES = ["n03", "n01", "n02"]


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch):
    monkeypatch.delenv("FEDPRUNE_DATA", raising=False)


def colour(i):
    """Images of one colour, which JPEG keeps up to a level or two."""
    return (20 * i % 256, 255 - 10 * i, 7 * i % 256)


def write_image(path, i, mode="RGB", size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour(i)).convert(mode).save(path, quality=95)


def write_set(root):
    """Two images of each class for training, one for validation; in files named by number."""
    root.mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(CLASSES) + "\n")
    lines = []
    for c, name in enumerate(CLASSES):
        for j in range(2):
            write_image(root / "train" / name / "images" / f"{name}_{j}.JPEG", 2 * c + j)
        write_image(root / "val" / "images" / f"val_{c}.JPEG", 10 + c)
        lines.append(f"val_{c}.JPEG\t{CLASSES[-1 - c]}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def not_loaded(root) -> str:
    with pytest.raises(data.DataError) as error:
        data.load("tiny_imagenet", root)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("below", ["tiny_imagenet/tiny-imagenet-200", "tiny_imagenet"])
def test_load(tmp_path, below):
    folder = write_set(tmp_path / below)
    found = data.load("tiny_imagenet", tmp_path)
    assert (found.source, found.classes) == (str(folder), 3)
    assert list(found.names) == CLASSES
    np.testing.assert_array_equal(found.y_train, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(found.y_test, [2, 1, 0])
    for x, first in ((found.x_train, 0), (found.x_test, 10)):
        assert x.dtype == np.uint8
        assert x.shape[1:] == (64, 64, 3)
        expected = np.array([colour(first + i) for i in range(len(x))], int)
        assert np.abs(x.astype(int) - expected[:, None, None]).max() <= 3


def test_grey_images_have_equal_channels(tmp_path):
    folder = write_set(tmp_path / "tiny_imagenet")
    write_image(folder / "train" / CLASSES[0] / "images" / f"{CLASSES[0]}_0.JPEG", 3, mode="L")
    grey = data.load("tiny_imagenet", tmp_path).x_train[0]
    assert (grey == grey[..., :1]).all()


def test_what_is_refused(tmp_path):
    assert "tiny-imagenet-200" in not_loaded(tmp_path)
    folder = write_set(tmp_path / "tiny_imagenet")
    image = folder / "val" / "images" / "val_1.JPEG"
    whole = image.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"no image"):
        image.write_bytes(damage)
        assert str(image) in not_loaded(tmp_path)
    write_image(image, 1, size=(64, 32))
    assert "64×32 pixels" in not_loaded(tmp_path)
    image.unlink()
    assert str(image) in not_loaded(tmp_path)
    image.write_bytes(whole)
    (folder / "val" / "val_annotations.txt").write_text("val_1.JPEG\tn99\n")
    assert "line 1 names the unknown class 'n99'" in not_loaded(tmp_path)
    (folder / "wnids.txt").write_text("n01\nn01\n")
    assert "wnids.txt" in not_loaded(tmp_path)
