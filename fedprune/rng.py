"""Randomness is addressed, not threaded.

Every random number has an address, (root key, name of the stream, round, client id, ...), so a
result does not depend on how clients are spread over devices or in which order things are drawn.
"""

from __future__ import annotations

import zlib

import jax

from fedprune.types import Key


def stream(root: Key, name: str, *address: jax.Array | int) -> Key:
    """The key at an address.

    Args:
      root: key of the run (one per arm and seed).
      name: which random quantity, for example "cohort" or "noise".
      address: integers, for example (round, client id); may be traced.
    """
    key = jax.random.fold_in(root, zlib.crc32(name.encode()) & 0x7FFFFFFF)
    for number in address:
        key = jax.random.fold_in(key, number)
    return key
