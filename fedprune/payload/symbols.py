"""Signed integers as symbols of a small alphabet, and the bits that these leave out.

Magnitudes below 2^(l+1) have a symbol each. A larger one shares its symbol with the integers that
have the same l + 1 leading bits; the other bits follow uncoded. Positive m has symbol 2 m - 1,
negative 2 m.
"""

from __future__ import annotations

import numpy as np

LARGEST = 2**31 - 1
"""largest magnitude"""
LEADING = (2, 4, 8)
"""choices of l: small tables, or exact ones"""


def to_symbols(values: np.ndarray, leading: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Symbols [n]; of large magnitudes the number and the value of the bits that they leave out."""
    magnitude = np.abs(values)
    large = np.flatnonzero(magnitude >= 2 << leading)
    m = magnitude[large]
    width = _log2(m) - leading
    symbols = 2 * magnitude - (values > 0)
    symbols[large] = 2 * ((width << leading) + (m >> width)) - (values[large] > 0)
    return symbols, width.astype(np.uint8), m & ((1 << width) - 1)


def from_symbols(symbols: np.ndarray, leading: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Magnitudes [n] without the bits left out; where these are and how many."""
    magnitude = (symbols + 1) >> 1
    large = np.flatnonzero(magnitude >= 2 << leading)
    width = (magnitude[large] >> leading) - 1
    magnitude[large] = (magnitude[large] - (width << leading)) << width
    return magnitude, large, width.astype(np.uint8)


def _log2(positive: np.ndarray) -> np.ndarray:
    """floor(log2), exactly, from the exponent of a float64."""
    bits = positive.astype(np.float64).view(np.int64)
    return ((bits >> 52) - 1023).astype(np.int32)
