"""Times coding: model files both ways, and the decoder of spirals.

    taskset -c 0 python -m benchmarks.codec          # files on one core
    python -m benchmarks.codec --spirals             # and 15.2 million weights from their symbols

Files: megabytes (1e6) of float32 parameters a second, each way, for the 2,359,296 normal weights of
a 3×3 convolution with 512 filters, rows of several scales, dense and 90 % pruned; checksums and the
check of what was written are included. Printed by the clock, and in brackets by the time of the
processor: on a busy machine only the latter says something. Spirals: nearest point, 1:2, gamma 1,
5 dB, 15,245,130 weights as in P3's network.
"""

from __future__ import annotations

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from fedprune import coding, payload

WEIGHTS = 15_245_130


def timed(function):
    """Result, seconds on the clock and of the processor; the best of three."""
    best = (float("inf"), float("inf"))
    for _ in range(3):
        clock, processor = time.perf_counter(), time.process_time()
        result = function()
        best = min(best, (time.perf_counter() - clock, time.process_time() - processor))
    return result, *best


def files() -> None:
    """Prints a line for each encoding, width and sparsity."""
    rng = np.random.default_rng(0)
    scales = np.exp(0.3 * rng.normal(size=512))
    weights = {"kernel": (0.02 * scales * rng.normal(size=(3, 3, 512, 512))).astype(np.float32)}
    megabytes = weights["kernel"].nbytes / 1e6
    print(f"{'':24} {'bytes/weight':>12} {'write MB/s':>18} {'read MB/s':>18}")
    for sparsity in (0.0, 0.9):
        threshold = np.quantile(np.abs(weights["kernel"]), sparsity)
        mask = {"kernel": np.abs(weights["kernel"]) > threshold} if sparsity else None
        for encoding in ("dense", "bitmap", "entropy"):
            for bits in (32, 8):
                write = lambda e=encoding, b=bits, m=mask: payload.to_bytes(weights, m, e, b)
                data, *write_seconds = timed(write)
                _, *read_seconds = timed(lambda d=data: payload.from_bytes(d))
                rates = [
                    f"{megabytes / clock:8.1f} ({megabytes / processor:6.1f})"
                    for clock, processor in (write_seconds, read_seconds)
                ]
                name = f"{encoding} {bits} bit, {100 * sparsity:.0f} %"
                print(f"{name:24} {len(data) / weights['kernel'].size:12.3f} {rates[0]} {rates[1]}")


def spirals() -> None:
    """Prints the seconds of one decoding of all weights."""
    code = coding.spiral(1.0)
    variance = jnp.float32(10**-0.5)

    @jax.jit
    def receive(key):
        weights, noise = jax.random.split(key)
        symbols = code.encode(jax.random.normal(weights, (WEIGHTS,)))
        return symbols + jnp.sqrt(variance) * jax.random.normal(noise, symbols.shape)

    received = receive(jax.random.key(0)).block_until_ready()
    decode = jax.jit(code.decode)
    decode(received, variance).block_until_ready()
    _, clock, processor = timed(lambda: decode(received, variance).block_until_ready())
    print(f"spirals: {WEIGHTS} weights in {clock:.1f} s ({processor:.1f} s of all cores)")


if __name__ == "__main__":
    files()
    if "--spirals" in sys.argv[1:]:
        spirals()
