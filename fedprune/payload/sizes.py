"""Sizes in bytes of a masked model, of which d weights in all and k kept.

Weights are float32, 4 bytes each, and only kept ones are sent unless it says otherwise:

    dense           4 d                           all weights, zeros included
    values          4 k                           the receiver knows the mask
    bitmap          4 k + ceil(d / 8)             one bit a weight says whether it is kept
    entropy_bound   4 k + d H(k / d) / 8          H(p) = -p log2 p - (1 - p) log2(1 - p)
    indices         4 k + ceil(k ceil(log2 d) / 8)   the position of each kept weight, packed
    coo             8 k                           the same with int32 positions
    csr             8 k + 4 (rows + 1)            int32 columns and row starts, for each array
    gzipped         of dense                      measured, not computed: zlib at level 6

``entropy_bound`` is what an ideal coder needs for a mask of independent bits whose share k / d both
sides know; a real coder needs a little more, and one that knows which layers are sparser less. For
``csr``, an array is a matrix whose rows are its output features (the last axis), as convolution
kernels are stored elsewhere; a bias is one column.

Every function takes the weights and their mask as pytrees, counts all leaves, those that are never
pruned too, and runs on the host. Mask None is an unpruned model, known to be such, which needs no
bitmap and no positions: all encodings but ``gzipped`` are then 4 d. ``kernels`` picks the leaves
that P0's sizes are about. A megabyte (MB) is 1e6 bytes. P0 names no encoding, and no single one of
these gives all its sizes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import jax
import numpy as np

from fedprune import tree
from fedprune.types import Mask, Params

WORD = 4
"""bytes of a float32 and of an int32"""
LEVEL = 6
"""zlib's level of compression"""
_GZIP = 31
"""zlib's code for a gzip header and trailer around the largest window"""


def dense(params: Params, mask: Mask) -> int:
    """All weights, zeros included."""
    return WORD * _total(params)


def values(params: Params, mask: Mask) -> int:
    """The kept weights alone, for a receiver that knows the mask."""
    return WORD * _kept(params, mask)


def bitmap(params: Params, mask: Mask) -> int:
    """The kept weights, and one bit for every weight."""
    return values(params, mask) + (0 if mask is None else _bytes(_total(params)))


def entropy_bound(params: Params, mask: Mask) -> float:
    """The kept weights, and the mask's order-0 entropy, below which no code of single bits goes."""
    d, k = _total(params), _kept(params, mask)
    bits = -sum(n * math.log2(n / d) for n in (k, d - k) if n)
    return values(params, mask) + bits / 8


def indices(params: Params, mask: Mask) -> int:
    """The kept weights, and the position of each in ceil(log2 d) bits, packed without gaps."""
    width = 0 if mask is None else max(_total(params) - 1, 0).bit_length()
    return values(params, mask) + _bytes(_kept(params, mask) * width)


def coo(params: Params, mask: Mask) -> int:
    """The kept weights, and an int32 position of each in the flat vector of all weights.

    Raises:
      ValueError: more weights than an int32 can count.
    """
    if _total(params) > 2**31:
        raise ValueError(f"coo: {_total(params)} weights, but int32 indices reach {2**31}")
    return values(params, mask) * (1 if mask is None else 2)


def csr(params: Params, mask: Mask) -> int:
    """Compressed sparse rows of every array, with int32 columns and row starts."""
    if mask is None:
        return dense(params, mask)
    rows = sum((leaf.shape[-1] if leaf.ndim else 1) + 1 for leaf in jax.tree.leaves(params))
    return 2 * values(params, mask) + WORD * rows


def gzipped(params: Params, mask: Mask) -> int:
    """gzip of all weights' bytes (float32, little-endian, leaf after leaf), zeros where pruned.

    Takes about a second for 10 MB.
    """
    coder = zlib.compressobj(LEVEL, zlib.DEFLATED, _GZIP)
    size = 0
    for leaf, kept in _pairs(params, mask):
        masked = np.where(kept, np.asarray(leaf), 0)
        size += len(coder.compress(masked.astype("<f4").tobytes()))
    return size + len(coder.flush())


def sizes(params: Params, mask: Mask) -> dict[str, float]:
    """Bytes in every encoding, by the name of its function."""
    encodings = (dense, values, bitmap, entropy_bound, indices, coo, csr, gzipped)
    return {encode.__name__: float(encode(params, mask)) for encode in encodings}


def table(params: Params, masks: Mapping[float, Mask]) -> dict[str, dict[float, float]]:
    """Bytes by encoding, and in it by the pruning ratio to which each mask belongs."""
    columns = {ratio: sizes(params, mask) for ratio, mask in masks.items()}
    names = next(iter(columns.values()), {})
    return {name: {ratio: column[name] for ratio, column in columns.items()} for name in names}


def kernels(params: Params, mask: Mask = None) -> tuple[list, Mask]:
    """Matrices and filters alone, of the weights and of their mask: without biases and norms."""
    chosen = jax.tree.leaves(tree.kernels(params))
    pairs = [pair for pair, c in zip(_pairs(params, mask), chosen, strict=True) if c]
    leaves = [leaf for leaf, _ in pairs]
    return leaves, None if mask is None else [kept for _, kept in pairs]


def _pairs(params: Params, mask: Mask) -> list[tuple]:
    leaves = jax.tree.leaves(params)
    if mask is None:
        return [(leaf, True) for leaf in leaves]
    pairs = list(zip(leaves, jax.tree.leaves(mask), strict=True))
    for leaf, kept in pairs:
        if leaf.shape != kept.shape:
            raise ValueError(f"mask: {kept.shape} for weights of shape {leaf.shape}")
    return pairs


def _total(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _kept(params: Params, mask: Mask) -> int:
    if mask is None:
        return _total(params)
    return sum(int(np.count_nonzero(np.asarray(kept))) for _, kept in _pairs(params, mask))


def _bytes(bits: int) -> int:
    return -(-bits // 8)
