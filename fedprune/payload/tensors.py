"""One masked array <-> bytes, in the encodings that files use.

    dense     every weight, zeros where pruned; the mask is not kept
    bitmap    one bit a weight, then the kept weights
    entropy   the mask and then the kept weights, entropy-coded (``entropy``)

each with 32, 16, 8 or 4 bits a weight (``quantize``). For ``entropy`` an array is a matrix whose
rows are its output features (the last axis). Its mask goes in two passes, even columns first, then
odd ones whose neighbours are then known; kept weights know how many of their two neighbours are
kept. With 32 bits, sign and exponent are coded together and the mantissa, which is noise, is sent
as it is.
"""

from __future__ import annotations

import struct

import numpy as np

from fedprune.payload import entropy, quantize
from fedprune.payload.entropy import FormatError

ENCODINGS = ("dense", "bitmap", "entropy")
_LENGTH = struct.Struct("<II")
_PACKED = {16: "<i2", 8: "i1"}


def encode(
    values: np.ndarray, kept: np.ndarray | None, encoding: str, bits: int
) -> tuple[bytes, np.float32]:
    """An array [...] of one of ``quantize.FLOATS`` as bytes, and its scale.

    Args:
      kept: booleans [...], or None where all weights are kept.
    """
    if encoding == "dense":
        whole = values if kept is None else np.where(kept, values, np.zeros((), values.dtype))
        return _pack(whole.reshape(-1), bits)
    chosen = values.reshape(-1) if kept is None else values[kept]
    if encoding == "bitmap":
        packed, scale = _pack(chosen, bits)
        return (b"" if kept is None else np.packbits(kept).tobytes()) + packed, scale
    return _entropy_encode(values, kept, bits)


