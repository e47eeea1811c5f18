"""Digital delivery: models as bitstreams of any size, and the best that fits through the channel.

Of three kinds: pruned, quantised and entropy-coded, as DeepCABAC does; refined bit plane by bit
plane, the idea of SuRP; and small dense nets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedprune import channel, payload, prune, rng, tree
from fedprune.airnet.delivery import clean
from fedprune.airnet.lab import Kept, Lab, Net, stacked
from fedprune.airnet.training import pruned, train
from fedprune.payload import tensors

DIGITAL = {
    "entropy": "pruned, 4 or 8 bits, entropy-coded",
    "refined": "successive refinement",
    "small": "small dense, 4 or 8 bits",
}
Curves = list[dict[str, tuple[np.ndarray, np.ndarray]]]
"""for each seed: method -> (increasing sizes in bits, the best accuracy that fits in each)"""


def digital(lab: Lab, shares: Sequence[float], widths: Sequence[float]) -> Curves:
    """Bits and accuracies of models as bitstreams, for each seed.

    Nets are pruned weight by weight to ``shares``, fine-tuned with the teacher and without noise,
    then quantised and entropy-coded ("entropy"), or refined bit plane by bit plane ("refined").
    Small dense nets ("small") have ``widths`` of the units of every layer and learn from their
    first step on, with the teacher and as many steps as dense training and pruning take; they are
    quantised and coded without a mask. Accuracies are of what a decoder returns; the receiver
    knows shapes and has the biases.
    """
    sparse = [Net(f"sparse-{share:g}", share=share) for share in shares]
    pruned(lab, "digital", sparse, single=True)
    small = [Net(f"small-{width:g}") for width in widths]
    start = {f"small-{width:g}": _narrow(lab, width) for width in widths}
    for stage, length in (("small-first", 0), ("small", lab.config.run.rounds)):
        train(lab, stage, small, start, length=length)
        start = {net.name: lab.nets[net.name] for net in small}
    entries: list[tuple[int, str, int, Any]] = []
    for seed in range(lab.seeds):
        for net, of_net in [(n, streams) for n in sparse] + [(n, small_streams) for n in small]:
            one = jax.tree.map(lambda v, s=seed: np.asarray(v[s]), lab.nets[net.name])
            entries += [(seed, *entry) for entry in of_net(*one)]
    lab.log(f"{len(entries)} digital models coded")
    params = stacked([params for *_, params in entries])
    accuracies = clean(lab, params, jax.tree.map(lambda p: jnp.ones(p.shape, bool), params))
    measured = [
        (seed, method, bits, a)
        for (seed, method, bits, _), a in zip(entries, accuracies, strict=True)
    ]
    return [
        {
            m: _best([(bits, a) for s, n, bits, a in measured if (s, n) == (seed, m)])
            for m in DIGITAL
        }
        for seed in range(lab.seeds)
    ]


def _best(points: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Increasing sizes, and the best accuracy that fits in each."""
    points = sorted(points)
    sizes, first = np.unique([bits for bits, _ in points], return_index=True)
    best = np.maximum.accumulate([a for _, a in points])
    last = np.append(first[1:], len(points)) - 1
    return sizes, best[last]


def _narrow(lab: Lab, width: float) -> Kept:
    """Untrained nets with a share of the units of each layer.

    Their kernels have the variance that their own, smaller, number of inputs asks for.
    """
    units = lab.structure(lab.shapes)
    kept = [jnp.arange(u.size) < max(1, round(width * u.size)) for u in units]
    mask = prune.mask_of(units, kept, lab.shapes)

    def init(key: jax.Array) -> Kept:
        params = lab.model.init(rng.stream(key, "init"))
        scaled = lambda p, m: p * jnp.sqrt(m.shape[-2] / m.any((*range(m.ndim - 2), -1)).sum())
        wide = jax.tree.map(lambda p, m: scaled(p, m) if p.ndim >= 2 else p, params, mask)
        return Kept(tree.apply_mask(mask, wide), mask)

    return jax.jit(jax.vmap(init))(lab.keys)


def streams(params: Any, mask: Any) -> list[tuple[str, int, Any]]:
    """(method, bits, decoded params) of a sparse model's kernels in every rate considered."""
    leaves, treedef = jax.tree.flatten(params)
    masks = jax.tree.leaves(mask)
    found = [("entropy", *_coded(params, mask, bits, small=False)) for bits in (4, 8)]
    kernels = [np.where(m, v, 0) for v, m in zip(leaves, masks, strict=True) if v.ndim >= 2]
    flat = np.concatenate([k.reshape(-1) for k in kernels])
    lengths = np.array([k.size for k in kernels])
    chunks = payload.refine(flat, lengths, 8)
    for passes in range(2, len(chunks) + 1):
        weights = payload.restore(chunks[:passes], lengths)
        parts = iter(np.split(weights, np.cumsum(lengths)[:-1]))
        decoded = [next(parts).reshape(v.shape) if v.ndim >= 2 else v for v in leaves]
        size = 8 * sum(map(len, chunks[:passes]))
        found.append(("refined", size, jax.tree.unflatten(treedef, decoded)))
    return found


def small_streams(params: Any, mask: Any) -> list[tuple[str, int, Any]]:
    """(method, bits, decoded params) of a model of fewer units: what is left of its kernels."""
    return [("small", *_coded(params, mask, bits, small=True)) for bits in (4, 8)]


def _coded(params: Any, mask: Any, bits: int, small: bool) -> tuple[int, Any]:
    """(bits, decoded params) of entropy-coded kernels: with their masks, or, if ``small``, without
    them and without the units that they leave out."""
    leaves, treedef = jax.tree.flatten(params)
    size, decoded = 0, []
    for v, m in zip(leaves, jax.tree.leaves(mask), strict=True):
        if v.ndim < 2:
            decoded.append(v)
            continue
        axes = range(v.ndim)
        whole: Any = ...
        left = np.ix_(*(m.any(tuple(a for a in axes if a != b)) for b in axes)) if small else whole
        kept = v[left]
        code, scale = tensors.encode(kept, None if small else m, "entropy", bits)
        size += 8 * len(code) + 32
        back = np.zeros_like(v)
        back[left], _ = tensors.decode(code, kept.shape, v.dtype, not small, "entropy", bits, scale)
        decoded.append(back)
    return size, jax.tree.unflatten(treedef, decoded)


def digital_accuracies(
    curves: Sequence[Mapping[str, tuple[np.ndarray, np.ndarray]]],
    method: str,
    snr_db: float,
    uses: float,
    fading: str = "none",
) -> np.ndarray:
    """Accuracies in percent of every seed: at capacity (AWGN and "csit"), or at the best fixed rate
    without channel knowledge at the transmitter ("outage")."""
    snr = 10 ** (snr_db / 10)
    found = []
    for seed in curves:
        sizes, accuracies = seed[method]
        curve = channel.step_curve(sizes, accuracies)
        if fading == "none":
            value = curve(uses * channel.capacity(snr))
        elif fading == "csit":
            value = channel.adaptive_rate(snr, uses, curve)
        else:
            rates = jnp.asarray(np.nextafter(sizes.astype(np.float32) / uses, np.inf), jnp.float32)
            value = channel.fixed_rate(rates * 1.000001, snr, uses, curve).max()
        found.append(float(value))
    return np.array(found)
