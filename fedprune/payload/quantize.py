"""Weights as integers: uniform quantisation, and floats taken apart without loss.

    b < 32   level = round(w / scale), scale = max|w| / (2^(b-1) - 1)    |error| <= scale / 2
    b = 32   sign and exponent as a signed integer, mantissa as bits     exact, for any bits

The first bound is widened by the rounding of float32, at most 2^-23 max|w|.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

BITS = (32, 16, 8, 4)
FLOATS = {"float32": 23, "float16": 10, "bfloat16": 7}
"""dtype -> bits of the mantissa"""


def dtype_of(name: str) -> np.dtype:
    """NumPy's dtype of one of ``FLOATS``."""
    return np.dtype(jnp.bfloat16 if name == "bfloat16" else name)


def quantize(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.float32]:
    """Levels int32 in +-(2^(bits-1) - 1), and the scale (0 if all values are 0).

    Raises:
      ValueError: NaN or infinity.
    """
    wide = np.asarray(values, np.float32)
    largest = np.abs(wide).max(initial=0.0)
    if not np.isfinite(largest):
        raise ValueError(f"weights that are not finite need 32 bits, not {bits}")
    top = 2 ** (bits - 1) - 1
    scale = np.float32(largest / top)
    if scale == 0:
        return np.zeros(wide.shape, np.int32), np.float32(0.0)
    return np.clip(np.rint(wide / scale), -top, top).astype(np.int32), scale


def dequantize(levels: np.ndarray, scale: np.float32, dtype: np.dtype) -> np.ndarray:
    """level times scale, in float32 and then in ``dtype``."""
    return (levels.astype(np.float32) * scale).astype(dtype)


def split(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed exponents +-(1 + E) int32 and mantissas int32 of floats."""
    mantissa = FLOATS[values.dtype.name]
    width = 8 * values.dtype.itemsize
    pattern = values.view(f"u{values.dtype.itemsize}").astype(np.int64)
    exponent = ((pattern >> mantissa) & ((1 << (width - 1 - mantissa)) - 1)) + 1
    signed = np.where(pattern >> (width - 1), -exponent, exponent)
    return signed.astype(np.int32), (pattern & ((1 << mantissa) - 1)).astype(np.int32)


def join(exponents: np.ndarray, mantissas: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The floats that ``split`` took apart."""
    mantissa, width = FLOATS[dtype.name], 8 * dtype.itemsize
    exponent = np.abs(exponents.astype(np.int64)) - 1
    pattern = (exponent << mantissa) | mantissas | ((exponents < 0).astype(np.int64) << (width - 1))
    return pattern.astype(f"u{dtype.itemsize}").view(dtype)
