"""Entropy coding of integers in two passes, with contexts, as in DeepCABAC.

Integers come in rows (a layer's output features). The first pass over them decides the contexts,
the second one codes, every symbol under the static model of its context:

  row class      rows are sorted into at most 16 classes by the logarithm of their mean magnitude; a
                 row's class is sent
  neighbours     what the decoder already knows beside a symbol, given by the caller: 0, 1 or 2

How many classes are used, whether neighbours are, and how fine symbols are, is what gives the
shortest stream; its length is computed, tables included. DeepCABAC adapts its models after every
bit, which only a loop over bits can do; static models keep both passes whole-array operations.

A model is a table of log2 frequencies in quarters of a bit, sent as differences between
neighbouring entries; against exact frequencies it costs about 0.2 %. Everything is one ANS stream
of ``constriction`` (extra "codec").

Source: the contexts of S. Wiedemann et al., "DeepCABAC: a universal compression algorithm for deep
neural networks", IEEE J. Sel. Top. Signal Process. 14 (2020); P3's digital baseline.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from fedprune.payload.symbols import LARGEST, LEADING, from_symbols, to_symbols

CLASSES = 16
NEIGHBOURS = 3
_PIECE = 12
"""uncoded bits at a time"""
_STEP = 4
"""steps of a table per bit"""
_WORTH = 0.999
"""a longer way of coding has to save a thousandth"""
_WIDEST = 1200
"""symbols of the largest table that is considered; every l but the largest stays below"""
_HEADER = struct.Struct("<HBBBI")
# Quarters of an octave as literals: models must be bitwise the same on every machine.
_QUARTERS = np.array([1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429])
_SPAN = _STEP * 48
_DELTAS = np.ldexp(1.0, -((np.abs(np.arange(-_SPAN, _SPAN + 1)) + 1) // 2))


class FormatError(ValueError):
    """Bytes that no encoder of this room wrote."""


def encode(values: np.ndarray, lengths: np.ndarray, neighbours: np.ndarray | None = None) -> bytes:
    """Integers as bytes.

    Args:
      values: [n] integers of magnitude at most ``LARGEST``, row after row.
      lengths: [R] length of each row; they add up to n.
      neighbours: [n] context of each symbol, below ``NEIGHBOURS``, known to the decoder.

    Raises:
      ValueError: a magnitude above ``LARGEST``.
      ModuleNotFoundError: without the extra "codec".
    """
    if max(int(values.max(initial=0)), -int(values.min(initial=0))) > LARGEST:
        raise ValueError(f"integers of magnitude above {LARGEST} cannot be coded")
    values = np.asarray(values, np.int32)
    symbols, widths, rest = to_symbols(values, LEADING[-1])
    fine = _row_classes(values, lengths)
    alphabet = int(symbols.max(initial=0)) + 1
    joint = np.repeat(fine * NEIGHBOURS * alphabet, lengths) + symbols
    if neighbours is not None:
        joint += neighbours * np.int64(alphabet)
    counts = np.bincount(joint, minlength=CLASSES * NEIGHBOURS * alphabet)
    counts = counts.reshape(CLASSES, NEIGHBOURS, alphabet)
    leading, rows, used, tables = _cheapest(counts, len(lengths))
    classes = fine * rows // CLASSES
    if leading != LEADING[-1]:
        symbols, widths, rest = to_symbols(values, leading)

    stack = _Pushed()
    stack.add(classes, _uniform(rows))
    stack.add(np.diff(tables, prepend=0).reshape(-1) + _SPAN, _model(_DELTAS))
    groups = _groups(_contexts(classes, lengths, neighbours, used), len(tables))
    for group, table in zip(groups, tables, strict=True):
        stack.add(symbols[group], _model(_weights(table)))
    for width, group in enumerate(_groups(widths, 32)):
        _add_bits(stack, rest[group], width)
    words = stack.words()
    return (
        _HEADER.pack(tables.shape[1], leading, rows, used, words.size)
        + words.astype("<u4").tobytes()
    )


def decode(data: bytes, lengths: np.ndarray, neighbours: np.ndarray | None = None) -> np.ndarray:
    """The integers [n] int32 that ``encode`` was given, from exactly its bytes.

    Raises:
      FormatError: impossible bytes. Damage that is possible gives other integers: checksums are
        the caller's.
    """
    if len(data) < _HEADER.size:
        raise FormatError("entropy-coded stream: shorter than its header")
    alphabet, leading, rows, used, count = _HEADER.unpack_from(data)
    possible = leading in LEADING and 1 <= rows <= CLASSES and 1 <= used <= NEIGHBOURS
    possible = possible and 1 <= alphabet <= 1 + int(
        to_symbols(np.array([-LARGEST]), leading)[0][0]
    )
    if not possible or len(data) != _HEADER.size + 4 * count:
        raise FormatError("entropy-coded stream: impossible header")
    stream = _Popped(np.frombuffer(data, "<u4", offset=_HEADER.size).astype(np.uint32))
    total = int(np.sum(lengths))
    classes = stream.take(len(lengths), _uniform(rows))
    deltas = stream.take(rows * used * alphabet, _model(_DELTAS)) - _SPAN
    tables = np.cumsum(deltas.reshape(rows * used, alphabet), 1)
    if tables.min() < 0 or tables.max() > _SPAN:
        raise FormatError("entropy-coded stream: impossible table")
    symbols = np.empty(total, np.int32)
    groups = _groups(_contexts(classes, lengths, neighbours, used), len(tables))
    for group, table in zip(groups, tables, strict=True):
        count = total if isinstance(group, slice) else group.size
        symbols[group] = stream.take(count, _model(_weights(table)))
    magnitudes, large, widths = from_symbols(symbols, leading)
    for width, group in enumerate(_groups(widths, 32)):
        count = widths.size if isinstance(group, slice) else group.size
        magnitudes[large[group]] += _take_bits(stream, count, width)
    return np.where(symbols & 1, magnitudes, -magnitudes)


def encode_bits(values: np.ndarray, width: int) -> bytes:
    """Non-negative integers [n] below 2^width that no model shortens, in n width bits."""
    stack = _Pushed()
    _add_bits(stack, values, width)
    return stack.words().astype("<u4").tobytes()


def decode_bits(data: bytes, count: int, width: int) -> np.ndarray:
    """The integers [count] int32 that ``encode_bits`` was given.

    Raises:
      FormatError: impossible bytes.
    """
    if len(data) % 4:
        raise FormatError("entropy-coded stream: not a whole number of words")
    return _take_bits(_Popped(np.frombuffer(data, "<u4").astype(np.uint32)), count, width)


def _groups(labels: np.ndarray | None, count: int) -> list:
    """Indices of each label in 0..count-1, in order; labels None: one group of everything."""
    if labels is None:
        return [slice(None)]
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=count))[:-1])


def _row_classes(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rows into ``CLASSES`` equal intervals of the logarithm of their mean magnitude, [R]."""
    if values.size == 0:
        return np.zeros(len(lengths), np.int64)
    total = np.concatenate([[0], np.cumsum(np.abs(values))])
    ends = np.cumsum(lengths)
    mean = (total[ends] - total[ends - lengths] + 0.5) / np.maximum(lengths, 1)
    level = np.log2(np.where(lengths > 0, mean, mean.max()))
    low, high = level.min(), level.max()
    share = (level - low) / max(high - low, 1e-9)
    return np.minimum((share * CLASSES).astype(np.int64), CLASSES - 1)


