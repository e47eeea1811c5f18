"""Model files: what returns, what is refused, and fuzzing."""

import os
import struct
import tracemalloc
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedprune import payload
from fedprune.payload import files, quantize, tensors

FUZZED = int(os.environ.get("FEDPRUNE_FUZZ", "3000"))
"""damaged files of each kind; 100,000 take minutes"""
SHAPES = {"conv": {"kernel": (3, 3, 4, 6), "bias": (6,)}, "dense": {"kernel": (24, 5)}}


def model(keep=0.3, seed=0):
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    mask = jax.tree.map(lambda w: jnp.asarray(rng.random(w.shape) < keep) | (w.ndim < 2), params)
    return params, mask


def masked(params, mask):
    return jax.tree.map(lambda w, m: np.where(m, w, np.float32(0)), params, mask)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("bits", quantize.BITS)
@pytest.mark.parametrize("encoding", tensors.ENCODINGS)
def test_files_return(tmp_path, encoding, bits):
    params, mask = model()
    path = tmp_path / "model.fp"
    size = payload.save(path, params, mask, encoding, bits)
    assert path.stat().st_size == size
    assert [p.name for p in tmp_path.iterdir()] == ["model.fp"]
    found, kept = payload.load(path)
    if encoding == "dense":
        assert kept is None
    else:
        same(kept, mask)
    wanted = masked(params, mask)
    if bits == 32:
        same(found, wanted)
        return
    same(found["conv"]["bias"], wanted["conv"]["bias"])
    for name in SHAPES:
        exact = wanted[name]["kernel"]
        bound = np.abs(exact).max() / (2**bits - 2) * (1 + 1e-5)
        assert np.abs(found[name]["kernel"] - exact).max() <= bound


def test_bytes_are_what_the_encoding_promises():
    """Beyond the arrays themselves, at most 100 bytes for each."""
    params, mask = model()
    kept = sum(int(m.sum()) for m in jax.tree.leaves(mask))
    for encoding, arrays in (
        ("dense", 4 * (216 + 6 + 120)),
        ("bitmap", 4 * kept + 27 + 15),
    ):
        size = len(payload.to_bytes(params, mask, encoding))
        assert arrays < size < arrays + 300
    eight = len(payload.to_bytes(params, mask, "dense", 8))
    assert 216 + 120 + 24 < eight < 216 + 120 + 24 + 300
    four = len(payload.to_bytes(params, mask, "dense", 4))
    assert eight - four == (216 + 120) // 2


def test_no_mask_and_masks_that_keep_everything():
    params, mask = model()
    everything = jax.tree.map(jnp.ones_like, mask)
    for encoding in tensors.ENCODINGS:
        plain = payload.to_bytes(params, None, encoding)
        assert plain == payload.to_bytes(params, everything, encoding)
        found, kept = payload.from_bytes(plain)
        assert kept is None
        same(found, jax.tree.map(np.asarray, params))


def test_trees_types_and_special_values():
    tree = [
        {"a": np.float32(2.5), "b": np.zeros((0, 3), np.float32)},
        (np.array([np.nan, np.inf, -0.0, 1e-45], "f4"), jnp.ones((2, 3), jnp.bfloat16)),
        np.arange(6, dtype=np.float16).reshape(2, 3),
    ]
    for encoding in tensors.ENCODINGS:
        data = payload.to_bytes(tree, None, encoding)
        found, _ = payload.from_bytes(data, like=tree)
        assert jax.tree.structure(found) == jax.tree.structure(tree)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
            assert x.tobytes() == np.asarray(y).tobytes()
            assert x.dtype == np.asarray(y).dtype
    alone = np.arange(4.0, dtype="f4")
    np.testing.assert_array_equal(payload.from_bytes(payload.to_bytes(alone))[0], alone)
    assert payload.from_bytes(payload.to_bytes({})) == ({}, None)


def test_the_expected_model_is_compared():
    params, mask = model()
    data = payload.to_bytes(params, mask)
    shapes = jax.eval_shape(lambda: params)
    same(payload.from_bytes(data, like=shapes)[0], masked(params, mask))
    other = {**params, "dense": {"kernel": jnp.ones((5, 24))}}
    with pytest.raises(payload.FormatError, match=r"dense/kernel: shape \(24, 5\), expected"):
        payload.from_bytes(data, like=other)
    with pytest.raises(payload.FormatError, match="more: only in the expected model"):
        payload.from_bytes(data, like={**params, "more": jnp.ones(2)})
    with pytest.raises(payload.FormatError, match="conv/bias: only in the file"):
        payload.from_bytes(data, like={"dense": params["dense"]})


