"""The same rounds on 1, 2, 4 and 8 devices, and what the compiled program communicates."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import algorithm, cnn, distance, federation, mlp, same

import fedprune as fp
from fedprune.types import Total

ROUNDS = 12


def run(model, layout, rounds=ROUNDS, **kwargs):
    clients = federation(13)
    state, info, _ = fp.run.simulate(
        algorithm(model, layout, **kwargs), model, clients, clients, rounds, seed=5
    )
    return state, info


@pytest.mark.parametrize(
    ("model", "chunk"),
    [
        pytest.param(mlp(), 1, id="mlp"),
        pytest.param(mlp(), 2, id="mlp-chunks", marks=pytest.mark.optimized),
        pytest.param(cnn(), 1, id="cnn", marks=pytest.mark.optimized),
    ],
)
def test_strict_is_bitwise_on_any_number_of_devices(model, chunk):
    """With pruning, noise and a cohort of 11 that no device count divides."""
    layouts = [fp.mesh.make(clients=n, reduction="strict", chunk=chunk) for n in (1, 2, 4, 8)]
    (first, info), *others = [run(model, layout) for layout in layouts]
    assert int(info.kept[-1]) < int(info.kept[0])
    for state, other_info in others:
        assert same(state, first)
        assert same(other_info, info)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [mlp(), pytest.param(cnn(), marks=pytest.mark.nightly)], ids=["mlp", "cnn"]
)
def test_fast_agrees_on_the_first_round(model):
    initial = model.init(fp.rng.stream(jax.random.key(5), "init"))

    def delta(devices):
        state, _ = run(model, fp.mesh.make(clients=devices), rounds=1)
        return jax.tree.map(jnp.subtract, state.params, initial)

    first, *others = [delta(n) for n in (1, 2, 4, 8)]
    assert all(distance(other, first) <= 1e-5 for other in others)


def test_strict_lanes_must_be_shareable():
    with pytest.raises(ValueError, match="lanes=8 must be a multiple of the 3 devices"):
        fp.mesh.make(clients=3, reduction="strict")
    with pytest.raises(ValueError, match="9 devices asked for, 8 exist"):
        fp.mesh.make(clients=9)


@pytest.mark.parametrize("reduction", ["fast", "strict"])
@pytest.mark.parametrize("size", [1, 7, 8, 24, 29])
@pytest.mark.parametrize("chunk", [1, 3])
def test_accumulate_counts_every_position_once(reduction, size, chunk):
    """Against sums and maxima of integers, which are exact in any order."""
    layout = fp.mesh.make(clients=4, reduction=reduction, chunk=chunk)
    values = np.random.default_rng(size).integers(-99, 99, (size, 3)).astype(np.float32)

    def contribution(values, position):
        return Total({"a": values[position]}, values[position, 0])

    def on_device(values):
        total = fp.mesh.accumulate(contribution, values, size, layout)
        return jax.tree.map(lambda v: v[None], total)

    total = jax.jit(fp.mesh.spread(on_device, layout, (False,)))(jnp.asarray(values))
    np.testing.assert_array_equal(total.sum["a"][0], values.sum(0))
    assert total.max[0] == values[:, 0].max()


def collectives(layout, arms=1, **kwargs):
    """(operation, elements that it moves) of every collective in the compiled program."""
    model, clients = mlp(), federation(13)
    rounds = algorithm(model, layout, **kwargs)
    keys = jnp.stack([jax.random.key(s) for s in range(arms)])
    state = fp.run.start(lambda _: rounds, model.init, (), keys)
    tables = (jnp.stack([v] * arms) for v in (clients.rows, clients.size))
    program = fp.run.program(lambda _: rounds, layout, 4)
    return moved_by(program.lower(fp.run.Arms((), keys, state, *tables), clients, clients))


def moved_by(lowered):
    """The same of any program."""
    names = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf"= (.*?) ({names})(?:-start)?\(", lowered.compile().as_text())
    return [(op, elements(types)) for types, op in found]


def elements(types: str) -> int:
    shapes = re.findall(r"\w+\[([\d,]*)\]", types)
    return sum(int(np.prod([int(n) for n in s.split(",") if n])) for s in shapes)


def test_one_model_sized_collective_a_round():
    model_size = sum(p.size for p in jax.tree.leaves(mlp().init(jax.random.key(0))))
    found = collectives(fp.mesh.make(clients=4))
    assert {op for op, _ in found} == {"all-reduce"}
    large = [n for _, n in found if n >= model_size]
    small = [n for _, n in found if n < model_size]
    assert len(large) == 1, found
    assert large[0] <= model_size + 8, "the counts ride along, nothing else"
    assert len(small) <= 2
    assert all(n == 1 for n in small), found


@pytest.mark.slow
def test_arms_on_a_second_axis_change_nothing():
    """Two arms on 2 x 4 devices equal each arm alone on 4 devices, bit for bit."""
    model, clients = mlp(), federation(13)

    def two(layout):
        rounds = algorithm(model, layout)
        keys = jnp.stack([jax.random.key(5), jax.random.key(6)])
        state = fp.run.start(lambda _: rounds, model.init, (), keys)
        tables = (jnp.stack([v] * 2) for v in (clients.rows, clients.size))
        arms = fp.run.Arms((), keys, state, *tables)
        return fp.run.program(lambda _: rounds, layout, ROUNDS)(arms, clients, clients)[0]

    together = two(fp.mesh.make(clients=4, arms=2, reduction="strict"))
    alone = two(fp.mesh.make(clients=4, arms=1, reduction="strict"))
    assert same(together, alone)


UNEVEN = """
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from jax import lax
from fedprune import mesh
layout = mesh.make(clients=1, arms=2)
def on_device(x):
    steps = jnp.where(lax.axis_index("arms") == 0, 5, 60)
    return lax.fori_loop(0, steps, lambda _, a: 1e-3 * (a @ a), x[0])[None]
program = mesh.finished(jax.jit(mesh.spread(on_device, layout, (True,))), layout)
x, history = jnp.ones((2, 300, 300)), []
for _ in range(40):
    x = program(x)
    history.append([1 - x[:, 0, 0] / x[0, 0, 0], 100 * x[:, 1, 1]])
print(np.array(history).shape)
"""


def test_small_operations_between_calls_do_not_deadlock():
    """Arms of unequal speed on two devices; without ``mesh.finished``, JAX 0.10 aborts here."""
    result = subprocess.run(
        [sys.executable, "-c", UNEVEN],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == "(40, 2, 2)"