@np.errstate(all="ignore")  # a forged scale may overflow; its checksum then fails
def decode(
    data: bytes,
    shape: tuple[int, ...],
    dtype: np.dtype,
    masked: bool,
    encoding: str,
    bits: int,
    scale: np.float32,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The array with zeros where pruned, and its mask: None where all weights are kept, or unknown.

    Raises:
      FormatError: impossible bytes.
    """
    size = int(np.prod(shape, dtype=np.int64))
    if encoding == "entropy":
        return _entropy_decode(data, shape, dtype, masked, bits, scale)
    if encoding == "dense" or not masked:
        return _unpack(data, size, bits, scale, dtype).reshape(shape), None
    count = -(-size // 8)
    if len(data) < count:
        raise FormatError("bitmap: too short")
    flags = np.unpackbits(np.frombuffer(data, np.uint8, count), count=size).astype(bool)
    values = np.zeros(size, dtype)
    values[flags] = _unpack(data[count:], int(flags.sum()), bits, scale, dtype)
    return values.reshape(shape), flags.reshape(shape)


def _pack(values: np.ndarray, bits: int) -> tuple[bytes, np.float32]:
    """Values [n] without any model, and their scale."""
    if bits == 32:
        pattern = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
        return pattern.astype(pattern.dtype.newbyteorder("<")).tobytes(), np.float32(0.0)
    levels, scale = quantize.quantize(values, bits)
    if bits == 4:
        pairs = np.pad(levels, (0, levels.size % 2)).reshape(-1, 2) & 15
        return (pairs[:, 0] << 4 | pairs[:, 1]).astype(np.uint8).tobytes(), scale
    return levels.astype(_PACKED[bits]).tobytes(), scale


def _unpack(data: bytes, count: int, bits: int, scale: np.float32, dtype: np.dtype) -> np.ndarray:
    width = 8 * dtype.itemsize if bits == 32 else bits
    if len(data) != -(-count * width // 8):
        raise FormatError(f"{len(data)} bytes for {count} weights of {width} bits")
    if bits == 32:
        pattern = np.frombuffer(data, f"<u{dtype.itemsize}")
        return pattern.astype(f"u{dtype.itemsize}").view(dtype)
    if bits == 4:
        pairs = np.frombuffer(data, np.uint8)
        levels = np.stack([pairs >> 4, pairs & 15], 1).reshape(-1)[:count].astype(np.int32)
        return quantize.dequantize((levels ^ 8) - 8, scale, dtype)
    return quantize.dequantize(np.frombuffer(data, _PACKED[bits]), scale, dtype)


def _entropy_encode(
    values: np.ndarray, kept: np.ndarray | None, bits: int
) -> tuple[bytes, np.float32]:
    matrix = _rows(values)
    flags = None if kept is None else _rows(kept)
    mask = b"" if flags is None else encode_mask(flags)
    chosen = np.ascontiguousarray(matrix.reshape(-1) if flags is None else matrix[flags])
    lengths, neighbours = _kept_rows(matrix.shape, flags)
    if bits == 32:
        levels, mantissas = quantize.split(chosen)
        rest = entropy.encode_bits(mantissas, quantize.FLOATS[values.dtype.name])
        scale = np.float32(0.0)
    else:
        levels, scale = quantize.quantize(chosen, bits)
        rest = b""
    coded = entropy.encode(levels, lengths, neighbours)
    return _LENGTH.pack(len(mask), len(coded)) + mask + coded + rest, scale


def _entropy_decode(
    data: bytes, shape: tuple[int, ...], dtype: np.dtype, masked: bool, bits: int, scale: np.float32
) -> tuple[np.ndarray, np.ndarray | None]:
    if len(data) < _LENGTH.size:
        raise FormatError("entropy-coded array: shorter than its header")
    first, second = _LENGTH.unpack_from(data)
    start = _LENGTH.size + first
    if start + second > len(data) or bool(first) != masked:
        raise FormatError("entropy-coded array: impossible lengths")
    rows = _shape_of_rows(shape)
    flags = decode_mask(data[_LENGTH.size : start], rows) if masked else None
    lengths, neighbours = _kept_rows(rows, flags)
    levels = entropy.decode(data[start : start + second], lengths, neighbours)
    rest = data[start + second :]
    if bits == 32:
        if not (np.abs(levels) <= _exponents(dtype)).all() or not levels.all():
            raise FormatError("entropy-coded array: impossible exponent")
        mantissas = entropy.decode_bits(rest, levels.size, quantize.FLOATS[dtype.name])
        chosen = quantize.join(levels, mantissas, dtype)
    else:
        chosen = quantize.dequantize(levels, scale, dtype)
    matrix = np.zeros(rows, dtype)
    matrix[slice(None) if flags is None else flags] = (
        chosen.reshape(rows) if flags is None else chosen
    )
    mask = None if flags is None else flags.reshape(shape[::-1]).T
    return matrix.reshape(shape[::-1]).T.copy(), mask


def encode_mask(flags: np.ndarray) -> bytes:
    """Booleans [R, c], even columns first, then the odd ones between them."""
    even = entropy.encode(flags[:, ::2].reshape(-1), np.full(len(flags), flags[:, ::2].shape[1]))
    odd = flags[:, 1::2]
    between = _beside(flags[:, ::2], odd.shape[1])
    coded = entropy.encode(odd.reshape(-1), np.full(len(flags), odd.shape[1]), between)
    return struct.pack("<I", len(even)) + even + coded


def decode_mask(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """The booleans [R, c] of ``encode_mask``.

    Raises:
      FormatError: impossible bytes.
    """
    if len(data) < 4:
        raise FormatError("entropy-coded mask: shorter than its header")
    end = 4 + struct.unpack_from("<I", data)[0]
    rows, columns = shape
    flags = np.zeros(shape, bool)
    flags[:, ::2] = _flags(data[4:end], rows, (columns + 1) // 2, None)
    between = _beside(flags[:, ::2], columns // 2)
    flags[:, 1::2] = _flags(data[end:], rows, columns // 2, between)
    return flags


def _flags(data: bytes, rows: int, columns: int, beside: np.ndarray | None) -> np.ndarray:
    values = entropy.decode(data, np.full(rows, columns), beside)
    if not ((values == 0) | (values == 1)).all():
        raise FormatError("entropy-coded mask: neither kept nor pruned")
    return values.reshape(rows, columns) == 1


def _beside(even: np.ndarray, odd_columns: int) -> np.ndarray:
    """How many of the even columns left and right of each odd one are kept, flat."""
    padded = np.pad(even.astype(np.uint8), ((0, 0), (0, 1)))
    return (padded[:, :odd_columns] + padded[:, 1 : odd_columns + 1]).reshape(-1)


def _kept_rows(
    shape: tuple[int, ...], flags: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Kept weights of each row, and of each kept weight how many neighbours are kept too."""
    if flags is None:
        return np.full(shape[0], shape[1]), None
    padded = np.pad(flags.astype(np.uint8), ((0, 0), (1, 1)))
    return flags.sum(1), (padded[:, :-2] + padded[:, 2:])[flags]


def _rows(array: np.ndarray) -> np.ndarray:
    return array.T.reshape(_shape_of_rows(array.shape))


def _shape_of_rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """Output features × the rest; a vector is one row."""
    size = int(np.prod(shape, dtype=np.int64))
    rows = shape[-1] if len(shape) > 1 else 1
    return rows, size // max(rows, 1)


def _exponents(dtype: np.dtype) -> int:
    return 1 << (8 * dtype.itemsize - 1 - quantize.FLOATS[dtype.name])
