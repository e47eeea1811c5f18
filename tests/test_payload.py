"""Sizes against what SciPy's formats, packed bits and gzip really take, and the paper's table."""

import gzip
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.stats

from experiments import model_sizes
from fedprune import models, payload

SEED = 5
SHAPES = {"conv": {"kernel": (3, 3, 4, 7), "bias": (7,)}, "dense": {"kernel": (21, 5)}}


def small(keep=0.3):
    """Weights and a mask of which about ``keep`` is True, in nested dictionaries."""
    rng = np.random.default_rng(SEED)
    is_shape = lambda node: isinstance(node, tuple)
    params = jax.tree.map(lambda s: rng.normal(size=s).astype("f4"), SHAPES, is_leaf=is_shape)
    mask = jax.tree.map(lambda p: rng.uniform(size=p.shape) < keep, params)
    return jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, mask)


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_counts_by_hand():
    """252 + 7 + 105 = 364 weights, the first ten kept: 9 bits an index, 45 bytes of bitmap."""
    params, mask = small()
    kept = jnp.arange(364) < 10
    leaves, treedef = jax.tree.flatten(mask)
    parts = np.split(kept, np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = [p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)]
    mask = jax.tree.unflatten(treedef, shaped)
    assert payload.dense(params, mask) == 1456
    assert payload.values(params, mask) == 40
    assert payload.bitmap(params, mask) == 40 + 46
    assert payload.indices(params, mask) == 40 + 12
    assert payload.coo(params, mask) == 80
    assert payload.csr(params, mask) == 80 + 4 * (8 + 8 + 6)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 1.0])
def test_sizes_equal_real_encodings(keep):
    params, mask = small(keep)
    w, m = flat(params), flat(mask)
    kept = w[m]
    assert payload.values(params, mask) == kept.nbytes
    assert payload.bitmap(params, mask) == kept.nbytes + np.packbits(m).nbytes
    positions = np.flatnonzero(m)
    bits = (positions[:, None] >> np.arange(9)) & 1
    assert payload.indices(params, mask) == kept.nbytes + np.packbits(bits.astype("u1")).nbytes
    # Kept weights that happen to be zero would be missing in SciPy's formats; there are none.
    assert w.all()
    coo = scipy.sparse.coo_array(np.where(m, w, 0))
    assert payload.coo(params, mask) == coo.data.nbytes + 4 * coo.coords[0].size
    total = 0
    for leaf, kept_leaf in zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True):
        masked = np.where(kept_leaf, leaf, 0)
        csr = scipy.sparse.csr_array(masked.reshape(-1, masked.shape[-1]).T)
        total += csr.data.nbytes + 4 * (csr.indices.size + csr.indptr.size)
    assert payload.csr(params, mask) == total
    share = np.array([m.mean(), 1 - m.mean()])
    entropy = scipy.stats.entropy(share, base=2) * w.size / 8
    assert payload.entropy_bound(params, mask) == pytest.approx(kept.nbytes + entropy, rel=1e-12)


def test_the_entropy_bound_is_one_and_nearly_reached():
    """No arithmetic coder here; but gzip of the packed mask of 1e6 bits stays above it."""
    m = np.random.default_rng(SEED).uniform(size=1_000_000) < 0.1
    params = jnp.zeros(m.size)
    bound = payload.entropy_bound(params, jnp.asarray(m)) - payload.values(params, jnp.asarray(m))
    # log2 of the number of masks with as many ones, which an enumerating code needs.
    k = int(m.sum())
    ln = math.lgamma(m.size + 1) - math.lgamma(k + 1) - math.lgamma(m.size - k + 1)
    assert bound == pytest.approx(ln / math.log(2) / 8, rel=1e-4)
    assert bound < len(gzip.compress(np.packbits(m).tobytes(), 9))


def test_gzip_is_gzip():
    params, mask = small()
    raw = np.where(flat(mask), flat(params), 0).astype("<f4").tobytes()
    assert payload.gzipped(params, mask) == len(gzip.compress(raw, 6, mtime=0))
    assert payload.gzipped(params, None) == len(gzip.compress(flat(params).tobytes(), 6, mtime=0))


def test_unpruned_models_need_no_index():
    params, _ = small()
    found = payload.sizes(params, None)
    assert set(found) == set(model_sizes.MEANING)
    assert {size for name, size in found.items() if name != "gzipped"} == {4 * 364}


def test_kernels_leave_biases_out():
    params, mask = small()
    leaves, kept = payload.kernels(params, mask)
    assert payload.dense(leaves, kept) == 4 * (252 + 105)
    assert payload.values(leaves, kept) == 4 * int(
        mask["conv"]["kernel"].sum() + mask["dense"]["kernel"].sum()
    )
    assert payload.kernels(params)[1] is None


def test_masks_of_another_shape_are_refused():
    params, mask = small()
    mask["dense"]["kernel"] = mask["dense"]["kernel"].T
    with pytest.raises(ValueError, match="mask"):
        payload.bitmap(params, mask)


def test_resnet18_in_every_closed_form():
    """11,164,352 kernel weights and random masks; MB as worked out from d and k alone."""
    shapes = jax.tree.leaves(jax.eval_shape(models.resnet18().init, jax.random.key(0)))
    kernels = [leaf for leaf in shapes if leaf.ndim >= 2]
    rng = np.random.default_rng(SEED)
    expected = {
        "dense": (44.66, 44.66, 44.66, 44.66, 44.66),
        "values": (44.66, 31.26, 22.33, 13.40, 4.47),
        "entropy_bound": (44.66, 32.49, 23.72, 14.63, 5.12),
        "bitmap": (44.66, 32.66, 23.72, 14.79, 5.86),
        # 8 bytes a kept weight, and for CSR 4 (4810 + 21) bytes of row starts.
        "coo": (44.66, 62.52, 44.66, 26.79, 8.93),
        "csr": (44.66, 62.54, 44.68, 26.81, 8.95),
        # 24 bits an index: 7 bytes a kept weight.
        "indices": (44.66, 54.71, 39.08, 23.45, 7.82),
    }
    d = sum(k.size for k in kernels)
    for i, ratio in enumerate((0.0, 0.3, 0.5, 0.7, 0.9)):
        mask = None
        if ratio:
            chosen = np.arange(d) < round(d * (1 - ratio))
            rng.shuffle(chosen)
            parts = np.split(chosen, np.cumsum([k.size for k in kernels])[:-1])
            mask = [part.reshape(k.shape) for part, k in zip(parts, kernels, strict=True)]
        for name, row in expected.items():
            found = getattr(payload, name)(kernels, mask) / 1e6
            assert found == pytest.approx(row[i], abs=0.0051), (name, ratio)
