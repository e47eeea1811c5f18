"""Tiny ImageNet as its archive unpacks: JPEG files in folders, one for each class.

    wnids.txt                            the classes, a line each; a class is its line's number
    train/<class>/images/*.JPEG          training images
    val/val_annotations.txt              file, class and a box, tab-separated, of each of
    val/images/*.JPEG                    the validation images, which serve as test images

The archive's own test images have no published labels. All images are 64×64; grey ones count as
colour images of equal channels. Source: P3 section VII-A, its reference [51].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fedprune.data.dataset import DataError

FOLDER = "tiny-imagenet-200"
SIZE = 64


def folder(root: Path) -> Path | None:
    """Where under ``root`` the set lies: in the archive's own folder, or directly; or None."""
    return next((p for p in (root / FOLDER, root) if (p / "wnids.txt").is_file()), None)


def read_folder(path: Path) -> dict[str, np.ndarray]:
    """x_train, x_test [n, 64, 64, 3] uint8, y_train, y_test [n] uint8, and names of the classes.

    Raises:
      DataError: a file that is missing or damaged, an unknown class, or more than 256 classes.
    """
    names = _lines(path / "wnids.txt")
    if not 0 < len(set(names)) == len(names) <= 256:
        raise DataError(f"{path / 'wnids.txt'}: not 1 to 256 different classes")
    number = {name: c for c, name in enumerate(names)}
    train = [
        (file, number[name])
        for name in names
        for file in sorted((path / "train" / name / "images").glob("*.JPEG"))
    ]
    annotations = path / "val" / "val_annotations.txt"
    test = []
    for i, line in enumerate(_lines(annotations), 1):
        file, name = [*line.split("\t"), ""][:2]
        if name not in number:
            raise DataError(f"{annotations}: line {i} names the unknown class {name!r}")
        test.append((path / "val" / "images" / file, number[name]))
    arrays = {"names": np.array(names)}
    for part, files in (("train", train), ("test", test)):
        arrays[f"x_{part}"] = np.empty((len(files), SIZE, SIZE, 3), np.uint8)
        for image, (path_of, _) in zip(arrays[f"x_{part}"], files, strict=True):
            image[:] = _read(path_of)
        arrays[f"y_{part}"] = np.array([c for _, c in files], np.uint8)
    return arrays


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: cannot be read ({e})") from e


def _read(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise DataError(f"{path}: cannot be read as an image ({e})") from e
    if pixels.shape != (SIZE, SIZE, 3):
        raise DataError(f"{path}: {pixels.shape[1]}×{pixels.shape[0]} pixels, not {SIZE}×{SIZE}")
    return pixels
