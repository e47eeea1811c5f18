"""Structured pruning: whole filters and neurons, with all weights that belong to them.

A *unit* is a filter or a neuron of a hidden layer. With it go its kernel, its bias, what a norm
keeps for its channel, and the inputs of the next layer that it feeds. So a mask over units says
which smaller dense model is left, and needs no positions to be sent. While training the mask is
applied as any other, and shapes stay; ``shrink`` makes the smaller model at the end.

Which leaves belong together is a ``Units`` for each hidden layer, from

  chain   networks whose layers follow one another (mlp, cnn, signal, vgg): all hidden layers
  blocks  ResNets: the first convolution of each block only, so that the channels of all blocks of
          a stage stay the same (P3 section VII-A)

Source: P3 section IV-B; the l1 norm of a filter as its score: Li et al., Pruning Filters for
Efficient ConvNets, 2017.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedprune import check, tree
from fedprune.prune.schedule import Schedule, checked, sparsity_of
from fedprune.types import SCOPES, Before, Mask, Params, Pruner

DISTRIBUTIONS = ("global", "layer")


class Units(NamedTuple):
    """The units of one hidden layer."""

    size: int
    """how many"""
    kernel: str
    """path of the kernel whose last axis they are, and whose weights score them"""
    members: tuple[tuple[str, int], ...]
    """(path, axis) of every leaf that they own slices of, the kernel too. An axis may be a multiple
    of ``size``: index i belongs to unit i mod size, as in flattened [h, w, c] activations"""


Structure = Callable[[Params], tuple[Units, ...]]
"""params, or their shapes -> the units of each layer that may lose some"""


def chain(params: Params) -> tuple[Units, ...]:
    """Units of a network whose kernels, in the natural order of their names, follow one another.

    Raises:
      ValueError: a kernel whose inputs are no multiple of the outputs before it, or of
        several layers.
    """
    leaves = _leaves(params)
    kernels = sorted((p for p, leaf in leaves.items() if tree.is_kernel(p, leaf)), key=_natural)
    found = []
    for here, after in itertools.pairwise(kernels):
        size, inputs = leaves[here].shape[-1], leaves[after].shape[-2]
        if inputs % size:
            raise ValueError(f"chain: {here} has {size} outputs, but {after} {inputs} inputs")
        owned = [(here, -1), *_beside(leaves, here), (after, -2)]
        found.append(Units(size, here, tuple(owned)))
    return tuple(found)


def blocks(params: Params) -> tuple[Units, ...]:
    """Units of the first convolution of each block of a ResNet (``models.resnet``).

    With batch norm a masked unit is the same as none. Group norm takes statistics over groups of
    channels, masked ones too: masks work, but a smaller model is another function.

    Raises:
      ValueError: a network without such blocks.
    """
    leaves = _leaves(params)
    firsts = sorted((p for p in leaves if p.endswith("/conv1/kernel")), key=_natural)
    if not firsts:
        raise ValueError("blocks: the network has no residual blocks")
    found = []
    for kernel in firsts:
        block = kernel.removesuffix("conv1/kernel")
        norm = [(path, -1) for path in leaves if path.startswith(f"{block}norm1/")]
        owned = [(kernel, -1), *norm, (f"{block}conv2/kernel", -2)]
        found.append(Units(leaves[kernel].shape[-1], kernel, tuple(owned)))
    return tuple(found)


def structured(
    schedule: Schedule,
    structure: Structure,
    distribution: str = "global",
    scope: str = "server",
) -> Pruner:
    """Prunes the units of lowest l1 norm as a schedule says.

    The sparsity s counts *weights*, of all d of the model: units go, the lowest score first, until
    at most d (1 - s) weights are left. Of every layer the best unit stays, so the model may be
    larger where s asks for too much.

    Args:
      schedule: round -> s.
      structure: ``chain`` or ``blocks``.
      distribution: "global" ranks all units together, by the mean of |w| over their kernel, which
        ranks the units of one layer as their l1 norm does; "layer" by their rank in their own
        layer over its size, so that all layers lose the same share.
      scope: as for ``scheduled``.

    Raises:
      ValueError: an unknown distribution or scope.
    """
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution={distribution!r} is not one of {DISTRIBUTIONS}")
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r} is not one of {SCOPES}")
    checked(schedule)
    check.function("structure", structure)
    nested = scope == "server"

    def init(params: Params) -> Mask:
        return jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)

    def update(state: Mask, before: Before) -> tuple[Mask, Mask]:
        params = before.params
        units = structure(params)
        alive = kept_units(units, state)
        total = sum(p.size for p in jax.tree.leaves(params))
        limit = jnp.floor(total * (1.0 - sparsity_of(schedule, before.round))).astype(jnp.int32)
        kept = _select(units, params, alive if nested else None, distribution, limit)
        mask = tree.match(mask_of(units, kept, params))
        return mask, mask if nested else state

    return Pruner(init, update, scope)


def mask_of(units: tuple[Units, ...], kept: list[jax.Array], params: Params) -> Mask:
    """The mask of a model of which ``kept`` [size] bool of each layer's units are left."""
    owners = _owners(units)

    def of_leaf(path, leaf) -> jax.Array:
        mask = jnp.ones(leaf.shape, bool)
        for axis, i in owners.get(tree.path_name(path), ()):
            along = jnp.tile(kept[i], leaf.shape[axis] // units[i].size)
            shape = [1] * leaf.ndim
            shape[axis] = leaf.shape[axis]
            mask &= along.reshape(shape)
        return mask

    return jax.tree_util.tree_map_with_path(of_leaf, params)


def kept_units(units: tuple[Units, ...], mask: Mask) -> list[jax.Array]:
    """Which units of each layer are left, [size] bool each."""
    leaves = _leaves(mask)
    return [leaves[u.kernel].reshape(-1, u.size).any(0) for u in units]


def widths(units: tuple[Units, ...], mask: Mask) -> list[int]:
    """How many units of each layer are left: the widths of the smaller model, on the host."""
    return [int(np.asarray(kept).sum()) for kept in kept_units(units, mask)]


def shrink(units: tuple[Units, ...], params: Params, mask: Mask) -> Params:
    """The weights of the smaller dense model, on the host: pruned units are cut out.

    It is the same function as ``params`` under the mask, for a network built with ``widths``.

    Args:
      units: of the model that was pruned, such as ``chain(params)``.
      params: its weights.
      mask: a mask of whole units.
    """
    kept = [np.asarray(k) for k in kept_units(units, mask)]
    owners = _owners(units)

    def of_leaf(path, leaf) -> np.ndarray:
        smaller = np.asarray(leaf)
        for axis, i in owners.get(tree.path_name(path), ()):
            along = np.tile(kept[i], leaf.shape[axis] // units[i].size)
            smaller = np.compress(along, smaller, axis)
        return smaller

    return jax.tree_util.tree_map_with_path(of_leaf, tree.apply_mask(mask, params))


def _select(
    units: tuple[Units, ...],
    params: Params,
    alive: list[jax.Array] | None,
    distribution: str,
    limit: jax.Array,
) -> list[jax.Array]:
    """Which units stay, [size] bool for each layer: as many of the best as ``limit`` allows."""
    leaves = _leaves(params)
    scores = []
    for i, u in enumerate(units):
        score = jnp.abs(leaves[u.kernel]).reshape(-1, u.size).mean(0)
        if distribution == "layer":
            score = (jnp.argsort(jnp.argsort(score)) + 1).astype(jnp.float32) / u.size
        if alive is not None:
            score = jnp.where(alive[i], score, -1.0)
        scores.append(score.at[jnp.argmax(score)].set(jnp.inf))
    ranked = jnp.concatenate(scores)
    layer = np.repeat(np.arange(len(units)), [u.size for u in units])
    order = jnp.argsort(-ranked)
    chosen = jax.nn.one_hot(jnp.asarray(layer)[order], len(units), dtype=jnp.int32)
    # Of each layer, how many units are among the best k; and the weights of that model.
    among = jnp.concatenate([jnp.zeros((1, len(units)), jnp.int32), jnp.cumsum(chosen, 0)])
    owners = _owners(units)
    count = sum(_left(leaf, owners.get(path, []), units, among) for path, leaf in leaves.items())
    best = jnp.sum(count <= limit) - 1
    best = jnp.maximum(best, len(units))
    position = jnp.zeros(len(layer), jnp.int32).at[order].set(jnp.arange(len(layer)))
    kept = position < best
    if alive is not None:
        kept &= jnp.concatenate(alive)
    ends = np.cumsum([u.size for u in units])
    return [kept[end - u.size : end] for u, end in zip(units, ends, strict=True)]


def _left(
    leaf: jax.Array, owned: list[tuple[int, int]], units: tuple[Units, ...], among: jax.Array
) -> jax.Array:
    """Weights of a leaf that are left with ``among`` [k, layers] units of each layer, [k] int32."""
    of_one = leaf.size // math.prod(units[i].size for _, i in owned)
    layers = np.array([i for _, i in owned], int)
    return of_one * jnp.prod(among[:, layers], 1, dtype=jnp.int32)


def _owners(units: tuple[Units, ...]) -> dict[str, list[tuple[int, int]]]:
    """path -> (axis, number of the layer whose units own slices along it)."""
    owners: dict[str, list[tuple[int, int]]] = {}
    for i, u in enumerate(units):
        for path, axis in u.members:
            owners.setdefault(path, []).append((axis, i))
    return owners


def _leaves(values: Params) -> dict:
    flat = jax.tree_util.tree_flatten_with_path(values)[0]
    return {tree.path_name(path): leaf for path, leaf in flat}


def _beside(leaves: dict, kernel: str) -> list[tuple[str, int]]:
    """The bias of a kernel's layer, if it has one."""
    bias = kernel.removesuffix("kernel") + "bias"
    if bias in leaves and leaves[bias].ndim != 1:
        raise ValueError(
            f"chain: {bias} {leaves[bias].shape} is of several layers or heads at once"
        )
    return [(bias, -1)] if bias in leaves else []


def _natural(path: str) -> list[tuple[str, int]]:
    """Names in their order, numbers by value: conv2 before conv10."""
    return [(word, int(number or 0)) for word, number in re.findall(r"(\D+)(\d*)", path)]
