"""Entropy coding, quantisation and refinement: exact returns, lengths against entropies."""

import jax
import numpy as np
import pytest
import scipy.stats

from fedprune import payload
from fedprune.payload import entropy, quantize, symbols, tensors

SHAPES = [(), (1,), (7,), (0,), (3, 0, 2), (1, 1), (5, 1), (1, 9), (2, 3), (21, 5), (3, 3, 4, 7)]


def order_0(values) -> float:
    """Bytes of an ideal code that knows the frequencies."""
    counts = np.unique(values, return_counts=True)[1]
    return -(counts * np.log2(counts / counts.sum())).sum() / 8


@pytest.mark.parametrize("leading", symbols.LEADING)
def test_every_integer_has_a_symbol(leading):
    rng = np.random.default_rng(0)
    values = np.concatenate([np.arange(5000), (2 ** np.arange(31))[:, None].ravel() - 1])
    values = np.concatenate([values, rng.integers(0, symbols.LARGEST, 5000), [symbols.LARGEST]])
    values = np.concatenate([values, -values]).astype(np.int32)
    found, widths, rest = symbols.to_symbols(values, leading)
    magnitude, large, again = symbols.from_symbols(found, leading)
    np.testing.assert_array_equal(widths, again)
    magnitude[large] += rest
    np.testing.assert_array_equal(np.where(found & 1, magnitude, -magnitude), values)
    assert (rest < 2.0**widths).all()
    small = np.abs(values) < 2 << leading
    assert not np.isin(large, np.flatnonzero(small)).any()


def test_any_integers_return():
    """300 arrays of all sizes, ranges, sparsities and row lengths, with and without neighbours."""
    rng = np.random.default_rng(1)
    for case in range(300):
        lengths = rng.integers(0, rng.choice([2, 20, 300]), rng.integers(0, 12))
        count = int(lengths.sum())
        top = int(rng.choice([1, 2, 8, 127, 3000, symbols.LARGEST]))
        values = rng.integers(-top, top, count, endpoint=True)
        values[rng.random(count) < rng.choice([0, 0.5, 0.99, 1])] = 0
        beside = rng.integers(0, 3, count).astype(np.uint8) if case % 2 else None
        data = entropy.encode(values, lengths, beside)
        np.testing.assert_array_equal(entropy.decode(data, lengths, beside), values)


def law(deviations, sparsity, largest) -> float:
    """Entropy in bits of a rounded normal number of one of these deviations, or zero."""
    edges = np.arange(largest + 2) - 0.5
    edges = np.concatenate([-edges[:0:-1], edges[1:]])
    share = sum(np.diff(scipy.stats.norm.cdf(edges / d)) for d in deviations) / len(deviations)
    share = share * (1 - sparsity)
    share[share.size // 2] += sparsity
    return scipy.stats.entropy(share, base=2)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("deviation", [1.0, 20.0, 3000.0])
def test_length_is_the_entropy(sparsity, deviation):
    """200,000 integers, tables included, within 3 % of order 0; below it if rows differ in scale.

    The entropy is that of the law: where there are thousands of values, measured frequencies
    describe the draws better than any code could without sending them.
    """
    rng = np.random.default_rng(2)
    rows, columns = 200, 1000
    lengths = np.full(rows, columns)
    normal = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) >= sparsity)
    alike = np.rint(deviation * normal).astype(int).ravel()
    ideal = law([deviation], sparsity, np.abs(alike).max()) * alike.size / 8
    assert ideal == pytest.approx(order_0(alike), rel=0.08)
    assert 0.98 * ideal < len(entropy.encode(alike, lengths)) < 1.03 * ideal
    scales = np.exp(rng.normal(size=(rows, 1)))
    differing = np.rint(deviation * scales * normal).astype(int).ravel()
    pooled = law(deviation * scales[:, 0], sparsity, np.abs(differing).max()) * alike.size / 8
    assert len(entropy.encode(differing, lengths)) < pooled