def _cheapest(counts: np.ndarray, rows: int) -> tuple[int, int, int, np.ndarray]:
    """For the shortest stream: leading bits, row classes, neighbour contexts, and the tables.

    Args:
      counts: [CLASSES, NEIGHBOURS, a] frequencies of the finest symbols.
      rows: R.
    """
    best: tuple[float, int, int, int, np.ndarray] | None = None
    bits_of_delta = -np.log2(_DELTAS / _DELTAS.sum())
    for leading in LEADING:
        coarse, uncoded = _coarser(counts, leading)
        if coarse.shape[-1] > _WIDEST:
            continue
        for used in (1, NEIGHBOURS):
            for classes in (1, 2, 4, 8, CLASSES):
                merged = coarse.reshape(classes, -1, *coarse.shape[1:]).sum(1)
                merged = (merged if used > 1 else merged.sum(1)).reshape(classes * used, -1)
                tables = np.rint(_STEP * np.log2(np.maximum(merged, 1))).astype(np.int64)
                tables = np.where(merged > 0, tables + 1, 0)
                weights = _weights(tables)
                share = weights / np.maximum(weights.sum(1, keepdims=True), 1e-300)
                cost = uncoded - (merged * np.log2(np.where(merged > 0, share, 1.0))).sum()
                cost += bits_of_delta[np.diff(tables, prepend=0) + _SPAN].sum()
                cost += rows * np.log2(classes)
                if best is None or cost < best[0] * _WORTH:
                    best = float(cost), leading, classes, used, tables
    assert best is not None
    return best[1:]


