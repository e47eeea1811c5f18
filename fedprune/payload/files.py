"""Pruned models as files.

    "fedprune" · version u16 · length of the header u32 · CRC-32 of the header u32 · header · arrays

The header has, for each array, its name, type, shape, encoding, bits, scale, length, the CRC-32 of
its bytes, and that of the decoded weights and mask. The first two checksums find damage before
anything is decoded; the last one finds a decoder that disagrees with the encoder. All numbers are
little-endian. Arrays are encoded as ``tensors`` says; with fewer than 32 bits, what is no kernel
(``tree.is_kernel``: biases, norms, statistics) still has 32, for it is little and each matters.

Whatever the bytes, reading either gives what was written or raises ``FormatError`` with one line.
For n weights that the caller allows, it reads no file of more than 64 n bytes and 1 MiB, and takes
at most 64 n bytes, 1 KiB for each array and 1 MiB beside the file, whatever a header claims.
"""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedprune import tree
from fedprune.payload import quantize, tensors
from fedprune.payload.entropy import FormatError
from fedprune.types import Mask, Params

MAGIC = b"fedprune"
VERSION = 1
LIMIT = 1 << 28
"""weights that a file may hold unless the caller says otherwise, 1 GiB of float32"""
_LONGEST = 64, 1 << 20
"""bytes of a file: for each weight that is allowed, and besides"""
_START = struct.Struct("<HII")
_ARRAY = struct.Struct("<BBBBBfQII")
_TYPES = tuple(quantize.FLOATS)
_AXES = 32
_NAME = (1 << 16) - 1
"""bytes of a name"""


def to_bytes(params: Params, mask: Mask = None, encoding: str = "entropy", bits: int = 32) -> bytes:
    """A file's bytes.

    Args:
      params: pytree of float arrays.
      mask: like ``params``, or None. Pruned weights are stored as zeros.
      encoding: "dense", "bitmap" or "entropy".
      bits: 32 (exact), 16, 8 or 4: an error of at most max|w| / (2^bits - 2) in each array.

    Raises:
      ValueError: an unknown encoding or number of bits, another type than ``quantize.FLOATS``, two
        arrays of one name, too many axes or too long a name, masks that do not fit, or weights that
        are not finite below 32 bits.
      ModuleNotFoundError: "entropy" without the extra "codec".
    """
    if encoding not in tensors.ENCODINGS:
        raise ValueError(f"encoding={encoding!r} is not one of {tensors.ENCODINGS}")
    if bits not in quantize.BITS:
        raise ValueError(f"bits={bits} is not one of {quantize.BITS}")
    named = jax.tree_util.tree_flatten_with_path(params)[0]
    masks = [None] * len(named) if mask is None else jax.tree.leaves(mask)
    header, parts, names = [struct.pack("<I", len(named))], [], set()
    for (path, leaf), flags in zip(named, masks, strict=True):
        name, values = tree.path_name(path), np.asarray(leaf)
        kept = None if flags is None or np.all(flags) else np.asarray(flags, bool)
        if values.dtype.name not in _TYPES:
            raise ValueError(f"{name}: {values.dtype.name} is not one of {_TYPES}")
        if flags is not None and np.shape(flags) != values.shape:
            raise ValueError(f"mask: {np.shape(flags)} for weights of shape {values.shape}")
        if name in names:
            raise ValueError(f"two arrays are named {name}")
        if values.ndim > _AXES or len(name.encode()) > _NAME:
            raise ValueError(f"{name[:60]}: more than {_AXES} axes, or {_NAME} bytes in its name")
        names.add(name)
        width = bits if tree.is_kernel(name, values) else 32
        data, scale = tensors.encode(values, kept, encoding, width)
        fields = (values.dtype, kept is not None, encoding, width, scale)
        decoded = tensors.decode(data, values.shape, *fields)
        header.append(_describe(name, values.shape, fields, data, _checksum(*decoded)))
        parts.append(data)
    described = b"".join(header)
    start = _START.pack(VERSION, len(described), zlib.crc32(described))
    return b"".join([MAGIC, start, described, *parts])


def from_bytes(data: bytes, like: Params | None = None, limit: int = LIMIT) -> tuple[Params, Mask]:
    """The weights and their mask from a file's bytes, as NumPy arrays.

    Args:
      data: what ``to_bytes`` gave.
      like: pytree of arrays or shapes whose structure, names and shapes the file must have; None:
        nested dictionaries by the names' parts.
      limit: weights that are allowed.

    Returns:
      params, with zeros where pruned, and mask: True where all of an array is kept; None for a file
      with no mask in it.

    Raises:
      FormatError: not such a file, damaged, of a newer version, too large, or not like ``like``.
    """
    arrays, masks = {}, {}
    for name, shape, fields, chunk, expected in _entries(data, limit):
        values, kept = tensors.decode(chunk, shape, *fields)
        if _checksum(values, kept) != expected:
            raise FormatError(f"{name}: decoded weights do not match their checksum")
        arrays[name], masks[name] = values, kept
    unmasked = all(kept is None for kept in masks.values())
    full = {n: np.ones(arrays[n].shape, bool) if k is None else k for n, k in masks.items()}
    build = _nested if like is None else lambda found: _like(like, found)
    return build(arrays), None if unmasked else build(full)