def test_neighbours_shorten_what_they_explain():
    rng = np.random.default_rng(3)
    beside = rng.integers(0, 3, 100_000).astype(np.uint8)
    values = (rng.random(100_000) < np.array([0.02, 0.3, 0.9])[beside]).astype(int)
    lengths = np.array([100_000])
    ideal = sum(order_0(values[beside == i]) for i in range(3))
    assert ideal < len(entropy.encode(values, lengths, beside)) < 1.03 * ideal
    assert len(entropy.encode(values, lengths)) > 1.3 * ideal
    with pytest.raises(payload.FormatError, match="neighbours"):
        entropy.decode(entropy.encode(values, lengths, beside), lengths)


def test_masks_with_runs_are_shorter_than_their_order_0():
    """Kept weights in blocks of four: the second pass knows both neighbours."""
    rng = np.random.default_rng(4)
    flags = np.repeat(rng.random((100, 250)) < 0.2, 4, axis=1)
    data = tensors.encode_mask(flags)
    np.testing.assert_array_equal(tensors.decode_mask(data, flags.shape), flags)
    assert len(data) < 0.75 * order_0(flags)
    scattered = rng.random((100, 1000)) < 0.1
    data = tensors.encode_mask(scattered)
    np.testing.assert_array_equal(tensors.decode_mask(data, scattered.shape), scattered)
    assert len(data) < 1.01 * order_0(scattered)


@pytest.mark.parametrize("width", [1, 7, 10, 12, 23])
def test_bits_take_their_number(width):
    values = np.random.default_rng(5).integers(0, 1 << width, 10_000)
    data = entropy.encode_bits(values, width)
    np.testing.assert_array_equal(entropy.decode_bits(data, 10_000, width), values)
    assert len(data) <= 10_000 * width / 8 * 1.001 + 8


@pytest.mark.parametrize("name", quantize.FLOATS)
def test_floats_of_any_bits_come_apart_and_together(name):
    dtype = quantize.dtype_of(name)
    patterns = np.random.default_rng(6).integers(0, 1 << 8 * dtype.itemsize, 50_000)
    values = patterns.astype(f"u{dtype.itemsize}").view(dtype)
    exponents, mantissas = quantize.split(values)
    again = quantize.join(exponents, mantissas, dtype)
    assert again.tobytes() == values.tobytes()


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_quantisation_keeps_its_bound(bits):
    rng = np.random.default_rng(7)
    for top in (1e-30, 1.0, 1e30):
        values = (top * rng.uniform(-1, 1, 20_000)).astype("f4")
        levels, scale = quantize.quantize(values, bits)
        back = quantize.dequantize(levels, scale, values.dtype)
        error = np.abs(back.astype(float) - values.astype(float)).max()
        largest = np.abs(values).max()
        assert error <= largest / (2**bits - 2) + 2.0**-23 * largest
        assert np.abs(levels).max() == 2 ** (bits - 1) - 1
    with pytest.raises(ValueError, match="finite"):
        quantize.quantize(np.array([1.0, np.nan], "f4"), bits)
    assert quantize.quantize(np.zeros(3, "f4"), bits)[1] == 0


@pytest.mark.parametrize("encoding", tensors.ENCODINGS)
@pytest.mark.parametrize("name", quantize.FLOATS)
def test_arrays_return(encoding, name):
    """11 shapes × 5 masks × 4 widths × 3 types × 3 encodings: 1,980 arrays."""
    dtype, rng = quantize.dtype_of(name), np.random.default_rng(8)
    for shape in SHAPES:
        values = np.asarray(rng.normal(size=shape)).astype(dtype)
        for keep in (None, 0.0, 0.1, 0.6, 1.0):
            kept = None if keep is None else np.asarray(rng.random(shape) < keep)
            masked = values if kept is None else np.where(kept, values, np.zeros((), dtype))
            for bits in quantize.BITS:
                data, scale = tensors.encode(values, kept, encoding, bits)
                found, mask = tensors.decode(
                    data, shape, dtype, kept is not None, encoding, bits, scale
                )
                assert found.dtype == dtype
                assert found.shape == shape
                if bits == 32:
                    assert found.tobytes() == masked.tobytes()
                else:
                    difference = np.abs(found.astype(float) - masked.astype(float))
                    rounding = 0.02 if name == "bfloat16" else 0.003 if name == "float16" else 1e-6
                    assert (difference <= scale / 2 + rounding).all()
                if encoding == "dense" or kept is None:
                    assert mask is None
                else:
                    np.testing.assert_array_equal(mask, kept)