def _coarser(counts: np.ndarray, leading: int) -> tuple[np.ndarray, float]:
    """Frequencies of symbols of fewer leading bits, and how many bits these leave uncoded."""
    fine = np.arange(counts.shape[-1], dtype=np.int32)
    smallest, _, _ = from_symbols(fine, LEADING[-1])
    symbols, widths, _ = to_symbols(np.where(fine & 1, smallest, -smallest), leading)
    merged = np.zeros((*counts.shape[:-1], int(symbols.max()) + 1), counts.dtype)
    for symbol, column in zip(symbols, np.moveaxis(counts, -1, 0), strict=True):
        merged[..., symbol] += column
    large = smallest >= 2 << leading
    return merged, float((counts.sum((0, 1))[large] * widths).sum())


def _contexts(
    classes: np.ndarray, lengths: np.ndarray, neighbours: np.ndarray | None, used: int
) -> np.ndarray | None:
    """Index [n] of each symbol's table; None if there is one table."""
    if used > 1 and neighbours is None:
        raise FormatError("entropy-coded stream: neighbours that are not there")
    if used == 1 and not classes.any():
        return None
    context = np.repeat(classes.astype(np.uint8), lengths)
    return context if used == 1 or neighbours is None else context * np.uint8(used) + neighbours


def _weights(table: np.ndarray) -> np.ndarray:
    """Frequencies, up to a factor, of tables of log2 frequencies; 0 stays 0."""
    octave, quarter = np.divmod(np.maximum(table - 1, 0), _STEP)
    return np.where(table > 0, np.ldexp(_QUARTERS[quarter], octave.astype(np.int32)), 0.0)


def _model(weights: np.ndarray) -> Any:
    """Categorical model; constriction gives a weight of zero the smallest probability it has."""
    if len(weights) < 2 or not weights.any():
        return None
    return _constriction().stream.model.Categorical(weights / weights.sum(), perfect=False)


def _uniform(size: int) -> Any:
    return _constriction().stream.model.Uniform(size) if size > 1 else None


def _add_bits(stack: _Pushed, values: np.ndarray, width: int) -> None:
    for low in range(0, width, _PIECE):
        piece = min(_PIECE, width - low)
        stack.add((values >> low) & ((1 << piece) - 1), _uniform(1 << piece))


def _take_bits(stream: _Popped, count: int, width: int) -> np.ndarray:
    values = np.zeros(count, np.int32)
    for low in range(0, width, _PIECE):
        values |= stream.take(count, _uniform(1 << min(_PIECE, width - low))) << low
    return values


class _Pushed:
    """Symbols in the order of decoding; the coder is a stack, so they go in backwards."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, Any]] = []

    def add(self, symbols: np.ndarray, model: Any) -> None:
        """Symbols [n], which are all 0 if there is no model."""
        if model is not None and symbols.size:
            self._parts.append((np.ascontiguousarray(symbols, np.int32), model))

    def words(self) -> np.ndarray:
        coder = _constriction().stream.stack.AnsCoder()
        for symbols, model in reversed(self._parts):
            coder.encode_reverse(symbols, model)
        return coder.get_compressed()


class _Popped:
    """The same symbols, taken in order."""

    def __init__(self, words: np.ndarray) -> None:
        try:
            self._coder = _constriction().stream.stack.AnsCoder(words)
        except ValueError as error:
            raise FormatError("entropy-coded stream: impossible end") from error

    def take(self, count: int, model: Any) -> np.ndarray:
        """[count] int32"""
        if model is None or count == 0:
            return np.zeros(count, np.int32)
        return self._coder.decode(model, count)


def _constriction() -> Any:
    try:
        import constriction
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "entropy coding needs the package constriction: pip install 'fedprune[codec]'"
        ) from error
    return constriction
