"""What the benchmarks count, say and draw; not how fast anything is."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import figure, forms, machine, table
from benchmarks.peers import fedprune as ours
from benchmarks.workloads import LAYERS, NAMES, WORKLOADS, images, workload

ROOT = Path(__file__).parents[1]


def is_program(value) -> bool:
    """Whether a parameter is a jaxpr, closed or open."""
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def products(jaxpr) -> list[int]:
    """Multiply-adds of every product and convolution of a jaxpr, from the shapes alone."""
    found = []
    for eqn in jaxpr.eqns:
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_program):
            if is_program(inner):
                found += products(getattr(inner, "jaxpr", inner))
        out = eqn.outvars[0].aval
        if eqn.primitive.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            found.append(out.size * int(np.prod([eqn.invars[0].aval.shape[i] for i in contracted])))
        elif eqn.primitive.name == "fedprune_conv":
            kernel = eqn.invars[1].aval.shape
            found.append(out.size * int(np.prod(kernel[:-1])))
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_those_of_the_networks(name):
    w = next(w for w in WORKLOADS.values() if w.model == name)
    model = ours.MODELS[name]()
    params = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, *w.shape), jnp.float32)
    jaxpr = jax.make_jaxpr(model.apply)(params, x)
    assert sorted(products(jaxpr.jaxpr)) == sorted(layer.macs for layer in LAYERS[name])
    kernels = sorted(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
    assert kernels == sorted(layer.weights for layer in LAYERS[name])


def test_flops_by_hand():
    """Logistic regression: forward and the kernel's gradient, 784 x 10 multiply-adds each."""
    assert workload("W6").flops() == 2 * 2 * 7840 * 10 * 6 * 10
    assert workload("W6").traffic() == 4 * (6 * 7840 + 10 * 5 * 10) * 10 * 6


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_have_their_examples(name):
    w = workload(f"{name}:smoke")
    assert w.cohort <= 2
    assert w.population * w.examples <= 60_000
    assert w.epoch == (name in ("W5", "W6"))
    if name in ("W1", "W5"):
        x, y = images(w)
        assert x.shape == (w.population * w.examples, *w.shape)
        assert len(y) == len(x)


def test_memory_of_this_process():
    """In kB, the kernel's own high-water mark of this process."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    assert machine.peak_memory_mb(os.getpid()) >= 0.99 * own
    assert machine.peak_memory_mb(2**30) is None


def test_slow_forms_leave_after_a_turn():
    """One call warms up and one is timed; then those within twice the fastest go on."""
    clock, called = [0.0], dict.fromkeys("abc", 0)

    def takes(name, seconds):
        def call():
            called[name] += 1
            clock[0] += seconds

        return call

    seconds = {"a": 1.0, "b": 2.5, "c": 1.5}
    calls = {name: takes(name, value) for name, value in seconds.items()}
    assert forms.measured(calls, float("inf"), lambda: clock[0]) == seconds
    assert called == {"a": 51, "b": 2, "c": 51}


@pytest.mark.parametrize("kind", ["out", "input", "kernel"])
def test_forms_of_a_layer_agree(kind):
    """All that are timed compute the same."""
    layer = forms.Layer(5, (2, 3), 3, 2 if kind == "input" else 1)
    calls = forms.calls(layer, kind, 2, 2, "float32")
    assert {*calls} >= {"sequential", "grouped", "places"}
    first, *rest = (call() for call in calls.values())
    for other in rest:
        np.testing.assert_allclose(other, first, atol=2e-5)


WORKER = """
import sys
sys.argv[1:] = ["W6:smoke"]
from benchmarks.worker import serve
count = 0
def turn():
    global count
    count += 1
    print("noise", count)
serve(lambda w: (turn, {"model": w.model}))
"""


def test_conversation_with_a_worker():
    """One line of facts, then a line for every line; what is printed stays out of it."""
    result = subprocess.run(
        [sys.executable, "-c", WORKER], cwd=ROOT, input="go\ngo\n", capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    facts, *turns = result.stdout.splitlines()
    assert '"model": "logistic"' in facts
    assert len(turns) == 2
    assert all(0 <= float(t) < 60 for t in turns)
    assert result.stderr.split() == ["noise", "1", "noise", "2", "noise", "3"]


def row(framework: str, workload: str, seconds: float) -> dict:
    over = {"round_s": seconds, "round_s_quartiles": [0.9 * seconds, 1.2 * seconds]}
    return {"framework": framework, "workload": workload, "time_over_fedprune": seconds, **over}


def test_figure_and_page(tmp_path):
    rows = [row("fedprune", "W1", 1.0), row("torch", "W1", 2.0), row("fedprune", "W3", 1.0)]
    figure.draw(rows, tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text()
    assert drawn.count("<svg") == 1
    page = table.PAGE.read_text()
    assert table.filled(page) == page, "the page is not what python -m benchmarks.table makes"
    for name in NAMES:
        assert f"<!-- table: {name} -->" in page
