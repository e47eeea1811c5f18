"""Bytes of a pruned ResNet18 in every encoding and in real files, beside P0's.

    python -m experiments.model_sizes

Prints, in about a minute on a CPU, a Markdown table in MB (1e6 bytes) for global magnitude masks of
0, 30, 50, 70 and 90 % on the 11,164,352 kernel weights of the ResNet18 for CIFAR, as initialised
with seed 0. Only ``gzipped`` and the entropy-coded files depend on the weights' values; trained
ones compress much the same, for a float32's lower bits are noise. ``entropy_bound`` and ``csr``
depend on the mask beyond its ratio by next to nothing. The rows "file" are sizes of files
(``payload.to_bytes``, which needs the extra "codec") with all that it takes to read them: header,
names, masks, checksums. Below 32 bits they hold rounded weights. P0 prints 44.65, 32.73, 22.39,
13.28 and 4.78 MB and does not say how a pruned model is encoded: the last column is the root mean
square of the difference to these.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedprune import models, payload, prune
from fedprune import report as rp
from fedprune.types import Before

PAPER = {0.0: 44.65, 0.3: 32.73, 0.5: 22.39, 0.7: 13.28, 0.9: 4.78}
"""ratio -> MB"""
MEANING = {
    "dense": "dense float32",
    "values": "values only",
    "bitmap": "values + bitmap",
    "entropy_bound": "values + entropy of the mask (bound)",
    "indices": "values + packed indices",
    "coo": "COO, int32",
    "csr": "CSR, int32",
    "gzipped": "gzip of the dense masked weights",
}
FILES = {
    "file: dense, 32 bit": ("dense", 32),
    "file: bitmap, 32 bit": ("bitmap", 32),
    "file: entropy-coded, 32 bit": ("entropy", 32),
    "file: entropy-coded, 16 bit": ("entropy", 16),
    "file: entropy-coded, 8 bit": ("entropy", 8),
    "file: entropy-coded, 4 bit": ("entropy", 4),
}
"""row -> encoding and bits"""


def megabytes(seed: int = 0) -> dict[str, dict[float, float]]:
    """MB by encoding or file, and ratio."""
    params = payload.kernels(models.resnet18().init(jax.random.key(seed)))[0]

    @jax.jit
    def mask(params, ratio):  # an argument: as a constant it would be folded, slowly
        pruner = prune.scheduled(prune.constant(ratio), scope="client")
        before = Before(jax.random.key(0), jnp.int32(0), params, None)
        return pruner.update(pruner.init(params), before)[0]

    masks = {ratio: mask(params, jnp.float32(ratio)) if ratio else None for ratio in PAPER}
    found = payload.table(params, masks)
    for name, (encoding, bits) in FILES.items():
        found[name] = {
            ratio: float(len(payload.to_bytes(params, kept, encoding, bits)))
            for ratio, kept in masks.items()
        }
    return {name: {r: size / 1e6 for r, size in row.items()} for name, row in found.items()}


def main() -> None:
    """Prints the table."""
    header = ["MB", *(f"{100 * ratio:g} %" for ratio in PAPER), "RMSE to P0"]
    body = [["P0", *(f"{size:.2f}" for size in PAPER.values()), "–"]]
    for name, row in megabytes().items():
        error = np.sqrt(np.mean([(row[ratio] - PAPER[ratio]) ** 2 for ratio in PAPER]))
        sizes = [f"{row[ratio]:.2f}" for ratio in PAPER]
        body.append([MEANING.get(name, name), *sizes, f"{error:.2f}"])
    print(rp.table(header, body))


if __name__ == "__main__":
    main()