def save(
    path: str | Path, params: Params, mask: Mask = None, encoding: str = "entropy", bits: int = 32
) -> int:
    """Writes a file, in one step, and returns its bytes. Arguments and errors as ``to_bytes``."""
    data = to_bytes(params, mask, encoding, bits)
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return len(data)


def load(path: str | Path, like: Params | None = None, limit: int = LIMIT) -> tuple[Params, Mask]:
    """Reads a file. Arguments, results and errors as ``from_bytes``."""
    with open(path, "rb") as file:
        size, most = os.fstat(file.fileno()).st_size, _LONGEST[0] * limit + _LONGEST[1]
        if size > most:
            raise FormatError(f"model file: {size} bytes, but {limit} weights have at most {most}")
        return from_bytes(file.read(size), like, limit)


def _describe(
    name: str, shape: tuple[int, ...], fields: tuple, data: bytes, checksum: int
) -> bytes:
    dtype, masked, encoding, bits, scale = fields
    text = name.encode()
    code = _TYPES.index(dtype.name), tensors.ENCODINGS.index(encoding), bits, masked, len(shape)
    fixed = _ARRAY.pack(*code, scale, len(data), zlib.crc32(data), checksum)
    return struct.pack("<H", len(text)) + text + fixed + struct.pack(f"<{len(shape)}Q", *shape)


class _Reader:
    """Takes fields off the front of bytes."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            raise FormatError("model file: truncated")
        self._at += count
        return self._data[self._at - count : self._at]

    def unpack(self, layout: str | struct.Struct) -> tuple:
        form = struct.Struct(layout) if isinstance(layout, str) else layout
        return form.unpack(self.take(form.size))

    @property
    def left(self) -> int:
        return len(self._data) - self._at


def _entries(data: bytes, limit: int) -> list[tuple]:
    """(name, shape, fields, bytes, checksum) of every array; all checked but the last."""
    whole = _Reader(data)
    if data[: len(MAGIC)] != MAGIC:
        raise FormatError("model file: not one of fedprune's")
    whole.take(len(MAGIC))
    version, length, checksum = whole.unpack(_START)
    if version != VERSION:
        raise FormatError(f"model file: version {version}, but this program reads {VERSION}")
    described = whole.take(length)
    if zlib.crc32(described) != checksum:
        raise FormatError("model file: its header is damaged")
    entries: list[tuple] = []
    header, names, total = _Reader(described), set(), 0
    for _ in range(header.unpack("<I")[0]):
        raw = header.take(header.unpack("<H")[0])
        fixed = header.unpack(_ARRAY)
        kind, encoding, bits, masked, axes, scale, size, crc, decoded = fixed
        name = raw.decode(errors="replace")
        known = kind < len(_TYPES) and encoding < len(tensors.ENCODINGS) and axes <= _AXES
        if not known or bits not in quantize.BITS or masked > 1 or name in names:
            raise FormatError(f"model file: impossible description of array {len(entries)}")
        shape = header.unpack(f"<{axes}Q")
        total += _weights(shape)
        if total > limit:
            raise FormatError(f"model file: more than {limit} weights, the limit")
        chunk = whole.take(size)
        if zlib.crc32(chunk) != crc:
            raise FormatError(f"{name}: its bytes are damaged")
        dtype = quantize.dtype_of(_TYPES[kind])
        fields = dtype, bool(masked), tensors.ENCODINGS[encoding], bits, np.float32(scale)
        entries.append((name, shape, fields, chunk, decoded))
        names.add(name)
    if header.left or whole.left:
        raise FormatError("model file: bytes after its end")
    return entries


def _weights(shape: tuple[int, ...]) -> int:
    """Number of weights; axes of an empty array count too, for its rows take memory."""
    return int(np.prod([max(axis, 1) for axis in shape], dtype=object))


def _checksum(values: np.ndarray, kept: np.ndarray | None) -> int:
    pattern = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
    crc = zlib.crc32(pattern.astype(pattern.dtype.newbyteorder("<")).tobytes())
    return crc if kept is None else zlib.crc32(np.packbits(kept).tobytes(), crc)


def _nested(found: dict[str, np.ndarray]) -> Any:
    """Dictionaries by the parts of the names; a single array without a name is itself."""
    if list(found) == [""]:
        return found[""]
    nested: dict = {}
    for name, values in found.items():
        *parts, last = name.split("/")
        at = nested
        for part in parts:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise FormatError(f"{name}: its name goes on below another array's")
        if last in at:
            raise FormatError(f"{name}: its name is above another array's")
        at[last] = values
    return nested


def _like(like: Params, found: dict[str, np.ndarray]) -> Params:
    named, treedef = jax.tree_util.tree_flatten_with_path(like)
    shapes = {tree.path_name(path): tuple(np.shape(leaf)) for path, leaf in named}
    for name in sorted(shapes.keys() ^ found.keys()):
        raise FormatError(f"{name}: only in the {'file' if name in found else 'expected model'}")
    for name, shape in shapes.items():
        if found[name].shape != shape:
            raise FormatError(f"{name}: shape {found[name].shape}, expected {shape}")
    return jax.tree.unflatten(treedef, [found[name] for name in shapes])