def test_what_is_refused_on_writing(tmp_path):
    params, mask = model()
    for arguments, message in (
        ((params, mask, "zip"), "encoding='zip'"),
        ((params, mask, "dense", 5), "bits=5"),
        (({"w": np.arange(3)},), "int64"),
        (({"w": np.array([[np.nan]], "f4")}, None, "dense", 8), "finite"),
        (({"w" * 65536: np.ones(1, "f4")},), "65535 bytes"),
        (({"w": np.ones((1,) * 33, "f4")},), "more than 32 axes"),
        (({"a": {"b": np.ones(1, "f4")}, "a/b": np.ones(1, "f4")},), "two arrays"),
        ((params, {**mask, "dense": {"kernel": mask["dense"]["kernel"].T}}), "mask"),
    ):
        with pytest.raises(ValueError, match=message):
            payload.to_bytes(*arguments)
    with pytest.raises(ValueError, match="bits=5"):
        payload.save(tmp_path / "x", params, mask, "dense", 5)
    with pytest.raises(FileNotFoundError):
        payload.load(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_foreign_new_and_cut_files_are_refused():
    params, mask = model()
    data = payload.to_bytes(params, mask)
    for foreign in (b"", b"\x89PNG\r\n", b"PK\x03\x04" * 50, os.urandom(1000)):
        with pytest.raises(payload.FormatError, match="not one of fedprune's"):
            payload.from_bytes(foreign)
    newer = data[:8] + struct.pack("<H", 2) + data[10:]
    with pytest.raises(payload.FormatError, match="version 2"):
        payload.from_bytes(newer)
    for end in range(8, len(data), 7):
        with pytest.raises(payload.FormatError):
            payload.from_bytes(data[:end])
    with pytest.raises(payload.FormatError, match="after its end"):
        payload.from_bytes(data + b"\0")


def header(name, shape, size=0, crc=0, encoding=2, bits=8, kind=0, masked=0):
    """A file with one array and a right header checksum."""
    fixed = files._ARRAY.pack(kind, encoding, bits, masked, len(shape), 1.0, size, crc, 0)
    text = struct.pack("<IH", 1, len(name)) + name + fixed
    text += struct.pack(f"<{len(shape)}Q", *shape)
    start = files._START.pack(files.VERSION, len(text), zlib.crc32(text))
    return files.MAGIC + start + text


def test_forged_sizes_take_no_memory():
    tracemalloc.start()
    for shape in ((1 << 40,), (1 << 62, 1 << 62), (0, 1 << 40), (1 << 20, 1 << 20), (1,) * 32):
        with pytest.raises(payload.FormatError):
            payload.from_bytes(header(b"w", shape), limit=10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6
    params, mask = model()
    with pytest.raises(payload.FormatError, match="more than 341 weights"):
        payload.from_bytes(payload.to_bytes(params, mask), limit=341)
    assert payload.from_bytes(payload.to_bytes(params, mask), limit=342)


def peak_of_reading(read) -> int:
    """Bytes that NumPy and Python took at once, beyond those of before."""
    tracemalloc.start()
    try:
        read()
    except payload.FormatError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


N = 100_000


def large_claims():
    """Small files of N weights, random ones, and forged headers: each within the limit."""
    rng = np.random.default_rng(5)
    random, some = rng.normal(size=N).astype("f4"), rng.random(N) < 0.5
    for shape in ((N,), (1, N), (N, 1), (250, 400)):
        for values in (np.zeros(N, "f4"), random):
            for mask in (None, some.reshape(shape), np.arange(N).reshape(shape) > 0):
                for encoding, bits in (("entropy", 32), ("entropy", 8), ("bitmap", 4)):
                    arrays = {"w": values.reshape(shape)}, None if mask is None else {"w": mask}
                    yield payload.to_bytes(*arrays, encoding, bits)
    yield payload.to_bytes({str(i): np.float32(i) for i in range(1000)}, None, "bitmap")
    for shape in ((N,), (1, N), (0, N), (1,) * 32):
        for encoding in range(3):
            yield header(b"w", shape, encoding=encoding, masked=1)


def test_reading_takes_memory_in_proportion_to_the_limit():
    """The smallest file here has 83 bytes and N weights; the bound is the module's."""
    for data in large_claims():
        entries = struct.unpack_from("<I", data, len(files.MAGIC) + files._START.size)[0]
        peak = peak_of_reading(lambda d=data: payload.from_bytes(d, limit=N))
        assert peak <= 64 * N + 1024 * entries + (1 << 20)


def test_a_long_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "long.fp"
    with path.open("wb") as file:
        file.write(payload.to_bytes(np.ones(3, "f4")))
        file.truncate(1 << 28)
    with pytest.raises(payload.FormatError, match="268435456 bytes, but 1000 weights have at most"):
        payload.load(path, limit=1000)
    assert peak_of_reading(lambda: payload.load(path, limit=1000)) < 1 << 20


def test_impossible_headers_are_refused():
    for wrong in ({"encoding": 9}, {"bits": 7}, {"kind": 3}, {"masked": 2}):
        with pytest.raises(payload.FormatError, match="impossible description"):
            payload.from_bytes(header(b"w", (2,), **wrong))
    with pytest.raises(payload.FormatError, match="header is damaged"):
        payload.from_bytes(header(b"w", (2,)).replace(b"w", b"v"))


def refused(data):
    """Whether reading it raises the one error that it may raise, with one line."""
    try:
        payload.from_bytes(data, limit=10_000)
    except payload.FormatError as error:
        return "\n" not in str(error)
    return False


@pytest.mark.parametrize("encoding", tensors.ENCODINGS)
def test_damage_never_passes(encoding):
    """Bytes changed, cut, repeated or exchanged at random: every change is found."""
    rng = np.random.default_rng(20)
    params, mask = model()
    originals = [payload.to_bytes(params, mask, encoding, bits) for bits in quantize.BITS]
    for case in range(FUZZED // len(tensors.ENCODINGS)):
        data = bytearray(originals[case % 4])
        at, count = rng.integers(len(data)), int(rng.integers(1, 9))
        kind = case % 5
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at : at + count] = rng.bytes(count)
        elif kind == 2:
            del data[at : at + count]
        elif kind == 3:
            data[at:at] = data[at : at + count]
        else:
            data = data[:at] + bytearray(rng.bytes(count * 20))
        assert bytes(data) == originals[case % 4] or refused(bytes(data))


def sealed(data: bytearray) -> bytes:
    """The file with its checksums of header and streams made right again (not of the weights)."""
    start = len(files.MAGIC) + files._START.size
    version, length, _ = files._START.unpack_from(data, len(files.MAGIC))
    if start + length > len(data):
        return bytes(data)
    at, stream = start + 4, start + length
    while at + 2 <= start + length:
        at += 2 + struct.unpack_from("<H", data, at)[0]
        if at + files._ARRAY.size > start + length:
            break
        fields = list(files._ARRAY.unpack_from(data, at))
        size, axes = fields[6], fields[4]
        fields[7] = zlib.crc32(data[stream : stream + size])
        files._ARRAY.pack_into(data, at, *fields)
        at, stream = at + files._ARRAY.size + 8 * axes, stream + size
    crc = zlib.crc32(data[start : start + length])
    files._START.pack_into(data, len(files.MAGIC), version, length, crc)
    return bytes(data)


@pytest.mark.parametrize("encoding", tensors.ENCODINGS)
def test_forged_checksums_never_crash(encoding):
    """Damage that the first checksums cannot see reaches the decoders; the last one finds it."""
    rng = np.random.default_rng(21)
    params, mask = model()
    originals = [payload.to_bytes(params, mask, encoding, bits) for bits in quantize.BITS]
    assert sealed(bytearray(originals[0])) == originals[0]
    wrong = 0
    for case in range(FUZZED // len(tensors.ENCODINGS)):
        data = bytearray(originals[case % 4])
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(8, len(data))] = rng.integers(256)
        wrong += refused(sealed(data))
    assert wrong > 0.9 * (FUZZED // len(tensors.ENCODINGS))
