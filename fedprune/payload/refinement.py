"""Successive refinement: a stream of which every prefix is a model, sparse first and exact later.

With T_0 = max|w| and thresholds T_p = T_0 / 2^p, pass p = 1, 2, ... sends

  1. for every weight that is still zero, whether |w| > T_p, and its sign if so (entropy-coded)
  2. for every weight found in earlier passes, in which half of its interval it lies

After pass p a weight that was found is the middle of an interval of length T_p, and the others are
zero: the error is at most T_p / 2 for the former and T_p for the latter. So pruning, quantisation
and rate control are one thing, the pass where the stream is cut, and a receiver with a better
channel reads on.

This is the idea of SuRP (B. Isik, T. Weissman, A. No, "An information-theoretic justification for
model pruning", AISTATS 2022), P3's second digital baseline: largest weights first, each pass
refining the last. SuRP sends one index at a time under a Laplacian law whose parameter shrinks;
here a pass sends bit planes, whose thresholds halve, under measured frequencies, so it needs no law
of the weights.
"""

from __future__ import annotations

import struct

import numpy as np

from fedprune.payload import entropy
from fedprune.payload.entropy import FormatError

_START = struct.Struct("<f")
_LENGTH = struct.Struct("<I")
PASSES = 20
"""at most: then float32 weights are nearly exact"""


def refine(values: np.ndarray, lengths: np.ndarray, passes: int) -> list[bytes]:
    """A chunk for each pass; the first one also holds T_0.

    Args:
      values: [n] finite floats, row after row.
      lengths: [R] length of each row; they add up to n.
      passes: 1 to ``PASSES``.

    Raises:
      ValueError: passes out of range, or weights that are not finite.
      ModuleNotFoundError: without the extra "codec".
    """
    if not 1 <= passes <= PASSES:
        raise ValueError(f"passes={passes} must lie between 1 and {PASSES}")
    values = np.asarray(values, np.float32)
    if not np.isfinite(values).all():
        raise ValueError("weights that are not finite cannot be refined")
    top = np.float32(np.abs(values).max(initial=0.0))
    magnitude = np.abs(values).astype(np.float64)
    low, found = np.zeros(values.shape), np.zeros(values.shape, bool)
    chunks = []
    for p in range(1, passes + 1):
        step = float(top) / 2**p
        new = ~found & (magnitude > step)
        upper = magnitude[found] > low[found] + step
        low[found] += step * upper
        low[new] = step
        signed = np.where(new, np.where(values < 0, -1, 1), 0)[~found]
        coded = entropy.encode(signed, _left(found, lengths))
        chunk = _LENGTH.pack(len(coded)) + coded + np.packbits(upper).tobytes()
        chunks.append((_START.pack(top) if p == 1 else b"") + chunk)
        found |= new
    return chunks


def restore(chunks: list[bytes], lengths: np.ndarray) -> np.ndarray:
    """The weights [n] float32 after the passes of ``chunks``, any number of the first ones.

    Raises:
      FormatError: impossible bytes.
    """
    count = int(np.sum(lengths))
    low, sign = np.zeros(count), np.zeros(count, np.int8)
    top = step = 0.0
    for p, chunk in enumerate(chunks, 1):
        if p == 1:
            if len(chunk) < _START.size:
                raise FormatError("refinement: shorter than its header")
            top = _START.unpack_from(chunk)[0]
            chunk = chunk[_START.size :]
        if p > PASSES or len(chunk) < _LENGTH.size or not 0 <= top < np.inf:
            raise FormatError(f"refinement: impossible pass {p}")
        end = _LENGTH.size + _LENGTH.unpack_from(chunk)[0]
        step = top / 2**p
        found = sign != 0
        old = int(np.count_nonzero(found))
        signed = entropy.decode(chunk[_LENGTH.size : end], _left(found, lengths))
        if len(chunk) - end != -(-old // 8) or np.abs(signed).max(initial=0) > 1:
            raise FormatError(f"refinement: impossible pass {p}")
        upper = np.unpackbits(np.frombuffer(chunk, np.uint8, offset=end), count=old)
        low[found] += step * upper
        where = np.flatnonzero(~found)
        sign[where] = signed
        low[where[signed != 0]] = step
    return (sign * (low + step / 2)).astype(np.float32)


def _left(found: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """How many weights of each row are still zero."""
    before = np.concatenate([[0], np.cumsum(~found)])
    ends = np.cumsum(lengths)
    return before[ends] - before[ends - lengths]
