"""Small federations that several tests share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedprune as fp
from fedprune.link import free
from fedprune.types import Before, Candidates, Clients, Outcome


def federation(clients: int, seed: int = 0, shape=(8, 8, 1), low=4, high=30) -> Clients:
    """Random images of ``clients`` clients with unequal sizes; row 0 belongs to nobody."""
    rng = np.random.default_rng(seed)
    size = rng.integers(low, high, clients).astype(np.int32)
    total = 1 + int(size.sum())
    rows = np.zeros((clients, int(size.max())), np.int32)
    start = 1
    for k, n in enumerate(size):
        rows[k, :n] = np.arange(start, start + n)
        start += n
    examples = rng.uniform(0, 1, (total, *shape)).astype(np.float32)
    labels = rng.integers(0, 10, total).astype(np.int32)
    examples, labels, rows, size = map(jnp.asarray, (examples, labels, rows, size))
    flat = (1,) * len(shape)
    return Clients(examples, labels, rows, size, jnp.zeros(flat), jnp.ones(flat))


def mlp(shape=(8, 8, 1)):
    return fp.models.mlp(hidden=(16,), input_shape=shape)


def cnn(shape=(8, 8, 1)):
    return fp.models.cnn(filters=(4, 6), kernel=3, hidden=(12,), input_shape=shape)


def algorithm(model, layout, clients=13, cohort=11, ratio=0.8, optimizer=None, **local):
    """Iterative pruning over the air with partial participation: everything that can differ."""
    return fp.rounds.build(
        local=fp.local.sgd(
            model, optimizer or optax.sgd(0.1, 0.9), **{"batch": 6, "steps": 3, **local}
        ),
        pruner=fp.prune.scheduled(fp.prune.iterative(ratio, start=1, every=2, steps=3)),
        uplink=fp.link.over_the_air(10.0, "common"),
        participation=fp.server.uniform(clients, cohort),
        server=fp.server.average(),
        layout=layout,
    )


def leaves(tree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def same(a, b) -> bool:
    """Bitwise."""
    return all(x.tobytes() == y.tobytes() for x, y in zip(leaves(a), leaves(b), strict=True))


def distance(a, b) -> float:
    """Euclidean norm of a - b over that of b."""
    square = sum(((x - y) ** 2).sum() for x, y in zip(leaves(a), leaves(b), strict=True))
    return float(np.sqrt(square / sum((y**2).sum() for y in leaves(b))))


def before(params, t=0, mask=None):
    """What a pruner sees at the beginning of round t."""
    return Before(jax.random.key(0), jnp.int32(t), params, mask)


def outcome(params, update, t=0, **more):
    """What a server sees at the end of round t."""
    heard = jnp.bool_(True)
    return Outcome(jax.random.key(0), jnp.int32(t), params, None, update, heard, free(), **more)


def candidates(key, clients):
    """What a selection sees of clients with as many examples each."""
    return Candidates(key, jnp.int32(0), jnp.ones(clients, jnp.int32))