def test_entropy_coded_weights_need_their_entropy():
    """Global magnitude pruning of normal rows of several scales: within 3 % of mask plus levels."""
    rng = np.random.default_rng(9)
    values = (rng.normal(size=(500, 400)) * np.exp(0.5 * rng.normal(size=400))).astype("f4")
    kept = np.abs(values) > np.quantile(np.abs(values), 0.9)
    data, _ = tensors.encode(values, kept, "entropy", 8)
    levels, _ = quantize.quantize(values[kept], 8)
    assert len(data) < order_0(kept) + order_0(levels)
    lossless, _ = tensors.encode(values, kept, "entropy", 32)
    exponents, _ = quantize.split(values[kept])
    assert len(lossless) < 1.03 * (order_0(kept) + order_0(exponents) + kept.sum() * 23 / 8)


def test_refinement_halves_its_error_with_every_pass():
    rng = np.random.default_rng(10)
    values = rng.laplace(size=30_000).astype("f4")
    values[:3] = 0.0
    lengths, top = np.full(30, 1000), np.abs(values).max()
    chunks = payload.refine(values, lengths, 12)
    last, kept = np.inf, np.zeros(values.shape, bool)
    for p in range(13):
        found = payload.restore(chunks[:p], lengths)
        threshold = top / 2**p
        now = found != 0
        np.testing.assert_array_equal(now, np.abs(values) > (threshold if p else np.inf))
        error = np.abs(found - values)
        rounding = top * 2.0**-23
        assert error[now].max(initial=0) <= threshold / 2 + rounding
        assert error[~now].max(initial=0) <= threshold
        assert (now | ~kept).all()
        assert np.square(error).mean() < last
        last, kept = np.square(error).mean(), now


def test_refinement_costs_little_more_than_one_pass():
    """All twelve chunks against the order-0 entropy of the integers that they amount to."""
    values = np.random.default_rng(11).laplace(size=100_000).astype("f4")
    lengths = np.full(100, 1000)
    chunks = payload.refine(values, lengths, 12)
    levels = np.rint(payload.restore(chunks, lengths) / (np.abs(values).max() / 2**13)).astype(int)
    assert sum(map(len, chunks)) < 1.03 * order_0(levels)


def test_refinement_of_nothing_and_of_zeros():
    for count in (0, 5):
        lengths = np.array([count])
        chunks = payload.refine(np.zeros(count), lengths, 3)
        np.testing.assert_array_equal(payload.restore(chunks, lengths), np.zeros(count))
    with pytest.raises(ValueError, match="passes=0"):
        payload.refine(np.ones(2), np.array([2]), 0)
    with pytest.raises(ValueError, match="finite"):
        payload.refine(np.array([np.inf]), np.array([1]), 1)


def test_damaged_streams_raise_or_decode():
    """Entropy streams and refinements carry no checksum: never another error, never a crash."""
    rng = np.random.default_rng(12)
    lengths = np.array([40, 3, 57])
    values = rng.integers(-600, 600, 100)
    coded = bytearray(entropy.encode(values, lengths))
    chunk = bytearray(payload.refine(rng.normal(size=100), lengths, 1)[0])
    outcomes = set()
    for _ in range(1500):
        for data, decode in (
            (coded, lambda d: entropy.decode(d, lengths)),
            (chunk, lambda d: payload.restore([d], lengths)),
        ):
            broken = bytearray(data)
            for _ in range(rng.integers(1, 4)):
                broken[rng.integers(len(broken))] = rng.integers(256)
            broken = broken[: rng.integers(len(broken) + 1)] if rng.random() < 0.2 else broken
            try:
                assert decode(bytes(broken)).shape == (100,)
                outcomes.add("decoded")
            except payload.FormatError:
                outcomes.add("refused")
    assert outcomes == {"decoded", "refused"}


def test_integers_beyond_32_bits_are_refused():
    with pytest.raises(ValueError, match="magnitude"):
        entropy.encode(np.array([2**31]), np.array([1]))


def test_without_the_extra_the_error_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "constriction", None)
    with pytest.raises(ModuleNotFoundError, match=r"fedprune\[codec\]"):
        payload.to_bytes({"w": jax.numpy.ones((2, 2))})
    assert payload.from_bytes(payload.to_bytes({"w": jax.numpy.ones((2, 2))}, None, "bitmap"))
