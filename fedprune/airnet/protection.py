"""Unequal protection: how sensitive each layer of a net is, and how many symbols it gets."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedprune import coding, link, local, tree
from fedprune.airnet.lab import Kept, Lab
from fedprune.airnet.settings import LARGEST


def sensitivities(lab: Lab, name: str, how: str, snr_db: float) -> np.ndarray:
    """Of every layer of a net, [seeds, L]: by "hessian" (``coding``) or by "loss"."""
    if how not in lab.sensing:
        lab.sensing[how] = jax.jit(_sensitivity(lab, how))
    return np.asarray(lab.sensing[how](lab.keys, lab.nets[name], jnp.float32(snr_db)))


def _sensitivity(lab: Lab, how: str) -> Callable:
    c, train = lab.config, lab.train_set
    some = slice(None, None, max(1, len(train.labels) // c.curvature_images))
    x = (train.examples[some].astype(jnp.float32) - train.shift[None]) * train.scale[None]
    y = train.labels[some].astype(jnp.int32)

    def of_net(net: tuple[jax.Array, Kept], snr_db: jax.Array) -> jax.Array:
        key, (params, mask) = net

        def losses(layers: list[jax.Array]) -> jax.Array:
            new = iter(layers)
            whole = jax.tree.map(lambda v: next(new) if v.ndim >= 2 else v, params)
            logits = lab.model.apply(tree.apply_mask(mask, whole), x)
            return local.cross_entropy(logits, y)

        layers = [v for v in jax.tree.leaves(params) if v.ndim >= 2]
        if how == "hessian":
            found, _ = coding.hessian_sensitivity(
                key, lambda v: losses(v).mean(), layers, "la", "lanczos", products=c.products
            )
        else:
            sent = link.deviations(params, mask, 1, snr_db, c.downlink.analog.packing)
            found = coding.loss_sensitivity(key, losses, layers, list(sent), 4)
        return jnp.stack(found)

    return lambda keys, nets, snr_db: jax.lax.map(lambda net: of_net(net, snr_db), (keys, nets))


def protect(
    lab: Lab, label: str, name: str, how: str, snr_db: float, uses: float, family: str = "spiral"
) -> np.ndarray:
    """Symbols a weight by unequal protection (P3 Algorithm 2) or "even", as ``expansions``."""
    growth, largest = {"repetition": "add", "spiral": "double"}[family], LARGEST[family]
    net = lab.nets[name]
    leaves = [
        (np.asarray(v), np.asarray(m))
        for v, m in zip(jax.tree.leaves(net.params), jax.tree.leaves(net.mask), strict=True)
        if v.ndim >= 3
    ]
    reals = lab.reals(uses)
    found = []
    values = None if how == "even" else sensitivities(lab, name, how, snr_db)
    for seed in range(lab.seeds):
        sizes = np.array([m[seed].sum() for _, m in leaves])
        energy = np.array([np.square(v[seed] * m[seed]).sum() for v, m in leaves])
        if values is None:
            times = max(1, reals // int(sizes.sum()))
            if growth == "double":
                times = 1 << (times.bit_length() - 1)
            repeats = np.full(len(sizes), min(times, largest))
        else:
            repeats = coding.expansions(values[seed], energy, sizes, reals, growth, largest)
        found.append(repeats)
    lab.log(f"{label}: protection by {how}")
    lab.expansions[label] = np.stack(found).astype(np.int32)
    return lab.expansions[label]
